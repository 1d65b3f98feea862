"""Times as raw logs write them (numbers since 1970, text, local datetimes) as UTC microseconds."""

from typing import Literal, NamedTuple

import polars as pl

from feature_repo.table_schemas import EARLIEST

TimeUnit = Literal["s", "ms", "us", "ns"]

UNITS_PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
ISO_FORMATS = ("%+", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
LATEST_YEAR = 2100
SECONDS_PER_YEAR = 31_556_952


class TimeNotation(NamedTuple):
    """How a log writes its times."""

    unit: TimeUnit | None = None
    """Of numbers: what they count since 1970."""
    form: str | None = None
    """Of text, in strftime's letters; None is ISO 8601."""
    zone: str = "UTC"
    """Of times that do not say theirs."""


def as_utc(column: pl.Expr, dtype: pl.DataType, notation: TimeNotation) -> pl.Expr:
    """A column of times as UTC microseconds; what cannot be read as a time becomes null.

    Of an hour that the clock shows twice, the first is meant; an hour that it skips is no time.
    """
    if dtype.is_numeric():
        per_second = UNITS_PER_SECOND[notation.unit or "s"]
        microseconds = column * (10**6 // per_second) if per_second <= 10**6 else column // (per_second // 10**6)
        return microseconds.cast(pl.Int64, strict=False).cast(pl.Datetime("us", "UTC"))
    if isinstance(dtype, pl.String):
        forms = (notation.form,) if notation.form else ISO_FORMATS
        return pl.coalesce(_parsed(column, form, notation.zone) for form in forms)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        return column.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    return _localised(column.cast(pl.Datetime("us")), notation.zone)


def check_times(values: pl.Series, notation: TimeNotation, setting: str) -> None:
    """Stop at times that cannot be meant, before a whole log is read.

    Args:
        values: some of the raw values.
        notation: how they are said to be written.
        setting: which setting names the column, for the message.

    Raises:
        ValueError: a number without a unit or in the wrong one; text of another form; not a time at all.
    """
    dtype, values = values.dtype, values.drop_nulls()
    if dtype.is_numeric() and notation.unit is None:
        raise ValueError(
            f"{setting} is a number (such as {values.head(1).to_list()}); set time_unit to s, ms, us or ns"
        )
    if not (dtype.is_numeric() or isinstance(dtype, (pl.String, pl.Date, pl.Datetime, pl.Null))):
        raise ValueError(f"{setting} is {dtype}, expected a time, a number or text")
    if values.is_empty():
        return
    if dtype.is_numeric():
        _check_unit(values, notation, setting)
    elif isinstance(dtype, pl.String):
        read = values.to_frame("raw").select("raw", time=as_utc(pl.col("raw"), dtype, notation))
        unread = read.filter(pl.col("time").is_null()).get_column("raw")
        if len(unread) > len(values) / 2:
            raise ValueError(
                f"{setting}: {unread[0]!r} is not a time of the form {notation.form or 'ISO 8601'}; "
                'set time_format, e.g. "%d/%m/%Y %H:%M"'
            )


def _check_unit(values: pl.Series, notation: TimeNotation, setting: str) -> None:
    middle = values.cast(pl.Float64).median()
    assert isinstance(middle, float)
    assert notation.unit is not None
    years = {unit: 1970 + middle / per_second / SECONDS_PER_YEAR for unit, per_second in UNITS_PER_SECOND.items()}
    if not EARLIEST.year <= years[notation.unit] < LATEST_YEAR:
        fitting = [unit for unit, year in years.items() if EARLIEST.year <= year < LATEST_YEAR]
        raise ValueError(
            f'{setting}: read as time_unit = "{notation.unit}", {middle:.0f} lies in the year '
            f"{years[notation.unit]:.0f}, expected {EARLIEST.year} to {LATEST_YEAR}; "
            + (f'set time_unit = "{fitting[0]}"' if fitting else "no unit makes a date of it: is it a time at all?")
        )


def _parsed(column: pl.Expr, form: str, zone: str) -> pl.Expr:
    says_its_zone = form == "%+" or "%z" in form or "%:z" in form
    time = column.str.to_datetime(form, time_unit="us", time_zone="UTC" if says_its_zone else None, strict=False)
    return time if says_its_zone else _localised(time, zone)


def _localised(time: pl.Expr, zone: str) -> pl.Expr:
    local = time.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return local.dt.convert_time_zone("UTC")
