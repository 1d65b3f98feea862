"""Real fashion products (titles, categories, thumbnails) under simulated shoppers: a log in which pictures matter.

    fashion_catalogue   the products, read from a folder, and what only their pictures show
    fashion_shoppers    what shoppers like, ask for, are shown, click and buy: the known answer

No open log at hand has pictures, queries, impressions and clicks together. So products are real and people are not:
nobody saw or clicked anything, and every impression comes with the probabilities its outcome was drawn from
(`true_probabilities`), which no ranker can beat. Shoppers search; each has a taste in article types, in the words of
titles, and in looks: how light, red, yellow, contrasted and colourful a product is beyond what its words say.

How much depends on the picture: over the impressions of the default world, the taste in looks is PICTURE_SHARE of the
variance of the click's logit, and no word tells any of it. Whether a product has the colour that a query asks for is
seen in the picture, too, where its title does not say so; that comes on top.

Who comes when is the same as in `simulate`. Each day has random streams of its own: memory grows with products, users
and judged pairs, never with impressions.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, Field, NonNegativeInt

from feature_repo.table_schemas import (
    Impressions,
    ItemImages,
    Items,
    Queries,
    RelevanceGrades,
    TrueProbabilities,
    Users,
)
from jobs.raw_sources import PICTURES_PER_SHARD, Shard
from jobs.raw_sources.fashion_catalogue import FashionCatalogue, draw_catalogue, product_file, read_products
from jobs.raw_sources.fashion_shoppers import (
    CLICK,
    PURCHASE,
    Causes,
    FashionQueries,
    Shelves,
    Tastes,
    asked_queries,
    causes,
    draft_queries,
    draw_slates,
    draw_tastes,
    grades,
    logit,
)
from jobs.raw_sources.marketplace_clicks import MAX_DELAY_DAYS, delay_microseconds, examination
from jobs.raw_sources.marketplace_slates import SLATE_SIZE
from jobs.raw_sources.marketplace_traffic import MEAN_PAGES, pages_of_shard, returning_visits, second_of_day
from jobs.raw_sources.marketplace_users import Population, draw_population

PICTURE_SHARE = 0.31
"""Of the variance of the click's logit in the default world; a test holds it to this."""
ROWS_PER_SHARD = 400_000
MIN_ROWS_PER_SHARD = 80_000
"""Of a table; the shards of small days are put together."""

CATALOGUE, USERS, TASTES, DAYS = range(4)
"""First number of the key of each random stream; of a day, the second is the day, the third the shard of it."""


class Config(BaseModel, extra="forbid", frozen=True):
    """How large the world is and which one it is."""

    num_items: int = Field(default=12_000, ge=100)
    """Products, drawn from those that have a thumbnail."""
    num_users: int = Field(default=4_000, ge=10)
    """Shoppers; about half of them arrive during the log."""
    num_days: int = Field(default=60, ge=2, le=3_650)
    """Length of the log."""
    num_impressions: int = Field(default=400_000, ge=SLATE_SIZE)
    """Met within a few per cent."""
    last_day: dt.date = Field(default=dt.date(2025, 6, 30), ge=dt.date(2001, 1, 1))
    """The log ends with this day (UTC); the last conversions come in up to 14 days later."""
    seed: NonNegativeInt = 7
    """Another seed, other shoppers and other tastes."""

    def first_midnight(self) -> dt.datetime:
        """When the log begins."""
        day = self.last_day - dt.timedelta(days=self.num_days - 1)
        return dt.datetime.combine(day, dt.time(), dt.timezone.utc)


@dataclass(frozen=True)
class FashionWorld:
    """Everything that lasts longer than a page. The hidden truth is in it."""

    config: Config
    catalogue: FashionCatalogue
    population: Population  # when shoppers come, and how readily they click; its tastes are of another world
    tastes: Tastes
    queries: FashionQueries
    visits: NDArray[np.int64]  # (days,) of users who came before

    def rng(self, *key: int) -> np.random.Generator:
        """The random stream of that key."""
        return _rng(self.config.seed, *key)


@dataclass(frozen=True)
class FashionLog:
    """One entry per impression, in order of time; `why` is what made the shopper click."""

    page: NDArray[np.int64]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    query: NDArray[np.int64]
    position: NDArray[np.int32]
    microseconds: NDArray[np.int64]  # since midnight of the day
    why: Causes
    p_ctr: NDArray[np.float64]
    p_cvr: NDArray[np.float64]
    clicked: NDArray[np.bool_]
    converted: NDArray[np.bool_]
    delay_microseconds: NDArray[np.int64]  # to the conversion; without meaning where there is none


def label_rule(config: Config) -> str:
    """What `clicked` and `converted` stand for."""
    return (
        "products, titles and pictures are real; clicked and converted are drawn from the known probabilities of "
        f"simulated shoppers (seed {config.seed}), about {PICTURE_SHARE:.0%} of whose click logit's variance only the "
        f"picture shows; conversions follow within {MAX_DELAY_DAYS} days; nobody really saw, clicked or bought anything"
    )


def raw_files(path: Path | None, config: Config) -> list[Path]:
    """The file of titles and thumbnails."""
    return [product_file(path)]


def world_of(path: Path | None, config: Config) -> FashionWorld:
    """The world with its hidden truth, for tests and for those who study a ranker.

    Raises:
        ValueError: the products cannot be read or are too few; or there are too few impressions for so many users.
    """
    catalogue = draw_catalogue(read_products(path), config.num_items, config.num_days, _rng(config.seed, CATALOGUE))
    population = draw_population(config.num_users, config.num_days, _rng(config.seed, USERS))
    num_pages, first_weekday = config.num_impressions / SLATE_SIZE, config.first_midnight().weekday()
    return FashionWorld(
        config=config,
        catalogue=catalogue,
        population=population,
        tastes=draw_tastes(catalogue, config.num_users, _rng(config.seed, TASTES)),
        queries=draft_queries(catalogue),
        visits=returning_visits(population, config.num_days, first_weekday, num_pages),
    )


def shards(path: Path | None, config: Config) -> Iterator[Shard]:
    """Items, their pictures, users and queries, then day by day impressions, true probabilities and new grades.

    Raises:
        ValueError: as `world_of`.
    """
    world = world_of(path, config)
    catalogue = world.catalogue
    yield Shard(Items, _items_frame(world))
    for some in catalogue.products.select("item_id", image="jpeg").iter_slices(PICTURES_PER_SHARD):
        yield Shard(ItemImages, some)
    yield Shard(Users, _users_frame(world))
    yield Shard(Queries, pl.DataFrame({"query_id": _query_ids(world), "query_text": world.queries.text}))
    yield from _gathered(_log_shards(world))


def logs_of_day(world: FashionWorld, day: int) -> Iterator[FashionLog]:
    """The day's log. It depends on no other day; each shard has a random stream of its own."""
    population, catalogue, tastes, queries = world.population, world.catalogue, world.tastes, world.queries
    known, until = np.searchsorted(population.arrival_day, (day, day + 1), side="left")
    expected_rows = (world.visits[day] + until - known) * MEAN_PAGES * SLATE_SIZE
    num_shards = max(1, int(np.ceil(expected_rows / ROWS_PER_SHARD)))
    shelves = Shelves(catalogue, day)
    for shard in range(num_shards):
        rng = world.rng(DAYS, day, shard)
        num_returning = world.visits[day] * (shard + 1) // num_shards - world.visits[day] * shard // num_shards
        pages = pages_of_shard(population, day, shard, num_shards, num_returning, rng)
        query_of_page = asked_queries(shelves, catalogue, queries, tastes, pages.user, rng)
        page, position, item = draw_slates(shelves, catalogue, queries, query_of_page, rng)
        user, query = pages.user[page], query_of_page[page]
        grade = grades(queries, catalogue, query, item)
        why = causes(catalogue, tastes, user, item, grade, population.click_readiness)
        p_ctr = examination(position) * _sigmoid(logit(CLICK, why))
        p_cvr = _sigmoid(logit(PURCHASE, why._replace(readiness=population.buy_readiness[user].astype(np.float64))))
        clicked = rng.random(len(page)) < p_ctr
        yield FashionLog(
            page=page,
            user=user,
            item=item,
            query=query,
            position=position,
            microseconds=(pages.seconds * 1e6).astype(np.int64)[page],
            why=why,
            p_ctr=p_ctr,
            p_cvr=p_cvr,
            clicked=clicked,
            converted=clicked & (rng.random(len(page)) < p_cvr),
            delay_microseconds=delay_microseconds(len(page), rng),
        )


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    chance: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logits))
    return chance


def _log_shards(world: FashionWorld) -> Iterator[Shard]:
    graded = np.empty(0, np.int64)  # sorted; query * num_items + item
    for day in range(len(world.visits)):
        for number, log in enumerate(logs_of_day(world, day)):
            impressions = _impressions_frame(world, log, day, number)
            yield Shard(Impressions, impressions)
            chances = {"p_ctr": log.p_ctr, "p_cvr": log.p_cvr, "p_ctcvr": log.p_ctr * log.p_cvr}
            yield Shard(TrueProbabilities, pl.DataFrame({"impression_id": impressions["impression_id"], **chances}))
            new = np.setdiff1d(log.query * len(world.catalogue) + log.item, graded)
            graded = np.union1d(graded, new)
            yield Shard(RelevanceGrades, _grades_frame(world, *np.divmod(new, len(world.catalogue))))


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


def _items_frame(world: FashionWorld) -> pl.DataFrame:
    """Products that are listed hours before the day on which they may first be shown."""
    seconds_before = world.rng(CATALOGUE, 1).integers(1, 12 * 3600, len(world.catalogue))
    listed = _time(world, world.catalogue.arrival_day, -seconds_before * np.int64(1_000_000))
    return world.catalogue.products.drop("jpeg").with_columns(event_timestamp=listed)


def _users_frame(world: FashionWorld) -> pl.DataFrame:
    microseconds = (second_of_day(world.population.arrival_quantile) * 1e6).astype(np.int64)
    arrived = _time(world, world.population.arrival_day, microseconds)
    return pl.DataFrame({"user_id": _user_ids(world)}).with_columns(event_timestamp=arrived)


def _user_ids(world: FashionWorld) -> pl.Series:
    return _ids("shopper-", world.config.num_users)


def _query_ids(world: FashionWorld) -> pl.Series:
    return _ids("query-", len(world.queries))


def _ids(prefix: str, number: int) -> pl.Series:
    return pl.select(prefix + pl.int_range(number).cast(pl.String).str.zfill(6)).to_series()


def _time(world: FashionWorld, day: int | NDArray[np.int32], microseconds: NDArray[np.int64]) -> pl.Series:
    """UTC microseconds of a moment of a day of the log."""
    midnight = int(world.config.first_midnight().timestamp()) * 1_000_000
    since_epoch = midnight + np.int64(86_400_000_000) * day + microseconds
    return pl.Series(since_epoch, dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))


def _impressions_frame(world: FashionWorld, log: FashionLog, day: int, shard: int) -> pl.DataFrame:
    """One row per entry of the log; ids say the day, the shard of the day and the number."""
    start = (day * 1_000 + shard) * 10_000_000
    conversion = _time(world, day, log.microseconds + log.delay_microseconds)
    return pl.DataFrame(
        {
            "number": start + np.arange(len(log.page)),
            "page": start + log.page,
            "user_id": _user_ids(world).gather(pl.Series(log.user)),
            "item_id": world.catalogue.products["item_id"].gather(pl.Series(log.item)),
            "query_id": _query_ids(world).gather(pl.Series(log.query)),
            "position": log.position,
            "event_timestamp": _time(world, day, log.microseconds),
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


def _grades_frame(world: FashionWorld, query: NDArray[np.int64], item: NDArray[np.int64]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "query_id": _query_ids(world).gather(pl.Series(query)),
            "item_id": world.catalogue.products["item_id"].gather(pl.Series(item)),
            "grade": grades(world.queries, world.catalogue, query, item).astype(np.float64),
        }
    )
