"""Trailing counts against a count by hand of every event, for every entity, at every midnight."""

import datetime as dt
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from feature_repo.table_schemas import ACTIVITY_WINDOWS_DAYS, Impressions, ItemActivity, UserActivity
from jobs.aggregate_activity import Config, run, smoothed_rate, trailing_counts, whole_entities
from jobs.lake import Lake, TableError

DAY_ZERO = dt.datetime(2024, 2, 20, tzinfo=dt.timezone.utc)
PRIOR_STRENGTH = 5.0
MEASURES = ("impressions", "clicks", "conversions")

EDGE_DAYS = (0, 1, 2, 6, 7, 8, 29, 30, 31, 60, 179, 180, 181, 182, 210, 400)
"""Days apart by window lengths, one more and one less."""


class Event(NamedTuple):
    """One impression; times in days after `DAY_ZERO`."""

    user: str
    item: str
    day: float
    clicked: bool = False
    converted_on: float | None = None
    is_sampled: bool = False


def at(day: float) -> dt.datetime:
    return DAY_ZERO + dt.timedelta(days=day)


def impressions(events: list[Event]) -> pl.DataFrame:
    rows = [
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
    return pl.concat([Impressions.create_empty(), pl.DataFrame(rows)], how="diagonal_relaxed")


def aggregate(lake: Lake, events: list[Event]) -> Lake:
    lake.write(Impressions, impressions(events))
    run(lake, Config(prior_strength=PRIOR_STRENGTH))
    return lake


def user_row(lake: Lake, user: str, day: float) -> dict[str, object]:
    rows = lake.read(UserActivity).filter(pl.col("user_id") == user, pl.col("event_timestamp") == at(day))
    return rows.row(0, named=True)


def user_days(lake: Lake, user: str) -> list[int]:
    """Midnights of the user's rows, in days after `DAY_ZERO`."""
    rows = lake.read(UserActivity).filter(pl.col("user_id") == user).sort("event_timestamp")
    return [(time - DAY_ZERO).days for time in rows.get_column("event_timestamp")]


def random_log(seed: int, num_events: int = 120) -> list[Event]:
    rng = np.random.default_rng(seed)
    events = []
    for _ in range(num_events):
        # A third of the times are midnights, and a third of the delays are whole days: the boundaries of windows.
        day = float(rng.choice(EDGE_DAYS)) + (0.0 if rng.random() < 0.33 else rng.random())
        clicked, is_sampled = rng.random() < 0.5, rng.random() < 0.2
        delay = float(rng.integers(0, 40)) if rng.random() < 0.33 else rng.exponential(5.0)
        converts = clicked and not is_sampled and rng.random() < 0.5
        events.append(
            Event(
                user=f"u{rng.integers(5)}",
                item=f"i{rng.integers(3)}",
                day=day,
                clicked=bool(clicked and not is_sampled),
                converted_on=day + delay if converts else None,
                is_sampled=bool(is_sampled),
            )
        )
    return events


def by_hand(events: list[Event], entity: str) -> dict[tuple[str, int], dict[str, float]]:
    """Every row the table should have, from the definition: all events looked at anew for each window of each row."""
    seen = [event for event in events if not event.is_sampled]
    times = [event.day for event in seen] + [event.converted_on for event in seen if event.converted_on is not None]

    def counts(start: float, end: int, of: str | None) -> tuple[int, int, int]:
        mine = [event for event in seen if of is None or getattr(event, entity) == of]
        shown = [event for event in mine if start <= event.day < end]
        known = [event for event in mine if event.converted_on is not None and start <= event.converted_on < end]
        return len(shown), sum(event.clicked for event in shown), len(known)

    rows = {}
    for name in {getattr(event, entity) for event in seen}:
        before: list[tuple[int, int, int]] | None = [(0, 0, 0)] * len(ACTIVITY_WINDOWS_DAYS)
        for midnight in range(int(max(times)) + 2):
            windows = [counts(midnight - days, midnight, name) for days in ACTIVITY_WINDOWS_DAYS]
            if windows != before:
                shown, clicked, converted = counts(-1e9, midnight, None)
                p_click, p_convert = clicked / shown, converted / clicked if clicked else 0.0
                row: dict[str, float] = {}
                for days, window in zip(ACTIVITY_WINDOWS_DAYS, windows, strict=True):
                    row |= {f"{entity}_num_{what}_{days}d": n for what, n in zip(MEASURES, window, strict=True)}
                    ctr = (window[1] + PRIOR_STRENGTH * p_click) / (window[0] + PRIOR_STRENGTH)
                    cvr = (window[2] + PRIOR_STRENGTH * p_convert) / (window[1] + PRIOR_STRENGTH)
                    row |= {f"{entity}_ctr_{days}d": ctr, f"{entity}_cvr_{days}d": min(cvr, 1.0)}
                rows[name, midnight] = row
            before = windows
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_every_row_agrees_with_a_count_by_hand(lake: Lake, seed: int) -> None:
    events = random_log(seed)
    aggregate(lake, events)
    for schema, entity in ((UserActivity, "user"), (ItemActivity, "item")):
        ours = {
            (row[f"{entity}_id"], (row["event_timestamp"] - DAY_ZERO).days): row
            for row in lake.read(schema).iter_rows(named=True)
        }
        expected = by_hand(events, entity)
        assert ours.keys() == expected.keys()
        for key, row in expected.items():
            assert {name: ours[key][name] for name in row} == pytest.approx(row, abs=1e-12), key


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(EDGE_DAYS),
            st.integers(0, 2),
            st.integers(0, 2),
            st.integers(0, 2),
        ).filter(lambda row: sum(row[2:]) > 0),
        min_size=1,
        unique_by=lambda row: row[:2],
    ).map(sorted)
)
def test_the_newest_row_at_any_midnight_has_the_exact_counts(daily: list[tuple[str, int, int, int, int]]) -> None:
    last = max(row[1] for row in daily) + 1
    frame = pl.DataFrame(daily, schema=["entity", "day", *MEASURES], orient="row")
    rows = trailing_counts(frame, last)
    for entity in frame.get_column("entity").unique():
        for midnight in range(last + 1):
            newest = rows.filter(pl.col("entity") == entity, pl.col("day") <= midnight).tail(1)
            for column, measure in enumerate(MEASURES, start=2):
                for window in ACTIVITY_WINDOWS_DAYS:
                    count = sum(
                        row[column] for row in daily if row[0] == entity and midnight - window <= row[1] < midnight
                    )
                    assert newest.get_column(f"num_{measure}_{window}d").sum() == count


@pytest.mark.parametrize("seed", range(3))
def test_changing_events_from_a_day_on_changes_no_row_up_to_its_midnight(lake: Lake, seed: int) -> None:
    day = (31, 180, 182)[seed]
    first, other = random_log(seed), random_log(seed + 100)
    kept = [
        event
        if event.converted_on is None or event.converted_on < day
        else event._replace(converted_on=event.converted_on + 3.5)
        for event in first
        if event.day < day
    ]
    changed = kept + [event for event in other if event.day >= day]
    known = pl.col("event_timestamp") <= at(day)
    before = [aggregate(lake, first).read(schema).filter(known) for schema in (UserActivity, ItemActivity)]
    after = [aggregate(lake, changed).read(schema).filter(known) for schema in (UserActivity, ItemActivity)]
    assert before[0].height > 10
    for one, two in zip(before, after, strict=True):
        assert_frame_equal(one, two, check_exact=True)


def test_an_event_at_midnight_belongs_to_the_day_that_begins(lake: Lake) -> None:
    aggregate(lake, [Event("u", "i", 3.0), Event("v", "i", 5.5)])
    assert user_days(lake, "u")[0] == 4
    assert user_row(lake, "u", 4)["user_num_impressions_1d"] == 1


def test_an_event_stays_in_a_window_for_as_many_midnights_as_it_has_days(lake: Lake) -> None:
    last_moment = 1.0 - 1e-6 / 86_400
    aggregate(lake, [Event("u", "i", last_moment), Event("u", "i", 400.0)])
    assert user_days(lake, "u") == [1, 2, 8, 31, 181, 401]
    counts = {
        window: [user_row(lake, "u", day)[f"user_num_impressions_{window}d"] for day in (1, 2, 8, 31, 181, 401)]
        for window in ACTIVITY_WINDOWS_DAYS
    }
    assert counts == {1: [1, 0, 0, 0, 0, 1], 7: [1, 1, 0, 0, 0, 1], 30: [1, 1, 1, 0, 0, 1], 180: [1, 1, 1, 1, 0, 1]}


def test_half_a_year_without_events_ends_in_a_row_of_zeros(lake: Lake) -> None:
    aggregate(lake, [Event("gone", "i", 0.5, clicked=True, converted_on=0.6), Event("v", "i", 300.0)])
    row = user_row(lake, "gone", 181)
    assert all(row[f"user_num_{what}_{days}d"] == 0 for what in MEASURES for days in ACTIVITY_WINDOWS_DAYS)
    assert user_days(lake, "gone")[-1] == 181


def test_a_conversion_counts_from_the_day_it_is_known(lake: Lake) -> None:
    aggregate(lake, [Event("u", "i", 0.5, clicked=True, converted_on=7.2), Event("v", "i", 40.0)])
    assert user_days(lake, "u") == [1, 2, 8, 9, 15, 31, 38]
    assert user_row(lake, "u", 2)["user_num_conversions_180d"] == 0
    at_eight = user_row(lake, "u", 8)  # the click has left the week, the conversion enters it
    assert (at_eight["user_num_clicks_7d"], at_eight["user_num_conversions_7d"]) == (0, 1)
    assert user_row(lake, "u", 38)["user_num_conversions_30d"] == 0


def test_a_conversion_at_midnight_is_unknown_until_the_next(lake: Lake) -> None:
    aggregate(lake, [Event("u", "i", 0.5, clicked=True, converted_on=2.0)])
    assert user_days(lake, "u") == [1, 2, 3]
    assert user_row(lake, "u", 2)["user_num_conversions_180d"] == 0
    assert user_row(lake, "u", 3)["user_num_conversions_1d"] == 1


def test_sampled_negatives_are_not_impressions(lake: Lake) -> None:
    seen = [Event("u", "i", 0.5, clicked=True), Event("u", "j", 3.5), Event("v", "i", 4.5)]
    sampled = [Event("u", "i", 1.5, is_sampled=True), Event("w", "k", 2.5, is_sampled=True)]
    plain = [aggregate(lake, seen).read(schema) for schema in (UserActivity, ItemActivity)]
    mixed = [aggregate(lake, seen + sampled).read(schema) for schema in (UserActivity, ItemActivity)]
    for one, two in zip(plain, mixed, strict=True):
        assert_frame_equal(one, two, check_exact=True)


def test_a_log_of_positives_with_sampled_negatives_has_a_ctr_of_one(lake: Lake) -> None:
    bought = [Event("u", "i", day, clicked=True) for day in (0.1, 3.2, 50.3)]
    activity = aggregate(lake, [*bought, Event("u", "j", 0.1, is_sampled=True)]).read(UserActivity)
    assert activity.select(pl.col("^user_ctr_.*$").min()).row(0) == (1.0, 1.0, 1.0, 1.0)
    assert activity.select(pl.col("^user_cvr_.*$").max()).row(0) == (0.0, 0.0, 0.0, 0.0)


def test_as_one_day_enters_a_window_and_an_equal_one_leaves_it_no_row_is_written() -> None:
    days = [0, 150, 173, 179, 180]  # at midnight 181: 0 leaves 180d, 150 leaves 30d, 173 leaves 7d, 179 leaves 1d
    daily = pl.DataFrame({"entity": "a", "day": days, "impressions": 2, "clicks": 1, "conversions": 0})
    midnights = trailing_counts(daily, 400).get_column("day").to_list()
    assert 180 in midnights
    assert 181 not in midnights
    assert 182 in midnights


def test_no_row_is_later_than_the_midnight_after_the_last_event(lake: Lake) -> None:
    aggregate(lake, [Event("u", "i", 0.5), Event("v", "j", 9.5, clicked=True, converted_on=12.5)])
    for schema in (UserActivity, ItemActivity):
        assert lake.read(schema).get_column("event_timestamp").max() == at(13)


def test_what_happened_since_midnight_is_left_for_the_run_of_tomorrow(lake: Lake, now: dt.datetime) -> None:
    last_midnight = (now - DAY_ZERO).days
    yesterday = Event("u", "i", last_midnight - 0.5, clicked=True, converted_on=last_midnight + 0.25)
    aggregate(lake, [yesterday, Event("u", "i", last_midnight + 0.0), Event("u", "i", last_midnight - 4.0)])
    assert user_days(lake, "u") == [last_midnight - 3, last_midnight - 2, last_midnight]
    newest = user_row(lake, "u", last_midnight)
    assert (newest["user_num_impressions_7d"], newest["user_num_conversions_7d"]) == (2, 0)


def test_rates_lean_on_the_log_before_that_midnight(lake: Lake) -> None:
    clicked = [Event("u", "i", 0.5, clicked=True), *[Event("v", "j", 0.5) for _ in range(3)]]
    aggregate(lake, [*clicked, *[Event("v", "j", 1.5, clicked=True) for _ in range(50)]])
    assert user_row(lake, "u", 1)["user_ctr_7d"] == pytest.approx((1 + 5 * 0.25) / (1 + 5))
    assert user_row(lake, "v", 1)["user_ctr_7d"] == pytest.approx((0 + 5 * 0.25) / (3 + 5))
    assert user_row(lake, "v", 2)["user_ctr_7d"] == pytest.approx((50 + 5 * 51 / 54) / (53 + 5))


def test_a_rate_of_an_empty_window_is_the_prior_and_none_exceeds_one() -> None:
    counts = pl.DataFrame({"events": [0, 3, 3], "trials": [0, 1, 9], "prior": [0.3, 0.5, 0.0]})
    rates = counts.select(smoothed_rate(pl.col("events"), pl.col("trials"), pl.col("prior"), 1.0)).to_series()
    assert rates.to_list() == pytest.approx([0.3, 1.0, 0.3])


def test_rows_are_stamped_as_if_written_at_their_midnight(lake: Lake) -> None:
    for schema in (UserActivity, ItemActivity):
        table = aggregate(lake, random_log(9)).read(schema)
        assert (table.get_column("created_timestamp") == table.get_column("event_timestamp")).all()


def test_the_same_log_in_another_order_gives_the_same_table(lake: Lake) -> None:
    events = random_log(5)
    digests = [
        [aggregate(lake, log).manifest(schema).digest for schema in (UserActivity, ItemActivity)]
        for log in (events, events[::-1])
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("num_rows", [1, 2, 7, 1000])
def test_no_entity_lies_in_two_batches(num_rows: int) -> None:
    frame = pl.DataFrame({"entity": list("aaaaabcccccccdd"), "day": range(15)})
    batches = list(whole_entities(frame.iter_slices(num_rows)))
    assert_frame_equal(pl.concat(batches), frame)
    assert sum(batch.get_column("entity").n_unique() for batch in batches) == 4


def test_little_memory_changes_nothing_and_leaves_no_file(lake: Lake) -> None:
    rng = np.random.default_rng(0)
    num_rows = 300_000
    log = impressions([Event("u", "i", 0.0)]).select(
        pl.col("*").exclude("impression_id", "user_id", "item_id", "event_timestamp")
    )
    lake.write(
        Impressions,
        log[np.zeros(num_rows, np.uint32)].with_columns(
            pl.int_range(num_rows).cast(pl.String).alias("impression_id"),
            pl.Series("user_id", rng.permutation(num_rows)).cast(pl.String),
            pl.Series("item_id", rng.integers(0, 50, num_rows)).cast(pl.String),
            pl.lit(DAY_ZERO).alias("event_timestamp"),
        ),
    )
    run(lake, Config(memory_limit="2GB"))
    roomy = lake.manifest(UserActivity).digest
    run(lake, Config(memory_limit="100MB"))
    assert lake.manifest(UserActivity).digest == roomy
    assert list((lake.root / "scratch").iterdir()) == []


def test_a_missing_log_says_which_step_to_run(lake: Lake) -> None:
    with pytest.raises(TableError, match="impressions: there is no such table"):
        run(lake, Config())


@pytest.mark.parametrize(
    "events",
    [[], [Event("u", "i", 0.5, is_sampled=True)], [Event("u", "i", 5000.0)]],
    ids=["no row", "sampled negatives alone", "after today's midnight"],
)
def test_a_log_without_past_events_is_refused(lake: Lake, events: list[Event]) -> None:
    lake.write(Impressions, impressions(events) if events else Impressions.create_empty())
    with pytest.raises(TableError, match="no impression that a user saw before today's midnight"):
        run(lake, Config())
    assert not lake.exists(UserActivity)


@pytest.mark.parametrize("bad", [{"prior_strength": 0.0}, {"memory_limit": "lots"}, {"windows": [1]}])
def test_settings_that_mean_nothing_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Config.model_validate(bad)
