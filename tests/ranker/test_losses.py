import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ranker.batches import Batch
from ranker.ctr_cvr import Logits
from ranker.losses import auxiliary_loss, click_loss, conversion_loss, cross_entropy, log_loss, ranker_loss
from ranker.ranker import Scores


@dataclass
class Case:
    """Four impressions, the last one too young for its conversion to be known."""

    ctr: tuple[float, ...] = (0.0, 2.0, -1.0, 0.5)
    cvr: tuple[float, ...] = (0.0, -1.0, 3.0, 0.5)
    auxiliary: tuple[float, ...] | None = (0.1, 0.2, -0.3, 0.4)

    def logits(self) -> Logits:
        auxiliary = None if self.auxiliary is None else torch.tensor(self.auxiliary, requires_grad=True)
        return Logits(torch.tensor(self.ctr, requires_grad=True), torch.tensor(self.cvr, requires_grad=True), auxiliary)


def make_batch(known: tuple[bool, ...] = (True, True, True, False)) -> Batch:
    empty = torch.empty(4, 0)
    return Batch(
        ids_BF=empty.int(),
        scalars_BS=empty,
        history_BL=empty.int(),
        user_vector_BV=None,
        user_known_B=None,
        item_vector_BV=None,
        item_known_B=None,
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
