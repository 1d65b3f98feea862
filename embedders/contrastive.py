"""LEARN's losses and the pairs they are taken over (arXiv 2405.03988).

    dense all-action InfoNCE, every sampled history position j of user i against each of the user's targets k:

    L = - mean_{i,j,k} log  exp s(U_ij,V_ik) / [ exp s(U_ij,V_ik) + sum_{z!=i} sum_{k'} exp s(U_ij,V_zk') ]
      =   mean_{i,j,k} softplus( LSE_{z!=i,k'} s(U_ij,V_zk') - s(U_ij,V_ik) ),         s = scale * cosine

What we keep: other users' targets are the negatives, the user's own other targets are not in the denominator; columns
that show the positive's item are masked; the scale is fixed at 20; no correction for popularity; negatives are those
of one device's batch. What is our proposal [NF->P]: the mean over all valid (i, j, k) as the reduction.

With one position and one target per user it is the in-batch softmax that the official code uses for its Amazon runs.

Letters: B users, H sampled history positions of each, T sampled targets of each, d width; of the whole batch M valid
positions, N valid targets, P positive pairs, G distinct items. Elsewhere N items of the catalogue, L length of a row.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

SCALE = 20.0
"""1 / temperature: a constant in the official code, also for our runs [NF->P for the industrial one]."""

OLDEST_WEIGHT, NEWEST_WEIGHT = 10.0, 10_000.0
"""alpha and beta of the recency weights."""

LEAST_SUM = 1e-30
"""Where a batch has no negative at all the loss is 0, not the logarithm of 0."""


def dense_all_action_loss(
    user_BHd: Tensor,
    user_valid_BH: Tensor,
    target_BTd: Tensor,
    target_valid_BT: Tensor,
    item_BT: Tensor,
    *,
    scale: float = SCALE,
) -> Tensor:
    """The loss above, as a scalar; 0 where nothing is valid.

    Cost: one cosine for each valid position and each valid target of the batch, M x N. The columns of the positive's
    own item are taken out of the sum of a row by summing the row per item, not by masking a copy of it per target.

    Args:
        user_BHd: unit norm.
        user_valid_BH: bool; false where a user has fewer than H positions.
        target_BTd: unit norm.
        target_valid_BT: bool.
        item_BT: which item each target is; anything at invalid places.
    """
    owner_M, owner_N = user_valid_BH.nonzero()[:, 0], target_valid_BT.nonzero()[:, 0]
    with _float32(user_BHd):
        similarity_MN = scale * (user_BHd[user_valid_BH].float() @ target_BTd[target_valid_BT].float().T)
    is_own_MN = owner_M.unsqueeze(1) == owner_N
    position_P, target_P = is_own_MN.nonzero(as_tuple=True)
    if len(position_P) == 0:
        return similarity_MN.sum()
    largest_M1 = similarity_MN.detach().amax(dim=1, keepdim=True)
    exp_MN = torch.exp(similarity_MN - largest_M1).masked_fill(is_own_MN, 0.0)

    distinct, group_N, count = torch.unique(item_BT[target_valid_BT], return_inverse=True, return_counts=True)
    is_repeated_N = count[group_N] > 1  # an item in one column only has no other column to be taken out
    # float64: where the positive's own item makes up nearly all of a sum, what is left must not be rounding
    per_item_MG = torch.zeros(len(owner_M), len(distinct), dtype=torch.float64, device=exp_MN.device)
    per_item_MG = per_item_MG.index_add(1, group_N[is_repeated_N], exp_MN[:, is_repeated_N].double())
    negatives_P = exp_MN.sum(dim=1, dtype=torch.float64)[position_P] - per_item_MG[position_P, group_N[target_P]]
    log_negatives_P = negatives_P.clamp_min(LEAST_SUM).log().float() + largest_M1[position_P, 0]
    return functional.softplus(log_negatives_P - similarity_MN[position_P, target_P]).mean()


def full_softmax_loss(user_Md: Tensor, item_M: Tensor, catalogue_Nd: Tensor, *, scale: float = SCALE) -> Tensor:
    """Cross-entropy over all items of the catalogue: the official code's finetuning objective.

    Args:
        user_Md: M user vectors, unit norm.
        item_M: the row of each one's target in the catalogue.
        catalogue_Nd: every item, unit norm, with gradient.
    """
    with _float32(user_Md):
        return functional.cross_entropy(scale * (user_Md.float() @ catalogue_Nd.float().T), item_M)


def sampled_softmax_loss(
    user_Md: Tensor,
    positive_Md: Tensor,
    item_M: Tensor,
    negative_Kd: Tensor,
    negative_K: Tensor,
    *,
    scale: float = SCALE,
) -> Tensor:
    """Cross-entropy of each target against K items drawn uniformly from the catalogue: full softmax made cheap [NF->P].

    All users share the draw. Where it holds a user's own target, that column is left out for them. A uniform draw needs
    no correction: what is left out of the sum is the same share for every item.

    Args:
        user_Md: M user vectors, unit norm.
        positive_Md: the vector of each one's target, unit norm, with gradient.
        item_M: the row of that target in the catalogue.
        negative_Kd: the drawn items, unit norm, with gradient.
        negative_K: their rows in the catalogue.
    """
    with _float32(user_Md):
        users_Md = user_Md.float()
        positive_M1 = scale * (users_Md * positive_Md.float()).sum(dim=1, keepdim=True)
        negatives_MK = scale * (users_Md @ negative_Kd.float().T)
        negatives_MK = negatives_MK.masked_fill(item_M.unsqueeze(1) == negative_K, -torch.inf)
        return (torch.logsumexp(torch.cat([positive_M1, negatives_MK], dim=1), dim=1) - positive_M1[:, 0]).mean()


def _float32(like: Tensor) -> torch.autocast:
    """No bf16 here, whatever the towers ran in: at scale 20 it would be 0.1 off in a logit."""
    return torch.autocast(like.device.type, enabled=False)


def recency_weights(lengths_B: Tensor, longest: int) -> Tensor:
    """w_i = log(alpha + i (beta - alpha) / (N - 1)) / max w, i = 0 the oldest of N; 0 beyond a row's length.

    Stage-2 sampling of the paper's second version; the direction of i is inferred from its aim. [B, longest].
    """
    index_L = torch.arange(longest, device=lengths_B.device)
    steps_B1 = (lengths_B - 1).clamp_min(1).unsqueeze(1)
    weights_BL = torch.log(OLDEST_WEIGHT + index_L * (NEWEST_WEIGHT - OLDEST_WEIGHT) / steps_B1)
    return (weights_BL / math.log(NEWEST_WEIGHT)).where(index_L < lengths_B.unsqueeze(1), 0.0)


def sample_positions(
    lengths_B: Tensor, longest: int, num_positions: int, *, recency: bool, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Stage 2: positions of each row, drawn without replacement in proportion to their weight [NF->P].

    Args:
        lengths_B: valid positions of each row, counted from 0.
        longest: width of the padded rows.
        num_positions: drawn per row; a shorter row gives all it has.
        recency: newer positions are heavier, or all alike.
        generator: of the draw.

    Returns:
        positions [B, P] int64 and which of them are valid [B, P], P = min(num_positions, longest).
    """
    if recency:
        weights_BL = recency_weights(lengths_B, longest)
    else:
        weights_BL = (torch.arange(longest, device=lengths_B.device) < lengths_B.unsqueeze(1)).float()
    # the largest of log w + Gumbel noise are a draw without replacement in proportion to w
    uniform_BL = torch.rand(weights_BL.shape, generator=generator, device=weights_BL.device)
    keys_BL = weights_BL.log() - torch.log(-torch.log(uniform_BL.clamp(1e-20, 1 - 1e-7)))
    top = keys_BL.topk(min(num_positions, longest), dim=1)
    return top.indices, top.values > -torch.inf
