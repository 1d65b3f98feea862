"""Tiers at and beside their thresholds, and the other cuts at and beside their edges."""

import datetime as dt

import dataframely as dy
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.table_schemas import ItemSegments, UserSegments
from ranker.segments import (
    NEW,
    OTHER,
    TIERS,
    age,
    cross,
    in_order,
    item_segments,
    named_values,
    number_names,
    number_ranges,
    tier,
    user_segments,
    whole_number_ranges,
)

AS_OF = dt.datetime(2024, 9, 3, 6, 30, tzinfo=dt.timezone.utc)
EDGES = st.lists(st.integers(1, 500), min_size=1, max_size=6, unique=True).map(sorted)


def counts(key: str, numbers: list[int]) -> pl.DataFrame:
    return pl.DataFrame({key: [f"e{n}" for n in range(len(numbers))], "num_interactions": numbers})


def test_users_are_long_tail_from_1_to_35_interactions() -> None:
    segments = user_segments(counts("user_id", [0, 1, 35, 36, 1000]))
    assert segments.get_column("user_segment").to_list() == ["cold_start", "long_tail", "long_tail", "others", "others"]


def test_items_are_long_tail_from_1_to_29_and_an_item_of_30_is_in_others() -> None:
    segments = item_segments(counts("item_id", [0, 1, 29, 30, 31]))
    assert segments.get_column("item_segment").to_list() == ["cold_start", "long_tail", "long_tail", "others", "others"]


@given(st.lists(st.integers(0, 10**9)), st.integers(1, 100))
def test_every_count_has_one_tier_and_more_is_never_colder(numbers: list[int], long_tail_max: int) -> None:
    frame = counts("user_id", sorted(numbers)).select(tier(pl.col("num_interactions"), long_tail_max))
    ranks = frame.to_series().to_physical().to_list()
    assert ranks == sorted(ranks)
    expected = [0 if n == 0 else 1 if n <= long_tail_max else 2 for n in sorted(numbers)]
    assert ranks == expected


def test_counts_are_kept_and_rows_stay_in_order() -> None:
    segments = user_segments(counts("user_id", [7, 0, 40]))
    assert segments.get_column("num_interactions").to_list() == [7, 0, 40]
    assert segments.get_column("user_id").to_list() == ["e0", "e1", "e2"]


def test_nobody_gives_an_empty_table() -> None:
    assert user_segments(counts("user_id", []).cast({"user_id": pl.String, "num_interactions": pl.UInt32})).is_empty()


def test_the_tiers_are_those_of_the_tables() -> None:
    for schema, column in ((UserSegments, "user_segment"), (ItemSegments, "item_segment")):
        assert schema.create_empty().schema[column] == pl.Enum(TIERS)


@pytest.mark.parametrize("long_tail_max", [0, -3])
def test_a_threshold_that_leaves_no_long_tail_is_refused(long_tail_max: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        item_segments(counts("item_id", [1]), long_tail_max)


@pytest.mark.parametrize(
    ("frame", "rule"),
    [
        (counts("user_id", [-1]), "min"),
        (counts("user_id", [1]).with_columns(num_interactions=pl.lit(None, pl.Int64)), "nullability"),
        (counts("user_id", [1, 1]).with_columns(user_id=pl.lit("twice")), "primary_key"),
    ],
    ids=["negative", "null", "user twice"],
)
def test_counts_that_mean_nothing_are_refused(frame: pl.DataFrame, rule: str) -> None:
    with pytest.raises(dy.exc.ValidationError, match=rule):
        user_segments(frame)


def cut(values: list[object], expression: pl.Expr) -> list[str | None]:
    return pl.DataFrame({"x": values}).select(expression).to_series().to_list()


def test_whole_days_until_the_test_are_cut_at_the_limits() -> None:
    day, moment = dt.timedelta(days=1), dt.timedelta(microseconds=1)
    ages = [moment, 7 * day - moment, 7 * day, 31 * day - moment, 31 * day, 181 * day - moment, 181 * day]
    assert cut([AS_OF - one for one in ages] + [AS_OF, AS_OF + day, None], age(pl.col("x"), AS_OF, [7, 30, 180])) == [
        "under 7 days",
        "under 7 days",
        "7 to 30 days",
        "7 to 30 days",
        "31 to 180 days",
        "31 to 180 days",
        "over 180 days",
        NEW,
        NEW,
        None,
    ]


@given(EDGES, st.lists(st.integers(0, 600), min_size=1))
def test_a_range_of_whole_numbers_says_which_numbers_it_holds(edges: list[int], numbers: list[int]) -> None:
    for number, name in zip(numbers, cut(numbers, whole_number_ranges(pl.col("x"), edges)), strict=True):
        assert name is not None
        low, _, high = name.removesuffix(" and more").partition("-")
        assert int(low) <= number
        assert number <= int(high or low) or name.endswith("and more")
        assert number < edges[-1] or name.endswith("and more")


@given(EDGES, st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_a_range_of_numbers_begins_at_its_edge_and_ends_below_the_next(edges: list[int], numbers: list[float]) -> None:
    names = cut(numbers, number_ranges(pl.col("x"), edges))
    for number, name in zip(numbers, names, strict=True):
        place = sum(number >= edge for edge in edges)
        bounds = [str(edge) for edge in edges[max(place - 1, 0) : place + 1]]
        assert [word for word in str(name).split() if word[0].isdigit()] == bounds


def test_missing_values_are_in_no_range() -> None:
    assert cut([None, float("nan"), 1.0], number_ranges(pl.col("x"), [1])) == [None, None, "1 and more"]
    assert cut([None, 0], whole_number_ranges(pl.col("x"), [1])) == [None, "0"]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, unique=True))
def test_names_of_numbers_stay_apart(numbers: list[float]) -> None:
    numbers = [number for number in numbers if number != 0] + [0.0]  # 0 and -0 are one number
    assert len(set(number_names(numbers))) == len(numbers)


def test_a_value_without_a_name_is_other() -> None:
    assert cut(["a", "b", None], named_values(pl.col("x"), {"a": "a"})) == ["a", OTHER, None]
    assert cut([1.5, 2.0], named_values(pl.col("x"), {1.5: "1.5"})) == ["1.5", OTHER]


def test_a_cross_needs_both_tiers() -> None:
    frame = pl.DataFrame({"u": ["cold_start", None], "i": ["others", "others"]})
    assert frame.select(cross(pl.col("u"), pl.col("i"))).to_series().to_list() == [
        "cold_start users x others items",
        None,
    ]


@pytest.mark.parametrize(
    "ordered",
    [
        [*TIERS],
        [f"{user} users x {item} items" for user in TIERS for item in TIERS],
        [NEW, "under 7 days", "7 to 30 days", "31 to 180 days", "over 180 days"],
        ["0", "1-3", "4-9", "10 and more"],
        ["below -5", "-5 to below 0.5", "0.5 to below 1000", "1000 and more"],
        ["Garden", "Kitchen", "zebra", OTHER],
        ["no text", "text"],
        ["cold_start", "1", "word", OTHER],
    ],
)
def test_segments_are_listed_as_a_reader_expects(ordered: list[str]) -> None:
    assert in_order(reversed(ordered)) == ordered
    assert in_order(ordered[1:] + ordered[:1]) == ordered
