"""How KARMA's towers start: spread out, then their heads learn from states that the language model gives once [NF->P].

    spread   users and items of a sample around the origin                          (`KarmaTowers.spread`)
    states   one pass of the language model over the users as it is, no gradient: the state at each [INT]
    heads    many epochs over these states by L_act alone: W_h, the item tower, the projection of `residual`; users held
             out of them say which epoch is kept

A step of the language model takes seconds, so there are few; a step of the heads takes milliseconds. Without this stage
the few steps that a small machine can afford go into heads which could have learnt the same from states at rest. Cheap
epochs are also how a few thousand users are learnt by heart, hence the users held out.

Letters: K read-outs, D width of the language model, F feature width, M exposed items of a read-out.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedders.histories import PADDING, padded_rows
from embedders.karma import Choices, KarmaNetwork
from embedders.karma_checks import check_finite
from embedders.karma_draws import CatalogueSample, KarmaLog
from embedders.karma_objective import KarmaObjective
from embedders.karma_packing import KarmaBatch, pack
from embedders.karma_settings import KarmaSettings
from embedders.rate_schedule import BETAS, GRADIENT_NORM_LIMIT, share_of_peak_rate
from embedders.trained_weights import copied, put_back

logger = logging.getLogger(__name__)

USERS_SAMPLED, ITEMS_SAMPLED = 64, 4096
"""They say where the middle is, and how far users and items spread."""

HEADS = ("towers.user_norm.", "towers.user_head.", "towers.item_head.", "towers.shortcut.")
"""What learns from states at rest."""

READ_OUTS_AT_ONCE = 512
"""Of a step of the heads."""

FEWEST_HELD_OUT, MOST_HELD_OUT = 20, 2_000
"""Users; with fewer an epoch would be chosen by chance, so none is held out and the last epoch is kept. More say the
same, and they are asked all together: with 8 read-outs each and 1,024 negatives in some 300 MB,
where the batch gives no negatives (`in_batch_weight` 0)."""

HEAD_PATIENCE = 3
"""Epochs without a better loss of those held out before the heads' stage stops."""

MOST_READ_OUTS = 250_000
"""Whose states are kept in memory: half a gigabyte with a language model 576 wide and text vectors of 384, twice that
while they are put together."""


def spread(network: KarmaNetwork, log: KarmaLog, seed: int) -> None:
    """By a sample of the users and of the catalogue."""
    rng = np.random.default_rng(seed)
    users = rng.permutation(np.flatnonzero(log.sequences.lengths >= 2))[:USERS_SAMPLED]
    history_BL = padded_rows([log.sequences.of(user)[:-1][-network.shape.max_history :] for user in users])
    ends_B1 = (history_BL != PADDING).sum(axis=1, keepdims=True)
    packed = pack(history_BL, ends_B1, instruction=network.towers.instruction)
    items = rng.permutation(len(log.titles))[:ITEMS_SAMPLED]
    was_training = network.training
    network.towers.eval().spread(packed, torch.from_numpy(items).to(network.towers.read_out_D.device))
    network.train(was_training)


class ReadOuts(NamedTuple):
    """States of a language model at rest, in the CPU's memory.

    Attributes:
        state_KD: at each [INT], float16.
        mean_KF: mean of the features seen, float16; None without `residual`.
        choices: what each is to find; owners are numbered over all of them.
    """

    state_KD: Tensor
    mean_KF: Tensor | None
    choices: Choices

    def at(self, places_J: Tensor, device: torch.device) -> "ReadOuts":
        """Some of them, float32, on a device; owners are numbered anew."""
        choices = Choices(*(part[places_J] for part in self.choices))
        _, owner_J = torch.unique(choices.owner_K, return_inverse=True)
        return ReadOuts(
            self.state_KD[places_J].to(device, torch.float32),
            None if self.mean_KF is None else self.mean_KF[places_J].to(device, torch.float32),
            Choices(*(part.to(device) for part in choices._replace(owner_K=owner_J))),
        )


@torch.no_grad()
def read_outs(
    objective: KarmaObjective, batches: Iterable[KarmaBatch[NDArray[Any]]], most: int = MOST_READ_OUTS
) -> ReadOuts:
    """What a network says of batches as it is, in eval mode; no more batches are taken once there are `most`."""
    network = objective.network
    device, was_training = network.towers.read_out_D.device, network.training
    network.eval()
    found: list[ReadOuts] = []
    num_read_outs = 0
    for batch in batches:
        one = objective.at_rest(KarmaBatch(*(torch.from_numpy(part).to(device) for part in batch)))
        found.append(
            ReadOuts(
                one.state_KD.to("cpu", torch.float16),
                None if one.mean_KF is None else one.mean_KF.to("cpu", torch.float16),
                Choices(*(part.cpu() for part in one.choices)),
            )
        )
        num_read_outs += len(one.state_KD)
        if num_read_outs >= most:
            break
    network.train(was_training)
    return together(found)


def together(found: Sequence[ReadOuts]) -> ReadOuts:
    """Of several batches or processes, each with users of its own, all of whom have a read-out."""
    means = [one.mean_KF for one in found if one.mean_KF is not None]
    first = np.cumsum([0, *(int(one.choices.owner_K.max()) + 1 for one in found)])
    widest = max(one.choices.exposed_KM.shape[1] for one in found)
    choices = [
        one.choices._replace(
            owner_K=one.choices.owner_K + start,
            exposed_KM=functional.pad(
                one.choices.exposed_KM, (0, widest - one.choices.exposed_KM.shape[1]), value=PADDING
            ),
        )
        for one, start in zip(found, first.tolist(), strict=False)
    ]
    return ReadOuts(
        torch.cat([one.state_KD for one in found]),
        torch.cat(means) if means else None,
        Choices(*(torch.cat(parts) for parts in zip(*choices, strict=True))),
    )


def fit_heads(
    objective: KarmaObjective,
    found: ReadOuts,
    sample: CatalogueSample,
    settings: KarmaSettings,
    *,
    epoch: int,
    seed: int,
    on_epoch: Callable[[int], None] = lambda number: None,
) -> float:
    """Train the heads in place, and give the mean loss of the epoch that is kept: the best for users held out.

    A user's read-outs are in one step, so that none of their targets is another's negative; but the ends of a step may
    part a user.

    Args:
        objective: of the network; its language model takes no part.
        found: its states.
        sample: of the catalogue, drawn anew in every step.
        settings: `head_epochs`, `head_rate`, `head_dropout`, `head_held_out`.
        epoch: of the whole fit, for messages.
        seed: of who is held out, of the order and of the samples; dropout is of torch's own generator.
        on_epoch: hears of every epoch of the heads, by its number.

    Raises:
        ValueError: the loss is not finite.
    """
    towers = objective.network.towers
    device = towers.read_out_D.device
    heads = {name: weight for name, weight in objective.network.named_parameters() if name.startswith(HEADS)}
    learning = list(heads.values())
    optimizer = torch.optim.AdamW(learning, lr=settings.head_rate, betas=BETAS, weight_decay=settings.weight_decay)
    rng = np.random.default_rng(seed)
    held_out = HeldOutReadOuts.of(found, sample, settings.head_held_out, rng, device)
    owner_J = found.choices.owner_K.numpy()[held_out.training_J]
    num_batches = max(1, round(len(owner_J) / READ_OUTS_AT_ONCE))
    num_steps, step = settings.head_epochs * num_batches, 0
    best = _HeadEpoch(-1, float("inf"), 0.0)
    weights: dict[str, Tensor] = {}
    for number in range(settings.head_epochs):
        losses: list[float] = []
        order = np.argsort(rng.permutation(int(owner_J.max()) + 1)[owner_J], kind="stable")
        for places in np.array_split(held_out.training_J[order], num_batches):
            for group in optimizer.param_groups:
                group["lr"] = settings.head_rate * share_of_peak_rate(step, num_steps, settings.warmup)
            some = found.at(torch.from_numpy(places), device)
            sampled_S = torch.from_numpy(sample.draw(int(some.choices.time_K.max()), rng)).to(device)
            users_Kd = towers.users_of(some.state_KD, some.mean_KF, dropout=settings.head_dropout)
            loss = objective.action(users_Kd, some.choices, sampled_S)
            check_finite(loss, {"action": loss}, epoch, settings)
            step_alone(loss, learning, optimizer)
            losses.append(float(loss.detach()))
            step += 1
        last = _HeadEpoch(number, held_out.loss(objective), float(np.mean(losses)))
        check_finite(
            torch.tensor(last.held_out), {"action of users held out": torch.tensor(last.held_out)}, epoch, settings
        )
        if last.held_out < best.held_out or not held_out.num_users:
            best, weights = last, copied(heads)
        on_epoch(number)
        if number - best.number >= HEAD_PATIENCE:
            break
    put_back(heads, weights)
    if held_out.num_users:
        logger.info(
            "heads: epoch %d of %d is kept, L_act of %s users held out %.4f (%.4f after epoch %d)",
            *(best.number + 1, settings.head_epochs, f"{held_out.num_users:,}", best.held_out),
            *(last.held_out, last.number + 1),
        )
    return best.training


class _HeadEpoch(NamedTuple):
    """Of the heads' stage: its number, and L_act of users held out and of the others."""

    number: int
    held_out: float
    training: float


class HeldOutReadOuts(NamedTuple):
    """Users whose read-outs train no head but say how good the heads are.

    Attributes:
        training_J: places of the read-outs of all others, ascending.
        read_outs: of those held out; None where they would be too few.
        sampled_S: catalogue rows that all of them are compared with, the same at every call.
        num_users: held out.
    """

    training_J: NDArray[np.int64]
    read_outs: ReadOuts | None
    sampled_S: Tensor
    num_users: int

    @classmethod
    def of(
        cls,
        found: ReadOuts,
        sample: CatalogueSample,
        share: float,
        rng: np.random.Generator,
        device: torch.device | None = None,
    ) -> "HeldOutReadOuts":
        """A share of the users, drawn, `MOST_HELD_OUT` at most; no one where that is fewer than `FEWEST_HELD_OUT`."""
        device = device or torch.device("cpu")
        owner_K = found.choices.owner_K.numpy()
        num_users = int(owner_K.max()) + 1
        size = min(round(share * num_users), MOST_HELD_OUT)
        if size < FEWEST_HELD_OUT:
            return cls(np.arange(len(owner_K)), None, torch.zeros(0, dtype=torch.int64), 0)
        is_held_K = np.isin(owner_K, rng.permutation(num_users)[:size])
        read_outs = found.at(torch.from_numpy(np.flatnonzero(is_held_K)), device)
        sampled_S = torch.from_numpy(sample.draw(int(read_outs.choices.time_K.max()), rng)).to(device)
        return cls(np.flatnonzero(~is_held_K), read_outs, sampled_S, size)

    @torch.no_grad()
    def loss(self, objective: KarmaObjective) -> float:
        """L_act of them as the heads are, nothing left out of a state; 0 where no one is held out."""
        if self.read_outs is None:
            return 0.0
        users_Kd = objective.network.towers.users_of(self.read_outs.state_KD, self.read_outs.mean_KF)
        return float(objective.action(users_Kd, self.read_outs.choices, self.sampled_S))


def step_alone(loss: Tensor, learning: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One step of these weights, of which no other process and no other weight hears.

    Not by backward(): it gives a gradient to what stays as it is, too (the vector for a missing picture), and tells
    data-parallel training, which takes no part, of every one.
    """
    gradients = torch.autograd.grad(loss, learning, allow_unused=True)
    for weight, gradient in zip(learning, gradients, strict=True):
        weight.grad = gradient
    torch.nn.utils.clip_grad_norm_(learning, GRADIENT_NORM_LIMIT)
    optimizer.step()
    optimizer.zero_grad()
