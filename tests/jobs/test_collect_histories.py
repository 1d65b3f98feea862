"""Histories against a walk through every user's clicks, and across every way of cutting the clicks into batches."""

import datetime as dt
import logging
import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from feature_repo.table_schemas import Impressions, UserHistories
from jobs.collect_histories import Config, histories_by_day, run
from jobs.lake import Lake, TableError

DAY_ZERO = dt.datetime(2024, 2, 27, tzinfo=dt.timezone.utc)

Click = tuple[str, str, float]
"""User, item, days after `DAY_ZERO`."""


def at(day: float) -> dt.datetime:
    return DAY_ZERO + dt.timedelta(days=day)


def impressions(clicks: list[Click], not_clicked: tuple[Click, ...] = (), prefix: str = "imp") -> pl.DataFrame:
    rows = [
        {
            "impression_id": f"{prefix}{number:04d}",
            "user_id": user,
            "item_id": item,
            "event_timestamp": at(day),
            "clicked": number < len(clicks),
            "converted": False,
            "is_sampled": False,
        }
        for number, (user, item, day) in enumerate([*clicks, *not_clicked])
    ]
    return pl.concat([Impressions.create_empty(), pl.DataFrame(rows)], how="diagonal_relaxed")


def collect(lake: Lake, log: pl.DataFrame, max_length: int = 50) -> list[tuple[str, int, list[str]]]:
    """(user, midnight in days after `DAY_ZERO`, items) of each row."""
    lake.write(Impressions, log)
    run(lake, Config(max_length=max_length))
    rows = lake.read(UserHistories).sort("user_id", "event_timestamp").iter_rows(named=True)
    return [(row["user_id"], (row["event_timestamp"] - DAY_ZERO).days, row["history_item_ids"]) for row in rows]


def random_clicks(seed: int, num_clicks: int = 150) -> list[Click]:
    rng = random.Random(seed)
    # Quarters of a day: midnights and ties are common.
    return [(f"u{rng.randrange(4)}", f"i{rng.randrange(6)}", rng.randrange(60) / 4) for _ in range(num_clicks)]


def by_hand(clicks: list[Click], max_length: int) -> pl.DataFrame:
    """From the definition: for each user and each day after one with clicks, look through all their clicks."""
    rows = []
    for user, midnight in sorted({(user, int(day) + 1) for user, _, day in clicks}):
        before = [(day, number, item) for number, (who, item, day) in enumerate(clicks) if who == user]
        history = sorted(click for click in before if click[0] < midnight)[-max_length:]
        rows.append(
            {
                "user_id": user,
                "event_timestamp": at(midnight),
                "created_timestamp": at(midnight),
                "history_item_ids": [item for _, _, item in history],
                "history_timestamps": [at(day) for day, _, _ in history],
            }
        )
    return UserHistories.cast(pl.DataFrame(rows))


@pytest.mark.parametrize("max_length", [1, 3, 50])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_agrees_with_a_walk_through_the_clicks(lake: Lake, seed: int, max_length: int) -> None:
    clicks = random_clicks(seed)
    collect(lake, impressions(clicks), max_length)
    assert_frame_equal(lake.read(UserHistories), by_hand(clicks, max_length))


@settings(max_examples=60, deadline=None)
@given(
    clicks=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 12).map(lambda n: n / 4)), min_size=1
    ),
    batch_size=st.integers(1, 12),
    max_length=st.integers(1, 6),
)
def test_where_a_batch_ends_changes_nothing(clicks: list[Click], batch_size: int, max_length: int) -> None:
    ordered = impressions(clicks).sort("user_id", "event_timestamp", "impression_id")
    batches = ordered.select("user_id", "item_id", "event_timestamp").iter_slices(batch_size)
    parts = list(histories_by_day(batches, max_length))
    assert_frame_equal(UserHistories.cast(pl.concat(part for part, _ in parts)), by_hand(clicks, max_length))
    assert sum(num_read for _, num_read in parts) == len(clicks)


def test_a_history_is_oldest_first_and_dated(lake: Lake) -> None:
    collect(lake, impressions([("u", "late", 1.5), ("u", "early", 0.25), ("u", "middle", 0.5)]))
    row = lake.read(UserHistories).filter(pl.col("event_timestamp") == at(2)).row(0, named=True)
    assert row["history_item_ids"] == ["early", "middle", "late"]
    assert row["history_timestamps"] == [at(0.25), at(0.5), at(1.5)]
    assert row["created_timestamp"] == row["event_timestamp"]


def test_a_click_at_midnight_belongs_to_the_day_that_begins(lake: Lake) -> None:
    assert collect(lake, impressions([("u", "a", 0.5), ("u", "b", 1.0)])) == [("u", 1, ["a"]), ("u", 2, ["a", "b"])]


def test_a_click_in_the_last_microsecond_of_a_day_is_known_at_midnight(lake: Lake) -> None:
    assert collect(lake, impressions([("u", "a", 1.0 - 1e-6 / 86_400)])) == [("u", 1, ["a"])]


def test_days_without_clicks_give_no_row(lake: Lake) -> None:
    rows = collect(
        lake, impressions([("u", "a", 0.5), ("u", "b", 5.5)], not_clicked=(("u", "c", 2.5), ("v", "c", 0.5)))
    )
    assert rows == [("u", 1, ["a"]), ("u", 6, ["a", "b"])]


def test_only_the_newest_clicks_are_kept(lake: Lake) -> None:
    clicks = [("u", f"i{n}", n / 10) for n in range(30)]
    assert collect(lake, impressions(clicks), max_length=4)[-1] == ("u", 3, ["i26", "i27", "i28", "i29"])


def test_an_item_clicked_twice_is_there_twice(lake: Lake) -> None:
    assert collect(lake, impressions([("u", "a", 0.1), ("u", "b", 0.2), ("u", "a", 0.3)])) == [
        ("u", 1, ["a", "b", "a"])
    ]


def test_ties_are_broken_by_impression_id_in_whatever_order_the_log_comes(lake: Lake) -> None:
    log = impressions([("u", item, 0.5) for item in "dbca"])
    assert collect(lake, log) == collect(lake, log.reverse()) == [("u", 1, ["d", "b", "c", "a"])]


def test_clicks_from_a_day_on_change_no_row_up_to_its_midnight(lake: Lake) -> None:
    day = 8
    past = [click for click in random_clicks(7) if click[2] < day]
    tables = []
    for seed in (8, 9):
        collect(lake, impressions([*past, *(click for click in random_clicks(seed) if click[2] >= day)]), max_length=5)
        tables.append(lake.read(UserHistories).filter(pl.col("event_timestamp") <= at(day)))
    assert tables[0].height > 10
    assert_frame_equal(*tables)


def test_what_was_clicked_since_midnight_is_left_for_the_run_of_tomorrow(lake: Lake, now: dt.datetime) -> None:
    today = (now - DAY_ZERO).days
    rows = collect(lake, impressions([("u", "a", today - 0.5), ("u", "b", today + 0.0), ("v", "c", today + 0.0)]))
    assert rows == [("u", today, ["a"])]


def test_a_log_without_clicks_gives_an_empty_table_and_a_warning(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert collect(lake, impressions([], not_clicked=(("u", "a", 0.5),))) == []
    assert "no click before today's midnight" in caplog.text
    assert lake.read(UserHistories).schema == UserHistories.create_empty().schema


def test_an_empty_log_gives_an_empty_table(lake: Lake) -> None:
    assert collect(lake, Impressions.create_empty()) == []


def test_little_memory_changes_nothing_and_leaves_no_file(lake: Lake) -> None:
    num_clicks = 200_000
    one = impressions([("u", "i", 0.0)])
    spread = pl.int_range(num_clicks) * 7919 % num_clicks
    log = pl.concat([one] * 1000).select(pl.all().repeat_by(num_clicks // 1000).explode())
    lake.write(
        Impressions,
        log.with_columns(
            pl.int_range(num_clicks).cast(pl.String).alias("impression_id"),
            (spread // 100).cast(pl.String).alias("user_id"),
            (pl.lit(DAY_ZERO) + pl.duration(seconds=spread)).alias("event_timestamp"),
        ),
    )
    run(lake, Config(max_length=2, memory_limit="2GB"))
    roomy = lake.manifest(UserHistories)
    run(lake, Config(max_length=2, memory_limit="100MB"))
    assert lake.manifest(UserHistories).digest == roomy.digest
    assert list((lake.root / "scratch").iterdir()) == []


def test_a_missing_log_says_which_step_to_run(lake: Lake) -> None:
    with pytest.raises(TableError, match="impressions: there is no such table"):
        run(lake, Config())
    assert not lake.exists(UserHistories)


@pytest.mark.parametrize("bad", [{"max_length": 0}, {"memory_limit": "-1GB"}, {"length": 3}])
def test_settings_that_mean_nothing_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Config.model_validate(bad)
