from pathlib import Path

import numpy as np
import pytest

from embedders.interests import mean_of_history

RIGHT, UP, LEFT = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
VECTORS_ND = np.array([RIGHT, UP, LEFT], np.float32)


def mean(rows: list[list[int]]):
    flat = np.array([row for history in rows for row in history], np.int64)
    return mean_of_history(VECTORS_ND, flat, np.array([len(history) for history in rows], np.int64))


def test_right_and_up_make_the_diagonal():
    means = mean([[0, 1]])
    np.testing.assert_allclose(means.vectors, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
    assert means.num_items.tolist() == [2]


def test_an_item_that_occurs_twice_counts_twice():
    np.testing.assert_allclose(mean([[0, 0, 1]]).vectors, [[2 / 5**0.5, 1 / 5**0.5]], rtol=1e-6)


def test_items_without_a_vector_are_not_counted():
    means = mean([[-1, 1, -1]])
    np.testing.assert_allclose(means.vectors, [UP])
    assert means.num_items.tolist() == [1]


def test_histories_without_any_vector_are_left_out_and_the_others_keep_their_place():
    means = mean([[-1], [], [0], [-1, -1], [1], []])
    assert means.histories.tolist() == [2, 4]
    np.testing.assert_allclose(means.vectors, [RIGHT, UP])
    assert means.num_cancelled == 0


def test_vectors_that_cancel_have_no_direction():
    means = mean([[0, 2], [0], [0, 2, 1]])
    assert means.histories.tolist() == [1, 2]
    assert means.num_cancelled == 1
    np.testing.assert_allclose(means.vectors, [RIGHT, UP])


def test_what_rounding_leaves_of_vectors_that_cancel_is_not_a_direction():
    rng = np.random.default_rng(0)
    vectors_ND = rng.normal(size=(50, 8)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    both = np.concatenate([vectors_ND, -vectors_ND])
    means = mean_of_history(both, rng.permutation(100), np.array([100]))
    assert means.num_cancelled == 1
    assert means.vectors.shape == (0, 8)


@pytest.mark.parametrize("rows", [[], [[]], [[-1], [-1]]])
def test_no_vectors_at_all_give_no_interests(rows: list[list[int]]):
    means = mean(rows)
    assert means.vectors.shape == (0, 2)
    assert means.vectors.dtype == np.float32
    assert means.histories.tolist() == []


def test_many_histories_agree_with_one_at_a_time():
    rng = np.random.default_rng(1)
    vectors_ND = rng.normal(size=(300, 16)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    lengths_H = rng.integers(0, 60, size=500)
    rows_T = rng.integers(-1, 300, size=lengths_H.sum())
    means = mean_of_history(vectors_ND, rows_T, lengths_H)
    expected = {}
    for number, rows in enumerate(np.split(rows_T, np.cumsum(lengths_H)[:-1])):
        known = vectors_ND[rows[rows >= 0]].astype(np.float64)
        if len(known):
            expected[number] = known.mean(axis=0) / np.linalg.norm(known.mean(axis=0))
    assert means.histories.tolist() == list(expected)
    np.testing.assert_allclose(means.vectors, np.array(list(expected.values())), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(means.vectors, axis=1), 1, atol=1e-6)


def test_item_vectors_may_be_memory_mapped_read_only(tmp_path: Path):
    np.save(tmp_path / "vectors.npy", VECTORS_ND)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    means = mean_of_history(mapped, np.array([1]), np.array([1]))
    np.testing.assert_allclose(means.vectors, [UP])


def test_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="add up to 3, but there are 2 entries"):
        mean_of_history(VECTORS_ND, np.array([0, 1]), np.array([1, 2]))


def test_a_row_beyond_the_vectors_is_refused():
    with pytest.raises(ValueError, match="names vector 3, but there are only 3"):
        mean_of_history(VECTORS_ND, np.array([3]), np.array([1]))
