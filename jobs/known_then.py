"""A second opinion on the training set: a sample of rows, joined again in plain SQL, straight from the lake.

It shares no code with Feast or with `jobs.point_in_time`. A value that was not the newest known one at its impression,
by event time and by created time, stops the job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import dataframely as dy
import duckdb
import polars as pl

from jobs.feature_tables import lake_keys
from jobs.lake import Lake
from jobs.service_plan import ServicePlan

SAMPLE_ROWS = 2_000
"""About as many rows are joined again, evenly spread over the log: some features begin late in it."""


class Recheck:
    """Collects a sample of joined rows, chunk by chunk, and joins them again."""

    def __init__(self, lake: Lake, plan: ServicePlan, tables: Mapping[str, type[dy.Schema]], rows: int) -> None:
        """Prepare for `rows` rows in all.

        Args:
            lake: where the tables are.
            plan: what was joined.
            tables: schema of each table of the lake that the join reads, by name.
            rows: rows that all chunks will have together.
        """
        self._lake, self._plan, self._tables = lake, plan, tables
        self._every = max(1, rows // SAMPLE_ROWS)
        self._sample: list[pl.DataFrame] = []

    def take_sample(self, impressions: pl.DataFrame, joined: pl.DataFrame) -> None:
        """Keep some rows of a chunk, evenly spread over it.

        Args:
            impressions: the chunk.
            joined: its features, in the same order.
        """
        features = joined.select(feature for feature in self._plan.joined_features if feature in joined.columns)
        self._sample.append(
            impressions.select(*dict.fromkeys(("impression_id", "event_timestamp", *self._plan.join_keys.values())))
            .hstack(features)
            .gather_every(self._every)
        )

    def run(self) -> None:
        """Join the sample again.

        Raises:
            ValueError: a value differs from the newest one known at its impression.
        """
        if not self._sample:
            return
        sample = pl.concat(self._sample, how="vertical_relaxed")  # a chunk may have nothing but nulls
        for view in self._plan.views.values():
            table = view.tags.get("lake_table")
            if table not in self._tables:
                continue  # a team's own view: its history is not in the lake
            features = [ref.partition(":")[2] for ref in self._plan.refs if ref.startswith(f"{view.name}:")]
            expected = self._newest_known(sample, table, list(lake_keys(view).values()), features, view.ttl)
            together = sample.select("impression_id", *features).join(
                expected, on="impression_id", how="left", suffix="__again", maintain_order="left"
            )
            for feature in features:
                wrong = together.filter(pl.col(feature).ne_missing(pl.col(f"{feature}__again")))
                if not wrong.is_empty():
                    one = wrong.row(0, named=True)
                    raise ValueError(
                        f"build_training_set: {feature} of impression {one['impression_id']} is {one[feature]!r}, but "
                        f"the newest value of {table} known then was {one[f'{feature}__again']!r} ({len(wrong)} of "
                        f"{len(together)} sampled rows differ).\n  what to do: if {table} was written while the job "
                        "ran, run it again; otherwise the offline store does not keep time: use 'asof'"
                    )

    def _newest_known(
        self, sample: pl.DataFrame, table: str, keys: list[str], features: list[str], ttl: object
    ) -> pl.DataFrame:
        files = [str(path) for path in self._lake.parquet_files(self._tables[table])]
        columns = ", ".join(f'f."{feature}"' for feature in features)
        same_keys = " AND ".join(f'f."{key}" = s."{key}"' for key in keys)  # never true of a null
        wanted = sample.select("impression_id", *keys, pl.col("event_timestamp").alias("t"))
        with contextlib.closing(duckdb.connect()) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("sample", wanted.to_arrow())
            return connection.execute(
                f"""SELECT s.impression_id, {columns} FROM sample s JOIN read_parquet($files) f ON {same_keys}
                WHERE f.event_timestamp <= s.t AND f.created_timestamp <= s.t
                  AND ($ttl IS NULL OR f.event_timestamp + $ttl >= s.t)
                QUALIFY row_number() OVER (
                    PARTITION BY s.impression_id ORDER BY f.event_timestamp DESC, f.created_timestamp DESC) = 1""",
                {"files": files, "ttl": ttl or None},
            ).pl()
