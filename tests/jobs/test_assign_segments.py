"""Segments against a count by hand; the test window and what becomes known in it must change nothing."""

import datetime as dt
import logging
import random
from typing import NamedTuple

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from feature_repo.table_schemas import Impressions, ItemSegments, SplitWindows, TrainingExamples, UserSegments
from jobs.assign_segments import Config, run
from jobs.lake import Lake, TableError

TEST_START = dt.datetime(2024, 9, 3, 6, 30, tzinfo=dt.timezone.utc)  # not a midnight
SMALLEST = 1e-6 / 86_400
"""A microsecond, in days."""


class Event(NamedTuple):
    """One impression; times in days after `TEST_START`."""

    user: str
    item: str
    day: float
    clicked: bool = False
    converted_on: float | None = None
    is_sampled: bool = False


def at(day: float) -> dt.datetime:
    return TEST_START + dt.timedelta(days=day)


def fill(lake: Lake, events: list[Event]) -> None:
    """Write the log, its test window of ten days, and an example for each impression from day -30 on."""
    rows = pl.DataFrame(
        [
            {
                "impression_id": f"imp{number}",
                "user_id": event.user,
                "item_id": event.item,
                "event_timestamp": at(event.day),
                "clicked": event.clicked,
                "converted": event.converted_on is not None,
                "conversion_timestamp": None if event.converted_on is None else at(event.converted_on),
                "is_sampled": event.is_sampled,
            }
            for number, event in enumerate(events)
        ]
    )
    lake.write(Impressions, pl.concat([Impressions.create_empty(), rows], how="diagonal_relaxed"))
    windows = {"train": (-30, -2), "validation": (-2, 0), "test": (0, 10)}
    lake.write(
        SplitWindows,
        pl.DataFrame(
            {
                "split": list(windows),
                "start": [at(start) for start, _ in windows.values()],
                "end": [at(end) for _, end in windows.values()],
                "labels_as_of": at(20),
                "num_impressions": 0,
            },
        ),
    )
    in_split = [
        pl.when(pl.col("event_timestamp").is_between(at(start), at(end), closed="left")).then(pl.lit(split))
        for split, (start, end) in windows.items()
    ]
    lake.write(TrainingExamples, rows.with_columns(split=pl.coalesce(in_split)).drop_nulls("split"))


def tiers(lake: Lake) -> tuple[dict[str, tuple[str, int]], dict[str, tuple[str, int]]]:
    users = lake.read(UserSegments).select("user_id", "user_segment", "num_interactions")
    items = lake.read(ItemSegments).select("item_id", "item_segment", "num_interactions")
    return (
        {user: (segment, number) for user, segment, number in users.iter_rows()},
        {item: (segment, number) for item, segment, number in items.iter_rows()},
    )


def random_log(seed: int) -> list[Event]:
    rng = random.Random(seed)
    events = []
    for _ in range(800):
        day = rng.uniform(-200, 10)
        clicked, is_sampled = rng.random() < 0.5, rng.random() < 0.2
        events.append(
            Event(
                f"u{int(rng.random() ** 2 * 15)}",
                f"i{int(rng.random() ** 2 * 15)}",
                day,
                clicked and not is_sampled,
                day + rng.expovariate(0.2) if clicked and not is_sampled and rng.random() < 0.5 else None,
                is_sampled,
            )
        )
    return events


@pytest.mark.parametrize("seed", range(3))
def test_tiers_agree_with_a_count_by_hand(lake: Lake, seed: int) -> None:
    events = random_log(seed)
    fill(lake, events)
    run(lake, Config(user_long_tail_max=9, item_long_tail_max=4))

    def named(number: int, long_tail_max: int) -> tuple[str, int]:
        return ("cold_start" if number == 0 else "long_tail" if number <= long_tail_max else "others"), number

    test_users = {event.user for event in events if 0 <= event.day < 10}
    test_items = {event.item for event in events if 0 <= event.day < 10}
    users, items = tiers(lake)
    assert users == {
        user: named(sum(e.user == user and e.clicked and -180 <= e.day < 0 for e in events), 9) for user in test_users
    }
    assert items == {
        item: named(
            sum(e.item == item and e.converted_on is not None and -180 <= e.converted_on < 0 for e in events), 4
        )
        for item in test_items
    }
    assert {segment for segment, _ in users.values()} == {"long_tail", "others"}


def test_users_and_items_without_history_are_cold_and_those_outside_the_test_have_no_row(lake: Lake) -> None:
    fill(
        lake,
        [Event("old", "old", -5, clicked=True), Event("new", "fresh", 3), Event("newer", "drawn", 4, is_sampled=True)],
    )
    run(lake, Config())
    assert tiers(lake) == (
        {"new": ("cold_start", 0), "newer": ("cold_start", 0)},
        {"fresh": ("cold_start", 0), "drawn": ("cold_start", 0)},
    )


def test_the_look_back_starts_exactly_so_many_days_before_and_ends_before_the_test(lake: Lake) -> None:
    shown = [Event(user, f"of {user}", 1) for user in ("start", "earlier", "last", "at")]
    clicks = [("start", -180.0), ("earlier", -180.0 - SMALLEST), ("last", -SMALLEST), ("at", 0.0)]
    fill(lake, [*shown, *(Event(user, f"of {user}", day, clicked=True) for user, day in clicks)])
    run(lake, Config())
    users, items = tiers(lake)
    assert {user: number for user, (_, number) in users.items()} == {"start": 1, "earlier": 0, "last": 1, "at": 0}
    assert {item: number for item, (_, number) in items.items()} == {
        "of start": 1,
        "of earlier": 0,
        "of last": 1,
        "of at": 0,
    }


def test_nothing_of_the_test_window_counts(lake: Lake) -> None:
    past = [event for event in random_log(4) if event.day < 0]
    shown = [Event(f"u{n}", f"i{n}", 0.5) for n in range(15)]
    fill(lake, past + shown)
    run(lake, Config())
    before = [lake.read(schema) for schema in (UserSegments, ItemSegments)]
    told_later = [
        event if event.converted_on is None or event.converted_on < 0 else event._replace(converted_on=9.0)
        for event in past
    ]
    liked = [event._replace(clicked=True, converted_on=0.6) for event in shown]
    fill(lake, [*told_later, *shown, *liked * 50])
    run(lake, Config())
    for schema, table in zip((UserSegments, ItemSegments), before, strict=True):
        assert_frame_equal(lake.read(schema), table)


def test_a_conversion_counts_when_it_became_known_not_when_the_item_was_shown(lake: Lake) -> None:
    fill(
        lake,
        [
            Event("u", "known in time", -190, clicked=True, converted_on=-179),
            Event("u", "known too late", -1, clicked=True, converted_on=0.0),
            Event("v", "known in time", 1),
            Event("v", "known too late", 1),
        ],
    )
    run(lake, Config())
    assert tiers(lake)[1] == {"known in time": ("long_tail", 1), "known too late": ("cold_start", 0)}
    assert lake.manifest(ItemSegments).metadata["item_rule"].startswith("conversions of the item that became known")


def test_items_are_judged_by_clicks_where_no_conversion_is_known_before_the_test(lake: Lake) -> None:
    fill(lake, [Event("u", "i", -3, clicked=True), Event("u", "i", 1, clicked=True, converted_on=2.0)])
    run(lake, Config())
    assert tiers(lake)[1] == {"i": ("long_tail", 1)}
    metadata = lake.manifest(ItemSegments).metadata
    assert metadata["item_rule"].startswith("clicks of the item in the 180 days before 2024-09-03 06:30 UTC")
    assert "no conversion" in metadata["item_rule"]


def test_sampled_negatives_are_no_interactions(lake: Lake) -> None:
    fill(lake, [*[Event("u", "i", -3, is_sampled=True)] * 40, Event("u", "i", 1)])
    run(lake, Config())
    assert tiers(lake) == ({"u": ("cold_start", 0)}, {"i": ("cold_start", 0)})


def test_thresholds_and_look_back_are_settings(lake: Lake) -> None:
    fill(lake, [Event("u", "i", -3, clicked=True), Event("u", "i", -8, clicked=True), Event("u", "i", 1)])
    run(lake, Config(user_long_tail_max=1, item_long_tail_max=2))
    assert tiers(lake) == ({"u": ("others", 2)}, {"i": ("long_tail", 2)})
    run(lake, Config(lookback_days=5))
    assert tiers(lake) == ({"u": ("long_tail", 1)}, {"i": ("long_tail", 1)})
    with pytest.raises(ValueError, match="user_long_tail_max"):
        Config(user_long_tail_max=0)


def test_the_manifest_says_which_rule_and_how_test_impressions_spread(lake: Lake) -> None:
    fill(lake, [Event("u", "i", -3, clicked=True), *[Event("u", "i", 1)] * 3, Event("new", "i", 2, is_sampled=True)])
    run(lake, Config())
    metadata = lake.manifest(UserSegments).metadata
    assert metadata == {
        "user_rule": "clicks of the user in the 180 days before 2024-09-03 06:30 UTC",
        "share_of_impressions": {"cold_start": 0.25, "long_tail": 0.75, "others": 0.0},
    }


def test_a_look_back_without_clicks_makes_everybody_cold_and_says_so(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    fill(lake, [Event("u", "i", -250, clicked=True, converted_on=-240), Event("u", "i", 1)])
    run(lake, Config())
    assert tiers(lake) == ({"u": ("cold_start", 0)}, {"i": ("cold_start", 0)})
    assert "user_segments: nothing to count (clicks of the user in the 180 days" in caplog.text
    assert "item_segments: nothing to count (conversions of the item" in caplog.text


def test_a_test_split_without_examples_is_refused(lake: Lake) -> None:
    fill(lake, [Event("u", "i", -3, clicked=True)])
    with pytest.raises(TableError, match="no example in the test split, which starts at 2024-09-03 06:30"):
        run(lake, Config())
    assert not lake.exists(UserSegments)


def test_windows_without_a_test_are_refused(lake: Lake) -> None:
    fill(lake, [Event("u", "i", 1)])
    lake.write(SplitWindows, lake.read(SplitWindows).filter(pl.col("split") != "test"))
    with pytest.raises(TableError, match="no test window \\(found: train, validation\\)"):
        run(lake, Config())


@pytest.mark.parametrize("missing", [Impressions, SplitWindows, TrainingExamples])
def test_a_missing_table_is_named(lake: Lake, missing: type) -> None:
    fill(lake, [Event("u", "i", 1)])
    (lake.table_path(missing) / "manifest.json").unlink()
    with pytest.raises(TableError, match="there is no such table"):
        run(lake, Config())
