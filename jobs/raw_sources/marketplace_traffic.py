"""Who visits the simulated marketplace, and when: daily volumes, hours of the day, pages of a visit."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.raw_sources.marketplace_users import Population

SECONDS_PER_DAY = 86_400
WEEKDAYS = (0.92, 0.9, 0.93, 0.97, 1.0, 1.12, 1.16)
"""Relative traffic, Monday first."""
HOURS = (2, 1, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 9, 8, 7, 7, 8, 9, 11, 13, 14, 13, 9, 5)
"""Relative traffic by hour (UTC)."""
PAGES = (0.65, 0.25, 0.10)
"""Share of visits with one, two and three pages; every page is a slate of its own."""
MEAN_PAGES = sum(number * share for number, share in enumerate(PAGES, start=1))


@dataclass(frozen=True)
class Pages:
    """One entry per page shown, in order of time."""

    user: NDArray[np.int64]
    visit: NDArray[np.int64]
    seconds: NDArray[np.float64]  # since midnight, below a day


def second_of_day(quantile: NDArray[np.float64]) -> NDArray[np.float64]:
    """When so large a share of the day's traffic has passed. Arrivals and visits must use the same clock."""
    passed = np.concatenate([[0.0], np.cumsum(HOURS) / np.sum(HOURS)])
    return np.interp(quantile, passed, np.linspace(0, SECONDS_PER_DAY, len(passed)))


def returning_visits(population: Population, num_days: int, first_weekday: int, num_pages: float) -> NDArray[np.int64]:
    """(days,) visits of users who arrived on an earlier day, so that all pages of the log come to about `num_pages`.

    Raises:
        ValueError: the first visits of the new users alone are more than that.
    """
    day = np.arange(num_days)
    known = np.searchsorted(population.arrival_day, day, side="left")
    first_visits = np.searchsorted(population.arrival_day, day, side="right") - known
    left_over = num_pages / MEAN_PAGES - first_visits.sum()
    if left_over < num_days:
        raise ValueError(
            f"the log is too short for its users: {first_visits.sum()} of them arrive during it and the first visit of "
            f"each takes {MEAN_PAGES:.2f} pages, of {num_pages:.0f} in all; raise num_impressions or lower num_users"
        )
    weight = np.cumsum(population.activity)[known - 1] * np.array(WEEKDAYS)[(first_weekday + day) % 7]
    until = np.round(np.cumsum(weight) / weight.sum() * left_over).astype(np.int64)
    return np.diff(until, prepend=0)


def pages_of_shard(
    population: Population, day: int, shard: int, num_shards: int, num_returning: int, rng: np.random.Generator
) -> Pages:
    """The pages of one shard of a day: its share of the returning visits, and first visits of those who arrive then.

    Shards divide a day by time: shard `s` of `n` holds the visits that begin between the quantiles s/n and (s+1)/n.
    """
    known, until = np.searchsorted(population.arrival_day, (day, day + 1), side="left")
    begin, end = shard / num_shards, (shard + 1) / num_shards
    new = np.arange(known, until)
    new = new[(population.arrival_quantile[new] >= begin) & (population.arrival_quantile[new] < end)]
    activity = np.cumsum(population.activity[:known])
    returning = np.searchsorted(activity, rng.random(num_returning) * activity[-1], side="right")
    user = np.concatenate([new, np.minimum(returning, known - 1)])
    quantile = np.concatenate([population.arrival_quantile[new], rng.uniform(begin, end, num_returning)])

    num_pages = 1 + rng.choice(len(PAGES), size=len(user), p=PAGES)
    visit = np.repeat(np.arange(len(user)), num_pages)
    page = np.arange(len(visit)) - np.repeat(np.cumsum(num_pages) - num_pages, num_pages)
    # A minute or two on each page; a visit that runs past midnight is cut short at it.
    seconds = second_of_day(quantile)[visit] + page * rng.uniform(20, 180, len(visit))
    seconds = np.minimum(seconds, SECONDS_PER_DAY - 1e-3)
    order = np.argsort(seconds, kind="stable")
    return Pages(user[visit][order], visit[order], seconds[order])
