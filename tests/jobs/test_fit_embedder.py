"""LEARN is trained on what was known at a time, once; what comes later, or is the same, trains nothing."""

import datetime as dt
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import EmbedderCurves, Impressions, ItemContentEmbeddings, LearnAttention
from jobs import fit_embedder
from jobs.fit_embedder import Config
from jobs.fitted_embedder import fitted_learn
from jobs.lake import Lake, Manifest

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
FITTED = {"shape": "tiny", "epochs": 8, "batch_size": 16, "recall_at": 10}
"""Config of `fitted_lake`."""
THROUGH_DAY_19 = START + 19 * DAY
"""The log's span is a little shorter than 40 days, so half of it ends on the 20th day."""


def fit(lake: Lake, **changes: object) -> Manifest:
    fit_embedder.run(lake, Config(**{**FITTED, **changes}))  # type: ignore[arg-type]
    return lake.manifest(EmbedderCurves)


def add_clicks(lake: Lake, *clicks: tuple[str, str, dt.datetime]) -> None:
    rows = [
        {"impression_id": f"added {n}", "user_id": user, "item_id": item, "event_timestamp": at, "clicked": True}
        for n, (user, item, at) in enumerate(clicks)
    ]
    added = pl.DataFrame(rows).with_columns(converted=pl.lit(False), is_sampled=pl.lit(False))
    lake.write(Impressions, pl.concat([lake.read(Impressions), added], how="diagonal_relaxed"))


def add_content(lake: Lake, item: str, at: dt.datetime, vector_id: int = 200) -> None:
    with lake.writer(ItemContentEmbeddings, append=True) as writer:
        writer.write_shard(
            pl.DataFrame(
                {
                    "item_id": [item],
                    "event_timestamp": [at],
                    "created_timestamp": [at],
                    "item_content_vector_id": [vector_id],
                    "item_content_embedding": [[0.0] * 7 + [1.0]],
                    "item_content_hash": [str(vector_id)],
                },
                schema_overrides={"item_content_embedding": pl.List(pl.Float32)},
            )
        )


def without_model(lake: Lake) -> Lake:
    """The lake as it was before fit_embedder."""
    shutil.rmtree(lake.root / "embedders")
    shutil.rmtree(lake.root / "embedder_curves")
    return lake


def test_held_out_items_are_found_by_what_their_text_says(fitted_lake: Lake):
    curve = fitted_lake.read(EmbedderCurves)
    assert curve.get_column("method").unique().to_list() == ["learn"]
    (best,) = curve.filter("is_best").rows(named=True)
    assert best["validation_recall"] == curve.get_column("validation_recall").max()
    assert best["validation_recall"] > 0.4  # 10 of 40 by chance: 0.25; all of them even or odd as they should: 0.5


def test_every_epoch_says_how_users_spread_and_how_near_they_are_to_what_they_wanted(fitted_lake: Lake):
    curve = fitted_lake.read(EmbedderCurves)
    assert curve.null_count().sum_horizontal().item() == 0
    assert curve.get_column("participation_ratio").is_between(1.0, 16.0).all()
    assert (curve["effective_rank"] >= curve["participation_ratio"] - 1e-9).all()
    assert curve.get_column("uniformity").is_between(-4.1, 0.0).all()
    assert curve["alignment"][-1] < curve["alignment"][0]  # users move towards what they want


def test_where_the_user_tower_attends_is_told_before_training_and_after(fitted_lake: Lake):
    attention = fitted_lake.read(LearnAttention)
    assert attention.select("moment", "layer", "head").rows() == [
        (moment, 1, head) for moment in ("untouched", "fitted") for head in (1, 2)
    ]
    assert attention["column_means"].list.len().unique().to_list() == [7]  # the longest history held out
    before, after = attention.partition_by("moment", include_key=False)
    assert not before.equals(after)
    assert (
        fitted_lake.manifest(LearnAttention).metadata["folder"]
        == (fitted_lake.manifest(EmbedderCurves).metadata["folder"])
    )


def test_a_model_older_than_the_table_of_its_attention_is_kept(learn_lake: Lake):
    before = learn_lake.manifest(EmbedderCurves)
    shutil.rmtree(learn_lake.root / "learn_attention")
    assert fit(learn_lake) == before
    assert learn_lake.manifest(LearnAttention).rows == 0


def test_the_manifest_names_the_model_its_time_and_its_encoder(fitted_lake: Lake):
    manifest = fitted_lake.manifest(EmbedderCurves)
    encoder = Fingerprint.from_tags(fitted_lake.manifest(ItemContentEmbeddings).fingerprint)
    model = Fingerprint.from_tags(manifest.fingerprint)
    assert model.trained_through == THROUGH_DAY_19.isoformat()
    assert encoder.digest() in model.pooling
    assert (model.model_id, model.dimension, model.prompt) == ("learn", 16, encoder.prompt)
    fitted = fitted_learn(fitted_lake)
    assert fitted is not None
    assert fitted.load("test").weights_sha256() == model.weights_sha256
    assert manifest.metadata["num_items"] == 40  # i40 never has a vector, that of i41 was not known yet


def test_the_log_line_accounts_for_every_click(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        fit(without_model(learn_lake), validation_share=0.0)
    clicks = learn_lake.read(Impressions).filter(pl.col("event_timestamp") < THROUGH_DAY_19)
    with_vector = clicks.filter(~pl.col("item_id").is_in(["i40", "i41"]))
    learnt_from = with_vector.filter(pl.len().over("user_id") >= 2)
    assert (
        f"{len(learnt_from)} of {len(clicks)} clicks before 2025-06-20 00:00 are learnt from, of "
        f"{learnt_from['user_id'].n_unique()} users on a catalogue of 40 items; dropped: "
        f"{len(clicks) - len(with_vector)} on items without a content vector, "
        f"{len(with_vector) - len(learnt_from)} of users with no other" in caplog.text
    )
    assert learn_lake.read(EmbedderCurves).get_column("validation_recall").is_null().all()
    assert learn_lake.read(EmbedderCurves).get_column("is_best").to_list() == [False] * 7 + [True]
    assert learn_lake.read(EmbedderCurves).get_column("effective_rank").is_null().all()
    assert learn_lake.manifest(LearnAttention).rows == 0


def test_nothing_that_comes_later_changes_the_model(learn_lake: Lake):
    weights = learn_lake.manifest(EmbedderCurves).fingerprint["weights_sha256"]
    without_model(learn_lake)
    add_clicks(learn_lake, *[(f"u{n:02}", "i03", THROUGH_DAY_19 + n * DAY / 10) for n in range(80)])
    add_content(learn_lake, "i05", THROUGH_DAY_19 + DAY)
    again = fit(learn_lake, trained_through=THROUGH_DAY_19).fingerprint
    assert again["weights_sha256"] == weights


def test_the_last_click_before_the_cut_does(learn_lake: Lake):
    weights = fit(without_model(learn_lake), validation_share=0.0).fingerprint["weights_sha256"]
    add_clicks(
        learn_lake, *[(f"u{n:02}", "i03", THROUGH_DAY_19 - dt.timedelta(microseconds=1)) for n in range(1, 80, 2)]
    )
    assert fit(learn_lake, validation_share=0.0).fingerprint["weights_sha256"] != weights


def test_a_second_run_trains_and_writes_nothing(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    before = learn_lake.manifest(EmbedderCurves)
    with caplog.at_level(logging.INFO):
        assert fit(learn_lake) == before
    assert "kept: the model trained through 2025-06-20 00:00 has seen the same interactions and content" in caplog.text


def test_a_growing_log_keeps_the_model_until_the_cut_has_moved_far_enough(
    learn_lake: Lake, caplog: pytest.LogCaptureFixture
):
    before = learn_lake.manifest(EmbedderCurves)
    add_clicks(learn_lake, ("u80", "i04", START + 59.5 * DAY))
    with caplog.at_level(logging.INFO):
        assert fit(learn_lake) == before
        assert "the cut has moved by 10 of 30 days" in caplog.text
        after = fit(learn_lake, refit_after_days=10)
    assert after.fingerprint["trained_through"] == (START + 29 * DAY).isoformat()
    assert "is trained anew: the cut has moved by 10 days, to 2025-06-30" in caplog.text
    assert [path.name for path in (learn_lake.root / "embedders" / "learn").iterdir()] == [
        Path(after.metadata["folder"]).name
    ]


def late_click(lake: Lake) -> None:
    add_clicks(lake, ("u80", "i04", START + DAY))


def edited_content(lake: Lake) -> None:
    add_content(lake, "i04", START + DAY)


def other_encoder(lake: Lake) -> None:
    other = {**lake.manifest(ItemContentEmbeddings).fingerprint, "prompt": "learn_v2"}
    lake.write(ItemContentEmbeddings, lake.read(ItemContentEmbeddings), fingerprint=other)


def lost_file(lake: Lake) -> None:
    (next((lake.root / "embedders" / "learn").iterdir()) / "network.pt").unlink()


@pytest.mark.parametrize("change", [late_click, edited_content, other_encoder, lost_file])
def test_a_changed_past_trains_anew(learn_lake: Lake, change: Callable[[Lake], None]):
    before = learn_lake.manifest(EmbedderCurves)
    change(learn_lake)
    assert fit(learn_lake).version == before.version + 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"item_tower": "content"}, {"trained_share": 0.51}])
def test_changed_settings_train_anew(learn_lake: Lake, change: dict[str, object], caplog: pytest.LogCaptureFixture):
    before = learn_lake.manifest(EmbedderCurves)
    with caplog.at_level(logging.INFO):
        after = fit(learn_lake, **change)
    assert after.version == before.version + 1
    assert f"is trained anew: {next(iter(change))} changed" in caplog.text
    assert after.fingerprint["dimension"] == ("8" if "item_tower" in change else "16")


def test_the_same_seed_gives_the_same_model(learn_lake: Lake):
    before = learn_lake.manifest(EmbedderCurves).fingerprint
    assert fit(without_model(learn_lake)).fingerprint == before


class PowerCut(BaseException):
    pass


class CutsPowerAfterEpoch(logging.Handler):
    """Ends the run as a kill would: at the log line of an epoch, before that epoch's checkpoint."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def emit(self, record: logging.LogRecord) -> None:
        if f"epoch {self.epoch} of" in record.getMessage():
            raise PowerCut


def killed_in_epoch(lake: Lake, epoch: int, **changes: object) -> None:
    handler = CutsPowerAfterEpoch(epoch)
    logger = logging.getLogger("jobs.learn_training")
    logger.addHandler(handler)
    try:
        with pytest.raises(PowerCut):
            fit(lake, **changes)
    finally:
        logger.removeHandler(handler)


def test_a_killed_run_goes_on_from_its_last_epoch_to_the_same_model(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    before = learn_lake.manifest(EmbedderCurves).fingerprint
    curve = learn_lake.read(EmbedderCurves).drop("seconds")
    attention = learn_lake.read(LearnAttention)
    without_model(learn_lake)
    with caplog.at_level(logging.INFO):
        killed_in_epoch(learn_lake, 4)
        assert not learn_lake.exists(EmbedderCurves)
        assert fit(learn_lake).fingerprint == before
    assert "goes on after epoch 3" in caplog.text
    assert learn_lake.read(EmbedderCurves).drop("seconds").equals(curve)
    assert learn_lake.read(LearnAttention).equals(attention)


def test_a_checkpoint_of_other_data_is_not_gone_on_from(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    before = learn_lake.manifest(EmbedderCurves).fingerprint
    without_model(learn_lake)
    with caplog.at_level(logging.INFO):
        killed_in_epoch(learn_lake, 4, seed=1)
        assert fit(learn_lake).fingerprint == before
    assert "goes on after" not in caplog.text


def test_a_run_leaves_nothing_behind_but_the_model(fitted_lake: Lake):
    assert list((fitted_lake.root / "scratch").iterdir()) == []
    (model,) = (fitted_lake.root / "embedders" / "learn").iterdir()
    assert sorted(path.name for path in model.iterdir()) == ["learn.json", "network.pt"]


def test_several_processes_train_one_model_and_one_of_them_writes_it(learn_lake: Lake, tmp_path: Path):
    without_model(learn_lake)
    flags = [f"--set=fit_embedder.{key}={value}" for key, value in {**FITTED, "epochs": 2}.items()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "jobs", "run", "fit_embedder", "--lake", str(learn_lake.root), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": "lo",  # the machine's own name need not resolve
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2 of at most 2") == 2
    assert learn_lake.manifest(EmbedderCurves).version == 1
    assert len(learn_lake.read(EmbedderCurves)) == 2
    assert fitted_learn(learn_lake) is not None
    assert [path.name for path in (learn_lake.root / "ledger").iterdir()] == ["fit_embedder.json"]


def test_a_lake_may_do_without_learn_and_come_back_to_it(learn_lake: Lake):
    before = learn_lake.manifest(EmbedderCurves).fingerprint
    left_out = fit(learn_lake, enabled=False)
    assert (left_out.rows, left_out.fingerprint) == (0, {})
    assert fitted_learn(learn_lake) is None
    assert learn_lake.manifest(LearnAttention).rows == 0
    assert fit(learn_lake).fingerprint == before


def test_too_few_users_are_refused_with_a_way_out(learn_lake: Lake):
    few = learn_lake.read(Impressions).filter(pl.col("user_id") < "u40")
    learn_lake.write(Impressions, few)
    with pytest.raises(
        ValueError, match=r"(?s)40 users have 2 clicks.*at least 50.*raise trained_share.*enabled = fal"
    ):
        fit(learn_lake)


def test_a_log_of_one_day_is_refused(learn_lake: Lake):
    day = learn_lake.read(Impressions).filter(pl.col("event_timestamp") < START + 0.6 * DAY)
    learn_lake.write(Impressions, day)
    with pytest.raises(ValueError, match=r"50% of it ends before the first midnight.*\n.*ingest more days"):
        fit(learn_lake)


def test_an_empty_log_and_an_empty_catalogue_are_refused(learn_lake: Lake):
    log = learn_lake.read(Impressions)
    learn_lake.write(Impressions, Impressions.create_empty())
    with pytest.raises(ValueError, match="there are no impressions"):
        fit(learn_lake)
    learn_lake.write(Impressions, log)
    learn_lake.write(ItemContentEmbeddings, ItemContentEmbeddings.create_empty())
    with pytest.raises(ValueError, match="item_content_embeddings is empty"):
        fit(learn_lake)


@pytest.mark.parametrize("time", ["2025-06-01T00:00:00Z", "2026-01-02T00:00:00Z"])
def test_a_time_before_the_log_or_in_the_future_is_refused(learn_lake: Lake, time: str):
    with pytest.raises(ValueError, match="the log covers 2025-06-01 00:00 to 2025-07-10"):
        fit(learn_lake, trained_through=time)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValidationError, match="timezone"):
        Config(trained_through="2025-06-20T00:00:00")  # type: ignore[arg-type]


def test_clicks_on_one_side_of_the_validation_cut_only_train_all_epochs(
    learn_lake: Lake, caplog: pytest.LogCaptureFixture
):
    log = learn_lake.read(Impressions)
    quiet = log.filter(~pl.col("event_timestamp").is_between(START + 16 * DAY, THROUGH_DAY_19, closed="left"))
    learn_lake.write(Impressions, quiet)
    fit(learn_lake, validation_share=0.05)
    assert "no user has clicks on both sides of the validation cut" in caplog.text
    assert len(learn_lake.read(EmbedderCurves)) == FITTED["epochs"]


def test_settings_survive_json():
    settings = Config(trained_through="2025-06-20T00:00:00Z").settings()  # type: ignore[arg-type]
    assert json.loads(json.dumps(settings)) == settings
    assert "trained_share" not in settings
    assert "memory_limit" not in settings
