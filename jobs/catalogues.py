"""Rows of which there is one per id (items, users, queries): gathered while a log is read, then dated by it."""

import contextlib
import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path

import dataframely as dy
import polars as pl

from feature_repo.table_schemas import EARLIEST, Items
from jobs.lake import table_name

GROUPS_BEFORE_MERGING = 2_000_000
"""Partial counts held before they are added up: some 200 MB."""

ITEM_CONTENT = [
    name for name in Items.column_names() if name not in ("item_id", "event_timestamp", "created_timestamp")
]


@contextlib.contextmanager
def empty_folder(folder: Path) -> Iterator[Path]:
    """A folder for the length of a block; what a killed job left in it is swept away first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Catalogue:
    """Rows with one id each, on disk until the log has been read: only their ids are held in memory.

    Of several rows with the same id the first is kept. Rows without an id stay: the lake refuses and counts them.

    Attributes:
        ids: the ids given out by `frames` so far, one column.
        num_repeated: rows that `frames` has left out so far.
    """

    def __init__(self, schema: type[dy.Schema], folder: Path) -> None:
        (self.key,) = schema.primary_key()
        self.ids = pl.DataFrame(schema={self.key: pl.String})
        self.num_repeated = 0
        self._folder, self._name, self._files = folder, table_name(schema), list[Path]()

    def add(self, frame: pl.DataFrame) -> None:
        """Take in some rows."""
        self._files.append(self._folder / f"{self._name}-{len(self._files):05d}.parquet")
        frame.write_parquet(self._files[-1])

    def frames(self) -> Iterator[pl.DataFrame]:
        """The rows again, as they came in."""
        key = pl.col(self.key)
        for file in self._files:
            frame = pl.read_parquet(file)
            fresh = frame.filter(key.is_null() | key.is_first_distinct())
            fresh = fresh.join(self.ids, on=self.key, how="anti", maintain_order="left")
            self.ids = self.ids.vstack(fresh.select(key.drop_nulls()))
            self.num_repeated += len(frame) - len(fresh)
            yield fresh


class FirstSeen:
    """When the impressions first name each id, and how often they do; times out of range are passed over."""

    def __init__(self, key: str, now: dt.datetime) -> None:
        self.key, self._now = key, now
        self._parts: list[pl.DataFrame] = []

    def add(self, impressions: pl.DataFrame) -> None:
        """Take in some impressions."""
        self._parts.append(
            impressions.filter(
                pl.col("event_timestamp").is_between(EARLIEST, self._now), pl.col(self.key).is_not_null()
            )
            .group_by(self.key)
            .agg(pl.col("event_timestamp").min().alias("first_seen"), pl.len().cast(pl.Int64).alias("num_impressions"))
        )
        if sum(map(len, self._parts)) > GROUPS_BEFORE_MERGING:
            self._parts = [self.merged()]

    def merged(self) -> pl.DataFrame:
        """Columns: the id, first_seen, num_impressions."""
        empty = pl.DataFrame(
            schema={self.key: pl.String, "first_seen": pl.Datetime("us", "UTC"), "num_impressions": pl.Int64}
        )
        return (
            pl.concat([empty, *self._parts])
            .group_by(self.key)
            .agg(pl.col("first_seen").min(), pl.col("num_impressions").sum())
        )


def dated(frame: pl.DataFrame, first_seen: pl.DataFrame, log_start: dt.datetime, *, truncate_to: str) -> pl.DataFrame:
    """Fill or mend the `event_timestamp` of a catalogue by the log.

    A row dated later than its first impression was there all the same: it gets the time of that impression, cut to
    `truncate_to`. So does a row without a date; one that was never shown either gets the start of the log.
    """
    if "event_timestamp" not in frame.columns:
        frame = frame.with_columns(event_timestamp=pl.lit(None, pl.Datetime("us", "UTC")))
    key = first_seen.columns[0]
    given, seen = pl.col("event_timestamp"), pl.col("first_seen")
    mended = (
        pl.when(given.is_null() | (given > seen))
        .then(pl.coalesce(seen.dt.truncate(truncate_to), given))
        .otherwise(given)
    )
    joined = frame.join(first_seen.select(key, "first_seen"), on=key, how="left", maintain_order="left")
    return joined.with_columns(event_timestamp=mended.fill_null(log_start)).drop("first_seen")


def with_created_timestamp(items: pl.DataFrame, before: pl.DataFrame, now: dt.datetime) -> pl.DataFrame:
    """Date the writing of each item: a row of old as of its `event_timestamp`, a revised one as of now.

    An item that comes for the first time, or unchanged, is what a run at its time would have written. One whose
    content differs from the lake's was not known before this run, and the join for training must not see it earlier.

    Args:
        items: the items as they are to be written.
        before: the items that the last run of the same source wrote; empty where there was none.
        now: the lake's clock.
    """
    content = pl.concat_str([pl.col(name).cast(pl.String).fill_null("\0") for name in ITEM_CONTENT], separator="\x1f")
    old = before.select(
        "item_id", pl.col("created_timestamp").alias("created_before"), content.hash().alias("old_content")
    )
    created = (
        pl.when(pl.col("old_content").is_null())
        .then("event_timestamp")
        .when(pl.col("old_content") == content.hash())
        .then("created_before")
        .otherwise(now)
    )
    joined = items.join(old, on="item_id", how="left", maintain_order="left")
    return joined.with_columns(created_timestamp=created).drop("created_before", "old_content")
