"""Training of KARMA: a language model learns what users want next, and to keep it sayable (arXiv 2603.22779).

    titles    the language model learns to read items and to say their titles       (optional, `embedders.karma_titles`)
    warm-up   what is new beside the language model learns to be read by it, from L_gen alone                 (optional)
    heads     W_h and the item tower learn from its states at rest, by L_act alone            (`embedders.karma_start`)
    joint     L = L_act + lambda (L_gen + L_recon + L_img), everything

What we keep: the joint loss; a frozen language model and action alone are the comparisons. Ours [NF->P], because the
paper's schedule, rates and sizes could not be read: the stages, their rates, several read-outs of a window
(`embedders.karma_draws`), users and items spread before the first step (`KarmaTowers.spread`), early stop on
validation recall. The loop is that of `embedders.fit_learn`.

Everything drawn is a function of (seed, epoch, process): a run that goes on from a checkpoint ends in the same bits.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list
from torch import Tensor

from embedders.karma import KarmaNetwork
from embedders.karma_checks import check_catalogue, check_dtype
from embedders.karma_curve import (
    UNTOUCHED_EPOCH,
    KarmaEpochRow,
    KarmaLosses,
    KarmaValidation,
    KarmaWatch,
)
from embedders.karma_draws import KarmaLog
from embedders.karma_losses import ImageFlow
from embedders.karma_objective import KarmaObjective
from embedders.karma_settings import Image, KarmaSettings
from embedders.karma_stages import KarmaStages, stages_of
from embedders.karma_start import spread
from embedders.rate_schedule import BETAS
from embedders.trained_weights import copied, put_back

__all__ = ["KarmaEpochRow", "KarmaLog", "KarmaSettings", "KarmaValidation", "KarmaWatch", "fit_karma", "stages_of"]


@dataclass
class _State:
    """Where a fit is, beside the weights. The best epoch is one of the joint stage."""

    epoch: int
    best_epoch: int
    best_recall: float = -float("inf")
    best_weights: dict[str, Tensor] | None = None
    curve: tuple[KarmaEpochRow, ...] = ()


def fit_karma(
    network: KarmaNetwork,
    log: KarmaLog,
    settings: KarmaSettings,
    *,
    validate: Callable[[], KarmaValidation] | None = None,
    watch: KarmaWatch | None = None,
    stopwatch: Callable[[], float] = time.perf_counter,
) -> tuple[KarmaEpochRow, ...]:
    """Train `network` in place; it ends in the state of the best recall (without any: the last), in eval mode.

    Of the best state and of checkpoints only trained weights are kept: to go on, make the same network first. torch's
    own generator is seeded anew in every epoch. On several GPUs (`accelerate launch`) each process takes its share of
    every batch, and what the first one finds in a validation counts.

    Args:
        network: float32, its initial weights are the caller's. It gets an `image_flow` while it needs one.
        log: what to learn from, rows of the catalogue that the network's features have.
        settings: how.
        validate: what held-out users say, the network being in eval mode. Called once before the first step, too.
        watch: hears of progress.
        stopwatch: seconds from any origin.

    Returns:
        The curve. Where there is a validation it begins with a row of epoch -1: all is spread, and no step done.

    Raises:
        ValueError: fewer than two users have a history and a target, the catalogue and the titles differ in length,
            pictures are asked for and there are none, trained weights are not float32, or the loss is not finite.
    """
    watch = watch or KarmaWatch()
    check_catalogue(network, log, settings)
    torch.manual_seed(settings.seed)  # of the flow's first weights
    if settings.image != "off":
        network.image_flow = _image_flow(network, settings.image)
    # a term that is off, and in the warm-up all but one, leave weights without a gradient: data-parallel training is
    # told of it; and no buffer here ever changes, so none needs to be sent round
    data_parallel = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(kwargs_handlers=[data_parallel])
    objective = KarmaObjective(network, log, settings, accelerator.device)
    of_language_model = dict(network.language_model_parameters())
    trained = dict(network.new_parameters()) | ({} if settings.frozen_language_model else of_language_model)
    check_dtype(trained)
    _let_learn(of_language_model, not settings.frozen_language_model)
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight for name, weight in trained.items() if (name in of_language_model) == is_lm]}
            for is_lm in (False, True)
        ],
        betas=BETAS,
        weight_decay=settings.weight_decay,
    )
    step, prepared = accelerator.prepare(objective, optimizer)
    training = KarmaStages(settings, log, objective, step, prepared, trained, accelerator, watch)
    stages = stages_of(settings)
    state = _State(epoch=0, best_epoch=stages.index("joint"))
    if watch.resume_from is not None:
        state = _resume(watch.resume_from, trained, optimizer)
    else:
        spread(network, log, settings.seed)
    if validate is not None and not state.curve:
        state.curve = (_untouched(network, validate, stopwatch),)
        watch.on_epoch(state.curve[0])

    while state.epoch < len(stages) and state.epoch - state.best_epoch <= settings.patience:
        started, stage = stopwatch(), stages[state.epoch]
        _let_learn(of_language_model, stage in ("titles", "joint") and not settings.frozen_language_model)
        torch.manual_seed(training.seed(state.epoch))
        losses = training.epoch(state.epoch, stages)
        network.eval()
        validation = KarmaValidation() if validate is None else _validated(validate)
        recall = validation.recall
        if stage == "joint" and (recall is None or recall > state.best_recall):
            state.best_recall, state.best_epoch = -float("inf") if recall is None else recall, state.epoch
            state.best_weights = copied(trained)
        row = KarmaEpochRow(state.epoch, stage, *losses, *validation, stopwatch() - started, is_best=False)
        state.curve = (*state.curve, row)
        state.epoch += 1
        watch.on_epoch(row)
        if watch.on_checkpoint is not None and accelerator.is_main_process:
            watch.on_checkpoint(_checkpoint(state, trained, optimizer))

    _let_learn(of_language_model, True)
    if state.best_weights is not None:
        put_back(trained, state.best_weights)
    network.image_flow = None
    network.eval()
    return tuple(row._replace(is_best=row.stage == "joint" and row.epoch == state.best_epoch) for row in state.curve)


def _let_learn(weights: Mapping[str, Tensor], whether: bool) -> None:
    for weight in weights.values():
        weight.requires_grad_(whether)


def _image_flow(network: KarmaNetwork, image: Image) -> ImageFlow:
    features = network.towers.features
    width = network.output_embeddings().shape[1] if image == "history" else network.shape.output_dim
    return ImageFlow(features.image_mean_V, features.image_scale_V, width)


def _untouched(
    network: KarmaNetwork, validate: Callable[[], KarmaValidation], stopwatch: Callable[[], float]
) -> KarmaEpochRow:
    started = stopwatch()
    network.eval()
    validation = _validated(validate)
    seconds = stopwatch() - started
    return KarmaEpochRow(UNTOUCHED_EPOCH, "untouched", *KarmaLosses(), *validation, seconds, is_best=False)


def _validated(validate: Callable[[], KarmaValidation]) -> KarmaValidation:
    """What the first process finds: were a last digit to differ, one would stop and the others wait for it for ever."""
    (validation,) = broadcast_object_list([validate()])
    assert isinstance(validation, KarmaValidation)
    return validation


def _checkpoint(state: _State, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything the rest of the run depends on; what is drawn follows from seed, epoch and process."""
    return {
        "state": {**vars(state), "curve": [tuple(row) for row in state.curve]},
        "weights": copied(trained),
        "optimizer": _on_cpu(optimizer.state_dict()),
    }


def _on_cpu(value: Any) -> Any:
    """A copy of nested dicts and lists, its tensors in the CPU's memory: there is more of that."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    return [_on_cpu(one) for one in value] if isinstance(value, list) else value


def _resume(checkpoint: Mapping[str, Any], trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> _State:
    put_back(trained, checkpoint["weights"])
    optimizer.load_state_dict(_on_cpu(checkpoint["optimizer"]))
    state = _State(**checkpoint["state"])
    state.curve = tuple(KarmaEpochRow(*row) for row in checkpoint["state"]["curve"])
    return state
