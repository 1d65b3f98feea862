"""Count, in integers, how often a positive scores above a negative: within each user, and across all of them.

Every AUC here is a count of pairs, ties counting one half, so twice the count is an integer. Integers add up the same
in any order: a log split into shards gives, after adding, the very bits that the whole log gives.

    within users   key = user | score | label        one sort of 64-bit keys; a user's rows lie together, in score order
    across users   key = segment | rank | user | label

Sorting 64-bit integers is ten times as fast as sorting rows by them (`argsort`), and nothing but the key is needed
afterwards. A float64 score does not fit beside the user, so its lowest bits are cut off; where that makes a tie between
a positive and a negative of one user, that user is counted again from dense ranks. The result is exact for any score.

Letters: N rows, G groups, C segments, U users.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS_PER_BLOCK = 1 << 19
"""Rows decoded at a time: a few arrays of this length stay in the cache."""

ROWS_TRIED = 1024
"""Scores looked at before all are tried as float32."""

Integers = NDArray[np.int64]
Keys = NDArray[np.uint64]


class GroupSums(NamedTuple):
    """What AUC needs of each group of rows (a user, a user within a segment, a segment, the whole log)."""

    groups: Integers
    """(G,) ascending, those that have rows."""
    num_rows: Integers
    num_positives: Integers
    twice_won: Integers
    """Twice the pairs (a positive above a negative of the same group), a tie counting one half."""

    @property
    def num_pairs(self) -> Integers:
        """Pairs of a positive and a negative."""
        return self.num_positives * (self.num_rows - self.num_positives)

    @property
    def auc(self) -> NDArray[np.float64]:
        """Share of the pairs that are won; NaN for a group with one class."""
        num_pairs = self.num_pairs
        return np.where(num_pairs > 0, self.twice_won / (2.0 * np.maximum(num_pairs, 1)), np.nan)


class PooledSums(NamedTuple):
    """What each user adds to the pooled AUC of each segment; (C * U,), place segment * U + user."""

    twice_below: Integers
    """Sum over the user's positives of twice the segment's negatives below them, ties one half."""
    twice_above: Integers
    """Sum over the user's negatives of twice the segment's positives above them, ties one half."""


def sums_by_group(group: Integers, positive: NDArray[np.bool_], bits: Keys) -> GroupSums:
    """Rows, positives and won pairs of each group, by one sort.

    Args:
        group: (N,) from 0; the smaller the largest, the more bits are left to the score.
        positive: (N,)
        bits: (N,) the scores as `score_bits` writes them.
    """
    score_width = 63 - _width(group)
    shift = max(_width(bits) - score_width, 0)
    sums, torn = _decode(_packed(group, bits >> np.uint64(shift), positive, score_width), score_width)
    if shift == 0 or not len(torn):
        return sums
    again = np.isin(group, torn)
    exact = sums_by_rank(group[again], positive[again], dense_ranks(bits[again]))
    sums.twice_won[np.searchsorted(sums.groups, exact.groups)] = exact.twice_won
    return sums


def sums_by_rank(group: Integers, positive: NDArray[np.bool_], rank: Integers) -> GroupSums:
    """The same from ranks of the scores (see `dense_ranks`), for rows that are grouped in several ways.

    Args:
        group: (N,) from 0.
        positive: (N,)
        rank: (N,) from 0, equal where scores are equal.

    Raises:
        ValueError: group and rank do not fit into 63 bits together.
    """
    width = _width(rank)
    _check_width(_width(group) + width)
    return _decode(_packed(group, rank.astype(np.uint64), positive, width), width)[0]


def pooled_sums(
    segment: Integers,
    num_segments: int,
    user: Integers,
    num_users: int,
    positive: NDArray[np.bool_],
    rank: Integers,
    *,
    twice_won: Integers | None = None,
    twice_lost: Integers | None = None,
    into: PooledSums | None = None,
) -> PooledSums:
    """Place every row among the rows of its segment that have the other label, and add up by user.

    The last three arguments are for a part of the rows, such as a range of scores.

    Args:
        segment: (N,) in [0, num_segments).
        num_segments: C.
        user: (N,) in [0, num_users).
        num_users: U.
        positive: (N,)
        rank: (N,) dense ranks of the scores.
        twice_won: (C,) twice the negatives of the other parts that are below all these rows, once those that tie with
            all of them.
        twice_lost: (C,) the same of the positives that are above, or tie with, all these rows.
        into: the sums of the other parts; these are added to it.

    Raises:
        ValueError: segment, rank and user do not fit into 63 bits together.
    """
    rank_width, user_width = _width(rank), max(num_users - 1, 1).bit_length()
    _check_width(_width(segment) + rank_width + user_width)
    key = segment.astype(np.uint64) << np.uint64(rank_width)
    key |= rank.astype(np.uint64)
    key <<= np.uint64(user_width + 1)
    key |= user.astype(np.uint64) << np.uint64(1)
    key |= positive
    key.sort()
    below = np.zeros(num_segments, np.int64) if twice_won is None else twice_won.copy()
    above = 2 * np.bincount(segment[positive], minlength=num_segments) + (0 if twice_lost is None else twice_lost)
    sums = PooledSums(*np.zeros((2, num_segments * num_users), np.int64)) if into is None else into
    tie_shift = user_width + 1
    for block in _blocks(key, tie_shift):
        starts, tied, tied_positives = _ties(block, tie_shift)
        tied_negatives = tied - tied_positives
        segment_of = (block[starts] >> np.uint64(tie_shift + rank_width)).astype(np.int64)
        begins = np.flatnonzero(_changes(segment_of))
        here, ties_here = segment_of[begins], np.diff(np.append(begins, len(starts)))
        # twice the rows on the other side: counted from the start of the block, then from the start of the segment
        negatives = 2 * np.cumsum(tied_negatives) - tied_negatives
        positives = 2 * np.cumsum(tied_positives) - tied_positives
        negatives += np.repeat(below[here] - (negatives - tied_negatives)[begins], ties_here)
        positives = np.repeat(above[here] + (positives - tied_positives)[begins], ties_here) - positives
        is_positive = (block & np.uint64(1)).astype(bool)
        row_user = ((block >> np.uint64(1)) & np.uint64((1 << user_width) - 1)).astype(np.int64)
        place = row_user + np.repeat(segment_of * num_users, tied)
        for total, rows, twice in (
            (sums.twice_below, is_positive, negatives),
            (sums.twice_above, ~is_positive, positives),
        ):
            np.add.at(total, place[rows], np.repeat(twice, tied)[rows])
        below[here] += 2 * np.add.reduceat(tied_negatives, begins)
        above[here] -= 2 * np.add.reduceat(tied_positives, begins)
    return sums


def merged(shards: Sequence[GroupSums]) -> GroupSums:
    """The sums of shards that share no group, as one.

    Args:
        shards: at least one.
    """
    columns = [np.concatenate(parts) for parts in zip(*shards, strict=True)]
    order = np.argsort(columns[0])
    return GroupSums(*(column[order] for column in columns))


def dense_ranks(bits: Keys) -> Integers:
    """(N,) 0 for the lowest score, one more for each next distinct score; of scores as `score_bits` writes them."""
    order = _argsort(bits)
    ranks = np.empty(len(bits), np.int64)
    ranks[order] = np.cumsum(_changes(bits[order])) - 1
    return ranks


def score_bits(score: NDArray[np.floating]) -> Keys:
    """(N,) unsigned integers in the order of the scores, equal where they are equal, the lowest being 0.

    The bit pattern of a float grows with its size; that of a negative one falls, so it is turned round. Scores that
    float32 holds exactly take 32 bits.
    """
    exact = np.asarray(score, np.float64) + 0.0  # -0.0 becomes 0.0
    signed: Integers = exact.view(np.int64)
    turn = np.int64(np.iinfo(np.int64).min)
    with np.errstate(over="ignore"):
        if np.array_equal(exact[:ROWS_TRIED].astype(np.float32), exact[:ROWS_TRIED]):
            single = exact.astype(np.float32)
            if np.array_equal(single, exact):
                signed, turn = single.view(np.int32).astype(np.int64), np.int64(np.iinfo(np.int32).min)
    if signed.min(initial=0) < 0:
        signed = np.where(signed < 0, turn - signed, signed)
    return signed.view(np.uint64) - signed.min(initial=np.iinfo(np.int64).max).view(np.uint64)


def _argsort(bits: Keys) -> Integers:
    """(N,) row numbers in ascending order of the bits: the sort of 64-bit keys `top bits | row number`.

    Rows whose top bits are equal and whose lower bits are not are put in order afterwards; they are few.
    """
    row_width = max(len(bits) - 1, 0).bit_length()
    shift = max(_width(bits) + row_width - 64, 0)
    key = (bits >> np.uint64(shift)) << np.uint64(row_width)
    key |= np.arange(len(bits), dtype=np.uint64)
    key.sort()
    order = (key & np.uint64((1 << row_width) - 1)).astype(np.int64)
    if shift:
        key >>= np.uint64(row_width)
        ordered = bits[order]
        same_top = ~_changes(key)
        unsure = same_top & _changes(ordered)
        if unsure.any():
            run = np.cumsum(~same_top)
            rows = np.flatnonzero(np.isin(run, run[unsure]))
            order[rows] = order[rows[np.lexsort((ordered[rows], run[rows]))]]
    return order


def _packed(group: Integers, score: Keys, positive: NDArray[np.bool_], score_width: int) -> Keys:
    """(N,) sorted keys: group | score | label."""
    key = group.astype(np.uint64) << np.uint64(score_width + 1)
    key |= score << np.uint64(1)
    key |= positive
    key.sort()
    return key


def _decode(key: Keys, score_width: int) -> tuple[GroupSums, Integers]:
    """Sums of each group from sorted keys, and the groups in which a positive ties with a negative."""
    found: list[tuple[Integers, ...]] = []
    open_group, open_negatives = np.int64(-1), np.int64(0)  # the group that the last block left unfinished
    for block in _blocks(key, 1):
        starts, tied, tied_positives = _ties(block, 1)
        tied_negatives = tied - tied_positives
        group = (block[starts] >> np.uint64(score_width + 1)).astype(np.int64)
        begins = np.flatnonzero(_changes(group))
        negatives_before = np.cumsum(tied_negatives) - tied_negatives
        twice_won = np.add.reduceat(tied_positives * (2 * negatives_before + tied_negatives), begins)
        positives = np.add.reduceat(tied_positives, begins)
        negatives = np.add.reduceat(tied_negatives, begins)
        earlier = np.where(group[begins] == open_group, open_negatives, 0)
        twice_won += 2 * positives * (earlier - negatives_before[begins])
        torn = np.unique(group[(tied_positives > 0) & (tied_negatives > 0)])
        found.append((group[begins], positives + negatives, positives, twice_won, torn))
        open_group, open_negatives = group[-1], earlier[-1] + negatives[-1]
    if not found:
        nothing = np.zeros(0, np.int64)
        return GroupSums(nothing, nothing, nothing, nothing), nothing
    groups, *sums, torn = (np.concatenate(parts) for parts in zip(*found, strict=True))
    begins = np.flatnonzero(_changes(groups))
    return GroupSums(groups[begins], *(np.add.reduceat(one, begins) for one in sums)), np.unique(torn)


def _blocks(key: Keys, tie_shift: int) -> Iterator[Keys]:
    """Cut sorted keys into blocks of about ROWS_PER_BLOCK that keep ties (the same bits above the shift) together."""
    start = 0
    while start < len(key):
        stop = start + ROWS_PER_BLOCK
        if stop < len(key):
            stop = int(np.searchsorted(key, key[stop] | np.uint64((1 << tie_shift) - 1), side="right"))
        yield key[start:stop]
        start = stop


def _ties(key: Keys, tie_shift: int) -> tuple[Integers, Integers, Integers]:
    """Runs of keys that are equal above the shift: where each starts, its rows, its positives."""
    starts = np.flatnonzero(_changes(key >> np.uint64(tie_shift)))
    through = np.concatenate(([0], np.cumsum(key & np.uint64(1), dtype=np.int64)))
    bounds = np.append(starts, len(key))
    return starts, np.diff(bounds), np.diff(through[bounds])


def _changes(values: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(N,) true where a value differs from the one before, and at the first."""
    changed = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


def _width(values: NDArray[np.integer]) -> int:
    """Bits that the largest value takes."""
    return int(values.max(initial=0)).bit_length()


def _check_width(width: int) -> None:
    if width > 63:
        raise ValueError(
            f"rows, users and segments take {width} bits together; expected at most 63. Judge the log in parts."
        )
