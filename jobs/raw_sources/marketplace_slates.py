"""What the simulated marketplace shows: the logging policy, which fills slates from several candidate sources.

It is a shop's policy before any learnt ranker: established items by popularity, items of a theme that it guesses (and
often guesses wrong), items that match the words of a query, and a share of items picked blindly, new ones above all.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.raw_sources.marketplace_catalogue import Catalogue
from jobs.raw_sources.marketplace_queries import Queries

SLATE_SIZE = 10
NUM_CANDIDATES = 16
"""Drawn per slate; the best ten that differ are shown."""
RAMP_DAYS = 21
"""Days until an item is as popular as it will be."""
NEW_DAYS, NEW_BOOST = 10, 3.0
"""Items so young are picked blindly so many times as often."""

SOURCES = ("popular", "blind", "theme", "kind", "category")
FEED_SHARES = (0.40, 0.20, 0.40, 0.0, 0.0)
SEARCH_SHARES = (0.08, 0.12, 0.15, 0.35, 0.30)
SOURCE_SCORES = (0.6, 0.0, 0.8, 1.4, 0.8)
"""How far up the slate the policy tends to put a source's candidates; noise of standard deviation 1 is added."""
SHARE_ANSWERED = 0.6
"""Searches for which the policy finds the item that has all that is asked for."""
ANSWER_SCORE = 1.8
SHARE_GUESSED = 0.65
"""Candidates by theme that are of the theme the user is after; the others are of a random one."""


@dataclass(frozen=True)
class Slates:
    """One entry per impression, slate by slate, top position first."""

    page: NDArray[np.int64]
    position: NDArray[np.int32]
    item: NDArray[np.int64]


class Assortment:
    """The items that may be shown on one day, ready to be drawn from by source.

    All sources lie in one cumulative weight array; a *section* is a slice of it: all items twice (popular, blind), then
    one section per theme, kind and category. A section without items falls back to a wider one.
    """

    def __init__(self, catalogue: Catalogue, num_themes: int, num_kinds: int, num_categories: int, day: int) -> None:
        age = day - catalogue.arrival_day
        on_sale = age >= 0
        established = np.where(on_sale, np.clip((age + 1) / RAMP_DAYS, 0, 1), 0)
        by_kind = np.argsort(catalogue.kind, kind="stable")  # also by theme: the kinds of a theme are neighbours
        by_category = np.argsort(catalogue.category, kind="stable")
        num_items = len(catalogue)
        everything = np.arange(num_items)
        mild = np.sqrt(catalogue.popularity) * on_sale
        weights = (
            catalogue.popularity * established,
            np.where(age < NEW_DAYS, NEW_BOOST, 1.0) * on_sale,
            mild[by_kind],
            mild[by_category],
        )
        self._items = np.concatenate([everything, everything, by_kind, by_category])
        self._reached = np.concatenate([[0.0], np.cumsum(np.concatenate(weights))])

        def sections(codes: NDArray[np.int16], number: int, offset: int) -> NDArray[np.int64]:
            first = offset + np.searchsorted(codes, np.arange(number + 1))
            return np.column_stack([first[:-1], first[1:]])

        bounds = np.concatenate(
            [
                [[0, num_items], [num_items, 2 * num_items]],
                sections(catalogue.theme[by_kind], num_themes, 2 * num_items),
                sections(catalogue.kind[by_kind], num_kinds, 2 * num_items),
                sections(catalogue.category[by_category], num_categories, 3 * num_items),
            ]
        )
        self._low, self._high = self._reached[bounds[:, 0]], self._reached[bounds[:, 1]]
        self.first_theme, self.first_kind = 2, 2 + num_themes
        self.first_category = self.first_kind + num_kinds
        self._resolved = np.arange(len(bounds))
        self._fall_back(slice(self.first_theme, self.first_kind), np.int64(0))
        self._fall_back(slice(self.first_category, None), np.int64(0))
        theme_of_kind = np.zeros(num_kinds, np.int64)
        theme_of_kind[catalogue.kind] = catalogue.theme
        self._fall_back(slice(self.first_kind, self.first_category), self._resolved[self.first_theme + theme_of_kind])

    def _fall_back(self, sections: slice, wider: NDArray[np.int64] | np.int64) -> None:
        is_empty = self._high[sections] <= self._low[sections]
        self._resolved[sections] = np.where(is_empty, wider, self._resolved[sections])

    def draw(self, section: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """One item for each entry of `section`, by weight."""
        section = self._resolved[section]
        low, high = self._low[section], self._high[section]
        # Rounding may reach the upper bound, which belongs to the next section.
        aim = np.minimum(low + rng.random(section.shape) * (high - low), np.nextafter(high, low))
        return self._items[np.searchsorted(self._reached, aim, side="right") - 1]


def draw_slates(
    assortment: Assortment,
    catalogue: Catalogue,
    queries: Queries,
    day: int,
    query: NDArray[np.int64],
    themes: NDArray[np.int16],
    strength: NDArray[np.float32],
    rng: np.random.Generator,
) -> Slates:
    """Fill one slate per page.

    Args:
        query: (slates,) code of the query, negative in a feed.
        themes: (slates, pursuits) what the user is after.
        strength: (slates, pursuits) how much.
    """
    num_slates, is_search = len(query), query >= 0
    shape = (num_slates, NUM_CANDIDATES)
    uniform = rng.random(shape)
    until = np.where(is_search[:, None], np.cumsum(SEARCH_SHARES), np.cumsum(FEED_SHARES))
    source = np.minimum((uniform[:, :, None] >= until[:, None, :-1]).sum(axis=2), len(SOURCES) - 1)

    guess = themes[np.arange(num_slates)[:, None], drawn_pursuit(strength, NUM_CANDIDATES, rng)]
    num_themes = assortment.first_kind - assortment.first_theme
    guess = np.where(rng.random(shape) < SHARE_GUESSED, guess, rng.integers(0, num_themes, shape))
    # A query that names a kind also tells the theme; one that names a shelf has no kind.
    kind, query_theme, category = queries.kind[query], queries.theme[query], queries.category[query]
    guess = np.where((is_search & (kind >= 0))[:, None], query_theme[:, None], guess)
    by_category = assortment.first_category + category.astype(np.int64)
    by_kind = np.where(kind >= 0, assortment.first_kind + kind, by_category)
    section = np.select(
        [source == 0, source == 1, source == 2, source == 3],
        [np.int64(0), np.int64(1), assortment.first_theme + guess, by_kind[:, None]],
        by_category[:, None],
    )
    item = assortment.draw(section, rng)
    score = np.array(SOURCE_SCORES)[source] + 0.25 * catalogue.quality[item] + rng.normal(size=shape)

    answer = queries.item[query]
    found = is_search & (kind >= 0) & (rng.random(num_slates) < SHARE_ANSWERED)
    found &= catalogue.arrival_day[answer] <= day
    item[found, 0] = answer[found]
    score[found, 0] += ANSWER_SCORE - np.array(SOURCE_SCORES)[source[found, 0]]

    score[_repeats(item)] = -np.inf
    best = np.argsort(-score, axis=1, kind="stable")[:, :SLATE_SIZE]
    is_shown = np.isfinite(np.take_along_axis(score, best, axis=1))
    page, position = np.nonzero(is_shown)
    return Slates(page, position.astype(np.int32), np.take_along_axis(item, best, axis=1)[is_shown])


def drawn_pursuit(strength: NDArray[np.float32], number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(rows, number) positions of pursuits, drawn in proportion to their strength."""
    share = np.cumsum(strength, axis=1)
    aim = rng.random((len(strength), number)) * share[:, -1:]
    return (aim[:, :, None] >= share[:, None, :-1]).sum(axis=2)


def _repeats(item: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where an item was drawn before in the same row."""
    order = np.argsort(item, axis=1, kind="stable")
    in_order = np.take_along_axis(item, order, axis=1)
    repeats = np.zeros(item.shape, bool)
    np.put_along_axis(repeats, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    return repeats
