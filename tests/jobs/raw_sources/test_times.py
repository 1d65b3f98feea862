import datetime as dt

import polars as pl
import pytest

from jobs.raw_sources.times import TimeNotation, as_utc, check_times

NOON = dt.datetime(2024, 7, 1, 12, tzinfo=dt.timezone.utc)


def read(values: list[object], notation: TimeNotation = TimeNotation()) -> list[object]:  # noqa: B008 (immutable)
    series = pl.Series("t", values)
    return series.to_frame().select(as_utc(pl.col("t"), series.dtype, notation)).to_series().to_list()


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_numbers_are_read_in_their_unit(unit: str, per_second: int):
    assert read([int(NOON.timestamp()) * per_second], TimeNotation(unit=unit)) == [NOON]


def test_fractions_of_a_second_are_kept():
    assert read([NOON.timestamp() + 0.25], TimeNotation(unit="s")) == [NOON + dt.timedelta(milliseconds=250)]


@pytest.mark.parametrize(
    "text",
    [
        "2024-07-01T12:00:00Z",
        "2024-07-01T14:00:00+02:00",
        "2024-07-01 12:00:00",
        "2024-07-01 12:00:00.000",
        "2024-07-01 12:00",
    ],
)
def test_iso_text_needs_no_format(text: str):
    assert read([text]) == [NOON]


def test_a_format_of_ones_own_is_followed():
    assert read(["01/07/2024 12:00"], TimeNotation(form="%d/%m/%Y %H:%M")) == [NOON]


def test_local_times_become_utc():
    summer, winter = dt.datetime(2024, 7, 1, 13), dt.datetime(2024, 1, 1, 12)
    assert read([summer, winter], TimeNotation(zone="Europe/London")) == [NOON, NOON.replace(month=1)]


def test_an_hour_shown_twice_is_the_first_and_one_that_is_skipped_is_no_time():
    twice, skipped = dt.datetime(2024, 10, 27, 1, 30), dt.datetime(2024, 3, 31, 1, 30)
    assert read([twice, skipped], TimeNotation(zone="Europe/London")) == [
        dt.datetime(2024, 10, 27, 0, 30, tzinfo=dt.timezone.utc),
        None,
    ]


def test_dates_are_midnights():
    assert read([NOON.date()]) == [NOON.replace(hour=0)]


@pytest.mark.parametrize(("said", "is_"), [("s", "ms"), ("ms", "s"), ("us", "ms"), ("s", "ns")])
def test_a_wrong_unit_is_refused_and_the_right_one_named(said: str, is_: str):
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[is_]
    values = pl.Series([int(NOON.timestamp()) * per_second])
    with pytest.raises(ValueError, match=f'read as time_unit = "{said}".*lies in the year.*set time_unit = "{is_}"'):
        check_times(values, TimeNotation(unit=said), "select.event_timestamp")


def test_a_few_dummies_among_good_times_are_left_to_the_quarantine():
    check_times(pl.Series([0, int(NOON.timestamp()), int(NOON.timestamp())]), TimeNotation(unit="s"), "t")


def test_numbers_that_are_no_times_in_any_unit_are_refused():
    with pytest.raises(ValueError, match="is it a time at all"):
        check_times(pl.Series([1, 2, 3]), TimeNotation(unit="s"), "t")


def test_a_number_without_a_unit_is_refused():
    with pytest.raises(ValueError, match=r"t is a number \(such as \[5\]\); set time_unit"):
        check_times(pl.Series([5]), TimeNotation(), "t")


def test_text_of_another_form_is_shown_with_the_remedy():
    with pytest.raises(ValueError, match=r"'13/01/2024' is not a time of the form ISO 8601; set time_format"):
        check_times(pl.Series(["13/01/2024", "14/01/2024"]), TimeNotation(), "t")


def test_a_column_that_is_no_time_is_refused():
    with pytest.raises(ValueError, match="t is Boolean, expected a time"):
        check_times(pl.Series([True]), TimeNotation(), "t")
