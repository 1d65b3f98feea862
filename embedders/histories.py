"""Users' interactions as flat arrays, and how a training batch is drawn from them (LEARN, arXiv 2405.03988).

    per user:   i1 i2 i3 i4 i5 | i6 i7 i8        `|` is the cut: history before it, targets from it on
    stage 1:    at most 80 of the history and 40 of the targets, a uniform subset, in order
    stage 2:    10 positions of each, the newest more often (`embedders.contrastive.sample_positions`)

What we keep: the chronological cut, both stages, the lengths. What differs, or is our proposal [NF->P]:
    the paper cuts everyone at one calendar date (9 months | 1 month); beside that there is a random cut per user and
    epoch, drawn as the official code draws it for its Amazon runs, because short logs have too few users with events
    on both sides of any one date. It may fall inside a basket: cuts between days only were worse on a retail log
    users of like length share a batch, which saves padding and does not change what a pair is

Letters: U users, E interactions of all users, B users of a batch, L history length, T targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PADDING = -1
"""Stands where a row of the batch has no item."""

BATCHES_SORTED_TOGETHER = 32
"""Users of that many batches are sorted by length before they are cut into batches."""


@dataclass(frozen=True)
class Sequences:
    """Interactions user after user, each user's oldest first. The arrays may be memory-mapped."""

    items_E: NDArray[np.int32]
    """Rows of the catalogue."""
    times_E: NDArray[np.int64] | None
    """Microseconds since 1970; None where only the order is known."""
    offsets_U: NDArray[np.int64]
    """[U + 1]: the events of user u are `offsets_U[u] : offsets_U[u + 1]`."""

    def __post_init__(self) -> None:
        if len(self.offsets_U) == 0 or self.offsets_U[0] != 0 or self.offsets_U[-1] != len(self.items_E):
            raise ValueError(
                f"Sequences: offsets must run from 0 to the number of interactions ({len(self.items_E)}), "
                f"got {self.offsets_U[:1].tolist()} to {self.offsets_U[-1:].tolist()}"
            )

    def __len__(self) -> int:
        return len(self.offsets_U) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Interactions of each user."""
        return np.diff(self.offsets_U)

    def of(self, user: int) -> NDArray[np.int32]:
        """Items of one user, oldest first."""
        return self.items_E[self.offsets_U[user] : self.offsets_U[user + 1]]

    def first_from(self, time: int) -> NDArray[np.int64]:
        """[U]: for each user, how many interactions are before `time` (microseconds)."""
        assert self.times_E is not None, "a calendar cut needs times"
        before = np.zeros(len(self.items_E) + 1, np.int64)
        np.cumsum(self.times_E < time, out=before[1:])
        return before[self.offsets_U[1:]] - before[self.offsets_U[:-1]]

    @classmethod
    def of_lists(cls, lists: list[list[int]]) -> "Sequences":
        """From one list of catalogue rows per user, oldest first."""
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return cls(np.array([row for one in lists for row in one], np.int32), None, offsets)

    def save(self, folder: Path) -> None:
        """Write the arrays, so that `open` can map them."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "items.npy", self.items_E)
        np.save(folder / "offsets.npy", self.offsets_U)
        if self.times_E is not None:
            np.save(folder / "times.npy", self.times_E)

    @classmethod
    def open(cls, folder: Path) -> "Sequences":
        """Map the arrays that `save` wrote."""
        times = folder / "times.npy"
        return cls(
            np.load(folder / "items.npy", mmap_mode="r"),
            np.load(times, mmap_mode="r") if times.exists() else None,
            np.load(folder / "offsets.npy"),
        )


class Cut(NamedTuple):
    """How users are divided into history and targets.

    Attributes:
        time: everyone at this time (microseconds); None: at random, anew in every epoch.
        earliest: of a random cut: the least share of a user's interactions that is history. The official code uses
            one half for training from scratch and 0 (at least one interaction) for its finetuning.
        max_history: items that the user tower reads at most.
        max_targets: items that the item tower reads at most.
    """

    time: int | None = None
    earliest: float = 0.5
    max_history: int = 80
    max_targets: int = 40


class CutBatch(NamedTuple):
    """Some users, divided. Rows of the catalogue, oldest first, padded on the right with PADDING."""

    history_BL: NDArray[np.int64]
    target_BT: NDArray[np.int64]


class Passes:
    """The order in which users are read: a function of (seed, epoch) only, so a resumed run reads the same batches."""

    def __init__(self, sequences: Sequences, cut: Cut, *, batch_size: int, seed: int) -> None:
        self.sequences = sequences
        self.cut = cut
        self.batch_size = batch_size
        self.seed = seed
        self.fixed_cut_U = None if cut.time is None else sequences.first_from(cut.time)
        lengths = sequences.lengths
        if self.fixed_cut_U is None:
            self.users = np.flatnonzero(lengths >= 2)
        else:
            self.users = np.flatnonzero((self.fixed_cut_U >= 1) & (self.fixed_cut_U < lengths))
        if len(self.users) < 2:
            raise ValueError(
                f"fit: {len(self.users)} of {len(sequences)} users have an interaction on both sides of the cut, "
                "expected at least 2. A longer log, or another cut, is needed."
            )

    @property
    def num_batches(self) -> int:
        """Of one epoch. A last batch of one user would have no negatives, so it joins the one before."""
        return max(1, round(len(self.users) / self.batch_size))

    def batches(self, epoch: int, share: int = 0, num_shares: int = 1) -> Iterator[CutBatch]:
        """The batches of one epoch.

        Args:
            epoch: from 0.
            share: of several processes, this one's number; each reads every `num_shares`-th user of every batch.
            num_shares: how many processes there are.
        """
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.users)
        cut_U = self._cuts(order, rng)
        lengths = self.sequences.lengths[order]
        chunk = self.batch_size * BATCHES_SORTED_TOGETHER
        in_chunks = np.arange(len(order)) // chunk
        by_length = np.lexsort((lengths, in_chunks))
        parts = np.array_split(by_length, self.num_batches)
        for number in rng.permutation(len(parts)):
            mine = parts[number][share::num_shares]
            draw = np.random.default_rng((self.seed, epoch, int(number), share))
            rows = [
                self._divided(order[at], cut_U[at], lengths[at], draw)
                for at in mine.tolist()  # a batch is a few hundred users: a loop costs less than the forward pass
            ]
            yield CutBatch(padded_rows([h for h, _ in rows]), padded_rows([t for _, t in rows]))

    def _cuts(self, users: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """The number of history interactions of each user."""
        if self.fixed_cut_U is not None:
            return self.fixed_cut_U[users]
        lengths = self.sequences.lengths[users]
        earliest = np.maximum(1, (lengths * self.cut.earliest).astype(np.int64))
        return rng.integers(earliest, lengths)

    def _divided(
        self, user: int, cut: int, length: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        start = self.sequences.offsets_U[user]
        return (
            self._subset(start, cut, self.cut.max_history, rng),
            self._subset(start + cut, length - cut, self.cut.max_targets, rng),
        )

    def _subset(self, start: int, length: int, most: int, rng: np.random.Generator) -> NDArray[np.int32]:
        """Stage 1: all, or a uniform subset in order; only what is kept is read."""
        if length <= most:
            return self.sequences.items_E[start : start + length]
        return self.sequences.items_E[start + np.sort(rng.choice(length, most, replace=False))]


def padded_rows(rows: list[NDArray[np.int32]]) -> NDArray[np.int64]:
    """Stack lists of catalogue rows, padded on the right with PADDING. [B, longest] int64."""
    longest = max(map(len, rows), default=0)
    stacked = np.full((len(rows), longest), PADDING, np.int64)
    for number, row in enumerate(rows):
        stacked[number, : len(row)] = row
    return stacked
