"""Counts of won pairs against counting pairs one by one, whatever the scores look like and however rows are split."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranker import ranked_rows
from ranker.ranked_rows import PooledSums, dense_ranks, merged, pooled_sums, score_bits, sums_by_group, sums_by_rank

HOSTILE = [0.0, -0.0, 5e-324, 1e-300, 0.1, np.nextafter(0.1, 1), np.nextafter(0.1, 0), 1.0, 1e300, np.inf]
scores = st.one_of(
    st.sampled_from(HOSTILE + [-value for value in HOSTILE]),
    st.floats(allow_nan=False),
    st.floats(allow_nan=False, width=32),
)
Drawn = list[tuple[int, int, bool, float]]
rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.booleans(), scores), min_size=1, max_size=40)


@pytest.fixture(params=[1, 3, 1 << 19], autouse=True)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows decoded at a time: every test holds wherever the blocks are cut."""
    monkeypatch.setattr(ranked_rows, "ROWS_PER_BLOCK", request.param)


class Arrays(NamedTuple):
    """One entry a row."""

    user: NDArray[np.int64]
    segment: NDArray[np.int64]
    positive: NDArray[np.bool_]
    score: NDArray[np.float64]


def arrays(drawn: Drawn) -> Arrays:
    user, segment, positive, score = zip(*drawn, strict=True)
    return Arrays(np.array(user), np.array(segment), np.array(positive), np.array(score))


def twice_won(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> int:
    """Pair by pair."""
    above, below = score[positive][:, None], score[~positive][None, :]
    return int(2 * (above > below).sum() + (above == below).sum())


@given(rows)
@settings(max_examples=150, deadline=None)
def test_pairs_won_by_each_user_are_those_counted_one_by_one(drawn: Drawn) -> None:
    user, _, positive, score = arrays(drawn)
    bits = score_bits(score)
    sums = sums_by_group(user, positive, bits)
    assert sums.groups.tolist() == sorted(set(user.tolist()))
    for group, num_rows, num_positives, won in zip(*sums, strict=True):
        own = user == group
        assert (num_rows, num_positives) == (own.sum(), positive[own].sum())
        assert won == twice_won(positive[own], score[own])
    for one, other in zip(sums, sums_by_rank(user, positive, dense_ranks(bits)), strict=True):
        np.testing.assert_array_equal(one, other)


@given(rows)
@settings(max_examples=100, deadline=None)
def test_ranks_are_dense_and_in_the_order_of_the_scores(drawn: Drawn) -> None:
    score = arrays(drawn).score
    expected = np.unique(score, return_inverse=True)[1]
    np.testing.assert_array_equal(dense_ranks(score_bits(score)), expected)


@given(rows)
@settings(max_examples=100, deadline=None)
def test_what_users_add_to_the_pooled_figure_is_counted_one_by_one(drawn: Drawn) -> None:
    user, segment, positive, score = arrays(drawn)
    sums = pooled_sums(segment, 3, user, 5, positive, dense_ranks(score_bits(score)))
    for s in range(3):
        inside = segment == s
        for u in range(5):
            own = inside & (user == u)
            for total, mine, others, sign in (
                (sums.twice_below, own & positive, inside & ~positive, 1),
                (sums.twice_above, own & ~positive, inside & positive, -1),
            ):
                difference = sign * np.subtract.outer(
                    np.unique(score, return_inverse=True)[1][mine], np.unique(score, return_inverse=True)[1][others]
                )
                assert total[5 * s + u] == 2 * (difference > 0).sum() + (difference == 0).sum()


@given(rows)
@settings(max_examples=100, deadline=None)
def test_shards_of_users_add_up_to_the_whole(drawn: Drawn) -> None:
    user, _, positive, score = arrays(drawn)
    whole = sums_by_group(user, positive, score_bits(score))
    shards = [
        sums_by_group(user[part], positive[part], score_bits(score[part])) for part in (user % 2 == 0, user % 2 == 1)
    ]
    for one, other in zip(whole, merged(shards[::-1]), strict=True):
        np.testing.assert_array_equal(one, other)


@given(rows, scores)
@settings(max_examples=100, deadline=None)
def test_shards_of_score_ranges_add_up_to_the_whole(drawn: Drawn, threshold: float) -> None:
    user, segment, positive, score = arrays(drawn)
    whole = pooled_sums(segment, 3, user, 5, positive, dense_ranks(score_bits(score)))
    low, high = score <= threshold, score > threshold
    won = 2 * np.bincount(segment[low & ~positive], minlength=3)
    lost = 2 * np.bincount(segment[high & positive], minlength=3)
    shards = [
        pooled_sums(
            segment[part],
            3,
            user[part],
            5,
            positive[part],
            dense_ranks(score_bits(score[part])),
            twice_won=beyond[0],
            twice_lost=beyond[1],
        )
        for part, beyond in ((low, (None, lost)), (high, (won, None)))
    ]
    np.testing.assert_array_equal(whole.twice_below, shards[0].twice_below + shards[1].twice_below)
    np.testing.assert_array_equal(whole.twice_above, shards[0].twice_above + shards[1].twice_above)


@given(rows)
@settings(max_examples=50, deadline=None)
def test_shards_of_one_tied_score_add_up_to_the_whole(drawn: Drawn) -> None:
    user, segment, positive, _ = arrays(drawn)
    rank = np.zeros(len(user), np.int64)
    whole = pooled_sums(segment, 3, user, 5, positive, rank)
    parts = PooledSums(*np.zeros((2, 15), np.int64))
    for part in (slice(0, 7), slice(7, None)):
        beyond = [
            np.bincount(segment[truth], minlength=3) - np.bincount(segment[part][truth[part]], minlength=3)
            for truth in (~positive, positive)
        ]
        pooled_sums(
            segment[part],
            3,
            user[part],
            5,
            positive[part],
            rank[part],
            twice_won=beyond[0],
            twice_lost=beyond[1],
            into=parts,
        )
    np.testing.assert_array_equal(whole, parts)


def test_many_users_and_scores_that_share_their_upper_bits_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    user = rng.integers(0, 1 << 40, 300)[rng.integers(0, 300, 5000)]  # 40 bits of user leave 23 to the score
    score = 0.5 + rng.integers(0, 50, 5000) * 2.0**-52
    score[0], positive = 1e-30, rng.random(5000) < 0.4  # one far score stretches the range
    sums = sums_by_group(user, positive, score_bits(score))
    for group, won in zip(sums.groups, sums.twice_won, strict=True):
        assert won == twice_won(positive[user == group], score[user == group])
    np.testing.assert_array_equal(dense_ranks(score_bits(score)), np.unique(score, return_inverse=True)[1])


def test_no_rows_have_no_groups() -> None:
    nothing = np.zeros(0, np.int64)
    bits = score_bits(np.zeros(0))
    assert [len(column) for column in sums_by_group(nothing, np.zeros(0, bool), bits)] == [0, 0, 0, 0]
    assert len(dense_ranks(bits)) == 0
    assert pooled_sums(nothing, 2, nothing, 3, np.zeros(0, bool), nothing).twice_below.tolist() == [0] * 6


def test_keys_that_do_not_fit_are_refused() -> None:
    huge = np.array([0, 1 << 40])
    with pytest.raises(ValueError, match="take 82 bits together; expected at most 63"):
        sums_by_rank(huge, np.array([True, False]), huge)
