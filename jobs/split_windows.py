"""Split a log by time, and say which labels were known when: train < validation < test, each judged with its own eyes.

A conversion counts within `conversion_window` of its impression, both ends included. Whoever trained at the start of
the validation window knew only the conversions that had come in by then, so each split has a `labels_as_of`, and an
impression whose conversion window had not passed by then has no conversion label at all (null): keeping the
conversions that came early and the others as "not yet" would make the youngest days look like nobody buys, and keeping
only the early ones, like everybody does.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

MICROSECOND = timedelta(microseconds=1)
SPLITS = pl.Enum(["train", "validation", "test"])


@dataclass(frozen=True)
class LogSpan:
    """What a log covers.

    Attributes:
        first: time of the first impression.
        last: time of the last impression.
        last_conversion: time of the last conversion; None if nobody converted. It may be later than `last`.
        longest_delay: longest time from impression to conversion.
    """

    first: datetime
    last: datetime
    last_conversion: datetime | None
    longest_delay: timedelta

    @classmethod
    def of(cls, impressions: pl.LazyFrame) -> "LogSpan":
        """Of a log with at least one impression."""
        delay = pl.col("conversion_timestamp") - pl.col("event_timestamp")
        first, last, last_conversion, longest = (
            impressions.select(
                pl.col("event_timestamp").min().alias("first"),
                pl.col("event_timestamp").max().alias("last"),
                pl.col("conversion_timestamp").max().alias("last_conversion"),
                delay.max().alias("longest"),
            )
            .collect(engine="streaming")
            .row(0)
        )
        return cls(first, last, last_conversion, longest or timedelta(0))


def split_windows(span: LogSpan, *, test_days: int, validation_days: int, train_days: int | None) -> pl.DataFrame:
    """Split, start, end, labels_as_of: one row per split.

    Days are UTC days. The test window ends with the last impression, and its labels are as known at the end of the log.

    Raises:
        ValueError: nothing is left to train on.
    """
    end = span.last + MICROSECOND
    test = span.last.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=test_days - 1)
    validation = test - timedelta(days=validation_days)
    train = span.first if train_days is None else max(span.first, validation - timedelta(days=train_days))
    if validation <= span.first:
        raise ValueError(
            f"build_training_set: the log covers {span.first:%Y-%m-%d %H:%M} to {span.last:%Y-%m-%d %H:%M}, and with "
            f"test_days={test_days} and validation_days={validation_days} training would have to end at "
            f"{validation:%Y-%m-%d}, before it begins.\n"
            "  what to do: lower test_days and validation_days, or ingest a longer log"
        )
    known_until = max(end, span.last_conversion + MICROSECOND) if span.last_conversion else end
    return pl.DataFrame(
        {
            "split": ["train", "validation", "test"],
            "start": [train, validation, test],
            "end": [validation, test, end],
            "labels_as_of": [validation, test, known_until],
        },
        schema_overrides={"split": SPLITS, **dict.fromkeys(("start", "end", "labels_as_of"), pl.Datetime("us", "UTC"))},
    )


def label(impressions: pl.LazyFrame, windows: pl.DataFrame, conversion_window: timedelta) -> pl.LazyFrame:
    """Impressions inside a split, with `split`, and `converted` as known at the split's labels_as_of.

    Args:
        impressions: as in the table, any columns beside the times and labels.
        windows: as `split_windows` gives them.
        conversion_window: a conversion later than this after its impression does not count.
    """
    time = pl.col("event_timestamp")
    split, as_of = pl.lit(None, SPLITS), pl.lit(None, pl.Datetime("us", "UTC"))
    for name, start, end, labels_as_of in windows.select("split", "start", "end", "labels_as_of").iter_rows():
        inside = (time >= start) & (time < end)
        split = pl.when(inside).then(pl.lit(name, SPLITS)).otherwise(split)  # type: ignore[assignment]
        as_of = pl.when(inside).then(pl.lit(labels_as_of)).otherwise(as_of)  # type: ignore[assignment]
    mature = time + conversion_window < as_of
    in_time = (pl.col("conversion_timestamp") - time <= conversion_window).fill_null(False)
    return (
        impressions.filter((time >= windows["start"].min()) & (time < windows["end"].max()))
        .with_columns(split.alias("split"), pl.when(mature).then(in_time).alias("converted"))
        .filter(pl.col("split").is_not_null())
    )
