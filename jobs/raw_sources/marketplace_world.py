"""The simulated marketplace as a whole: drawn once from a seed, then lived day by day, shard by shard."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.raw_sources.marketplace_catalogue import Catalogue, draw_catalogue
from jobs.raw_sources.marketplace_clicks import causes, click_probability, delay_microseconds, purchase_probability
from jobs.raw_sources.marketplace_queries import Queries, draw_queries, relevance_grades
from jobs.raw_sources.marketplace_slates import SLATE_SIZE, Assortment, draw_slates, drawn_pursuit
from jobs.raw_sources.marketplace_traffic import MEAN_PAGES, pages_of_shard, returning_visits
from jobs.raw_sources.marketplace_users import Population, draw_population, pursued_themes
from jobs.raw_sources.marketplace_vocabulary import Vocabulary, vocabulary

ROWS_PER_SHARD = 400_000
"""Aimed at; the number of pages of a visit is random, so a shard comes out a per cent larger or smaller."""
SHARE_OF_SEARCHES = 0.3
"""Pages that answer a query; the others are feeds."""
SHARE_OF_SHELF_QUERIES = 0.1
"""Searches that name only a shelf of the store."""
NO_QUERY = -1


class Dimensions(NamedTuple):
    """How large a world is."""

    num_users: int
    num_items: int
    num_days: int
    num_impressions: int


class Stream(NamedTuple):
    """First number of the key of each random stream; the second is the day, the third the shard of the day."""

    catalogue: int = 0
    users: int = 1
    queries: int = 2
    themes: int = 3
    days: int = 4
    texts: int = 5
    judges: int = 6


STREAM = Stream()


@dataclass(frozen=True)
class World:
    """Everything that lasts longer than a page. The hidden truth is in it."""

    seed: int
    words: Vocabulary
    catalogue: Catalogue
    population: Population
    queries: Queries
    theme_shares: NDArray[np.float64]  # (themes,) of the users' pursuits
    visits: NDArray[np.int64]  # (days,) of users who came before

    def rng(self, *key: int) -> np.random.Generator:
        """The random stream of that key."""
        return _rng(self.seed, *key)


@dataclass(frozen=True)
class Log:
    """One entry per impression, in order of time. Codes are positions in the world's population, catalogue, queries."""

    page: NDArray[np.int64]  # number of the slate within the shard
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    query: NDArray[np.int64]  # NO_QUERY in a feed
    grade: NDArray[np.int8]  # of the item for the query, -1 in a feed
    position: NDArray[np.int32]
    microseconds: NDArray[np.int64]  # since midnight of the day
    p_ctr: NDArray[np.float64]
    p_cvr: NDArray[np.float64]
    clicked: NDArray[np.bool_]
    converted: NDArray[np.bool_]
    delay_microseconds: NDArray[np.int64]  # to the conversion; without meaning where there is none


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_world(dimensions: Dimensions, first_weekday: int, seed: int) -> World:
    """Draw all that the days have in common.

    Raises:
        ValueError: there are too few impressions for so many users.
    """
    words = vocabulary()
    catalogue = draw_catalogue(dimensions.num_items, dimensions.num_days, words, _rng(seed, STREAM.catalogue))
    population = draw_population(dimensions.num_users, dimensions.num_days, _rng(seed, STREAM.users))
    num_pages = dimensions.num_impressions / SLATE_SIZE
    return World(
        seed=seed,
        words=words,
        catalogue=catalogue,
        population=population,
        queries=draw_queries(catalogue, words, _rng(seed, STREAM.queries)),
        theme_shares=_rng(seed, STREAM.themes).dirichlet(np.full(len(words.themes), 8.0)),
        visits=returning_visits(population, dimensions.num_days, first_weekday, num_pages),
    )


def shards_of_day(world: World, day: int) -> Iterator[Log]:
    """The day's log. It depends on no other day; each shard has a random stream of its own."""
    population, catalogue, words = world.population, world.catalogue, world.words
    known, until = np.searchsorted(population.arrival_day, (day, day + 1), side="left")
    expected_rows = (world.visits[day] + until - known) * MEAN_PAGES * SLATE_SIZE
    num_shards = max(1, int(np.ceil(expected_rows / ROWS_PER_SHARD)))
    assortment = Assortment(catalogue, len(words.themes), len(words.kinds()), len(words.categories), day)
    for shard in range(num_shards):
        rng = world.rng(STREAM.days, day, shard)
        num_returning = world.visits[day] * (shard + 1) // num_shards - world.visits[day] * shard // num_shards
        pages = pages_of_shard(population, day, shard, num_shards, num_returning, rng)
        themes = pursued_themes(population, pages.user, day, world.theme_shares, world.seed)
        strength = population.strength[pages.user]
        query = _asked_queries(world, themes, strength, rng)
        slates = draw_slates(assortment, catalogue, world.queries, day, query, themes, strength, rng)
        page, item = slates.page, slates.item
        user, page_query = pages.user[page], query[page]
        grade = np.full(len(page), -1, np.int8)
        is_search = page_query != NO_QUERY
        grade[is_search] = relevance_grades(world.queries, catalogue, page_query[is_search], item[is_search])
        why = causes(catalogue, population, user, item, themes[page], grade)
        p_ctr, p_cvr = click_probability(why, slates.position), purchase_probability(why)
        clicked = rng.random(len(page)) < p_ctr
        yield Log(
            page=page,
            user=user,
            item=item,
            query=page_query,
            grade=grade,
            position=slates.position,
            microseconds=(pages.seconds * 1e6).astype(np.int64)[page],
            p_ctr=p_ctr,
            p_cvr=p_cvr,
            clicked=clicked,
            converted=clicked & (rng.random(len(page)) < p_cvr),
            delay_microseconds=delay_microseconds(len(page), rng),
        )


def _asked_queries(
    world: World, themes: NDArray[np.int16], strength: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.int64]:
    """(pages,) what each page was asked for: a query of a theme that the user is after, or NO_QUERY."""
    queries, num_pages = world.queries, len(themes)
    theme = themes[np.arange(num_pages), drawn_pursuit(strength, 1, rng)[:, 0]]
    first, last = queries.first_of_theme[theme], queries.first_of_theme[theme + 1]
    reached = np.concatenate([[0.0], np.cumsum(queries.weight)])
    aim = reached[first] + rng.random(num_pages) * (reached[last] - reached[first])
    query = np.clip(np.searchsorted(reached, aim, side="right") - 1, first, last - 1)
    shelf = queries.first_of_theme[-1] + queries.category[query]
    query = np.where(rng.random(num_pages) < SHARE_OF_SHELF_QUERIES, shelf, query)
    return np.where(rng.random(num_pages) < SHARE_OF_SEARCHES, query, NO_QUERY)
