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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from numpy.typing import NDArray
from torch import Tensor

from embedders.fit_learn import BETAS, GRADIENT_NORM_LIMIT, share_of_peak_rate
from embedders.karma import KarmaNetwork
from embedders.karma_checks import check_catalogue, check_dtype, check_finite
from embedders.karma_curve import (
    UNTOUCHED_EPOCH,
    EpochMeans,
    KarmaEpochRow,
    KarmaLosses,
    KarmaValidation,
    KarmaWatch,
    Stage,
    StageProgress,
)
from embedders.karma_draws import KarmaDraw, KarmaLog, KarmaPasses
from embedders.karma_losses import ImageFlow
from embedders.karma_objective import KarmaObjective
from embedders.karma_packing import KarmaBatch
from embedders.karma_settings import Image, KarmaSettings
from embedders.karma_start import HEADS, MOST_READ_OUTS, fit_heads, read_outs, spread, together
from embedders.karma_titles import fit_titles
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
    training = _Training(settings, log, objective, step, prepared, trained, accelerator, watch)
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
        losses = training.stage(state.epoch, stages)
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


def stages_of(settings: KarmaSettings) -> list[Stage]:
    """Of each epoch; titles, and heads over states that are read once, are told as one epoch each."""
    titles: list[Stage] = ["titles"] if settings.title_epochs else []
    warm_up: list[Stage] = ["warm_up"] * settings.warm_up_epochs
    heads: list[Stage] = ["heads"] if settings.head_epochs else []
    joint: list[Stage] = ["joint"] * settings.epochs
    return titles + warm_up + heads + joint


@dataclass(frozen=True)
class _Training:
    """One process's part in the stages."""

    settings: KarmaSettings
    log: KarmaLog
    objective: KarmaObjective
    step: Any
    optimizer: Any
    trained: Mapping[str, Tensor]
    accelerator: Accelerator
    watch: KarmaWatch

    def seed(self, epoch: int) -> int:
        """Of what is drawn in the passes of an epoch: dropout, the flow's noise."""
        of_this_process = np.random.SeedSequence((self.settings.seed, epoch, self.accelerator.process_index))
        return int(of_this_process.generate_state(1)[0])

    def stage(self, epoch: int, stages: Sequence[Stage]) -> KarmaLosses:
        """An epoch, as its stage has it."""
        if stages[epoch] == "titles":
            return self.titles(epoch)
        return self.heads(epoch) if stages[epoch] == "heads" else self.epoch(epoch, stages)

    def titles(self, epoch: int) -> KarmaLosses:
        """By every process alike, so that none waits; then users and items, who are read anew, are spread anew."""
        network, settings, log = self.objective.network, self.settings, self.log
        progress = StageProgress(len(self._passes("titles").users), self.watch.on_users)
        seed = int(np.random.SeedSequence((settings.seed, epoch)).generate_state(1)[0])
        loss = fit_titles(
            self.objective, self.trained, log.titles, settings, epoch=epoch, seed=seed, on_step=progress.done
        )
        spread(network, log, settings.seed)
        self._told_by_the_first("")  # a last digit may differ
        (loss,) = broadcast_object_list([loss])
        return KarmaLosses(train=loss)

    def epoch(self, epoch: int, stages: Sequence[Stage]) -> KarmaLosses:
        """One pass over the users with a step a batch."""
        settings, stage = self.settings, stages[epoch]
        passes = self._passes(stage)
        first_step = (epoch - stages.index(stage)) * passes.num_batches
        num_steps = stages.count(stage) * passes.num_batches
        peaks = (settings.learning_rate, settings.language_model_rate)
        self.step.train()
        means = EpochMeans()
        for number, batch in enumerate(self._batches(passes, epoch), start=first_step):
            rate = share_of_peak_rate(number, num_steps, settings.warmup)
            for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            loss, terms = self.step(
                KarmaBatch(*(torch.from_numpy(part).to(self.accelerator.device) for part in batch)), stage == "joint"
            )
            check_finite(loss, terms, epoch, settings)
            means.add(loss, terms)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.trained.values(), GRADIENT_NORM_LIMIT)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.watch.on_users(len(batch.history_BL))
        return means.over_processes(self.accelerator)

    def heads(self, epoch: int) -> KarmaLosses:
        """By the first process, from states that all of them read; the others are told what it learnt."""
        passes, loss = self._passes("heads"), 0.0
        most = MOST_READ_OUTS // self.accelerator.num_processes
        progress = StageProgress(len(passes.users), self.watch.on_users)
        mine = read_outs(self.objective, progress.while_read(self._batches(passes, epoch)), most)
        found = together(gather_object([mine]))
        if self.accelerator.is_main_process:
            total = self.settings.head_epochs
            seed = self.seed(epoch)
            loss = fit_heads(
                self.objective,
                found,
                passes.sample,
                self.settings,
                epoch=epoch,
                seed=seed,
                on_epoch=lambda number: progress.after_reading(number + 1, total),
            )
        self._told_by_the_first(HEADS)
        (loss,) = broadcast_object_list([loss])
        return KarmaLosses(train=loss, action=loss)

    def _told_by_the_first(self, names: str | tuple[str, ...]) -> None:
        """Weights whose names begin so become those of the first process."""
        for name, weight in self.trained.items():
            if name.startswith(names):
                broadcast(weight.data, from_process=0)

    def _batches(self, passes: KarmaPasses, epoch: int) -> Iterator[KarmaBatch[NDArray[Any]]]:
        return passes.batches(epoch, self.accelerator.process_index, self.accelerator.num_processes)

    def _passes(self, stage: Stage) -> KarmaPasses:
        settings = self.settings
        decodes = settings.decodability > 0.0 and (settings.generation or settings.reconstruction)
        read_outs, decoded = settings.read_outs, settings.decoded if decodes and stage == "joint" else 0
        exposed, sampled = settings.exposed, settings.catalogue_negatives
        if stage == "warm_up":  # what does not decode teaches nothing here
            read_outs = decoded = max(1, settings.decoded)
            exposed = sampled = 0
        max_history = self.objective.network.shape.max_history
        draw = KarmaDraw(max_history, read_outs, decoded, exposed, settings.query_share, sampled)
        return KarmaPasses(self.log, draw, batch_size=settings.batch_size, seed=settings.seed)


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
