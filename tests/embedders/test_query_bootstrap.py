import numpy as np
import pytest

from embedders.query_bootstrap import interval, resampled_metrics
from embedders.ranking_metrics import JudgedScores, Judgements, RankingMetrics, ranking_metrics

NDCG = RankingMetrics._fields.index("ndcg")
AUC = RankingMetrics._fields.index("roc_auc")


def judged_world(num_queries: int = 200, pairs_each: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(num_queries), pairs_each)
    grade = rng.choice([1.0, 2.0, 3.0], len(query))
    return grade + rng.normal(0, 1.5, len(query)), Judgements.of_grades(query, grade), rng


def test_the_same_seed_gives_the_same_draws_and_another_gives_others():
    score, judged, _ = judged_world()
    one, again, other = (resampled_metrics([score], judged, num_draws=20, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_scores_are_drawn_in_pairs():
    score, judged, _ = judged_world()
    draws = resampled_metrics([score, 3 * score + 1], judged, num_draws=20, seed=0)
    np.testing.assert_allclose(draws[0], draws[1], atol=1e-12)


def test_a_segment_draws_the_copies_that_the_whole_draws():
    score, judged, _ = judged_world()
    first = judged.query_N < 120
    of_part = resampled_metrics([score[first]], judged.of(first), num_draws=10, seed=0)
    copies = [np.random.default_rng((0, draw)).poisson(1.0, judged.num_queries) for draw in range(10)]
    repeated = [np.repeat(np.flatnonzero(first), copy[judged.query_N[first]]) for copy in copies]
    expected = [ranking_metrics(score[rows], judged.of(rows)).roc_auc for rows in repeated]
    np.testing.assert_allclose(of_part[0, AUC], expected, atol=1e-12)


def test_the_spread_of_the_mean_ndcg_is_its_standard_error():
    score, judged, _ = judged_world(num_queries=400)
    draws = resampled_metrics([score], judged, num_draws=600, seed=3)[0, NDCG]
    values = JudgedScores(score, judged).ndcg.ndcg_Q
    values = values[np.isfinite(values)]
    assert draws.std() == pytest.approx(values.std() / np.sqrt(len(values)), rel=0.1)


def test_pairs_of_one_query_do_not_count_as_independent():
    # every query five times over: the rows say 1,000, the queries 200, and the interval is that of the queries
    score, judged, _ = judged_world(pairs_each=5)
    five = np.repeat(np.arange(len(score)), 5)
    once = resampled_metrics([score], judged, num_draws=300, seed=0)[0, AUC]
    often = resampled_metrics([score[five]], judged.of(five), num_draws=300, seed=0)[0, AUC]
    np.testing.assert_allclose(often, once, atol=1e-12)


def test_the_interval_holds_the_middle_95_percent_and_needs_half_of_the_draws():
    assert interval(np.arange(1001.0)) == (25.0, 975.0)
    assert interval(np.concatenate([np.arange(1001.0), np.full(1000, np.nan)])) == (25.0, 975.0)
    assert np.isnan(interval(np.array([1.0, np.nan, np.nan]))).all()
    assert np.isnan(interval(np.empty(0))).all()
