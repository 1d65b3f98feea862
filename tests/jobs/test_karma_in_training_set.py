"""KARMA in the training set, online and in the ranker, by a feature service alone.

`built` is `relevance_lake` with vectors of KARMA (12 wide), known from day 8 on: of i0 to i7, of users u0 to u5 at each
of their midnights. Planted: i0 has another picture from day 16 on (vector 100), i1 another text, written on day 22
about day 9 (vector 101: a backfill), i8 is known on day 60 only (vector 108).
"""

import ast
import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import (
    Impressions,
    ItemKarmaEmbeddings,
    ItemSegments,
    RankerPredictions,
    TrainingExamples,
    UserHistories,
    UserKarmaInterests,
    UserSegments,
)
from jobs import build_training_set, publish_features, train_ranker
from jobs.build_training_set import Config
from jobs.feast_store import open_store
from jobs.lake import Lake
from ranker.batches import VectorPair
from ranker.feature_columns import FeatureEncoder
from ranker.feature_groups import feature_groups

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")

ROOT = Path(__file__).resolve().parents[2]
START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
SERVICES = ("ranker_base_v1", "ranker_karma_v1", "ranker_all_v1")
WIDTH = 12
MODEL = {"model_id": "made up, of words", "dimension": str(WIDTH), "trained_through": str(START + 8 * DAY)}


def copy_of(lake: Lake, folder: Path) -> Lake:
    shutil.copytree(lake.root, folder / "lake", symlinks=True)
    return Lake(folder / "lake", now=lake.now)


@pytest.fixture(scope="module")
def built(relevance_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = copy_of(relevance_lake, tmp_path_factory.mktemp("karma"))
    rng = np.random.default_rng(11)

    def unit(count: int) -> pl.Series:
        drawn = rng.normal(size=(count, WIDTH))
        return pl.Series((drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).tolist(), dtype=pl.List(pl.Float32))

    rows = [(f"i{n}", 8, 8, n, n) for n in range(8)]
    rows += [("i0", 16, 16, 100, 50), ("i1", 9, 22, 101, None), ("i8", 60, 60, 108, None)]
    items = pl.DataFrame(
        {
            "item_id": [item for item, *_ in rows],
            "event_timestamp": [START + known * DAY for _, known, *_ in rows],
            "created_timestamp": [START + written * DAY for _, _, written, *_ in rows],
            "item_karma_vector_id": [number for _, _, _, number, _ in rows],
            "item_karma_embedding": unit(len(rows)),
            "item_karma_content_vector_id": [number % 100 for _, _, _, number, _ in rows],
            "item_karma_image_vector_id": pl.Series([image for *_, image in rows], dtype=pl.Int64),
        }
    )
    lake.write(ItemKarmaEmbeddings, items, fingerprint=MODEL)
    midnights = lake.read(UserHistories).filter(pl.col("user_id") < "u6", pl.col("event_timestamp") >= START + 8 * DAY)
    users = midnights.select("user_id", "event_timestamp", "created_timestamp").with_columns(
        user_karma_vector_id=pl.int_range(pl.len(), dtype=pl.Int64),
        user_karma_interest=unit(len(midnights)),
        user_karma_num_items=pl.lit(3, pl.Int64),
        user_karma_hash=pl.int_range(pl.len()).cast(pl.String),
    )
    lake.write(UserKarmaInterests, users, fingerprint=MODEL)
    publish_features.run(lake, publish_features.Config())
    build_training_set.run(lake, Config(services=SERVICES, chunk_rows=333))
    return lake


@pytest.fixture(scope="module")
def examples(built: Lake) -> pl.DataFrame:
    return built.read(TrainingExamples)


def newest_known(rows: list[dict[str, Any]], time: dt.datetime, key: str, value: str) -> dict[str, Any] | None:
    """The row that was known then, by looking at every row."""
    known = [
        row for row in rows if row[key] == value and row["event_timestamp"] <= time and row["created_timestamp"] <= time
    ]
    return max(known, key=lambda row: (row["event_timestamp"], row["created_timestamp"]), default=None)


def test_each_impression_has_the_vectors_known_then_and_their_cosine_and_none_is_lost(
    built: Lake, examples: pl.DataFrame
) -> None:
    assert examples["impression_id"].to_list() == built.read(Impressions)["impression_id"].to_list()
    items, users = built.read(ItemKarmaEmbeddings).to_dicts(), built.read(UserKarmaInterests).to_dicts()
    matrices = {name: built.open_matrix(name) for name in ("item_karma", "user_interest_karma")}
    num_pairs = 0
    for row in examples.to_dicts():
        item = newest_known(items, row["event_timestamp"], "item_id", row["item_id"])
        user = newest_known(users, row["event_timestamp"], "user_id", row["user_id"])
        assert row["item_karma_vector_id"] == (item and item["item_karma_vector_id"])
        assert row["user_karma_vector_id"] == (user and user["user_karma_vector_id"])
        assert row["user_karma_num_items"] == (user and 3)
        if item is None or user is None:
            assert row["user_item_karma_cosine"] is None
            continue
        num_pairs += 1
        vectors = []
        for name, vector_id, stored in (
            ("item_karma", row["item_karma_vector_id"], item["item_karma_embedding"]),
            ("user_interest_karma", row["user_karma_vector_id"], user["user_karma_interest"]),
        ):
            (place,) = matrices[name].rows_of(np.array([vector_id]))
            assert matrices[name].vectors[place].tolist() == stored, "the late vector has the bytes of the table"
            vectors.append(np.array(stored))
        one, other = vectors
        cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        assert row["user_item_karma_cosine"] == pytest.approx(cosine, abs=1e-12)
    assert 300 < num_pairs < len(examples)
    backfilled = examples.filter(item_id="i1", user_id="u2")
    assert {1, 101} <= {*backfilled["item_karma_vector_id"]}
    assert examples.filter(item_id="i8")["item_karma_vector_id"].null_count() == len(examples.filter(item_id="i8"))


def test_the_roles_of_the_services_are_what_a_ranker_reads(built: Lake) -> None:
    metadata = built.manifest(TrainingExamples).metadata
    karma = {
        "user_karma_vector_id": "vector_id",
        "user_karma_num_items": "scalar",
        "item_karma_vector_id": "vector_id",
        "user_item_karma_cosine": "scalar",
    }
    services = metadata["services"]
    assert {name: role for name, role in services["ranker_karma_v1"].items() if "karma" in name} == karma
    everything = services["ranker_all_v1"]
    assert karma.items() <= everything.items()
    for name in ("user_item_learn_cosine", "relevance_on_demand", "query_item_relevance", "user_item_content_cosine"):
        assert name in everything
    assert (metadata["vectors"]["user_karma_vector_id"], metadata["vectors"]["item_karma_vector_id"]) == (
        "user_interest_karma",
        "item_karma",
    )
    (group,) = (one for one in feature_groups(services["ranker_all_v1"], metadata["origins"]) if one.name == "karma")
    assert {*group.features} == {*karma}
    assert group.tables == ("item_karma_embeddings", "user_karma_interests")


def test_training_and_serving_have_the_same_bytes(built: Lake, examples: pl.DataFrame) -> None:
    """From day 28 on nothing changes any more (but i8), so what was known then is online now."""
    rows = examples.filter(pl.col("event_timestamp") >= START + 28 * DAY, pl.col("item_id") != "i8")
    store = open_store(built)
    keys = rows.select("user_id", "item_id").to_dicts()
    online = store.get_online_features(store.get_feature_service("ranker_karma_v1"), keys).to_dict()
    for name in ("user_karma_vector_id", "user_karma_num_items", "item_karma_vector_id", "user_item_karma_cosine"):
        assert online[name] == rows[name].to_list(), name
        assert 0 < rows[name].null_count() < len(rows), name
    stored = dict(built.read(ItemKarmaEmbeddings).select("item_karma_vector_id", "item_karma_embedding").rows())
    for vector_id, vector in zip(online["item_karma_vector_id"], online["item_karma_embedding"], strict=True):
        assert vector == (None if vector_id is None else stored[vector_id])
    everything = store.get_online_features(
        store.get_feature_service("ranker_all_v1"), [{**one, "query_id": ""} for one in keys[:8]]
    ).to_dict()
    assert everything["user_item_karma_cosine"] == online["user_item_karma_cosine"][:8]


def test_rankers_take_karma_and_all_methods_at_once_by_naming_the_service(built: Lake, tmp_path: Path) -> None:
    lake = copy_of(built, tmp_path)
    lake.write(UserSegments, UserSegments.create_empty())
    lake.write(ItemSegments, ItemSegments.create_empty())
    names = ("karma", "karma_joint", "all", "gbdt_karma", "gbdt_all")
    train_ranker.run(lake, train_ranker.Config(rankers=names, passes=1, evaluations_per_pass=1, num_rounds=20))
    scored = lake.read(RankerPredictions)
    assert {*scored["ranker"]} == {*names}
    assert scored["p_ctr"].is_between(0.0, 1.0).all()
    content, karma = (
        VectorPair(name, f"user_{name}_vector_id", f"item_{name}_vector_id") for name in ("content", "karma")
    )
    assert FeatureEncoder.load(lake.root / "models" / "karma" / "0").layout.vectors == (content, karma)
    everything = FeatureEncoder.load(lake.root / "models" / "all" / "0").layout.vectors
    assert [pair.name for pair in everything] == ["content", "learn", "karma", "relevance"]


def test_nothing_that_a_ranker_is_made_of_has_heard_of_karma() -> None:
    """Every module of `ranker` that training imports; the report, which draws KARMA's curves, is none of them."""
    found: set[Path] = set()
    to_read = [ROOT / "jobs" / "ranker_runs.py", ROOT / "jobs" / "service_examples.py"]
    while to_read:
        imports = (node for node in ast.walk(ast.parse(to_read.pop().read_text())) if isinstance(node, ast.ImportFrom))
        modules = {(ROOT / str(node.module).replace(".", "/")).with_suffix(".py") for node in imports}
        new = {path for path in modules if path.parent.name == "ranker"} - found
        found |= new
        to_read += new
    made_of = {path.stem for path in found}
    assert {"network_ranker", "id_network", "auxiliary", "gbdt", "feature_columns", "vector_pairs", "fit"} <= made_of
    assert "report" not in made_of
    assert [path.stem for path in found if "karma" in path.read_text().lower()] == []
