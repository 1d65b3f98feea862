"""Training of MKD's students: shuffled pairs, warm-up and cosine, early stop, exact resume (arXiv 2411.13045).

What is our proposal [NF->P]: 4 epochs, learning rates 2e-5 (interaction) and 5e-5 (representation) for the pretrained
encoder and 20 times as much for what starts at random, early stop on the caller's measure, the limit of the gradient's
norm. One device; students are small.

Letters: N pairs, B pairs of a batch.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from embedders.mkd import RepresentationStudent, Student
from embedders.mkd_batches import PairBatches
from embedders.mkd_objective import LossWeights
from embedders.mkd_steps import training_step
from embedders.rate_schedule import GRADIENT_NORM_LIMIT, LEAST_RATE
from embedders.teacher_signal import TeacherSignal
from embedders.trained_weights import copied

NEW_WEIGHTS_RATE = 20.0
"""Heads, kappa and b start from nothing: at the encoder's learning rate they would not arrive."""


@dataclass(frozen=True)
class MkdSettings:
    """What is learnt from, how long, how fast. `INTERACTION` and `REPRESENTATION` are the card's."""

    weights: LossWeights = field(default_factory=LossWeights)
    """Of the losses."""
    epochs: int = 4
    """Most passes over the pairs."""
    patience: int = 1
    """Validations without a better one before training stops."""
    batch_size: int = 64
    """Pairs a step."""
    learning_rate: float = 5e-5
    """Of the encoder at its peak; heads, kappa and b learn at 20 times this rate."""
    warmup: float = 0.1
    """Share of all pairs until the peak."""
    weight_decay: float = 0.01
    """Of AdamW, on matrices."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder's passes; heads and losses are float32. auto: bfloat16 on a GPU, float32 on a CPU. bfloat16: on a
    CPU, too, where it has AMX."""
    seed: int = 0
    """Of the order and of dropout. The initial weights have a seed of their own."""


INTERACTION = MkdSettings(weights=LossWeights(alpha_list=0.0), learning_rate=2e-5)
REPRESENTATION = MkdSettings()


class EpochRow(NamedTuple):
    """One epoch of a training curve."""

    epoch: int
    train_loss: float
    parts: dict[str, float]
    """The same by loss, weighted; only those that are on."""
    validation_metric: float | None
    seconds: float
    is_best: bool


@dataclass(frozen=True)
class Watch:
    """Who hears of a fit, and where it starts."""

    on_pairs: Callable[[int], None] = lambda num_pairs: None
    """Pairs trained on since the last call."""
    on_epoch: Callable[[EpochRow], None] = lambda row: None
    """An epoch and its validation are over."""
    on_checkpoint: Callable[[dict[str, Any]], None] | None = None
    """Everything that `resume_from` needs, after each epoch."""
    resume_from: Mapping[str, Any] | None = None
    """What `on_checkpoint` was given."""


@dataclass
class _State:
    """Where a fit is, beside the weights."""

    epoch: int = 0
    best_metric: float = -float("inf")
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    curve: tuple[EpochRow, ...] = ()


def fit_mkd(
    student: Student,
    pairs: Sequence[tuple[str, str]],
    signal: TeacherSignal,
    settings: MkdSettings,
    *,
    validate: Callable[[], float] | None = None,
    watch: Watch | None = None,
    stopwatch: Callable[[], float] = time.perf_counter,
) -> tuple[EpochRow, ...]:
    """Train `student` in place; it ends in the state of the best validation (without one: the last), in eval mode.

    On a CPU the same seed gives the same bits, also when the run is stopped after an epoch and goes on from that
    checkpoint. The generator of the caller is left as it was.

    Args:
        student: on the device it is to train on.
        pairs: N texts of queries and items, as they will be read at serving.
        signal: what is known of them.
        settings: how.
        validate: any measure of the student as it is (in eval mode) on held-out pairs; higher is better.
        watch: hears of progress.
        stopwatch: seconds from any origin.

    Raises:
        ValueError: no pairs, or not as many as the signal has; the student has no heads for a loss that is switched on;
            the checkpoint is of other settings; the loss is not finite.
    """
    watch = watch or Watch()
    device = next(student.parameters()).device
    step = training_step(student, pairs, signal, settings.weights, device)
    batches = PairBatches(
        step.length_N,
        signal.query_N,
        batch_size=settings.batch_size,
        grouped=bool(settings.weights.alpha_list)
        or (isinstance(student, RepresentationStudent) and bool(settings.weights.gamma)),
        seed=settings.seed,
    )
    optimizer = _optimizer(student, settings)
    half = settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        state = _State() if watch.resume_from is None else _resume(watch.resume_from, student, optimizer, settings)
        while state.epoch < settings.epochs and state.epoch - state.best_epoch <= settings.patience:
            started = stopwatch()
            student.train()
            sums: dict[str, Tensor] = {}
            num_seen, num_batches = 0, 0
            for rows_B in batches.batches(state.epoch):
                num_seen, num_batches = num_seen + len(rows_B), num_batches + 1
                rate = _rate((state.epoch + num_seen / len(pairs)) / settings.epochs, settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * rate
                parts = step.losses(rows_B, half)
                if not parts:
                    raise ValueError("fit_mkd: every loss is switched off, or has nothing to learn from: see weights")
                torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(student.parameters(), GRADIENT_NORM_LIMIT)
                optimizer.step()
                optimizer.zero_grad()
                for name, part in parts.items():
                    sums[name] = sums.get(name, torch.zeros((), device=device)) + part.detach()
                watch.on_pairs(len(rows_B))
            means = {name: float(total) / num_batches for name, total in sums.items()}
            train_loss = sum(means.values())
            if not math.isfinite(train_loss):
                raise ValueError(
                    f"fit_mkd: the training loss became {train_loss} in epoch {state.epoch} (seed {settings.seed}; "
                    f"{means}). Expected a finite number: lower learning_rate (now {settings.learning_rate})."
                )
            student.eval()
            metric = None if validate is None else validate()
            if metric is None or metric > state.best_metric:
                state.best_metric, state.best_epoch = -float("inf") if metric is None else metric, state.epoch
                state.best_weights = copied(student.state_dict())
            row = EpochRow(state.epoch, train_loss, means, metric, stopwatch() - started, is_best=False)
            state.curve = (*state.curve, row)
            state.epoch += 1
            watch.on_epoch(row)
            if watch.on_checkpoint is not None:
                watch.on_checkpoint(_checkpoint(state, student, optimizer, settings))

    if state.best_weights is None:
        raise ValueError("fit_mkd: no epoch had a validation metric that is a number; look at what `validate` returns")
    student.load_state_dict(state.best_weights)
    student.eval()
    return tuple(row._replace(is_best=row.epoch == state.best_epoch) for row in state.curve)


def _optimizer(student: Student, settings: MkdSettings) -> torch.optim.AdamW:
    """Matrices of the encoder decay; what is new learns faster."""

    def chosen(is_encoder: bool, is_matrix: bool) -> Iterator[nn.Parameter]:
        for name, weight in student.named_parameters():
            if name.startswith("encoder.") == is_encoder and (weight.ndim > 1) == is_matrix:
                yield weight

    groups = []
    for is_encoder in (True, False):
        for is_matrix in (True, False):
            peak = settings.learning_rate * (1.0 if is_encoder else NEW_WEIGHTS_RATE)
            decay = settings.weight_decay if is_matrix else 0.0
            groups.append({"params": list(chosen(is_encoder, is_matrix)), "peak": peak, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)


def _rate(seen: float, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to LEAST_RATE.

    It goes by the share of pairs seen, as batches are not equally many in every epoch.
    """
    if seen < warmup:
        return seen / warmup
    return LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * (seen - warmup) / max(1e-9, 1 - warmup)))


def _checkpoint(
    state: _State, student: Student, optimizer: torch.optim.Optimizer, settings: MkdSettings
) -> dict[str, Any]:
    """Everything the rest of the run depends on; the order follows from the seed and the epoch."""
    return {
        "settings": asdict(settings),
        "state": {**vars(state), "curve": [tuple(row) for row in state.curve]},
        "student": copied(student.state_dict()),
        "optimizer": deepcopy(optimizer.state_dict()),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _resume(
    checkpoint: Mapping[str, Any], student: Student, optimizer: torch.optim.Optimizer, settings: MkdSettings
) -> _State:
    if checkpoint["settings"] != asdict(settings):
        raise ValueError(
            f"fit_mkd: the checkpoint is of a fit with {checkpoint['settings']}, but this one has {asdict(settings)}; "
            "go on with those, or start anew"
        )
    student.load_state_dict(checkpoint["student"])
    optimizer.load_state_dict(deepcopy(checkpoint["optimizer"]))
    torch.set_rng_state(checkpoint["torch_rng"])
    if checkpoint["cuda_rng"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(checkpoint["cuda_rng"])
    state = _State(**checkpoint["state"])
    state.curve = tuple(EpochRow(*row) for row in checkpoint["state"]["curve"])
    return state
