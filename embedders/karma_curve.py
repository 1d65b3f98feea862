"""The curve of a fit of KARMA: what an epoch is told in, and who hears of it (the table KarmaCurves)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from embedders.karma_packing import KarmaBatch

Stage = Literal["untouched", "titles", "warm_up", "heads", "joint"]

UNTOUCHED_EPOCH = -1
"""Of the row that says what the network was before any step."""


class KarmaLosses(NamedTuple):
    """Mean losses of an epoch; None where no batch had such a term, or nothing was trained."""

    train: float | None = None
    action: float | None = None
    generation: float | None = None
    reconstruction: float | None = None
    image: float | None = None


class KarmaValidation(NamedTuple):
    """What held-out users say of the network as it is; None where nobody can say. As in the table KarmaCurves."""

    recall: float | None = None
    title_similarity: float | None = None
    participation_ratio: float | None = None
    effective_rank: float | None = None
    uniformity: float | None = None
    alignment: float | None = None
    top1_mass: float | None = None
    top4_mass: float | None = None
    column_entropy: float | None = None
    share_of_sink_heads: float | None = None
    title_perplexity: float | None = None


class KarmaEpochRow(NamedTuple):
    """One epoch of a training curve: the columns of the table KarmaCurves."""

    epoch: int
    stage: Stage
    train_loss: float | None
    action_loss: float | None
    generation_loss: float | None
    reconstruction_loss: float | None
    image_loss: float | None
    validation_recall: float | None
    title_similarity: float | None
    participation_ratio: float | None
    effective_rank: float | None
    uniformity: float | None
    alignment: float | None
    top1_mass: float | None
    top4_mass: float | None
    column_entropy: float | None
    share_of_sink_heads: float | None
    title_perplexity: float | None
    seconds: float
    is_best: bool


@dataclass(frozen=True)
class KarmaWatch:
    """Who hears of a fit, and where it starts."""

    on_users: Callable[[int], None] = lambda num_users: None
    """Users trained on since the last call."""
    on_epoch: Callable[[KarmaEpochRow], None] = lambda row: None
    """An epoch and its validation are over."""
    on_checkpoint: Callable[[dict[str, Any]], None] | None = None
    """Everything that `resume_from` needs, after each epoch; called in the main process only."""
    resume_from: Mapping[str, Any] | None = None
    """What `on_checkpoint` was given."""


class EpochMeans:
    """Means of the loss and its terms, each over those batches of an epoch that have it."""

    def __init__(self) -> None:
        self._sum_and_count = np.zeros((2, len(KarmaLosses._fields)))

    def add(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Of one batch."""
        for name, value in {"train": loss, **terms}.items():
            self._sum_and_count[:, KarmaLosses._fields.index(name)] += float(value.detach()), 1.0

    def over_processes(self, accelerator: Accelerator) -> KarmaLosses:
        """Of all batches of all processes."""
        sum_and_count = torch.from_numpy(self._sum_and_count).to(accelerator.device)
        totals, counts = accelerator.reduce(sum_and_count, "sum").tolist()
        return KarmaLosses(*(total / count if count else None for total, count in zip(totals, counts, strict=True)))


class StageProgress:
    """A stage that reads the users not at all, or once and then goes on by itself, told as one pass over them."""

    def __init__(self, num_users: int, tell: Callable[[int], None]) -> None:
        self.num_users, self.tell, self.told = num_users, tell, 0

    def while_read(self, batches: Iterator[KarmaBatch[NDArray[Any]]]) -> Iterator[KarmaBatch[NDArray[Any]]]:
        """The batches as they are: the first half of the stage."""
        seen = 0
        for batch in batches:
            yield batch
            seen += len(batch.history_BL)
            self._up_to(seen // 2)

    def after_reading(self, done: int, total: int) -> None:
        """So much of the second half is done."""
        half = self.num_users // 2
        self._up_to(half + (self.num_users - half) * done // total)

    def done(self, done: int, total: int) -> None:
        """So much of a stage that reads no users is done."""
        self._up_to(self.num_users * done // total)

    def _up_to(self, users: int) -> None:
        self.tell(users - self.told)
        self.told = users
