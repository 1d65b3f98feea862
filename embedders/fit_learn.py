"""Training of LEARN's network: shuffled users, a learning rate that warms up and falls, early stop, exact resume.

LEARN, arXiv 2405.03988: AdamW with betas (0.9, 0.98), 10 % warm-up, cosine decay. What is our proposal [NF->P]: the
learning rate of the small shapes (the published 5e-5 is for 768 wide), early stop on validation recall, the limit of
the gradient's norm.

Letters: B users, L history length, H sampled positions, T targets, N items, d width.
"""

import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from embedders.contrastive import (
    SCALE,
    dense_all_action_loss,
    full_softmax_loss,
    sample_positions,
    sampled_softmax_loss,
)
from embedders.health import UNMEASURED, VectorHealth
from embedders.histories import PADDING, Cut, CutBatch, Passes, Sequences
from embedders.learn import LearnNetwork
from embedders.trained_weights import copied

Objective = Literal["dense", "single", "full_softmax", "next_item"]

GRADIENT_NORM_LIMIT = 1.0
BETAS = (0.9, 0.98)
LEAST_RATE = 0.01
"""Share of the learning rate that is left at the end of the cosine."""


@dataclass(frozen=True)
class LearnSettings:
    """What is learnt from, how long, how fast."""

    objective: Objective = "dense"
    """dense: all sampled positions against all sampled targets, negatives from the batch (the paper's).
    single: the last position against one target, negatives from the batch (the official code's Amazon pretraining).
    full_softmax: the last position against the whole catalogue (its finetuning).
    next_item: every position against the whole catalogue (SASRec's, as a baseline)."""
    num_negatives: int | None = None
    """next_item only: items drawn uniformly in each step, in place of the whole catalogue [NF->P]. None: all."""
    cut: Cut = field(default_factory=Cut)
    """How users are divided into history and targets; next_item does not divide them."""
    num_positions: int = 10
    """Of the history, and of the targets, that stage 2 samples for the dense objective."""
    pair_sampling: Literal["recency", "uniform"] = "recency"
    """Stage 2: newer positions more often (the paper's second version), or all alike."""
    scale: float = SCALE
    """1 / temperature of the cosines."""
    epochs: int = 20
    """Most passes over the users."""
    patience: int = 3
    """Validations without a better one before training stops."""
    batch_size: int = 256
    """Users a step, of all processes together."""
    learning_rate: float = 1e-3
    """At its peak."""
    warmup: float = 0.1
    """Share of all steps until the peak."""
    weight_decay: float = 0.0
    """Of AdamW."""
    precision: Literal["auto", "bfloat16"] = "auto"
    """Of the towers' forward pass; the loss is float32. auto: bfloat16 on a GPU, float32 on a CPU. bfloat16: on a CPU,
    too, where it has AMX."""
    seed: int = 0
    """Of the order, the cuts, the samples, dropout. The caller seeds the initial weights."""


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
    # accelerate's types are not followed; and DDP must see one forward a step, which is what `_TrainingStep` gives it
    step, prepared = accelerator.prepare(_TrainingStep(network, settings, num_items), optimizer)
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


class _TrainingStep(nn.Module):
    """From a batch to its loss, so that data-parallel training sees one module with one forward pass."""

    def __init__(self, network: LearnNetwork, settings: LearnSettings, num_items: int) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.num_items = num_items

    def forward(self, history_BL: Tensor, target_BT: Tensor) -> Tensor:
        """The objective's loss, a scalar."""
        # not accelerate's: its precision is one for the whole process, and the ranker's is not ours to choose
        half = self.settings.precision == "bfloat16" or torch.is_autocast_enabled(history_BL.device.type)
        with torch.autocast(history_BL.device.type, torch.bfloat16, enabled=half):
            return self._loss(history_BL, target_BT)

    def _loss(self, history_BL: Tensor, target_BT: Tensor) -> Tensor:
        match self.settings.objective:
            case "dense":
                return self._dense(history_BL, target_BT)
            case "single":
                return self._single(history_BL, target_BT)
            case "full_softmax":
                catalogue_Nd = self.network.items(torch.arange(self.num_items, device=history_BL.device))
                users_Bd = self.network.last_users(history_BL)
                return full_softmax_loss(users_Bd, target_BT[:, 0], catalogue_Nd, scale=self.settings.scale)
            case "next_item":
                return self._next_item(history_BL, target_BT)

    def _dense(self, history_BL: Tensor, target_BT: Tensor) -> Tensor:
        users_BLd, targets_BTd = self.network(history_BL, target_BT)
        at_BH, valid_BH = self._sampled(history_BL)
        of_BK, valid_BK = self._sampled(target_BT)
        row_B1 = torch.arange(len(history_BL), device=history_BL.device).unsqueeze(1)
        return dense_all_action_loss(
            users_BLd[row_B1, at_BH],
            valid_BH,
            targets_BTd[row_B1, of_BK],
            valid_BK,
            target_BT[row_B1, of_BK],
            scale=self.settings.scale,
        )

    def _sampled(self, rows_BL: Tensor) -> tuple[Tensor, Tensor]:
        return sample_positions(
            (rows_BL != PADDING).sum(dim=1),
            rows_BL.shape[1],
            self.settings.num_positions,
            recency=self.settings.pair_sampling == "recency",
        )

    def _single(self, history_BL: Tensor, target_BT: Tensor) -> Tensor:
        target_B1 = target_BT[:, :1]
        users_Bd = self.network.last_users(history_BL)
        all_valid_B1 = torch.ones_like(target_B1, dtype=torch.bool)
        return dense_all_action_loss(
            users_Bd.unsqueeze(1),
            all_valid_B1,
            self.network.targets(target_B1),
            all_valid_B1,
            target_B1,
            scale=self.settings.scale,
        )

    def _next_item(self, history_BL: Tensor, target_BT: Tensor) -> Tensor:
        # history and targets are put together again: each item is the target of those before it
        most = self.network.shape.max_history + 1
        whole = [
            torch.cat([h[h != PADDING], t[t != PADDING]])[-most:] for h, t in zip(history_BL, target_BT, strict=True)
        ]
        sequence_BL = nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=PADDING)
        users_BLd = self.network.users(sequence_BL[:, :-1])
        next_BL = sequence_BL[:, 1:]
        is_there_BL = next_BL != PADDING
        users_Md, next_M = users_BLd[is_there_BL], next_BL[is_there_BL]
        if self.settings.num_negatives is None:
            catalogue_Nd = self.network.items(torch.arange(self.num_items, device=history_BL.device))
            return full_softmax_loss(users_Md, next_M, catalogue_Nd, scale=self.settings.scale)
        drawn_K = torch.randperm(self.num_items, device=history_BL.device)[: self.settings.num_negatives]
        distinct, place_M = torch.unique(next_M, return_inverse=True)
        positive_Md = self.network.items(distinct)[place_M]
        drawn_Kd = self.network.items(drawn_K)
        return sampled_softmax_loss(users_Md, positive_Md, next_M, drawn_Kd, drawn_K, scale=self.settings.scale)


def _tensors(batch: CutBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(batch.history_BL).to(device), torch.from_numpy(batch.target_BT).to(device)


def share_of_peak_rate(step: int, num_steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to LEAST_RATE."""
    warm = max(1, round(warmup * num_steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, num_steps - warm)
    return LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


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
