"""A user's interest as the mean of the content vectors of what they clicked.

LEARN, arXiv 2405.03988, calls this the baseline without alignment: nothing is learnt, so it needs no training log and
dates with the history alone. It is the yardstick for every learnt user vector.

Letters: N item vectors, D their width, H histories, T entries of all histories together, K interests.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

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

    An item that occurs twice counts twice; an item without a vector does not count. Beside the result, memory is taken
    for the entries only: item vectors are added where they lie, and may be memory-mapped.

    Args:
        vectors_ND: unit-norm item vectors.
        rows_T: the histories one after the other, each entry a row of `vectors_ND`, or -1 for no vector.
        lengths_H: entries of each history; adds up to T.

    Returns:
        The means of the histories in which any item has a vector.

    Raises:
        ValueError: the lengths do not add up to the entries, or an entry is beyond the last vector.
    """
    if int(lengths_H.sum()) != len(rows_T):
        raise ValueError(f"history lengths add up to {int(lengths_H.sum())}, but there are {len(rows_T)} entries")
    if rows_T.max(initial=-1) >= len(vectors_ND):
        raise ValueError(f"a history names vector {int(rows_T.max())}, but there are only {len(vectors_ND)}")
    has_vector_T = rows_T >= 0
    owner_T = np.repeat(np.arange(len(lengths_H)), lengths_H)[has_vector_T]
    num_items_H = np.bincount(owner_T, minlength=len(lengths_H))
    histories_K = np.flatnonzero(num_items_H)
    num_items_K = num_items_H[histories_K]
    means_KD = _mean_of_bags(vectors_ND, rows_T[has_vector_T], np.cumsum(num_items_K) - num_items_K)
    lengths_K = np.linalg.norm(means_KD, axis=1)
    has_direction_K = lengths_K >= SMALLEST_MEAN
    return HistoryMeans(
        vectors=means_KD[has_direction_K] / lengths_K[has_direction_K, None],
        histories=histories_K[has_direction_K],
        num_items=num_items_K[has_direction_K],
        num_cancelled=int((~has_direction_K).sum()),
    )


def _mean_of_bags(
    vectors_ND: NDArray[np.float32], rows_T: NDArray[np.int64], starts_K: NDArray[np.int64]
) -> NDArray[np.float32]:
    if len(starts_K) == 0:
        return np.empty((0, vectors_ND.shape[1]), np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        weights_ND = torch.from_numpy(vectors_ND)
    means_KD = torch.nn.functional.embedding_bag(
        torch.from_numpy(rows_T), weights_ND, torch.from_numpy(starts_K), mode="mean"
    )
    return means_KD.numpy()
