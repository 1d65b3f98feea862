"""The bootstrap against closed forms and one-by-one resampling; Holm against a worked example."""

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from ranker.bootstrap import (
    BLOCKS_AT_ONCE,
    USERS_PER_BLOCK,
    holm,
    percentile_interval,
    poisson_weights,
    resampled_totals,
    two_sided_p,
)


class Sums(NamedTuple):
    """(U,) users and what each adds, (U, K)."""

    users: NDArray[np.int64]
    sums: NDArray[np.float64]

    def columns(self, low: int, high: int) -> NDArray[np.float64]:
        return self.sums[low:high].T


def test_weights_follow_poisson_of_mean_one() -> None:
    weights = poisson_weights(1000, 1000, np.random.default_rng(0))
    assert weights.mean() == pytest.approx(1.0, abs=0.005)
    assert weights.var() == pytest.approx(1.0, abs=0.01)
    assert np.mean(weights == 0) == pytest.approx(np.exp(-1), abs=0.002)
    assert np.mean(weights == 3) == pytest.approx(np.exp(-1) / 6, abs=0.002)
    assert weights.max() >= 6


def test_totals_are_weighted_sums_over_users_across_blocks() -> None:
    num_users = BLOCKS_AT_ONCE * USERS_PER_BLOCK + 100
    rng = np.random.default_rng(1)
    users = np.sort(rng.choice(num_users, 500, replace=False))
    sums = rng.random((500, 3))
    [totals] = resampled_totals([Sums(users, sums)], num_users, 20, seed=7)
    stream = np.random.default_rng(7)
    sizes = [USERS_PER_BLOCK] * (num_users // USERS_PER_BLOCK) + [num_users % USERS_PER_BLOCK]
    weights = np.concatenate([poisson_weights(size, 20, stream) for size in sizes])
    np.testing.assert_allclose(totals, sums.T @ weights[users], rtol=1e-12)


def test_a_user_gets_the_same_copies_in_every_cell_and_ranker() -> None:
    everyone, some = np.arange(50), np.arange(10, 20)
    one = np.ones((50, 1))
    together = resampled_totals([Sums(everyone, one), Sums(some, one[:10])], 50, 30, seed=0)
    alone = resampled_totals([Sums(some, one[:10])], 50, 30, seed=0)
    np.testing.assert_array_equal(together[1], alone[0])
    assert np.all(together[1] <= together[0])


def test_the_same_seed_gives_the_same_draws() -> None:
    cell = Sums(np.arange(9), np.ones((9, 2)))
    first, second = (resampled_totals([cell], 9, 40, seed=5)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.any(first != resampled_totals([cell], 9, 40, seed=6)[0])


def test_the_spread_of_a_resampled_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=4000)
    cell = Sums(np.arange(4000), np.column_stack((values - values.mean(), np.ones(4000))))
    [(numerator, denominator)] = resampled_totals([cell], 4000, 2000, seed=0)
    assert np.std(numerator / denominator) == pytest.approx(values.std() / np.sqrt(4000), rel=0.06)


def test_the_interval_holds_the_middle_95_percent() -> None:
    low, high = percentile_interval(np.arange(1001.0))
    assert (low, high) == (25.0, 975.0)


def test_draws_without_a_value_are_left_out_and_too_many_leave_no_interval() -> None:
    assert percentile_interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert percentile_interval(np.array([np.nan, np.nan, 1.0])) == (None, None)
    assert percentile_interval(np.array([])) == (None, None)


def test_p_values_are_two_sided_and_resolve_large_effects() -> None:
    draws = np.random.default_rng(0).normal(0.02, 0.01, 1000)
    assert two_sided_p(0.0196, draws) == pytest.approx(0.05, abs=0.01)
    assert two_sided_p(-0.0196, -draws) == pytest.approx(two_sided_p(0.0196, draws))
    assert two_sided_p(0.1, draws) < 1e-9
    assert two_sided_p(0.0, draws) == 1.0


def test_p_values_of_draws_that_never_move() -> None:
    assert two_sided_p(0.0, np.zeros(100)) == 1.0
    assert two_sided_p(0.0, np.array([0.0, np.nan, 0.0])) == 1.0


def test_holm_as_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_comparisons_that_were_not_made() -> None:
    assert holm([None, 0.02, None, 0.5]) == [None, pytest.approx(0.04), None, pytest.approx(0.5)]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
