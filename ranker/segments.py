"""Segments: tiers of users and items by how much is known of them, and how any other column is cut into a few.

LEARN (arXiv:2405.03988), the ranking evaluation: users by their interactions in the past six months, 0 cold-start,
1-35 long-tail, more = others; items by their purchases in the same time, 0 cold-start, below 30 long-tail, above 30
others.

What we keep / what differs. The tiers and their thresholds are the paper's. It leaves an item of exactly 30 purchases
undefined: here 30 is `others`. Which events count, in which window, is the caller's choice (`jobs.assign_segments`).
The other kinds of segments are ours [NF->P]. What they are cut by (edges, the biggest categories) is the caller's, who
must not take it from the test.
"""

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import dataframely as dy
import polars as pl

from feature_repo.table_schemas import ItemSegments, UserSegments

TIER_KINDS = ("user_segment", "item_segment")
"""The kinds of segment of LEARN's paper: judged together with the overall row, named first wherever there are more."""

TIERS = ("cold_start", "long_tail", "others")
"""From the least known to the best known."""

USER_LONG_TAIL_MAX = 35
"""Interactions in six months; LEARN."""

ITEM_LONG_TAIL_MAX = 29
"""Conversions in six months; LEARN: "less than 30"."""

OTHER = "other"
"""What is not among the values that have a segment of their own."""

NEW = "new in the test window"
"""Of an item or user that was not there yet at the start of the test window."""

DAY_MICROSECONDS = 86_400_000_000


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


def cross(user_segment: pl.Expr, item_segment: pl.Expr) -> pl.Expr:
    """Both tiers together: "cold_start users x long_tail items"; null where either is."""
    return pl.format("{} users x {} items", user_segment.cast(pl.String), item_segment.cast(pl.String))


def age(first_seen: pl.Expr, as_of: dt.datetime, limits: Sequence[int]) -> pl.Expr:
    """Whole days from a time until `as_of`: limits 7, 30 give "under 7 days", "7 to 30 days", "over 30 days".

    Args:
        first_seen: a time in microseconds, with zone; null stays null.
        as_of: the start of the test window; whatever is not before it is `NEW`.
        limits: days, ascending, at least one.
    """
    days = (pl.lit(as_of) - first_seen).dt.total_microseconds() // DAY_MICROSECONDS
    starts = [limits[0], *(limit + 1 for limit in limits[1:])]
    ends = [*limits[1:], None]
    names = [f"under {limits[0]} days"]
    names += [f"{start} to {end} days" for start, end in zip(starts, ends, strict=True) if end is not None]
    names.append(f"over {limits[-1]} days" if len(limits) > 1 else f"{limits[-1]} days and more")
    return pl.when(first_seen >= as_of).then(pl.lit(NEW)).otherwise(_between(days, starts, names))


def whole_number_ranges(value: pl.Expr, edges: Sequence[int]) -> pl.Expr:
    """Numbers 0, 1, 2, ... in ranges that begin at 0 and at each edge: edges 1, 4 give "0", "1-3", "4 and more"."""
    starts = [0, *edges]
    names = [
        str(start) if end == start + 1 else f"{start}-{end - 1}" for start, end in zip(starts, edges, strict=False)
    ]
    return _between(value, edges, [*names, f"{edges[-1]} and more"])


def number_ranges(value: pl.Expr, edges: Sequence[float]) -> pl.Expr:
    """Numbers in ranges: edges 1000, 5000 give "below 1000", "1000 to below 5000", "5000 and more". NaN is in none."""
    said = number_names(edges)
    names = [f"below {said[0]}", *(f"{low} to below {high}" for low, high in pairwise(said))]
    return _between(value.cast(pl.Float64).fill_nan(None), edges, [*names, f"{said[-1]} and more"])


def number_names(numbers: Sequence[float]) -> list[str]:
    """Numbers as short as they stay apart: 1000, 0.0312."""
    short = [str(int(n)) if float(n).is_integer() and abs(n) < 1e15 else f"{n:.4g}" for n in numbers]
    return short if len(set(short)) == len(short) else [repr(float(number)) for number in numbers]


def named_values(value: pl.Expr, names: Mapping[str, str] | Mapping[float, str]) -> pl.Expr:
    """The name of each value that has one, `OTHER` for any other value; null stays null."""
    named = value.replace_strict(list(names), list(names.values()), default=OTHER, return_dtype=pl.String)
    return pl.when(value.is_not_null()).then(named)


def _between(value: pl.Expr, edges: Sequence[float], names: Sequence[str]) -> pl.Expr:
    """`names[0]` below the first edge, `names[i]` from `edges[i - 1]` on; null stays null."""
    assert len(names) == len(edges) + 1
    found = pl.lit(names[-1])
    for edge, name in zip(reversed(edges), reversed(names[:-1]), strict=True):
        found = pl.when(value < edge).then(pl.lit(name)).otherwise(found)
    return pl.when(value.is_not_null()).then(found)


_CROSSED = re.compile(r"(\w+) users x (\w+) items")
_NUMBERED = re.compile(r"(below|under|over)? ?(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_BEFORE_FROM_AFTER = {"below": 0, "under": 0, None: 1, "over": 2}


def in_order(names: Iterable[str]) -> list[str]:
    """Segments of one kind as a reader expects them: tiers from cold to warm, ranges by number, words by name.

    Whatever is new comes before the ranges of age, and `OTHER` last.
    """
    return sorted(names, key=_place)


def _place(name: str) -> tuple[int, float, float, str]:
    if name in TIERS:
        return 0, TIERS.index(name), 0, name
    crossed = _CROSSED.fullmatch(name)
    if crossed and {*crossed.groups()} <= {*TIERS}:
        return 0, TIERS.index(crossed[1]), TIERS.index(crossed[2]), name
    numbered = _NUMBERED.match(name)
    if name == NEW:
        return 1, 0, 0, name
    if numbered:
        return 2, float(numbered[2]), _BEFORE_FROM_AFTER[numbered[1]], name
    return (4 if name == OTHER else 3), 0, 0, name
