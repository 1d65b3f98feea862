"""Negatives for a log of positives alone, such as purchases: items that were on sale, but not taken.

For each positive, `negatives_per_positive` items are drawn from those taken by anyone in the same calendar week, with
probability proportional to (times taken that week) ** `popularity_power`, without repeats within a request and never
one that the request took. They carry the request's id, user and time, and `is_sampled`: nobody is known to have seen
them. The power .75 is word2vec's: between drawing by popularity, where the negatives are as popular as the positives,
and uniformly, where a ranker that knows popularity alone looks good.

The week is the whole calendar week (Monday to Sunday, UTC), later days included: an item that first sells on Thursday
can be a negative on Monday. Otherwise an item without a past would always be a positive, and a ranker would learn that.
"""

import logging
from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt

logger = logging.getLogger(__name__)

DRAWS_PER_CHUNK = 2_000_000
"""Negatives made at a time: about 1 GB of keys, draws and rows."""

ROUNDS_OF_REJECTION = 16
"""After so many rounds what is missing belongs to requests that took most of the week's items: drawn one by one."""


class Config(BaseModel, extra="forbid", frozen=True):
    """How many negatives, and which."""

    negatives_per_positive: PositiveInt = 4
    """Sampled negatives for each positive (fewer where a request has taken almost all items of the week)."""
    popularity_power: NonNegativeFloat = 0.75
    """Draw by (times taken that week) ** power: 0 is uniform, 1 is by popularity."""
    seed: int = Field(default=0, ge=0)
    """The same seed and log give the same negatives, in whatever order the rows of the log come."""


def label_rule(config: Config) -> str:
    """The rule as a sentence of the report."""
    return (
        f"negatives are sampled: for each positive {config.negatives_per_positive} items that somebody took in the "
        f"same calendar week and this request did not, drawn by (times taken that week)^{config.popularity_power:g}; "
        "nobody is known to have seen them"
    )


def sample_negatives(positives: pl.DataFrame, config: Config) -> Iterator[pl.DataFrame]:
    """Draw negatives, week by week, about two million rows at a time.

    Args:
        positives: one row per thing taken: `request_id` (one user, one time), `user_id`, `item_id`,
            `event_timestamp`. Whole weeks: an item's weight is counted in the rows given.
        config: how many and which.

    Yields:
        Frames shaped like `Impressions`, with `is_sampled` true; `impression_id` is
        `<request_id>:<item_id>:sampled`.
    """
    weeks = positives.with_columns(week=pl.col("event_timestamp").dt.truncate("1w")).sort("week", maintain_order=True)
    for (week,), taken in weeks.group_by(["week"], maintain_order=True):
        items = taken.group_by("item_id").len().sort("item_id").with_row_index("item")
        weights = items.get_column("len").to_numpy().astype(np.float64) ** config.popularity_power
        requests = (
            taken.group_by("request_id")
            .agg(pl.col("user_id").first(), pl.col("event_timestamp").min(), pl.col("item_id").n_unique())
            .sort("event_timestamp", "request_id")
        )
        wanted = requests.get_column("item_id").to_numpy().astype(np.int64) * config.negatives_per_positive
        requests = requests.drop("item_id").with_row_index("request")
        pairs = taken.join(requests.select("request_id", "request"), on="request_id").join(items, on="item_id")
        taken_keys = np.unique(_keys(pairs.get_column("request"), pairs.get_column("item"), len(items)))
        num_missing = int(wanted.sum())
        chunk_of = np.cumsum(wanted) // DRAWS_PER_CHUNK
        for chunk in np.unique(chunk_of):
            first, end = np.searchsorted(chunk_of, [chunk, chunk + 1])
            low, high = np.searchsorted(taken_keys, [first * len(items), end * len(items)])
            rng = np.random.default_rng([config.seed, week.toordinal(), int(chunk)])
            drawn = _draw(taken_keys[low:high] - first * len(items), wanted[first:end], weights, rng)
            num_missing -= len(drawn)
            yield _rows(requests[int(first) : int(end)], items, drawn)
        if num_missing:
            logger.info("week of %s: %d negatives short, their requests ran out of items", week.date(), num_missing)


def _keys(request: pl.Series, item: pl.Series, num_items: int) -> NDArray[np.int64]:
    return request.to_numpy().astype(np.int64) * num_items + item.to_numpy().astype(np.int64)


def _draw(
    taken_keys: NDArray[np.int64], wanted: NDArray[np.int64], weights: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Weighted draws without replacement, for many requests at once.

    Drawing with replacement and passing over what has been drawn before *is* weighted sampling without replacement,
    so each round draws what is still missing, for all requests, and keeps what is new.

    Args:
        taken_keys: int64[T], sorted: request * num_items + item of what the requests took.
        wanted: int64[R], draws per request.
        weights: float64[num_items], positive.
        rng: source of randomness.

    Returns:
        int64, sorted: request * num_items + item of what was drawn; fewer than wanted where a request runs out of
        items.
    """
    num_items = len(weights)
    num_taken = np.bincount(taken_keys // num_items, minlength=len(wanted))
    missing = np.minimum(wanted, num_items - num_taken)
    upper_edge = np.cumsum(weights)
    seen, drawn = taken_keys, [np.empty(0, np.int64)]
    for _ in range(ROUNDS_OF_REJECTION):
        request = np.repeat(np.arange(len(wanted)), missing)
        if len(request) == 0:
            break
        item = np.searchsorted(upper_edge, rng.random(len(request)) * upper_edge[-1], side="right")
        keys = np.unique(request * num_items + np.minimum(item, num_items - 1))
        fresh = keys[~_in_sorted(keys, seen)]
        missing = missing - np.bincount(fresh // num_items, minlength=len(wanted))
        drawn.append(fresh)
        seen = np.sort(np.concatenate([seen, fresh]), kind="stable")
    for straggler in np.flatnonzero(missing).tolist():
        low, high = np.searchsorted(seen, [straggler * num_items, (straggler + 1) * num_items])
        left = np.setdiff1d(np.arange(num_items), seen[low:high] - straggler * num_items, assume_unique=True)
        # The largest log(weight) + Gumbel noise: the same law, in one pass over the items that are left.
        perturbed = np.log(weights[left]) + rng.gumbel(size=len(left))
        drawn.append(straggler * num_items + left[np.argsort(-perturbed)[: missing[straggler]]])
    return np.sort(np.concatenate(drawn))


def _in_sorted(values: NDArray[np.int64], ordered: NDArray[np.int64]) -> NDArray[np.bool_]:
    if len(ordered) == 0:
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[at] == values


def _rows(requests: pl.DataFrame, items: pl.DataFrame, drawn: NDArray[np.int64]) -> pl.DataFrame:
    request, item = np.divmod(drawn, len(items))
    return requests.select("request_id", "user_id", "event_timestamp")[request].with_columns(
        items.get_column("item_id")[item],
        impression_id=pl.format("{}:{}:sampled", "request_id", items.get_column("item_id")[item]),
        clicked=pl.lit(False),
        converted=pl.lit(False),
        is_sampled=pl.lit(True),
    )
