"""Measures of vectors against numpy, scipy and sklearn; of titles against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from embedders.health import (
    VectorHealth,
    alignment,
    effective_rank,
    participation_ratio,
    title_perplexity,
    title_similarity,
    uniformity,
    vector_health,
)
from embedders.histories import Sequences


def unit_vectors(number: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(number, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_spread_is_that_of_the_variances_of_a_principal_component_analysis():
    vectors = unit_vectors(300, 12) * np.linspace(0.1, 2.0, 12, dtype=np.float32)
    variance = PCA().fit(vectors.astype(np.float64)).explained_variance_
    share = variance / variance.sum()
    assert participation_ratio(vectors) == pytest.approx(1 / (share**2).sum(), rel=1e-6)
    assert effective_rank(vectors) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_vectors_along_the_axes_of_a_cross_spread_in_as_many_directions():
    cross = np.concatenate([np.eye(5), -np.eye(5)]).astype(np.float32)
    assert participation_ratio(cross) == pytest.approx(5.0)
    assert effective_rank(cross) == pytest.approx(5.0)


def test_two_uneven_directions_are_counted_as_worked_out_by_hand():
    vectors = np.array([[3, 0], [-3, 0], [0, 1], [0, -1]], np.float32)  # variances 9 : 1
    assert participation_ratio(vectors) == pytest.approx(10**2 / (9**2 + 1))
    assert effective_rank(vectors) == pytest.approx(math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)))


def test_vectors_on_one_line_have_one_direction_and_equal_vectors_none():
    line = np.outer(np.linspace(-1, 1, 9), [0.6, 0.8, 0.0]).astype(np.float32)
    assert participation_ratio(line) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-4)
    same = np.repeat(unit_vectors(1, 16), 50, axis=0)
    assert participation_ratio(same) == 0.0
    assert effective_rank(same) == 0.0
    assert uniformity(same) == pytest.approx(0.0, abs=1e-6)
    assert uniformity(same) <= 0.0


@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 1000))
def test_effective_rank_lies_between_the_participation_ratio_and_the_number_of_dimensions(number, width, seed):
    vectors = np.random.default_rng(seed).normal(size=(number, width)).astype(np.float32)
    least, rank = participation_ratio(vectors), effective_rank(vectors)
    assert 1 - 1e-6 <= least <= rank + 1e-6 <= min(width, number - 1) + 1e-3


def test_a_collapse_shows_in_every_measure_of_the_vectors():
    healthy, targets = unit_vectors(400, 16), unit_vectors(400, 16, seed=1)
    collapsed = healthy * 0.01 + np.array([1.0, *[0.0] * 15], np.float32)
    collapsed[:, 1] += healthy[:, 1]
    collapsed /= np.linalg.norm(collapsed, axis=1, keepdims=True)
    before, after = vector_health(healthy, targets), vector_health(collapsed, targets)
    assert before.participation_ratio > 12 > 3 > after.participation_ratio
    assert before.effective_rank > 12 > 3 > after.effective_rank
    assert before.uniformity < after.uniformity


def test_uniformity_and_alignment_are_means_over_pairs():
    vectors, targets = unit_vectors(60, 8), unit_vectors(60, 8, seed=1)
    distances = pdist(vectors.astype(np.float64), "sqeuclidean")
    assert uniformity(vectors) == pytest.approx(math.log(np.exp(-2 * distances).mean()), rel=1e-6)
    assert alignment(vectors, targets) == pytest.approx(np.mean(np.sum((vectors - targets) ** 2, axis=1)), rel=1e-5)
    assert alignment(vectors, vectors) == 0.0
    assert alignment(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[::-1]) == pytest.approx(2.0)


def test_uniformity_of_many_vectors_is_a_sample_that_the_seed_fixes_and_the_whole_is_near():
    vectors = unit_vectors(1500, 8)
    sampled = uniformity(vectors, seed=3, most_vectors=700)
    assert sampled == uniformity(vectors, seed=3, most_vectors=700)
    assert sampled != uniformity(vectors, seed=4, most_vectors=700)
    assert sampled == pytest.approx(uniformity(vectors), abs=0.02)


def test_too_few_vectors_have_no_spread_and_unequal_numbers_are_refused():
    nobody = np.empty((0, 4), np.float32)
    assert vector_health(nobody, nobody) == VectorHealth(None, None, None, None)
    alone = unit_vectors(1, 4)
    assert vector_health(alone, alone) == VectorHealth(None, None, None, 0.0)
    for measure in (participation_ratio, effective_rank, uniformity):
        with pytest.raises(ValueError, match="at least 2"):
            measure(alone)
    with pytest.raises(ValueError, match="1 user vectors, but 0"):
        vector_health(alone, nobody)


TITLES = ["Red wool hat", "red WOOL-scarf", "Blue mug", "", "hat, red; wool: 2"]


def test_title_similarity_is_the_mean_jaccard_of_the_words_of_what_is_found():
    items = np.eye(5, dtype=np.float32)
    user = np.array([[0.9, 0.8, 0.1, 0.0, 0.7]], np.float32)  # finds items 0, 1 and 4
    similarity = title_similarity(user, items, Sequences.of_lists([[0]]), TITLES, k=3)
    # {red wool hat} with itself 3/3, with {red wool scarf} 2/4, with {hat red wool 2} 3/4
    assert similarity == pytest.approx((1 + 1 / 2 + 3 / 4) / 3)


def test_title_similarity_counts_each_target_alike_and_passes_over_those_without_words():
    items = np.eye(5, dtype=np.float32)
    users = np.array([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]], np.float32)
    targets = Sequences.of_lists([[1, 2], [2, 3], []])
    similarity = title_similarity(users, items, targets, TITLES, k=1)
    assert similarity == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert title_similarity(users, items, Sequences.of_lists([[3], [], []]), TITLES, k=1) is None


def test_title_similarity_searches_all_of_the_catalogue_in_blocks_and_small_ones_whole(monkeypatch):
    rng = np.random.default_rng(0)
    users, items = unit_vectors(23, 6), unit_vectors(80, 6, seed=1)
    titles = [" ".join(rng.choice(list("abcdefgh"), 3)) for _ in range(80)]
    targets = Sequences.of_lists([rng.integers(0, 80, 2).tolist() for _ in range(23)])
    scores = []
    for user in range(23):
        nearest = np.argsort(-(items @ users[user]))[:10]
        for target in targets.of(user):
            wanted = set(titles[target].split())
            scores.append(
                np.mean([len(wanted & set(titles[i].split())) / len(wanted | set(titles[i].split())) for i in nearest])
            )
    expected = pytest.approx(np.mean(scores))
    assert title_similarity(users, items, targets, titles, k=10) == expected
    monkeypatch.setattr("embedders.health.SCORES_AT_ONCE", 300)
    assert title_similarity(users, items, targets, titles, k=10) == expected
    everything = title_similarity(users, items, targets, titles, k=500)
    assert everything == pytest.approx(title_similarity(users, items, targets, titles, k=80))


def test_title_similarity_names_what_does_not_fit_together():
    with pytest.raises(ValueError, match="2 user vectors for targets of 1 users, 5 item vectors for 5 titles"):
        title_similarity(np.eye(2, 5, dtype=np.float32), np.eye(5, dtype=np.float32), Sequences.of_lists([[0]]), TITLES)


@pytest.fixture(scope="module")
def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, initializer_range=0.5, **shape)).eval()


def likelihood(model: LlamaForCausalLM, ids: list[int], first: int) -> list[float]:
    """Log likelihood of each token from `first` on, one sequence at a time."""
    with torch.no_grad():
        log_probability = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(log_probability[at - 1, ids[at]]) for at in range(first, len(ids))]


def test_title_perplexity_is_that_of_titles_read_one_by_one(language_model):
    titles = [[3, 4, 5, 6], [7], [], [8, 9, 3], [3, 3]]
    each = [value for title in titles if title for value in likelihood(language_model, [1, *title], 1)]
    expected = pytest.approx(math.exp(-np.mean(each)), rel=1e-5)
    assert title_perplexity(language_model, titles, opening=[1]) == expected
    assert title_perplexity(language_model, titles, opening=[1], batch_size=2) == expected
    head = language_model.lm_head
    assert title_perplexity(language_model.model, titles, opening=[1], output=head) == expected


def test_without_an_opening_token_the_first_word_is_not_judged(language_model):
    titles = [[3, 4, 5], [7], [8, 9]]
    each = [value for title in titles for value in likelihood(language_model, title, 1)]
    assert title_perplexity(language_model, titles, opening=[]) == pytest.approx(math.exp(-np.mean(each)), rel=1e-5)
    assert title_perplexity(language_model, [[7]], opening=[]) is None
    assert title_perplexity(language_model, [], opening=[1]) is None


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large_and_stays_in_training(language_model):
    silent = nn.Linear(16, 20)
    nn.init.zeros_(silent.weight)
    nn.init.zeros_(silent.bias)
    body = language_model.model.train()
    assert title_perplexity(body, [[3, 4], [5]], opening=[1], output=silent) == pytest.approx(20.0)
    assert body.training
    body.eval()
