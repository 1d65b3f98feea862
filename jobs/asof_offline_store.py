"""A Feast offline store that cannot see the future, keeps every row, and does not slow down with history.

    offline_store:
      type: jobs.asof_offline_store.AsofOfflineStore

Feast's stock duckdb store joins each entity row with every feature row within the time to live and keeps the
newest: its cost is rows x history x width. It looks at created_timestamp only when asked to
(`filter_by_created_timestamp=True`), and returns rows in any order. This one is an ASOF join (`jobs.point_in_time`),
always as-known-then, in the order of the entity rows, a chunk of them at a time; only the columns asked for are read.
Everything but `get_historical_features` is the stock store's.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import ibis
import pandas as pd
import polars as pl
import pyarrow as pa
from feast.data_format import ParquetFormat
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.duckdb import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
    _read_data_source,
    _write_data_source,
)
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from pydantic import PositiveInt

from jobs.point_in_time import FeatureRows, as_known_then

TIME = "__entity_timestamp"


class AsofOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """Section `offline_store` of feature_store.yaml."""

    type: Literal["jobs.asof_offline_store.AsofOfflineStore"] = "jobs.asof_offline_store.AsofOfflineStore"

    chunk_rows: PositiveInt = 250_000
    """Entity rows joined at once. Fewer take less memory; every chunk reads the feature tables again."""


class AsofOfflineStore(DuckDBOfflineStore):
    """Feast's duckdb store with the point-in-time join of `jobs.point_in_time`."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pl.DataFrame,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = True,
    ) -> RetrievalJob:
        """Features of each entity row as they were known at its time.

        Args:
            config: as Feast read it.
            feature_views: views to join.
            feature_refs: "view:feature" of every feature wanted.
            entity_df: rows with the join keys and `event_timestamp`, in pandas or polars; other columns are kept.
            registry: Feast's.
            project: Feast's.
            full_feature_names: name columns view__feature.
            filter_by_created_timestamp: always true here, whatever is passed: Feast's default would leak backfills.

        Raises:
            TypeError: `entity_df` is neither a pandas nor a polars frame.
            ValueError: a join key is missing, a timestamp is null, or a column has the name of a feature.
        """
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        if any(view.mode == "substrait" for view in on_demand):  # these rewrite the stock store's own query
            return DuckDBOfflineStore.get_historical_features(
                config, feature_views, feature_refs, entity_df, registry, project, full_feature_names, True
            )
        entities = _to_arrow(entity_df)
        keys_and_time, time = _keys_and_time(entities, feature_views)
        tables = [_feature_rows(config, view, feature_refs, full_feature_names) for view in feature_views]
        clash = {name for rows, names in tables for name in names.values()} & set(entities.column_names)
        if clash:
            raise ValueError(
                f"get_historical_features: entity_df has columns named like features asked for: {sorted(clash)}; "
                "drop or rename them, or pass full_feature_names=True"
            )
        return AsofRetrievalJob(
            config=config,
            entities=entities,
            keys_and_time=keys_and_time,
            tables=tables,
            on_demand_feature_views=on_demand,
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.column_names if name != time],
                min_event_timestamp=_bound(keys_and_time.get_column(TIME).min()),
                max_event_timestamp=_bound(keys_and_time.get_column(TIME).max()),
            ),
        )


class AsofRetrievalJob(RetrievalJob):
    """The join, done when its result is asked for."""

    def __init__(
        self,
        *,
        config: RepoConfig,
        entities: pa.Table,
        keys_and_time: pl.DataFrame,
        tables: list[tuple[FeatureRows, dict[str, str]]],
        on_demand_feature_views: list[OnDemandFeatureView],
        full_feature_names: bool,
        metadata: RetrievalMetadata,
    ) -> None:
        self._config, self._entities, self._keys_and_time, self._tables = config, entities, keys_and_time, tables
        self._on_demand_feature_views, self._full_feature_names = on_demand_feature_views, full_feature_names
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        result = self._entities
        chunk_rows = self._config.offline_store.chunk_rows
        for rows, names in self._tables:
            # An empty frame has one (empty) chunk, so that the columns have their types.
            chunks = [
                _plain_types(
                    as_known_then(chunk, TIME, rows).rename(names).to_arrow(compat_level=pl.CompatLevel.oldest())
                )
                for chunk in self._keys_and_time.iter_slices(chunk_rows)
            ] or [_plain_types(as_known_then(self._keys_and_time, TIME, rows).rename(names).to_arrow())]
            features = pa.concat_tables(chunks)
            assert features.num_rows == self._entities.num_rows, "the point-in-time join lost or made rows"
            for name in features.column_names:
                result = result.append_column(name, features[name])
        return result

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    @property
    def full_feature_names(self) -> bool:
        """Whether columns are named view__feature."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Views that Feast computes on top of the joined features."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata:
        """What was asked for."""
        return self._metadata

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result where a Feast saved dataset lives."""
        table = ibis.memtable(self.to_arrow(timeout=timeout))
        _write_data_source(table, storage.to_data_source(), str(self._config.repo_path), "overwrite", allow_overwrite)


def _to_arrow(entity_df: pd.DataFrame | pl.DataFrame) -> pa.Table:
    if isinstance(entity_df, pl.DataFrame):
        return _plain_types(entity_df.to_arrow(compat_level=pl.CompatLevel.oldest()))
    if isinstance(entity_df, pd.DataFrame):
        return pa.Table.from_pandas(entity_df, preserve_index=False)
    raise TypeError(
        f"get_historical_features: entity_df is a {type(entity_df).__name__}, expected a pandas or polars DataFrame "
        "(this offline store takes no SQL)"
    )


def _keys_and_time(entities: pa.Table, feature_views: list[FeatureView]) -> tuple[pl.DataFrame, str]:
    """The join keys, and the time in UTC as `TIME`; with the name of the time column."""
    types = {field.name: field.type.to_pandas_dtype() for field in entities.schema}
    time = infer_event_timestamp_from_entity_df(types)
    keys = sorted({ours for view in feature_views for ours in _join_keys(view).values()})
    missing = [key for key in keys if key not in entities.column_names]
    if missing:
        raise ValueError(
            f"get_historical_features: entity_df lacks the join keys {missing} (its columns: {entities.column_names})"
        )
    # pandas reads naive times as UTC, converts aware ones, and parses strings: what Feast promises of entity_df
    times = pl.Series(TIME, pd.to_datetime(entities[time].to_pandas(), utc=True))
    if times.null_count():
        raise ValueError(
            f"get_historical_features: {times.null_count()} of {len(times)} entity rows have no {time}; "
            "drop them, or say when they happened"
        )
    frame = pl.from_arrow(entities.select(keys)) if keys else pl.DataFrame()
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(times), time


def _join_keys(view: FeatureView) -> dict[str, str]:
    """{column of the view: column of the entity rows}."""
    mapped: dict[str, str] = view.projection.join_key_map or {
        column.name: column.name for column in view.entity_columns
    }
    return {theirs: ours for theirs, ours in mapped.items() if theirs != DUMMY_ENTITY_ID}


def _feature_rows(
    config: RepoConfig, view: FeatureView, feature_refs: Iterable[str], full_feature_names: bool
) -> tuple[FeatureRows, dict[str, str]]:
    """The rows of a view, and {feature: column of the result}."""
    source = view.batch_source
    if source is None:
        raise ValueError(f"feature view {view.name} has no batch source, so it has no history to join")
    prefix = f"{view.projection.name_to_use()}:"
    features = tuple(dict.fromkeys(ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)))
    name = view.projection.name_alias or view.name
    renamed = {feature: f"{name}__{feature}" if full_feature_names else feature for feature in features}
    keys = _join_keys(view)
    columns = {*keys, *features, source.timestamp_field, source.created_timestamp_column} - {"", None}
    frame = _scan(config, source, columns)
    return FeatureRows(
        frame=frame,
        keys=keys,
        features=features,
        event_timestamp=source.timestamp_field,
        created_timestamp=source.created_timestamp_column or None,
        ttl=view.ttl or None,
    ), renamed


def _scan(config: RepoConfig, source: Any, columns: set[str]) -> pl.LazyFrame:
    """The columns of a source under the names they have in Feast."""
    original = {new: old for old, new in source.field_mapping.items()}
    wanted = [pl.col(original.get(column, column)).alias(column) for column in sorted(columns)]
    is_parquet = isinstance(source, FileSource) and (
        isinstance(source.file_format, ParquetFormat) or source.path.endswith(".parquet")
    )
    if is_parquet and "://" not in source.path:
        path = Path(source.path)
        return pl.scan_parquet(path if path.is_absolute() else Path(config.repo_path or ".") / path).select(wanted)
    # Object stores, Delta, Iceberg, Lance: read as the stock store reads them, credentials and all.
    table = _read_data_source(source, str(config.repo_path))
    frame = pl.from_arrow(table.select(sorted(original.get(column, column) for column in columns)).to_pyarrow())
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy().select(wanted)


def _plain_types(table: pa.Table) -> pa.Table:
    """large_string and large_list, which polars makes, as string and list, which the stock store gives."""

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_large_list(kind) or pa.types.is_list(kind):
            return pa.list_(plain(kind.value_type))
        return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind

    return table.cast(pa.schema([field.with_type(plain(field.type)) for field in table.schema]))


def _bound(time: object) -> datetime | None:
    return time if isinstance(time, datetime) else None
