"""What each user adds to AUC, UAUC and WUAUC: the counts that values, intervals and paired gains are all made of.

A cell is one label within one segment. Per user it needs two integers (impressions, positives) and per ranker three:

    twice_won     pairs won among the user's own impressions             UAUC, WUAUC
    twice_below   negatives of the cell below the user's positives       AUC
    twice_above   positives of the cell above the user's negatives       AUC

so a log of any length comes down to users, and shards of a log add up. Counts are doubled, a tie being one half.

Letters: N rows, U users of the cell, S seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranker.ranked_rows import GroupSums, PooledSums, pooled_sums, sums_by_rank
from ranker.segments import in_order

PLACES_AT_ONCE = 1 << 25
"""Segments x users that are counted at a time: 2 arrays of 256 MB."""

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]
Counts = NDArray[np.int64] | NDArray[np.float64]


class SegmentCodes(NamedTuple):
    """One kind of segment, row by row."""

    kind: str
    segments: tuple[str, ...]
    code: Integers
    """(N,) place in `segments`; len(segments) where the row has none."""


class RankerSums(NamedTuple):
    """One ranker within one cell."""

    values: Vector
    """(S, 3) auc, uauc and wuauc of each seed; NaN where there is none."""
    twice_won: Counts
    """(U,) as the next two, mean over seeds."""
    twice_below: Counts
    twice_above: Counts


@dataclass(frozen=True)
class Cell:
    """One label within one segment."""

    label: str
    segment_kind: str
    segment: str
    users: Integers
    """(U,) ascending, as the next two: those with impressions in the cell."""
    user_impressions: Integers
    user_positives: Integers
    rankers: Mapping[str, RankerSums]

    @property
    def num_impressions(self) -> int:
        """All rows of the cell."""
        return int(self.user_impressions.sum())

    @property
    def num_positives(self) -> int:
        """All positives of the cell."""
        return int(self.user_positives.sum())

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(U,) users with both classes."""
        return (self.user_positives > 0) & (self.user_positives < self.user_impressions)

    def left_out(self, metric: str) -> dict[str, int]:
        """Users who count, and those left out, with their impressions and positives. AUC leaves nobody out."""
        skipped = np.zeros(len(self.users), bool) if metric == "auc" else ~self.kept
        return {
            "num_users": int((~skipped).sum()),
            "num_users_skipped": int(skipped.sum()),
            "num_impressions_skipped": int(self.user_impressions[skipped].sum()),
            "num_positives_skipped": int(self.user_positives[skipped].sum()),
        }

    def columns(self, low: int, high: int) -> Vector:
        """(4 + 4 per ranker, high - low) of the users [low, high): the sums that a bootstrap draw weighs.

        First the denominators: positives, negatives, users kept, their impressions. Then for each ranker twice_below,
        twice_above, AUC_u of users kept, n_u AUC_u of users kept.
        """
        rows, positives = (one[low:high].astype(np.float64) for one in (self.user_impressions, self.user_positives))
        pairs = positives * (rows - positives)
        kept = (pairs > 0).astype(np.float64)
        columns = [positives, rows - positives, kept, kept * rows]
        for sums in self.rankers.values():
            user_auc = sums.twice_won[low:high] / (2.0 * np.maximum(pairs, 1.0))
            pooled = (one[low:high].astype(np.float64) for one in (sums.twice_below, sums.twice_above))
            columns += [*pooled, user_auc, rows * user_auc]
        return np.array(columns)

    def drawn(self, totals: Vector) -> dict[str, Vector]:
        """By ranker (3, D): the metrics in each bootstrap draw, NaN where a draw has none.

        UAUC and WUAUC are ratios of sums over users as they stand. Pooled AUC compares rows of different users, so it
        is written to first order in the users' weights w (P and N: positives and negatives of the cell):

            AUC(w) ~ sum_u w_u below_u / (N sum_u w_u P_u) + sum_u w_u above_u / (P sum_u w_u N_u) - AUC

        What is dropped is of order 1/(number of users), against an interval of order 1/sqrt(number of users).

        Args:
            totals: (4 + 4 per ranker, D) `columns` summed over all users, each as often as it was drawn.
        """
        num_positives = self.num_positives
        num_negatives = self.num_impressions - num_positives
        draws = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            for place, (ranker, sums) in enumerate(self.rankers.items()):
                below, above, uauc, wuauc = totals[4 + 4 * place : 8 + 4 * place] / totals[:4]
                auc = below / (2.0 * num_negatives) + above / (2.0 * num_positives) - sums.values[:, 0].mean()
                draws[ranker] = np.clip(np.stack((auc, uauc, wuauc)), 0.0, 1.0)
        return draws


def codes_of(kind: str, column: pl.Series) -> SegmentCodes:
    """Number the segments of a Categorical column in the order in which they are listed."""
    distinct = column.unique().drop_nulls()
    names = distinct.cast(pl.String).to_list()
    segments = in_order(names)
    physical = distinct.to_physical().to_numpy()
    code_of = np.full(int(physical.max(initial=0)) + 2, len(segments))
    code_of[physical] = [segments.index(name) for name in names]
    code = code_of[column.to_physical().cast(pl.Int64).fill_null(len(code_of) - 1).to_numpy()]
    return SegmentCodes(kind, tuple(segments), code)


def count_cells(
    label: str,
    codes: SegmentCodes,
    user: Integers,
    num_users: int,
    positive: NDArray[np.bool_],
    ranks: Mapping[str, Sequence[Integers]],
) -> list[Cell]:
    """The cells of one kind of segment.

    Args:
        label: its name.
        codes: (N,) the segment of each row.
        user: (N,) in [0, num_users).
        num_users: in the whole log.
        positive: (N,)
        ranks: by ranker, for each seed (N,) dense ranks of the scores.
    """
    cells = []
    for first, last in segment_ranges(len(codes.segments), num_users):
        inside = (codes.code >= first) & (codes.code < last)
        rows: slice | NDArray[np.bool_] = slice(None) if inside.all() else inside
        code, who, truth = codes.code[rows] - first, user[rows], positive[rows]
        counts: dict[str, list[tuple[GroupSums, PooledSums]]] = {}
        for ranker, seeds in ranks.items():
            for seed in seeds:
                rank = seed[rows]
                within = sums_by_rank(code * num_users + who, truth, rank)
                pooled = pooled_sums(code, last - first, who, num_users, truth, rank)
                counts.setdefault(ranker, []).append((within, pooled))
        cells += cells_from_counts(label, codes.kind, codes.segments[first:last], num_users, counts)
    return cells


def segment_ranges(num_segments: int, num_users: int) -> Iterator[tuple[int, int]]:
    """Ranges of segments to be counted together, so that segments x users stay bounded."""
    step = max(PLACES_AT_ONCE // max(num_users, 1), 1)
    for first in range(0, num_segments, step):
        yield first, min(first + step, num_segments)


def cells_from_counts(
    label: str,
    kind: str,
    segments: Sequence[str],
    num_users: int,
    counts: Mapping[str, Sequence[tuple[GroupSums, PooledSums]]],
) -> list[Cell]:
    """Cells from the counts of all rows.

    Args:
        label: its name.
        kind: of the segments.
        segments: C names.
        num_users: U, in the whole log.
        counts: by ranker, for each seed: the groups segment * U + user, and (C * U,) what they add to the pooled AUC.
    """
    cells = []
    groups, num_rows, num_positives, _ = next(iter(counts.values()))[0][0]
    bounds = np.searchsorted(groups, np.arange(len(segments) + 1) * num_users)
    for place, segment in enumerate(segments):
        part = slice(bounds[place], bounds[place + 1])
        here = groups[part]
        cell = Cell(label, kind, segment, here - place * num_users, num_rows[part], num_positives[part], {})
        rankers = {}
        for ranker, seeds in counts.items():
            each = [(w.twice_won[part], p.twice_below[here], p.twice_above[here]) for w, p in seeds]
            values = np.array([_values(cell, won, below) for won, below, _ in each])
            mean = each[0] if len(each) == 1 else tuple(np.mean(columns, axis=0) for columns in zip(*each, strict=True))
            rankers[ranker] = RankerSums(values, *mean)
        cells.append(Cell(label, kind, segment, cell.users, cell.user_impressions, cell.user_positives, rankers))
    return cells


def _values(cell: Cell, twice_won: Integers, twice_below: Integers) -> Vector:
    """(3,) auc, uauc, wuauc of one run; NaN where there is none."""
    values = np.full(3, np.nan)
    rows, positives, kept = cell.user_impressions, cell.user_positives, cell.kept
    num_pairs = cell.num_positives * (cell.num_impressions - cell.num_positives)
    if num_pairs:
        values[0] = int(twice_below.sum()) / (2 * num_pairs)
    if kept.any():
        user_auc = twice_won[kept] / (2.0 * positives[kept] * (rows - positives)[kept])
        values[1:] = user_auc.mean(), np.average(user_auc, weights=rows[kept])
    return values
