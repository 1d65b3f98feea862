"""The users of the simulated marketplace: what they are after, today, and how they are to please."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.raw_sources.marketplace_catalogue import NUM_BRAND_STYLES

SHARE_AT_START = 0.55
"""Users known before the log begins; the others arrive evenly over its days."""
NUM_PURSUITS = 3
"""A user is after one to three themes at a time."""
SHARE_WITH_SECOND, SHARE_WITH_THIRD = 0.6, 0.25
SHARE_WITH_HOBBY = 0.5
"""Users whose first pursuit is a hobby that never ends; all other pursuits are projects."""
MEDIAN_PROJECT_DAYS = 40.0
"""A trip ends, a baby is no longer newborn: then another theme takes the project's place."""


@dataclass(frozen=True)
class Population:
    """One entry per user, in order of arrival."""

    arrival_day: NDArray[np.int32]  # 0 = first day of the log
    arrival_quantile: NDArray[np.float64]  # how far through that day's traffic, [0, 1)
    activity: NDArray[np.float64]  # relative rate of visits; heavy tail
    strength: NDArray[np.float32]  # (users, pursuits) of each pursuit: 1 for the first, 0 where there is none
    project_days: NDArray[np.float32]  # (users, pursuits) length of its projects, inf for a hobby
    project_phase: NDArray[np.float32]  # (users, pursuits) days of the first project already over on day 0
    price_sensitivity: NDArray[np.float32]  # above 0: prefers the cheaper of its kind; below: the dearer
    brand_style: NDArray[np.int8]  # the style of brand that the user leans to
    click_readiness: NDArray[np.float32]  # standard normal: some click much, some hardly
    buy_readiness: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.activity)


def draw_population(num_users: int, num_days: int, rng: np.random.Generator) -> Population:
    """Draw `num_users` users that arrive before and during a log of `num_days` days."""
    arrival = np.where(
        rng.random(num_users) < SHARE_AT_START,
        -1 - rng.integers(0, 365, num_users),
        rng.integers(0, num_days, num_users),
    )
    # Shares of a Dirichlet draw, largest first, in relation to the largest.
    shares = -np.sort(-rng.gamma(1.5, size=(num_users, NUM_PURSUITS)), axis=1)
    has = np.column_stack([np.ones(num_users), rng.random((num_users, 2)) < (SHARE_WITH_SECOND, SHARE_WITH_THIRD)])
    project_days = np.clip(MEDIAN_PROJECT_DAYS * np.exp(0.5 * rng.normal(size=shares.shape)), 7, None)
    phase = rng.random(shares.shape) * project_days
    project_days[rng.random(num_users) < SHARE_WITH_HOBBY, 0] = np.inf
    return Population(
        arrival_day=np.sort(arrival).astype(np.int32),
        arrival_quantile=rng.random(num_users),
        activity=np.exp(1.3 * rng.normal(size=num_users)),
        strength=(shares / shares[:, :1] * has).astype(np.float32),
        project_days=project_days.astype(np.float32),
        project_phase=phase.astype(np.float32),
        price_sensitivity=rng.normal(0.3, 0.7, num_users).astype(np.float32),
        brand_style=rng.integers(0, NUM_BRAND_STYLES, num_users).astype(np.int8),
        click_readiness=rng.normal(size=num_users).astype(np.float32),
        buy_readiness=rng.normal(size=num_users).astype(np.float32),
    )


def pursued_themes(
    population: Population, users: NDArray[np.int64], day: int, theme_shares: NDArray[np.float64], seed: int
) -> NDArray[np.int16]:
    """(users, pursuits) the themes that `users` are after on `day`, whether or not the pursuit has any strength.

    A pure function of (seed, user, pursuit, how many projects came before), so that any day can be simulated by itself
    and nothing has to be remembered from one day to the next.
    """
    number = np.floor((day + population.project_phase[users]) / population.project_days[users]).astype(np.uint64)
    pursuit = np.arange(NUM_PURSUITS, dtype=np.uint64)
    place = users.astype(np.uint64)[:, None] * np.uint64(NUM_PURSUITS) + pursuit
    uniform = _hashed_uniform(seed, place << np.uint64(20) | number)
    return np.searchsorted(np.cumsum(theme_shares)[:-1], uniform, side="right").astype(np.int16)


def _hashed_uniform(seed: int, key: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend on nothing but seed and key (the finaliser of splitmix64, twice)."""
    mixed = key ^ np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    for _ in range(2):
        mixed = mixed + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
