"""Tiers of users and items by how much is known of them: cold start, long tail, others.

LEARN (arXiv:2405.03988), the ranking evaluation: users by their interactions in the past six months, 0 cold-start,
1-35 long-tail, more = others; items by their purchases in the same time, 0 cold-start, below 30 long-tail, above 30
others.

What we keep / what differs. The tiers and their thresholds are the paper's. It leaves an item of exactly 30 purchases
undefined: here 30 is `others`. Which events count, in which window, is the caller's choice (`jobs.assign_segments`).
"""

import dataframely as dy
import polars as pl

from feature_repo.table_schemas import ItemSegments, UserSegments

TIERS = ("cold_start", "long_tail", "others")
"""From the least known to the best known."""

USER_LONG_TAIL_MAX = 35
"""Interactions in six months; LEARN."""

ITEM_LONG_TAIL_MAX = 29
"""Conversions in six months; LEARN: "less than 30"."""


def tier(num_interactions: pl.Expr, long_tail_max: int) -> pl.Expr:
    """Enum of `TIERS`: 0 is cold_start, 1..long_tail_max is long_tail, more is others.

    Args:
        num_interactions: a whole number >= 0, never null.
        long_tail_max: the largest count that is still long tail, >= 1.

    Raises:
        ValueError: long_tail_max < 1, which would leave no long tail.
    """
    if long_tail_max < 1:
        raise ValueError(f"segments: long_tail_max is {long_tail_max}, expected at least 1 (0 is cold_start already)")
    return (
        pl.when(num_interactions == 0)
        .then(pl.lit("cold_start"))
        .when(num_interactions <= long_tail_max)
        .then(pl.lit("long_tail"))
        .otherwise(pl.lit("others"))
        .cast(pl.Enum(TIERS))
    )


def user_segments(counts: pl.DataFrame, long_tail_max: int = USER_LONG_TAIL_MAX) -> dy.DataFrame[UserSegments]:
    """Tier of each user.

    Args:
        counts: one row per user: `user_id`, `num_interactions`.
        long_tail_max: the largest count that is still long tail.

    Raises:
        ValueError: long_tail_max < 1.
        dy.exc.ValidationError: a user twice, a count below 0 or null.
    """
    return UserSegments.validate(
        counts.select("user_id", tier(pl.col("num_interactions"), long_tail_max).alias("user_segment"), _count()),
        cast=True,
    )


def item_segments(counts: pl.DataFrame, long_tail_max: int = ITEM_LONG_TAIL_MAX) -> dy.DataFrame[ItemSegments]:
    """Tier of each item.

    Args:
        counts: one row per item: `item_id`, `num_interactions`.
        long_tail_max: the largest count that is still long tail.

    Raises:
        ValueError: long_tail_max < 1.
        dy.exc.ValidationError: an item twice, a count below 0 or null.
    """
    return ItemSegments.validate(
        counts.select("item_id", tier(pl.col("num_interactions"), long_tail_max).alias("item_segment"), _count()),
        cast=True,
    )


def _count() -> pl.Expr:
    return pl.col("num_interactions").cast(pl.Int64)
