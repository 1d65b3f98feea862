"""KARMA is trained on what was known at a time, once; what comes later, or is the same, trains nothing."""

import datetime as dt
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import (
    Impressions,
    ItemContentEmbeddings,
    ItemImageEmbeddings,
    Items,
    KarmaAttention,
    KarmaCurves,
    Queries,
)
from jobs import fit_embedder_karma
from jobs.fit_embedder_karma import Config
from jobs.fitted_karma import FittedKarma, fitted_karma
from jobs.lake import Lake, Manifest

if TYPE_CHECKING:
    from embedders.causal_lm import CausalLM

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
THROUGH_DAY_19 = START + 19 * DAY
"""The log's span is a little shorter than 40 days, so half of it ends on the 20th day."""

SETTINGS: dict[str, Any] = {
    "enabled": True,
    "epochs": 2,
    "patience": 2,
    "batch_size": 27,
    "max_history": 8,
    "read_outs": 2,
    "recall_at": 10,
    "output_dim": 16,
    "residual": True,
    "learning_rate": 3e-3,
    "language_model_rate": 1e-3,
}
"""Of `shared_lake`; small, and good from the start: a fit takes a second or two."""

UNJUDGED = {"epochs": 1, "validation_share": 0.0}
"""Shorter still."""


def with_pages(clicks: pl.DataFrame) -> pl.DataFrame:
    """Each click on a page of its own, beside two items of the other parity, passed over; half of them are searched."""
    number = pl.col("item_id").str.slice(1).cast(pl.Int32)
    pages = clicks.with_columns(
        request_id=pl.format("page {}", pl.col("impression_id")),
        query_id=pl.when(number % 4 < 2).then(pl.format("q{}", number % 2)),
    )
    others = [
        pages.with_columns(
            impression_id=pl.format(f"{{}} beside {step}", "impression_id"),
            item_id=pl.format("i{}", ((number + step) % 40).cast(pl.String).str.zfill(2)),
            clicked=pl.lit(False),
        )
        for step in (1, 3)
    ]
    return pl.concat([pages, *others])


@pytest.fixture(scope="module")
def language_model(make_lm: "Callable[..., CausalLM]", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama of two layers."""
    lm, folder = make_lm(), tmp_path_factory.mktemp("language_models") / "tiny"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_histories_mapped() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("jobs.karma_validation.MOST_HISTORIES_MAPPED", 8)
        yield


@pytest.fixture(scope="module")
def shared_lake(random_karma_lake: Lake, language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """`random_karma_lake` with searches, and with a model that is trained. Read only: copy to change."""
    root = tmp_path_factory.mktemp("fitted_karma") / "lake"
    shutil.copytree(random_karma_lake.root, root, symlinks=True)
    lake = without_model(Lake(root, now=random_karma_lake.now))
    lake.write(Impressions, with_pages(lake.read(Impressions)))
    lake.write(Queries, pl.DataFrame({"query_id": ["q0", "q1"], "query_text": ["red chair", "blue chair"]}))
    fit(lake, language_model)
    return lake


@pytest.fixture
def trained(shared_lake: Lake, tmp_path: Path) -> Lake:
    """A copy of `shared_lake`, to be changed."""
    shutil.copytree(shared_lake.root, tmp_path / "lake", symlinks=True)
    return Lake(tmp_path / "lake", now=shared_lake.now)


def fit(lake: Lake, language_model: Path, **changes: Any) -> Manifest:
    fit_embedder_karma.run(lake, Config(**{**SETTINGS, "language_model": str(language_model), **changes}))
    return lake.manifest(KarmaCurves)


def without_model(lake: Lake) -> Lake:
    """The lake as it was before fit_embedder_karma."""
    shutil.rmtree(lake.root / "embedders" / "karma")
    shutil.rmtree(lake.root / "karma_curves")
    return lake


def model_of(lake: Lake) -> FittedKarma:
    fitted = fitted_karma(lake)
    assert fitted is not None
    return fitted


def add_clicks(lake: Lake, *clicks: tuple[str, str, dt.datetime]) -> None:
    rows = [
        {"impression_id": f"added {n}", "user_id": user, "item_id": item, "event_timestamp": at, "clicked": True}
        for n, (user, item, at) in enumerate(clicks)
    ]
    added = pl.DataFrame(rows).with_columns(converted=pl.lit(False), is_sampled=pl.lit(False))
    lake.write(Impressions, pl.concat([lake.read(Impressions), added], how="diagonal_relaxed"))


def add_vector(lake: Lake, kind: str, item: str, at: dt.datetime) -> None:
    schema, width = (ItemContentEmbeddings, 8) if kind == "content" else (ItemImageEmbeddings, 4)
    row = {
        "item_id": [item],
        "event_timestamp": [at],
        "created_timestamp": [at],
        f"item_{kind}_vector_id": [200],
        f"item_{kind}_embedding": [[0.0] * (width - 1) + [1.0]],
        f"item_{kind}_hash": ["200"],
    }
    with lake.writer(schema, append=True) as writer:
        writer.write_shard(pl.DataFrame(row, schema_overrides={f"item_{kind}_embedding": pl.List(pl.Float32)}))


def test_held_out_items_are_found_and_the_curve_begins_before_training(shared_lake: Lake):
    curve = shared_lake.read(KarmaCurves)
    assert curve.get_column("epoch").to_list() == [-1, 0, 1, 2]
    assert curve.get_column("stage").to_list() == ["untouched", "heads", "joint", "joint"]
    joint = curve.filter(pl.col("stage") == "joint")
    (best,) = curve.filter("is_best").rows(named=True)
    assert best["validation_recall"] == joint.get_column("validation_recall").max()
    assert best["validation_recall"] > 0.38  # 10 of 40 by chance: 0.25; all of them even or odd as they should: 0.5
    losses = ["train_loss", "action_loss", "generation_loss", "reconstruction_loss"]
    assert joint.select(pl.col(losses).is_not_null().all()).row(0) == (True,) * 4
    assert joint.get_column("reconstruction_loss")[1] < joint.get_column("reconstruction_loss")[0]
    measures = curve.drop(*losses, "image_loss")
    assert measures.select(pl.all().is_not_null().all()).row(0) == (True,) * measures.width


def test_attention_is_mapped_before_and_after(shared_lake: Lake):
    attention = shared_lake.read(KarmaAttention)
    heads = [(moment, layer, head) for moment in ("untouched", "fitted") for layer in (1, 2) for head in range(1, 5)]
    assert attention.select("moment", "layer", "head").rows() == heads
    curve = shared_lake.read(KarmaCurves)
    for moment, row in (
        ("untouched", curve.row(0, named=True)),
        ("fitted", curve.filter("is_best").row(0, named=True)),
    ):
        of_moment = attention.filter(pl.col("moment") == moment)
        assert row["top1_mass"] == pytest.approx(of_moment.get_column("top1_mass").mean(), abs=1e-5)
        assert row["column_entropy"] == pytest.approx(of_moment.get_column("column_entropy").mean(), abs=1e-5)


def test_the_manifest_names_the_model_its_time_and_both_encoders(shared_lake: Lake, language_model: Path):
    manifest = shared_lake.manifest(KarmaCurves)
    model = Fingerprint.from_tags(manifest.fingerprint)
    assert (model.model_id, model.dimension, model.trained_through) == ("karma", 16, THROUGH_DAY_19.isoformat())
    for schema in (ItemContentEmbeddings, ItemImageEmbeddings):
        assert Fingerprint.from_tags(shared_lake.manifest(schema).fingerprint).digest() in model.pooling
    assert model_of(shared_lake).load("test").weights_sha256() == model.weights_sha256
    assert manifest.metadata["num_items"] == 40  # i40 never has a vector, that of i41 was not known yet
    assert manifest.metadata["num_images"] == 20
    assert manifest.metadata["language_model"] == {"model_id": language_model.name, "layers": 2}


def test_nothing_of_the_decoder_is_in_what_serves(shared_lake: Lake):
    fitted = model_of(shared_lake)
    files = {path.relative_to(fitted.serving.path).as_posix() for path in fitted.serving.path.rglob("*")}
    assert {"karma.json", "network.pt", "language_model/config.json"} <= files
    torch = pytest.importorskip("torch")
    served = torch.load(fitted.serving.path / "network.pt", weights_only=True)
    assert not [name for name in served if "prefix" in name or "output" in name or "flow" in name]
    assert [path.name for path in fitted.decoder.path.iterdir()] == ["decoder.pt"]
    assert fitted.serving.path.parent == fitted.decoder.path.parent
    assert [path.name for path in fitted.serving.path.parents[1].iterdir()] == [fitted.serving.path.parent.name]
    assert list((shared_lake.root / "scratch").iterdir()) == []


def test_vectors_are_put_into_words(shared_lake: Lake):
    model, decoder = model_of(shared_lake).load("test"), model_of(shared_lake).load_decoder("test")
    content_NC = np.array(shared_lake.read(ItemContentEmbeddings)["item_content_embedding"].to_list(), np.float32)
    users = model.user_vectors(content_NC, np.arange(6), np.array([3, 3]))
    assert [isinstance(text, str) for text in decoder.decode(users.vectors)] == [True, True]


def test_the_log_line_accounts_for_every_click(trained: Lake, language_model: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        fit(without_model(trained), language_model, max_users=60, **UNJUDGED)
    clicks = trained.read(Impressions).filter("clicked", pl.col("event_timestamp") < THROUGH_DAY_19)
    with_vector = clicks.filter(~pl.col("item_id").is_in(["i40", "i41"]))
    of_several = with_vector.filter(pl.len().over("user_id") >= 2)
    told = trained.manifest(KarmaCurves).metadata
    assert told["num_users"] == 60
    assert (
        f"{told['num_interactions']} of {len(clicks)} clicks before 2025-06-20 00:00 are learnt from, of 60 users on a "
        "catalogue of 40 items, 20 of them with an image vector; dropped: "
        f"{len(clicks) - len(with_vector)} on items without a content vector, "
        f"{len(with_vector) - len(of_several)} of users with no other, "
        f"{len(of_several) - told['num_interactions']} of users beyond max_users" in caplog.text
    )
    curve = trained.read(KarmaCurves)
    assert curve.get_column("epoch").to_list() == [0, 1], "nobody is held out, so nobody can say what it was before"
    assert curve.get_column("validation_recall").is_null().all()
    assert len(trained.read(KarmaAttention)) == 0


def test_nothing_that_comes_later_changes_the_model(trained: Lake, language_model: Path):
    weights = trained.manifest(KarmaCurves).fingerprint["weights_sha256"]
    without_model(trained)
    add_clicks(trained, *[(f"u{n:02}", "i03", THROUGH_DAY_19 + n * DAY / 10) for n in range(80)])
    add_vector(trained, "content", "i05", THROUGH_DAY_19 + DAY)
    add_vector(trained, "image", "i25", THROUGH_DAY_19 + DAY)
    again = fit(trained, language_model, trained_through=THROUGH_DAY_19).fingerprint
    assert again["weights_sha256"] == weights


def test_a_second_run_trains_and_writes_nothing(trained: Lake, language_model: Path, caplog: pytest.LogCaptureFixture):
    before = trained.manifest(KarmaCurves)
    renamed = trained.read(Items).with_columns(title=pl.lit("another"))
    trained.write(Items, renamed)  # edited now, so long after the cut
    with caplog.at_level(logging.INFO):
        assert fit(trained, language_model) == before
        add_clicks(trained, ("u80", "i04", START + 59.5 * DAY))
        assert fit(trained, language_model) == before
    assert "kept: the model trained through 2025-06-20 00:00 has seen the same log and the same vectors" in caplog.text
    assert "the cut has moved by 10 of 30 days" in caplog.text


def late_click(lake: Lake) -> None:
    add_clicks(lake, ("u80", "i04", START + DAY))


def other_page(lake: Lake) -> None:
    is_it = pl.col("impression_id") == "0100 beside 1"
    changed = pl.when(is_it).then(pl.lit("i39")).otherwise("item_id")
    lake.write(Impressions, lake.read(Impressions).with_columns(item_id=changed))


def other_query(lake: Lake) -> None:
    lake.write(Queries, pl.DataFrame({"query_id": ["q0", "q1"], "query_text": ["red chair", "green chair"]}))


def edited_content(lake: Lake) -> None:
    add_vector(lake, "content", "i04", START + DAY)


def new_picture(lake: Lake) -> None:
    add_vector(lake, "image", "i25", START + DAY)


def other_encoder(lake: Lake) -> None:
    other = {**lake.manifest(ItemImageEmbeddings).fingerprint, "pooling": "another"}
    lake.write(ItemImageEmbeddings, lake.read(ItemImageEmbeddings), fingerprint=other)


def lost_file(lake: Lake) -> None:
    (model_of(lake).decoder.path / "decoder.pt").unlink()


@pytest.mark.parametrize(
    "change", [late_click, other_page, other_query, edited_content, new_picture, other_encoder, lost_file]
)
def test_a_changed_past_trains_anew(trained: Lake, language_model: Path, change: Callable[[Lake], None]):
    before = trained.manifest(KarmaCurves)
    change(trained)
    with pytest.raises(Reached):
        fit_until_training(trained, language_model)
    assert trained.manifest(KarmaCurves) == before


class Reached(BaseException):
    pass


def fit_until_training(lake: Lake, language_model: Path) -> None:
    def reached(*_: object) -> None:
        raise Reached

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("jobs.karma_training.train_karma", reached)
        fit(lake, language_model)


def test_the_language_models_files_count_beside_its_name(trained: Lake, language_model: Path):
    config = language_model / "config.json"
    before = config.read_text()
    try:
        config.write_text(before + "\n")
        with pytest.raises(Reached):
            fit_until_training(trained, language_model)
    finally:
        config.write_text(before)
    fit_until_training(trained, language_model)


@pytest.mark.parametrize(
    "change",
    [
        {"language_model_layers": 1},
        {"low_rank": 2},
        {"action": "infonce", "decodability": 0.0},
        {"image": "vector", "warm_up_epochs": 1},
        {"head_epochs": 0},
        {"title_epochs": 2, "title_rate": 1e-3},
        {"residual": False, "frozen_language_model": True},
        {"exposed": 0, "query_share": 0.0},
        {"residual_decay": 0.5},
    ],
)
def test_changed_settings_train_another_model(
    trained: Lake, language_model: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    if "low_rank" in change:
        pytest.importorskip("peft")
    before = trained.manifest(KarmaCurves)
    with caplog.at_level(logging.INFO):
        after = fit(trained, language_model, **UNJUDGED, **change)
    assert f"is trained anew: {', '.join(sorted([*change, *UNJUDGED]))} changed" in caplog.text
    assert after.fingerprint["weights_sha256"] != before.fingerprint["weights_sha256"]
    assert model_of(trained).load("test").weights_sha256() == after.fingerprint["weights_sha256"]
    last = trained.read(KarmaCurves).row(-1, named=True)
    assert (last["generation_loss"] is None) == ("decodability" in change)
    assert (last["image_loss"] is not None) == ("image" in change)
    first_stages = change.get("warm_up_epochs", 0) + (change.get("head_epochs", 1) > 0) + ("title_epochs" in change)
    assert last["epoch"] == first_stages


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


@pytest.fixture
def killed_in_epoch() -> Iterator[Callable[..., None]]:
    logger = logging.getLogger("jobs.karma_training")
    handlers: list[logging.Handler] = []

    def kill(lake: Lake, language_model: Path, epoch: int, **changes: Any) -> None:
        handlers.append(CutsPowerAfterEpoch(epoch))
        logger.addHandler(handlers[-1])
        with pytest.raises(PowerCut):
            fit(lake, language_model, **changes)
        logger.removeHandler(handlers[-1])

    yield kill
    for handler in handlers:
        logger.removeHandler(handler)


def test_a_killed_run_goes_on_from_its_last_epoch_to_the_same_model(
    trained: Lake, language_model: Path, killed_in_epoch: Callable[..., None], caplog: pytest.LogCaptureFixture
):
    before = trained.manifest(KarmaCurves).fingerprint
    curve, attention = trained.read(KarmaCurves).drop("seconds"), trained.read(KarmaAttention)
    without_model(trained)
    with caplog.at_level(logging.INFO):
        killed_in_epoch(trained, language_model, 2)
        assert not trained.exists(KarmaCurves)
        assert fit(trained, language_model).fingerprint == before
    assert "goes on after epoch 1" in caplog.text
    assert trained.read(KarmaCurves).drop("seconds").equals(curve)
    assert trained.read(KarmaAttention).equals(attention)


def test_a_checkpoint_of_other_titles_is_not_gone_on_from(
    trained: Lake, language_model: Path, killed_in_epoch: Callable[..., None], caplog: pytest.LogCaptureFixture
):
    without_model(trained)
    with caplog.at_level(logging.INFO):
        killed_in_epoch(trained, language_model, 2, validation_share=0.0)
        trained.write(Items, trained.read(Items).with_columns(title=pl.lit("another")))
        fit(trained, language_model, validation_share=0.0)
    assert "goes on after" not in caplog.text


TRAIN = """
import json, pathlib, sys
from jobs import fit_embedder_karma, lake
fit_embedder_karma.run(lake.Lake(pathlib.Path(sys.argv[1])), fit_embedder_karma.Config(**json.loads(sys.argv[2])))
"""


@pytest.mark.slow
def test_several_processes_train_one_model_and_one_of_them_writes_it(
    trained: Lake, language_model: Path, tmp_path: Path
):
    without_model(trained)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    (tmp_path / "train.py").write_text(TRAIN)
    told = json.dumps({**SETTINGS, "epochs": 1, "language_model": str(language_model)})
    done = subprocess.run(
        [*launch, str(tmp_path / "train.py"), str(trained.root), told],
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
    assert trained.manifest(KarmaCurves).version == 1
    assert len(trained.read(KarmaCurves)) == 3
    assert model_of(trained).is_whole()


def test_a_lake_may_do_without_karma_and_come_back_to_it(trained: Lake, language_model: Path):
    before = trained.manifest(KarmaCurves).fingerprint
    left_out = fit(trained, language_model, enabled=False)
    assert (left_out.rows, left_out.fingerprint) == (0, {})
    assert trained.manifest(KarmaAttention).rows == 0
    assert fitted_karma(trained) is None
    assert fit(trained, language_model).fingerprint == before


def test_karma_is_off_by_default():
    assert not Config().enabled


def test_a_lake_without_image_vectors_trains_without_them(trained: Lake, language_model: Path):
    without_model(trained)
    shutil.rmtree(trained.root / "item_image_embeddings")
    fitted = fit(trained, language_model, **UNJUDGED)
    assert "no images" in fitted.fingerprint["pooling"]
    assert not model_of(trained).uses_images
    assert model_of(trained).load("test").image_dim is None


def test_too_few_users_are_refused_with_a_way_out(trained: Lake, language_model: Path):
    with pytest.raises(ValueError, match=r"(?s)20 users have 2 clicks.*at least 50.*raise max_users.*enabled = fal"):
        fit(trained, language_model, max_users=20)


def test_an_empty_log_is_refused(trained: Lake, language_model: Path):
    trained.write(Impressions, Impressions.create_empty())
    with pytest.raises(ValueError, match="fit_embedder_karma: there are no impressions"):
        fit(trained, language_model)


def test_an_empty_catalogue_and_a_model_that_is_not_here_are_refused(trained: Lake, language_model: Path):
    with pytest.raises(ValueError, match="there is no model 'smollm9' here"):
        fit(trained, Path("smollm9"))
    trained.write(ItemContentEmbeddings, ItemContentEmbeddings.create_empty())
    with pytest.raises(ValueError, match=r"(?s)item_content_embeddings is empty.*fit_embedder_karma\] enabled = false"):
        fit(trained, language_model)


def test_the_steps_defaults_are_those_of_the_training_loop():
    from embedders.fit_karma import KarmaSettings
    from jobs.karma_training import fit_settings

    assert fit_settings(Config()) == KarmaSettings()
    changed = Config(action="infonce", scale=7.0, epochs=9, image="history", seed=3)
    assert {
        field.name
        for field in fields(KarmaSettings)
        if getattr(fit_settings(changed), field.name) != getattr(KarmaSettings(), field.name)
    } == {"action", "scale", "epochs", "image", "seed"}


def test_settings_survive_json():
    settings = Config(trained_through="2025-06-20T00:00:00Z").settings()  # type: ignore[arg-type]
    assert json.loads(json.dumps(settings)) == settings
    assert "trained_share" not in settings
    assert "memory_limit" not in settings
