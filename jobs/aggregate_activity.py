"""Count what each user and each item did, in trailing windows of 1, 7, 30 and 180 days.

reads   impressions
writes  user_activity, item_activity     one row per (entity, midnight UTC) at which a trailing count changes

A row at midnight of day D counts the events of the w days before it, day >= D - w and < D, and nothing of D itself. A
count can change only at the midnight after a day with events and at the midnights at which that day leaves a window, so
at any time the newest row at or before it has the exact counts. An impression and its click count on the day of the
impression, a conversion on the day it became known. Sampled negatives are not impressions: nobody saw them. In a log of
positives with sampled negatives every impression that counts was clicked, so every ctr is 1 and tells nothing apart.

    rate = (events + prior_strength * p0) / (trials + prior_strength)      p0: the whole log's rate before that midnight

Counts are exact between rows; a rate keeps the p0 of its row's midnight. A cvr is capped at 1, as the conversions of a
window may belong to clicks before it.

How. DuckDB reduces the log to one row per (entity, day) and sorts it, out of core. A count in [D - w, D) is then the
difference of two running totals, looked up by binary search for whole entities at a time: no row per window, and memory
that depends on neither the log's length nor an entity's activity, as an entity has one row a day at most.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone

import dataframely as dy
import duckdb
import numpy as np
import polars as pl
from pydantic import BaseModel, Field, PositiveFloat

from feature_repo.table_schemas import ACTIVITY_WINDOWS_DAYS, Impressions, ItemActivity, UserActivity
from jobs.lake import Lake, TableError, table_name
from jobs.progress import progress_bar

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (Impressions,)
WRITES: tuple[type[dy.Schema], ...] = (UserActivity, ItemActivity)

MEASURES = ("impressions", "clicks", "conversions")

RATE_BEFORE_ANY_TRIAL = 0.0
"""p0 while the log has no trial yet (no click, for cvr): the value it keeps until the first success."""

DAILY_ROWS_PER_SHARD = 200_000
"""Rows (entity, day) taken at a time: up to five times as many rows of activity, 0.5 GB."""

MICROSECONDS_PER_DAY = 86_400_000_000

DAYS_PER_ENTITY = 1 << 20
"""Room for days since 1970 in a sortable key `entity * DAYS_PER_ENTITY + day`: up to the year 4840."""

EVENTS = f"""
    SELECT user_id, item_id, epoch_us(event_timestamp) // {MICROSECONDS_PER_DAY} AS day,
           1 AS impressions, clicked::INTEGER AS clicks, 0 AS conversions
    FROM impressions WHERE NOT is_sampled
    UNION ALL
    SELECT user_id, item_id, epoch_us(conversion_timestamp) // {MICROSECONDS_PER_DAY}, 0, 0, 1
    FROM impressions WHERE converted AND NOT is_sampled
"""

TOTALS = ", ".join(f"sum({measure})::BIGINT AS {measure}" for measure in MEASURES)


class Config(BaseModel, extra="forbid", frozen=True):
    """How rates are smoothed, and how much memory the aggregation may take."""

    prior_strength: PositiveFloat = 20.0
    """Trials that the log's own rate is worth: an entity with as many of its own lies halfway between the two."""
    memory_limit: str = Field(default="2GB", pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$")
    """Memory that DuckDB may use; beyond it, it spills to disk, inside the lake."""


def run(lake: Lake, config: Config) -> None:
    """Replace both activity tables.

    Raises:
        TableError: the log is missing, or has no event before today's midnight.
    """
    files = [str(path) for path in lake.parquet_files(Impressions)]
    today = day_of(lake.now())
    with (
        tempfile.TemporaryDirectory(dir=lake.folder("scratch")) as spill,
        contextlib.closing(duckdb.connect()) as connection,
    ):
        connection.execute("SET memory_limit = ?", [config.memory_limit])
        connection.execute("SET temp_directory = ?", [spill])
        connection.execute("SET TimeZone = 'UTC'")
        if lake.manifest(Impressions).rows == 0:
            raise _no_events("the log is empty")
        connection.read_parquet(files).create_view("impressions")
        log_days = _log_days(connection, today)
        last_midnight = int(log_days.get_column("day").max()) + 1  # type: ignore[arg-type]
        base_rates = rates_so_far(log_days, last_midnight)
        num_events = int(log_days.select(pl.sum_horizontal(pl.col("impressions", "conversions").sum())).item())
        for schema, entity in ((UserActivity, "user"), (ItemActivity, "item")):
            reader = connection.execute(
                f"""SELECT {entity}_id AS entity, day, {TOTALS} FROM ({EVENTS})
                WHERE day < $today GROUP BY entity, day ORDER BY entity, day""",
                {"today": today},
            ).to_arrow_reader(DAILY_ROWS_PER_SHARD)
            with (
                lake.writer(schema) as writer,
                progress_bar(f"count {entity} activity", num_events, unit="events") as advance,
            ):
                for daily in whole_entities(pl.DataFrame(batch) for batch in reader):
                    counts = trailing_counts(daily, last_midnight)
                    writer.write_shard(_activity(counts, base_rates, config.prior_strength, entity))
                    advance(int(daily.select(pl.sum_horizontal(pl.col("impressions", "conversions").sum())).item()))


def day_of(time: datetime) -> int:
    """Days from 1970 to the midnight (UTC) that begins the day of `time`."""
    return (time.astimezone(timezone.utc).replace(tzinfo=None) - datetime(1970, 1, 1)).days


def whole_entities(batches: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Cut batches sorted by `entity` anew, so that no entity's rows lie in two of them."""
    held = None
    for batch in batches:
        rows = batch if held is None else pl.concat([held, batch])
        is_last = rows.get_column("entity") == rows.item(-1, "entity")
        complete, held = rows.filter(~is_last), rows.filter(is_last)
        if not complete.is_empty():
            yield complete
    if held is not None:
        yield held


def trailing_counts(daily: pl.DataFrame, last_midnight: int) -> pl.DataFrame:
    """Counts in trailing windows at every midnight at which one of them changes.

    Args:
        daily: one row per (entity, day) with events, sorted so, each entity whole: `entity`, `day` (days since 1970),
            `impressions`, `clicks`, `conversions`.
        last_midnight: a day; no row is later, since nobody knows yet what happens until then.

    Returns:
        `entity`, `day` (the day that begins at the row's midnight), `num_<measure>_<w>d`, sorted as `daily`.
    """
    entity = daily.get_column("entity").rle_id().to_numpy().astype(np.int64)
    day = daily.get_column("day").to_numpy()
    assert day.max(initial=0) + 1 + max(ACTIVITY_WINDOWS_DAYS) < DAYS_PER_ENTITY
    key = entity * DAYS_PER_ENTITY + day
    running = np.zeros((len(key) + 1, len(MEASURES)), np.int64)  # totals of all rows before the one at an index
    np.cumsum(daily.select(MEASURES).to_numpy(), axis=0, out=running[1:])

    midnight = np.unique(np.concatenate([key + 1 + age for age in (0, *ACTIVITY_WINDOWS_DAYS)]))
    midnight = midnight[midnight % DAYS_PER_ENTITY <= last_midnight]
    so_far = running[np.searchsorted(key, midnight)]
    counts = np.stack(
        [so_far - running[np.searchsorted(key, midnight - window)] for window in ACTIVITY_WINDOWS_DAYS], axis=2
    ).reshape(len(midnight), -1)  # [midnights, measures * windows]

    at = midnight // DAYS_PER_ENTITY
    changed = np.ones(len(midnight), np.bool_)  # an event may enter a window as another leaves it
    changed[1:] = (at[1:] != at[:-1]) | (counts[1:] != counts[:-1]).any(axis=1)
    first_row = np.searchsorted(entity, at[changed])
    names = [f"num_{measure}_{window}d" for measure in MEASURES for window in ACTIVITY_WINDOWS_DAYS]
    return pl.DataFrame(
        [
            daily.get_column("entity").gather(first_row),
            pl.Series("day", midnight[changed] % DAYS_PER_ENTITY),
            *(pl.Series(name, np.ascontiguousarray(counts[changed, column])) for column, name in enumerate(names)),
        ]
    )


def rates_so_far(log_days: pl.DataFrame, last_midnight: int) -> pl.DataFrame:
    """The log's own rates over all events before each midnight.

    Args:
        log_days: one row per day with events: `day`, `impressions`, `clicks`, `conversions`.
        last_midnight: the last day wanted.

    Returns:
        `day`, `ctr`, `cvr`: one row per day, from the first with a day of events before it to `last_midnight`.
    """
    first_midnight = int(log_days.get_column("day").min()) + 1  # type: ignore[arg-type]
    so_far = (
        pl.DataFrame({"day": np.arange(first_midnight, last_midnight + 1)})
        .join(log_days.with_columns(pl.col("day") + 1), on="day", how="left", maintain_order="left")
        .with_columns(pl.col(MEASURES).fill_null(0).cum_sum())
    )
    return so_far.select("day", ctr=_share("clicks", "impressions"), cvr=_share("conversions", "clicks"))


def smoothed_rate(num_events: pl.Expr, num_trials: pl.Expr, prior: pl.Expr, prior_strength: float) -> pl.Expr:
    """`(events + prior_strength * prior) / (trials + prior_strength)`, at most 1: see the module's docstring."""
    return ((num_events + prior_strength * prior) / (num_trials + prior_strength)).clip(0.0, 1.0)


def _share(num_events: str, num_trials: str) -> pl.Expr:
    has_trials = pl.col(num_trials) > 0
    return pl.when(has_trials).then(pl.col(num_events) / pl.col(num_trials)).otherwise(RATE_BEFORE_ANY_TRIAL)


def _activity(counts: pl.DataFrame, base_rates: pl.DataFrame, prior_strength: float, entity: str) -> pl.DataFrame:
    midnight = (pl.col("day") * MICROSECONDS_PER_DAY).cast(pl.Datetime("us", "UTC"))

    def rate(events: str, trials: str, base: str, window: int) -> pl.Expr:
        return smoothed_rate(
            pl.col(f"num_{events}_{window}d"), pl.col(f"num_{trials}_{window}d"), pl.col(base), prior_strength
        ).alias(f"{entity}_{base}_{window}d")

    return counts.join(base_rates, on="day", how="left", maintain_order="left").select(
        pl.col("entity").alias(f"{entity}_id"),
        midnight.alias("event_timestamp"),
        midnight.alias("created_timestamp"),  # as the run of that night would have written it
        pl.col("^num_.*$").name.prefix(f"{entity}_"),
        *(rate("clicks", "impressions", "ctr", window) for window in ACTIVITY_WINDOWS_DAYS),
        *(rate("conversions", "clicks", "cvr", window) for window in ACTIVITY_WINDOWS_DAYS),
    )


def _log_days(connection: duckdb.DuckDBPyConnection, today: int) -> pl.DataFrame:
    days = connection.execute(f"SELECT day, {TOTALS} FROM ({EVENTS}) GROUP BY day ORDER BY day").pl()
    counted = days.filter(pl.col("day") < today)
    num_sampled = connection.execute("SELECT count(*) FROM impressions WHERE is_sampled").fetchall()[0][0]
    totals = {measure: int(counted.get_column(measure).sum()) for measure in MEASURES}
    dropped = [int(days.get_column(measure).sum()) - totals[measure] for measure in ("impressions", "conversions")]
    if counted.is_empty():
        raise _no_events(
            f"of {num_sampled + sum(dropped):_} rows {num_sampled:_} are sampled negatives, the rest today's"
        )
    logger.info(
        "activity: %s impressions, %s clicks, %s conversions counted; not counted: %s sampled negatives, "
        "%s impressions and %s conversions since today's midnight",
        *(f"{number:_}" for number in (*totals.values(), num_sampled, *dropped)),
    )
    return counted


def _no_events(found: str) -> TableError:
    return TableError(
        table_name(Impressions),
        f"no impression that a user saw before today's midnight (UTC): {found}",
        "ingest a log with impressions of past days",
    )
