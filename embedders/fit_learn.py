"""Training of LEARN's network: shuffled users, a learning rate that warms up and falls, early stop, exact resume.

LEARN, arXiv 2405.03988: AdamW, warm-up, cosine decay (`embedders.rate_schedule`). What is our proposal [NF->P]: the
learning rate of the small shapes (the published 5e-5 is for 768 wide), early stop on validation recall.

Letters: B users, L history length, T targets.
"""

import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from embedders.health import UNMEASURED, VectorHealth
from embedders.histories import CutBatch, Passes, Sequences
from embedders.learn import LearnNetwork
from embedders.learn_objective import LearnObjective
from embedders.learn_settings import LearnSettings, Objective
from embedders.rate_schedule import BETAS, GRADIENT_NORM_LIMIT, share_of_peak_rate
from embedders.trained_weights import copied

__all__ = ["EpochRow", "LearnSettings", "Objective", "Watch", "fit_learn"]


class EpochRow(NamedTuple):
    """One epoch of a training curve."""

    epoch: int
    train_loss: float
    validation_recall: float | None
    participation_ratio: float | None
    effective_rank: float | None
    uniformity: float | None
    alignment: float | None
    seconds: float
    is_best: bool


@dataclass(frozen=True)
class Watch:
    """Who hears of a fit, and where it starts."""

    on_users: Callable[[int], None] = lambda num_users: None
    """Users trained on since the last call."""
    on_epoch: Callable[[EpochRow], None] = lambda row: None
    """An epoch and its validation are over."""
    on_checkpoint: Callable[[dict[str, Any]], None] | None = None
    """Everything that `resume_from` needs, after each epoch; called in the main process only."""
    resume_from: Mapping[str, Any] | None = None
    """What `on_checkpoint` was given."""


@dataclass
class _State:
    """Where a fit is, beside the weights."""

    epoch: int = 0
    best_recall: float = -float("inf")
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    curve: tuple[EpochRow, ...] = ()


def fit_learn(
    network: LearnNetwork,
    train: Sequences,
    settings: LearnSettings,
    *,
    num_items: int,
    validate: Callable[[], float] | None = None,
    measure: Callable[[], VectorHealth] | None = None,
    watch: Watch | None = None,
    stopwatch: Callable[[], float] = time.perf_counter,
) -> tuple[EpochRow, ...]:
    """Train `network` in place; it ends in the state of the best validation (without one: the last), in eval mode.

    The same seed gives the same bits, also when the run is stopped after an epoch and goes on from that checkpoint.
    On several GPUs (`accelerate launch`) each process takes its share of every batch and has its own negatives, as in
    the official code; on a GPU the forward pass is bf16.

    Args:
        network: its initial weights are the caller's.
        train: interactions to learn from, rows of the catalogue that `network.inputs` gives.
        settings: how.
        num_items: N, of the catalogue: what full_softmax and next_item compare with.
        validate: recall of held-out targets under the network as it is (in eval mode); higher is better.
        measure: health of held-out users' vectors under the network as it is; decides nothing.
        watch: hears of progress.
        stopwatch: seconds from any origin.

    Raises:
        ValueError: fewer than two users can be cut, or the loss is not finite.
    """
    watch = watch or Watch()
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    device = accelerator.device
    passes = Passes(train, settings.cut, batch_size=settings.batch_size, seed=settings.seed)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, betas=BETAS, eps=1e-6, weight_decay=settings.weight_decay
    )
    # accelerate's types are not followed; and DDP must see one forward a step, which is what `LearnObjective` gives it
    step, prepared = accelerator.prepare(LearnObjective(network, settings, num_items), optimizer)
    state = _State()
    if watch.resume_from is not None:
        state = _resume(watch.resume_from, network, optimizer, device)
    num_steps = settings.epochs * passes.num_batches

    while state.epoch < settings.epochs and state.epoch - state.best_epoch <= settings.patience:
        started = stopwatch()
        step.train()
        loss_sum, num_batches = torch.zeros((), device=device), 0
        for batch in passes.batches(state.epoch, accelerator.process_index, accelerator.num_processes):
            rate = share_of_peak_rate(state.epoch * passes.num_batches + num_batches, num_steps, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate
            loss = step(*_tensors(batch, device))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), GRADIENT_NORM_LIMIT)
            prepared.step()
            prepared.zero_grad()
            loss_sum += loss.detach()
            num_batches += 1
            watch.on_users(len(batch.history_BL))
        train_loss = float(loss_sum) / num_batches
        if not math.isfinite(train_loss):
            raise ValueError(
                f"fit: the training loss became {train_loss} in epoch {state.epoch} (seed {settings.seed}). Expected a "
                f"finite number: lower learning_rate (now {settings.learning_rate}), or look for NaN in the content."
            )
        network.eval()
        # the first process decides for all: were a last digit to differ, one would stop and the others wait for ever
        recall = None if validate is None else broadcast_object_list([validate()])[0]
        if recall is None or recall > state.best_recall:
            state.best_recall, state.best_epoch = -float("inf") if recall is None else recall, state.epoch
            state.best_weights = copied(network.state_dict())
        health = UNMEASURED if measure is None else measure()
        row = EpochRow(state.epoch, train_loss, recall, *health, seconds=stopwatch() - started, is_best=False)
        state.curve = (*state.curve, row)
        state.epoch += 1
        watch.on_epoch(row)
        if watch.on_checkpoint is not None and accelerator.is_main_process:
            watch.on_checkpoint(_checkpoint(state, network, optimizer))

    assert state.best_weights is not None, "the first epoch is the best so far"
    network.load_state_dict(state.best_weights)
    network.eval()
    return tuple(row._replace(is_best=row.epoch == state.best_epoch) for row in state.curve)


def _tensors(batch: CutBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(batch.history_BL).to(device), torch.from_numpy(batch.target_BT).to(device)


def _checkpoint(state: _State, network: LearnNetwork, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything the rest of the run depends on; order and cuts follow from the seed and the epoch."""
    return {
        "state": {**vars(state), "curve": [tuple(row) for row in state.curve]},
        "network": copied(network.state_dict()),
        "optimizer": deepcopy(optimizer.state_dict()),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _resume(
    checkpoint: Mapping[str, Any], network: LearnNetwork, optimizer: torch.optim.Optimizer, device: torch.device
) -> _State:
    network.load_state_dict(checkpoint["network"])
    optimizer.load_state_dict(deepcopy(checkpoint["optimizer"]))
    torch.set_rng_state(checkpoint["torch_rng"])
    if device.type == "cuda":
        torch.cuda.set_rng_state_all(checkpoint["cuda_rng"])
    state = _State(**checkpoint["state"])
    state.curve = tuple(EpochRow(*row) for row in checkpoint["state"]["curve"])
    return state
