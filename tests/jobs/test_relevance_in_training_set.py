"""Relevance in the training set: features by two keys, one of them null in a feed; `relevance_lake` has the plants."""

import datetime as dt
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import (
    Impressions,
    ItemRelevanceEmbeddings,
    ItemSegments,
    Queries,
    QueryEmbeddings,
    QueryItemRelevance,
    RankerPredictions,
    TrainingExamples,
    UserSegments,
)
from jobs import build_training_set, publish_features, train_ranker
from jobs.build_training_set import Config
from jobs.feast_store import open_store
from jobs.lake import Lake
from jobs.service_examples import encode_service
from ranker.batches import VectorPair
from ranker.feature_columns import FeatureEncoder
from ranker.feature_groups import feature_groups

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
SERVICES = ("ranker_base_v1", "ranker_relevance_v1")
OF_THE_QUERY = ("query_relevance_vector_id", "query_item_relevance", "relevance_on_demand")


def copy_of(lake: Lake, folder: Path) -> Lake:
    shutil.copytree(lake.root, folder / "lake", symlinks=True)
    return Lake(folder / "lake", now=lake.now)


@pytest.fixture(scope="module")
def built(relevance_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = copy_of(relevance_lake, tmp_path_factory.mktemp("built"))
    publish_features.run(lake, publish_features.Config())
    build_training_set.run(lake, Config(services=SERVICES, chunk_rows=333))
    return lake


@pytest.fixture(scope="module")
def examples(built: Lake) -> pl.DataFrame:
    """The training set, with the query that each impression answered."""
    queries = built.read(Impressions).select("impression_id", "query_id")
    return built.read(TrainingExamples).join(queries, on="impression_id", how="left", maintain_order="left")


def newest_known(rows: list[dict[str, Any]], time: dt.datetime, **keys: str | None) -> dict[str, Any] | None:
    """The row of these keys that was known then, by looking at every row."""
    known = [
        row
        for row in rows
        if all(row[name] == key for name, key in keys.items())
        and row["event_timestamp"] <= time
        and row["created_timestamp"] <= time
    ]
    return max(known, key=lambda row: (row["event_timestamp"], row["created_timestamp"]), default=None)


def test_no_impression_is_lost_with_or_without_a_query(built: Lake, examples: pl.DataFrame) -> None:
    impressions = built.read(Impressions)
    assert examples["impression_id"].to_list() == impressions["impression_id"].to_list()
    assert 0 < impressions["query_id"].null_count() < len(impressions)


def test_each_pair_has_its_newest_known_score_and_other_pairs_have_none(built: Lake, examples: pl.DataFrame) -> None:
    scores = built.read(QueryItemRelevance).to_dicts()
    expected = []
    for query, item, time in examples.select("query_id", "item_id", "event_timestamp").iter_rows():
        row = newest_known(scores, time, query_id=query, item_id=item)
        expected.append(row and row["query_item_relevance"])
    assert examples["query_item_relevance"].to_list() == expected
    rescored, backfilled = (examples.filter(query_id=f"q{n}", item_id=f"i{n}") for n in range(2))
    assert {0.0, 0.9} <= {*rescored["query_item_relevance"]}
    assert {0.11, 0.8} <= {*backfilled["query_item_relevance"]}


def test_in_a_feed_there_is_no_relevance_but_everything_else(examples: pl.DataFrame) -> None:
    feed = examples.filter(pl.col("query_id").is_null(), pl.col("event_timestamp") >= START + 11 * DAY)
    assert len(feed) > 300
    for name in OF_THE_QUERY:
        assert feed[name].null_count() == len(feed), name
    known = feed.filter(~pl.col("item_id").is_in(["i8", "i9"]), pl.col("user_id") != "u7")
    for name in ("item_relevance_vector_id", "item_num_clicks_7d", "user_num_clicks_7d", "category"):
        assert known[name].null_count() == 0, name


def test_nothing_is_known_before_the_student_was_taught_nor_of_a_new_query(examples: pl.DataFrame) -> None:
    before = examples.filter(pl.col("event_timestamp") < START + 10 * DAY)
    for name in (*OF_THE_QUERY, "item_relevance_vector_id"):
        assert before[name].null_count() == len(before), name
    new = examples.filter(query_id="q3")
    for name in OF_THE_QUERY:
        assert new[name].null_count() == len(new) > 0, name


def test_relevance_on_demand_is_the_calibrated_cosine_of_the_vectors_known_then(
    built: Lake, examples: pl.DataFrame
) -> None:
    queries, items = built.read(QueryEmbeddings).to_dicts(), built.read(ItemRelevanceEmbeddings).to_dicts()
    expected: list[float | None] = []
    for query, item, time in examples.select("query_id", "item_id", "event_timestamp").iter_rows():
        asked, found = newest_known(queries, time, query_id=query), newest_known(items, time, item_id=item)
        if asked is None or found is None:
            expected.append(None)
            continue
        one, other = np.array(asked["query_relevance_embedding"]), np.array(found["item_relevance_embedding"])
        cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        logit = asked["query_relevance_scale"] * cosine + asked["query_relevance_bias"]
        expected.append(1.0 / (1.0 + math.exp(-logit)))
    assert examples["relevance_on_demand"].is_null().to_list() == [one is None for one in expected]
    np.testing.assert_allclose(
        examples["relevance_on_demand"].drop_nulls().to_numpy(),
        [one for one in expected if one is not None],
        atol=1e-12,
    )
    assert examples["relevance_on_demand"].drop_nulls().is_between(0.0, 1.0).all()
    assert examples["relevance_on_demand"].drop_nulls().n_unique() > 20


def test_training_and_serving_have_the_same_bytes(built: Lake, examples: pl.DataFrame) -> None:
    """From day 24 on nothing changes any more (but i8), so what was known then is online now."""
    rows = examples.filter(
        pl.col("event_timestamp") >= START + 24 * DAY,
        pl.col("query_id").is_not_null(),
        pl.col("item_id") != "i8",
    )
    store = open_store(built)
    keys = rows.select("user_id", "item_id", "query_id").to_dicts()
    online = store.get_online_features(store.get_feature_service("ranker_relevance_v1"), keys).to_dict()
    for name in (*OF_THE_QUERY, "item_relevance_vector_id"):
        assert online[name] == rows[name].to_list(), name
        assert 0 < rows[name].null_count() < len(rows), name
    entities = rows.select("user_id", "item_id", "query_id", "event_timestamp").to_pandas()
    refs = ["relevance_on_demand:relevance_on_demand", "query_item_relevance:query_item_relevance"]
    offline = open_store(built, offline_store="asof").get_historical_features(entities, refs).to_arrow()
    for name in ("relevance_on_demand", "query_item_relevance"):
        assert offline[name].to_pylist() == rows[name].to_list()


def test_a_request_without_a_query_sends_an_empty_one(built: Lake) -> None:
    store = open_store(built)
    service = store.get_feature_service("ranker_relevance_v1")
    online = store.get_online_features(service, [{"user_id": "u1", "item_id": "i1", "query_id": ""}]).to_dict()
    assert [online[name] for name in OF_THE_QUERY] == [[None]] * 3
    assert online["item_num_clicks_7d"] == [1029]
    assert len(online["item_relevance_embedding"][0]) == 8


def test_scale_and_bias_are_read_but_are_features_of_no_service(built: Lake) -> None:
    metadata = built.manifest(TrainingExamples).metadata
    relevance = metadata["services"]["ranker_relevance_v1"]
    assert {name: role for name, role in relevance.items() if "relevance" in name} == {
        "query_relevance_vector_id": "vector_id",
        "item_relevance_vector_id": "vector_id",
        "query_item_relevance": "rate",
        "relevance_on_demand": "rate",
    }
    assert not [name for name in built.read(TrainingExamples).columns if name.endswith(("_scale", "_bias"))]
    assert metadata["vectors"]["query_relevance_vector_id"] == "query_relevance"
    assert built.open_matrix("query_relevance").ids.tolist() == [0, 1, 2, 101]
    assert built.open_matrix("query_relevance").fingerprint == built.open_matrix("item_relevance").fingerprint


def test_the_vectors_are_one_feature_group_and_the_scores_of_pairs_another(built: Lake) -> None:
    metadata = built.manifest(TrainingExamples).metadata
    groups = {
        group.name: group
        for group in feature_groups(metadata["services"]["ranker_relevance_v1"], metadata["origins"])
        if group.name != "ids"
    }
    assert [*groups] == [
        "user_activity",
        "user_history",
        "item_activity",
        "item_attributes",
        "content",
        "relevance",
        "query_item_relevance",
    ]
    vectors, scores = groups["relevance"], groups["query_item_relevance"]
    assert vectors.features == ("query_relevance_vector_id", "item_relevance_vector_id", "relevance_on_demand")
    assert vectors.views == (
        "item_relevance",
        "item_relevance_version",
        "query_relevance",
        "query_relevance_version",
    )
    assert vectors.tables == ("item_relevance_embeddings", "query_embeddings")
    assert scores.features == scores.views == scores.tables == ("query_item_relevance",)
    assert vectors.keys == scores.keys == ("item_id", "query_id")
    assert not vectors.is_of_the_user


def test_the_stock_store_gives_the_same_training_set(built: Lake, tmp_path: Path) -> None:
    lake = copy_of(built, tmp_path)
    registry = str(built.root / "feast")
    build_training_set.run(
        lake, Config(services=SERVICES, offline_store="duckdb", chunk_rows=500, feature_repo=registry)
    )
    assert lake.read(TrainingExamples).equals(built.read(TrainingExamples))
    assert lake.manifest(TrainingExamples).metadata == built.manifest(TrainingExamples).metadata


@pytest.mark.parametrize("offline_store", ["asof", "duckdb"])
def test_a_log_without_any_query_has_no_relevance_and_is_good(built: Lake, tmp_path: Path, offline_store: str) -> None:
    lake = copy_of(built, tmp_path)
    lake.write(Impressions, lake.read(Impressions).with_columns(pl.lit(None, pl.String).alias("query_id")))
    registry = str(built.root / "feast")
    build_training_set.run(
        lake, Config(services=SERVICES, offline_store=offline_store, chunk_rows=500, feature_repo=registry)
    )
    found = lake.read(TrainingExamples)
    assert len(found) == 1440
    assert found.select(OF_THE_QUERY).null_count().row(0) == (1440,) * 3
    assert found["query_item_relevance"].dtype == found["relevance_on_demand"].dtype == pl.Float64
    assert found["item_num_clicks_7d"].equals(built.read(TrainingExamples)["item_num_clicks_7d"])
    assert lake.open_matrix("query_relevance").vectors.shape == (0, 8)


@pytest.mark.parametrize("offline_store", ["asof", "duckdb"])
def test_a_log_without_queries_never_had_relevance_and_can_be_joined_and_trained_on(
    relevance_lake: Lake, tmp_path: Path, offline_store: str
) -> None:
    lake = copy_of(relevance_lake, tmp_path)
    lake.write(Impressions, lake.read(Impressions).with_columns(pl.lit(None, pl.String).alias("query_id")))
    for schema in (QueryEmbeddings, ItemRelevanceEmbeddings, QueryItemRelevance):
        lake.write(schema, schema.create_empty())
    publish_features.run(lake, publish_features.Config())
    config = Config(services=SERVICES, offline_store=offline_store)
    with pytest.raises(ValueError, match=r"ranker_relevance_v1 cannot be joined: .* no rows of item_relevance"):
        build_training_set.run(lake, config)  # there are queries, so somebody forgot to run a step
    lake.write(Queries, Queries.create_empty())
    shutil.move(lake.root / "query_item_relevance", tmp_path)
    with pytest.raises(ValueError, match=r"query_item_relevance \(never written\)"):
        build_training_set.run(lake, config)
    shutil.move(tmp_path / "query_item_relevance", lake.root)
    build_training_set.run(lake, config)
    found = lake.read(TrainingExamples)
    nothing = (*OF_THE_QUERY, "item_relevance_vector_id")
    assert found.select(nothing).null_count().row(0) == (1440,) * 4
    assert found["item_num_clicks_7d"].null_count() < 1440
    for schema in (UserSegments, ItemSegments):
        lake.write(schema, schema.create_empty())
    rankers = ("relevance", "gbdt_relevance")
    train_ranker.run(lake, train_ranker.Config(rankers=rankers, passes=1, evaluations_per_pass=1, num_rounds=5))
    assert lake.read(RankerPredictions)["p_ctr"].is_between(0.0, 1.0).all()


def test_a_score_of_another_pair_is_found_by_the_second_opinion(built: Lake, tmp_path: Path) -> None:
    # A feature_store.yaml that names the registry of `built`, used on a lake where the items of q2 are turned round.
    lake = copy_of(built, tmp_path)
    scores = lake.read(QueryItemRelevance)
    turned = pl.when(query_id="q2").then(pl.format("i{}", 8 - pl.col("item_id").str.slice(1).cast(pl.Int64)))
    lake.write(QueryItemRelevance, scores.with_columns(turned.otherwise("item_id").alias("item_id")))
    with pytest.raises(ValueError, match=r"query_item_relevance of impression .* known then was"):
        build_training_set.run(lake, Config(services=SERVICES, feature_repo=str(built.root / "feast")))


def test_rankers_train_on_relevance_and_on_the_content_beside_it(built: Lake, tmp_path: Path) -> None:
    lake = copy_of(built, tmp_path)
    lake.write(UserSegments, UserSegments.create_empty())
    lake.write(ItemSegments, ItemSegments.create_empty())
    names = ("relevance", "relevance_joint", "gbdt_relevance")
    train_ranker.run(lake, train_ranker.Config(rankers=names, passes=1, evaluations_per_pass=1, num_rounds=20))
    scored = lake.read(RankerPredictions)
    assert {*scored["ranker"]} == {*names}
    assert scored["p_ctr"].is_between(0.0, 1.0).all()
    fitted = FeatureEncoder.load(lake.root / "models" / "relevance" / "0")
    assert fitted.layout.vectors == (
        VectorPair("content", "user_content_vector_id", "item_content_vector_id"),
        VectorPair("relevance", "query_relevance_vector_id", "item_relevance_vector_id"),
    )
    roles = dict(zip(fitted.layout.scalars, fitted.layout.scalar_roles, strict=True))
    assert roles["query_item_relevance"] == roles["relevance_on_demand"] == "rate"


def test_vectors_of_two_students_are_no_pair(built: Lake, tmp_path: Path) -> None:
    lake = copy_of(built, tmp_path)
    ids, vectors = built.open_matrix("query_relevance").ids, built.open_matrix("query_relevance").vectors
    other = {**built.open_matrix("query_relevance").fingerprint, "trained_through": "another day"}
    lake.write_matrix("query_relevance", ids, vectors, other)
    roles = lake.manifest(TrainingExamples).metadata["services"]["ranker_relevance_v1"]
    with pytest.raises(ValueError, match="vectors relevance: both sides must be of one model. trained_through"):
        encode_service(lake, "ranker_relevance_v1", roles, train_ranker.Config())
