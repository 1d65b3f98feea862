"""What comes of an impression in the simulated marketplace: the known answer.

    p_ctr   = examination(position) * sigmoid(click coefficients . causes)
    p_cvr   = sigmoid(purchase coefficients . causes)                       given the click
    p_ctcvr = p_ctr * p_cvr

A position is a fact of the page, not of user and item, and no ranker knows it beforehand. So p_ctr, the probability the
click was drawn from, is a ceiling that also knows the page; p_ctr / examination(position) is the ceiling that does not.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.raw_sources.marketplace_catalogue import Catalogue
from jobs.raw_sources.marketplace_users import Population

MEDIAN_DELAY_HOURS = 9.0
DELAY_SPREAD = 1.6
"""Standard deviation of the logarithm of the delay from click to conversion."""
MAX_DELAY_DAYS = 14
"""No conversion is credited to an older click."""


class Coefficients(NamedTuple):
    """Weights of the causes in a logit."""

    bias: float
    affinity: float  # how well the item's themes meet what the user is after, 0..1; in a feed
    affinity_in_search: float  # the same; weaker, since the query already says what the user wants now
    quality: float
    price: float  # the cheaper for its kind the better, or the dearer, as the user likes it
    brand_style: float
    readiness: float  # of the user, whatever the item
    searching: float
    relevance: float  # grade of the item for the query, 0..1


CLICK = Coefficients(
    bias=-4.0,
    affinity=4.0,
    affinity_in_search=1.0,
    quality=0.45,
    price=0.5,
    brand_style=0.5,
    readiness=0.4,
    searching=-0.6,
    relevance=3.3,
)
PURCHASE = Coefficients(
    bias=-2.85,
    affinity=1.0,
    affinity_in_search=0.5,
    quality=0.6,
    price=0.7,
    brand_style=0.4,
    readiness=0.4,
    searching=-0.3,
    relevance=0.9,
)


@dataclass(frozen=True)
class Causes:
    """One entry per impression."""

    affinity: NDArray[np.float64]
    quality: NDArray[np.float64]
    price: NDArray[np.float64]
    brand_style: NDArray[np.float64]
    click_readiness: NDArray[np.float64]
    buy_readiness: NDArray[np.float64]
    searching: NDArray[np.float64]
    relevance: NDArray[np.float64]


def examination(position: NDArray[np.int32]) -> NDArray[np.float64]:
    """Probability that a user looks at a position; 1 at the top (0), 0.53 at the bottom (9)."""
    examined: NDArray[np.float64] = 1.0 / (1.0 + 0.1 * position.astype(np.float64))
    return examined


def causes(
    catalogue: Catalogue,
    population: Population,
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    themes: NDArray[np.int16],
    grade: NDArray[np.int8],
) -> Causes:
    """What makes each user click and buy.

    Args:
        user, item: (impressions,)
        themes: (impressions, pursuits) what the user is after that day.
        grade: (impressions,) of the item for the query, negative in a feed.
    """
    strength = population.strength[user]
    first = (strength * (themes == catalogue.theme[item][:, None])).sum(axis=1)
    second = (strength * (themes == catalogue.second_theme[item][:, None])).sum(axis=1)
    return Causes(
        affinity=np.minimum(first + catalogue.second_weight[item] * second, 1.0).astype(np.float64),
        quality=catalogue.quality[item].astype(np.float64),
        price=(-population.price_sensitivity[user] * catalogue.price_level[item]).astype(np.float64),
        brand_style=(population.brand_style[user] == catalogue.brand_style[item]).astype(np.float64),
        click_readiness=population.click_readiness[user].astype(np.float64),
        buy_readiness=population.buy_readiness[user].astype(np.float64),
        searching=(grade >= 0).astype(np.float64),
        relevance=np.maximum(grade, 0) / 3.0,
    )


def _probability(weights: Coefficients, of: Causes, readiness: NDArray[np.float64]) -> NDArray[np.float64]:
    logit = (
        weights.bias
        + np.where(of.searching > 0, weights.affinity_in_search, weights.affinity) * of.affinity
        + weights.quality * of.quality
        + weights.price * of.price
        + weights.brand_style * of.brand_style
        + weights.readiness * readiness
        + weights.searching * of.searching
        + weights.relevance * of.relevance
    )
    probability: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logit))
    return probability


def click_probability(of: Causes, position: NDArray[np.int32]) -> NDArray[np.float64]:
    """p_ctr of each impression."""
    return examination(position) * _probability(CLICK, of, of.click_readiness)


def purchase_probability(of: Causes) -> NDArray[np.float64]:
    """p_cvr of each impression: of converting, given the click."""
    return _probability(PURCHASE, of, of.buy_readiness)


def delay_microseconds(number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """From impression to conversion, hours to days; a minute at least, two weeks at most."""
    hours = MEDIAN_DELAY_HOURS * np.exp(DELAY_SPREAD * rng.normal(size=number))
    return (np.clip(hours, 1 / 60, 24.0 * MAX_DELAY_DAYS) * 3.6e9).astype(np.int64)
