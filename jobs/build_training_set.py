"""Join every impression with its features as they were known at that moment, and split the log by time.

reads   impressions; queries, whether there are any; the feature tables (`jobs.feature_tables`), through the services
        that publish_features registered
writes  training_examples     one row per impression; matrices/<view>: the vectors that its ids point to
        split_windows         one row per split
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dataframely as dy
import polars as pl
import pyarrow as pa
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt

from feature_repo.table_schemas import (
    Impressions,
    Queries,
    SplitWindows,
    TrainingExamples,
)
from jobs.feast_store import REFUSED_OFFLINE_STORES, open_store, quiet_feast, repo_digest
from jobs.feature_tables import BY_NAME, FEATURE_TABLES, OF_QUERIES, STEPS_TO_WRITE
from jobs.known_then import Recheck
from jobs.lake import Lake
from jobs.late_vectors import VectorTable
from jobs.progress import progress_bar
from jobs.service_plan import ServicePlan, entity_frame, plan_services
from jobs.split_windows import LogSpan, label, split_windows

if TYPE_CHECKING:
    from feast import FeatureStore
    from feast.types import FeastType

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (Impressions, Queries, *FEATURE_TABLES)
WRITES: tuple[type[dy.Schema], ...] = (TrainingExamples, SplitWindows)


class Config(BaseModel, extra="forbid", frozen=True):
    """Which features, which split, which labels."""

    services: tuple[str, ...] = Field(default=("ranker_base_v1", "ranker_content_v1", "ranker_learn_v1"), min_length=1)
    """Feature services whose features are joined, together: the rankers to be compared see the same rows. By default
    those of the methods that are switched on ([fit_embedder], [fit_embedder_karma], [label_relevance]: enabled)."""

    test_days: PositiveInt = 7
    """Days at the end of the log for the test."""

    validation_days: PositiveInt = 5
    """Days before them, for early stopping."""

    train_days: PositiveInt | None = None
    """Days before those, to train on; by default all that are left."""

    conversion_window_days: NonNegativeFloat = 3.0
    """A conversion later than this after its impression does not count, and no impression younger than this has a
    conversion label. Where no conversion of the log took that long, the longest delay is the window."""

    offline_store: Literal["asof", "duckdb", "repository"] = "asof"
    """`asof`: ours. `duckdb`: Feast's own, slower, as a reference. `repository`: as feature_store.yaml says."""

    feature_repo: str | None = None
    """Folder of your own Feast repository, where it imports our views (the same as for publish_features)."""

    chunk_rows: PositiveInt = 100_000
    """Impressions joined at one time: memory grows with it, and every chunk reads the feature tables again."""


def outside_inputs(config: Config) -> str:
    """Hash of the feature definitions, which are no tables."""
    return repo_digest(config.feature_repo)


def run(lake: Lake, config: Config) -> None:
    """Build the training set.

    Raises:
        ValueError: the log is too short or has no positives to train on, a split is empty, the offline store is one
            that loses rows or sees the future, a service needs a table that is not there, rows were lost, or a value
            was not known at its impression.
    """
    impressions = lake.scan(Impressions).lazy()
    if lake.manifest(Impressions).rows == 0:
        raise ValueError("build_training_set: there are no impressions; ingest a log first")
    span = LogSpan.of(impressions)
    windows = split_windows(
        span, test_days=config.test_days, validation_days=config.validation_days, train_days=config.train_days
    )
    conversion_window = min(timedelta(days=config.conversion_window_days), span.longest_delay)
    labelled = label(impressions, windows, conversion_window)
    windows = _count_splits(labelled, windows, span)

    store = open_store(
        lake, config.feature_repo, None if config.offline_store == "repository" else config.offline_store
    )
    _check_offline_store(store)
    plan = plan_services(store, config.services, Impressions.column_names())
    _check_tables(lake, store, plan)
    rows = int(windows["num_impressions"].sum())
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=lake.folder("scratch"))))
        vectors = {one.id_feature: VectorTable(lake, one, BY_NAME[one.table], scratch) for one in plan.vectors.values()}
        recheck = Recheck(lake, plan, BY_NAME, rows)
        writer = stack.enter_context(
            lake.writer(
                TrainingExamples,
                metadata={
                    "services": plan.services,
                    "origins": plan.origins,
                    "vectors": {one.id_feature: one.matrix for one in plan.vectors.values()},
                    "conversion_window_days": conversion_window / timedelta(days=1),
                },
            )
        )
        advance = stack.enter_context(progress_bar("join features", rows, "impressions"))
        for chunk in _chunks(labelled, config.chunk_rows):
            joined = _join(store, plan, chunk)
            joined = _add_late_features(joined, plan, vectors)
            recheck.take_sample(chunk, joined)
            writer.write_shard(chunk.select(TrainingExamples.column_names()).hstack(joined.select(plan.features)))
            advance(len(chunk))
        recheck.run()
        for table in vectors.values():
            logger.info("build_training_set: %s vectors of %s", f"{table.write_used(lake):_}", table.name)
    lake.write(SplitWindows, windows)


def _count_splits(labelled: pl.LazyFrame, windows: pl.DataFrame, span: LogSpan) -> pl.DataFrame:
    """The windows with `num_impressions`; refuses a split that nothing can be learnt from or judged by."""
    counts = labelled.group_by("split").agg(
        pl.len().cast(pl.Int64).alias("num_impressions"),
        pl.col("clicked").sum().alias("clicks"),
        pl.col("converted").sum().alias("conversions"),
        pl.col("converted").count().alias("mature"),
    )
    counts_by_split = counts.collect(engine="streaming")
    counted = windows.join(counts_by_split, on="split", how="left", maintain_order="left").with_columns(
        pl.col("num_impressions", "clicks", "conversions", "mature").fill_null(0)
    )
    for split, start, end, _, num_impressions, clicks, conversions, mature in counted.iter_rows():
        period = f"{split} ({start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M})"
        if num_impressions == 0:
            raise ValueError(
                f"build_training_set: no impression in {period}, though the log covers {span.first:%Y-%m-%d} to "
                f"{span.last:%Y-%m-%d}.\n  what to do: choose test_days, validation_days and train_days so that each "
                "split has traffic, or ingest the missing days"
            )
        if clicks == 0 and split == "train":
            raise ValueError(
                f"build_training_set: none of the {num_impressions:_} impressions in {period} was clicked, so there is "
                "nothing to learn.\n  what to do: widen train_days, or look at the source's label rule"
            )
        if clicks == 0:
            logger.warning("build_training_set: no clicks in %s, so no metric can be computed on it", period)
        if span.last_conversion and mature == 0:
            logger.warning(
                "build_training_set: no impression in %s is old enough to know whether it converted; lower "
                "conversion_window_days or widen the split",
                period,
            )
        elif span.last_conversion and conversions == 0:
            logger.warning(
                "build_training_set: no conversion in %s came within the conversion window; is "
                "conversion_window_days too short for this log? (its longest delay: %s)",
                period,
                span.longest_delay,
            )
        logger.info(
            "build_training_set: %s: %s impressions, %s clicks, %s conversions of %s impressions old enough",
            period,
            *(f"{number:_}" for number in (num_impressions, clicks, conversions, mature)),
        )
    return counted.drop("clicks", "conversions", "mature")


def _check_offline_store(store: FeatureStore) -> None:
    from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

    kind = str(store.config.offline_store.type)
    if kind in REFUSED_OFFLINE_STORES:
        raise ValueError(
            f"build_training_set: offline_store.type {kind!r} is refused: {REFUSED_OFFLINE_STORES[kind]}.\n"
            "  what to do: leave offline_store of [build_training_set] at 'asof'"
        )
    if not get_offline_store_from_config(store.config.offline_store).supports_filter_by_created_timestamp:
        raise ValueError(
            f"build_training_set: offline_store.type {kind!r} cannot leave out values written after the impression, so "
            "backfills would leak into training.\n  what to do: leave offline_store of [build_training_set] at 'asof'"
        )


def _check_tables(lake: Lake, store: FeatureStore, plan: ServicePlan) -> None:
    states = {
        name: "empty: is its method disabled?" if lake.exists(BY_NAME[name]) else "never written"
        for name in sorted(plan.tables & BY_NAME.keys())
        if not lake.exists(BY_NAME[name]) or lake.manifest(BY_NAME[name]).rows == 0
    }
    of_queries = [name for name in states if BY_NAME[name] in OF_QUERIES and _has_columns(lake, BY_NAME[name])]
    if of_queries and lake.exists(Queries) and lake.manifest(Queries).rows == 0:
        logger.warning("build_training_set: the log has no queries, so %s say nothing", ", ".join(of_queries))
        states = {name: state for name, state in states.items() if name not in of_queries}
    if not states:
        return
    columns = Impressions.column_names()
    needy = [name for name in plan.services if plan_services(store, [name], columns).tables & states.keys()]
    steps = dict.fromkeys(step for name in states for step in STEPS_TO_WRITE[BY_NAME[name]])
    raise ValueError(
        f"build_training_set: {', '.join(needy)} cannot be joined: {lake.root} has no rows of "
        f"{', '.join(f'{name} ({state})' for name, state in states.items())}.\n"
        f"  what to do: `tailrank run {' '.join(steps)} publish_features`; or leave {', '.join(needy)} out of "
        "`services` of [build_training_set], and the rankers that read it out of [train_ranker]"
    )


def _has_columns(lake: Lake, schema: type[dy.Schema]) -> bool:
    """Whether it can be joined, with or without rows: a lake of an earlier version has empty tables without a file."""
    return lake.exists(schema) and len(lake.parquet_files(schema)) > 0


def _chunks(labelled: pl.LazyFrame, chunk_rows: int) -> Iterator[pl.DataFrame]:
    for batch in labelled.collect_batches(chunk_size=chunk_rows, maintain_order=True):
        yield from batch.iter_slices(chunk_rows)


def _join(store: FeatureStore, plan: ServicePlan, chunk: pl.DataFrame) -> pl.DataFrame:
    """What Feast knows of each impression of the chunk, in its order; every row is accounted for."""
    with quiet_feast():
        table = store.get_historical_features(
            entity_df=entity_frame(chunk, plan).to_pandas(), features=plan.refs, filter_by_created_timestamp=True
        ).to_arrow()
    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    ids = chunk.select("impression_id")
    if len(found) != len(ids) or not found.get_column("impression_id").is_unique().all():
        lost = ids.join(found, on="impression_id", how="anti").get_column("impression_id")
        raise ValueError(
            f"build_training_set: {len(ids):_} impressions went into the point-in-time join and {len(found):_} rows "
            f"came out ({len(lost):_} lost: {', '.join(lost.head(3))}). Check offline_store.type: "
            f"{store.config.offline_store.type} must not drop or repeat rows."
        )
    return ids.join(found, on="impression_id", how="left", maintain_order="left")


def _add_late_features(joined: pl.DataFrame, plan: ServicePlan, tables: dict[str, VectorTable]) -> pl.DataFrame:
    """Look the vectors up, and compute the on-demand features that read them, by the function that Feast serves."""
    looked_up = {
        one.vector_feature: tables[one.id_feature].look_up(joined.get_column(one.id_feature))
        for one in plan.vectors.values()
    }
    for name, view in plan.late_views.items():
        inputs = {
            one.name: looked_up[one.name] if one.name in looked_up else joined.get_column(one.name).to_list()
            for projection in view.source_feature_view_projections.values()
            for one in projection.features
        }
        outputs = view.feature_transformation.udf(inputs)
        # The type is the declared one: a chunk older than every vector has nothing but nulls.
        columns = [_column(one.name, outputs[one.name], one.dtype) for one in view.features]
        assert all(len(column) == len(joined) for column in columns), f"{name} lost rows"
        joined = joined.with_columns(columns)
    return joined


def _column(name: str, values: list[Any], dtype: FeastType) -> pl.Series:
    from feast.type_map import feast_value_type_to_pa

    column = pl.from_arrow(pa.array(values, feast_value_type_to_pa(dtype.to_value_type())))
    assert isinstance(column, pl.Series)
    return column.rename(name)
