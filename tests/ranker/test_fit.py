import io
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from ranker.batches import EncodedExamples, ExampleLayout
from ranker.fit import FitSettings, fit_network
from ranker.losses import log_loss
from ranker.network_ranker import NetworkRanker, NetworkSettings
from ranker.ranker import CurveRow, Scores, TrainingCurve, Validation, Watch

SETTINGS = FitSettings(passes=3, evaluations_per_pass=2, patience=10, batch_size=64, seed=5)


class KilledError(Exception):
    """Stands for the signal that ends a job."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_examples(rows: int, seed: int = 0) -> EncodedExamples:
    """Clicks follow from the item and one scalar."""
    rng = np.random.default_rng(seed)
    ids_NF = rng.integers(2, 30, (rows, 2)).astype(np.int32)
    scalars_NS = rng.normal(size=(rows, 1)).astype(np.float32)
    clicked_N = rng.random(rows) < 1 / (1 + np.exp(-(ids_NF[:, 1] % 3 - 1) - scalars_NS[:, 0]))
    layout = ExampleLayout(
        ids=("user_id", "item_id"),
        num_rows=(30, 30),
        scalars=("s",),
        scalar_roles=("rate",),
        history="history",
        history_length=3,
        item_attributes=(),
        vectors=(),
        vocabulary_digest="d",
    )
    return EncodedExamples(
        layout=layout,
        ids_NF=ids_NF,
        scalars_NS=scalars_NS,
        history_NL=rng.integers(0, 30, (rows, 3)).astype(np.int32),
        clicked_N=clicked_N,
        converted_N=(clicked_N & (rng.random(rows) < 0.3)).astype(np.int8),
        item_attributes_IK=np.zeros((30, 0), dtype=np.int32),
    )


TRAIN, VALIDATION = make_examples(500), make_examples(200, seed=1)


def validate(scores: Scores) -> Validation:
    return Validation(log_loss(scores, VALIDATION.clicked_N, VALIDATION.converted_N), None)


def fit(watch: Watch | None = None, settings: FitSettings = SETTINGS) -> tuple[NetworkRanker, TrainingCurve]:
    ranker = NetworkRanker(NetworkSettings(dropout=0.2, id_dropout=0.1), settings)
    return ranker, ranker.fit(TRAIN, VALIDATION, validate, watch)


def weights(ranker: NetworkRanker) -> Mapping[str, torch.Tensor]:
    assert ranker.network is not None
    return ranker.network.state_dict()


def without_seconds(curve: TrainingCurve) -> list[CurveRow]:
    return [row._replace(seconds=0.0) for row in curve]


@pytest.mark.parametrize("last_epoch", [1, 2, 5])
def test_a_killed_and_resumed_run_equals_an_undisturbed_one_bit_for_bit(last_epoch: int) -> None:
    whole, whole_curve = fit()
    file = io.BytesIO()

    def store_then_die(state: Mapping[str, Any]) -> None:
        file.seek(0)
        torch.save(dict(state), file)
        if len(state["state"]["curve"]) == last_epoch:
            raise KilledError

    with pytest.raises(KilledError):
        fit(Watch(on_checkpoint=store_then_die))
    torch.rand(17)  # whatever else a process does with its generator
    file.seek(0)
    resumed, resumed_curve = fit(Watch(resume_from=torch.load(file, weights_only=True)))

    assert without_seconds(resumed_curve) == without_seconds(whole_curve)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name


def test_a_finished_checkpoint_resumes_to_the_same_result() -> None:
    states: list[Mapping[str, Any]] = []
    whole, curve = fit(Watch(on_checkpoint=states.append))
    resumed, resumed_curve = fit(Watch(resume_from=states[-1]))
    assert resumed_curve == curve
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())


def test_fit_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fit()
    assert torch.equal(torch.rand(4), expected)


def test_training_stops_when_validation_does_not_improve_and_keeps_the_best() -> None:
    merits = iter([0.6, 0.7, 0.65, 0.7, 0.68, 0.9])
    states: list[Mapping[str, Any]] = []

    def judge(scores: Scores) -> Validation:
        return Validation(1.0, next(merits))

    ranker = NetworkRanker(NetworkSettings(), FitSettings(passes=9, evaluations_per_pass=1, patience=3, batch_size=64))
    curve = ranker.fit(TRAIN, VALIDATION, judge, Watch(on_checkpoint=states.append))
    assert [row.validation_uauc for row in curve] == [0.6, 0.7, 0.65, 0.7, 0.68]
    assert [row.is_best for row in curve] == [False, True, False, False, False], "a tie is no improvement"
    for name, weight in weights(ranker).items():
        assert torch.equal(weight, states[1]["network"][name]), name


def test_without_uauc_the_loss_decides() -> None:
    losses = iter([0.5, 0.4, 0.45])
    ranker = NetworkRanker(NetworkSettings(), FitSettings(passes=3, evaluations_per_pass=1, batch_size=64))
    curve = ranker.fit(TRAIN, VALIDATION, lambda scores: Validation(next(losses), None))
    assert [row.is_best for row in curve] == [False, True, False]


def test_progress_counts_every_row_of_every_pass() -> None:
    rows: list[int] = []
    fit(Watch(on_rows=rows.append))
    assert sum(rows) == 3 * len(TRAIN)
    assert max(rows) == 64


def test_more_evaluations_than_steps_means_one_after_each_step() -> None:
    _, curve = fit(settings=FitSettings(passes=1, evaluations_per_pass=100, patience=100, batch_size=200))
    assert len(curve) == 3


def test_a_loss_that_is_not_finite_stops_training_and_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"became (nan|inf).*lower learning_rate \(now 1e\+30\)"):
        fit(settings=FitSettings(passes=2, batch_size=64, learning_rate=1e30))


def test_training_time_is_what_the_stopwatch_says() -> None:
    ranker, _ = fit()
    assert ranker.network is not None
    ticks = itertools.count(step=2.5)
    curve = fit_network(
        ranker.network,
        TRAIN,
        settings=FitSettings(passes=2, evaluations_per_pass=1, batch_size=64),
        loss=lambda logits, batch: logits.ctr_B.mean() * 0 + logits.cvr_B.mean() * 0,
        validate=lambda: Validation(1.0, 0.5),
        watch=Watch(),
        stopwatch=lambda: next(ticks),
    )
    assert [row.seconds for row in curve] == [2.5, 2.5]
