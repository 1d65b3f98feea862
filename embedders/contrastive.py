"""LEARN's losses and the pairs they are taken over (arXiv 2405.03988).

    dense all-action InfoNCE, every sampled history position j of user i against each of the user's targets k:

    L = - mean_{i,j,k} log  exp s(U_ij,V_ik) / [ exp s(U_ij,V_ik) + sum_{z!=i} sum_{k'} exp s(U_ij,V_zk') ]
      =   mean_{i,j,k} softplus( LSE_{z!=i,k'} s(U_ij,V_zk') - s(U_ij,V_ik) ),         s = scale * cosine

What we keep: other users' targets are the negatives, the user's own other targets are not in the denominator; columns
that show the positive's item are masked; the scale is fixed at 20; no correction for popularity; negatives are those
of one device's batch. What is our proposal [NF->P]: the mean over all valid (i, j, k) as the reduction.

With one position and one target per user it is the in-batch softmax that the official code uses for its Amazon runs.

Letters: B users, H sampled history positions, T sampled targets, N items of the catalogue, d width.
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

    Cost: B*H x B*T cosines, once. The columns of the positive's own item are taken out of the sum of a row by summing
    the row per item, instead of masking a copy of the row for each target.

    Args:
        user_BHd: unit norm.
        user_valid_BH: bool; false where a user has fewer than H positions.
        target_BTd: unit norm.
        target_valid_BT: bool.
        item_BT: which item each target is; anything at invalid places.
    """
    num_users, num_targets, width = target_BTd.shape
    with _float32(user_BHd):
        similarity_BHN = scale * (user_BHd.reshape(-1, width).float() @ target_BTd.reshape(-1, width).float().T)
    similarity_BHN = similarity_BHN.view(num_users, -1, num_users * num_targets)
    positive_BHT = similarity_BHN.view(num_users, -1, num_users, num_targets)[
        torch.arange(num_users), :, torch.arange(num_users)
    ]
    column_owner_N = torch.arange(num_users, device=item_BT.device).repeat_interleave(num_targets)
    is_negative_BN = target_valid_BT.reshape(1, -1) & (
        column_owner_N != torch.arange(num_users, device=item_BT.device).unsqueeze(1)
    )
    largest_BH1 = similarity_BHN.detach().amax(dim=2, keepdim=True)
    # float64: where the positive's own item makes up nearly all of a sum, what is left must not be rounding
    exp_BHN = (torch.exp(similarity_BHN - largest_BH1) * is_negative_BN.unsqueeze(1)).double()
    distinct, item_of_column_N = torch.unique(item_BT.reshape(-1), return_inverse=True)
    per_item_BHG = exp_BHN.new_zeros(*exp_BHN.shape[:2], len(distinct)).index_add(2, item_of_column_N, exp_BHN)
    same_item_BHT = per_item_BHG.gather(
        2, item_of_column_N.view(num_users, 1, num_targets).expand(-1, user_BHd.shape[1], -1)
    )
    negatives_BHT = (exp_BHN.sum(dim=2, keepdim=True) - same_item_BHT).clamp_min(LEAST_SUM)
    loss_BHT = functional.softplus(negatives_BHT.log().float() + largest_BH1 - positive_BHT)
    valid_BHT = user_valid_BH.unsqueeze(2) & target_valid_BT.unsqueeze(1)
    return (loss_BHT * valid_BHT).sum() / valid_BHT.sum().clamp_min(1)


def full_softmax_loss(user_Md: Tensor, item_M: Tensor, catalogue_Nd: Tensor, *, scale: float = SCALE) -> Tensor:
    """Cross-entropy over all items of the catalogue: the official code's finetuning objective.

    Args:
        user_Md: M user vectors, unit norm.
        item_M: the row of each one's target in the catalogue.
        catalogue_Nd: every item, unit norm, with gradient.
    """
    with _float32(user_Md):
        return functional.cross_entropy(scale * (user_Md.float() @ catalogue_Nd.float().T), item_M)


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
