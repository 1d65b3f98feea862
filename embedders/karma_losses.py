"""KARMA's losses, each a function of tensors (arXiv 2603.22779).

    L_act   = mean_k [ mean_{j in batch} l_kj + w mean_{j exposed} l_kj ]
              l_kj = -log sigmoid( s(h_k, e_k) - s(h_k, e_j) )                every negative below the target
    L_gen   = mean over words of -log p(word | words before it, history)      the title, with the history in sight
    L_recon = mean over words of -log p(word | words before it, h)            the title, from the user's vector alone
    L_img   = E | g(x_tau, tau, c) - (v - eps) |^2,  x_tau = (1 - tau) eps + tau v      rectified flow to the picture

    L       = L_act + lambda (L_gen + L_recon + L_img)

What we keep: the action loss is pairwise logistic, over items that were shown and not clicked and over the batch;
InfoNCE is the switch. Ours [NF->P]: s = scale * cosine with the scale of LEARN, or the raw dot product; means where the
paper writes sums, shown and in-batch negatives with equal weight; of L_img everything but that it conditions on the
history or on h (a diffusion or a flow, which network, what v is standardised by).

All are float32, whatever they are called in; but the words' logits are computed in the precision of the pass. Where
there is nothing to learn from a loss is 0, with a gradient of 0.

Letters: K read-outs, J targets of the batch (J = K), M exposed items of a read-out, T words, W vocabulary, D width of
the language model, d width of users and items, V of images, C of the condition, H hidden.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedders.contrastive import SCALE

FASTEST = 1000.0
"""Radians per unit of tau of the fastest sine that tells tau, in [0, 1], to the flow; the slowest has 1."""


def pairwise_action_loss(
    user_Kd: Tensor,
    positive_Kd: Tensor,
    item_K: Tensor,
    owner_K: Tensor,
    exposed_KMd: Tensor | None = None,
    exposed_valid_KM: Tensor | None = None,
    *,
    scale: float | None = SCALE,
    exposed_weight: float = 1.0,
) -> Tensor:
    """L_act: every negative by itself must score below the target.

    In-batch negatives of a read-out are the targets of other users, but for those that show an item which is a target
    of its own user, too. Exposed negatives are its own. The mean is over all read-outs; one without negatives of a
    kind adds 0 for that kind.

    Args:
        user_Kd: h of each read-out.
        positive_Kd: vector of its target.
        item_K: which item that is.
        owner_K: which user of the batch it belongs to, from 0.
        exposed_KMd: vectors of items shown beside the target and not clicked; anything at invalid places.
        exposed_valid_KM: bool. The target itself must not be among them.
        scale: of the products; None: as they are.
        exposed_weight: of the exposed negatives' mean; the in-batch one has 1.
    """
    positive_K1, in_batch_KJ, is_own_KJ, exposed_KM = _scores(
        user_Kd, positive_Kd, item_K, owner_K, exposed_KMd, 1.0 if scale is None else scale
    )
    loss_K = _mean_where(functional.softplus(in_batch_KJ - positive_K1), ~is_own_KJ)
    if exposed_KM is not None:
        assert exposed_valid_KM is not None, "exposed vectors need to say which of them are there"
        loss_K = loss_K + exposed_weight * _mean_where(functional.softplus(exposed_KM - positive_K1), exposed_valid_KM)
    return loss_K.sum() / max(1, len(loss_K))


def infonce_action_loss(
    user_Kd: Tensor,
    positive_Kd: Tensor,
    item_K: Tensor,
    owner_K: Tensor,
    exposed_KMd: Tensor | None = None,
    exposed_valid_KM: Tensor | None = None,
    *,
    scale: float | None = SCALE,
    exposed_weight: float = 1.0,
) -> Tensor:
    """The switch: softmax over the target and the same negatives, mean over read-outs.

        -log  exp s+ / ( exp s+  +  sum_{j in batch} exp s_j  +  w sum_{j exposed} exp s_j )

    Arguments are those of `pairwise_action_loss`; `exposed_weight` counts an exposed item as so many.
    """
    positive_K1, in_batch_KJ, is_own_KJ, exposed_KM = _scores(
        user_Kd, positive_Kd, item_K, owner_K, exposed_KMd, 1.0 if scale is None else scale
    )
    logits = [positive_K1, in_batch_KJ.masked_fill(is_own_KJ, -torch.inf)]
    if exposed_KM is not None and exposed_weight > 0.0:
        assert exposed_valid_KM is not None, "exposed vectors need to say which of them are there"
        logits.append((exposed_KM + math.log(exposed_weight)).masked_fill(~exposed_valid_KM, -torch.inf))
    loss_K = torch.logsumexp(torch.cat(logits, dim=1), dim=1) - positive_K1.squeeze(1)
    return loss_K.sum() / max(1, len(loss_K))


def _scores(
    user_Kd: Tensor, positive_Kd: Tensor, item_K: Tensor, owner_K: Tensor, exposed_KMd: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Of the target [K, 1], of the batch's targets [K, J], which of these are the user's own [K, J], of the exposed."""
    with _float32(user_Kd):
        users_Kd = scale * user_Kd.float()
        in_batch_KJ = users_Kd @ positive_Kd.float().T
        positive_K1 = (users_Kd * positive_Kd.float()).sum(dim=1, keepdim=True)
        exposed_KM = None if exposed_KMd is None else (users_Kd.unsqueeze(1) * exposed_KMd.float()).sum(dim=2)
    distinct, group_K = torch.unique(item_K, return_inverse=True)
    num_owners = int(owner_K.max()) + 1 if len(owner_K) else 0
    is_target = torch.zeros(num_owners, len(distinct), dtype=torch.bool, device=item_K.device)
    is_target[owner_K, group_K] = True
    return positive_K1, in_batch_KJ, is_target[owner_K][:, group_K], exposed_KM


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
