"""A simulated marketplace with a known answer: the embedded default source, made from a seed and no data at all.

Users are after *themes* (a camping trip, a newborn baby) that cut across the store's categories, so that what the words
of an item mean tells more than what can be counted, above all for items and users that are new. Every impression comes
with the probability its outcome was drawn from (`true_probabilities`), which no ranker can beat.

    marketplace_vocabulary   the words              marketplace_traffic   who visits, when
    marketplace_catalogue    the items              marketplace_slates    what is shown: the logging policy
    marketplace_texts        what they read like    marketplace_clicks    what comes of it: the known answer
    marketplace_users        what users are after   marketplace_world     all of it, shard by shard
    marketplace_queries      queries and grades

Each shard of impressions has a random stream of its own and at most half a million rows: memory grows with users, items
and judged pairs, never with impressions.
"""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, Field, NonNegativeInt

from feature_repo.table_schemas import Impressions, Items, Queries, RelevanceGrades, TrueProbabilities, Users
from jobs.raw_sources import Shard
from jobs.raw_sources.marketplace_clicks import MAX_DELAY_DAYS
from jobs.raw_sources.marketplace_queries import query_ids, relevance_grades
from jobs.raw_sources.marketplace_slates import SLATE_SIZE
from jobs.raw_sources.marketplace_texts import item_ids, items_frame
from jobs.raw_sources.marketplace_traffic import second_of_day
from jobs.raw_sources.marketplace_users import Population
from jobs.raw_sources.marketplace_world import (
    NO_QUERY,
    STREAM,
    Dimensions,
    Log,
    World,
    draw_world,
    shards_of_day,
)

MAX_ROWS_PER_SHARD = 500_000
MIN_ROWS_PER_SHARD = 80_000
"""Of impressions; more than this waiting and a whole shard of a large day still stay below the maximum."""
MAX_JUDGED_QUERIES = 20_000
"""Every pair shown of so many queries is graded: as far as judges get, and as much as memory should hold."""

SIZES = {
    "toy": Dimensions(400, 400, 28, 20_000),
    "demo": Dimensions(6_000, 3_000, 60, 300_000),
    "small": Dimensions(30_000, 8_000, 60, 2_000_000),
    "medium": Dimensions(150_000, 30_000, 60, 10_000_000),
    "large": Dimensions(1_200_000, 200_000, 90, 100_000_000),
}


class Config(BaseModel, extra="forbid", frozen=True):
    """How large the world is and which one it is."""

    size: Literal["toy", "demo", "small", "medium", "large"] = "demo"
    """20 thousand, 300 thousand, 2 million, 10 million or 100 million impressions, with users and items to match."""
    num_users: int | None = Field(default=None, ge=10)
    """Instead of the size's own."""
    num_items: int | None = Field(default=None, ge=100)
    """Instead of the size's own."""
    num_days: int | None = Field(default=None, ge=2, le=3_650)
    """Instead of the size's own."""
    num_impressions: int | None = Field(default=None, ge=SLATE_SIZE)
    """Instead of the size's own; met within a few per cent."""
    last_day: dt.date = Field(default=dt.date(2025, 6, 30), ge=dt.date(2001, 1, 1))
    """The log ends with this day (UTC); the last conversions come in up to 14 days later."""
    seed: NonNegativeInt = 7
    """Another seed, another world."""

    def dimensions(self) -> Dimensions:
        """Those of the size, except where others are given."""
        given = (self.num_users, self.num_items, self.num_days, self.num_impressions)
        return Dimensions(
            *(own if other is None else other for own, other in zip(SIZES[self.size], given, strict=True))
        )

    def first_midnight(self) -> dt.datetime:
        """When the log begins."""
        day = self.last_day - dt.timedelta(days=self.dimensions().num_days - 1)
        return dt.datetime.combine(day, dt.time(), dt.timezone.utc)


def label_rule(config: Config) -> str:
    """What `clicked` and `converted` stand for."""
    return (
        "clicked and converted are drawn from the known probabilities of a simulated marketplace "
        f"(size {config.size}, seed {config.seed}); conversions follow within {MAX_DELAY_DAYS} days; "
        "nobody really saw, clicked or bought anything"
    )


def world_of(config: Config) -> World:
    """The world with its hidden truth, for tests and for those who study a ranker.

    Raises:
        ValueError: there are too few impressions for so many users.
    """
    return draw_world(config.dimensions(), config.first_midnight().weekday(), config.seed)


def shards(path: Path | None, config: Config) -> Iterator[Shard]:
    """Items, users and queries, then day by day impressions, their true probabilities and new relevance grades.

    Raises:
        ValueError: a path is given, or there are too few impressions for so many users.
    """
    if path is not None:
        raise ValueError(f"simulate makes its own data, but got the path {path}; leave it out, or name another source")
    return _shards(world_of(config), config.first_midnight())


def _shards(world: World, first_midnight: dt.datetime) -> Iterator[Shard]:
    yield from _sliced(Items, items_frame(world.catalogue, world.words, first_midnight, world.rng(STREAM.texts)))
    yield from _sliced(Users, _users_frame(world.population, first_midnight))
    queries = pl.DataFrame({"query_id": query_ids(len(world.queries)), "query_text": world.queries.text})
    yield from _sliced(Queries, queries)

    yield from _gathered(_log_shards(world, first_midnight))


def _log_shards(world: World, first_midnight: dt.datetime) -> Iterator[Shard]:
    tables = _LogTables(world, first_midnight)
    for day in range(len(world.visits)):
        for number, log in enumerate(shards_of_day(world, day)):
            impressions = tables.impressions(log, day, number)
            yield Shard(Impressions, impressions)
            yield Shard(TrueProbabilities, _probabilities_frame(impressions["impression_id"], log))
            yield Shard(RelevanceGrades, tables.new_grades(log))


def _sliced(schema: type[dy.Schema], frame: pl.DataFrame) -> Iterator[Shard]:
    for part in frame.iter_slices(MAX_ROWS_PER_SHARD):
        yield Shard(schema, part)


def _gathered(shards: Iterator[Shard]) -> Iterator[Shard]:
    """The shards of small days put together: a table of few large files is faster to write and to read."""
    waiting: dict[type[dy.Schema], list[pl.DataFrame]] = {}
    for shard in shards:
        frames = waiting.setdefault(shard.schema, [])
        frames.append(shard.frame)
        if sum(frame.height for frame in frames) >= MIN_ROWS_PER_SHARD:
            yield Shard(shard.schema, pl.concat(waiting.pop(shard.schema)))
    for schema, frames in waiting.items():
        yield Shard(schema, pl.concat(frames))


def _users_frame(population: Population, first_midnight: dt.datetime) -> pl.DataFrame:
    seconds = second_of_day(population.arrival_quantile)
    return pl.DataFrame({"user_id": _user_ids(len(population))}).with_columns(
        event_timestamp=_time(first_midnight, population.arrival_day, (seconds * 1e6).astype(np.int64))
    )


def _user_ids(num_users: int) -> pl.Series:
    return pl.select("user-" + pl.int_range(num_users).cast(pl.String).str.zfill(7)).to_series()


def _time(first_midnight: dt.datetime, day: int | NDArray[np.int32], microseconds: NDArray[np.int64]) -> pl.Series:
    """UTC microseconds of a moment of a day of the log."""
    since_epoch = int(first_midnight.timestamp()) * 1_000_000 + np.int64(86_400_000_000) * day + microseconds
    return pl.Series(since_epoch, dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))


class _LogTables:
    """Writes logs out as tables; remembers which (query, item) pairs have their grade already."""

    def __init__(self, world: World, first_midnight: dt.datetime) -> None:
        self._world = world
        self._first_midnight = first_midnight
        self._user_ids = _user_ids(len(world.population))
        self._item_ids = item_ids(len(world.catalogue))
        self._query_ids = query_ids(len(world.queries))
        self._is_judged = np.zeros(len(world.queries), bool)
        self._is_judged[world.rng(STREAM.judges).permutation(len(world.queries))[:MAX_JUDGED_QUERIES]] = True
        self._graded = np.empty(0, np.int64)  # sorted; query * num_items + item

    def impressions(self, log: Log, day: int, shard: int) -> pl.DataFrame:
        """One row per entry of the log; ids say the day, the shard of the day and the number."""
        start = (day * 1_000 + shard) * 10_000_000
        query = pl.Series(log.query)
        conversion = _time(self._first_midnight, day, log.microseconds + log.delay_microseconds)
        return pl.DataFrame(
            {
                "number": start + np.arange(len(log.page)),
                "page": start + log.page,
                "user_id": self._user_ids.gather(pl.Series(log.user)),
                "item_id": self._item_ids.gather(pl.Series(log.item)),
                "query_id": self._query_ids.gather(query.set(query == NO_QUERY, None)),
                "position": log.position,
                "event_timestamp": _time(self._first_midnight, day, log.microseconds),
                "clicked": log.clicked,
                "converted": log.converted,
                "conversion_timestamp": conversion.set(pl.Series(~log.converted), None),
            }
        ).select(
            ("imp-" + pl.col("number").cast(pl.String)).alias("impression_id"),
            ("req-" + pl.col("page").cast(pl.String)).alias("request_id"),
            pl.exclude("number", "page"),
            is_sampled=pl.lit(False),
        )

    def new_grades(self, log: Log) -> pl.DataFrame:
        """The pairs of judged queries that were not shown in any shard before."""
        num_items = len(self._item_ids)
        is_judged = (log.query != NO_QUERY) & self._is_judged[log.query]
        pairs = np.unique(log.query[is_judged] * num_items + log.item[is_judged])
        place = np.searchsorted(self._graded, pairs)
        is_new = np.append(self._graded, -1)[place] != pairs
        self._graded = np.insert(self._graded, place[is_new], pairs[is_new])
        pairs = pairs[is_new]
        query, item = pairs // num_items, pairs % num_items
        grades = relevance_grades(self._world.queries, self._world.catalogue, query, item)
        return pl.DataFrame(
            {
                "query_id": self._query_ids.gather(pl.Series(query)),
                "item_id": self._item_ids.gather(pl.Series(item)),
                "grade": grades.astype(np.float64),
            }
        )


def _probabilities_frame(impression_id: pl.Series, log: Log) -> pl.DataFrame:
    return pl.DataFrame(
        {"impression_id": impression_id, "p_ctr": log.p_ctr, "p_cvr": log.p_cvr, "p_ctcvr": log.p_ctr * log.p_cvr}
    )
