import logging
import os
import re
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from feature_repo.table_schemas import (
    ItemActivity,
    ItemContentEmbeddings,
    ItemLearnEmbeddings,
    ItemRelevanceEmbeddings,
    QueryEmbeddings,
    QueryItemRelevance,
    UserContentInterests,
    UserHistories,
    UserLearnInterests,
)
from jobs import publish_features
from jobs.feast_store import open_store
from jobs.lake import Lake
from jobs.publish_features import Config
from jobs.registry_path import FEATURE_REPO

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")


def published_copy(feature_lake: Lake, folder: Path) -> Lake:
    shutil.copytree(feature_lake.root, folder / "lake", symlinks=True)
    lake = Lake(folder / "lake", now=feature_lake.now)
    publish_features.run(lake, Config())
    return lake


def online(lake: Lake, feature: str, keys: dict[str, list[str]]) -> list[Any]:
    store = open_store(lake)
    rows = pl.DataFrame(keys).to_dicts()
    answer: list[Any] = store.get_online_features([feature], rows).to_dict()[feature.split(":")[1]]
    return answer


def test_the_newest_value_of_each_key_is_online(published_lake: Lake) -> None:
    counts = online(
        published_lake, "item_activity:item_num_clicks_7d", {"item_id": ["i0", "i2", "i8", "i9", "unknown"]}
    )
    assert counts == [29, 2060, 8029, None, None]
    table = published_lake.read(ItemContentEmbeddings).filter(pl.col("item_content_vector_id") == 100)
    vectors = online(published_lake, "item_content:item_content_embedding", {"item_id": ["i0"]})
    assert vectors == table["item_content_embedding"].to_list()
    assert online(published_lake, "user_history:history_item_ids", {"user_id": ["u3"]}) == [["i8", "i9", "i0"]]


@pytest.mark.parametrize(
    ("feature", "schema", "key"),
    [
        ("item_learn:item_learn_embedding", ItemLearnEmbeddings, "item_id"),
        ("item_learn_version:item_learn_vector_id", ItemLearnEmbeddings, "item_id"),
        ("user_interest_learn:user_learn_interest", UserLearnInterests, "user_id"),
        ("user_interest_learn_version:user_learn_vector_id", UserLearnInterests, "user_id"),
        ("user_interest_learn_version:user_learn_num_items", UserLearnInterests, "user_id"),
    ],
)
def test_learn_vectors_are_online_byte_for_byte(published_lake: Lake, feature: str, schema: Any, key: str) -> None:
    newest = published_lake.read(schema).sort("event_timestamp").unique(key, keep="last", maintain_order=True)
    served = online(published_lake, feature, {key: [*newest[key], "unknown"]})
    assert served == [*newest[feature.split(":")[1]].to_list(), None]
    assert len(newest) >= 7


def test_scores_of_pairs_are_online_by_both_keys(published_relevance_lake: Lake) -> None:
    newest = (
        published_relevance_lake.read(QueryItemRelevance)
        .sort("event_timestamp")
        .unique(["query_id", "item_id"], keep="last", maintain_order=True)
    )
    feature = "query_item_relevance:query_item_relevance"
    keys = {"query_id": newest["query_id"].to_list(), "item_id": newest["item_id"].to_list()}
    assert online(published_relevance_lake, feature, keys) == newest["query_item_relevance"].to_list()
    assert {0.9, 0.8} <= {*newest["query_item_relevance"]}
    others = {"query_id": ["q0", "q3", "", "i0"], "item_id": ["i1", "i0", "i0", "q0"]}
    assert online(published_relevance_lake, feature, others) == [None] * 4


def test_a_score_online_of_another_pair_is_found(relevance_lake: Lake, tmp_path: Path) -> None:
    lake = published_copy(relevance_lake, tmp_path)
    store = open_store(lake)
    view = store.get_feature_view("query_item_relevance")
    assert publish_features._differences(lake, store, view) == []
    turned = pl.format("q{}", 2 - pl.col("query_id").str.slice(1).cast(pl.Int64)).alias("query_id")
    lake.write(QueryItemRelevance, lake.read(QueryItemRelevance).with_columns(turned))
    found = publish_features._differences(lake, store, view)
    assert len(found) > 3
    assert all(re.match(r"query_item_relevance of q[02] and i\d: expected 0\.\d+, got ", one) for one in found)


def test_times_of_a_history_are_whole_seconds_online_as_feast_keeps_them(published_lake: Lake) -> None:
    (table,) = (
        published_lake.read(UserHistories).filter(pl.col("user_id") == "u3").tail(1)["history_timestamps"].to_list()
    )
    (served,) = online(published_lake, "user_history:history_timestamps", {"user_id": ["u3"]})
    assert [one.microsecond for one in table] == [999_999] * 3
    assert [one.timestamp() for one in served] == [one.replace(microsecond=0).timestamp() for one in table]


def test_a_second_run_materializes_nothing(published_lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    database = published_lake.root / "feast" / "online_store.db"
    before = database.read_bytes()
    with caplog.at_level(logging.INFO, logger="jobs.publish_features"):
        publish_features.run(published_lake, Config())
    about_views = [message for message in caplog.messages if "not online" not in message]
    assert len(about_views) == 12
    assert all("is online already" in message for message in about_views)
    assert database.read_bytes() == before


def test_only_what_changed_is_materialized_again(
    feature_lake: Lake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lake = published_copy(feature_lake, tmp_path)
    newer = lake.read(ItemActivity).with_columns(pl.col("item_num_clicks_7d") + 1)
    lake.write(ItemActivity, newer)
    with caplog.at_level(logging.INFO, logger="jobs.publish_features"):
        publish_features.run(lake, Config())
    (done,) = [message for message in caplog.messages if "already" not in message and "not online" not in message]
    assert done.startswith(
        "publish_features: item_activity online, newest of 262 rows from 2025-06-02 00:00 to 2025-07-31 00:00"
    )
    assert online(lake, "item_activity:item_num_clicks_7d", {"item_id": ["i0"]}) == [30]


def test_an_online_store_that_was_wiped_is_filled_again(feature_lake: Lake, tmp_path: Path) -> None:
    lake = published_copy(feature_lake, tmp_path)
    with sqlite3.connect(lake.root / "feast" / "online_store.db") as connection:
        connection.execute("DELETE FROM tailrank_item_attributes")
    connection.close()
    assert online(lake, "item_attributes:category", {"item_id": ["i4"]}) == [None]
    publish_features.run(lake, Config())
    assert online(lake, "item_attributes:category", {"item_id": ["i4"]}) == ["c1"]


def test_materialization_ends_with_the_data_not_with_the_clock(published_lake: Lake) -> None:
    # An end in the future would make Feast's materialize-incremental skip what arrives until then.
    view = open_store(published_lake).get_feature_view("user_activity")
    last = published_lake.read(UserContentInterests)["event_timestamp"].max()
    assert view.most_recent_end_time.isoformat() == "2025-06-30T00:00:00+00:00"
    assert open_store(published_lake).get_feature_view("user_content").most_recent_end_time == last


def test_an_online_value_that_differs_from_the_table_stops_the_run(
    feature_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = published_copy(feature_lake, tmp_path)
    with sqlite3.connect(lake.root / "feast" / "online_store.db") as connection:  # an engine that writes nothing (P15)
        connection.execute("DELETE FROM tailrank_item_content")
        connection.execute("CREATE TRIGGER lost BEFORE INSERT ON tailrank_item_content BEGIN SELECT RAISE(IGNORE); END")
    connection.close()
    with pytest.raises(ValueError, match=r"does not hold what was written for item_content: \d+ values differ"):
        publish_features.run(lake, Config())


def foreign_project(lake: Lake, name: str) -> None:
    """Somebody else's objects in the Feast project that we are about to apply to."""
    from datetime import timedelta

    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Int64, String

    driver = Entity(name=name, join_keys=["driver_id"], value_type=ValueType.STRING)
    source = FileSource(name="drivers", path="/nowhere/drivers.parquet", timestamp_field="event_timestamp")
    view = FeatureView(
        name="driver_stats",
        entities=[driver],
        ttl=timedelta(days=1),
        schema=[Field(name="driver_id", dtype=String), Field(name="trips", dtype=Int64)],
        source=source,
    )
    open_store(lake).apply([driver, source, view])


def test_a_project_with_objects_that_are_not_ours_is_refused_and_left_alone(feature_lake: Lake, tmp_path: Path) -> None:
    shutil.copytree(feature_lake.root, tmp_path / "lake", symlinks=True)
    lake = Lake(tmp_path / "lake", now=feature_lake.now)
    foreign_project(lake, "driver")
    with pytest.raises(ValueError, match="holds 3 objects that are not tailrank's") as raised:
        publish_features.run(lake, Config())
    message = str(raised.value)
    assert "data source drivers, entity driver, feature view driver_stats" in message
    assert "a project of its own" in message
    assert "import our views into your own repository" in message
    assert [view.name for view in open_store(lake).list_feature_views()] == ["driver_stats"]


def test_an_entity_of_theirs_with_our_name_is_not_overwritten(feature_lake: Lake, tmp_path: Path) -> None:
    shutil.copytree(feature_lake.root, tmp_path / "lake", symlinks=True)
    lake = Lake(tmp_path / "lake", now=feature_lake.now)
    foreign_project(lake, "user")
    with pytest.raises(ValueError, match="entity user"):
        publish_features.run(lake, Config())
    assert open_store(lake).get_entity("user").join_key == "driver_id"


def test_a_view_of_ours_that_is_no_longer_declared_is_removed(feature_lake: Lake, tmp_path: Path) -> None:
    from feast import FeatureView

    lake = published_copy(feature_lake, tmp_path)
    store = open_store(lake)
    old = store.get_feature_view("item_activity")
    store.apply(
        [
            FeatureView(
                name="item_old",
                entities=[store.get_entity("item")],
                source=old.batch_source,
                schema=old.schema,
                tags=old.tags,
            )
        ]
    )
    publish_features.run(lake, Config())
    assert "item_old" not in {view.name for view in open_store(lake).list_feature_views()}


def test_a_method_that_is_off_is_told_once_calmly_and_a_table_never_written_in_one_warning(
    feature_lake: Lake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(feature_lake.root, tmp_path / "lake", symlinks=True)
    lake = Lake(tmp_path / "lake")
    for table in ("user_content_interests", "item_learn_embeddings", "user_learn_interests"):
        shutil.rmtree(tmp_path / "lake" / table)
    for schema in (QueryEmbeddings, ItemRelevanceEmbeddings, QueryItemRelevance):
        lake.write(schema, schema.create_empty())  # as distill_relevance does where relevance is not enabled
    with caplog.at_level(logging.INFO, logger="jobs.publish_features"):
        publish_features.run(lake, Config())
    (calm,) = [one for one in caplog.records if "not online" in one.message and one.levelno == logging.INFO]
    assert calm.message == (
        "publish_features: not online, for the table is empty, as a method that is switched off leaves it: "
        "item_relevance (item_relevance_embeddings), item_relevance_version (item_relevance_embeddings), "
        "query_item_relevance (query_item_relevance), query_relevance (query_embeddings), "
        "query_relevance_version (query_embeddings)"
    )
    (warning,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert warning.message.startswith("publish_features: not online, for the table is never written: ")
    for view in ("user_content", "user_content_version", "user_interest_learn", "item_learn_version"):
        assert f" {view} (" in warning.message
    assert online(lake, "query_item_relevance:query_item_relevance", {"query_id": ["q0"], "item_id": ["i0"]}) == [None]
    assert online(lake, "item_learn:item_learn_embedding", {"item_id": ["i0"]}) == [None]
    assert online(lake, "item_activity:item_num_clicks_7d", {"item_id": ["i0"]}) == [29]


def test_vectors_of_two_students_are_not_put_online(relevance_lake: Lake, tmp_path: Path) -> None:
    lake = published_copy(relevance_lake, tmp_path)
    other = {**lake.manifest(QueryEmbeddings).fingerprint, "model_id": "another student"}
    lake.write(QueryEmbeddings, lake.read(QueryEmbeddings), fingerprint=other)  # killed before the table of items
    registered = (lake.root / "feast" / "registry.db").read_bytes()
    with pytest.raises(ValueError, match=r"run distill_relevance(.|\n)*expected another student, found made up"):
        publish_features.run(lake, Config())
    assert (lake.root / "feast" / "registry.db").read_bytes() == registered


def test_a_table_that_arrives_later_is_put_online_under_its_own_model(feature_lake: Lake, tmp_path: Path) -> None:
    shutil.copytree(feature_lake.root, tmp_path / "lake", symlinks=True)
    aside = (tmp_path / "lake" / "item_learn_embeddings").rename(tmp_path / "aside")
    lake = Lake(tmp_path / "lake", now=feature_lake.now)
    publish_features.run(lake, Config())
    assert open_store(lake).get_feature_view("item_learn").features[0].vector_length == 64
    aside.rename(tmp_path / "lake" / "item_learn_embeddings")
    publish_features.run(lake, Config())
    (field,) = open_store(lake).get_feature_view("item_learn").features
    assert (field.vector_length, field.tags["model_id"]) == (8, "made up too")
    assert len(online(lake, "item_learn:item_learn_embedding", {"item_id": ["i0"]})[0]) == 8


def test_nothing_leaks_into_the_process(published_lake: Lake) -> None:
    folder, path, modules, environment = Path.cwd(), list(sys.path), set(sys.modules), dict(os.environ)
    publish_features.run(published_lake, Config())
    assert Path.cwd() == folder
    assert sys.path == path
    assert not {"entities", "feature_views", "feature_services"} & (set(sys.modules) - modules)
    assert dict(os.environ) == environment


def test_the_lakes_own_yaml_has_absolute_paths_and_unexpanded_secrets(published_lake: Lake) -> None:
    folder = published_lake.root / "feast"
    text = (folder / "feature_store.yaml").read_text()
    document = yaml.safe_load(text)
    assert document["registry"]["path"] == f"sqlite:///{folder}/registry.db"
    assert document["online_store"]["path"] == f"{folder}/online_store.db"
    assert (
        document["offline_store"] == yaml.safe_load((FEATURE_REPO / "feature_store.yaml").read_text())["offline_store"]
    )
    assert "Never `feast apply` here" in text


def test_another_folder_without_a_yaml_is_refused(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no feature_store.yaml; name the folder"):
        publish_features.run(lake, Config(feature_repo=str(tmp_path)))
