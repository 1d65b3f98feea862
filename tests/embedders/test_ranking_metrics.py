"""Oracles: scipy's spearmanr, scikit-learn's three; rows repeated in place of copies; cases worked by hand."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from embedders.ranking_metrics import (
    JudgedScores,
    Judgements,
    RankingMetrics,
    ndcg_of_queries,
    pr_auc_of_irrelevant,
    ranking_metrics,
    roc_auc,
    spearman,
)


def drawn(seed: int, num_pairs: int = 400, num_queries: int = 60, num_scores: int = 12):
    """Scores with many ties, and grades as the mean of three raters gives them."""
    rng = np.random.default_rng(seed)
    grade = rng.choice([1.0, 1.33, 1.67, 2.0, 2.33, 2.67, 3.0], num_pairs)
    score = np.round(grade + rng.normal(0, 1, num_pairs) * num_scores / 4) / num_scores
    return score, Judgements.of_grades(rng.integers(0, num_queries, num_pairs), grade)


@pytest.mark.parametrize("seed", range(5))
def test_the_pooled_metrics_are_those_of_scipy_and_sklearn(seed: int):
    score, judged = drawn(seed)
    found = ranking_metrics(score, judged)
    assert found.spearman == pytest.approx(spearmanr(score, judged.grade_N).statistic, abs=1e-12)
    assert found.roc_auc == pytest.approx(roc_auc_score(judged.relevant_N, score), abs=1e-12)
    assert found.pr_auc_irrelevant == pytest.approx(average_precision_score(~judged.relevant_N, -score), abs=1e-12)
    assert found.spearman == spearman(score, judged.grade_N)
    assert found.roc_auc == roc_auc(score, judged.relevant_N)
    assert found.pr_auc_irrelevant == pr_auc_of_irrelevant(score, judged.relevant_N)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_is_that_of_sklearn_query_by_query(seed: int, k: int):
    score, judged = drawn(seed)
    ndcg = ndcg_of_queries(score, judged.query_N, judged.gain_N, k).ndcg_Q
    compared = 0
    for query in range(judged.num_queries):
        of_query = judged.query_N == query
        gains = judged.gain_N[of_query]
        if len(set(gains)) < 2:
            assert np.isnan(ndcg[query])
            continue
        assert ndcg[query] == pytest.approx(ndcg_score([gains], [score[of_query]], k=k), abs=1e-12)
        compared += 1
    assert compared > 50


def test_a_query_worked_by_hand():
    # grades 3, 1, 2 have gains 3, 0, 1; scored in the order 1, 3, 2
    judged = Judgements.of_grades(np.zeros(3, np.int64), np.array([3.0, 1.0, 2.0]))
    assert judged.gain_N.tolist() == [3.0, 0.0, 1.0]
    dcg = 0 / math.log2(2) + 3 / math.log2(3) + 1 / math.log2(4)
    best = 3 / math.log2(2) + 1 / math.log2(3)
    assert ranking_metrics(np.array([0.5, 0.9, 0.1]), judged).ndcg == pytest.approx(dcg / best)
    # of two places only the first two count
    assert ndcg_of_queries(np.array([0.5, 0.9, 0.1]), judged.query_N, judged.gain_N, 2).ndcg_Q == pytest.approx(
        [3 / math.log2(3) / best]
    )


def test_equal_scores_get_the_mean_over_every_order():
    gains = np.array([3.0, 0.0, 1.0, 0.5])
    query = np.zeros(4, np.int64)
    shuffled = [
        ndcg_of_queries(np.array(places, np.float64), query, gains, 2).ndcg_Q[0] for places in permutations(range(4))
    ]
    assert ndcg_of_queries(np.ones(4), query, gains, 2).ndcg_Q[0] == pytest.approx(np.mean(shuffled))


def test_spearman_with_ties_worked_by_hand():
    # mid-ranks 1.5 1.5 3 against 1 2.5 2.5: deviations -.5 -.5 1 and -1 .5 .5
    assert spearman(np.array([5, 5, 9.0]), np.array([1, 2, 2.0])) == pytest.approx(0.75 / 1.5)


def test_average_precision_worked_by_hand():
    # from the lowest score up: irrelevant, relevant, irrelevant -> precision 1 and 2/3
    assert pr_auc_of_irrelevant(np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, False, True])) == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_a_score_that_knows_nothing_gets_a_half_and_the_share_of_the_irrelevant():
    _, judged = drawn(0)
    found = ranking_metrics(np.zeros(len(judged.grade_N)), judged)
    assert np.isnan(found.spearman)
    assert found.roc_auc == 0.5
    assert found.pr_auc_irrelevant == pytest.approx(1 - judged.relevant_N.mean())


def test_a_perfect_score_is_perfect_in_all_and_its_reverse_in_none():
    _, judged = drawn(1)
    assert ranking_metrics(judged.grade_N, judged) == pytest.approx(RankingMetrics(1.0, 1.0, 1.0, 1.0))
    reverse = ranking_metrics(-judged.grade_N, judged)
    assert reverse.spearman == pytest.approx(-1.0)
    assert reverse.roc_auc == 0.0
    assert reverse.ndcg < 0.9


def test_queries_with_nothing_to_rank_are_left_out_of_ndcg_and_counted():
    # query 0: one item; 1: two of one gain; 2: two to rank, wrongly; 3 has none; 4: two to rank, rightly
    query = np.array([0, 1, 1, 2, 2, 4, 4])
    judged = Judgements.of_grades(query, np.array([3.0, 2.0, 2.0, 3.0, 1.0, 3.0, 1.0]))
    one = JudgedScores(np.array([0.1, 0.2, 0.3, 0.1, 0.9, 0.9, 0.1]), judged)
    assert (one.ndcg.num_queries, one.ndcg.num_queries_skipped) == (2, 2)
    assert np.isnan(one.ndcg.ndcg_Q[[0, 1, 3]]).all()
    assert one.metrics().ndcg == pytest.approx((1 / math.log2(3) + 1) / 2)


def test_one_class_only_has_no_auc():
    grades = np.full(5, 3.0)
    found = ranking_metrics(np.arange(5.0), Judgements.of_grades(np.zeros(5, np.int64), grades))
    assert all(np.isnan(value) for value in found)
    none = Judgements.of_grades(np.empty(0, np.int64), np.empty(0))
    assert all(np.isnan(value) for value in ranking_metrics(np.empty(0), none))


def test_a_grade_at_the_edge_is_relevant_in_either_precision():
    grades = np.array([2.32, 2.33, 2.34])
    for dtype in (np.float32, np.float64):
        judged = Judgements.of_grades(np.zeros(3, np.int64), grades.astype(dtype))
        assert judged.relevant_N.tolist() == [False, True, True]


@given(copies=st.lists(st.integers(0, 4), min_size=60, max_size=60), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_copies_of_queries_are_the_same_as_their_rows_repeated(copies: list[int], seed: int):
    score, judged = drawn(seed, num_pairs=200)
    copies_Q = np.array(copies, np.float64)[: judged.num_queries]
    times_N = copies_Q[judged.query_N].astype(int)
    found = JudgedScores(score, judged).metrics(copies_Q)
    repeated = judged.of(np.repeat(np.arange(len(score)), times_N))
    expected = ranking_metrics(np.repeat(score, times_N), repeated)
    # a query repeated would be one query twice as long, so its NDCG is counted by hand
    ndcg_Q = JudgedScores(score, judged).ndcg.ndcg_Q
    drawn_Q = np.repeat(np.arange(len(copies_Q)), copies_Q.astype(int))
    values = ndcg_Q[drawn_Q][np.isfinite(ndcg_Q[drawn_Q])]
    expected = expected._replace(ndcg=values.mean() if len(values) else np.nan)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(seed=st.integers(0, 50), shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_only_the_order_of_the_scores_matters(seed: int, shift: float, scale: float):
    score, judged = drawn(seed, num_pairs=150)
    steps = np.searchsorted(np.unique(score), score)
    np.testing.assert_allclose(
        ranking_metrics(steps * scale + shift, judged), ranking_metrics(score, judged), atol=1e-12
    )


def test_bad_input_is_refused_with_what_was_wrong():
    score, judged = drawn(0)
    with pytest.raises(ValueError, match="399 scores of 400 judged pairs"):
        ranking_metrics(score[:-1], judged)
    score[3] = np.nan
    with pytest.raises(ValueError, match="1 of 400 scores are not finite"):
        ranking_metrics(score, judged)
    with pytest.raises(ValueError, match="grades must be finite"):
        Judgements.of_grades(np.zeros(1, np.int64), np.array([np.nan]))
    with pytest.raises(ValueError, match="differ in length"):
        Judgements.of_grades(np.zeros(2, np.int64), np.array([1.0]))
    with pytest.raises(ValueError, match="numbered from 0"):
        Judgements.of_grades(np.array([-1]), np.array([1.0]))
    with pytest.raises(ValueError, match="1 or more"):
        ndcg_of_queries(np.ones(1), np.zeros(1, np.int64), np.ones(1), 0)
