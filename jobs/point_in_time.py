"""The point-in-time join: for each row, the newest feature row that was known at the row's time.

A feature row is *known* at time t if its event_timestamp and its created_timestamp are both <= t: a value that
was computed later for an earlier time (a backfill) was not known then. The newest known row is wanted, and an ASOF join
finds the last row of *one* order only, so rows are put in the order in which they became known,

    known_at = max(event_timestamp, created_timestamp),

and a row that became known after a newer one is left out: at no time is it the newest. What remains rises in
both orders, and an ASOF join on `known_at` gives the answer in one pass, however deep the history is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import polars as pl

MICROSECONDS = pl.Datetime("us", "UTC")
EVENT, CREATED, KNOWN_AT = "__event", "__created", "__known_at"
ROW, POSITION, RECENCY = "__row", "__position", "__recency"


@dataclass(frozen=True)
class FeatureRows:
    """Rows of one feature view, and how to find the right one.

    Attributes:
        frame: the rows, lazily; columns that are not named below are never read.
        keys: {column of `frame`: column of the entity rows}.
        features: columns wanted.
        event_timestamp: column: when the value became available.
        created_timestamp: column: when the row was written; None where nobody recorded it.
        ttl: how long a value holds, both ends included; None: until it is replaced.
    """

    frame: pl.LazyFrame
    keys: Mapping[str, str]
    features: tuple[str, ...]
    event_timestamp: str
    created_timestamp: str | None = None
    ttl: timedelta | None = None


def as_known_then(entities: pl.DataFrame, time: str, rows: FeatureRows) -> pl.DataFrame:
    """Features of each entity row at its own time.

    Args:
        entities: [n] rows with the key columns and `time`; duplicates and any order are fine.
        time: column of `entities`, no nulls.
        rows: the feature rows; of two rows with equal times the later one of the frame wins.

    Returns:
        [n] rows in the order of `entities`, columns `rows.features`; null where nothing was known, where what was
        known had outlived its ttl, and where a key is null.
    """
    schema = rows.frame.collect_schema()
    wanted = entities.select(
        pl.col(time).cast(MICROSECONDS).alias(KNOWN_AT),
        *(pl.col(ours).cast(schema[theirs]).alias(theirs) for theirs, ours in rows.keys.items()),
    )
    known = _known_rows(wanted, rows)
    if known.is_empty():
        return pl.DataFrame(schema={name: schema[name] for name in rows.features}).clear(len(entities))
    keys = list(rows.keys)
    found = (
        wanted.with_row_index(ROW)
        .sort(KNOWN_AT, maintain_order=True)
        .join_asof(
            known.select(*keys, KNOWN_AT, EVENT).with_row_index(POSITION),
            on=KNOWN_AT,
            by=keys or None,
            strategy="backward",
            check_sortedness=False,
        )
        .sort(ROW)
    )
    position = found.get_column(POSITION)
    if rows.ttl:
        position = found.select(
            pl.when(pl.col(EVENT) + rows.ttl >= pl.col(KNOWN_AT)).then(POSITION).otherwise(None)
        ).to_series()
    return known.select(pl.col(rows.features).gather(position))


def _known_rows(wanted: pl.DataFrame, rows: FeatureRows) -> pl.DataFrame:
    """The rows that are the newest known one at some time, in the order in which they became known."""
    keys = list(rows.keys)
    first, last = wanted.select(pl.col(KNOWN_AT).min().alias("first"), pl.col(KNOWN_AT).max().alias("last")).row(0)
    if first is None:
        return pl.DataFrame()
    created = rows.created_timestamp or rows.event_timestamp
    frame = rows.frame.select(
        *keys,
        *rows.features,
        pl.col(rows.event_timestamp).cast(MICROSECONDS).alias(EVENT),
        pl.col(created).cast(MICROSECONDS).alias(CREATED),
    ).filter(pl.col(EVENT) <= last, pl.col(CREATED) <= last)
    if rows.ttl:
        frame = frame.filter(pl.col(EVENT) >= first - rows.ttl)
    if keys:
        frame = frame.join(wanted.lazy().select(keys).unique().drop_nulls(), on=keys, how="semi")
    newest_last = frame.collect().sort(EVENT, CREATED, maintain_order=True).with_row_index(RECENCY)
    by_known_at = newest_last.with_columns(pl.max_horizontal(EVENT, CREATED).alias(KNOWN_AT)).sort(KNOWN_AT, RECENCY)
    newest_so_far = pl.col(RECENCY).cum_max()
    return by_known_at.filter(pl.col(RECENCY) == (newest_so_far.over(keys) if keys else newest_so_far)).drop(RECENCY)
