"""KARMA's losses, each a function of tensors (arXiv 2603.22779).

    L_act   = mean_k [ v mean_{j in batch} l_kj + w mean_{j exposed} l_kj + mean_{j sampled} l_kj ]
              l_kj = -log sigmoid( s(h_k, e_k) - s(h_k, e_j) )                every negative below the target
    L_gen   = mean over words of -log p(word | words before it, history)      the title, with the history in sight
    L_recon = mean over words of -log p(word | words before it, h)            the title, from the user's vector alone
    L_img   = E | g(x_tau, tau, c) - (v - eps) |^2,  x_tau = (1 - tau) eps + tau v      rectified flow to the picture

    L       = L_act + lambda (L_gen + L_recon + L_img)

What we keep: the action loss is pairwise logistic, over items that were shown and not clicked and over the batch;
InfoNCE is the switch. Ours [NF->P]: s = scale * cosine, or the raw dot product; means where the paper writes sums; a
uniform sample of the catalogue as a third kind of negatives, without which nothing is learnt of what is rarely chosen,
and with which the batch is left out by default (`embedders.karma_settings`); of L_img everything but that it conditions
on the history or on h (a diffusion or a flow, which network, what v is standardised by).

All are float32, whatever they are called in; but the words' logits are computed in the precision of the pass. Where
there is nothing to learn from a loss is 0, with a gradient of 0.

Letters: K read-outs, J targets of the batch (J = K), M exposed items of a read-out, S sampled items, T words, W
vocabulary, D width of the language model, d width of users and items, V of images, C of the condition, H hidden.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedders.contrastive import SCALE

FASTEST = 1000.0
"""Radians per unit of tau of the fastest sine that tells tau, in [0, 1], to the flow; the slowest has 1."""


class SampledItems(NamedTuple):
    """Items of the catalogue that all read-outs of a step are compared with.

    Attributes:
        items_Sd: their vectors.
        item_S: which items these are.
        known_KS: bool; whether a read-out's user could have chosen them.
    """

    items_Sd: Tensor
    item_S: Tensor
    known_KS: Tensor


def pairwise_action_loss(
    user_Kd: Tensor,
    positive_Kd: Tensor,
    item_K: Tensor,
    owner_K: Tensor,
    exposed_KMd: Tensor | None = None,
    exposed_valid_KM: Tensor | None = None,
    sampled: SampledItems | None = None,
    *,
    scale: float | None = SCALE,
    in_batch_weight: float = 1.0,
    exposed_weight: float = 1.0,
) -> Tensor:
    """L_act: every negative by itself must score below the target.

    In-batch negatives of a read-out are the targets of other users, but for those that show an item which is a target
    of its own user, too; so are sampled items, but for the same. Exposed negatives are its own. The mean is over all
    read-outs; one without negatives of a kind adds 0 for that kind.

    Args:
        user_Kd: h of each read-out.
        positive_Kd: vector of its target.
        item_K: which item that is.
        owner_K: which user of the batch it belongs to, from 0.
        exposed_KMd: vectors of items shown beside the target and not clicked; anything at invalid places.
        exposed_valid_KM: bool. The target itself must not be among them.
        sampled: of the catalogue.
        scale: of the products; None: as they are.
        in_batch_weight: of the in-batch negatives' mean; that of the sampled ones has 1.
        exposed_weight: of the exposed ones'.
    """
    of_exposed = (exposed_KMd, exposed_valid_KM, exposed_weight)
    positive_K1, kinds = _scores(user_Kd, positive_Kd, item_K, owner_K, of_exposed, sampled, scale, in_batch_weight)
    loss_K = 0.0 * positive_K1[:, 0]  # a step has a gradient even where nobody has a negative
    for kind in kinds:
        loss_K = loss_K + kind.weight * _mean_where(functional.softplus(kind.score_KM - positive_K1), kind.valid_KM)
    return loss_K.sum() / max(1, len(loss_K))


def infonce_action_loss(
    user_Kd: Tensor,
    positive_Kd: Tensor,
    item_K: Tensor,
    owner_K: Tensor,
    exposed_KMd: Tensor | None = None,
    exposed_valid_KM: Tensor | None = None,
    sampled: SampledItems | None = None,
    *,
    scale: float | None = SCALE,
    in_batch_weight: float = 1.0,
    exposed_weight: float = 1.0,
) -> Tensor:
    """The switch: softmax over the target and the same negatives, mean over read-outs.

        -log  exp s+ / (exp s+  +  v sum_{j in batch} exp s_j  +  w sum_{j exposed} exp s_j  +  sum_{j sampled} exp s_j)

    Arguments are those of `pairwise_action_loss`; a weight counts an item as so many.
    """
    of_exposed = (exposed_KMd, exposed_valid_KM, exposed_weight)
    positive_K1, kinds = _scores(user_Kd, positive_Kd, item_K, owner_K, of_exposed, sampled, scale, in_batch_weight)
    logits = [positive_K1]
    for kind in kinds:
        if kind.weight > 0.0:
            logits.append((kind.score_KM + math.log(kind.weight)).masked_fill(~kind.valid_KM, -torch.inf))
    loss_K = torch.logsumexp(torch.cat(logits, dim=1), dim=1) - positive_K1.squeeze(1)
    return loss_K.sum() / max(1, len(loss_K))


class _Negatives(NamedTuple):
    """Of one kind: scores of each read-out, which of them count, and how much their mean does."""

    score_KM: Tensor
    valid_KM: Tensor
    weight: float


def _scores(
    user_Kd: Tensor,
    positive_Kd: Tensor,
    item_K: Tensor,
    owner_K: Tensor,
    of_exposed: tuple[Tensor | None, Tensor | None, float],
    sampled: SampledItems | None,
    scale: float | None,
    in_batch_weight: float,
) -> tuple[Tensor, list[_Negatives]]:
    """Of the target [K, 1], and of each kind of negatives; of K read-outs K x K in-batch scores are made if wanted."""
    exposed_KMd, exposed_valid_KM, exposed_weight = of_exposed
    with _float32(user_Kd):
        users_Kd = (1.0 if scale is None else scale) * user_Kd.float()
        positive_K1 = (users_Kd * positive_Kd.float()).sum(dim=1, keepdim=True)
        kinds = []
        if in_batch_weight > 0.0:
            is_own_KJ = _is_target_of_the_same_owner(item_K, owner_K, item_K)
            kinds.append(_Negatives(users_Kd @ positive_Kd.float().T, ~is_own_KJ, in_batch_weight))
        if exposed_KMd is not None:
            assert exposed_valid_KM is not None, "exposed vectors need to say which of them are there"
            exposed_KM = (users_Kd.unsqueeze(1) * exposed_KMd.float()).sum(dim=2)
            kinds.append(_Negatives(exposed_KM, exposed_valid_KM, exposed_weight))
        if sampled is not None:
            is_own_KS = _is_target_of_the_same_owner(item_K, owner_K, sampled.item_S)
            kinds.append(_Negatives(users_Kd @ sampled.items_Sd.float().T, sampled.known_KS & ~is_own_KS, 1.0))
    return positive_K1, kinds


def _is_target_of_the_same_owner(item_K: Tensor, owner_K: Tensor, item_J: Tensor) -> Tensor:
    """Whether a column's item is what the user of a row's read-out is to find here or in another read-out. [K, J]"""
    distinct, group = torch.unique(torch.cat([item_K, item_J]), return_inverse=True)
    group_K, group_J = group[: len(item_K)], group[len(item_K) :]
    num_owners = int(owner_K.max()) + 1 if len(owner_K) else 0
    is_target = torch.zeros(num_owners, len(distinct), dtype=torch.bool, device=item_K.device)
    is_target[owner_K, group_K] = True
    return is_target[:, group_J][owner_K]


def _mean_where(values_KJ: Tensor, valid_KJ: Tensor) -> Tensor:
    """Mean of each row's valid values, 0 where it has none. [K]"""
    return values_KJ.where(valid_KJ, 0.0).sum(dim=1) / valid_KJ.sum(dim=1).clamp_min(1)


def title_loss(state_TD: Tensor, output_WD: Tensor, word_T: Tensor) -> Tensor:
    """L_gen and L_recon: mean cross-entropy of the words, over the states that predict one and no others.

    A word costs the logits of the whole vocabulary, which are as dear as eight layers of a small model: positions that
    predict nothing should not be here.

    Args:
        state_TD: the language model's last states.
        output_WD: its output embeddings.
        word_T: the word to predict, of the vocabulary.
    """
    if len(word_T) == 0:
        return 0.0 * state_TD.float().sum()
    logits_TW = functional.linear(state_TD, output_WD)
    with _float32(state_TD):
        return functional.cross_entropy(logits_TW.float(), word_T)


class VelocityField(Protocol):
    """What `flow_loss` trains."""

    def standardised(self, image_KV: Tensor) -> Tensor:
        """Images as the flow's end point."""
        ...

    def __call__(self, noisy_KV: Tensor, tau_K: Tensor, condition_KC: Tensor) -> Tensor:
        """The velocity at a point, at a time, [K, V]."""
        ...


class ImageFlow(nn.Module):
    """g of L_img: three linear layers, the two inner activations shifted and scaled by tau and condition (AdaLN).

    It is there in training only. The last layer starts at 0: L_img begins at E|v - eps|^2, which is 2.

    Args:
        mean_V: of the images.
        scale_V: 1 / standard deviation of each coordinate.
        condition_dim: C.
        hidden: H.
    """

    mean_V: Tensor
    scale_V: Tensor

    def __init__(self, mean_V: Tensor, scale_V: Tensor, condition_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.hidden = hidden
        self.register_buffer("mean_V", mean_V.detach().clone())
        self.register_buffer("scale_V", scale_V.detach().clone())
        self.condition = nn.Sequential(nn.RMSNorm(condition_dim), nn.Linear(condition_dim, hidden))
        self.time = nn.Linear(hidden, hidden)
        self.modulation = nn.Linear(hidden, 4 * hidden)
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.first = nn.Linear(len(mean_V), hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, len(mean_V))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def standardised(self, image_KV: Tensor) -> Tensor:
        """Images with mean 0 and standard deviation 1 in each coordinate: as wide as the noise."""
        return (image_KV - self.mean_V) * self.scale_V

    def forward(self, noisy_KV: Tensor, tau_K: Tensor, condition_KC: Tensor) -> Tensor:
        """The velocity at `noisy_KV` at time tau, 0 noise and 1 image. [K, V]"""
        half = self.hidden // 2
        radians = torch.logspace(0.0, math.log10(FASTEST), half, device=tau_K.device)
        angle_KH = tau_K.unsqueeze(1) * radians
        times_KH = functional.pad(torch.cat([angle_KH.sin(), angle_KH.cos()], dim=1), (0, self.hidden - 2 * half))
        known_KH = functional.silu(self.time(times_KH) + self.condition(condition_KC))
        shift_1, scale_1, shift_2, scale_2 = self.modulation(known_KH).chunk(4, dim=1)
        x_KH = functional.silu(self.norm(self.first(noisy_KV)) * (1 + scale_1) + shift_1)
        x_KH = functional.silu(self.norm(self.second(x_KH)) * (1 + scale_2) + shift_2)
        velocity_KV: Tensor = self.last(x_KH)
        return velocity_KV


def flow_loss(
    velocity: VelocityField, image_KV: Tensor, condition_KC: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """L_img: mean over read-outs and coordinates of | g(x_tau, tau, c) - (v - eps) |^2, tau uniform, eps normal.

    Args:
        velocity: g, usually an `ImageFlow`.
        image_KV: frozen image vector of each read-out's target; a row of zeros, no picture, is left out.
        condition_KC: what the picture is to be told from: the state at [INT], or h. It gets a gradient.
        generator: of tau and eps; None: torch's own.
    """
    has_image_K = image_KV.abs().sum(dim=1) > 0
    with _float32(condition_KC):
        v_KV, condition_KC = velocity.standardised(image_KV[has_image_K].float()), condition_KC.float()[has_image_K]
        if len(v_KV) == 0:
            return 0.0 * condition_KC.sum()
        eps_KV = torch.randn(v_KV.shape, generator=generator, device=v_KV.device)
        tau_K = torch.rand(len(v_KV), generator=generator, device=v_KV.device)
        x_KV = torch.lerp(eps_KV, v_KV, tau_K.unsqueeze(1))
        return functional.mse_loss(velocity(x_KV, tau_K, condition_KC), v_KV - eps_KV)


def _float32(like: Tensor) -> torch.autocast:
    """No bf16 here, whatever the language model runs in: at scale 20 it would be 0.1 off in a logit."""
    return torch.autocast(like.device.type, enabled=False)
