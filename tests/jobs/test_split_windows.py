import datetime as dt

import polars as pl
import pytest

from jobs.split_windows import LogSpan, label, split_windows

DAY = dt.timedelta(days=1)
START = dt.datetime(2025, 3, 1, 6, tzinfo=dt.timezone.utc)


def log(rows: list[tuple[float, float | None]]) -> pl.LazyFrame:
    """(days after START, days until the conversion) -> impressions."""
    times = [START + day * DAY for day, _ in rows]
    return pl.LazyFrame(
        {
            "impression_id": [f"i{n}" for n in range(len(rows))],
            "event_timestamp": times,
            "converted": [delay is not None for _, delay in rows],
            "conversion_timestamp": [
                None if delay is None else time + delay * DAY for time, (_, delay) in zip(times, rows, strict=True)
            ],
        },
        schema_overrides=dict.fromkeys(("event_timestamp", "conversion_timestamp"), pl.Datetime("us", "UTC")),
    )


def labelled(rows: list[tuple[float, float | None]], window_days: float, **days: int | None) -> pl.DataFrame:
    given = {"test_days": 2, "validation_days": 2, "train_days": None} | days
    frame = log(rows)
    windows = split_windows(LogSpan.of(frame), **given)  # type: ignore[arg-type]
    return label(frame, windows, window_days * DAY).collect()


def test_windows_touch_and_begin_at_midnight() -> None:
    windows = split_windows(LogSpan.of(log([(0, None), (9.5, None)])), test_days=2, validation_days=3, train_days=None)
    midnight = START.replace(hour=0)
    assert windows["start"].to_list() == [START, midnight + 5 * DAY, midnight + 8 * DAY]
    assert windows["end"].to_list()[:2] == windows["start"].to_list()[1:]
    assert windows["end"].to_list()[2] == START + 9.5 * DAY + dt.timedelta(microseconds=1)


def test_every_impression_is_in_one_split_and_splits_follow_each_other() -> None:
    frame = labelled([(day / 4, None) for day in range(40)], 1)
    assert len(frame) == 40
    assert frame["split"].to_list() == sorted(frame["split"].to_list(), key=["train", "validation", "test"].index)
    assert frame["split"].unique().len() == 3


def test_train_days_leaves_the_oldest_impressions_out() -> None:
    frame = labelled([(day, None) for day in range(10)], 1, train_days=3)
    assert frame.filter(pl.col("split") == "train").height == 3
    assert frame.height == 7


def test_a_conversion_that_came_in_later_is_not_known_when_training() -> None:
    # 10 days of log: train ends after day 5. Impression of day 1 converts after 4.9 days, window 5 days.
    late = labelled([(0, None), (1, 4.9), (9, None)], 5.0)
    assert late["converted"].to_list()[1] is None  # the window passes on day 6, one day after training began
    early = labelled([(0, None), (0, 3.0), (9, None)], 3.0)
    assert early["converted"].to_list()[:2] == [False, True]


def test_an_early_conversion_does_not_make_a_young_impression_known() -> None:
    # Else the youngest days would have positives only.
    frame = labelled([(0, None), (5.0, 0.1), (5.1, None), (9, None)], 2.0)
    assert frame["split"].to_list()[1:3] == ["train", "train"]
    assert frame["converted"].to_list()[1:3] == [None, None]


def test_a_conversion_after_its_window_does_not_count() -> None:
    frame = labelled([(0, 2.0), (0.1, 2.1), (9, None)], 2.0)
    assert frame["converted"].to_list()[:2] == [True, False]


def test_conversions_at_the_time_of_the_impression_need_no_waiting() -> None:
    frame = labelled([(0, 0.0), (5, 0.0), (9, 0.0), (9, None)], 0.0)
    assert frame["converted"].to_list() == [True, True, True, False]


def test_the_log_ends_with_its_last_conversion_not_with_its_last_impression() -> None:
    frame = labelled([(0, None), (9, 3.0), (9, None)], 3.0)
    assert frame["converted"].to_list()[1:] == [True, False]


def test_a_log_shorter_than_the_splits_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"(?s)test_days=5 and validation_days=4.*lower test_days"):
        labelled([(0, None), (6, None)], 1, test_days=5, validation_days=4)
