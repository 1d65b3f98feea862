"""The figures of each scorer: against scikit-learn, by tier, on the same pairs."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from feature_repo.table_schemas import RelevanceMetrics
from jobs.relevance.quality import metrics_of, word_overlap


@pytest.fixture
def pairs() -> pl.DataFrame:
    """20 queries with 6 items each."""
    grades = np.random.default_rng(0).integers(0, 4, 120).astype(np.float64)
    labels = np.where(grades >= 2, "good", "bad")
    return pl.DataFrame({"query_id": [f"q{n // 6:02}" for n in range(120)], "grade": grades, "human_label": labels})


def values(metrics: pl.DataFrame, scorer: str, part: str) -> dict[str, float]:
    return dict(metrics.filter(scorer=scorer, part=part).select("metric", "value").rows())


def test_the_figures_are_those_of_other_libraries(pairs: pl.DataFrame):
    rng = np.random.default_rng(1)
    grades, score = pairs["grade"].to_numpy(), pairs["grade"].to_numpy() + rng.normal(size=120)
    metrics = metrics_of(pairs, {"made up": score}, np.array(["head"] * 120), seed=0)
    found, good = values(metrics, "made up", "all"), grades >= 2
    assert found["roc_auc"] == pytest.approx(roc_auc_score(good, score))
    assert found["pr_auc_irrelevant"] == pytest.approx(average_precision_score(~good, -score))
    assert found["spearman"] == pytest.approx(spearmanr(score, grades).statistic)
    each = [slice(n, n + 6) for n in range(0, 120, 6)]
    expected = [ndcg_score([2 ** grades[of] - 1], [score[of]], k=10) for of in each if len(set(grades[of])) > 1]
    assert found["ndcg_at_10"] == pytest.approx(np.mean(expected))
    assert values(metrics, "made up", "head") == found
    RelevanceMetrics.validate(metrics)


def test_each_tier_has_its_own_figures_and_counts(pairs: pl.DataFrame):
    tiers = np.array(["head"] * 30 + ["tail"] * 90)
    scores = {
        "right": pairs["grade"].to_numpy(),
        "wrong in the tail": pairs["grade"].to_numpy() * np.repeat([1, -1], [30, 90]),
    }
    metrics = metrics_of(pairs, scores, tiers, seed=0)
    assert set(metrics["part"]) == {"all", "head", "tail"}
    counts = metrics.select("part", "num_pairs", "num_queries").unique().sort("part").rows()
    assert counts == [("all", 120, 20), ("head", 30, 5), ("tail", 90, 15)]
    assert values(metrics, "wrong in the tail", "head")["roc_auc"] == 1.0
    assert values(metrics, "wrong in the tail", "tail")["roc_auc"] == 0.0
    ends = metrics.filter(scorer="right", part="all", metric="roc_auc").select("low", "high").row(0)
    assert ends == (1.0, 1.0)


def test_a_score_that_knows_nothing_has_no_rank_correlation_and_is_null(pairs: pl.DataFrame):
    metrics = metrics_of(pairs, {"constant": np.zeros(120)}, np.array(["tail"] * 120), seed=0)
    found = values(metrics, "constant", "all")
    assert found["spearman"] is None
    assert found["roc_auc"] == 0.5


def test_word_overlap_is_the_share_of_the_querys_distinct_words():
    texts = pl.DataFrame(
        {"query_text": ["red red chair", "blue sofa", "!?"], "item_text": ["Chair, RED", "sofa bed", "chair"]}
    )
    assert word_overlap(texts).tolist() == [1.0, 0.5, 0.0]
