"""A budget holds whatever the order in which threads ask and give back."""

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.relevance.token_budget import TokenBudget

ASKED = st.tuples(st.integers(0, 50), st.floats(0, 1), st.booleans())


@given(st.integers(0, 200), st.lists(ASKED, max_size=40), st.randoms())
def test_used_and_promised_never_exceed_the_budget_in_any_order(
    most: int, asked: list[tuple[int, float, bool]], order: random.Random
):
    budget, held, used = TokenBudget(most), [], 0
    for tokens, share, settles in asked:
        fits = budget.used + budget.reserved + tokens <= most
        assert budget.reserve(tokens, wait=False) is fits
        if fits:
            held.append((tokens, int(tokens * share)))
        if settles and held:
            reserved, spent = held.pop(order.randrange(len(held)))
            budget.settle(reserved, spent)
            used += spent
        assert budget.used == used
        assert budget.reserved == sum(reserved for reserved, _ in held)
        assert budget.used + budget.reserved <= most


@pytest.mark.parametrize("seed", range(5))
def test_threads_that_wait_for_each_other_use_as_much_as_fits_and_all_end(seed: int):
    most, bound, spent = 10_000, 300, 97
    budget, peaks = TokenBudget(most), []

    def work() -> None:
        while budget.reserve(bound):
            peaks.append(budget.used + budget.reserved)
            budget.settle(bound, spent)

    random.seed(seed)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert max(peaks) <= most
    assert budget.used == ((most - bound) // spent + 1) * spent
    assert budget.reserved == 0


def test_without_a_limit_everything_fits_and_is_counted():
    budget = TokenBudget()
    assert budget.reserve(10**9)
    budget.settle(10**9, 5)
    assert budget.used == 5
    assert "5 of any number" in str(budget)


def test_what_can_never_fit_is_refused_at_once_although_others_hold_some():
    budget = TokenBudget(100)
    assert budget.reserve(60)
    assert not budget.reserve(101)
    with pytest.raises(ValueError, match="0 tokens or more"):
        TokenBudget(-1)


def test_a_bound_that_was_none_is_told(caplog: pytest.LogCaptureFixture):
    budget = TokenBudget(100)
    budget.reserve(10)
    budget.settle(10, 12)
    assert "12 tokens were used where 10 were expected at most" in caplog.text
    assert budget.used == 12
