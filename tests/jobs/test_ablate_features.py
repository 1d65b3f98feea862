"""The job on a small lake with planted truth: which groups carry the clicks, which are noise, which cannot be judged.

Even users click even items. `our_signal` says whether the two go together (and is right nine times in ten),
`our_noise` says nothing; `user_activity` is one number a user; the LEARN vectors say the parity again, the content
vectors nothing.
"""

import datetime as dt
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from feature_repo.table_schemas import (
    FeatureGroupCosts,
    FeatureGroupValues,
    ItemSegments,
    RankerPredictions,
    TrainingExamples,
    UserSegments,
)
from jobs import ablate_features, evaluate_ranker, train_ranker
from jobs.ablate_features import feature_group_tables
from jobs.lake import Lake, TableError
from ranker.ablation import shuffle_within_users
from ranker.feature_columns import FeatureEncoder
from ranker.gbdt import GbdtRanker
from ranker.network_ranker import NetworkRanker

START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
NUM_USERS, NUM_ITEMS, ROWS = 60, 30, 4200

BASE = {
    "user_num_clicks_7d": "count",
    "our_signal": "scalar",
    "our_noise": "scalar",
    "category": "categorical",
    "history_item_ids": "history",
}
CONTENT = dict.fromkeys(("user_content_vector_id", "item_content_vector_id"), "vector_id")
LEARN = dict.fromkeys(("user_learn_vector_id", "item_learn_vector_id"), "vector_id")
VIEWS = {
    "user_num_clicks_7d": ("user_activity", "user_id"),
    "our_signal": ("our_signals", "item_id"),
    "our_noise": ("our_noises", "item_id"),
    "category": ("item_attributes", "item_id"),
    "history_item_ids": ("user_history", "user_id"),
    **{name: (name.removesuffix("_vector_id"), name.split("_")[0] + "_id") for name in CONTENT | LEARN},
}
METADATA = {
    "services": {
        "ranker_base_v1": BASE,
        "ranker_content_v1": BASE | CONTENT,
        "ranker_learn_v1": BASE | CONTENT | LEARN,
    },
    "vectors": {name: name for name in CONTENT | LEARN},
    "origins": {
        name: {"view": view, "views": [view], "tables": [], "keys": [key]} for name, (view, key) in VIEWS.items()
    },
}
TRAIN = train_ranker.Config.model_validate(
    {
        "rankers": ["base", "content", "learn", "gbdt_base"],
        "seeds": [0, 1],
        "passes": 2,
        "evaluations_per_pass": 1,
        "batch_size": 256,
        "num_rounds": 20,
        "history_length": 3,
    }
)
JUDGE = evaluate_ranker.Config(num_draws=200)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_examples() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, NUM_USERS, ROWS), rng.integers(0, NUM_ITEMS, ROWS)
    together = user % 2 == item % 2
    split = np.where(np.arange(ROWS) < 2400, "train", np.where(np.arange(ROWS) < 3000, "validation", "test"))
    clicked = rng.random(ROWS) < np.where(together, 0.6, 0.15)
    return pl.DataFrame(
        {
            "impression_id": [f"m{row}" for row in range(ROWS)],
            "user_id": [f"u{one}" for one in user],
            "item_id": [f"i{one}" for one in item],
            "event_timestamp": [START + dt.timedelta(minutes=row) for row in range(ROWS)],
            "split": pl.Series(split, dtype=TrainingExamples.create_empty().schema["split"]),
            "clicked": clicked,
            "converted": clicked & (rng.random(ROWS) < 0.5),
            "is_sampled": False,
            "user_num_clicks_7d": user,
            "our_signal": np.where(rng.random(ROWS) < 0.9, together, ~together).astype(float),
            "our_noise": rng.random(ROWS),
            "category": [f"c{one % 3}" for one in item],
            "history_item_ids": [[f"i{one}" for one in rng.integers(0, NUM_ITEMS, 2)] for _ in range(ROWS)],
            **{name: user if name.startswith("user") else item for name in CONTENT | LEARN},
        }
    )


@pytest.fixture(scope="module")
def trained_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = Lake(tmp_path_factory.mktemp("ablate") / "lake")
    examples = draw_examples()
    lake.write(TrainingExamples, examples, metadata=METADATA)
    for schema, key in ((UserSegments, "user"), (ItemSegments, "item")):
        ids = examples.select(f"{key}_id").unique(maintain_order=True)
        dtype = schema.create_empty().schema[f"{key}_segment"]
        number = pl.col(f"{key}_id").str.slice(1).cast(pl.Int64)
        tier = pl.when(number % 4 < 2).then(pl.lit("cold_start")).otherwise(pl.lit("others")).cast(dtype)
        rows = ids.with_columns(tier.alias(f"{key}_segment"), num_interactions=number)
        lake.write(schema, rows)
    rng = np.random.default_rng(1)
    for name in CONTENT | LEARN:
        vectors = rng.normal(size=(NUM_USERS, 6)).astype(np.float32)
        if name in LEARN:
            vectors[:, 0] = np.where(np.arange(NUM_USERS) % 2, 4.0, -4.0)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        lake.write_matrix(name, np.arange(NUM_USERS), vectors, {"model_id": name.split("_")[1]})
    train_ranker.run(lake, TRAIN)
    return lake.root


@pytest.fixture
def trained(trained_root: Path, tmp_path: Path) -> Lake:
    """A lake in which four rankers are trained, to be changed."""
    shutil.copytree(trained_root, tmp_path / "trained", symlinks=True)
    return Lake(tmp_path / "trained")


def ablate(lake: Lake, **changed: Any) -> pl.DataFrame:
    ablate_features.run(lake, TRAIN, JUDGE, **{"rankers": ["gbdt_base"], **changed})
    return lake.read(FeatureGroupValues)


def overall(values: pl.DataFrame, group: str, method: str, metric: str = "uauc") -> dict[str, Any]:
    return values.filter(segment_kind="all", feature_group=group, method=method, metric=metric).row(0, named=True)


def uauc_by_hand(frame: pl.DataFrame) -> float:
    per_user = [
        roc_auc_score(rows["clicked"], rows["p_ctr"])
        for _, rows in frame.group_by("user_id")
        if 0 < rows["clicked"].sum() < rows.height
    ]
    return float(np.mean(per_user))


def test_signal_helps_noise_makes_no_difference_by_both_methods(trained: Lake) -> None:
    values = ablate(trained, methods=["permuted", "retrained"], groups=["our_signals", "our_noises", "user_activity"])
    for method in ("permuted", "retrained"):
        for metric in ("uauc", "wuauc"):
            signal, noise = (overall(values, group, method, metric) for group in ("our_signals", "our_noises"))
            assert signal["verdict"] == "helps"
            assert 0.0 < signal["low"] < signal["value_lost"] < signal["high"]
            assert signal["num_seeds"] == 2
            assert signal["num_users"] == NUM_USERS
            assert noise["verdict"] == "no difference"
            assert abs(noise["value_lost"]) < 0.03 < signal["value_lost"] / 5
    by_segment = values.filter(feature_group="our_signals", method="permuted", metric="uauc")
    assert set(by_segment.select("segment_kind", "segment").iter_rows()) == {
        ("all", "all"),
        *((kind, tier) for kind in ("user_segment", "item_segment") for tier in ("cold_start", "others")),
    }
    assert set(values.filter(feature_group="user_activity", method="permuted")["verdict"]) == {"cannot tell"}
    assert overall(values, "user_activity", "retrained")["verdict"] == "no difference"


def test_the_permuted_value_is_what_scoring_a_shuffled_table_gives(trained: Lake) -> None:
    values = ablate(trained, groups=["our_signals"], seeds=[1], num_shuffles=2, seed=7)
    test = trained.read(TrainingExamples).filter(pl.col("split") == "test")
    folder = trained.root / "models" / "gbdt_base" / "1"
    encoder, ranker = FeatureEncoder.load(folder), GbdtRanker.load(folder)
    user_N = test["user_id"].rank("dense").cast(pl.Int64).to_numpy()
    by_hand = []
    for shuffle in range(2):
        order = shuffle_within_users(user_N, np.random.default_rng((7, shuffle)))
        shuffled = test.with_columns(test["our_signal"][order])
        p_ctr = ranker.predict(encoder.encode(shuffled)).p_ctr
        by_hand.append(uauc_by_hand(test.select("user_id", "clicked").with_columns(p_ctr=pl.Series(p_ctr))))
    row = overall(values, "our_signals", "permuted")
    assert row["value_without"] == pytest.approx(np.mean(by_hand), abs=1e-12)
    scored = trained.read(RankerPredictions).filter(ranker="gbdt_base", seed=1)
    assert row["value_with"] == pytest.approx(uauc_by_hand(scored), abs=1e-12)
    assert ablate(trained, groups=["our_signals"], seeds=[1], num_shuffles=2, seed=7).equals(values), "same bits"
    assert not ablate(trained, groups=["our_signals"], seeds=[1], num_shuffles=2, seed=8).equals(values)


@pytest.mark.parametrize(
    ("ranker", "group", "same_as"), [("learn", "learn", "content"), ("content", "content", "base")]
)
def test_a_ranker_without_its_vectors_is_the_ranker_that_never_had_them(
    trained: Lake, ranker: str, group: str, same_as: str
) -> None:
    values = ablate(trained, rankers=[ranker], groups=[group], methods=["retrained"])
    scored = trained.read(RankerPredictions).filter(ranker=same_as)
    by_hand = [uauc_by_hand(rows) for _, rows in scored.group_by("seed")]
    assert overall(values, group, "retrained")["value_without"] == pytest.approx(np.mean(by_hand), abs=1e-12)


def test_what_is_trained_without_a_group_has_no_such_input(trained: Lake) -> None:
    ablate(trained, groups=["our_signals", "item_attributes", "user_history", "ids"], methods=["retrained"])
    ablate(trained, rankers=["learn"], groups=["content"], methods=["retrained"], seeds=[0])
    folder = trained.root / "ablation" / "gbdt_base"
    without_signal = GbdtRanker.load(folder / "without_our_signals" / "0")
    assert without_signal.ctr_trees is not None
    assert "our_signal" not in without_signal.ctr_trees.feature_name()
    assert "our_noise" in without_signal.ctr_trees.feature_name()
    assert FeatureEncoder.load(folder / "without_our_signals" / "0").layout.scalars == (
        "user_num_clicks_7d",
        "our_noise",
    )
    assert FeatureEncoder.load(folder / "without_item_attributes" / "1").layout.ids == ("user_id", "item_id")
    assert FeatureEncoder.load(folder / "without_user_history" / "1").layout.history is None
    learn = NetworkRanker.load(trained.root / "ablation" / "learn" / "without_content" / "0")
    assert learn.fitted_on is not None
    assert [pair.name for pair in learn.fitted_on.layout.vectors] == ["learn"]
    assert learn.network is not None
    assert len(learn.network.auxiliaries) == 1


def test_a_second_run_trains_nothing_and_says_the_same(trained: Lake, caplog: pytest.LogCaptureFixture) -> None:
    first = ablate(trained, groups=["our_noises"], methods=["retrained"])
    checkpoints = {path: path.stat().st_mtime_ns for path in (trained.root / "ablation").rglob("*.txt")}
    assert len(checkpoints) == 4
    caplog.set_level(logging.INFO)
    assert ablate(trained, groups=["our_noises"], methods=["retrained"]).equals(first)
    assert caplog.text.count("without our_noises, seed 0: already trained on the same inputs") == 1
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == checkpoints


def test_results_of_other_groups_methods_and_rankers_stay_until_the_rankers_change(trained: Lake) -> None:
    ablate(trained, groups=["our_signals"], methods=["retrained"])
    ablate(trained, groups=["our_signals", "our_noises"], methods=["permuted"])
    values = ablate(trained, rankers=["base"], groups=["our_noises"], seeds=[0], num_shuffles=1)
    assert set(values.select("ranker", "feature_group", "method").unique().iter_rows()) == {
        ("gbdt_base", "our_signals", "retrained"),
        ("gbdt_base", "our_signals", "permuted"),
        ("gbdt_base", "our_noises", "permuted"),
        ("base", "our_noises", "permuted"),
    }
    costs = {(row["ranker"], row["feature_group"]): row for row in trained.read(FeatureGroupCosts).to_dicts()}
    assert set(costs) == {("gbdt_base", "our_signals"), ("gbdt_base", "our_noises"), ("base", "our_noises")}
    assert costs["gbdt_base", "our_signals"]["rows_per_second_without"] > 0
    assert costs["gbdt_base", "our_noises"]["rows_per_second_without"] is None
    assert costs["gbdt_base", "our_noises"]["num_features"] == 1
    assert costs["gbdt_base", "our_noises"]["seconds_to_make"] is None
    tables = feature_group_tables(trained)
    assert tables is not None
    assert tables.values.equals(values)
    train_ranker.run(trained, TRAIN.model_copy(update={"seeds": (0,)}))
    assert feature_group_tables(trained) is None, "they are of other predictions"
    assert set(ablate(trained, groups=["our_noises"])["feature_group"]) == {"our_noises"}


def test_by_default_the_ranker_with_the_most_features_and_all_its_groups(
    trained: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    ablate_features.run(trained, TRAIN, JUDGE, seeds=[0], num_shuffles=1)
    values = trained.read(FeatureGroupValues)
    assert set(values["ranker"]) == {"learn"}
    groups = [
        "ids",
        "user_activity",
        "our_signals",
        "our_noises",
        "item_attributes",
        "user_history",
        "content",
        "learn",
    ]
    assert values["feature_group"].unique(maintain_order=True).to_list() == groups
    assert overall(values, "learn", "permuted")["verdict"] == "helps"
    assert overall(values, "user_history", "permuted")["verdict"] == "cannot tell"
    printed = capsys.readouterr().out
    assert "learn: UAUC of clicks lost when a group is shuffled within each user" in printed
    assert all(group in printed for group in groups)


def test_what_is_not_there_is_named(trained: Lake, lake: Lake) -> None:
    with pytest.raises(ValueError, match="no trained ranker 'best'; trained are base, gbdt_base, content, learn"):
        ablate(trained, rankers=["best"])
    with pytest.raises(ValueError, match="no feature group 'signal'; those of ranker gbdt_base are ids, user_activity"):
        ablate(trained, groups=["signal"])
    with pytest.raises(ValueError, match="no method 'dropped'; the methods are permuted, retrained"):
        ablate(trained, methods=["dropped"])
    with pytest.raises(ValueError, match=r"trained from the seeds \[0, 1\], not from \[2\]"):
        ablate(trained, seeds=[2])
    with pytest.raises(ValueError, match="num_shuffles is 0"):
        ablate(trained, num_shuffles=0)
    with pytest.raises(TableError, match="ranker_predictions"):
        ablate(lake)


@pytest.mark.parametrize("fault", ["settings", "model", "scores", "impressions"])
def test_a_ranker_that_is_not_what_the_predictions_are_of_is_refused(trained: Lake, fault: str) -> None:
    settings, message = TRAIN, ""
    folder = trained.root / "models" / "gbdt_base"
    if fault == "settings":
        settings, message = TRAIN.model_copy(update={"num_rounds": 30}), "trained with other settings"
    elif fault == "model":
        shutil.rmtree(folder / "1")
        message = "1 holds no trained ranker"
    elif fault == "scores":
        shutil.copyfile(folder / "0" / "ctr_trees.txt", folder / "1" / "ctr_trees.txt")
        message = "does not score as ranker_predictions says"
    else:
        later = draw_examples().filter(pl.col("impression_id") != "m4199")
        trained.write(TrainingExamples, later, metadata=METADATA)
        message = "its predictions are of other impressions"
    with pytest.raises(ValueError, match=rf"gbdt_base: .*{message}.*\n.*tailrank run train_ranker"):
        ablate_features.run(trained, settings, JUDGE, rankers=["gbdt_base"])
    assert feature_group_tables(trained) is None
