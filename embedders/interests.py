"""A user's interest as the mean of the content vectors of what they clicked.

LEARN, arXiv 2405.03988, calls this the baseline without alignment: nothing is learnt, so it needs no training log and
dates with the history alone. It is the yardstick for every learnt user vector.

Letters: N item vectors, D their width, H histories, T history entries over all histories, K interests.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GATHERED_BYTES_AT_ONCE = 64 * 2**20
"""Item vectors gathered at one time; keeps memory flat however many histories are asked for."""

SMALLEST_MEAN = 1e-6
"""A shorter mean of unit vectors has no direction: it is what rounding left of vectors that cancel."""


class HistoryMeans(NamedTuple):
    """Unit-norm means, only of the histories that have one.

    Attributes:
        vectors: [K, D] float32, unit norm.
        histories: [K] int64, ascending: which history each belongs to.
        num_items: [K] int64: history entries that had a vector.
        num_cancelled: histories left out although they had vectors, because those add up to nothing.
    """

    vectors: NDArray[np.float32]
    histories: NDArray[np.int64]
    num_items: NDArray[np.int64]
    num_cancelled: int


def mean_of_history(
    vectors_ND: NDArray[np.float32], rows_T: NDArray[np.int64], lengths_H: NDArray[np.int64]
) -> HistoryMeans:
    """Average item vectors over each history, then scale to length 1.

    An item that occurs twice counts twice; an item without a vector does not count.

    Args:
        vectors_ND: unit-norm item vectors; may be memory-mapped.
        rows_T: the histories one after the other, each entry a row of `vectors_ND`, or -1 for no vector.
        lengths_H: entries of each history; adds up to T.

    Returns:
        The means of the histories in which any item has a vector.

    Raises:
        ValueError: the lengths do not add up to the entries.
        IndexError: an entry is beyond the last vector.
    """
    if int(lengths_H.sum()) != len(rows_T):
        raise ValueError(f"history lengths add up to {int(lengths_H.sum())}, but there are {len(rows_T)} entries")
    has_vector_T = rows_T >= 0
    owner_T = np.repeat(np.arange(len(lengths_H)), lengths_H)[has_vector_T]
    rows_T = rows_T[has_vector_T]
    num_items_H = np.bincount(owner_T, minlength=len(lengths_H))
    histories_K = np.flatnonzero(num_items_H)
    num_items_K = num_items_H[histories_K]
    ends_K = np.cumsum(num_items_K)
    starts_K = ends_K - num_items_K

    width = vectors_ND.shape[1]
    entries_at_once = max(1, GATHERED_BYTES_AT_ONCE // (4 * width))
    means_KD = np.empty((len(histories_K), width), np.float32)
    lengths_K = np.empty(len(histories_K))
    first = 0
    while first < len(histories_K):
        # at least one history a turn, however long it is
        last = max(first + 1, int(np.searchsorted(ends_K, starts_K[first] + entries_at_once, side="right")))
        gathered_TD = vectors_ND[rows_T[starts_K[first] : ends_K[last - 1]]]
        sums_KD = np.add.reduceat(gathered_TD, starts_K[first:last] - starts_K[first], axis=0, dtype=np.float64)
        means = sums_KD / num_items_K[first:last, None]
        lengths_K[first:last] = np.linalg.norm(means, axis=1)
        means_KD[first:last] = means / np.maximum(lengths_K[first:last, None], SMALLEST_MEAN)
        first = last

    has_direction_K = lengths_K >= SMALLEST_MEAN
    if has_direction_K.all():
        return HistoryMeans(means_KD, histories_K, num_items_K, 0)
    return HistoryMeans(
        means_KD[has_direction_K],
        histories_K[has_direction_K],
        num_items_K[has_direction_K],
        int((~has_direction_K).sum()),
    )
