"""The stages of KARMA's training, an epoch at a time: what one process does in each (order: `embedders.fit_karma`).

    titles            every process alike, over the catalogue
    warm-up, joint    each its share of every batch of users; gradients are averaged
    heads             all read, the first trains, the others are told

Everything drawn is a function of (seed, epoch, process).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from numpy.typing import NDArray
from torch import Tensor

from embedders.karma_checks import check_finite
from embedders.karma_curve import EpochMeans, KarmaLosses, KarmaWatch, Stage, StageProgress
from embedders.karma_draws import KarmaDraw, KarmaLog, KarmaPasses
from embedders.karma_objective import KarmaObjective
from embedders.karma_packing import KarmaBatch
from embedders.karma_settings import KarmaSettings
from embedders.karma_start import HEADS, MOST_READ_OUTS, fit_heads, read_outs, spread, together
from embedders.karma_titles import fit_titles
from embedders.rate_schedule import GRADIENT_NORM_LIMIT, share_of_peak_rate


def stages_of(settings: KarmaSettings) -> list[Stage]:
    """Of each epoch; titles, and heads over states that are read once, are told as one epoch each."""
    titles: list[Stage] = ["titles"] if settings.title_epochs else []
    warm_up: list[Stage] = ["warm_up"] * settings.warm_up_epochs
    heads: list[Stage] = ["heads"] if settings.head_epochs else []
    joint: list[Stage] = ["joint"] * settings.epochs
    return titles + warm_up + heads + joint


@dataclass(frozen=True)
class KarmaStages:
    """One process's part in them.

    Attributes:
        settings: of the fit.
        log: what is learnt from.
        objective: of the network, as it is.
        step: the same as data-parallel training calls it.
        optimizer: of the stages with a language model that learns; rates of what is new and of the language model.
        trained: every weight that learns in some stage, by name.
        accelerator: this process among all.
        watch: hears of users.
    """

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

    def epoch(self, epoch: int, stages: Sequence[Stage]) -> KarmaLosses:
        """An epoch, as its stage has it."""
        if stages[epoch] == "titles":
            return self.titles(epoch)
        return self.heads(epoch) if stages[epoch] == "heads" else self.over_users(epoch, stages)

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

    def over_users(self, epoch: int, stages: Sequence[Stage]) -> KarmaLosses:
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
            progress.after_reading(total, total)  # it may have stopped early
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
