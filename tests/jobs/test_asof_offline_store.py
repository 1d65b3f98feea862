"""Our offline store against Feast's stock duckdb store, through Feast's own door, on random data with edges."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")

START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)
STORES = {"asof": {"type": "jobs.asof_offline_store.AsofOfflineStore", "chunk_rows": 70}, "duckdb": {"type": "duckdb"}}


def write_tables(folder: Path) -> None:
    rng = np.random.default_rng(0)

    def rows(keys: dict[str, Any], number: int) -> dict[str, Any]:
        hours = rng.integers(0, 60, number)
        late = np.where(rng.random(number) < 0.3, rng.integers(0, 30, number), 0)
        return {
            **keys,
            "event_timestamp": [START + int(h) * HOUR for h in hours],
            "created_timestamp": [START + (int(h) + int(n)) * HOUR for h, n in zip(hours, late, strict=True)],
        }

    times = dict.fromkeys(("event_timestamp", "created_timestamp"), pl.Datetime("us", "UTC"))
    number = 400
    stats = pl.DataFrame(
        {
            **rows({"shop_id": rng.integers(0, 12, number)}, number),
            "visits": rng.integers(0, 10**9, number),
            "place": [f"p{n}" for n in range(number)],
        },
        schema_overrides=times,
    )
    # of rows with equal times any may win: keep one, so that there is one right answer
    stats.unique(["shop_id", "event_timestamp", "created_timestamp"], keep="first").write_parquet(
        folder / "stats.parquet"
    )
    vectors = pl.DataFrame(
        {
            **rows({"shop_id": rng.integers(0, 12, number)}, number),
            "embedding": pl.Series(rng.normal(size=(number, 3)).tolist(), dtype=pl.List(pl.Float32)),
        },
        schema_overrides=times,
    )
    vectors.unique(["shop_id", "event_timestamp", "created_timestamp"]).write_parquet(folder / "vectors.parquet")
    scores = pl.DataFrame(
        {
            **rows({"query": [f"q{n % 5}" for n in range(number)], "shop_id": rng.integers(0, 12, number)}, number),
            "score": rng.random(number),
        },
        schema_overrides=times,
    )
    scores.unique(["query", "shop_id", "event_timestamp", "created_timestamp"]).write_parquet(folder / "scores.parquet")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Array, Float32, Float64, Int64, String

    folder = tmp_path_factory.mktemp("shops")
    write_tables(folder)
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
    query = Entity(name="query", join_keys=["query"], value_type=ValueType.STRING)

    def view(name: str, entities: list[Any], fields: list[Any], ttl_hours: int, renamed: dict[str, str]) -> Any:
        source = FileSource(
            name=f"{name}_source",
            path=str(folder / f"{name}.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
            field_mapping=renamed,
        )
        keys = [Field(name=e.join_key, dtype=Int64 if e is shop else String) for e in entities]
        return FeatureView(
            name=name, entities=entities, ttl=dt.timedelta(hours=ttl_hours), schema=[*keys, *fields], source=source
        )

    stats = view(
        "stats",
        [shop],
        [Field(name="num_visits", dtype=Int64), Field(name="place", dtype=String)],
        10,
        {"visits": "num_visits"},
    )
    vectors = view("vectors", [shop], [Field(name="embedding", dtype=Array(Float32))], 0, {})
    scores = view("scores", [query, shop], [Field(name="score", dtype=Float64)], 24, {})

    @on_demand_feature_view(sources=[stats, scores], schema=[Field(name="mix", dtype=Float64)], mode="python")
    def mix(inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            "mix": [
                None if v is None or s is None else v * s
                for v, s in zip(inputs["num_visits"], inputs["score"], strict=True)
            ]
        }

    everything = FeatureService(name="everything", features=[stats, vectors, scores, mix])
    opened = {}
    for name, offline_store in STORES.items():
        config = RepoConfig(
            project="shops",
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{folder / name}.db"},
            online_store={"type": "sqlite", "path": str(folder / f"{name}-online.db")},
            offline_store=offline_store,
            entity_key_serialization_version=3,
        )
        opened[name] = FeatureStore(repo_path=str(folder), config=config)
        opened[name].apply([shop, query, stats, vectors, scores, mix, everything])
    return opened


def entity_rows(number: int = 500) -> pd.DataFrame:
    """Random rows, with duplicates, an unknown shop, times on the hour (so that every ttl edge is hit)."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "row": np.arange(number),
            "shop_id": rng.integers(0, 14, number),
            "query": [f"q{n}" for n in rng.integers(0, 7, number)],
            "event_timestamp": pd.to_datetime([START + int(h) * HOUR for h in rng.integers(-2, 80, number)], utc=True),
        }
    )
    return pd.concat([frame, frame.head(25).assign(row=np.arange(number, number + 25))], ignore_index=True)


def retrieved(store: Any, features: Any, frame: pd.DataFrame | pl.DataFrame, **options: Any) -> pl.DataFrame:
    job = store.get_historical_features(
        entity_df=frame.copy() if isinstance(frame, pd.DataFrame) else frame, features=features, **options
    )
    result = pl.from_arrow(job.to_arrow())
    assert isinstance(result, pl.DataFrame)
    return result


@pytest.mark.parametrize("full_feature_names", [False, True])
def test_every_value_equals_the_stock_stores_and_the_order_is_that_of_the_entity_rows(
    stores: dict[str, Any], full_feature_names: bool
) -> None:
    frame = entity_rows()
    results = {
        name: retrieved(
            store,
            store.get_feature_service("everything"),
            frame,
            filter_by_created_timestamp=True,
            full_feature_names=full_feature_names,
        )
        for name, store in stores.items()
    }
    ours, stock = results["asof"], results["duckdb"].sort("row")
    assert ours["row"].to_list() == frame["row"].to_list()
    assert set(ours.columns) == set(stock.columns)
    features = [name for name in ours.columns if name not in frame.columns]
    assert len(features) == 5
    for feature in features:
        assert ours[feature].to_list() == stock[feature].to_list(), feature
        assert ours[feature].dtype == stock[feature].dtype, feature
        assert 0 < ours[feature].null_count() < len(ours), f"{feature}: the data must hit both cases"


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_rows_without_one_of_two_keys_are_kept_with_the_features_of_the_other(
    stores: dict[str, Any], share: float
) -> None:
    frame = entity_rows(200)
    without = np.random.default_rng(2).random(len(frame)) < share
    frame["query"] = frame["query"].where(~without, None)
    features = ["scores:score", "stats:num_visits"]
    results = {
        name: retrieved(store, features, frame, filter_by_created_timestamp=True).sort("row")
        for name, store in stores.items()
    }
    whole = retrieved(stores["asof"], features, entity_rows(200)).sort("row")
    for result in results.values():
        assert result["row"].to_list() == frame["row"].to_list()
        assert result["num_visits"].to_list() == whole["num_visits"].to_list()
        expected = whole.select(pl.when(~pl.Series(without)).then("score")).to_series()
        assert result["score"].to_list() == expected.to_list()


def test_backfills_stay_unseen_without_asking_where_the_stock_store_shows_them(stores: dict[str, Any]) -> None:
    frame, features = entity_rows(), ["vectors:embedding"]
    asked = retrieved(stores["duckdb"], features, frame, filter_by_created_timestamp=True).sort("row")
    assert retrieved(stores["asof"], features, frame)["embedding"].to_list() == asked["embedding"].to_list()
    leaking = retrieved(stores["duckdb"], features, frame).sort("row")
    assert leaking["embedding"].to_list() != asked["embedding"].to_list()


def test_the_job_gives_pandas_with_on_demand_features(stores: dict[str, Any]) -> None:
    frame = entity_rows(50)
    result = stores["asof"].get_historical_features(entity_df=frame, features=["scores:score", "mix:mix"]).to_df()
    assert list(result["row"]) == list(frame["row"])
    assert {"score", "mix"} <= set(result.columns)


def test_polars_and_naive_and_textual_times_mean_the_same(stores: dict[str, Any]) -> None:
    frame = entity_rows(60)
    features = ["stats:num_visits"]
    expected = retrieved(stores["asof"], features, frame)["num_visits"].to_list()
    polars = pl.from_pandas(frame)
    assert retrieved(stores["asof"], features, polars)["num_visits"].to_list() == expected
    naive = polars.with_columns(pl.col("event_timestamp").dt.replace_time_zone(None))
    assert retrieved(stores["asof"], features, naive)["num_visits"].to_list() == expected
    elsewhere = polars.with_columns(pl.col("event_timestamp").dt.convert_time_zone("Asia/Tokyo"))
    assert retrieved(stores["asof"], features, elsewhere)["num_visits"].to_list() == expected
    text = polars.with_columns(pl.col("event_timestamp").dt.to_string("%Y-%m-%d %H:%M:%S+00:00"))
    assert retrieved(stores["asof"], features, text)["num_visits"].to_list() == expected


def test_no_entity_rows_give_no_rows_with_the_right_columns(stores: dict[str, Any]) -> None:
    result = retrieved(stores["asof"], ["stats:place", "vectors:embedding"], entity_rows().head(0))
    assert result.is_empty()
    assert result.schema["embedding"] == pl.List(pl.Float32)


def test_bad_entity_frames_are_refused_with_the_reason(stores: dict[str, Any]) -> None:
    store, frame = stores["asof"], entity_rows(30).head(30)
    with pytest.raises(ValueError, match=r"lacks the join keys \['query'\]"):
        retrieved(store, ["scores:score"], frame.drop(columns="query"))
    with pytest.raises(ValueError, match="1 of 30 entity rows have no event_timestamp"):
        retrieved(
            store, ["scores:score"], frame.assign(event_timestamp=frame["event_timestamp"].where(frame["row"] != 4))
        )
    with pytest.raises(ValueError, match=r"columns named like features asked for: \['score'\]"):
        retrieved(store, ["scores:score"], frame.assign(score=1.0))
    with pytest.raises(TypeError, match="takes no SQL"):
        store.get_historical_features(entity_df="SELECT 1", features=["scores:score"])


def test_materializing_is_the_stock_stores(stores: dict[str, Any]) -> None:
    stores["asof"].materialize(START, START + 100 * HOUR, feature_views=["vectors"])
    online = stores["asof"].get_online_features(["vectors:embedding"], [{"shop_id": 3}]).to_dict()
    table = pl.read_parquet(Path(stores["asof"].repo_path) / "vectors.parquet")
    newest = (
        table.filter(pl.col("shop_id") == 3).sort("event_timestamp", "created_timestamp")["embedding"].to_list()[-1]
    )
    assert online["embedding"] == [newest]
