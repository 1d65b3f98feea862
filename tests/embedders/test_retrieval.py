"""The oracle sorts: every user's gallery is put in order by a plain Python sort, and the metrics are read off it."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score

from embedders import target_ranks
from embedders.histories import Sequences
from embedders.retrieval import retrieval_metrics, retrieval_metrics_of_lists


def sequences(*items_of_users: list[int]) -> Sequences:
    offsets = np.cumsum([0] + [len(items) for items in items_of_users])
    return Sequences(np.array([i for items in items_of_users for i in items], np.int32), None, offsets)


def scored(scores_UN: list[list[float]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """User and item vectors whose dot products are these scores."""
    scores = np.array(scores_UN, np.float32)
    return scores, np.eye(scores.shape[1], dtype=np.float32)


def drawn(seed: int, num_users: int = 60, num_items: int = 90, most_targets: int = 6, values: int | None = None):
    """Users, items, targets and history at random; with `values`, of so many whole numbers, so that ties abound."""
    rng = np.random.default_rng(seed)
    if values:
        users, items = (rng.integers(0, values, (n, 3)).astype(np.float32) for n in (num_users, num_items))
    else:
        users, items = (rng.normal(size=(n, 16)).astype(np.float32) for n in (num_users, num_items))
    targets = [rng.integers(0, num_items, rng.integers(0, most_targets + 1)).tolist() for _ in range(num_users)]
    history = [rng.integers(0, num_items, rng.integers(0, 30)).tolist() for _ in range(num_users)]
    return users, items, targets, history


def sorted_metrics(users, items, targets, history, k, tie) -> dict[str, list[float]]:
    """H, R, N and MRR at k of each user with a target; ties go by `tie(is_target)`, a smaller value first."""
    metrics: dict[str, list[float]] = {"hit": [], "recall": [], "ndcg": [], "mrr": [], "full_mrr": []}
    for user, wanted, seen in zip(users.astype(np.float64), targets, history, strict=True):
        wanted = set(wanted)
        if not wanted:
            continue
        gallery = [item for item in range(len(items)) if item in wanted or item not in seen]
        scores = items.astype(np.float64) @ user
        order = sorted(gallery, key=lambda item: (-scores[item], tie(item in wanted)))
        places = [place for place, item in enumerate(order, start=1) if item in wanted]
        found = [place for place in places if place <= k]
        metrics["hit"].append(float(bool(found)))
        metrics["recall"].append(len(found) / len(wanted))
        ideal = sum(1 / math.log2(1 + place) for place in range(1, min(len(wanted), k) + 1))
        metrics["ndcg"].append(sum(1 / math.log2(1 + place) for place in found) / ideal)
        metrics["mrr"].append(1 / found[0] if found else 0.0)
        metrics["full_mrr"].append(1 / places[0])
    return metrics


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("values", [None, 3])
@pytest.mark.parametrize("k", [1, 4, 50, 1000])
def test_the_metrics_are_those_of_a_sorted_gallery(k: int, values: int | None, filtered: bool):
    users, items, targets, history = drawn(seed=k, values=values)
    masked = history if filtered else [[] for _ in history]
    users[:2] += 1  # no user ties with everything, which is another rule
    is_zero = ~users.any(axis=1)
    users[is_zero] = 1
    expected = sorted_metrics(users, items, targets, masked, k, tie=lambda is_target: not is_target)
    metrics = retrieval_metrics(
        users, items, sequences(*targets), sequences(*masked) if filtered else None, cutoffs=(k,)
    )
    assert metrics.ranks.num_users_constant == 0
    at = metrics.at(k)
    np.testing.assert_array_equal(at.hits_V > 0, expected["hit"])
    np.testing.assert_allclose(at.recall_V, expected["recall"])
    np.testing.assert_allclose(at.ndcg_V, expected["ndcg"])
    np.testing.assert_allclose(at.reciprocal_rank_V, expected["mrr"])
    overall = (at.hit_rate, at.recall, at.ndcg, at.mrr, metrics.mrr)
    np.testing.assert_allclose(overall, [np.mean(values) for values in expected.values()])
    assert metrics.ranks.users_V.tolist() == [user for user, wanted in enumerate(targets) if wanted]
    assert metrics.num_users_skipped == sum(not wanted for wanted in targets) > 0
    assert metrics.num_targets == sum(len(set(wanted)) for wanted in targets)
    assert metrics.ranks.num_targets_repeated == sum(len(wanted) - len(set(wanted)) for wanted in targets)


@pytest.mark.parametrize("k", [3, 10, 90])
def test_ndcg_is_sklearns(k: int):
    users, items, targets, _ = drawn(seed=1)
    relevance = np.zeros((len(users), len(items)))
    for user, wanted in enumerate(targets):
        relevance[user, wanted] = 1
    judged = relevance.any(axis=1)
    metrics = retrieval_metrics(users, items, sequences(*targets), cutoffs=(k,))
    scores = users.astype(np.float64) @ items.T.astype(np.float64)
    assert metrics.at(k).ndcg == pytest.approx(ndcg_score(relevance[judged], scores[judged], k=k), rel=1e-9)


def test_three_users_worked_by_hand():
    users, items = scored([[5, 4, 3, 2, 1], [5, 4, 3, 2, 1], [5, 4, 3, 2, 1]])
    metrics = retrieval_metrics(users, items, sequences([0, 3], [1], []), cutoffs=(2, 4))
    two, four = metrics.at(2), metrics.at(4)
    assert (two.hit_rate, two.recall, two.micro_recall) == (1.0, 0.75, pytest.approx(2 / 3))
    # Ranks 1 and 4 of two targets, 2 of one; in the top 2: 1 / (1 + 1/log2 3) and 1/log2 3.
    assert two.ndcg == pytest.approx((1 / (1 + 1 / math.log2(3)) + 1 / math.log2(3)) / 2)
    assert (two.mrr, metrics.mrr) == (0.75, 0.75)
    assert (four.hit_rate, four.recall, four.micro_recall) == (1.0, 1.0, 1.0)
    assert two.hits_V.tolist() == [1, 1]
    assert metrics.ranks.ranks_T.tolist() == [1, 4, 2]
    assert (metrics.num_users, metrics.num_targets, metrics.num_users_skipped) == (2, 3, 1)


def test_a_target_beyond_the_cutoff_counts_in_the_mrr_of_the_whole_ranking_only():
    metrics = retrieval_metrics(*scored([[4, 3, 2, 1]]), sequences([3]), cutoffs=(3,))
    assert (metrics.at(3).mrr, metrics.at(3).ndcg, metrics.mrr) == (0, 0, 0.25)


def test_recall_of_more_targets_than_k_stays_below_one_but_ndcg_reaches_it():
    at = retrieval_metrics(*scored([[5, 4, 3, 2, 1]]), sequences([0, 1, 2, 3]), cutoffs=(2,)).at(2)
    assert (at.hit_rate, at.recall, at.ndcg) == (1.0, 0.5, 1.0)


def test_with_one_target_a_user_hit_rate_and_both_recalls_are_one_figure():
    users, items, targets, _ = drawn(seed=3)
    single = sequences(*[wanted[:1] for wanted in targets])
    for at in retrieval_metrics(users, items, single, cutoffs=(1, 10, 40)).cutoffs:
        assert at.hit_rate == at.recall == pytest.approx(at.micro_recall)


def test_micro_recall_can_lie_below_the_hit_rate_and_on_either_side_of_recall():
    users, items = scored([[4, 3, 2, 1], [4, 3, 2, 1]])
    many_missed = retrieval_metrics(users, items, sequences([0], [1, 2, 3]), cutoffs=(1,)).at(1)
    assert (many_missed.hit_rate, many_missed.recall, many_missed.micro_recall) == (0.5, 0.5, 0.25)
    many_found = retrieval_metrics(users, items, sequences([3], [0, 1, 2]), cutoffs=(3,)).at(3)
    assert (many_found.hit_rate, many_found.recall, many_found.micro_recall) == (0.5, 0.5, 0.75)


def test_the_optimistic_rank_is_one_more_than_the_items_strictly_higher():
    users, items = scored([[9, 5, 5, 5, 1]])
    assert retrieval_metrics(users, items, sequences([2]), cutoffs=(2,)).ranks.ranks_T.tolist() == [2]
    assert retrieval_metrics(users, items, sequences([2]), cutoffs=(2,), ties="mid").ranks.ranks_T.tolist() == [3]


def test_targets_that_tie_share_no_rank():
    """Otherwise two targets in the first place would have an NDCG above 1."""
    users, items = scored([[5, 5, 5, 1]])
    optimistic = retrieval_metrics(users, items, sequences([0, 2]), cutoffs=(1, 2))
    assert optimistic.ranks.ranks_T.tolist() == [1, 2]
    assert (optimistic.at(1).recall, optimistic.at(2).ndcg) == (0.5, 1.0)
    mid = retrieval_metrics(users, items, sequences([0, 2]), cutoffs=(1, 2), ties="mid")
    np.testing.assert_allclose(mid.ranks.ranks_T, [4 / 3, 8 / 3])
    only_targets_tie = retrieval_metrics(users, items, sequences([0, 1, 2]), cutoffs=(3,), ties="mid")
    assert only_targets_tie.ranks.ranks_T.tolist() == [1, 2, 3]
    assert (optimistic.ranks.num_targets_tied, only_targets_tie.ranks.num_targets_tied) == (2, 0)


def test_the_mid_rank_is_the_average_over_random_orders_of_the_ties():
    rng = np.random.default_rng(0)
    users, items, targets, history = drawn(seed=5, num_users=8, values=2)
    targets[0], users[0] = [1, 2], 1.0
    metrics = retrieval_metrics(users[:1], items, sequences(targets[0]), sequences(history[0]), ties="mid")
    gallery = [item for item in range(len(items)) if item in targets[0] or item not in history[0]]
    scores = items @ users[0]
    orders = (sorted(gallery, key=lambda item: (-scores[item], rng.random())) for _ in range(4000))
    places = [[place for place, item in enumerate(order, start=1) if item in targets[0]] for order in orders]
    np.testing.assert_allclose(sorted(metrics.ranks.ranks_T), np.mean(places, axis=0), rtol=0.05)


@pytest.mark.parametrize("ties", ["optimistic", "mid"])
@pytest.mark.parametrize("num_items", [37, 1000])
def test_a_constant_score_earns_nothing_and_shows(ties, num_items: int):
    """By the official code's rule alone, a collapsed model has every target in the first place."""
    rng = np.random.default_rng(0)
    users = rng.normal(size=(5, 64)).astype(np.float32)
    items = np.repeat(rng.normal(size=(1, 64)).astype(np.float32), num_items, axis=0)
    metrics = retrieval_metrics(
        users, items, sequences([0], [1], [2, 7], [], [num_items - 1]), cutoffs=(10,), ties=ties
    )
    assert metrics.at(10).hit_rate == 0
    assert metrics.mrr == pytest.approx((3 * 2 / (num_items + 1) + 3 / (num_items + 1)) / 4)
    assert (metrics.ranks.num_users_constant, metrics.ranks.num_targets_tied) == (4, 5)


def test_a_score_that_only_splits_the_items_in_two_shows_in_the_ties():
    users, items = scored([[1, 1, 1, 0, 0]])
    metrics = retrieval_metrics(users, items, sequences([1]), cutoffs=(1,))
    assert metrics.at(1).recall == 1
    assert (metrics.ranks.num_users_constant, metrics.ranks.num_targets_tied) == (0, 1)


@pytest.mark.parametrize("num_items", [7, 37, 501, 5001])
def test_items_with_the_same_vector_tie_whatever_their_columns(num_items: int):
    """A matrix product alone rounds them differently at its edges."""
    rng = np.random.default_rng(num_items)
    items = rng.normal(size=(num_items, 64)).astype(np.float32)
    items[-1], items[num_items // 2] = items[0], items[0]
    users = rng.normal(size=(25, 64)).astype(np.float32)
    rows = (0, num_items // 2, num_items - 1)
    first, *others = [retrieval_metrics(users, items, sequences(*[[row]] * 25)).ranks for row in rows]
    for ranks in others:
        np.testing.assert_array_equal(ranks.ranks_T, first.ranks_T)
        assert ranks.num_targets_tied == first.num_targets_tied == 25


def test_history_is_taken_out_but_never_a_target():
    users, items = scored([[6, 5, 4, 3, 2, 1]])
    history = sequences([0, 1, 3, 3, -1])
    ranks = retrieval_metrics(users, items, sequences([1, 2]), history).ranks.ranks_T
    assert ranks.tolist() == [1, 2]
    assert retrieval_metrics(users, items, sequences([1, 2])).ranks.ranks_T.tolist() == [2, 3]


def test_a_gallery_that_is_constant_once_history_is_out_is_constant():
    users, items = scored([[9, 5, 5, 5]])
    metrics = retrieval_metrics(users, items, sequences([1]), sequences([0]), cutoffs=(1,))
    assert (metrics.ranks.num_users_constant, metrics.ranks.ranks_T.tolist()) == (1, [2])


@pytest.mark.parametrize("at_once", [1, 90, 91 * 7, 10**9])
def test_users_taken_in_chunks_give_the_same_ranks(at_once: int, monkeypatch: pytest.MonkeyPatch):
    users, items, targets, history = drawn(seed=8, values=4)
    whole = retrieval_metrics(users, items, sequences(*targets), sequences(*history))
    monkeypatch.setattr(target_ranks, "SCORES_AT_ONCE", at_once)
    chunked = retrieval_metrics(users, items, sequences(*targets), sequences(*history))
    np.testing.assert_array_equal(chunked.ranks.ranks_T, whole.ranks.ranks_T)


def test_vectors_may_be_memory_mapped_read_only(tmp_path: Path):
    users, items, targets, _ = drawn(seed=9)
    np.save(tmp_path / "users.npy", users)
    np.save(tmp_path / "items.npy", items)
    mapped = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("users", "items"))
    expected = retrieval_metrics(users, items, sequences(*targets))
    np.testing.assert_array_equal(retrieval_metrics(*mapped, sequences(*targets)).ranks.ranks_T, expected.ranks.ranks_T)


def test_where_nobody_has_a_target_there_is_no_value_and_everybody_is_counted_as_skipped():
    users, items, *_ = drawn(seed=0, num_users=3)
    for metrics in (
        retrieval_metrics(users, items, sequences([], [], []), sequences([1], [], [2])),
        retrieval_metrics_of_lists(np.zeros((3, 200), np.int64) - 1, sequences([], [], [])),
    ):
        at = metrics.at(10)
        assert (at.hit_rate, at.recall, at.micro_recall, at.ndcg, at.mrr, metrics.mrr) == (None,) * 6
        assert (metrics.num_users, metrics.num_targets, metrics.num_users_skipped) == (0, 0, 3)


def test_lists_that_are_exact_give_the_metrics_of_the_full_ranking():
    users, items, targets, _ = drawn(seed=11, num_items=300)
    full = retrieval_metrics(users, items, sequences(*targets), cutoffs=(1, 10, 50))
    lists = np.argsort(-(users @ items.T), axis=1, kind="stable")[:, :60]
    from_lists = retrieval_metrics_of_lists(lists, sequences(*targets), cutoffs=(1, 10, 50))
    for one, other in zip(full.cutoffs, from_lists.cutoffs, strict=True):
        assert (one.hit_rate, one.recall, one.micro_recall) == (other.hit_rate, other.recall, other.micro_recall)
        np.testing.assert_array_equal(one.hits_V, other.hits_V)
        np.testing.assert_array_equal(one.ndcg_V, other.ndcg_V)
        np.testing.assert_array_equal(one.reciprocal_rank_V, other.reciprocal_rank_V)
    assert full.mrr is not None
    assert from_lists.mrr is None
    assert from_lists.ranks.num_targets_tied is None
    assert (from_lists.num_users, from_lists.num_users_skipped) == (full.num_users, full.num_users_skipped)


def test_a_place_that_the_index_left_empty_is_a_miss_and_keeps_its_rank():
    metrics = retrieval_metrics_of_lists(np.array([[7, -1, 2], [-1, -1, -1]]), sequences([2, 9], [7]), cutoffs=(3,))
    assert metrics.ranks.ranks_T.tolist() == [3, math.inf, math.inf]
    assert (metrics.at(3).hit_rate, metrics.at(3).recall) == (0.5, 0.25)


def test_asking_for_another_cutoff_names_those_there_are():
    metrics = retrieval_metrics(*scored([[1, 0]]), sequences([0]))
    with pytest.raises(KeyError, match="no metrics at 5: the cutoffs were 10, 50, 100, 200"):
        metrics.at(5)


BAD = np.array([[1.0, np.nan], [np.inf, 0.0]], np.float32)
GOOD = np.eye(2, dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": BAD}, "2 of 2 user vectors are not finite, such as rows \\[0, 1\\]"),
        ({"items": BAD}, "2 of 2 item vectors are not finite"),
        ({"items": np.eye(3, dtype=np.float32)}, "user vectors are 2 wide, item vectors 3"),
        ({"users": np.eye(2)}, "user vectors must be a float32 matrix, got float64"),
        ({"users": GOOD[0]}, "float32 matrix, got float32 of shape \\(2,\\)"),
        ({"users": GOOD[:1]}, "1 user vectors, targets of 2 users"),
        (
            {"targets": sequences([0], [2, 5, 1])},
            "2 of 4 entries are no item, such as \\[2, 5\\]: the gallery has rows 0 to 1",
        ),
        ({"targets": sequences([0], [-1])}, "1 of 2 entries are no item, such as \\[-1\\]"),
        ({"history": sequences([0], [2])}, "1 of 2 entries are no item"),
        ({"history": sequences([0])}, "histories of 1 users, targets of 2"),
        ({"cutoffs": (0,)}, "cutoffs must be whole numbers from 1, got \\(0,\\)"),
        ({"cutoffs": ()}, "cutoffs must be whole numbers"),
        ({"ties": "pessimistic"}, "ties must be one of optimistic, mid, got 'pessimistic'"),
    ],
)
def test_what_cannot_be_ranked_is_refused(change: dict, message: str):
    given = {"users": GOOD, "items": GOOD, "targets": sequences([0], [1]), "history": None, "cutoffs": (1,), **change}
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(given.pop("users"), given.pop("items"), given.pop("targets"), given.pop("history"), **given)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[1, 2, 1]], "a list has an item twice"),
        ([[1, 2]], "cutoff 3 needs lists of as many items, got 2"),
        ([[1, 2, 3], [1, 2, 3]], "expected \\(1, K\\)"),
    ],
)
def test_lists_that_are_no_ranking_are_refused(lists: list[list[int]], message: str):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics_of_lists(np.array(lists), sequences([1]), cutoffs=(3,))
