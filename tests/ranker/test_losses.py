import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ranker.batches import Batch
from ranker.ctr_cvr import AuxiliaryLogits, Logits
from ranker.losses import (
    AuxiliaryLabel,
    auxiliary_loss,
    click_loss,
    conversion_loss,
    cross_entropy,
    log_loss,
    ranker_loss,
)
from ranker.ranker import Scores


@dataclass
class Case:
    """Four impressions, the last one too young for its conversion to be known."""

    ctr: tuple[float, ...] = (0.0, 2.0, -1.0, 0.5)
    cvr: tuple[float, ...] = (0.0, -1.0, 3.0, 0.5)
    auxiliary: tuple[tuple[float, ...], ...] | None = ((0.1, 0.2, -0.3, 0.4),)
    """One row a pair of vectors."""
    vectors_known: tuple[tuple[bool, ...], ...] = ((True,) * 4,)

    def logits(self) -> Logits:
        auxiliary = None
        if self.auxiliary is not None:
            logit_AB = torch.tensor(self.auxiliary, requires_grad=True)
            auxiliary = AuxiliaryLogits(logit_AB, torch.tensor(self.vectors_known))
        return Logits(torch.tensor(self.ctr, requires_grad=True), torch.tensor(self.cvr, requires_grad=True), auxiliary)


def make_batch(known: tuple[bool, ...] = (True, True, True, False)) -> Batch:
    empty = torch.empty(4, 0)
    return Batch(
        ids_BF=empty.int(),
        scalars_BS=empty,
        history_BL=empty.int(),
        vectors=(),
        clicked_B=torch.tensor([1.0, 1.0, 0.0, 1.0]),
        converted_B=torch.tensor([1.0, 0.0, 0.0, 0.0]),
        converted_known_B=torch.tensor(known),
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_losses_equal_the_formulas_worked_by_hand() -> None:
    case = Case()
    clicks = -np.mean([math.log(sigmoid(0)), math.log(sigmoid(2)), math.log(1 - sigmoid(-1)), math.log(sigmoid(0.5))])
    conversions = -np.mean(
        [math.log(0.25), math.log(1 - sigmoid(2) * sigmoid(-1)), math.log(1 - sigmoid(-1) * sigmoid(3))]
    )
    logits, batch = case.logits(), make_batch()
    assert click_loss(logits, batch).item() == pytest.approx(clicks, rel=1e-6)
    assert conversion_loss(logits, batch).item() == pytest.approx(conversions, rel=1e-6)
    auxiliary = -np.mean([math.log(sigmoid(0.1)), math.log(1 - sigmoid(0.2)), math.log(1 - sigmoid(-0.3))])
    assert auxiliary_loss(logits, batch, "converted").item() == pytest.approx(auxiliary, rel=1e-6)
    whole = ranker_loss(logits, batch, auxiliary_label="converted", auxiliary_weight=0.1)
    assert whole.item() == pytest.approx(clicks + conversions + 0.1 * auxiliary, rel=1e-6)


def test_an_unknown_conversion_pushes_nothing_but_its_click_counts() -> None:
    logits, batch = Case().logits(), make_batch()
    conversion_loss(logits, batch).backward()
    assert logits.ctr_B.grad is not None
    assert logits.cvr_B.grad is not None
    assert logits.ctr_B.grad[3] == logits.cvr_B.grad[3] == 0
    click_loss(logits, batch).backward()
    assert logits.ctr_B.grad[3] != 0


def test_without_any_known_conversion_the_loss_is_zero_and_differentiable() -> None:
    logits, batch = Case().logits(), make_batch(known=(False,) * 4)
    loss = conversion_loss(logits, batch)
    assert loss.item() == 0
    loss.backward()
    assert isinstance(logits.cvr_B.grad, Tensor)
    assert logits.cvr_B.grad.abs().sum() == 0


@pytest.mark.parametrize("ctr", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("cvr", [-200.0, 0.0, 200.0])
def test_however_sure_the_towers_are_loss_and_gradient_are_finite(ctr: float, cvr: float) -> None:
    logits = Case(ctr=(ctr,) * 4, cvr=(cvr,) * 4).logits()
    loss = conversion_loss(logits, make_batch())
    loss.backward()
    assert logits.ctr_B.grad is not None
    assert logits.cvr_B.grad is not None
    assert torch.isfinite(torch.stack([loss, logits.ctr_B.grad.sum(), logits.cvr_B.grad.sum()])).all()


def test_the_auxiliary_label_is_a_switch() -> None:
    logits, batch = Case().logits(), make_batch()
    clicks = -np.mean(
        [math.log(sigmoid(0.1)), math.log(sigmoid(0.2)), math.log(1 - sigmoid(-0.3)), math.log(sigmoid(0.4))]
    )
    assert auxiliary_loss(logits, batch, "clicked").item() == pytest.approx(clicks, rel=1e-6)


def test_the_auxiliary_loss_is_the_mean_over_pairs_of_the_rows_with_a_vector() -> None:
    # the second pair has vectors for the last two rows only, and the last one's conversion is not known
    case = Case(
        auxiliary=((0.1, 0.2, -0.3, 0.4), (9.0, 9.0, 0.5, -0.7)),
        vectors_known=((True,) * 4, (False, False, True, True)),
    )
    logits, batch = case.logits(), make_batch()
    first = -np.mean([math.log(sigmoid(0.1)), math.log(1 - sigmoid(0.2)), math.log(1 - sigmoid(-0.3))])
    second = -math.log(1 - sigmoid(0.5))
    assert auxiliary_loss(logits, batch, "converted").item() == pytest.approx((first + second) / 2, rel=1e-6)
    first = -np.mean(
        [math.log(sigmoid(0.1)), math.log(sigmoid(0.2)), math.log(1 - sigmoid(-0.3)), math.log(sigmoid(0.4))]
    )
    second = -np.mean([math.log(1 - sigmoid(0.5)), math.log(sigmoid(-0.7))])
    assert auxiliary_loss(logits, batch, "clicked").item() == pytest.approx((first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("label", ["clicked", "converted"])
def test_a_pair_without_any_vector_in_the_batch_costs_nothing_and_trains_nothing(label: AuxiliaryLabel) -> None:
    alone = Case().logits()
    both = Case(auxiliary=((0.1, 0.2, -0.3, 0.4), (5.0,) * 4), vectors_known=((True,) * 4, (False,) * 4)).logits()
    loss = auxiliary_loss(both, make_batch(), label)
    assert loss.item() == pytest.approx(auxiliary_loss(alone, make_batch(), label).item() / 2, rel=1e-6)
    loss.backward()
    assert both.auxiliary is not None
    gradient_AB = both.auxiliary.logit_AB.grad
    assert gradient_AB is not None
    assert gradient_AB[0].abs().sum() > 0
    assert gradient_AB[1].tolist() == [0, 0, 0, 0]


def test_without_an_auxiliary_logit_its_weight_means_nothing() -> None:
    logits, batch = Case(auxiliary=None).logits(), make_batch()
    losses = [ranker_loss(logits, batch, auxiliary_label="converted", auxiliary_weight=w).item() for w in (0.0, 9.0)]
    assert losses[0] == losses[1]


def test_reported_log_loss_is_the_training_loss_of_the_same_scores() -> None:
    logits, batch = Case().logits(), make_batch()
    p_ctr, p_cvr = (logit.detach().double().sigmoid().numpy() for logit in (logits.ctr_B, logits.cvr_B))
    reported = log_loss(
        Scores(p_ctr, p_cvr, p_ctr * p_cvr), np.array([1, 1, 0, 1], bool), np.array([1, 0, 0, -1], np.int8)
    )
    assert reported == pytest.approx((click_loss(logits, batch) + conversion_loss(logits, batch)).item(), rel=1e-6)


def test_a_certain_and_wrong_score_costs_much_but_not_infinity() -> None:
    assert cross_entropy(np.array([1.0, 0.0]), np.array([False, True])) == pytest.approx(-math.log(1e-7))
