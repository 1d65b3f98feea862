"""When a relevance teacher is trained, when it is kept, and that a killed run goes on."""

import datetime as dt
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from embedders import fit_teacher as fitting
from embedders.built_chains import built_chain
from embedders.causal_lm import CausalLM
from embedders.ellm_rele import RelevanceTeacher, load_teacher
from embedders.relevance_prompts import QueryItem, Reasoning
from embedders.title_facts import TitleReader
from jobs.lake import Lake
from jobs.relevance import teacher_training
from jobs.relevance.fine_tune_settings import FineTune
from jobs.relevance.teacher_training import MODELS, UNFINISHED, Examples, trained_teacher

READER = TitleReader(frozenset({"acme", "bolt"}))
THROUGH = dt.datetime(2025, 6, 10, tzinfo=dt.timezone.utc)
SETTINGS = FineTune(enabled=True, epochs=2, batch_size=4, learning_rate=1e-3, refit_share=0.25)


def chains(brand: str, num: int = 8) -> list[tuple[QueryItem, Reasoning]]:
    pairs = [QueryItem(f"{('acme', 'bolt')[n % 2]} chair {n}", f"{brand} Chair {n}") for n in range(num)]
    return [(pair, built_chain(pair, reader=READER)) for pair in pairs]


def examples(num: int = 8, through: dt.datetime | None = THROUGH) -> Examples:
    return Examples(train=chains("Acme", num), validation=chains("Bolt", 4), labels_through=through)


@pytest.fixture
def base(make_lm: Callable[..., CausalLM], tmp_path: Path) -> str:
    """Folder of a language model that knows nothing."""
    RelevanceTeacher(make_lm()).save(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def weights_of(folder: Path) -> str:
    weights = load_teacher(str(folder), device="cpu").lm.model.state_dict()
    return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


def test_a_teacher_is_trained_once_and_named_by_what_it_was_made_of(lake: Lake, base: str):
    folder = trained_teacher(lake, SETTINGS, base, examples(), READER)
    assert folder.parent == lake.root / MODELS
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert weights_of(folder) != weights_of(Path(base))
    assert load_teacher(str(folder), device="cpu").reader == READER
    training = teacher_training.Training.model_validate_json((folder / "training.json").read_text())
    assert [row["epoch"] for row in training.curve] == [0, 1]

    written = (folder / "training.json").stat().st_mtime_ns
    again = trained_teacher(lake, SETTINGS, base, examples(), READER)
    assert (again, (again / "training.json").stat().st_mtime_ns) == (folder, written)


def test_a_few_other_examples_leave_the_teacher_and_many_do_not(
    lake: Lake, base: str, caplog: pytest.LogCaptureFixture
):
    folder = trained_teacher(lake, SETTINGS, base, examples(num=8), READER)
    with caplog.at_level(logging.INFO):
        assert trained_teacher(lake, SETTINGS, base, examples(num=10), READER) == folder  # 2 of 10 are new
        assert "is kept: 8 of 10 examples are the same" in caplog.text
        other = trained_teacher(lake, SETTINGS, base, examples(num=11), READER)
    assert "3 of 11 examples are others now" in caplog.text
    assert other != folder
    assert not folder.exists()


@pytest.mark.parametrize("change", ["settings", "weights", "files", "earlier labels"])
def test_another_way_of_making_it_makes_another(
    change: str, lake: Lake, base: str, make_lm: Callable[..., CausalLM], caplog: pytest.LogCaptureFixture
):
    folder = trained_teacher(lake, SETTINGS, base, examples(), READER)
    settings, through = SETTINGS, THROUGH
    if change == "settings":
        settings = SETTINGS.model_copy(update={"learning_rate": 2e-3})
    elif change == "weights":
        RelevanceTeacher(make_lm(seed=1)).save(Path(base))
    elif change == "files":
        (folder / "teacher.json").write_text("{}")
    else:
        through = THROUGH - dt.timedelta(days=1)
    with caplog.at_level(logging.INFO):
        trained_teacher(lake, settings, base, examples(through=through), READER)
    told = {
        "settings": "learning_rate changed",
        "weights": "weights changed",
        "files": "gone or changed",
        "earlier labels": "it has seen labels up to",
    }
    assert f"{told[change]}" in caplog.text
    assert "is trained anew" in caplog.text


def test_later_labels_leave_the_teacher(lake: Lake, base: str):
    folder = trained_teacher(lake, SETTINGS, base, examples(), READER)
    later = examples(through=THROUGH + dt.timedelta(days=30))
    assert trained_teacher(lake, SETTINGS, base, later, READER) == folder


def test_a_killed_run_goes_on_after_its_last_epoch_to_the_same_bits(
    lake: Lake, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    whole = weights_of(trained_teacher(Lake(tmp_path / "other"), SETTINGS, base, examples(), READER))

    class Killed(BaseException):
        pass

    def killed_in_the_second_epoch(*arguments: object) -> object:
        if arguments[2] == 1:
            raise Killed
        return batches(*arguments)

    batches = fitting._batches
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_batches", killed_in_the_second_epoch)
        with pytest.raises(Killed):
            trained_teacher(lake, SETTINGS, base, examples(), READER)
    assert (lake.root / MODELS / UNFINISHED).exists()
    with caplog.at_level(logging.INFO):
        folder = trained_teacher(lake, SETTINGS, base, examples(), READER)
    assert "fine-tuning goes on after epoch 1" in caplog.text
    assert weights_of(folder) == whole
    assert not (lake.root / MODELS / UNFINISHED).exists()


def test_scores_of_held_out_pairs_can_stop_the_training(lake: Lake, base: str):
    held_out = [*chains("Bolt", 4), *chains("Acme", 4)]
    both = Examples(train=chains("Acme"), validation=held_out, labels_through=None)
    settings = SETTINGS.model_copy(update={"validate_by": "roc_auc", "epochs": 1})
    folder = trained_teacher(lake, settings, base, both, READER)
    training = teacher_training.Training.model_validate_json((folder / "training.json").read_text())
    assert 0.0 <= training.curve[0]["validation_score"] <= 1.0

    only_good = [one for one in held_out if one[1].label == "good"]
    with pytest.raises(ValueError, match="are good, and a ROC-AUC needs both"):
        trained_teacher(Lake(lake.root / "second"), settings, base, both._replace(validation=only_good), READER)


def test_contrasts_are_learnt_beside_judged_chains(lake: Lake, base: str, caplog: pytest.LogCaptureFixture):
    unjudged = [QueryItem(f"{brand} chair", f"{brand.title()} Red Chair") for brand in ("acme", "bolt")]
    with_contrasts = examples()._replace(contrasted=lambda: unjudged)
    settings = SETTINGS.model_copy(update={"contrast_share": 0.5})
    alone = weights_of(trained_teacher(Lake(lake.root / "alone"), SETTINGS, base, with_contrasts, READER))
    with caplog.at_level(logging.INFO):
        folder = trained_teacher(lake, settings, base, with_contrasts, READER)
    assert "2 pairs beside the same with one value replaced: category 0, brand 2, model 0, attributes 0" in caplog.text
    assert "no contrast shows a mismatch of category or model or attributes: raise contrast_share" in caplog.text
    assert weights_of(folder) != alone

    training = teacher_training.Training.model_validate_json((folder / "training.json").read_text())
    assert len(training.examples) == len(with_contrasts.train)  # contrasts follow from settings and texts
    assert trained_teacher(lake, settings, base, with_contrasts, READER) == folder
    caplog.clear()
    with caplog.at_level(logging.INFO):
        trained_teacher(lake, SETTINGS, base, with_contrasts, READER)
    assert "trained anew" in caplog.text


def test_a_teacher_of_a_version_without_contrasts_stays(lake: Lake, base: str):
    folder = trained_teacher(lake, SETTINGS, base, examples(), READER)
    assert "contrast_share" not in (folder / "training.json").read_text()
    assert trained_teacher(lake, SETTINGS, base, examples(), READER) == folder


def test_where_there_is_nothing_to_contrast_it_is_said(lake: Lake, base: str, caplog: pytest.LogCaptureFixture):
    settings = SETTINGS.model_copy(update={"contrast_share": 1.0})
    with caplog.at_level(logging.INFO):
        trained_teacher(lake, settings, base, examples(), READER)
    assert "0 pairs beside the same" in caplog.text
    assert "mismatch of category or brand or model or attributes: too few queries name a value" in caplog.text


def test_no_chains_no_teacher(lake: Lake, base: str):
    with pytest.raises(ValueError, match="no chain of a training query was kept"):
        trained_teacher(lake, SETTINGS, base, Examples([], chains("Acme"), None), READER)
