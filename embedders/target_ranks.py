"""Where each user's targets stand when all items are ranked for that user.

Ranks are exact: items that score higher are counted, nothing is sorted, nothing is sampled. `embedders.retrieval` makes
H@K, R@K, N@K and MRR of them.

Letters: U users, V users with a target, N items, d their width, E entries of all users, T distinct targets of all
users, H history entries, C users scored together, F items found.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embedders.histories import Sequences

SCORES_AT_ONCE = 32 * 2**20
"""Scores held in memory together, 128 MB: users are taken in chunks of this divided by the number of items."""

Ties = Literal["optimistic", "mid"]
"""Where a target stands among items of exactly its score: first, or where a random order puts it on average.

With h items strictly higher and b items of the same score, m of them targets of this user, the i-th of those m has rank
    h + i                       optimistic; for a single target the official code's rule, one more than those higher
    h + i (b + 1) / (m + 1)     mid; for a single target the mid-rank [NF->P]
so targets that tie never share a rank, and no metric exceeds 1.
"""


@dataclass(frozen=True)
class TargetRanks:
    """Ranks from 1 of the distinct targets, user after user, and how far ties decided them."""

    users_V: NDArray[np.int64]
    """Rows of the users with a target, ascending."""
    num_targets_V: NDArray[np.int64]
    """Distinct targets of each."""
    ranks_T: NDArray[np.float64]
    """Infinite where a list ended before the target."""
    num_users_skipped: int
    """Users without a target."""
    num_targets_repeated: int
    """Targets that their user had already: an item counts once."""
    num_targets_tied: int | None
    """Targets whose score an item has that is no target of their user. Null for lists, which have no scores."""
    num_users_constant: int | None
    """Users for whom all items score the same. Nothing is ranked for them, so either rule of `Ties` takes the mid-rank:
    by the official code's, a model that gives every item one score would be perfect. Null for lists."""


@dataclass(frozen=True)
class _Distinct:
    """Entries of users, each item once a user, ordered by user, then item."""

    users_T: NDArray[np.int64]
    items_T: NDArray[np.int64]
    keys_T: NDArray[np.int64]
    """user * num_items + item, ascending."""
    num_repeated: int


def rank_targets(
    users_UD: NDArray[np.float32],
    items_ND: NDArray[np.float32],
    targets: Sequences,
    history: Sequences | None = None,
    *,
    ties: Ties = "optimistic",
) -> TargetRanks:
    """Rank all items for each user by dot product and look where the targets are.

    Items with the same vector always tie. Time goes with U N d, and with N for each target; memory is `SCORES_AT_ONCE`
    scores beside the inputs, which may be memory-mapped.

    Args:
        users_UD: one vector a user.
        items_ND: the gallery. An item without a vector cannot be found: leave it and the targets on it out, and say so.
        targets: of each user, the items to be found.
        history: of each user, items taken out of the gallery, but never a target: an item met before that is a target
            stays. Entries of -1, items without a vector, are passed over. None: all items stay.
        ties: see `Ties`.

    Raises:
        ValueError: widths or numbers of users differ, a vector is not finite, an entry is not an item, or `ties` is
            unknown.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"ties must be one of {', '.join(get_args(Ties))}, got {ties!r}")
    _check_vectors(users_UD, items_ND, len(targets))
    num_items = len(items_ND)
    wanted = _distinct(targets, num_items)
    masked_keys_H = np.empty(0, np.int64)
    if history is not None:
        if len(history) != len(targets):
            raise ValueError(f"histories of {len(history)} users, targets of {len(targets)}: one each, in one order")
        seen = _distinct(history, num_items, may_lack_vectors=True)
        masked_keys_H = np.setdiff1d(seen.keys_T, wanted.keys_T, assume_unique=True)
    users_V, num_targets_V = np.unique(wanted.users_T, return_counts=True)
    scores_T, higher_T, tied_T = _count_higher(users_UD, items_ND, wanted, users_V, num_targets_V, masked_keys_H)

    gallery_U = num_items - np.bincount(masked_keys_H // max(num_items, 1), minlength=len(targets))
    is_constant_T = tied_T == gallery_U[wanted.users_T]
    nth_T, tied_targets_T = _place_among_tied_targets(wanted.users_T, scores_T)
    mid_T = nth_T * (tied_T + 1) / (tied_targets_T + 1)
    return TargetRanks(
        users_V=users_V,
        num_targets_V=num_targets_V,
        ranks_T=(higher_T + np.where(is_constant_T | (ties == "mid"), mid_T, nth_T)).astype(np.float64),
        num_users_skipped=len(targets) - len(users_V),
        num_targets_repeated=wanted.num_repeated,
        num_targets_tied=int((tied_T > tied_targets_T).sum()),
        num_users_constant=len(np.unique(wanted.users_T[is_constant_T])),
    )


def rank_targets_in_lists(lists_UK: NDArray[np.int64], targets: Sequences) -> TargetRanks:
    """Where the targets are in lists of items, best first; beyond the list the rank is infinite.

    Args:
        lists_UK: rows of items for each user, none twice; -1 where the index found no more.
        targets: of each user, the items to be found.

    Raises:
        ValueError: numbers of users differ, a list has an item twice, or a target is negative.
    """
    if lists_UK.ndim != 2 or len(lists_UK) != len(targets):
        raise ValueError(f"lists have shape {lists_UK.shape}, expected ({len(targets)}, K): one list for each user")
    num_items = 1 + max(int(lists_UK.max(initial=-1)), int(targets.items_E.max(initial=-1)))
    wanted = _distinct(targets, num_items)
    users_F, places_F = np.nonzero(lists_UK >= 0)
    keys_F = users_F * num_items + lists_UK[users_F, places_F]
    if len(np.unique(keys_F)) != len(keys_F):
        raise ValueError("a list has an item twice: rank each item once")
    ranks_T = np.full(len(wanted.keys_T), np.inf)
    _, found_F, found_T = np.intersect1d(keys_F, wanted.keys_T, assume_unique=True, return_indices=True)
    ranks_T[found_T] = places_F[found_F] + 1
    users_V, num_targets_V = np.unique(wanted.users_T, return_counts=True)
    return TargetRanks(users_V, num_targets_V, ranks_T, len(targets) - len(users_V), wanted.num_repeated, None, None)


def _distinct(sequences: Sequences, num_items: int, *, may_lack_vectors: bool = False) -> _Distinct:
    items_E = sequences.items_E.astype(np.int64)
    users_E = np.repeat(np.arange(len(sequences)), sequences.lengths)
    if may_lack_vectors:
        users_E, items_E = users_E[items_E >= 0], items_E[items_E >= 0]
    is_wrong_E = (items_E < 0) | (items_E >= num_items)
    if is_wrong_E.any():
        raise ValueError(
            f"{is_wrong_E.sum()} of {len(items_E)} entries are no item, such as {items_E[is_wrong_E][:3].tolist()}: "
            f"the gallery has rows 0 to {num_items - 1}. Leave out items without a vector, and count them."
        )
    keys_T = np.unique(users_E * num_items + items_E)
    users_T, items_T = np.divmod(keys_T, max(num_items, 1))
    return _Distinct(users_T, items_T, keys_T, len(items_E) - len(keys_T))


def _count_higher(
    users_UD: NDArray[np.float32],
    items_ND: NDArray[np.float32],
    wanted: _Distinct,
    users_V: NDArray[np.int64],
    num_targets_V: NDArray[np.int64],
    masked_keys_H: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Of each target: its score, the items of the gallery that score higher, and those that score the same, with it."""
    num_items, num_targets = len(items_ND), len(wanted.keys_T)
    copies, originals = _copies(items_ND)
    scores_T = np.empty(num_targets, np.float32)
    higher_T, tied_T = np.empty(num_targets, np.int64), np.empty(num_targets, np.int64)
    starts_V = np.cumsum(num_targets_V) - num_targets_V
    masked_users_H, masked_items_H = np.divmod(masked_keys_H, max(num_items, 1))
    users_at_once = max(1, SCORES_AT_ONCE // max(num_items, 1))
    for first in range(0, len(users_V), users_at_once):
        users_C = users_V[first : first + users_at_once]
        scores_CN = users_UD[users_C] @ items_ND.T
        scores_CN[:, copies] = scores_CN[:, originals]
        begin, end = np.searchsorted(masked_users_H, [users_C[0], users_C[-1] + 1])
        place_H = np.searchsorted(users_C, masked_users_H[begin:end])
        is_scored_H = users_C[place_H] == masked_users_H[begin:end]
        scores_CN[place_H[is_scored_H], masked_items_H[begin:end][is_scored_H]] = -np.inf
        place_T = np.repeat(np.arange(len(users_C)), num_targets_V[first : first + users_at_once])
        for target, place in enumerate(place_T, start=starts_V[first]):
            scores_N = scores_CN[place]
            score = scores_T[target] = scores_N[wanted.items_T[target]]
            higher_T[target] = np.count_nonzero(scores_N > score)
            tied_T[target] = np.count_nonzero(scores_N == score)
    return scores_T, higher_T, tied_T


def _copies(items_ND: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows whose vector an earlier row has, and that row.

    A matrix product may round the scores of one vector differently in two columns; only a score computed once ties.
    """
    row_bytes = np.dtype((np.void, items_ND.dtype.itemsize * items_ND.shape[1]))
    bytes_N = np.ascontiguousarray(items_ND).view(row_bytes).reshape(-1)
    _, first_N, distinct_N = np.unique(bytes_N, return_index=True, return_inverse=True)
    originals_N = first_N[distinct_N]
    copies = np.flatnonzero(originals_N != np.arange(len(items_ND)))
    return copies, originals_N[copies]


def _place_among_tied_targets(
    users_T: NDArray[np.int64], scores_T: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each target: its place, from 1, among the targets of its user that have its score, and how many those are."""
    order = np.lexsort((scores_T, users_T))
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (np.diff(users_T[order]) != 0) | (np.diff(scores_T[order]) != 0)
    starts = np.flatnonzero(begins)
    sizes = np.diff(np.append(starts, len(order)))
    nth_T, tied_targets_T = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    nth_T[order] = np.arange(len(order)) - np.repeat(starts, sizes) + 1
    tied_targets_T[order] = np.repeat(sizes, sizes)
    return nth_T, tied_targets_T


def _check_vectors(users_UD: NDArray[np.float32], items_ND: NDArray[np.float32], num_users: int) -> None:
    for name, vectors in (("user", users_UD), ("item", items_ND)):
        if vectors.ndim != 2 or vectors.dtype != np.float32:
            raise ValueError(f"{name} vectors must be a float32 matrix, got {vectors.dtype} of shape {vectors.shape}")
        broken = np.flatnonzero(~np.isfinite(vectors.sum(axis=1, dtype=np.float64)))
        if len(broken):
            raise ValueError(
                f"{len(broken)} of {len(vectors)} {name} vectors are not finite, such as rows {broken[:3].tolist()}: "
                "nothing can be ranked by them. Look for a diverged model."
            )
    if users_UD.shape[1] != items_ND.shape[1]:
        raise ValueError(f"user vectors are {users_UD.shape[1]} wide, item vectors {items_ND.shape[1]}: two models?")
    if len(users_UD) != num_users:
        raise ValueError(f"{len(users_UD)} user vectors, targets of {num_users} users: one each, in one order")
