"""The job on a small lake: what it writes, what it skips, what it refuses."""

import datetime as dt
import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from feature_repo.table_schemas import (
    ItemSegments,
    RankerPredictions,
    TrainingCurves,
    TrainingExamples,
    UserSegments,
    ValidationPredictions,
)
from jobs import train_ranker
from jobs.lake import Lake
from jobs.ranker_settings import plans
from jobs.train_ranker import PRESETS, Config
from ranker.auc import uauc
from ranker.feature_columns import FeatureEncoder
from ranker.network_ranker import NetworkRanker

BASE_ROLES = {
    "category": "categorical",
    "user_num_clicks_7d": "count",
    "item_ctr_7d": "rate",
    "history_item_ids": "history",
    "history_timestamps": "timestamps",
}
VECTORS = {"item_content_vector_id": "item_content", "user_content_vector_id": "user_content"}
LEARN_VECTORS = {"item_learn_vector_id": "item_learn", "user_learn_vector_id": "user_interest_learn"}
CONTENT_ROLES = {**BASE_ROLES, **dict.fromkeys(VECTORS, "vector_id")}
METADATA = {
    "services": {
        "ranker_base_v1": BASE_ROLES,
        "ranker_content_v1": CONTENT_ROLES,
        "ranker_learn_v1": {**CONTENT_ROLES, **dict.fromkeys(LEARN_VECTORS, "vector_id")},
    },
    "vectors": VECTORS | LEARN_VECTORS,
}
START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
QUICK = {"passes": 1, "evaluations_per_pass": 1, "batch_size": 128, "num_rounds": 20, "history_length": 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_examples(rows: int = 900, *, seed: int = 0, with_conversions: bool = True) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 30, rows), rng.integers(0, 20, rows)
    clicked = rng.random(rows) < np.where(user % 2 == item % 2, 0.6, 0.2)
    history = [[f"i{one}" for one in rng.integers(0, 20, rng.integers(0, 5))] for _ in range(rows)]
    split = np.where(np.arange(rows) < 600, "train", np.where(np.arange(rows) < 750, "validation", "test"))
    return pl.DataFrame(
        {
            "impression_id": [f"m{row}" for row in range(rows)],
            "user_id": [f"u{one}" for one in user],
            "item_id": [f"i{one}" for one in item],
            "event_timestamp": [START + dt.timedelta(minutes=row) for row in range(rows)],
            "split": pl.Series(split, dtype=TrainingExamples.create_empty().schema["split"]),
            "clicked": clicked,
            "converted": clicked & (rng.random(rows) < 0.4) & with_conversions,
            "is_sampled": False,
            "category": [f"c{one % 3}" for one in item],
            "user_num_clicks_7d": rng.poisson(3, rows),
            "item_ctr_7d": rng.random(rows),
            "history_item_ids": pl.Series(history, dtype=pl.List(pl.String)),
            "history_timestamps": pl.Series(
                [[START] * len(one) for one in history], dtype=pl.List(pl.Datetime("us", "UTC"))
            ),
            "item_content_vector_id": pl.Series(item, dtype=pl.Int64),
            "user_content_vector_id": pl.Series(user, dtype=pl.Int64),
            # LEARN's model was trained on the log up to row 300
            "item_learn_vector_id": pl.Series([one if row >= 300 else None for row, one in enumerate(item)]),
            "user_learn_vector_id": pl.Series([one if row >= 300 else None for row, one in enumerate(user)]),
        }
    ).with_columns(
        converted=pl.when(pl.col("impression_id") != "m899").then("converted"),
        user_content_vector_id=pl.when(pl.col("user_content_vector_id") < 25).then("user_content_vector_id"),
    )


def fill(lake: Lake, examples: pl.DataFrame | None = None, metadata: dict[str, Any] | None = None) -> None:
    examples = draw_examples() if examples is None else examples
    lake.write(TrainingExamples, examples, metadata=METADATA if metadata is None else metadata)
    test = examples.filter(pl.col("split") == "test")
    for schema, key in ((UserSegments, "user"), (ItemSegments, "item")):
        ids = test.select(f"{key}_id").unique(maintain_order=True)
        segment = pl.lit("cold_start").cast(schema.create_empty().schema[f"{key}_segment"])
        rows = ids.with_columns(segment.alias(f"{key}_segment"), num_interactions=pl.lit(0, dtype=pl.Int64))
        lake.write(schema, rows.filter(pl.col(f"{key}_id") != f"{key[0]}3"))
    rng = np.random.default_rng(1)
    for name, count, width in (
        ("item_content", 20, 6),
        ("user_content", 30, 6),
        ("item_learn", 20, 4),
        ("user_interest_learn", 30, 4),
    ):
        vectors = rng.normal(size=(count, width)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        lake.write_matrix(name, np.arange(count), vectors, {"model_id": f"{width} topics"})


def config(**changed: Any) -> Config:
    return Config.model_validate({**QUICK, "rankers": ["base", "content", "gbdt_base", "gbdt_content"], **changed})


def test_the_default_rankers_are_presets_and_run_on_a_lake_with_learn(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    fill(lake)
    caplog.set_level(logging.INFO)
    train_ranker.run(lake, Config.model_validate(QUICK))
    described = lake.manifest(RankerPredictions).metadata["rankers"]
    assert set(described) == {"base", "content", "learn", "gbdt_base", "gbdt_learn"}
    assert {name: one["service"] for name, one in described.items() if "learn" in name} == {
        "learn": "ranker_learn_v1",
        "gbdt_learn": "ranker_learn_v1",
    }
    assert "ranker_content_v1: both content vectors are known in" in caplog.text
    assert "ranker_learn_v1: both learn vectors are known in 50% of train, 100% of validation, 100% of" in caplog.text
    assert lake.read(RankerPredictions).select("p_ctr", "p_cvr").to_numpy().all()


def test_vectors_that_no_training_row_has_are_named_and_change_nothing(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    late = draw_examples().with_columns(
        pl.when(pl.col("split") == "test").then(pl.col("item_learn_vector_id", "user_learn_vector_id"))
    )
    fill(lake, late)
    train_ranker.run(lake, config(rankers=["learn", "gbdt_learn"]))
    assert "no training row has a vector of ['user_learn_vector_id', 'item_learn_vector_id']" in caplog.text
    scores = lake.read(RankerPredictions).select("p_ctr", "p_cvr")
    fill(lake, late.with_columns(pl.lit(None, dtype=pl.Int64).alias(name) for name in LEARN_VECTORS))
    train_ranker.run(lake, config(rankers=["learn", "gbdt_learn"]))
    assert lake.read(RankerPredictions).select("p_ctr", "p_cvr").equals(scores)


def test_every_ranker_and_seed_scores_every_test_impression_once(lake: Lake) -> None:
    fill(lake)
    train_ranker.run(lake, config(seeds=[0, 1]))
    predictions = lake.read(RankerPredictions)
    test = draw_examples().filter(pl.col("split") == "test")
    assert predictions.height == 4 * 2 * test.height
    for _, one in predictions.group_by("ranker", "seed"):
        assert set(one["impression_id"]) == set(test["impression_id"])
    joined = predictions.join(test.select("impression_id", "clicked", "converted"), on="impression_id", suffix="_in")
    assert joined.height == predictions.height
    assert (joined["clicked"] == joined["clicked_in"]).all()
    assert joined["converted"].eq_missing(joined["converted_in"]).all()
    assert predictions["converted"].null_count() == 8
    assert predictions["p_cvr"].null_count() == 0


def test_every_ranker_and_seed_scores_every_validation_impression_once_as_it_did_in_training(lake: Lake) -> None:
    fill(lake)
    train_ranker.run(lake, config(seeds=[0, 1]))
    predictions = lake.read(ValidationPredictions)
    validation = draw_examples().filter(pl.col("split") == "validation")
    assert predictions.height == 4 * 2 * validation.height
    described = lake.manifest(RankerPredictions).metadata["rankers"]
    for (name, seed), one in predictions.group_by("ranker", "seed"):
        assert one["impression_id"].equals(validation["impression_id"])
        assert one["clicked"].equals(validation["clicked"])
        assert one["converted"].equals(validation["converted"])
        assert one["p_cvr"].null_count() == one["p_ctcvr"].null_count() == 0
        in_training = described[name]["runs"][str(seed)]["validation_uauc"]
        assert uauc(one, "clicked", "p_ctr").value == pytest.approx(in_training, abs=1e-12)
    assert predictions["user_segment"].null_count() == predictions.height, "tiers are as of the start of the test"


def test_rankers_trained_before_give_validation_predictions_too(lake: Lake) -> None:
    fill(lake)
    train_ranker.run(lake, config(rankers=["base"]))
    first = lake.read(ValidationPredictions)
    train_ranker.run(lake, config(rankers=["base", "gbdt_base"]))
    assert lake.read(ValidationPredictions).filter(pl.col("ranker") == "base").equals(first)


def test_segments_are_joined_and_null_where_there_is_none(lake: Lake) -> None:
    fill(lake)
    train_ranker.run(lake, config(rankers=["gbdt_base"]))
    predictions = lake.read(RankerPredictions)
    assert set(predictions["user_segment"]) == {"cold_start", None}
    assert set(predictions.filter(pl.col("user_segment").is_null())["user_id"]) == {"u3"}
    assert set(predictions.filter(pl.col("item_segment").is_null())["item_id"]) == {"i3"}


def test_curves_and_metadata_say_how_each_ranker_was_trained(lake: Lake) -> None:
    fill(lake)
    train_ranker.run(lake, config(rankers=["base", "gbdt_content"], passes=2))
    curves = lake.read(TrainingCurves)
    base = curves.filter(pl.col("ranker") == "base")
    assert base["epoch"].to_list() == [0, 1]
    assert curves.group_by("ranker").agg(pl.col("is_best").sum())["is_best"].to_list() == [1, 1]
    described = lake.manifest(RankerPredictions).metadata["rankers"]
    assert described["base"]["service"] == "ranker_base_v1"
    assert described["base"]["settings"]["batch_size"] == 128
    run = described["base"]["runs"]["0"]
    assert run["rows_per_second"] > 0
    assert run["validation_uauc"] == base.filter("is_best")["validation_uauc"].item()


def test_what_is_trained_is_not_trained_again(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    fill(lake)
    train_ranker.run(lake, config(rankers=["base"]))
    first = lake.read(RankerPredictions)
    caplog.set_level(logging.INFO)
    train_ranker.run(lake, config(rankers=["base", "gbdt_base"]))
    assert "train base, seed 0: already trained on the same inputs" in caplog.text
    again = lake.read(RankerPredictions).filter(pl.col("ranker") == "base")
    assert again.equals(first), "a loaded ranker predicts the same bits"


@pytest.mark.parametrize("change", ["examples", "settings", "history"])
def test_other_inputs_or_settings_train_again(lake: Lake, change: str, caplog: pytest.LogCaptureFixture) -> None:
    fill(lake)
    train_ranker.run(lake, config(rankers=["base"]))
    if change == "examples":
        fill(lake, draw_examples(seed=1))
    changed = {"settings": {"dropout": 0.3}, "history": {"history_length": 2}}.get(change, {})
    caplog.set_level(logging.INFO)
    train_ranker.run(lake, config(rankers=["base"], **changed))
    assert "already trained" not in caplog.text


def test_a_killed_run_goes_on_and_ends_where_an_undisturbed_one_does(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(lake)
    settings = config(rankers=["content"], passes=3, patience=9)
    train_ranker.run(lake, settings)
    undisturbed = lake.read(RankerPredictions)
    folder = lake.folder("models") / "content" / "0"
    for path in folder.iterdir():
        path.unlink()

    save = torch.save

    def save_then_die(what: Any, path: Any) -> None:
        save(what, path)
        if len(what["state"]["state"]["curve"]) == 2:
            # the write is complete, but the job ends before anything else happens
            path.replace(path.with_suffix(".pt"))
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            train_ranker.run(lake, settings)
    assert lake.read(RankerPredictions).equals(undisturbed), "the old table is still whole"
    caplog.set_level(logging.INFO)
    train_ranker.run(lake, settings)
    assert "goes on from its last validation" in caplog.text
    assert lake.read(RankerPredictions).equals(undisturbed)
    assert not (folder / "unfinished.pt").exists()


def test_a_checkpoint_scores_by_itself(lake: Lake) -> None:
    fill(lake)
    train_ranker.run(lake, config(rankers=["learn"]))
    folder = lake.folder("models") / "learn" / "0"
    encoder, ranker = FeatureEncoder.load(folder), NetworkRanker.load(folder)
    matrices = {column: lake.open_matrix(name) for column, name in (VECTORS | LEARN_VECTORS).items()}
    test = lake.read(TrainingExamples).filter(pl.col("split") == "test")
    scores = ranker.predict(encoder.encode(test, matrices))
    np.testing.assert_array_equal(scores.p_ctr, lake.read(RankerPredictions)["p_ctr"].to_numpy())


def test_a_search_tries_as_many_settings_for_each_ranker_and_keeps_the_best(lake: Lake) -> None:
    fill(lake)
    train_ranker.run(lake, config(rankers=["base", "gbdt_base"], trials=3, seeds=[0, 1]))
    for one in lake.manifest(RankerPredictions).metadata["rankers"].values():
        assert len(one["trials"]) == 3
        best = max(one["trials"], key=lambda trial: trial["validation_uauc"])
        assert one["settings"] == best["settings"]
        assert one["runs"]["0"]["validation_uauc"] == best["validation_uauc"]
        assert set(one["runs"]) == {"0", "1"}


@pytest.mark.parametrize("trials", [1, 2, 5, 12])
def test_every_kind_of_ranker_has_the_same_number_of_trials_the_default_first(trials: int) -> None:
    settings = config(trials=trials)
    found = {name: plans(name, one, settings, has_conversions=True) for name, one in PRESETS.items()}
    assert {len(each) for each in found.values()} == {trials}
    for each in found.values():
        assert len({json.dumps(plan.described()) for plan in each}) == trials


def test_a_log_without_conversions_trains_on_clicks_and_gives_no_p_cvr(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    fill(lake, draw_examples(with_conversions=False))
    train_ranker.run(lake, config())
    assert "no training row is converted, the auxiliary loss of content is about clicks" in caplog.text
    for schema in (RankerPredictions, ValidationPredictions):
        predictions = lake.read(schema)
        assert predictions["p_cvr"].null_count() == predictions["p_ctcvr"].null_count() == predictions.height
    described = lake.manifest(RankerPredictions).metadata["rankers"]["content"]
    assert described["settings"]["auxiliary_label"] == "clicked"


@pytest.mark.parametrize("names", [("item_content", "user_content"), ("item_learn", "user_interest_learn")])
def test_vectors_of_another_encoder_mean_training_again(
    lake: Lake, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    fill(lake)
    train_ranker.run(lake, config(rankers=["gbdt_learn"]))
    for name in names:
        matrix = lake.open_matrix(name)
        lake.write_matrix(name, matrix.ids, np.array(matrix.vectors), {"model_id": "another"})
    caplog.set_level(logging.INFO)
    train_ranker.run(lake, config(rankers=["gbdt_learn"]))
    assert "already trained" not in caplog.text


def test_a_service_the_training_set_does_not_have_is_named(lake: Lake) -> None:
    fill(lake, metadata={**METADATA, "services": {"ranker_base_v1": BASE_ROLES}})
    with pytest.raises(ValueError, match=r"no features of \{'content': 'ranker_content_v1'\}.*\['ranker_base_v1'\]"):
        train_ranker.run(lake, config(rankers=["content"]))
    with pytest.raises(
        ValueError, match=r"`services` of \[build_training_set\].*leave \['learn', 'gbdt_learn'\] out of"
    ):
        train_ranker.run(lake, config(rankers=["base", "learn", "gbdt_learn"]))


def test_what_another_version_left_in_the_folder_is_trained_anew(lake: Lake) -> None:
    fill(lake)
    train_ranker.run(lake, config(rankers=["learn"]))
    expected = lake.read(RankerPredictions)
    folder = lake.folder("models") / "learn" / "0"
    finished = json.loads((folder / "run.json").read_text())
    torch.save(
        {"identity": {**finished["identity"], "inputs": "of another layout"}, "state": {}}, folder / "unfinished.pt"
    )
    finished["identity"]["inputs"] = "of another layout"
    (folder / "run.json").write_text(json.dumps(finished))
    (folder / "ranker.json").write_text("{}")
    train_ranker.run(lake, config(rankers=["learn"]))
    assert lake.read(RankerPredictions).equals(expected)
    assert not (folder / "unfinished.pt").exists()


def test_a_promised_column_that_is_missing_is_named(lake: Lake) -> None:
    fill(lake, draw_examples().drop("item_ctr_7d"))
    with pytest.raises(ValueError, match=r"no columns \['item_ctr_7d'\].*ranker_base_v1.*build_training_set"):
        train_ranker.run(lake, config(rankers=["base"]))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_named(lake: Lake, split: str) -> None:
    fill(lake, draw_examples().filter(pl.col("split") != split))
    with pytest.raises(ValueError, match=f"no {split} rows"):
        train_ranker.run(lake, config(rankers=["base"]))


@pytest.mark.parametrize(
    ("rankers", "message"),
    [
        (["bass"], "no preset is named"),
        ({"../up": {"kind": "gbdt", "service": "s"}}, "become folders"),
        ({"base": {"kind": "forest", "service": "s"}}, "network"),
        ([], "at least 1"),
    ],
)
def test_a_wrong_list_of_rankers_is_refused(rankers: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(rankers=rankers)
