"""How well scores follow human judgements of (query, item) pairs: Spearman, ROC-AUC, PR-AUC of the irrelevant, NDCG@k.

    spearman            correlation of the ranks of scores and grades, ties at their mid-rank; all pairs together
    roc_auc             probability that a relevant pair scores above an irrelevant one, a tie counts one half
    pr_auc_irrelevant   average precision of finding the irrelevant pairs from the lowest score up
    ndcg                mean over queries of DCG / its value in the best order, of the first k items

The first three pool the pairs of all queries, so they also ask that scores mean the same from one query to the next,
which a threshold or a ranker that reads the score needs. NDCG compares the items of one query only.

ELLM-rele + MKD, arXiv 2411.13045, names neither its metrics nor their ties: these are ours [NF->P]. Grades are any
numbers, higher is more relevant. Each metric takes whole copies of queries as weights, which is what a bootstrap by
query draws (`embedders.query_bootstrap`): with weights it equals the metric of the rows repeated so often.

Letters: N pairs, Q queries, G groups of equal value.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RELEVANT_FROM = 2.33
"""Of grades from 1 to 3, each the mean of about three raters: from here on a pair is relevant. [NF->P]"""

NDCG_CUTOFF = 10
_ROUNDING = 1e-5  # a grade of 2.33 that was kept in float32 is 2.3299999


class RankingMetrics(NamedTuple):
    """The four figures; nan where they are not defined: one class only, constant scores or grades, nothing to rank."""

    spearman: float
    roc_auc: float
    pr_auc_irrelevant: float
    ndcg: float


@dataclass(frozen=True)
class Judgements:
    """What people said of N pairs.

    Attributes:
        query_N: number of the query of each pair, from 0; a number may be missing.
        grade_N: higher is more relevant.
        gain_N: what a pair adds to the DCG; 0 or more.
        relevant_N: the positive class.
    """

    query_N: NDArray[np.int64]
    grade_N: NDArray[np.float64]
    gain_N: NDArray[np.float64]
    relevant_N: NDArray[np.bool_]

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("query_N", "grade_N", "gain_N", "relevant_N")}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"judgements differ in length: {lengths}; give one of each for every pair")
        if len(self.query_N) and self.query_N.min() < 0:
            raise ValueError(f"queries are numbered from 0, got {self.query_N.min()}")
        if not np.isfinite(self.grade_N).all() or not np.isfinite(self.gain_N).all() or (self.gain_N < 0).any():
            raise ValueError("grades must be finite, and gains finite and 0 or more: leave pairs without a grade out")

    @classmethod
    def of_grades(
        cls, query_N: NDArray[np.int64], grade_N: NDArray[np.floating], relevant_from: float = RELEVANT_FROM
    ) -> "Judgements":
        """Judgements by a grade from 1 up: relevant from `relevant_from` on, gain 2^(grade - 1) - 1 [NF->P]."""
        grades_N = grade_N.astype(np.float64)
        return cls(
            query_N=query_N.astype(np.int64),
            grade_N=grades_N,
            gain_N=np.exp2(grades_N - 1) - 1,
            relevant_N=grades_N >= relevant_from - _ROUNDING,
        )

    def of(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Judgements":
        """The judgements of some of the pairs; queries keep their numbers."""
        return Judgements(self.query_N[chosen], self.grade_N[chosen], self.gain_N[chosen], self.relevant_N[chosen])

    @property
    def num_queries(self) -> int:
        """One more than the highest number of a query: the length of the weights."""
        return int(self.query_N.max(initial=-1)) + 1


@dataclass(frozen=True)
class QueryNdcg:
    """NDCG of each query, nan where nothing can be ranked: no pair, or all of the query's pairs have one gain.

    Such a query has NDCG 1 (or none) whatever the scores and would only hide differences: it is left out and counted.
    """

    ndcg_Q: NDArray[np.float64]
    num_queries: int
    """Queries with a value."""
    num_queries_skipped: int
    """Queries with pairs, but without a value."""


def ranking_metrics(score_N: NDArray[np.floating], judged: Judgements, k: int = NDCG_CUTOFF) -> RankingMetrics:
    """The four metrics of one score.

    Args:
        score_N: higher is more relevant; any scale.
        judged: the same pairs in the same order.
        k: NDCG looks at the first k items of a query.

    Raises:
        ValueError: lengths differ, or a score is not finite.
    """
    return JudgedScores(score_N, judged, k).metrics()


def spearman(score_N: NDArray[np.floating], grade_N: NDArray[np.floating]) -> float:
    """Pearson's correlation of mid-ranks; nan where either side is constant."""
    ones = np.ones(len(score_N))
    return _spearman(_groups(score_N), _groups(grade_N), ones)


def roc_auc(score_N: NDArray[np.floating], relevant_N: NDArray[np.bool_]) -> float:
    """Probability that a relevant pair scores above an irrelevant one, ties one half; nan with one class."""
    group_N = _groups(score_N)
    return _roc_auc(_totals(group_N, relevant_N), _totals(group_N, ~relevant_N))


def pr_auc_of_irrelevant(score_N: NDArray[np.floating], relevant_N: NDArray[np.bool_]) -> float:
    """Average precision of the irrelevant class, found from the lowest score up; nan where nothing is irrelevant.

        sum over thresholds of (recall - recall before) * precision,   equal scores are one threshold

    A score that knows nothing gets the share of irrelevant pairs.
    """
    group_N = _groups(score_N)
    return _average_precision(_totals(group_N, ~relevant_N), _totals(group_N, relevant_N))


def ndcg_of_queries(
    score_N: NDArray[np.floating], query_N: NDArray[np.int64], gain_N: NDArray[np.float64], k: int = NDCG_CUTOFF
) -> QueryNdcg:
    """NDCG@k of each query.

        DCG@k = sum_{place p = 1..k} gain_p / log2(1 + p),   NDCG = DCG / DCG in descending order of gain

    Items of equal score are in random order, and the DCG is its expectation: each gets the mean discount of the places
    that they fill together, so a constant score gets what shuffling gets, not what the file's order would give.

    Returns:
        ndcg_Q of queries 0 to the highest number.

    Raises:
        ValueError: k is not positive.

    References:
        McSherry and Najork (2008), Computing information retrieval performance measures efficiently in the presence of
        tied scores.
    """
    if k < 1:
        raise ValueError(f"the cutoff of NDCG must be 1 or more, got {k}")
    num_queries = int(query_N.max(initial=-1)) + 1
    pairs_Q = np.bincount(query_N, minlength=num_queries)
    order_N = np.lexsort((-score_N, query_N))
    query, score = query_N[order_N], score_N[order_N]
    discount_N = _discounts(query, pairs_Q, k)
    is_new = np.ones(len(query), np.bool_)
    is_new[1:] = (query[1:] != query[:-1]) | (score[1:] != score[:-1])
    tie_N = np.cumsum(is_new) - 1
    mean_discount_N = (np.bincount(tie_N, discount_N) / np.maximum(np.bincount(tie_N), 1))[tie_N]
    dcg_Q = np.bincount(query, gain_N[order_N] * mean_discount_N, minlength=num_queries)

    best_N = np.lexsort((-gain_N, query_N))
    best_gain_N = gain_N[best_N]
    best_Q = np.bincount(query, best_gain_N * discount_N, minlength=num_queries)
    start_Q = np.cumsum(pairs_Q) - pairs_Q
    with_pairs = np.flatnonzero(pairs_Q)
    differ_Q = np.zeros(num_queries, np.bool_)
    differ_Q[with_pairs] = best_gain_N[start_Q[with_pairs]] != best_gain_N[(start_Q + pairs_Q - 1)[with_pairs]]
    ndcg_Q = np.full(num_queries, np.nan)
    ndcg_Q[differ_Q] = dcg_Q[differ_Q] / best_Q[differ_Q]
    return QueryNdcg(ndcg_Q, int(differ_Q.sum()), int((pairs_Q > 0).sum() - differ_Q.sum()))


class JudgedScores:
    """One score of judged pairs, sorted once, so that its metrics under many weights cost one pass each."""

    def __init__(self, score_N: NDArray[np.floating], judged: Judgements, k: int = NDCG_CUTOFF) -> None:
        if len(score_N) != len(judged.query_N):
            raise ValueError(
                f"{len(score_N)} scores of {len(judged.query_N)} judged pairs: give one for each, in order"
            )
        if not np.isfinite(score_N).all():
            raise ValueError(f"{int((~np.isfinite(score_N)).sum())} of {len(score_N)} scores are not finite")
        self.judged = judged
        self._score_group_N, self._grade_group_N = _groups(score_N), _groups(judged.grade_N)
        self.ndcg = ndcg_of_queries(score_N, judged.query_N, judged.gain_N, k)
        self._ranked_Q = np.flatnonzero(np.isfinite(self.ndcg.ndcg_Q))

    def metrics(self, copies_Q: NDArray[np.floating] | None = None) -> RankingMetrics:
        """The metrics with each query taken so many times; None: once.

        Args:
            copies_Q: whole numbers from 0, of queries 0 to the highest number.
        """
        if copies_Q is None:
            copies_Q = np.ones(self.judged.num_queries)
        weight_N = copies_Q[self.judged.query_N]
        is_relevant_N = self.judged.relevant_N
        relevant_G = _totals(self._score_group_N, weight_N * is_relevant_N)
        irrelevant_G = _totals(self._score_group_N, weight_N * ~is_relevant_N)
        of_ndcg_Q = copies_Q[self._ranked_Q]
        ndcg_total = float(of_ndcg_Q @ self.ndcg.ndcg_Q[self._ranked_Q])
        return RankingMetrics(
            spearman=_spearman(self._score_group_N, self._grade_group_N, weight_N),
            roc_auc=_roc_auc(relevant_G, irrelevant_G),
            pr_auc_irrelevant=_average_precision(irrelevant_G, relevant_G),
            ndcg=ndcg_total / float(of_ndcg_Q.sum()) if of_ndcg_Q.sum() else np.nan,
        )


def _groups(values_N: NDArray[np.floating]) -> NDArray[np.int64]:
    """Numbers from 0 of the distinct values, ascending."""
    return np.unique(values_N, return_inverse=True)[1]


def _totals(group_N: NDArray[np.int64], of_N: NDArray[np.floating] | NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.bincount(group_N, of_N).astype(np.float64)


def _mid_ranks(group_N: NDArray[np.int64], weight_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean place from 1 of a row among all copies of all rows; equal values share it."""
    weight_G = _totals(group_N, weight_N)
    return (np.cumsum(weight_G) - weight_G + (weight_G + 1) / 2)[group_N]


def _spearman(a_N: NDArray[np.int64], b_N: NDArray[np.int64], weight_N: NDArray[np.floating]) -> float:
    total = float(weight_N.sum())
    if total == 0:
        return np.nan
    a, b = _mid_ranks(a_N, weight_N), _mid_ranks(b_N, weight_N)
    a, b = a - (total + 1) / 2, b - (total + 1) / 2  # the mean of mid-ranks, always
    spread = math.sqrt(float(weight_N @ (a * a)) * float(weight_N @ (b * b)))
    return float(weight_N @ (a * b)) / spread if spread > 0 else np.nan


def _roc_auc(positive_G: NDArray[np.float64], negative_G: NDArray[np.float64]) -> float:
    pairs = float(positive_G.sum() * negative_G.sum())
    below_G = np.cumsum(negative_G) - negative_G
    return float(positive_G @ (below_G + negative_G / 2)) / pairs if pairs else np.nan


def _average_precision(positive_G: NDArray[np.float64], negative_G: NDArray[np.float64]) -> float:
    """Of the positives, found from group 0 up."""
    total = float(positive_G.sum())
    if not total:
        return np.nan
    found_G = np.cumsum(positive_G)
    taken_G = np.maximum(found_G + np.cumsum(negative_G), 1)  # copies are whole: below 1 is none, and none is found
    return float(positive_G @ (found_G / taken_G)) / total


def _discounts(query_N: NDArray[np.int64], pairs_Q: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """1 / log2(1 + place) of rows ordered by query; 0 beyond place k."""
    start_Q = np.cumsum(pairs_Q) - pairs_Q
    place_N = np.arange(len(query_N)) - start_Q[query_N] + 1
    return np.where(place_N <= k, 1 / np.log2(1 + place_N), 0.0)
