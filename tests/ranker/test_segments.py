"""Tiers at and beside their thresholds."""

import dataframely as dy
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.table_schemas import ItemSegments, UserSegments
from ranker.segments import TIERS, item_segments, tier, user_segments


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
