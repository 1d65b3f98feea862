"""The simulated shoppers of `fashion_traffic`: what they like, ask for, are shown, click and buy. The known answer.

    p_ctr   = examination(position) * sigmoid(click weights . causes)
    p_cvr   = sigmoid(purchase weights . causes)                       given the click
    p_ctcvr = p_ctr * p_cvr

Causes that a title tells: grade of the product for the query (but for a colour that it does not name), the shopper's
article types, gender, and a taste in words. Causes that only the picture tells: a taste in looks. Causes that counts
tell: quality, and how much a shopper clicks at all.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from jobs.raw_sources.fashion_catalogue import GENDERS, NO_GENDER, NUM_LOOKS, NUM_WORD_TASTES, FashionCatalogue
from jobs.raw_sources.marketplace_slates import NUM_CANDIDATES, SLATE_SIZE, drawn_pursuit

GENDER_SHARES = (0.42, 0.46, 0.05, 0.07)
"""Of shoppers: for whom they buy (men, women, boys, girls); unisex products suit all."""
NUM_TYPES = 4
"""Article types that a shopper comes for."""

FORMS = ("type", "shelf", "gender type", "colour type", "colour gender type")
FORM_SHARES = (0.30, 0.10, 0.25, 0.20, 0.15)
NOT_ASKED = -1

CANDIDATES = ("type", "shelf", "all")
CANDIDATE_SHARES = (0.55, 0.25, 0.20)
CANDIDATE_SCORES = (1.2, 0.5, 0.0)
"""How far up the slate the shop puts them, with noise of standard deviation 1."""
ASKED_SCORE = 0.6
"""More for each of gender and colour that is as asked."""


class Weights(NamedTuple):
    """Of the causes in a logit."""

    bias: float
    relevance: float  # grade of the product for the query, 0..1
    type: float  # how much the shopper is after its article type, 0..1
    gender: float  # made for whom the shopper buys, 0 or 1
    words: float  # what the title says; standard normal
    looks: float  # what only the picture shows; standard normal
    quality: float
    readiness: float  # of the shopper, whatever the product


CLICK = Weights(bias=-5.2, relevance=2.2, type=0.7, gender=0.9, words=0.7, looks=1.0, quality=0.4, readiness=0.4)
PURCHASE = Weights(bias=-3.8, relevance=0.8, type=0.3, gender=0.6, words=0.3, looks=0.5, quality=0.5, readiness=0.4)


@dataclass(frozen=True)
class Tastes:
    """One entry per shopper."""

    gender: NDArray[np.int8]  # code of GENDERS
    types: NDArray[np.int16]  # (shoppers, NUM_TYPES) codes of article types
    strength: NDArray[np.float32]  # (shoppers, NUM_TYPES) 1 for the first, less for the others
    words: NDArray[np.float32]  # (shoppers, NUM_WORD_TASTES) unit vectors
    looks: NDArray[np.float32]  # (shoppers, NUM_LOOKS) unit vectors


@dataclass(frozen=True)
class FashionQueries:
    """One entry per distinct query; NOT_ASKED where it does not ask."""

    text: list[str]
    type: NDArray[np.int16]
    shelf: NDArray[np.int16]
    gender: NDArray[np.int8]
    colour: NDArray[np.int16]
    of_item: NDArray[np.int32]  # (items, FORMS) the query by which one looks for an item

    def __len__(self) -> int:
        return len(self.text)


class Causes(NamedTuple):
    """One entry per impression, in the order of `Weights` after the bias."""

    relevance: NDArray[np.float64]
    type: NDArray[np.float64]
    gender: NDArray[np.float64]
    words: NDArray[np.float64]
    looks: NDArray[np.float64]
    quality: NDArray[np.float64]
    readiness: NDArray[np.float64]


def draw_tastes(catalogue: FashionCatalogue, num_users: int, rng: np.random.Generator) -> Tastes:
    """Draw what shoppers like. Types that have many products for a gender are liked by more of its shoppers."""
    gender = rng.choice(len(GENDER_SHARES), size=num_users, p=GENDER_SHARES).astype(np.int8)
    suits = suits_gender(np.arange(len(GENDER_SHARES))[:, None], catalogue.gender[None, :])
    num_products = np.zeros((len(GENDER_SHARES), len(catalogue.type_names)))
    for code in range(len(GENDER_SHARES)):
        num_products[code] = np.bincount(catalogue.type[suits[code]], minlength=num_products.shape[1])
    # The largest of weight + Gumbel noise are a draw without replacement.
    keys = np.log(np.sqrt(num_products)[gender] + 1e-9) + rng.gumbel(size=(num_users, num_products.shape[1]))
    num_types = min(NUM_TYPES, num_products.shape[1])
    types = np.argsort(-keys, axis=1, kind="stable")[:, :num_types]
    strength = -np.sort(-rng.gamma(1.5, size=types.shape), axis=1)
    words, looks = rng.normal(size=(num_users, NUM_WORD_TASTES)), rng.normal(size=(num_users, NUM_LOOKS))
    return Tastes(
        gender=gender,
        types=types.astype(np.int16),
        strength=(strength / strength[:, :1]).astype(np.float32),
        words=(words / np.linalg.norm(words, axis=1, keepdims=True)).astype(np.float32),
        looks=(looks / np.linalg.norm(looks, axis=1, keepdims=True)).astype(np.float32),
    )


def suits_gender(wanted: NDArray[np.integer], found: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether a product that names `found` suits who buys for `wanted`: it, unisex, or none."""
    return (wanted == found) | (found == GENDERS.index("unisex")) | (found == NO_GENDER)


def draft_queries(catalogue: FashionCatalogue) -> FashionQueries:
    """Every query by which one may look for a product; equal texts are one query, that of the first form."""
    kind = pl.Series(catalogue.type_names)[catalogue.type].str.to_lowercase()
    shelf = pl.Series(catalogue.shelf_names)[catalogue.shelf].str.to_lowercase()
    colour = pl.Series(catalogue.colour_names)[catalogue.colour].str.to_lowercase()
    gender = pl.Series(["", *GENDERS])[catalogue.gender + 1]
    items = pl.DataFrame({"item": np.arange(len(catalogue)), "type": kind, "shelf": shelf})
    items = items.with_columns(gender=gender, colour=colour)
    drafts = pl.concat(
        items.select(
            "item",
            form=pl.lit(number),
            text=pl.concat_str(form.split(), separator=" ").str.replace_all(r" +", " ").str.strip_chars(),
            has_type=pl.lit("type" in form),
            has_gender=pl.lit("gender" in form),
            has_colour=pl.lit("colour" in form),
        )
        for number, form in enumerate(FORMS)
    )
    distinct = drafts.unique("text", keep="first", maintain_order=True).with_row_index("query")
    of_item = drafts.join(distinct.select("text", "query"), on="text", maintain_order="left")["query"].to_numpy()
    item = distinct["item"].to_numpy()

    def asked(flag: str, codes: NDArray[np.integer]) -> NDArray[np.integer]:
        return np.where(distinct[flag].to_numpy(), codes[item], NOT_ASKED).astype(codes.dtype)

    return FashionQueries(
        text=distinct["text"].to_list(),
        type=asked("has_type", catalogue.type).astype(np.int16),
        shelf=catalogue.shelf[item],
        gender=asked("has_gender", catalogue.gender).astype(np.int8),
        colour=asked("has_colour", catalogue.colour).astype(np.int16),
        of_item=of_item.reshape(len(FORMS), len(catalogue)).T.astype(np.int32),
    )


def grades(
    queries: FashionQueries, catalogue: FashionCatalogue, query: NDArray[np.int64], item: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Grade of each (query, item) pair; a colour is judged by the picture, as people do.

    3   the article type (or, where only a shelf is named, the shelf) and all else that is asked for: gender, colour
    2   the article type, but not all else      1   the shelf only      0   none of these
    """
    kind, gender, colour = queries.type[query], queries.gender[query], queries.colour[query]
    same_shelf = queries.shelf[query] == catalogue.shelf[item]
    same_kind = np.where(kind == NOT_ASKED, same_shelf, kind == catalogue.type[item])
    all_else = (gender == NOT_ASKED) | suits_gender(gender, catalogue.gender[item])
    all_else &= (colour == NOT_ASKED) | (colour == catalogue.colour[item])
    return np.where(same_kind, np.where(all_else, 3, 2), same_shelf).astype(np.int8)


class Shelves:
    """The products on sale on one day, ready to be drawn from by article type, by shelf or from all, by popularity."""

    def __init__(self, catalogue: FashionCatalogue, day: int) -> None:
        weight = catalogue.popularity * (catalogue.arrival_day <= day)
        by_type, by_shelf = (np.argsort(codes, kind="stable") for codes in (catalogue.type, catalogue.shelf))
        self._items = np.concatenate([by_type, by_shelf])
        self._reached = np.concatenate([[0.0], np.cumsum(np.concatenate([weight[by_type], weight[by_shelf]]))])
        of_type = np.searchsorted(catalogue.type[by_type], np.arange(len(catalogue.type_names) + 1))
        of_shelf = np.searchsorted(catalogue.shelf[by_shelf], np.arange(len(catalogue.shelf_names) + 1))
        self._bounds = [
            np.column_stack([of_type[:-1], of_type[1:]]),
            np.column_stack([of_shelf[:-1], of_shelf[1:]]) + len(catalogue),
            np.array([[0, len(catalogue)]]),
        ]

    def draw(self, where: str, code: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int64]:
        """One product for each code of an article type ("type") or of a shelf; of all products where it has none."""
        bounds = self._bounds[CANDIDATES.index(where)][code if where != "all" else np.zeros_like(code)]
        low, high = self._reached[bounds[..., 0]], self._reached[bounds[..., 1]]
        is_empty = high <= low
        low, high = np.where(is_empty, 0.0, low), np.where(is_empty, self._reached[len(self._items) // 2], high)
        # Rounding may reach the upper bound, which belongs to the next section.
        aim = np.minimum(low + rng.random(code.shape) * (high - low), np.nextafter(high, low))
        return self._items[np.searchsorted(self._reached, aim, side="right") - 1]


def asked_queries(
    shelves: Shelves,
    catalogue: FashionCatalogue,
    queries: FashionQueries,
    tastes: Tastes,
    user: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """(pages,) the query of each page: for a product of a type that the shopper is after, of their gender if any is."""
    pursuit = drawn_pursuit(tastes.strength[user], 1, rng)[:, 0]
    kind = tastes.types[user, pursuit]
    tries = shelves.draw("type", np.repeat(kind[:, None], 4, axis=1), rng)
    suits = suits_gender(tastes.gender[user][:, None], catalogue.gender[tries])
    aim = tries[np.arange(len(user)), suits.argmax(axis=1)]
    form = rng.choice(len(FORMS), size=len(user), p=FORM_SHARES)
    return queries.of_item[aim, form].astype(np.int64)


def draw_slates(
    shelves: Shelves,
    catalogue: FashionCatalogue,
    queries: FashionQueries,
    query: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Fill one slate per page: page, position and item of each impression, top position first."""
    shape = (len(query), NUM_CANDIDATES)
    source = rng.choice(len(CANDIDATES), size=shape, p=CANDIDATE_SHARES)
    kind, shelf = queries.type[query], queries.shelf[query]
    item = shelves.draw("all", np.zeros(shape, np.int64), rng)
    by_type, by_shelf = (np.repeat(codes[:, None], NUM_CANDIDATES, axis=1) for codes in (kind, shelf))
    item = np.where(source == 1, shelves.draw("shelf", by_shelf, rng), item)
    names_type = (source == 0) & (by_type != NOT_ASKED)
    item = np.where(names_type, shelves.draw("type", np.maximum(by_type, 0), rng), item)
    item = np.where((source == 0) & ~names_type, shelves.draw("shelf", by_shelf, rng), item)

    gender, colour = queries.gender[query][:, None], queries.colour[query][:, None]
    asked = ((gender != NOT_ASKED) & (gender == catalogue.gender[item])).astype(np.float64)
    asked += (colour != NOT_ASKED) & (colour == catalogue.colour[item])
    score = np.array(CANDIDATE_SCORES)[source] + ASKED_SCORE * asked + 0.25 * catalogue.quality[item]
    score += rng.normal(size=shape)
    in_order = np.argsort(item, axis=1, kind="stable")
    sorted_items = np.take_along_axis(item, in_order, axis=1)
    repeats = np.zeros(shape, bool)
    np.put_along_axis(repeats, in_order[:, 1:], sorted_items[:, 1:] == sorted_items[:, :-1], axis=1)
    score[repeats] = -np.inf
    best = np.argsort(-score, axis=1, kind="stable")[:, :SLATE_SIZE]
    is_shown = np.isfinite(np.take_along_axis(score, best, axis=1))
    page, position = np.nonzero(is_shown)
    return page, position.astype(np.int32), np.take_along_axis(item, best, axis=1)[is_shown]


def causes(
    catalogue: FashionCatalogue,
    tastes: Tastes,
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    grade: NDArray[np.int8],
    readiness: NDArray[np.float32],
) -> Causes:
    """What makes each shopper click or buy; all of (impressions,)."""
    is_type = tastes.types[user] == catalogue.type[item][:, None]
    return Causes(
        relevance=grade / 3.0,
        type=(tastes.strength[user] * is_type).sum(axis=1, dtype=np.float64),
        gender=suits_gender(tastes.gender[user], catalogue.gender[item]).astype(np.float64),
        words=np.einsum("nd,nd->n", tastes.words[user], catalogue.words[item], dtype=np.float64),
        looks=np.einsum("nd,nd->n", tastes.looks[user], catalogue.looks[item], dtype=np.float64),
        quality=catalogue.quality[item].astype(np.float64),
        readiness=readiness[user].astype(np.float64),
    )


def logit(weights: Weights, of: Causes) -> NDArray[np.float64]:
    """Of clicking, were it looked at; or of buying once clicked."""
    total: NDArray[np.float64] = np.full(len(of.relevance), weights.bias)
    for weight, cause in zip(weights[1:], of, strict=True):
        total += weight * cause
    return total
