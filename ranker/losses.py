"""Losses of the ranker: clicks and conversions over the entire space (ESMM), and the auxiliary network's own.

    L_rank = BCE(clicked, p_ctr) + BCE(converted, p_ctr * p_cvr)
    L      = L_rank + L_aux             the fusion vector is detached: L_aux alone trains the auxiliary network
    L      = L_rank + 0.1 L_aux         joint
The weight 0.1 is our proposal; LEARN does not say.

A conversion that is not known yet is left out of the conversion losses, never counted as "no".
With several pairs of vectors L_aux is the mean of their losses, each over the impressions for which one of its
vectors at least is known: a pair may exist from some day on only, and before it there is nothing to learn [NF->P].
    B batch   N examples   A pairs of vectors
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ranker.batches import UNKNOWN_LABEL, Batch
from ranker.ctr_cvr import Logits
from ranker.ranker import Scores

AuxiliaryLabel = Literal["converted", "clicked"]

JOINT_AUXILIARY_WEIGHT = 0.1
SMALLEST_PROBABILITY = 1e-7
"""Reported log losses are cut here, so that one certain and wrong score does not make the mean infinite."""


def click_loss(logits: Logits, batch: Batch) -> Tensor:
    """Mean BCE of clicks, in nats."""
    return functional.binary_cross_entropy_with_logits(logits.ctr_B, batch.clicked_B)


def conversion_loss(logits: Logits, batch: Batch) -> Tensor:
    """Mean BCE of p_ctr * p_cvr against `converted`, over the rows where it is known (0 where none is).

    In logs: log p_ctcvr is a sum of two logsigmoids, and 1 - p_ctcvr = (1 - p_ctr) + p_ctr (1 - p_cvr), whose log is
    a logaddexp. Nothing underflows, however sure the towers are.
    """
    log_ctr_B = functional.logsigmoid(logits.ctr_B)
    log_ctcvr_B = log_ctr_B + functional.logsigmoid(logits.cvr_B)
    log_not_ctcvr_B = torch.logaddexp(
        functional.logsigmoid(-logits.ctr_B), log_ctr_B + functional.logsigmoid(-logits.cvr_B)
    )
    loss_B = -torch.where(batch.converted_B > 0, log_ctcvr_B, log_not_ctcvr_B)
    return _masked_mean(loss_B, batch.converted_known_B)


def auxiliary_loss(logits: Logits, batch: Batch, label: AuxiliaryLabel) -> Tensor:
    """Mean over the pairs of the mean BCE of their logit, over impressions with a known label and a known vector.

    A pair without such an impression in the batch counts as 0 and trains nothing.
    """
    assert logits.auxiliary is not None, "only a network with auxiliary networks has this loss"
    logit_AB, counted_AB = logits.auxiliary
    label_B = batch.clicked_B
    if label == "converted":
        label_B, counted_AB = batch.converted_B, counted_AB & batch.converted_known_B
    loss_AB = functional.binary_cross_entropy_with_logits(logit_AB, label_B.expand_as(logit_AB), reduction="none")
    return _masked_mean(loss_AB, counted_AB).mean()


def ranker_loss(logits: Logits, batch: Batch, *, auxiliary_label: AuxiliaryLabel, auxiliary_weight: float) -> Tensor:
    """All losses of one batch, a scalar."""
    loss = click_loss(logits, batch) + conversion_loss(logits, batch)
    if logits.auxiliary is not None:
        loss = loss + auxiliary_weight * auxiliary_loss(logits, batch, auxiliary_label)
    return loss


def log_loss(scores: Scores, clicked_N: NDArray[np.bool_], converted_N: NDArray[np.int8]) -> float:
    """L_rank of finished scores: what validation reports, for networks and trees alike.

    Args:
        scores: probabilities.
        clicked_N: labels.
        converted_N: 1, 0, or -1 where not known yet.
    """
    known_N = converted_N != UNKNOWN_LABEL
    loss = cross_entropy(scores.p_ctr, clicked_N)
    if known_N.any():
        loss += cross_entropy(scores.p_ctcvr[known_N], converted_N[known_N] == 1)
    return loss


def _masked_mean(loss_XB: Tensor, known_XB: Tensor) -> Tensor:
    """Mean over the last axis; 0 where nothing is known."""
    return torch.where(known_XB, loss_XB, 0.0).sum(dim=-1) / known_XB.sum(dim=-1).clamp(min=1)


def cross_entropy(probability_N: NDArray[np.float64], label_N: NDArray[np.bool_]) -> float:
    """Mean log loss of finished probabilities, in nats."""
    right_N = np.where(label_N, probability_N, 1.0 - probability_N)
    return float(-np.log(right_N.clip(SMALLEST_PROBABILITY)).mean())
