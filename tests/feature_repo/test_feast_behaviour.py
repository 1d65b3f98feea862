"""What Feast does that our design rests on: a test failing here after an upgrade says which guard to look at again."""

import datetime as dt
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from jobs.feast_store import quiet_feast

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")

START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)


def open_shop(folder: Path, offline_store: str) -> tuple[Any, list[Any]]:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Array, Float32, Int64, String

    times = pl.Series([START, START + 5 * DAY], dtype=pl.Datetime("us", "UTC"))
    table = pl.DataFrame({"shop_id": ["a", "a"], "visits": [1, 2], "event_timestamp": times, "written": times})
    table = table.with_columns(vector=pl.Series([[1.0, 0.0], [0.0, 1.0]], dtype=pl.List(pl.Float32)))
    table.write_parquet(folder / "visits.parquet")
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
    visits = FeatureView(
        name="visits",
        entities=[shop],
        ttl=10 * DAY,
        schema=[
            Field(name="shop_id", dtype=String),
            Field(name="visits", dtype=Int64),
            Field(name="vector", dtype=Array(Float32), vector_length=2, vector_index=True),
        ],
        source=FileSource(
            name="visits",
            path=str(folder / "visits.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="written",
        ),
    )
    config = RepoConfig(
        project="shops",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"},
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store={"type": offline_store},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(repo_path=str(folder), config=config)
    store.apply([shop, visits])
    return store, [shop, visits]


def test_the_dask_store_loses_slate_rows_and_rows_without_features(tmp_path: Path) -> None:
    """Why it is refused: two rows of one second, one before the first value, one after the ttl."""
    times = pd.to_datetime([START + DAY, START + DAY, START - DAY, START + 40 * DAY], utc=True)
    slate = pd.DataFrame({"shop_id": ["a"] * 4, "row": range(4), "event_timestamp": times})
    kept = {}
    for kind in ("dask", "duckdb", "jobs.asof_offline_store.AsofOfflineStore"):
        (tmp_path / kind).mkdir()
        store, _ = open_shop(tmp_path / kind, kind)
        kept[kind] = len(store.get_historical_features(slate.copy(), ["visits:visits"]).to_df())
    assert kept == {"dask": 1, "duckdb": 4, "jobs.asof_offline_store.AsofOfflineStore": 4}


def test_apply_deletes_what_the_repository_does_not_declare(tmp_path: Path) -> None:
    """Why publish_features refuses a project that holds somebody else's objects."""
    from feast.project import Project
    from feast.repo_contents import RepoContents
    from feast.repo_operations import apply_total_with_repo_instance

    store, (shop, _) = open_shop(tmp_path, "duckdb")
    kinds = ("data_sources", "feature_views", "on_demand_feature_views", "stream_feature_views", "label_views")
    nothing: dict[str, Any] = {kind: [] for kind in (*kinds, "feature_services", "permissions")}
    contents = RepoContents(projects=[Project(name="shops")], entities=[shop], **nothing)
    with quiet_feast(hide_its_bars=True):
        apply_total_with_repo_instance(store, "shops", store.registry, contents, skip_source_validation=True)
    assert store.list_feature_views() == []


def test_the_field_of_an_on_demand_view_can_have_no_tags(tmp_path: Path) -> None:
    """Why `role` is a tag of the on-demand view, not of its field."""
    from feast import Field
    from feast.errors import SpecifiedFeaturesNotPresentError
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Int64

    store, (_, visits) = open_shop(tmp_path, "duckdb")

    @on_demand_feature_view(
        sources=[visits], schema=[Field(name="twice", dtype=Int64, tags={"role": "scalar"})], mode="python"
    )
    def twice(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"twice": [None if one is None else 2 * one for one in inputs["visits"]]}

    with pytest.raises(SpecifiedFeaturesNotPresentError):
        store.apply([twice])


def test_the_online_store_ignores_the_ttl(tmp_path: Path) -> None:
    """Why activity tables end with a row of zeros: online, the last value stays for good."""
    store, _ = open_shop(tmp_path, "duckdb")
    with quiet_feast(hide_its_bars=True):
        store.materialize(START, START + 5 * DAY)
    assert store.get_online_features(["visits:visits"], [{"shop_id": "a"}]).to_dict()["visits"] == [2]
    late = pd.DataFrame({"shop_id": ["a"], "event_timestamp": pd.to_datetime([START + 40 * DAY], utc=True)})
    assert store.get_historical_features(late, ["visits:visits"]).to_df()["visits"].isna().all()


def test_a_vector_of_another_width_than_declared_is_not_written(tmp_path: Path) -> None:
    """Why vector_length is set."""
    store, _ = open_shop(tmp_path, "duckdb")
    wide = pd.DataFrame(
        {"shop_id": ["b"], "visits": [1], "vector": [[1.0, 0.0, 0.0]], "event_timestamp": [START], "written": [START]}
    )
    with pytest.raises(ValueError, match="does not match expected"):
        store.write_to_online_store("visits", wide)
