import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedders.mkd_batches import PairBatches


def pairs(num: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return rng.integers(3, 40, num), rng.integers(0, max(1, num // 4), num) * 11


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 300), batch_size=st.integers(1, 20), seed=st.integers(0, 99), grouped=st.booleans())
def test_every_pair_is_in_one_batch_and_no_batch_is_too_large(
    num: int, batch_size: int, seed: int, grouped: bool
) -> None:
    length, query = pairs(num, seed)
    batches = list(PairBatches(length, query, batch_size=batch_size, grouped=grouped, seed=seed).batches(0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(num))
    assert max(len(batch) for batch in batches) <= batch_size


def test_a_query_stays_in_one_batch_where_it_fits() -> None:
    length, query = pairs(400, 0)
    assert np.bincount(query).max() <= 16
    batches = list(PairBatches(length, query, batch_size=16, grouped=True, seed=0).batches(3))
    batch_of = np.empty(400, np.int64)
    for at, batch in enumerate(batches):
        batch_of[batch] = at
    assert all(len(set(batch_of[query == one].tolist())) == 1 for one in np.unique(query))


def test_a_query_with_more_pairs_than_a_batch_is_cut_at_random() -> None:
    query = np.zeros(10, np.int64)
    batches = PairBatches(np.full(10, 5), query, batch_size=4, grouped=True, seed=0)
    first, second = ([sorted(batch.tolist()) for batch in batches.batches(epoch)] for epoch in (0, 1))
    assert sorted(len(batch) for batch in first) == [2, 4, 4]
    assert sorted(first) != sorted(second)


@pytest.mark.parametrize("grouped", [False, True])
def test_pairs_of_like_length_go_together(grouped: bool) -> None:
    length, query = pairs(4000, 0)
    batches = PairBatches(length, query, batch_size=16, grouped=grouped, seed=0)
    padded = sum(len(batch) * length[batch].max() for batch in batches.batches(0))
    at_random = np.random.default_rng(0).permutation(4000).reshape(-1, 16)
    assert padded < 0.9 * (16 * length[at_random].max(axis=1)).sum()
    if not grouped:
        assert padded < 1.1 * length.sum()


def test_the_same_seed_and_epoch_give_the_same_and_others_do_not() -> None:
    length, query = pairs(200, 0)

    def order(seed: int, epoch: int) -> list[int]:
        batches = PairBatches(length, query, batch_size=8, grouped=True, seed=seed).batches(epoch)
        return np.concatenate(list(batches)).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
