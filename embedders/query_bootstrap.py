"""How far ranking metrics would move had other queries been asked: a paired bootstrap by query.

A query's pairs stand or fall together, so queries are drawn, not pairs. Each draw takes every query a Poisson(1) number
of times, the same for every score, so the difference of two scores is paired.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedders.ranking_metrics import NDCG_CUTOFF, JudgedScores, Judgements, RankingMetrics


class Interval(NamedTuple):
    """The 2.5% and 97.5% points of the draws."""

    low: float
    high: float


def resampled_metrics(
    scores: Sequence[NDArray[np.floating]], judged: Judgements, *, num_draws: int, seed: int, k: int = NDCG_CUTOFF
) -> NDArray[np.float64]:
    """Metrics of every score in every draw.

    The copies depend on the seed and the numbers of the queries alone: calls on some of the pairs of the same queries,
    such as one segment after the other, draw alike.

    Args:
        scores: of each model, the N scores of the same pairs.
        judged: these pairs.
        num_draws: bootstrap draws.
        seed: same seed, same copies.
        k: cutoff of NDCG.

    Returns:
        (scores, 4, num_draws) in the order of `RankingMetrics`; nan where a draw leaves a metric undefined.
    """
    of_scores = [JudgedScores(score_N, judged, k) for score_N in scores]
    draws = np.empty((len(scores), len(RankingMetrics._fields), num_draws))
    for draw in range(num_draws):
        # a generator a draw: the copies of query 7 must not depend on how many queries follow it
        copies_Q = np.random.default_rng((seed, draw)).poisson(1.0, judged.num_queries).astype(np.float64)
        for row, one in enumerate(of_scores):
            draws[row, :, draw] = one.metrics(copies_Q)
    return draws


def interval(draws_D: NDArray[np.float64]) -> Interval:
    """A 95% percentile interval; nan where fewer than half of the draws have a value."""
    finite = draws_D[np.isfinite(draws_D)]
    if not len(finite) or 2 * len(finite) < len(draws_D):
        return Interval(np.nan, np.nan)
    low, high = np.quantile(finite, (0.025, 0.975))
    return Interval(float(low), float(high))
