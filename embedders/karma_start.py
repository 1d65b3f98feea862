"""How KARMA's towers start: spread out, then their heads learn from states that the language model gives once [NF->P].

    spread   users and items of a sample around the origin                          (`KarmaTowers.spread`)
    states   one pass of the language model over the users as it is, no gradient: the state at each [INT]
    heads    many epochs over these states by L_act alone: W_h, the item tower, the projection of `residual`

A step of the language model takes seconds, so there are few; a step of the heads takes milliseconds. Without this stage
the few steps that a small machine can afford go into heads which could have learnt the same from states at rest.

Letters: K read-outs, D width of the language model, F feature width, M exposed items of a read-out.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedders.fit_learn import BETAS, GRADIENT_NORM_LIMIT, share_of_peak_rate
from embedders.histories import PADDING, padded_rows
from embedders.karma import Choices, KarmaNetwork
from embedders.karma_checks import check_finite
from embedders.karma_draws import CatalogueSample, KarmaLog
from embedders.karma_objective import KarmaObjective
from embedders.karma_packing import KarmaBatch, pack
from embedders.karma_settings import KarmaSettings

USERS_SAMPLED, ITEMS_SAMPLED = 64, 4096
"""They say where the middle is, and how far users and items spread."""

HEADS = ("towers.user_norm.", "towers.user_head.", "towers.item_head.", "towers.shortcut.")
"""What learns from states at rest."""

READ_OUTS_AT_ONCE = 512
"""Of a step of the heads."""

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
    """Train the heads in place, and give the mean loss of the last epoch.

    A user's read-outs are in one step, so that none of their targets is another's negative.

    Args:
        objective: of the network; its language model takes no part.
        found: its states.
        sample: of the catalogue, drawn anew in every step.
        settings: `head_epochs`, `head_rate`, `head_dropout`.
        epoch: of the whole fit, for messages.
        seed: of the order and of the samples; dropout is of torch's own generator.
        on_epoch: hears of every epoch of the heads, by its number.

    Raises:
        ValueError: the loss is not finite.
    """
    towers = objective.network.towers
    device = towers.read_out_D.device
    heads = [weight for name, weight in objective.network.named_parameters() if name.startswith(HEADS)]
    optimizer = torch.optim.AdamW(heads, lr=settings.head_rate, betas=BETAS, weight_decay=settings.weight_decay)
    rng = np.random.default_rng(seed)
    num_batches = max(1, round(len(found.state_KD) / READ_OUTS_AT_ONCE))
    num_steps, step = settings.head_epochs * num_batches, 0
    owner_K = found.choices.owner_K.numpy()
    losses: list[float] = []
    for number in range(settings.head_epochs):
        losses = []
        order = np.argsort(rng.permutation(int(owner_K.max()) + 1)[owner_K], kind="stable")
        for places in np.array_split(order, num_batches):
            for group in optimizer.param_groups:
                group["lr"] = settings.head_rate * share_of_peak_rate(step, num_steps, settings.warmup)
            some = found.at(torch.from_numpy(places), device)
            sampled_S = torch.from_numpy(sample.draw(int(some.choices.time_K.max()), rng)).to(device)
            users_Kd = towers.users_of(some.state_KD, some.mean_KF, dropout=settings.head_dropout)
            loss = objective.action(users_Kd, some.choices, sampled_S)
            check_finite(loss, {"action": loss}, epoch, settings)
            step_alone(loss, heads, optimizer)
            losses.append(float(loss.detach()))
            step += 1
        on_epoch(number)
    return float(np.mean(losses))


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
