"""What KARMA learns from, and how a training batch is drawn from it (arXiv 2603.22779; all of it ours [NF->P]).

    a user's log      i1 i2 i3 i4 i5 i6 i7 i8
    window               i2 i3 i4 i5 i6             ends anywhere, at most max_history + 1 long, anew in every epoch
    read-outs               ^     ^  ^              each is to find the item at its place from those before it in the
                                                    window; the last place is always one, the others are uniform

A longer user gives one window an epoch, like everybody: no user is heard more often than another. Users with windows of
like length share a batch, which saves padding and does not change what an example is.

Letters: E interactions, U users, B users of a batch, L history length, K read-outs of a user, M exposed items of one,
S sampled items of the catalogue.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedders.histories import BATCHES_SORTED_TOGETHER, PADDING, Sequences, padded_rows
from embedders.karma_packing import ANY_TIME, KarmaBatch

NO_QUERY = -1


@dataclass(frozen=True)
class KarmaLog:
    """Interactions with what was said and shown beside them, and the words of the catalogue."""

    sequences: Sequences
    """Who chose what, of E interactions."""
    titles: Sequence[Sequence[int]]
    """Token ids of each catalogue row's title, without the end token; none where it has no title."""
    queries: Sequence[Sequence[int]] = ()
    """Token ids of each distinct query."""
    query_E: NDArray[np.int32] | None = None
    """The row of `queries` under which each interaction happened, NO_QUERY for none. None: nobody searched."""
    exposed_EM: NDArray[np.int32] | None = None
    """Catalogue rows shown beside each interaction and not clicked, PADDING on the right. None: not known."""
    listed_N: NDArray[np.int64] | None = None
    """Since when each item could be chosen, in the unit of `sequences.times_E`. None: always."""

    def __post_init__(self) -> None:
        num_interactions = len(self.sequences.items_E)
        for name, values in (("query_E", self.query_E), ("exposed_EM", self.exposed_EM)):
            if values is not None and len(values) != num_interactions:
                raise ValueError(
                    f"KarmaLog: {name} has {len(values)} rows, but there are {num_interactions} interactions"
                )
        for name, values, known in (
            ("items_E", self.sequences.items_E, self.titles),
            ("query_E", self.query_E, self.queries),
            ("exposed_EM", self.exposed_EM, self.titles),
        ):
            if values is not None and values.size and int(values.max()) >= len(known):
                raise ValueError(
                    f"KarmaLog: {name} names row {int(values.max())}, but there are {len(known)} "
                    f"{'queries' if known is self.queries else 'titles, one a catalogue row'}"
                )


class CatalogueSample:
    """Items that everybody is compared with, whoever was shown what: a uniform draw of those known by then.

    Args:
        num_items: of the catalogue.
        size: of a draw, at most.
        listed_N: since when each item could be chosen; None: always.
    """

    def __init__(self, num_items: int, size: int, listed_N: NDArray[np.int64] | None) -> None:
        self.size = size
        self._oldest_first = np.arange(num_items) if listed_N is None else np.argsort(listed_N, kind="stable")
        self._listed_sorted = None if listed_N is None else listed_N[self._oldest_first]

    def draw(self, newest: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Distinct rows that are known by that time."""
        known = len(self._oldest_first)
        if self._listed_sorted is not None:
            known = int(np.searchsorted(self._listed_sorted, newest, side="right"))
        places = rng.choice(known, min(self.size, known), replace=False, shuffle=False)
        return self._oldest_first[places].astype(np.int64)


class KarmaDraw(NamedTuple):
    """How much is drawn.

    Attributes:
        max_history: items of a history.
        read_outs: of a user, at most.
        decoded: of these, how many also decode their title (those whose target has one).
        exposed: items shown beside a read-out's target, at most.
        query_share: of the read-outs with a query, how many see it.
        sampled: items of the catalogue that all read-outs of a batch are compared with, at most.
    """

    max_history: int
    read_outs: int
    decoded: int
    exposed: int
    query_share: float
    sampled: int = 0


class KarmaPasses:
    """The order in which users are read: a function of (seed, epoch, process), so a resumed run reads the same batches.

    Args:
        log: what is drawn from.
        draw: how much.
        batch_size: users of a batch, of all processes together.
        seed: of everything drawn.

    Raises:
        ValueError: fewer than two users have two interactions.
    """

    def __init__(self, log: KarmaLog, draw: KarmaDraw, *, batch_size: int, seed: int) -> None:
        self.log, self.draw, self.batch_size, self.seed = log, draw, batch_size, seed
        self.users = np.flatnonzero(log.sequences.lengths >= 2)
        self.sample = CatalogueSample(len(log.titles), draw.sampled, log.listed_N)
        if len(self.users) < 2:
            raise ValueError(
                f"fit_karma: {len(self.users)} of {len(log.sequences)} users have two interactions, a history and a "
                "target; expected at least 2 such users. A longer log is needed."
            )

    @property
    def num_batches(self) -> int:
        """Of one epoch. A last batch of one user would have no negatives of the batch, so it joins the one before."""
        return max(1, round(len(self.users) / self.batch_size))

    def batches(self, epoch: int, share: int = 0, num_shares: int = 1) -> Iterator[KarmaBatch[NDArray[Any]]]:
        """The batches of one epoch.

        Args:
            epoch: from 0.
            share: of several processes, this one's number; each reads every `num_shares`-th user of every batch.
            num_shares: how many processes there are.
        """
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.users)
        end_U = rng.integers(1, self.log.sequences.lengths[order])
        history_length_U = np.minimum(end_U, self.draw.max_history)
        in_chunks = np.arange(len(order)) // (self.batch_size * BATCHES_SORTED_TOGETHER)
        parts = np.array_split(np.lexsort((history_length_U, in_chunks)), self.num_batches)
        end_E = self.log.sequences.offsets_U[order] + end_U
        for number in rng.permutation(len(parts)).tolist():
            part = parts[number]
            mine = part[share::num_shares] if share < len(part) else part[:1]  # every process takes every step
            draw = np.random.default_rng((self.seed, epoch, number, share))
            yield self._batch(end_E[mine], history_length_U[mine], draw)

    def _batch(
        self, end_B: NDArray[np.int64], length_B: NDArray[np.int64], rng: np.random.Generator
    ) -> KarmaBatch[NDArray[Any]]:
        """Users whose windows end at these interactions, after histories of these lengths."""
        items_E, times_E, query_E = self.log.sequences.items_E, self.log.sequences.times_E, self.log.query_E
        num_read_outs = min(self.draw.read_outs, int(length_B.max()))
        shape = (len(end_B), num_read_outs)
        cut_BK = np.zeros(shape, np.int64)
        target_BK, query_BK = np.full(shape, PADDING, np.int64), np.full(shape, NO_QUERY, np.int64)
        exposed_BKM = np.full((*shape, self.draw.exposed), PADDING, np.int64)
        time_BK = np.full(shape, ANY_TIME, np.int64)
        decoded_BK = np.zeros(shape, bool)
        for row, (end, length) in enumerate(zip(end_B.tolist(), length_B.tolist(), strict=True)):
            num = min(num_read_outs, length)
            cut_K = np.append(np.sort(rng.choice(length - 1, num - 1, replace=False)) + 1, length)
            at_K = end - length + cut_K  # of all interactions
            cut_BK[row, :num], target_BK[row, :num] = cut_K, items_E[at_K]
            if times_E is not None:
                time_BK[row, :num] = times_E[at_K]
            if query_E is not None:
                sees_it_K = rng.random(num) < self.draw.query_share
                query_BK[row, :num] = np.where(sees_it_K, query_E[at_K], NO_QUERY)
            for place, at in enumerate(at_K.tolist()):
                shown = self._exposed(at, rng)
                exposed_BKM[row, place, : len(shown)] = shown
            decoded_BK[row, self._decoded(target_BK[row, :num], rng)] = True
        most_exposed = int((exposed_BKM != PADDING).sum(axis=2).max())
        history_BL = padded_rows([items_E[end - n : end] for end, n in zip(end_B, length_B, strict=True)])
        newest = int(time_BK[cut_BK > 0].max())
        return KarmaBatch(
            history_BL,
            cut_BK,
            target_BK,
            query_BK,
            exposed_BKM[:, :, :most_exposed],
            decoded_BK,
            time_BK,
            self.sample.draw(newest, rng),
        )

    def _exposed(self, at: int, rng: np.random.Generator) -> NDArray[np.int32]:
        """Some of what was shown beside an interaction; never its own item."""
        if self.log.exposed_EM is None:
            return np.empty(0, np.int32)
        shown_M = np.asarray(self.log.exposed_EM[at])
        shown_M = shown_M[(shown_M != PADDING) & (shown_M != self.log.sequences.items_E[at])]
        if len(shown_M) <= self.draw.exposed:
            return shown_M
        return rng.choice(shown_M, self.draw.exposed, replace=False)

    def _decoded(self, target_K: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Which of a user's read-outs decode their title: a uniform draw of those that have one."""
        has_title = np.flatnonzero([len(self.log.titles[target]) > 0 for target in target_K.tolist()])
        return rng.permutation(has_title)[: self.draw.decoded]
