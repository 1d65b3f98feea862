"""Training of KARMA: a language model learns what users want next, and to keep it sayable (arXiv 2603.22779).

    stage 0   warm-up    what is new beside the language model learns to be read by it, from L_gen alone      (optional)
    stage 1   joint      L = L_act + lambda (L_gen + L_recon + L_img), everything

What we keep: the joint loss; a frozen language model and action alone are the comparisons. Ours [NF->P], because the
paper's schedule, rates and sizes could not be read: the two stages, two learning rates, several read-outs of a window
(`embedders.karma_draws`), users and items spread before the first step (`KarmaTowers.spread`), early stop on
validation recall. The loop is that of `embedders.fit_learn`.

Everything drawn is a function of (seed, epoch, process): a run that goes on from a checkpoint ends in the same bits.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list
from torch import Tensor

from embedders.fit_learn import BETAS, GRADIENT_NORM_LIMIT, share_of_peak_rate
from embedders.histories import PADDING, padded_rows
from embedders.karma import KarmaNetwork
from embedders.karma_curve import (
    UNTOUCHED_EPOCH,
    EpochMeans,
    KarmaEpochRow,
    KarmaLosses,
    KarmaValidation,
    KarmaWatch,
    Stage,
)
from embedders.karma_draws import KarmaDraw, KarmaLog, KarmaPasses
from embedders.karma_losses import ImageFlow
from embedders.karma_objective import KarmaObjective
from embedders.karma_packing import KarmaBatch, pack
from embedders.karma_settings import Image, KarmaSettings
from embedders.trained_weights import copied, put_back

__all__ = ["KarmaEpochRow", "KarmaLog", "KarmaSettings", "KarmaValidation", "KarmaWatch", "fit_karma"]

USERS_SAMPLED, ITEMS_SAMPLED = 64, 4096
"""They say where the middle is, and how far users and items spread."""


@dataclass
class _State:
    """Where a fit is, beside the weights. The best epoch is one of stage 1."""

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
    _check_catalogue(network, log, settings)
    torch.manual_seed(settings.seed)  # of the flow's first weights
    if settings.image != "off":
        network.image_flow = _image_flow(network, settings.image)
    # a term that is off, and in stage 0 all but one, leave weights without a gradient: data-parallel training is told
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    process, num_processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    objective = _objective(network, log, settings, device)
    of_language_model = dict(network.language_model_parameters())
    trained = dict(network.new_parameters()) | ({} if settings.frozen_language_model else of_language_model)
    _check_dtype(trained)
    _let_learn(of_language_model, not settings.frozen_language_model)
    peaks = (settings.learning_rate, settings.language_model_rate)
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight for name, weight in trained.items() if (name in of_language_model) == is_lm]}
            for is_lm in (False, True)
        ],
        betas=BETAS,
        weight_decay=settings.weight_decay,
    )
    step, prepared = accelerator.prepare(objective, optimizer)
    state = _State(epoch=0, best_epoch=settings.warm_up_epochs)
    if watch.resume_from is not None:
        state = _resume(watch.resume_from, trained, optimizer)
    else:
        _spread(network, log, settings)
    if validate is not None and not state.curve:
        state.curve = (_untouched(network, validate, stopwatch),)
        watch.on_epoch(state.curve[0])

    last = settings.warm_up_epochs + settings.epochs
    while state.epoch < last and state.epoch - state.best_epoch <= settings.patience:
        started = stopwatch()
        joint = state.epoch >= settings.warm_up_epochs
        _let_learn(of_language_model, joint and not settings.frozen_language_model)
        passes = _passes(network, log, settings, joint)
        first_step = (state.epoch - joint * settings.warm_up_epochs) * passes.num_batches
        num_steps = (settings.epochs if joint else settings.warm_up_epochs) * passes.num_batches
        # of dropout and the flow's noise
        torch.manual_seed(int(np.random.SeedSequence((settings.seed, state.epoch, process)).generate_state(1)[0]))
        step.train()
        means = EpochMeans()
        for number, batch in enumerate(passes.batches(state.epoch, process, num_processes), start=first_step):
            rate = share_of_peak_rate(number, num_steps, settings.warmup)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            loss, terms = step(KarmaBatch(*(torch.from_numpy(part).to(device) for part in batch)), joint)
            _check_finite(loss, terms, state.epoch, settings)
            means.add(loss, terms)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained.values(), GRADIENT_NORM_LIMIT)
            prepared.step()
            prepared.zero_grad()
            watch.on_users(len(batch.history_BL))
        network.eval()
        validation = KarmaValidation() if validate is None else _validated(validate)
        recall = validation.recall
        if joint and (recall is None or recall > state.best_recall):
            state.best_recall, state.best_epoch = -float("inf") if recall is None else recall, state.epoch
            state.best_weights = copied(trained)
        stage: Stage = "joint" if joint else "warm_up"
        losses, seconds = means.over_processes(accelerator), stopwatch() - started
        row = KarmaEpochRow(state.epoch, stage, *losses, *validation, seconds, is_best=False)
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


def _spread(network: KarmaNetwork, log: KarmaLog, settings: KarmaSettings) -> None:
    """By a sample of the users and of the catalogue."""
    rng = np.random.default_rng(settings.seed)
    users = rng.permutation(np.flatnonzero(log.sequences.lengths >= 2))[:USERS_SAMPLED]
    history_BL = padded_rows([log.sequences.of(user)[:-1][-network.shape.max_history :] for user in users])
    ends_B1 = (history_BL != PADDING).sum(axis=1, keepdims=True)
    packed = pack(history_BL, ends_B1, instruction=network.towers.instruction)
    items = rng.permutation(len(log.titles))[:ITEMS_SAMPLED]
    was_training = network.training
    network.towers.eval().spread(packed, torch.from_numpy(items).to(network.towers.read_out_D.device))
    network.train(was_training)


def _check_catalogue(network: KarmaNetwork, log: KarmaLog, settings: KarmaSettings) -> None:
    features = network.towers.features.frozen
    if len(features) != len(log.titles):
        raise ValueError(
            f"fit_karma: the catalogue has {len(features)} items with features and {len(log.titles)} titles; expected "
            "one title an item, an empty one where there is none"
        )
    if settings.image != "off" and features.image is None:
        raise ValueError(
            f"fit_karma: image = {settings.image!r} tells pictures, but no item has one. Embed images first "
            "(embed_images), or choose image = 'off'."
        )


def _check_dtype(trained: Mapping[str, Tensor]) -> None:
    for name, weight in trained.items():
        if weight.dtype != torch.float32:
            raise ValueError(
                f"fit_karma: {name} is {weight.dtype}, too coarse for small steps to add up; expected float32. Load "
                "the language model with dtype = 'float32' (precision says what its passes are in), or freeze it."
            )


def _let_learn(weights: Mapping[str, Tensor], whether: bool) -> None:
    for weight in weights.values():
        weight.requires_grad_(whether)


def _image_flow(network: KarmaNetwork, image: Image) -> ImageFlow:
    features = network.towers.features
    width = network.output_embeddings().shape[1] if image == "history" else network.shape.output_dim
    return ImageFlow(features.image_mean_V, features.image_scale_V, width)


def _objective(network: KarmaNetwork, log: KarmaLog, settings: KarmaSettings, device: torch.device) -> KarmaObjective:
    decodes = settings.decodability > 0.0
    return KarmaObjective(
        network,
        log.titles,
        log.queries,
        action=settings.action,
        scale=settings.scale,
        decodability=settings.decodability,
        generation=settings.generation and decodes,
        reconstruction=settings.reconstruction and decodes,
        image=settings.image if decodes else "off",
        in_bfloat16=settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda"),
    )


def _passes(network: KarmaNetwork, log: KarmaLog, settings: KarmaSettings, joint: bool) -> KarmaPasses:
    if joint:
        decodes = settings.decodability > 0.0 and (settings.generation or settings.reconstruction)
        read_outs, decoded = settings.read_outs, settings.decoded if decodes else 0
        exposed, random_negatives = settings.exposed, settings.random_negatives
    else:  # what does not decode teaches nothing here
        read_outs = decoded = max(1, settings.decoded)
        exposed = random_negatives = 0
    draw = KarmaDraw(network.shape.max_history, read_outs, decoded, exposed, settings.query_share, random_negatives)
    return KarmaPasses(log, draw, batch_size=settings.batch_size, seed=settings.seed)


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


def _check_finite(loss: Tensor, terms: Mapping[str, Tensor], epoch: int, settings: KarmaSettings) -> None:
    """After every step: one such step spoils all weights, and an epoch of a language model may be an hour."""
    value = float(loss.detach())
    if not math.isfinite(value):
        parts = ", ".join(f"{name} {float(term):.4g}" for name, term in terms.items())
        raise ValueError(
            f"fit_karma: the training loss became {value} in epoch {epoch} (seed {settings.seed}; {parts}). "
            f"Expected a finite number: lower learning_rate (now {settings.learning_rate}) or language_model_rate (now "
            f"{settings.language_model_rate}), choose precision = 'float32', or look for NaN in the frozen vectors."
        )


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
