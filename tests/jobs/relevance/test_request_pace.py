"""No minute holds more than is allowed, and nobody waits for nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.relevance.request_pace import WINDOW_SECONDS, RequestPace

ASKED = st.tuples(st.integers(0, 40), st.integers(1, 400), st.floats(0, 1))


@given(st.integers(1, 5), st.integers(1, 1000), st.lists(ASKED, max_size=40))
def test_no_sixty_seconds_hold_more_than_allowed(most: int, most_tokens: int, asked: list[tuple[int, int, float]]):
    pace, now, taken = RequestPace(most, most_tokens), 0, []
    for gap, tokens, share in asked:
        now += gap
        start = pace.start(now, tokens)
        assert start.at >= now
        used = int(tokens * share)
        pace.took(start, used)
        taken.append((start.at, used))
        now = int(start.at)
    assert taken == sorted(taken, key=lambda one: one[0])
    for at, _ in taken:
        before = [one for one in taken if at - WINDOW_SECONDS < one[0] <= at]
        assert len(before) <= most
        if len(before) > 1:  # one alone may be larger than the limit
            assert sum(used for _, used in before) <= most_tokens


def test_requests_go_at_once_until_the_minute_is_full():
    pace = RequestPace(requests_per_minute=3)
    assert [pace.start(now, 10**6).at for now in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)] == [0, 1, 2, 60, 61, 62, 120]


def test_tokens_that_were_not_taken_are_free_for_the_next():
    pace = RequestPace(tokens_per_minute=1000)
    first = pace.start(0.0, 800)
    assert pace.start(1.0, 200).at == 1.0
    pace.took(first, 300)
    assert pace.start(2.0, 500).at == 2.0
    assert pace.start(3.0, 500).at == pytest.approx(61.0)


def test_a_request_larger_than_the_limit_goes_alone():
    pace = RequestPace(tokens_per_minute=100)
    assert [pace.start(0.0, tokens).at for tokens in (10, 500, 10)] == [0.0, 60.0, 120.0]


def test_without_limits_nobody_waits():
    pace = RequestPace()
    assert [pace.start(float(now), 10**9).at for now in range(50)] == [float(now) for now in range(50)]
