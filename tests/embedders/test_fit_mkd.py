"""The course of a fit: seeds, resume, early stop, progress, switches. What is learnt: see test_mkd_world."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedders.fit_mkd import INTERACTION, REPRESENTATION, EpochRow, MkdSettings, Watch, fit_mkd
from embedders.mkd import InteractionStudent, RepresentationStudent, Student
from embedders.mkd_model import MkdModel
from embedders.mkd_objective import LossWeights
from embedders.student_encoder import CitedSpans
from embedders.teacher_signal import TeacherSignal

KINDS, COLOURS = ["drill", "saw", "lamp"], ["red", "blue", "green"]
NUM = 48


@pytest.fixture(scope="module")
def folder(save_word_encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_encoder(tmp_path_factory.mktemp("encoder"), [*KINDS, *COLOURS], width=16)


def pairs() -> list[tuple[str, str]]:
    """Twelve queries of four items; lengths differ."""
    return [(KINDS[n // 4 % 3], f"{COLOURS[n % 3]} " * (1 + n % 4) + KINDS[(n + n // 5) % 3]) for n in range(NUM)]


def signal(**changes: Any) -> TeacherSignal:
    """Everything, for some of the pairs."""
    is_good = np.array([query in item for query, item in pairs()])
    good = np.where(is_good, 0.9, 0.2)
    probabilities = np.stack([1 - good, good], axis=1)
    probabilities[::5] = np.nan
    step = np.where(is_good, 0, 1)
    known: dict[str, Any] = {
        "label_N": np.where(np.arange(NUM) % 3 == 0, is_good, -1),
        "probabilities_NK": probabilities,
        "match_NA": np.stack([step, np.full(NUM, 2), np.full(NUM, -1), np.arange(NUM) % 2], axis=1),
        "highlight": [
            CitedSpans(((0, len(query)),), ((0, 3),)) if n % 2 else None for n, (query, _) in enumerate(pairs())
        ],
        "query_class_NC": np.stack([np.arange(NUM) // 4 % 3, np.full(NUM, -1)], axis=1),
        "item_class_NC": np.stack([(np.arange(NUM) + np.arange(NUM) // 5) % 3, np.arange(NUM) % 2], axis=1),
    }
    return TeacherSignal.of(np.arange(NUM) // 4, **{**known, **changes})


def make(kind: str, folder: Path) -> Student:
    if kind == "interaction":
        return InteractionStudent.pretrained(str(folder))
    return RepresentationStudent.pretrained(str(folder), num_classes=(3, 2))


BOTH = pytest.mark.parametrize("kind", ["interaction", "representation"])
QUICK = MkdSettings(epochs=3, batch_size=16, learning_rate=1e-3)


def fitted(
    kind: str, folder: Path, watch: Watch | None = None, settings: MkdSettings = QUICK
) -> tuple[Student, tuple[EpochRow, ...]]:
    student = make(kind, folder)
    return student, fit_mkd(student, pairs(), signal(), settings, watch=watch, stopwatch=lambda: 0.0)


def same(one: Student, other: Student) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@BOTH
def test_the_same_seed_gives_the_same_bits_and_another_does_not(kind: str, folder: Path) -> None:
    state = torch.get_rng_state()
    first, curve = fitted(kind, folder)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left alone"
    torch.rand(3)
    second, again = fitted(kind, folder)
    third, _ = fitted(kind, folder, settings=replace(QUICK, seed=1))
    assert same(first, second)
    assert curve == again
    assert not same(first, third)


class KilledError(Exception):
    """As if the process had been killed."""


@BOTH
@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_bits(
    kind: str, stopped_after: int, folder: Path, tmp_path: Path
) -> None:
    whole, curve = fitted(kind, folder)
    num_kept = 0

    def keep(checkpoint: dict[str, Any]) -> None:
        nonlocal num_kept
        torch.save(checkpoint, tmp_path / "checkpoint.pt")
        num_kept += 1
        if num_kept == stopped_after:
            raise KilledError

    with pytest.raises(KilledError):
        fitted(kind, folder, Watch(on_checkpoint=keep))
    torch.rand(7)  # whatever happened to the generator in between
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed, resumed_curve = fitted(kind, folder, Watch(resume_from=kept))
    assert same(whole, resumed)
    assert resumed_curve == curve


def test_a_checkpoint_of_other_settings_is_refused(folder: Path) -> None:
    kept: list[dict[str, Any]] = []
    fitted("representation", folder, Watch(on_checkpoint=kept.append))
    with pytest.raises(ValueError, match="the checkpoint is of a fit with"):
        fitted("representation", folder, Watch(resume_from=kept[0]), replace(QUICK, epochs=4))


def test_it_stops_when_validation_no_longer_gains_and_keeps_the_best_weights(folder: Path) -> None:
    metrics, seen = iter([0.1, 0.3, 0.2, 0.25, 0.9]), []
    student = make("interaction", folder)

    def validate() -> float:
        assert not student.training
        seen.append({name: weight.clone() for name, weight in student.state_dict().items()})
        return next(metrics)

    settings = replace(QUICK, epochs=20, patience=2)
    curve = fit_mkd(student, pairs(), signal(), settings, validate=validate)
    assert [row.validation_metric for row in curve] == [0.1, 0.3, 0.2, 0.25]
    assert [row.is_best for row in curve] == [False, True, False, False]
    assert all(torch.equal(weight, seen[1][name]) for name, weight in student.state_dict().items())
    assert not student.training


def test_validation_may_score_through_the_model_without_changing_what_is_learnt(folder: Path) -> None:
    plain, _ = fitted("interaction", folder)
    student = make("interaction", folder)
    rising = iter(range(9))

    def validate() -> float:
        MkdModel(student).score(pairs())
        return next(rising)

    fit_mkd(student, pairs(), signal(), QUICK, validate=validate)
    assert same(plain, student)


def test_progress_is_told_and_counts_every_pair(folder: Path) -> None:
    told: list[int] = []
    epochs: list[EpochRow] = []
    fitted("interaction", folder, Watch(on_pairs=told.append, on_epoch=epochs.append))
    assert sum(told) == 3 * NUM
    assert [row.epoch for row in epochs] == [0, 1, 2]
    assert all(row.train_loss == pytest.approx(sum(row.parts.values())) for row in epochs)


@BOTH
def test_every_loss_is_a_switch(kind: str, folder: Path) -> None:
    names = {
        "hard": "hard",
        "alpha": "score",
        "alpha_list": "list",
        "beta": "steps" if kind == "interaction" else "attributes",
        "gamma": "highlight" if kind == "interaction" else "contrast",
    }
    once = replace(QUICK, epochs=1)
    _, (row,) = fitted(kind, folder, settings=once)
    assert set(row.parts) == set(names.values())
    assert all(value > 0 for value in row.parts.values())
    for switch, name in names.items():
        without = replace(once, weights=replace(once.weights, **{switch: 0.0}))
        _, (row,) = fitted(kind, folder, settings=without)
        assert set(row.parts) == set(names.values()) - {name}


@BOTH
def test_every_gradient_is_finite_and_every_head_gets_one(kind: str, folder: Path) -> None:
    before = make(kind, folder).state_dict()
    student, _ = fitted(kind, folder, settings=replace(QUICK, epochs=1))
    moved = {name for name, weight in student.state_dict().items() if not torch.equal(weight, before[name])}
    assert all(weight.isfinite().all() for weight in student.state_dict().values())
    assert {name for name in before if "head" in name or name in ("log_kappa", "bias")} <= moved


@BOTH
def test_pairs_of_which_nothing_is_known_teach_nothing(kind: str, folder: Path) -> None:
    """No gradient at all: AdamW then moves nothing but what decays."""
    student, before = make(kind, folder), make(kind, folder)
    off = LossWeights(gamma=0.0 if kind == "representation" else 0.1)  # the contrast reads other queries' items
    empty = TeacherSignal.of(np.arange(NUM) // 4, query_class_NC=np.full((NUM, 2), -1), highlight=[None] * NUM)
    (row,) = fit_mkd(student, pairs(), empty, replace(QUICK, epochs=1, weights=off, weight_decay=0.0))
    assert row.train_loss == 0.0
    assert same(student, before)


@BOTH
def test_bfloat16_learns_nearly_the_same(kind: str, folder: Path) -> None:
    _, full = fitted(kind, folder)
    _, half = fitted(kind, folder, settings=replace(QUICK, precision="bfloat16"))
    assert half != full
    assert half[-1].train_loss == pytest.approx(full[-1].train_loss, rel=0.1)


def test_what_does_not_fit_together_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="47 pairs of texts and a signal of 48"):
        fit_mkd(make("interaction", folder), pairs()[1:], signal(), QUICK)
    with pytest.raises(ValueError, match="classes of 2 attributes, but the student 0 heads"):
        fit_mkd(RepresentationStudent.pretrained(str(folder)), pairs(), signal(), QUICK)
    with pytest.raises(ValueError, match="no reasoning heads"):
        fit_mkd(make("interaction", folder).for_serving(), pairs(), signal(), QUICK)
    off = replace(QUICK, weights=LossWeights(hard=0, alpha=0, alpha_list=0, beta=0, gamma=0))
    with pytest.raises(ValueError, match="every loss is switched off"):
        fit_mkd(make("interaction", folder), pairs(), signal(), off)
    with pytest.raises(ValueError, match="weights are 0 or more"):
        LossWeights(beta=-1.0)
    with pytest.raises(ValueError, match="tau = 0"):
        LossWeights(tau=0.0)


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path) -> None:
    student = make("interaction", folder)
    with torch.no_grad():
        next(student.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the training loss became nan in epoch 0 \(seed 0"):
        fit_mkd(student, pairs(), signal(), QUICK)


def test_presets_are_the_cards() -> None:
    assert INTERACTION.weights == LossWeights(1.0, 1.0, 0.0, 0.3, 0.1, 2.0)
    assert REPRESENTATION.weights == LossWeights(1.0, 1.0, 1.0, 0.3, 0.1, 2.0)
    assert (INTERACTION.learning_rate, REPRESENTATION.learning_rate) == (2e-5, 5e-5)
