"""Collect the items each user clicked last, as they were known at each midnight.

reads   impressions
writes  user_histories     one row per (user, midnight UTC after a day with clicks)

A row at midnight of day D holds the last `max_length` clicks before D, oldest first, with their times, and nothing of
D itself. Clicks of the same microsecond are in the order of their impression_id. An item clicked twice is there twice:
that it was is part of what the user wants. A log without clicks gives an empty table and a warning: all users are cold.

How. DuckDB sorts the clicks by (user, time), out of core; they come back in batches, and the last `max_length` clicks
of a batch are all that the next one needs to know.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from datetime import timezone

import dataframely as dy
import duckdb
import numpy as np
import polars as pl
from pydantic import BaseModel, Field, PositiveInt

from feature_repo.table_schemas import Impressions, UserHistories
from jobs.lake import Lake
from jobs.progress import progress_bar

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (Impressions,)
WRITES: tuple[type[dy.Schema], ...] = (UserHistories,)

CLICKS_PER_SHARD = 50_000
"""Clicks taken at a time. Each may end a day and so give a row of `max_length` ids and times: 50 to 100 MB at 50."""

PAST_CLICKS = """
    SELECT user_id, item_id, event_timestamp FROM impressions WHERE clicked AND event_timestamp < $midnight
    ORDER BY user_id, event_timestamp, impression_id
"""


class Config(BaseModel, extra="forbid", frozen=True):
    """How long histories are, and how much memory sorting may take."""

    max_length: PositiveInt = 50
    """Clicks kept, the newest."""
    memory_limit: str = Field(default="2GB", pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$")
    """Memory that DuckDB may use; beyond it, it spills to disk, inside the lake."""


def run(lake: Lake, config: Config) -> None:
    """Replace the histories.

    Raises:
        TableError: the log is missing.
    """
    files = [str(path) for path in lake.parquet_files(Impressions)]
    midnight = lake.now().astimezone(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    with (
        tempfile.TemporaryDirectory(dir=lake.folder("scratch")) as spill,
        contextlib.closing(duckdb.connect()) as connection,
        lake.writer(UserHistories, metadata={"max_length": config.max_length}) as writer,
    ):
        num_clicks = num_past = 0
        if files:
            connection.execute("SET memory_limit = ?", [config.memory_limit])
            connection.execute("SET temp_directory = ?", [spill])
            connection.execute("SET TimeZone = 'UTC'")
            connection.read_parquet(files).create_view("impressions")
            (num_clicks, num_past) = connection.execute(
                "SELECT count(*), count(*) FILTER (event_timestamp < $midnight) FROM impressions WHERE clicked",
                {"midnight": midnight},
            ).fetchall()[0]
        logger.info(
            "histories: %s clicks taken, %s since today's midnight left for tomorrow",
            f"{num_past:_}",
            f"{num_clicks - num_past:_}",
        )
        if not num_past:
            logger.warning(
                "histories: the log has no click before today's midnight (UTC): every user is without history"
            )
            return
        reader = connection.execute(PAST_CLICKS, {"midnight": midnight}).to_arrow_reader(CLICKS_PER_SHARD)
        batches = (pl.DataFrame(batch) for batch in reader)
        with progress_bar("collect histories", num_past, unit="clicks") as advance:
            for histories, num_read in histories_by_day(batches, config.max_length):
                writer.write_shard(histories)
                advance(num_read)


def histories_by_day(clicks: Iterable[pl.DataFrame], max_length: int) -> Iterator[tuple[pl.DataFrame, int]]:
    """The last clicks of each user at the end of each of their days with clicks.

    Args:
        clicks: batches of `user_id`, `item_id`, `event_timestamp`, sorted by user, then time, over all of them.
        max_length: clicks of a row, at most.

    Yields:
        Rows of `UserHistories`, and how many clicks of the input they brought to an end. A day is written when a later
        click, or the end of the input, shows that it is over.
    """
    held = None  # the last clicks so far: their last day may go on in the next batch
    for batch in clicks:
        if batch.is_empty():
            continue
        rows = batch if held is None else pl.concat([held, batch])
        first_open = 0 if held is None else held.height - 1
        yield _histories(rows, max_length, first_open, is_over=False), batch.height
        held = rows.tail(max_length)
    if held is not None:
        yield _histories(held, max_length, held.height - 1, is_over=True), 0


def _histories(clicks: pl.DataFrame, max_length: int, first_open: int, *, is_over: bool) -> pl.DataFrame:
    """One row per (user, day) that ends at click `first_open` or later; the last day ends only if `is_over`."""
    user = clicks.get_column("user_id").rle_id().to_numpy().astype(np.int64)
    day = clicks.get_column("event_timestamp").dt.truncate("1d")
    day_number = day.rle_id().to_numpy()
    ends_day = np.append((user[1:] != user[:-1]) | (day_number[1:] != day_number[:-1]), is_over)
    last = np.flatnonzero(ends_day)
    last = last[last >= first_open]
    first = np.maximum(np.searchsorted(user, user[last]), last + 1 - max_length)
    length = last + 1 - first

    # Row r is clicks first[r] .. last[r]: every index into `clicks`, one row after another.
    start = np.cumsum(length) - length
    index = np.arange(int(length.sum())) + np.repeat(first - start, length)
    row = pl.Series("row", np.repeat(np.arange(len(last)), length))
    midnight = day.gather(last).dt.offset_by("1d")
    return (
        clicks.select("item_id", "event_timestamp")[index]
        .with_columns(row)
        .group_by("row", maintain_order=True)
        .agg(history_item_ids="item_id", history_timestamps="event_timestamp")
        .select(
            clicks.get_column("user_id").gather(last),
            midnight.alias("event_timestamp"),
            midnight.alias("created_timestamp"),  # as the run of that night would have written it
            "history_item_ids",
            "history_timestamps",
        )
    )
