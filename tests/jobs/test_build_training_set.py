"""The training set of a small published lake: what is planted in `feature_lake` (conftest.py) must come out right."""

import datetime as dt
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import (
    Impressions,
    ItemActivity,
    ItemContentEmbeddings,
    ItemLearnEmbeddings,
    SplitWindows,
    TrainingExamples,
    UserContentInterests,
    UserLearnInterests,
)
from jobs import build_training_set, publish_features
from jobs.feast_store import open_store
from jobs.lake import Lake

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)


def copy_of(lake: Lake, folder: Path) -> Lake:
    shutil.copytree(lake.root, folder / "lake", symlinks=True)
    return Lake(folder / "lake", now=lake.now)


@pytest.fixture(scope="module")
def built(feature_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = copy_of(feature_lake, tmp_path_factory.mktemp("built"))
    publish_features.run(lake, publish_features.Config())
    build_training_set.run(lake, build_training_set.Config(chunk_rows=333))
    return lake


@pytest.fixture(scope="module")
def published(feature_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Published once; each test may replace its impressions (`log`) and build."""
    lake = copy_of(feature_lake, tmp_path_factory.mktemp("to_build"))
    publish_features.run(lake, publish_features.Config())
    return lake


@pytest.fixture
def log(published: Lake, feature_lake: Lake) -> pl.DataFrame:
    """The impressions of the small world, put back before each test that uses `published`."""
    impressions = feature_lake.read(Impressions)
    published.write(Impressions, impressions)
    return impressions


@pytest.fixture(scope="module")
def examples(built: Lake) -> pl.DataFrame:
    return built.read(TrainingExamples)


def test_every_impression_is_there_once_in_its_order(built: Lake, examples: pl.DataFrame) -> None:
    impressions = built.read(Impressions)
    assert examples["impression_id"].to_list() == impressions["impression_id"].to_list()
    for column in ("user_id", "item_id", "event_timestamp", "clicked", "is_sampled"):
        assert examples[column].equals(impressions[column])


def test_a_slate_of_20_at_one_time_keeps_20_rows_with_the_features_of_their_items(examples: pl.DataFrame) -> None:
    slate = examples.filter(pl.col("impression_id").str.starts_with("u0-12-"))
    assert len(slate) == 20
    assert slate["event_timestamp"].n_unique() == 1
    expected = [None if item == "i9" else 1000 * int(item[1]) + 12 for item in slate["item_id"]]
    assert slate["item_num_clicks_7d"].to_list() == expected


def test_each_count_is_of_the_midnight_before(examples: pl.DataFrame) -> None:
    known = examples.filter(pl.col("user_num_clicks_7d").is_not_null())
    day = (known["event_timestamp"] - START).dt.total_days()
    assert (known["user_num_clicks_7d"] % 1000).equals(day, check_names=False)
    assert examples.filter(pl.col("event_timestamp") < START + DAY)["user_num_clicks_7d"].null_count() > 0


def test_a_feature_of_the_future_is_never_seen(examples: pl.DataFrame) -> None:
    assert examples.filter(pl.col("item_id") == "i2")["item_num_clicks_7d"].drop_nulls().max() == 2029


def test_a_backfilled_embedding_is_seen_only_after_it_was_written(examples: pl.DataFrame) -> None:
    of_i1 = examples.filter(pl.col("item_id") == "i1")
    written = START + 20 * DAY
    assert of_i1.filter(pl.col("event_timestamp") < written)["item_content_vector_id"].unique().to_list() == [1]
    assert of_i1.filter(pl.col("event_timestamp") >= written)["item_content_vector_id"].unique().to_list() == [101]


def test_a_re_embedded_item_changes_its_vector_on_that_day(examples: pl.DataFrame) -> None:
    of_i0 = examples.filter(pl.col("item_id") == "i0")
    switched = of_i0["event_timestamp"] >= START + 15 * DAY
    assert of_i0["item_content_vector_id"].to_list() == [100 if later else 0 for later in switched]


def test_learn_vectors_are_null_until_the_model_was_trained_and_no_row_is_lost(examples: pl.DataFrame) -> None:
    trained = START + 12 * DAY
    before = examples.filter(pl.col("event_timestamp") < trained)
    assert len(before) == 12 * 48
    for name in ("user_learn_vector_id", "user_learn_num_items", "item_learn_vector_id", "user_item_learn_cosine"):
        assert before[name].null_count() == len(before)
    after = examples.filter(pl.col("event_timestamp") >= trained + DAY, pl.col("user_id") != "u7")
    assert after["user_learn_vector_id"].null_count() == 0
    assert after.filter(~pl.col("item_id").is_in(["i8", "i9"]))["user_item_learn_cosine"].null_count() == 0


def test_a_learn_vector_of_the_future_is_never_seen_and_one_that_is_known_is(examples: pl.DataFrame) -> None:
    of_i8 = examples.filter(pl.col("item_id") == "i8")  # embedded on day 60, after the log
    assert len(of_i8) > 0
    assert of_i8["item_learn_vector_id"].null_count() == len(of_i8)
    assert of_i8["item_content_vector_id"].null_count() == 0
    day = pl.col("event_timestamp").dt.truncate("1d")
    of_i1 = examples.filter(pl.col("item_id") == "i1", day >= START + 12 * DAY)
    assert of_i1["item_learn_vector_id"].to_list() == [
        201 if later else 1 for later in of_i1.select(day >= START + 25 * DAY).to_series()
    ]
    of_i2 = examples.filter(pl.col("item_id") == "i2", day >= START + 12 * DAY)  # a backfill, written on day 26
    assert of_i2["item_learn_vector_id"].to_list() == [
        202 if later else 2 for later in of_i2.select(day >= START + 26 * DAY).to_series()
    ]


def test_a_user_and_an_item_without_features_get_nulls_not_neighbours_values(
    built: Lake, examples: pl.DataFrame
) -> None:
    roles = built.manifest(TrainingExamples).metadata["services"]["ranker_learn_v1"]
    of_user = [name for name in roles if name.startswith(("user_", "history_"))]
    of_item = [name for name in roles if name not in of_user]
    nobody, nothing = examples.filter(pl.col("user_id") == "u7"), examples.filter(pl.col("item_id") == "i9")
    assert len(nobody) == 120
    assert len(nothing) > 0
    assert all(nobody[name].null_count() == len(nobody) for name in of_user)
    assert all(nothing[name].null_count() == len(nothing) for name in of_item)


def test_windows_follow_each_other_and_count_their_impressions(built: Lake, examples: pl.DataFrame) -> None:
    windows = built.read(SplitWindows)
    assert windows["split"].to_list() == ["train", "validation", "test"]
    assert windows["end"].to_list()[:2] == windows["start"].to_list()[1:]
    for split, start, end, _, number in windows.iter_rows():
        times = examples.filter(pl.col("split") == split)["event_timestamp"]
        assert len(times) == number > 0
        assert times.is_between(start, end, closed="left").all()


def test_labels_of_a_split_know_nothing_that_came_after_it(built: Lake, examples: pl.DataFrame) -> None:
    windows = built.read(SplitWindows).rows_by_key("split", named=True, unique=True)
    together = examples.join(
        built.read(Impressions).select("impression_id", "conversion_timestamp"), on="impression_id"
    )
    for split, window in windows.items():
        rows = together.filter(pl.col("split") == split)
        assert (rows.filter("converted")["conversion_timestamp"] < window["labels_as_of"]).all()
        young = rows["event_timestamp"] + 3 * DAY >= window["labels_as_of"]
        assert rows["converted"].is_null().equals(young, check_names=False)
    assert together.filter(pl.col("split") == "train")["converted"].null_count() > 0


def test_metadata_says_what_each_service_reads_and_where_vectors_are(built: Lake) -> None:
    metadata = built.manifest(TrainingExamples).metadata
    base, content, learn = (metadata["services"][f"ranker_{name}_v1"] for name in ("base", "content", "learn"))
    assert set(base) < set(content) < set(learn)
    assert {name: role for name, role in content.items() if name not in base} == {
        "user_content_vector_id": "vector_id",
        "user_content_num_items": "scalar",
        "item_content_vector_id": "vector_id",
        "user_item_content_cosine": "scalar",
    }
    assert {name: role for name, role in learn.items() if name not in content} == {
        "user_learn_vector_id": "vector_id",
        "user_learn_num_items": "scalar",
        "item_learn_vector_id": "vector_id",
        "user_item_learn_cosine": "scalar",
    }
    assert base["history_item_ids"] == "history"
    assert base["history_timestamps"] == "timestamps"
    assert base["category"] == "categorical"
    assert metadata["vectors"] == {
        "user_content_vector_id": "user_content",
        "item_content_vector_id": "item_content",
        "user_learn_vector_id": "user_interest_learn",
        "item_learn_vector_id": "item_learn",
    }


def test_metadata_says_of_which_views_tables_and_ids_each_feature_is_made(built: Lake) -> None:
    metadata = built.manifest(TrainingExamples).metadata
    origins = metadata["origins"]
    assert set(origins) == set(metadata["services"]["ranker_learn_v1"])
    assert origins["item_ctr_7d"] == {
        "view": "item_activity",
        "views": ["item_activity"],
        "tables": ["item_activity"],
        "keys": ["item_id"],
    }
    assert origins["category"]["tables"] == ["items"]
    assert origins["history_item_ids"]["keys"] == ["user_id"]
    assert origins["user_learn_vector_id"] == {
        "view": "user_interest_learn_version",
        "views": ["user_interest_learn", "user_interest_learn_version"],
        "tables": ["user_learn_interests"],
        "keys": ["user_id"],
    }
    assert origins["user_item_content_cosine"] == {
        "view": "user_item_content_cosine",
        "views": ["item_content", "item_content_version", "user_content", "user_content_version"],
        "tables": ["item_content_embeddings", "user_content_interests"],
        "keys": ["item_id", "user_id"],
    }


@pytest.mark.parametrize(
    ("matrix", "schema", "id_column", "vector_column"),
    [
        ("item_content", ItemContentEmbeddings, "item_content_vector_id", "item_content_embedding"),
        ("user_content", UserContentInterests, "user_content_vector_id", "user_content_interest"),
        ("item_learn", ItemLearnEmbeddings, "item_learn_vector_id", "item_learn_embedding"),
        ("user_interest_learn", UserLearnInterests, "user_learn_vector_id", "user_learn_interest"),
    ],
)
def test_matrices_hold_the_vectors_referred_to_and_no_others(
    built: Lake, examples: pl.DataFrame, matrix: str, schema: Any, id_column: str, vector_column: str
) -> None:
    opened = built.open_matrix(matrix)
    assert opened.ids.tolist() == sorted(examples[id_column].drop_nulls().unique())
    assert opened.fingerprint == built.manifest(schema).fingerprint
    table = dict(built.read(schema).select(id_column, vector_column).iter_rows())
    assert opened.vectors.tolist() == [table[one] for one in opened.ids.tolist()]


def test_late_joined_vectors_are_the_bytes_that_feast_gives_offline_and_online(
    built: Lake, examples: pl.DataFrame
) -> None:
    store = open_store(built, offline_store="asof")
    rows = examples.filter(pl.col("event_timestamp") >= START + 20 * DAY)
    entities = rows.select("impression_id", "user_id", "item_id", "event_timestamp")
    wanted = {
        "item_content": ("item_content_embedding", "item_content_vector_id", "item_id"),
        "user_content": ("user_content_interest", "user_content_vector_id", "user_id"),
        "item_learn": ("item_learn_embedding", "item_learn_vector_id", "item_id"),
        "user_interest_learn": ("user_learn_interest", "user_learn_vector_id", "user_id"),
    }
    joined = pl.from_arrow(
        store.get_historical_features(
            entities.to_pandas(), [f"{view}:{feature}" for view, (feature, _, _) in wanted.items()]
        ).to_arrow()
    )
    assert isinstance(joined, pl.DataFrame)
    last = rows.filter(pl.col("event_timestamp") >= START + 28 * DAY)  # the newest vector is the one online
    for view, (feature, vector_id, key) in wanted.items():
        matrix = built.open_matrix(view)
        positions = matrix.rows_of(rows[vector_id].fill_null(-1).to_numpy())
        late = [None if row < 0 else matrix.vectors[row].tobytes() for row in positions]
        direct = [None if one is None else np.asarray(one, np.float32).tobytes() for one in joined[feature].to_list()]
        assert late == direct
        assert any(one is None for one in late)

        keys = last.filter(pl.col("item_id") != "i8").unique(key, maintain_order=True)  # i8: online from day 60 on
        online = store.get_online_features([f"{view}:{feature}"], [{key: one} for one in keys[key]]).to_dict()[feature]
        positions = matrix.rows_of(keys[vector_id].fill_null(-1).to_numpy())
        late = [None if row < 0 else matrix.vectors[row].tobytes() for row in positions]
        assert late == [None if one is None else np.asarray(one, np.float32).tobytes() for one in online]


@pytest.mark.parametrize("feature", ["user_item_content_cosine", "user_item_learn_cosine"])
def test_the_cosine_is_the_one_that_feast_computes(built: Lake, examples: pl.DataFrame, feature: str) -> None:
    store = open_store(built, offline_store="asof")
    entities = examples.select("impression_id", "user_id", "item_id", "event_timestamp")
    direct = store.get_historical_features(entities.to_pandas(), [f"{feature}:{feature}"]).to_arrow()
    assert direct[feature].to_pylist() == examples[feature].to_list()
    assert examples[feature].null_count() < len(examples)


def test_the_learn_cosine_is_that_of_the_vectors_referred_to(built: Lake, examples: pl.DataFrame) -> None:
    def vectors(view: str, id_column: str) -> np.ndarray:
        matrix = built.open_matrix(view)
        return matrix.vectors[matrix.rows_of(known[id_column].to_numpy())].astype(np.float64)

    known = examples.drop_nulls("user_item_learn_cosine")
    users, items = (
        vectors("user_interest_learn", "user_learn_vector_id"),
        vectors("item_learn", "item_learn_vector_id"),
    )
    expected = (users * items).sum(1) / np.sqrt((users**2).sum(1) * (items**2).sum(1))
    np.testing.assert_allclose(known["user_item_learn_cosine"].to_numpy(), expected, atol=1e-12)
    assert len(known) > 300


def test_the_stock_store_gives_the_same_training_set(
    built: Lake, published: Lake, log: pl.DataFrame, examples: pl.DataFrame
) -> None:
    build_training_set.run(published, build_training_set.Config(offline_store="duckdb", chunk_rows=500))
    assert published.read(TrainingExamples).equals(examples)
    assert published.manifest(TrainingExamples).metadata == built.manifest(TrainingExamples).metadata


def test_one_service_alone_joins_its_features_only(published: Lake, log: pl.DataFrame) -> None:
    build_training_set.run(published, build_training_set.Config(services=("ranker_base_v1",), train_days=4))
    columns = published.read(TrainingExamples).columns
    assert "item_num_clicks_7d" in columns
    assert not [name for name in columns if "content" in name]
    assert published.read(SplitWindows)["num_impressions"].to_list() == [4 * 48, 5 * 48, 7 * 48]


def test_an_unknown_service_is_refused_with_those_there_are(published: Lake, log: pl.DataFrame) -> None:
    with pytest.raises(
        ValueError,
        match=r"no feature service 'ranker_v9'.*registered: ranker_all_v1, ranker_base_v1, ranker_content_v1, r",
    ):
        build_training_set.run(published, build_training_set.Config(services=("ranker_v9",)))


def test_a_log_without_conversions_is_good_and_one_that_cannot_know_them_says_so(
    published: Lake, log: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build_training_set.run(published, build_training_set.Config(validation_days=1, conversion_window_days=3.0))
    assert "no impression in validation" in caplog.text
    assert "lower conversion_window_days" in caplog.text
    caplog.clear()
    never = pl.lit(None, pl.Datetime("us", "UTC"))
    published.write(Impressions, log.with_columns(converted=pl.lit(False), conversion_timestamp=never))
    with caplog.at_level(logging.WARNING):
        build_training_set.run(published, build_training_set.Config())
    assert published.read(TrainingExamples)["converted"].to_list() == [False] * len(log)
    assert not caplog.records


def test_an_empty_log_is_refused(lake: Lake) -> None:
    lake.write(Impressions, Impressions.create_empty())
    with pytest.raises(ValueError, match="no impressions; ingest a log"):
        build_training_set.run(lake, build_training_set.Config())


def test_a_log_shorter_than_the_splits_is_refused(lake: Lake, feature_lake: Lake) -> None:
    lake.write(Impressions, feature_lake.read(Impressions))
    with pytest.raises(ValueError, match="lower test_days and validation_days"):
        build_training_set.run(lake, build_training_set.Config(test_days=20, validation_days=10))


def test_a_split_without_traffic_is_refused(lake: Lake, feature_lake: Lake) -> None:
    quiet = pl.col("event_timestamp").is_between(START + 18 * DAY, START + 23 * DAY, closed="left")
    lake.write(Impressions, feature_lake.read(Impressions).filter(~quiet))
    with pytest.raises(ValueError, match=r"no impression in validation \(2025-06-19 00:00 to 2025-06-24 00:00\)"):
        build_training_set.run(lake, build_training_set.Config())


def test_a_train_window_without_clicks_is_refused(lake: Lake, feature_lake: Lake) -> None:
    early = pl.col("event_timestamp") < START + 18 * DAY
    silenced = feature_lake.read(Impressions).with_columns(
        pl.col("clicked", "converted") & ~early,
        pl.when(~early).then("conversion_timestamp").alias("conversion_timestamp"),
    )
    lake.write(Impressions, silenced)
    with pytest.raises(ValueError, match=r"none of the 864 impressions in train .* was clicked"):
        build_training_set.run(lake, build_training_set.Config())


@pytest.mark.parametrize("kind", ["dask", "file"])
def test_offline_stores_that_lose_rows_are_refused(
    published: Lake, log: pl.DataFrame, tmp_path: Path, kind: str
) -> None:
    yaml = (published.root / "feast" / "feature_store.yaml").read_text()
    (tmp_path / "feature_store.yaml").write_text(yaml.replace("type: duckdb", f"type: {kind}"))
    config = build_training_set.Config(feature_repo=str(tmp_path), offline_store="repository")
    with pytest.raises(ValueError, match=f"'{kind}' is refused: it loses rows"):
        build_training_set.run(published, config)


def test_values_of_another_lake_are_found_by_the_second_opinion(
    published: Lake, log: pl.DataFrame, tmp_path: Path
) -> None:
    # A feature_store.yaml that names the registry of `published`, used on a lake whose counts are others.
    lake = copy_of(published, tmp_path)
    lake.write(ItemActivity, lake.read(ItemActivity).with_columns(pl.col("item_num_clicks_30d") + 1))
    with pytest.raises(ValueError, match=r"item_num_clicks_30d of impression .* known then was"):
        build_training_set.run(lake, build_training_set.Config(feature_repo=str(published.root / "feast")))
    assert lake.manifest(Impressions).rows == len(log)
    before = published.manifest(TrainingExamples) if published.exists(TrainingExamples) else None
    after = lake.manifest(TrainingExamples) if lake.exists(TrainingExamples) else None
    assert after == before, "a job that stops leaves the old table"


def test_a_learn_vector_of_the_future_that_an_offline_store_let_through_is_found(
    published: Lake, log: pl.DataFrame, tmp_path: Path
) -> None:
    # The other way round: the store joins `published`, where i0's vector is known; here it becomes known on day 60.
    lake = copy_of(published, tmp_path)
    future = pl.when(pl.col("item_id") == "i0").then(START + 60 * DAY).otherwise("event_timestamp")
    postponed = lake.read(ItemLearnEmbeddings).with_columns(future.alias("event_timestamp"))
    lake.write(ItemLearnEmbeddings, postponed, fingerprint=lake.manifest(ItemLearnEmbeddings).fingerprint)
    with pytest.raises(ValueError, match=r"item_learn_vector_id of impression .* is 0, .* known then was None"):
        build_training_set.run(lake, build_training_set.Config(feature_repo=str(published.root / "feast")))


def test_a_log_that_ends_before_learn_was_trained_has_no_learn_vectors_and_is_good(
    feature_lake: Lake, tmp_path: Path
) -> None:
    lake = copy_of(feature_lake, tmp_path)
    for schema in (ItemLearnEmbeddings, UserLearnInterests):
        later = lake.read(schema).with_columns(pl.col("event_timestamp", "created_timestamp") + 90 * DAY)
        lake.write(schema, later, fingerprint=lake.manifest(schema).fingerprint)
    publish_features.run(lake, publish_features.Config())
    build_training_set.run(lake, build_training_set.Config(chunk_rows=500))
    examples = lake.read(TrainingExamples)
    assert len(examples) == 1440
    assert examples["user_item_learn_cosine"].dtype == pl.Float64
    assert examples.select("item_learn_vector_id", "user_learn_vector_id", "user_item_learn_cosine").null_count().row(
        0
    ) == (1440, 1440, 1440)
    for matrix in ("item_learn", "user_interest_learn"):
        assert lake.open_matrix(matrix).vectors.shape == (0, 8)


def test_a_lake_without_learn_joins_the_services_that_do_not_need_it_and_says_what_the_other_needs(
    feature_lake: Lake, tmp_path: Path
) -> None:
    lake = copy_of(feature_lake, tmp_path)
    for table in ("item_learn_embeddings", "user_learn_interests"):
        shutil.rmtree(lake.root / table)
    lake.write(UserLearnInterests, UserLearnInterests.create_empty(), fingerprint={"dimension": "8"})
    publish_features.run(lake, publish_features.Config())
    with pytest.raises(ValueError, match=r"build_training_set: ranker_learn_v1 cannot be joined") as raised:
        build_training_set.run(lake, build_training_set.Config())
    message = str(raised.value)
    assert "item_learn_embeddings (never written), user_learn_interests (empty: is its method disabled?)" in message
    assert "`tailrank run fit_embedder embed_items_learn embed_users_learn publish_features`" in message
    assert "leave ranker_learn_v1 out of `services`" in message
    build_training_set.run(lake, build_training_set.Config(services=("ranker_base_v1", "ranker_content_v1")))
    assert set(lake.manifest(TrainingExamples).metadata["vectors"].values()) == {"user_content", "item_content"}
    assert not [name for name in lake.read(TrainingExamples).columns if "learn" in name]


def test_vectors_of_another_model_than_registered_stop_the_job(feature_lake: Lake, tmp_path: Path) -> None:
    lake = copy_of(feature_lake, tmp_path)
    publish_features.run(lake, publish_features.Config())
    other = {"model_id": "another", "dimension": "4"}
    lake.write(ItemContentEmbeddings, lake.read(ItemContentEmbeddings), fingerprint=other)
    with pytest.raises(ValueError, match="another embedding model") as raised:
        build_training_set.run(lake, build_training_set.Config())
    assert "made up" in str(raised.value)
    publish_features.run(lake, publish_features.Config())
    build_training_set.run(lake, build_training_set.Config())
    assert lake.open_matrix("item_content").fingerprint == other


def test_a_copied_lake_neither_reads_nor_harms_the_one_it_was_copied_from(
    published: Lake, log: pl.DataFrame, tmp_path: Path
) -> None:
    lake = copy_of(published, tmp_path)
    with pytest.raises(ValueError, match=r"registered: none"):  # Feast's registry still named the other lake's tables
        build_training_set.run(lake, build_training_set.Config())
    publish_features.run(lake, publish_features.Config())
    build_training_set.run(lake, build_training_set.Config())
    for one in (lake, published):
        store = open_store(one)
        assert store.get_feature_view("item_activity").batch_source.path.startswith(str(one.root))
        answer = store.get_online_features(["item_activity:item_num_clicks_7d"], [{"item_id": "i0"}]).to_dict()
        assert answer["item_num_clicks_7d"] == [29]
