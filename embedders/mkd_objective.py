"""What a student learns from a batch: MKD's losses, weighted and added up (arXiv 2411.13045; formulas [NF->P]).

    interaction     L = hard CE(y, z) + alpha tau^2 KL(p_T^tau || softmax(z / tau)) + alpha_list KL_list
                        + beta sum_a CE(m_a, head_a) + gamma BCE(highlight)
    representation  L = hard BCE(y, s) + alpha BCE(score_T, sigmoid(s)) + alpha_list KL_list
                        + beta [ CE(query's attributes | f(q)) + CE(item's attributes | f(i)) ] + gamma L_con

A weight of 0 switches a loss off: it is not computed.

Letters: B pairs, K labels, A steps, C attributes, L tokens, Q distinct queries and I distinct items of the batch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedders import mkd_losses as losses
from embedders.mkd import InteractionOutputs, RepresentationOutputs, RepresentationStudent
from embedders.mkd_contrast import contrasts
from embedders.mkd_losses import UNKNOWN
from embedders.teacher_signal import TeacherSignal


@dataclass(frozen=True)
class LossWeights:
    """Every loss and its weight; 0 is off. The defaults are the card's, which are proposals [NF->P]."""

    hard: float = 1.0
    """Human labels."""
    alpha: float = 1.0
    """The teacher's score distribution."""
    alpha_list: float = 1.0
    """How the teacher orders a query's items. The card has it for the representation student only."""
    beta: float = 0.3
    """The steps of the reasoning (interaction), the attributes of both texts (representation)."""
    gamma: float = 0.1
    """Cited tokens (interaction), contrast (representation)."""
    tau: float = 2.0
    """Temperature of the score distribution and of the lists."""
    hard_negative: float = 2.0
    """How many other negatives one that differs in exactly one step is worth."""

    def __post_init__(self) -> None:
        negative = [f"{name} = {value}" for name, value in vars(self).items() if value < 0]
        if negative or self.tau == 0:
            raise ValueError(f"LossWeights: weights are 0 or more and tau is above 0, got {negative or 'tau = 0'}")


class SignalBatch(NamedTuple):
    """Rows of a teacher's signal on the device of the student."""

    query_B: Tensor
    label_B: Tensor
    teacher_BK: Tensor
    match_BA: Tensor
    query_class_BC: Tensor
    item_class_BC: Tensor

    @classmethod
    def of(cls, signal: TeacherSignal, rows_B: NDArray[np.int64], device: torch.device) -> "SignalBatch":
        """The rows of these pairs."""
        parts = (
            signal.query_N,
            signal.label_N,
            signal.probabilities_NK,
            signal.match_NA,
            signal.query_class_NC,
            signal.item_class_NC,
        )
        return cls(*(torch.from_numpy(part[rows_B]).to(device) for part in parts))

    def scores(self) -> Tensor:
        """The teacher's expected label in [0, 1]; NaN where unknown."""
        return losses.expected_score(self.teacher_BK)

    def label_scores(self) -> Tensor:
        """The human's label in [0, 1]; NaN where unknown."""
        score_B = self.label_B.float() / (self.teacher_BK.shape[1] - 1)
        return score_B.masked_fill(self.label_B == UNKNOWN, torch.nan)

    def verdicts(self) -> Tensor:
        """1 good, 0 bad, UNKNOWN: the teacher's verdict, the human's where there is none."""
        score_B = self.scores()
        score_B = torch.where(score_B.isnan(), self.label_scores(), score_B)
        return torch.where(score_B.isnan(), UNKNOWN, (score_B >= 0.5).long())


def interaction_losses(
    outputs: InteractionOutputs, signal: SignalBatch, highlight_BL: Tensor | None, weights: LossWeights
) -> dict[str, Tensor]:
    """Each loss of a cross-encoder that is switched on, times its weight; L is their sum."""
    parts: dict[str, Tensor] = {}
    if weights.hard:
        parts["hard"] = weights.hard * losses.hard_label_loss(outputs.logit_NK, signal.label_B)
    if weights.alpha:
        distilled = losses.score_distillation_loss(outputs.logit_NK, signal.teacher_BK, tau=weights.tau)
        parts["score"] = weights.alpha * distilled
    if weights.alpha_list:
        parts["list"] = weights.alpha_list * _listwise(losses.log_odds(outputs.logit_NK), signal, weights)
    if weights.beta:
        parts["steps"] = weights.beta * losses.steps_loss(outputs.match_NA2, signal.match_BA)
    if weights.gamma and highlight_BL is not None:
        parts["highlight"] = weights.gamma * losses.highlight_loss(outputs.highlight_NL, highlight_BL)
    return parts


def representation_losses(
    student: RepresentationStudent,
    queries: RepresentationOutputs,
    items: RepresentationOutputs,
    query_at_B: Tensor,
    item_at_B: Tensor,
    signal: SignalBatch,
    weights: LossWeights,
) -> dict[str, Tensor]:
    """Each loss of a bi-encoder that is switched on, times its weight; L is their sum.

    Args:
        student: for kappa and b.
        queries: of the Q distinct queries of the batch.
        items: of its I distinct items.
        query_at_B: place of each pair's query among the Q.
        item_at_B: place of its item among the I.
        signal: of the pairs.
        weights: of the losses.
    """
    parts: dict[str, Tensor] = {}
    log_odds_B = student.log_odds((queries.vector_ND[query_at_B] * items.vector_ND[item_at_B]).sum(dim=1))
    if weights.hard:
        parts["hard"] = weights.hard * losses.score_loss(log_odds_B, signal.label_scores())
    if weights.alpha:
        parts["score"] = weights.alpha * losses.score_loss(log_odds_B, signal.scores())
    if weights.alpha_list:
        parts["list"] = weights.alpha_list * _listwise(log_odds_B, signal, weights)
    item_class_IC = _of_texts(signal.item_class_BC, item_at_B, len(items.vector_ND))
    if weights.beta and queries.class_logits:
        query_class_QC = _of_texts(signal.query_class_BC, query_at_B, len(queries.vector_ND))
        parts["attributes"] = weights.beta * (
            losses.classes_loss(queries.class_logits, query_class_QC)
            + losses.classes_loss(items.class_logits, item_class_IC)
        )
    if weights.gamma:
        relations = contrasts(
            query_at_B, item_at_B, signal.verdicts(), signal.match_BA, item_class_IC, len(queries.vector_ND)
        )
        with torch.autocast(query_at_B.device.type, enabled=False):
            cosine_QI = functional.linear(queries.vector_ND, items.vector_ND)
        contrast = losses.contrastive_loss(cosine_QI, relations.positive, relations.weights(weights.hard_negative))
        parts["contrast"] = weights.gamma * contrast
    return parts


def _listwise(log_odds_B: Tensor, signal: SignalBatch, weights: LossWeights) -> Tensor:
    teacher_B = losses.teacher_log_odds(signal.teacher_BK)
    return losses.listwise_loss(log_odds_B, teacher_B, signal.query_B, tau=weights.tau)


def _of_texts(class_BC: Tensor, at_B: Tensor, num_texts: int) -> Tensor:
    """Classes of distinct texts from those of pairs: the largest where pairs differ, so known before UNKNOWN."""
    class_TC = torch.full((num_texts, class_BC.shape[1]), UNKNOWN, dtype=class_BC.dtype, device=class_BC.device)
    return class_TC.scatter_reduce(0, at_B.unsqueeze(1).expand_as(class_BC), class_BC, reduce="amax")
