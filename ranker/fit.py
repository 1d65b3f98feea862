"""The training loop: shuffled passes, validation several times a pass, early stop, exact resume.

CTR models with ID embeddings often get worse on new days as soon as the second pass begins (the "one-epoch
phenomenon", arXiv:2209.06053), so validation may run several times a pass and the best state is what is kept.

Embedding tables are trained by SparseAdam and everything else by AdamW: a step touches the rows of its batch only,
so its cost does not grow with the number of ids, and a rare id is not decayed while it is away.
"""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ranker.batches import Batch, EncodedExamples, ShuffledPasses, batch_of
from ranker.ctr_cvr import Logits
from ranker.ranker import CurveRow, TrainingCurve, Validation, Watch

EMBEDDING_RATE_FACTOR = 3.0
"""An embedding row meets few batches and must have learnt something by then. On a small checkerboard of users and
items 10 is better than 1 (validation AUC 0.73 against 0.68); on the demo world 1 and 3 are, by 0.006 UAUC, over 10."""

GRADIENT_NORM_LIMIT = 10.0
"""Of the dense parameters: only a broken batch reaches it."""


@dataclass(frozen=True)
class FitSettings:
    """How long, how fast."""

    passes: int = 3
    """Most passes over the training rows."""
    evaluations_per_pass: int = 2
    """Validations within a pass."""
    patience: int = 2
    """Validations without a better one before training stops."""
    batch_size: int = 2048
    """Impressions a step."""
    learning_rate: float = 1e-3
    """Of AdamW; SparseAdam's is three times as high."""
    weight_decay: float = 1e-5
    """Of AdamW: embeddings have none, they stop early."""
    seed: int = 0
    """Of the order of the rows, of dropout, of the initial weights."""


@dataclass
class _State:
    """Where a fit is, beside the weights."""

    epoch: int = 0
    best_merit: float = -float("inf")
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    curve: TrainingCurve = ()


def fit_network(
    network: nn.Module,
    train: EncodedExamples,
    *,
    settings: FitSettings,
    loss: Callable[[Logits, Batch], Tensor],
    validate: Callable[[], Validation],
    watch: Watch,
    stopwatch: Callable[[], float] = time.perf_counter,
) -> TrainingCurve:
    """Train `network` in place and leave it in its best state, in eval mode.

    The caller seeds torch before it makes the network; from there on, the same seed gives the same bits, also when
    the run is stopped after a validation and goes on from that checkpoint.

    Args:
        network: gives `Logits` of a `Batch`; its `nn.Embedding(sparse=True)` tables get SparseAdam.
        train: training rows.
        settings: length and speed.
        loss: a scalar for one batch.
        validate: judges the network as it is (it is in eval mode then).
        watch: hears of progress and checkpoints.
        stopwatch: seconds from any origin.

    Returns:
        One row per validation.

    Raises:
        ValueError: no training rows, or the loss is not finite.
    """
    if len(train) == 0:
        raise ValueError("fit: no training rows. Widen the train window of the split.")
    accelerator = make_accelerator()
    device = accelerator.device
    sparse, dense = _parameters(network)
    optimizers: list[Any] = [
        torch.optim.AdamW(dense, lr=settings.learning_rate, weight_decay=settings.weight_decay),
    ]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(sparse, lr=EMBEDDING_RATE_FACTOR * settings.learning_rate))
    model, *optimizers = accelerator.prepare(network, *optimizers)
    passes = ShuffledPasses(len(train), settings.batch_size, settings.seed)
    state = _State()
    if watch.resume_from is not None:
        state = _resume(watch.resume_from, network, optimizers, device)

    evaluations = min(settings.evaluations_per_pass, passes.steps_per_pass)
    while state.epoch < settings.passes * evaluations:
        if state.epoch - state.best_epoch > settings.patience:
            break
        started = stopwatch()
        pass_number, part = divmod(state.epoch, evaluations)
        first, last = (passes.steps_per_pass * edge // evaluations for edge in (part, part + 1))
        model.train()
        loss_sum = torch.zeros((), device=device)
        for index in passes.batches(pass_number, first, last):
            batch = batch_of(train, index, device)
            step_loss = loss(model(batch), batch)
            accelerator.backward(step_loss)
            nn.utils.clip_grad_norm_(dense, GRADIENT_NORM_LIMIT)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            loss_sum += step_loss.detach()
            watch.on_rows(len(index))
        train_loss = float(loss_sum) / (last - first)
        if not torch.isfinite(loss_sum):
            raise ValueError(
                f"fit: the training loss became {train_loss} in pass {pass_number} (seed {settings.seed}). "
                f"Expected a finite number: lower learning_rate (now {settings.learning_rate}), "
                "or look for values beyond float32 in the features."
            )
        model.eval()
        found = validate()
        is_best = found.merit > state.best_merit
        if is_best:
            state.best_merit, state.best_epoch = found.merit, state.epoch
            state.best_weights = _copy(network.state_dict())
        seconds = stopwatch() - started
        state.curve = (*state.curve, CurveRow(state.epoch, train_loss, found.loss, found.uauc, seconds, is_best=False))
        state.epoch += 1
        if watch.on_checkpoint is not None:
            watch.on_checkpoint(_checkpoint(state, network, optimizers))

    assert state.best_weights is not None, "the first validation is the best so far"
    network.load_state_dict(state.best_weights)
    network.eval()
    return tuple(row._replace(is_best=row.epoch == state.best_epoch) for row in state.curve)


def make_accelerator() -> Accelerator:
    """The device at hand: bf16 on a GPU, float32 on a CPU."""
    return Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")


def _parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Embedding tables with sparse gradients, and the rest."""
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding) and module.sparse}
    parameters = list(network.parameters())
    return [p for p in parameters if id(p) in tables], [p for p in parameters if id(p) not in tables]


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}


def _checkpoint(state: _State, network: nn.Module, optimizers: list[Any]) -> dict[str, Any]:
    """Everything the rest of the run depends on; the order of the rows follows from the seed and the epoch."""
    return {
        "state": {**vars(state), "curve": [tuple(row) for row in state.curve]},
        "network": _copy(network.state_dict()),
        "optimizers": [deepcopy(optimizer.state_dict()) for optimizer in optimizers],
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _resume(checkpoint: Mapping[str, Any], network: nn.Module, optimizers: list[Any], device: torch.device) -> _State:
    network.load_state_dict(checkpoint["network"])
    for optimizer, optimizer_state in zip(optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(deepcopy(optimizer_state))
    torch.set_rng_state(checkpoint["torch_rng"])
    if device.type == "cuda":
        torch.cuda.set_rng_state_all(checkpoint["cuda_rng"])
    state = _State(**checkpoint["state"])
    state.curve = tuple(CurveRow(*row) for row in checkpoint["state"]["curve"])
    return state
