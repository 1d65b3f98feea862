"""The other way to adopt: a team's own Feast repository imports our views, under its entities and join keys."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from feature_repo.table_schemas import Impressions, TrainingExamples
from jobs import build_training_set, publish_features
from jobs.lake import Lake

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")

FEATURE_STORE_YAML = """
project: shop
provider: local
registry: {{registry_type: sql, path: "sqlite:///{folder}/registry.db"}}
offline_store: {{type: duckdb}}
online_store: {{type: sqlite, path: "{folder}/online.db"}}
entity_key_serialization_version: 3
"""

ENTITIES = """
from feast import Entity, ValueType

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
product = Entity(name="product", join_keys=["product_id"], value_type=ValueType.STRING)
search = Entity(name="search", join_keys=["search_id"], value_type=ValueType.STRING)
"""

FEATURES = """
from datetime import timedelta

from entities import customer, product, search
from feast import FeatureService, FeatureView, Field, FileSource
from feast.types import Float64, String

from feature_repo.item_features import item_activity_view, item_content_views, item_learn_views
from feature_repo.query_item_features import item_relevance_views, query_item_relevance_view, query_relevance_views
from feature_repo.request_features import (
    relevance_on_demand_view,
    user_item_content_cosine_view,
    user_item_learn_cosine_view,
)
from feature_repo.user_features import user_content_views, user_history_view, user_learn_views

LAKE = "{lake}"

stock = FeatureView(
    name="stock",
    entities=[product],
    ttl=timedelta(days=400),
    schema=[Field(name="product_id", dtype=String), Field(name="units", dtype=Float64)],
    source=FileSource(name="stock", path="{folder}/stock.parquet", timestamp_field="event_timestamp"),
)
item_activity = item_activity_view(product, lake=LAKE)
item_content_version, item_content = item_content_views(product, lake=LAKE)
user_history = user_history_view(customer, lake=LAKE)
user_content_version, user_content = user_content_views(customer, lake=LAKE)
user_item_content_cosine = user_item_content_cosine_view(user_content, item_content)
item_learn_version, item_learn = item_learn_views(product, lake=LAKE)
user_interest_learn_version, user_interest_learn = user_learn_views(customer, lake=LAKE)
user_item_learn_cosine = user_item_learn_cosine_view(user_interest_learn, item_learn)
query_relevance_version, query_relevance = query_relevance_views(search, lake=LAKE)
item_relevance_version, item_relevance = item_relevance_views(product, lake=LAKE)
query_item_relevance = query_item_relevance_view(search, product, lake=LAKE)
relevance_on_demand = relevance_on_demand_view(query_relevance, item_relevance)

shop_ranker_v3 = FeatureService(
    name="shop_ranker_v3",
    features=[stock, item_activity, item_content, user_history, user_content, user_item_content_cosine],
)
shop_ranker_v4 = FeatureService(name="shop_ranker_v4", features=[item_content, user_content, user_item_learn_cosine])
shop_ranker_v5 = FeatureService(name="shop_ranker_v5", features=[query_item_relevance, relevance_on_demand])
"""


@pytest.fixture(scope="module")
def lake_and_repo(relevance_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Path]:
    folder = tmp_path_factory.mktemp("shop")
    shutil.copytree(relevance_lake.root, folder / "lake", symlinks=True)
    lake, repo = Lake(folder / "lake", now=relevance_lake.now), folder / "features"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text(FEATURE_STORE_YAML.format(folder=repo))
    (repo / "entities.py").write_text(ENTITIES)
    (repo / "features.py").write_text(FEATURES.format(lake=lake.root, folder=repo))
    time = pl.Series(["2025-05-01"] * 3).str.to_datetime(time_unit="us", time_zone="UTC")
    stock = pl.DataFrame({"product_id": ["i0", "i1", "i9"], "units": [5.0, 7.0, 9.0], "event_timestamp": time})
    stock.write_parquet(repo / "stock.parquet")
    publish_features.run(lake, publish_features.Config(feature_repo=str(repo)))
    return lake, repo


def test_our_features_come_under_their_keys_offline_and_online(lake_and_repo: tuple[Lake, Path]) -> None:
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(lake_and_repo[1]))
    service = store.get_feature_service("shop_ranker_v3")
    entity_df = pd.DataFrame(
        {
            "customer_id": ["u1", "u7"],
            "product_id": ["i1", "i9"],
            "event_timestamp": pd.to_datetime(["2025-06-10 12:00"] * 2, utc=True),
        }
    )
    offline = store.get_historical_features(entity_df, features=service).to_df().sort_values("customer_id")
    assert list(offline["item_num_clicks_7d"].fillna(-1)) == [1009, -1]
    assert list(offline["units"]) == [7.0, 9.0]
    assert offline["user_item_content_cosine"].notna().tolist() == [True, False]
    keys = [{"customer_id": "u1", "product_id": "i1"}, {"customer_id": "u7", "product_id": "i9"}]
    online = store.get_online_features(service, keys).to_dict()
    assert online["item_num_clicks_7d"] == [1029, None]
    assert len(online["item_content_embedding"][0]) == 4
    assert len(online["history_item_ids"][0]) == 3


def test_a_training_set_joins_their_service_their_own_view_included(lake_and_repo: tuple[Lake, Path]) -> None:
    lake, repo = lake_and_repo
    build_training_set.run(lake, build_training_set.Config(feature_repo=str(repo), services=("shop_ranker_v3",)))
    examples = lake.read(TrainingExamples)
    assert len(examples) == 1440
    units = examples.select(pl.col("item_id").replace_strict({"i0": 5.0, "i1": 7.0, "i9": 9.0}, default=None))
    assert examples["units"].equals(units.to_series(), check_names=False, null_equal=True)
    roles = lake.manifest(TrainingExamples).metadata["services"]["shop_ranker_v3"]
    assert roles["units"] == "scalar"
    assert roles["item_content_vector_id"] == "vector_id"  # joined although the service lists only the vector
    assert lake.open_matrix("item_content").vectors.shape[1] == 4


def test_a_service_of_theirs_may_want_only_the_cosine_of_learn(lake_and_repo: tuple[Lake, Path]) -> None:
    from feast import FeatureStore

    lake, repo = lake_and_repo
    build_training_set.run(lake, build_training_set.Config(feature_repo=str(repo), services=("shop_ranker_v4",)))
    metadata = lake.manifest(TrainingExamples).metadata
    assert set(metadata["services"]["shop_ranker_v4"]) == {
        "item_content_vector_id",
        "user_content_vector_id",
        "user_item_learn_cosine",
    }
    known = lake.read(TrainingExamples).sort("event_timestamp").drop_nulls("user_item_learn_cosine").tail(1)
    store = FeatureStore(repo_path=str(repo))
    keys = {"customer_id": known["user_id"].item(), "product_id": known["item_id"].item()}
    online = store.get_online_features(store.get_feature_service("shop_ranker_v4"), [keys]).to_dict()
    assert online["user_item_learn_cosine"] == known["user_item_learn_cosine"].to_list()


def test_features_of_pairs_come_under_both_of_their_keys(lake_and_repo: tuple[Lake, Path]) -> None:
    from feast import FeatureStore

    lake, repo = lake_and_repo
    build_training_set.run(lake, build_training_set.Config(feature_repo=str(repo), services=("shop_ranker_v5",)))
    metadata = lake.manifest(TrainingExamples).metadata
    assert metadata["services"]["shop_ranker_v5"] == {"query_item_relevance": "rate", "relevance_on_demand": "rate"}
    assert metadata["origins"]["query_item_relevance"]["keys"] == ["item_id", "query_id"]
    asked = lake.read(Impressions).select("impression_id", "query_id")
    rows = lake.read(TrainingExamples).join(asked, on="impression_id", maintain_order="left").sort("event_timestamp")
    known = rows.drop_nulls(["query_item_relevance", "relevance_on_demand"]).tail(8)
    store = FeatureStore(repo_path=str(repo))
    keys = known.select(search_id="query_id", product_id="item_id").to_dicts()
    online = store.get_online_features(store.get_feature_service("shop_ranker_v5"), keys).to_dict()
    for name in ("query_item_relevance", "relevance_on_demand"):
        assert online[name] == known[name].to_list()


def test_their_modules_of_the_same_names_do_not_mix_with_ours(lake_and_repo: tuple[Lake, Path]) -> None:
    from jobs.feast_store import declared, open_store

    lake, repo = lake_and_repo

    def entities(feature_repo: str | None) -> set[str]:
        contents: Any = declared(lake, feature_repo, open_store(lake, feature_repo))
        return {one.name for one in contents.entities if not one.name.startswith("__")}

    assert entities(str(repo)) == {"customer", "product", "search"}
    assert entities(None) == {"user", "item", "query"}
    assert entities(str(repo)) == {"customer", "product", "search"}
