"""What a training batch holds is what happened: histories before targets, queries and exposures of the same moment."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from embedders.histories import PADDING, Sequences
from embedders.karma_draws import NO_QUERY, CatalogueSample, KarmaDraw, KarmaLog, KarmaPasses
from embedders.karma_packing import ANY_TIME, KarmaBatch

DRAW = KarmaDraw(max_history=5, read_outs=3, decoded=2, exposed=2, query_share=1.0)


def numbered(lengths: list[int]) -> KarmaLog:
    """Every interaction is with an item of its own, its number: so a batch tells what it was drawn from.

    Its query is its number, too, but every third has none; shown beside it were the five items before it and itself.
    """
    ends = np.cumsum([0, *lengths])
    number_E = np.arange(ends[-1], dtype=np.int32)
    return KarmaLog(
        Sequences.of_lists([list(range(start, end)) for start, end in pairwise(ends.tolist())]),
        titles=[[7] if number % 4 else [] for number in number_E],
        queries=[[number] for number in number_E.tolist()],
        query_E=np.where(number_E % 3 == 0, NO_QUERY, number_E).astype(np.int32),
        exposed_EM=np.maximum(number_E[:, None] - np.arange(5, -1, -1), PADDING).astype(np.int32),
    )


def passes(log: KarmaLog, draw: KarmaDraw = DRAW, *, batch_size: int = 3, seed: int = 0) -> KarmaPasses:
    return KarmaPasses(log, draw, batch_size=batch_size, seed=seed)


def read_outs(batch: KarmaBatch[NDArray[Any]]) -> list[tuple[list[int], int, int, list[int], bool]]:
    """Of each: the history it sees, its target, its query, what was shown, whether it is decoded."""
    found = []
    for row, history in enumerate(batch.history_BL.tolist()):
        for place, cut in enumerate(batch.cut_BK[row].tolist()):
            if cut:
                shown = [item for item in batch.exposed_BKM[row, place].tolist() if item != PADDING]
                at = (row, place)
                found.append(
                    (
                        history[:cut],
                        int(batch.target_BK[at]),
                        int(batch.query_BK[at]),
                        shown,
                        bool(batch.decoded_BK[at]),
                    )
                )
    return found


logs = st.lists(st.integers(0, 9), min_size=2, max_size=12).filter(lambda lengths: sum(n >= 2 for n in lengths) >= 2)


@settings(max_examples=60, deadline=None)
@given(logs, st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_every_read_out_sees_what_came_right_before_its_target_and_nothing_else(
    lengths: list[int], max_history: int, num_read_outs: int, batch_size: int, seed: int
) -> None:
    log = numbered(lengths)
    owner_E = np.repeat(np.arange(len(lengths)), lengths)
    draw = DRAW._replace(max_history=max_history, read_outs=num_read_outs)
    for batch in passes(log, draw, batch_size=batch_size, seed=seed).batches(0):
        for history, target, query, shown, _ in read_outs(batch):
            assert history == list(range(target - len(history), target))  # oldest first, none between, none after
            assert 1 <= len(history) <= max_history
            assert set(owner_E[history]) == {owner_E[target]}
            assert query == (NO_QUERY if target % 3 == 0 else target)
            assert len(shown) == min(draw.exposed, target, 5)
            assert set(shown) <= set(range(target - 5, target))  # never the target itself
            assert len(set(shown)) == len(shown)


@settings(max_examples=60, deadline=None)
@given(logs, st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_the_last_event_of_a_window_is_always_a_read_out_and_all_are_distinct(
    lengths: list[int], max_history: int, num_read_outs: int, seed: int
) -> None:
    draw = DRAW._replace(max_history=max_history, read_outs=num_read_outs)
    for batch in passes(numbered(lengths), draw, seed=seed).batches(0):
        length_B = (batch.history_BL != PADDING).sum(axis=1)
        for cut_K, length in zip(batch.cut_BK.tolist(), length_B.tolist(), strict=True):
            real = [cut for cut in cut_K if cut]
            assert real == sorted(set(real))
            assert cut_K == real + [0] * (len(cut_K) - len(real))
            assert real[-1] == length
            assert len(real) == min(num_read_outs, length)
        assert batch.target_BK[batch.cut_BK == 0].tolist() == [PADDING] * int((batch.cut_BK == 0).sum())
        assert not batch.decoded_BK[batch.cut_BK == 0].any()


@settings(max_examples=40, deadline=None)
@given(logs, st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_every_user_with_a_history_is_read_once_an_epoch_by_one_process(
    lengths: list[int], batch_size: int, num_shares: int, seed: int
) -> None:
    log = numbered(lengths)
    owner_E = np.repeat(np.arange(len(lengths)), lengths)
    drawn = passes(log, batch_size=batch_size * num_shares, seed=seed)
    shares = [list(drawn.batches(1, share, num_shares)) for share in range(num_shares)]
    assert {len(batches) for batches in shares} == {drawn.num_batches}  # every process takes every step
    read = [
        int(owner_E[batch.history_BL[row, 0]])
        for batches in shares
        for batch in batches
        for row in range(len(batch.history_BL))
    ]
    wanted = [user for user, length in enumerate(lengths) if length >= 2]
    assert set(read) == set(wanted)
    if len(wanted) // drawn.num_batches >= num_shares:
        assert sorted(read) == wanted


def test_where_a_window_ends_and_what_is_read_out_is_uniform() -> None:
    """A user of 9 interactions: 8 places to end, and of a whole window of 5 each of the 4 first places alike."""
    ends, firsts = np.zeros(9, int), np.zeros(6, int)
    drawn = passes(numbered([9, 9]), DRAW._replace(read_outs=2), batch_size=2)
    for epoch in range(2000):
        (batch,) = drawn.batches(epoch)
        for history_L, cut_K, target_K in zip(batch.history_BL, batch.cut_BK, batch.target_BK, strict=True):
            ends[target_K[cut_K > 0][-1] % 9] += 1
            if (history_L != PADDING).sum() == 5:
                firsts[cut_K[0]] += 1
    assert ends[0] == 0
    np.testing.assert_allclose(ends[1:] / ends.sum(), 1 / 8, atol=0.02)
    np.testing.assert_allclose(firsts[1:5] / firsts.sum(), 1 / 4, atol=0.03)


def equal(one: list[KarmaBatch[NDArray[Any]]], other: list[KarmaBatch[NDArray[Any]]]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b)
        for first, second in zip(one, other, strict=True)
        for a, b in zip(first, second, strict=True)
    )


def test_a_draw_is_a_function_of_seed_epoch_and_process() -> None:
    log = numbered([8, 7, 9, 6, 8, 5, 9])
    first = list(passes(log).batches(3, 1, 2))
    np.random.rand(5)
    assert equal(first, list(passes(log).batches(3, 1, 2)))
    assert not equal(first, list(passes(log).batches(4, 1, 2)))
    assert not equal(first, list(passes(log).batches(3, 0, 2)))
    assert not equal(first, list(passes(log, seed=1).batches(3, 1, 2)))


def test_of_a_user_s_read_outs_so_many_are_decoded_and_only_those_with_a_title() -> None:
    log = numbered([9] * 20)
    for batch in passes(log, batch_size=5).batches(0):
        for row in range(len(batch.cut_BK)):
            has_title = (batch.target_BK[row] % 4 != 0) & (batch.cut_BK[row] > 0)
            assert not (batch.decoded_BK[row] & ~has_title).any()
            assert batch.decoded_BK[row].sum() == min(2, has_title.sum())
    counts = [int(batch.decoded_BK.sum()) for batch in passes(log, DRAW._replace(decoded=0)).batches(0)]
    assert not any(counts)


def test_half_of_the_read_outs_that_have_a_query_see_it() -> None:
    drawn = passes(numbered([9] * 60), DRAW._replace(query_share=0.5), batch_size=10)
    seen = [
        query != NO_QUERY
        for epoch in range(10)
        for batch in drawn.batches(epoch)
        for _, target, query, *_ in read_outs(batch)
        if target % 3
    ]
    assert np.mean(seen) == pytest.approx(0.5, abs=0.05)
    never = passes(numbered([9] * 6), DRAW._replace(query_share=0.0))
    assert all(query == NO_QUERY for batch in never.batches(0) for _, _, query, *_ in read_outs(batch))


def test_without_queries_or_exposures_there_are_none() -> None:
    log = replace(numbered([6, 6, 6]), query_E=None, exposed_EM=None)
    (batch,) = passes(log).batches(0)
    assert (batch.query_BK == NO_QUERY).all()
    assert batch.exposed_BKM.shape == (*batch.cut_BK.shape, 0)


def test_users_of_like_length_share_a_batch() -> None:
    log = numbered([2, 9] * 30)
    padding = [(batch.history_BL == PADDING).mean() for batch in passes(log, batch_size=6).batches(0)]
    assert np.mean(padding) < 0.1


def test_a_log_that_does_not_fit_together_is_refused() -> None:
    log = numbered([3, 3])
    with pytest.raises(ValueError, match="query_E has 5 rows, but there are 6 interactions"):
        replace(log, query_E=log.query_E[:5] if log.query_E is not None else None)
    with pytest.raises(ValueError, match="query_E names row 5, but there are 2 queries"):
        replace(log, queries=[[1], [2]])
    with pytest.raises(ValueError, match="items_E names row 5, but there are 3 titles, one a catalogue row"):
        replace(log, titles=[[1]] * 3)
    with pytest.raises(ValueError, match="1 of 3 users have two interactions"):
        passes(numbered([1, 4, 0]))


def dated(lengths: list[int]) -> KarmaLog:
    """Interaction e chooses item e at time 10 e; each item is listed when it is chosen."""
    log, time_E = numbered(lengths), 10 * np.arange(sum(lengths), dtype=np.int64)
    return replace(log, sequences=Sequences(log.sequences.items_E, time_E, log.sequences.offsets_U), listed_N=time_E)


@given(logs, st.integers(1, 9), st.integers(0, 3))
def test_a_batch_shares_distinct_items_that_were_listed_by_its_newest_choice(
    lengths: list[int], size: int, seed: int
) -> None:
    for batch in passes(dated(lengths), DRAW._replace(sampled=size), seed=seed).batches(0):
        newest = batch.target_BK.max()  # items are numbered in the order of time
        assert (batch.sampled_S <= newest).all()
        assert len(set(batch.sampled_S.tolist())) == len(batch.sampled_S) == min(size, newest + 1)


@given(logs, st.integers(0, 3))
def test_a_choice_knows_when_it_was_made(lengths: list[int], seed: int) -> None:
    for batch in passes(dated(lengths), seed=seed).batches(0):
        is_there = batch.cut_BK > 0
        assert (batch.time_BK[is_there] == 10 * batch.target_BK[is_there]).all()
    for batch in passes(numbered(lengths), seed=seed).batches(0):
        assert (batch.time_BK == ANY_TIME).all()


def test_what_was_known_at_a_time_is_drawn_uniformly() -> None:
    listed_N = np.array([5, 90, 1, 3, 3, 99], np.int64)
    sample, rng = CatalogueSample(6, 2, listed_N), np.random.default_rng(0)
    drawn = np.bincount(np.concatenate([sample.draw(5, rng) for _ in range(4_000)]), minlength=6)
    assert drawn[[1, 5]].tolist() == [0, 0], "listed later"
    expected = np.full(4, drawn.sum() / 4)
    assert chisquare(drawn[[0, 2, 3, 4]], expected).pvalue > 1e-3
    assert sorted(CatalogueSample(6, 100, listed_N).draw(99, rng)) == list(range(6))
    assert sorted(CatalogueSample(6, 100, None).draw(-1, rng)) == list(range(6))
    assert CatalogueSample(6, 100, listed_N).draw(0, rng).tolist() == []
