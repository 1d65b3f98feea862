"""The losses of MKD, each a function of tensors (ELLM-rele + MKD, arXiv 2411.13045; formulas [NF->P]).

    hard label              CE(y, z)                         of a cross-encoder's logits
                            BCE(y / (K - 1), s)              of a bi-encoder's log-odds
    score distribution      tau^2 KL(p_T^tau || softmax(z / tau)),  p_T^tau = softmax(log p_T / tau)
                            BCE(score_T, sigmoid(s))
    listwise, per query     KL(softmax_i(l_T / tau) || softmax_i(s / tau)),  l_T the teacher's log-odds
    steps of the reasoning  sum_a CE(m_a, head_a),  m_a match or mismatch
    attributes              sum_c CE(class_c, head_c),  of a query's or an item's category, brand, ...
    highlight               BCE over tokens: is this token of what the reasoning cites?
    contrastive             InfoNCE; negatives that differ in exactly one step weigh more

Each is the mean over what is known: a pair without the signal, a masked step, a query with a single pair add nothing,
neither to the loss nor to what it is divided by. Where nothing is known the loss is 0, with a gradient of 0. All are
float32; call them outside autocast.

Letters: B pairs, K labels, A steps, C attributes, G classes of one attribute, L tokens, Q queries, I items.
"""

import torch
from torch import Tensor
from torch.nn import functional

from embedders.contrastive import SCALE

UNKNOWN = -1
"""Of a label, a step, a class, a token: nobody said. Probabilities and scores that nobody gave are NaN."""

LEAST_PROBABILITY = 1e-3
"""Of the teacher where its log-odds are taken: a mean over a few chains is no surer than that."""

FAR_BELOW = -1e9
"""A logit whose softmax is 0 in float32 and whose gradient, unlike that of -inf, is 0 and not NaN."""


def log_odds(logit_BK: Tensor) -> Tensor:
    """Log-odds of the expected label: log sum_k k p_k - log sum_k (K - 1 - k) p_k, with p = softmax(logits).

    For two labels it is the difference of the logits. Log-probabilities do as well as logits. [B]
    """
    most = logit_BK.shape[-1] - 1
    step_K = torch.arange(1, most + 1, dtype=logit_BK.dtype, device=logit_BK.device)
    return torch.logsumexp(logit_BK[:, 1:] + step_K.log(), dim=1) - torch.logsumexp(
        logit_BK[:, :-1] + step_K.flip(0).log(), dim=1
    )


def expected_score(probability_BK: Tensor) -> Tensor:
    """sum_k k p_k / (K - 1), in [0, 1]; for two labels the probability of the second (good). [B]"""
    step_K = torch.arange(probability_BK.shape[-1], dtype=probability_BK.dtype, device=probability_BK.device)
    return (probability_BK * step_K).sum(dim=1) / (len(step_K) - 1)


def hard_label_loss(logit_BK: Tensor, label_B: Tensor) -> Tensor:
    """Cross-entropy with the human's labels, 0 to K - 1 or UNKNOWN."""
    known_B = label_B != UNKNOWN
    if not known_B.any():
        return 0.0 * logit_BK.sum()
    return functional.cross_entropy(logit_BK[known_B], label_B[known_B].long())


def score_distillation_loss(logit_BK: Tensor, teacher_BK: Tensor, *, tau: float) -> Tensor:
    """tau^2 KL(teacher || student), both softened by the temperature.

    tau^2 keeps the gradient's size as tau grows: without it the soft part would vanish beside the hard labels.

    Args:
        logit_BK: of the student.
        teacher_BK: probabilities, each row adding up to 1; a row of NaN is unknown. A probability may be 0.
        tau: 1 is the plain distribution; more is softer.
    """
    known_B = ~teacher_BK.isnan().any(dim=1)
    if not known_B.any():
        return 0.0 * logit_BK.sum()
    softened = torch.softmax(teacher_BK[known_B].log() / tau, dim=1)
    student = functional.log_softmax(logit_BK[known_B] / tau, dim=1)
    # xlogy: a label that the teacher rules out adds 0, not 0 * -inf
    divergence = torch.xlogy(softened, softened) - softened * student
    return tau**2 * divergence.sum(dim=1).mean()


def score_loss(log_odds_B: Tensor, score_B: Tensor) -> Tensor:
    """BCE of a student's log-odds with scores in [0, 1]; NaN is unknown."""
    known_B = ~score_B.isnan()
    if not known_B.any():
        return 0.0 * log_odds_B.sum()
    return functional.binary_cross_entropy_with_logits(log_odds_B[known_B], score_B[known_B])


def teacher_log_odds(teacher_BK: Tensor) -> Tensor:
    """What the listwise loss compares the student's log-odds with; NaN where the teacher is. [B]"""
    return log_odds(teacher_BK.clamp_min(LEAST_PROBABILITY).log())


def listwise_loss(log_odds_B: Tensor, teacher_B: Tensor, query_B: Tensor, *, tau: float) -> Tensor:
    """KL between how the teacher and how the student divide a query's attention over its items; mean over queries.

    Card: softmax_i(score_T / tau) on the teacher's side. Differs [NF->P]: its log-odds stand in for the score. A score
    in [0, 1] cannot be the log-odds that the other losses ask of the student, so the two would pull apart; log-odds
    agree, and the loss is 0 where student and teacher differ by a constant.

    Args:
        log_odds_B: the student's.
        teacher_B: the teacher's, NaN where unknown; such pairs are not of the list.
        query_B: which query each pair is of. A query with fewer than two known pairs says nothing.
        tau: temperature, of both sides.
    """
    known_B = ~teacher_B.isnan()
    student, teacher = log_odds_B[known_B] / tau, teacher_B[known_B] / tau
    _, group, size_Q = torch.unique(query_B[known_B], return_inverse=True, return_counts=True)
    own_QB = (group == torch.arange(len(size_Q), device=group.device).unsqueeze(1))[size_Q > 1]
    if len(own_QB) == 0:
        return 0.0 * log_odds_B.sum()
    teacher_QB = functional.log_softmax(teacher.expand(own_QB.shape).masked_fill(~own_QB, FAR_BELOW), dim=1)
    student_QB = functional.log_softmax(student.expand(own_QB.shape).masked_fill(~own_QB, FAR_BELOW), dim=1)
    divergence_QB = teacher_QB.exp() * (teacher_QB - student_QB)
    return divergence_QB.masked_fill(~own_QB, 0.0).sum(dim=1).mean()


def steps_loss(logit_BA2: Tensor, match_BA: Tensor) -> Tensor:
    """Cross-entropy of each step (match 0, mismatch 1), summed over the steps.

    Anything else in `match_BA` (not asked for, unknown) is masked, so two classes are all that a head needs.
    """
    known_BA = (match_BA == 0) | (match_BA == 1)
    target_BA = torch.where(known_BA, match_BA, 0).long()
    loss_BA = functional.cross_entropy(logit_BA2.transpose(1, 2), target_BA, reduction="none")
    return ((loss_BA * known_BA).sum(dim=0) / known_BA.sum(dim=0).clamp_min(1)).sum()


def classes_loss(logits: list[Tensor], class_BC: Tensor) -> Tensor:
    """Cross-entropy of each attribute's class, summed over the attributes; UNKNOWN is masked.

    Args:
        logits: C tensors [B, G], one an attribute, of as many classes as it has.
        class_BC: 0 to G - 1, or UNKNOWN.
    """
    total = torch.zeros((), device=class_BC.device)
    for logit_BG, class_B in zip(logits, class_BC.unbind(dim=1), strict=True):
        total = total + hard_label_loss(logit_BG, class_B)
    return total


def highlight_loss(logit_BL: Tensor, highlight_BL: Tensor) -> Tensor:
    """BCE over the tokens of known pairs: 1 cited, 0 not, UNKNOWN masked (padding, special tokens, pairs without)."""
    known_BL = highlight_BL != UNKNOWN
    if not known_BL.any():
        return 0.0 * logit_BL.sum()
    return functional.binary_cross_entropy_with_logits(logit_BL[known_BL], highlight_BL[known_BL].to(logit_BL.dtype))


def contrastive_loss(cosine_QI: Tensor, positive_QI: Tensor, weight_QI: Tensor, *, scale: float = SCALE) -> Tensor:
    """InfoNCE of queries against the items of the batch.

        - mean_q mean_{i in P(q)} log  exp(s_qi) / [ exp(s_qi) + sum_n w_qn exp(s_qn) ],   s = scale * cosine

    A query's other positives are not in the denominator. Queries without a positive or without a negative are left out.

    Args:
        cosine_QI: in [-1, 1].
        positive_QI: bool.
        weight_QI: how many times a negative counts; 0 for all that is none.
        scale: 1 / temperature.
    """
    asked_Q = positive_QI.any(dim=1) & (weight_QI > 0).any(dim=1)
    if not asked_Q.any():
        return 0.0 * cosine_QI.sum()
    similarity_QI, positive_QI, weight_QI = scale * cosine_QI[asked_Q], positive_QI[asked_Q], weight_QI[asked_Q]
    is_negative_QI = weight_QI > 0
    log_weight_QI = weight_QI.clamp_min(torch.finfo(weight_QI.dtype).tiny).log()
    negatives_Q1 = torch.logsumexp(
        (similarity_QI + log_weight_QI).masked_fill(~is_negative_QI, FAR_BELOW), dim=1, keepdim=True
    )
    loss_QI = functional.softplus(negatives_Q1 - similarity_QI).masked_fill(~positive_QI, 0.0)
    return (loss_QI.sum(dim=1) / positive_QI.sum(dim=1)).mean()
