"""Batches of pairs: shuffled anew each epoch, of like length, a query's pairs kept together where a loss needs them.

Letters: N pairs, U units (a query's pairs, or one pair), B pairs of a batch.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BATCHES_SORTED_AT_ONCE = 32
"""Of so many batches the units are sorted by length: little is padding, and yet no epoch is like the one before."""


class PairBatches:
    """The batches of every epoch; the same seed and epoch give the same.

    Args:
        length_N: tokens of each pair.
        query_N: which query a pair is of.
        batch_size: most pairs of a batch; a query with more is cut, at random, into pieces.
        grouped: keep the pairs of a query together.
        seed: of the order.
    """

    def __init__(
        self,
        length_N: NDArray[np.int64],
        query_N: NDArray[np.int64],
        *,
        batch_size: int,
        grouped: bool,
        seed: int,
    ) -> None:
        self._length_N = length_N
        # a pair by itself is a query of one pair
        self._unit_N = np.unique(query_N, return_inverse=True)[1] if grouped else np.arange(len(query_N))
        self._batch_size, self._seed = batch_size, seed

    def batches(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Positions of the pairs of each batch; every pair once."""
        rng = np.random.default_rng((self._seed, epoch))
        order_N = rng.permutation(len(self._unit_N))
        rank_U = rng.permutation(int(self._unit_N.max()) + 1)
        order_N = order_N[np.argsort(rank_U[self._unit_N[order_N]], kind="stable")]
        batches: list[NDArray[np.int64]] = []
        for pool_N in self._pools(order_N):
            batches.extend(self._packed(pool_N))
        yield from (batches[at] for at in rng.permutation(len(batches)))

    def _pools(self, order_N: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Runs of whole units, so many batches long."""
        unit_N = self._unit_N[order_N]
        starts_U = np.flatnonzero(np.diff(unit_N, prepend=-1))
        start = 0
        while start < len(order_N):
            after = start + BATCHES_SORTED_AT_ONCE * self._batch_size
            next_unit = int(np.searchsorted(starts_U, after))
            stop = int(starts_U[next_unit]) if next_unit < len(starts_U) else len(order_N)
            yield order_N[start:stop]
            start = stop

    def _packed(self, pool_N: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """A pool's batches: its units from long to short, as many as fit."""
        unit_N = self._unit_N[pool_N]
        starts_U = np.flatnonzero(np.diff(unit_N, prepend=-1))
        longest_U = np.maximum.reduceat(self._length_N[pool_N], starts_U)
        units = np.split(pool_N, starts_U[1:])
        taken: list[NDArray[np.int64]] = []
        num_taken = 0
        for at in np.argsort(-longest_U, kind="stable"):
            for start in range(0, len(units[at]), self._batch_size):
                piece = units[at][start : start + self._batch_size]
                if num_taken + len(piece) > self._batch_size:
                    yield np.concatenate(taken)
                    taken, num_taken = [], 0
                taken.append(piece)
                num_taken += len(piece)
        yield np.concatenate(taken)
