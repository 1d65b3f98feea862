"""The queries of the simulated marketplace, and the rule that grades an item for a query."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from jobs.raw_sources.marketplace_catalogue import NO_VALUE, Catalogue
from jobs.raw_sources.marketplace_texts import attribute_words, spoken
from jobs.raw_sources.marketplace_vocabulary import Vocabulary

QUERIES_PER_ITEM = 2
"""Drafts per item; those with the same text are one query."""
ASKS_FOR = ("nothing", "brand", "colour", "size", "material")
"""What a query may ask for beyond the kind of product, at most one of them."""
SHARES = (0.4, 0.2, 0.15, 0.1, 0.15)


@dataclass(frozen=True)
class Queries:
    """One entry per distinct query; NO_VALUE where it does not ask.

    Those that name a kind come first, by theme ("merino hiking socks", "Tarnfell dome tent"); the last ones name no
    more than a shelf of the store ("socks").
    """

    text: pl.Series
    theme: NDArray[np.int16]
    category: NDArray[np.int16]
    kind: NDArray[np.int16]
    brand: NDArray[np.int16]
    colour: NDArray[np.int8]
    size: NDArray[np.int8]
    material: NDArray[np.int8]
    item: NDArray[np.int64]  # an item that has all that is asked for
    weight: NDArray[np.float64]  # how often it is asked, within its theme
    first_of_theme: NDArray[np.int64]  # (themes + 1,) where each theme's queries begin; its last entry: the shelves

    def __len__(self) -> int:
        return len(self.text)


def draw_queries(catalogue: Catalogue, words: Vocabulary, rng: np.random.Generator) -> Queries:
    """Draw queries that the catalogue can answer: each is drafted from what one item has."""
    item = np.tile(np.arange(len(catalogue)), QUERIES_PER_ITEM)
    asks_for = rng.choice(len(ASKS_FOR), size=len(item), p=SHARES)
    kinds = words.kinds()
    drafts = pl.DataFrame(
        {
            "item": item,
            "asks_for": asks_for,
            "theme": catalogue.theme[item],
            "name": spoken([kind.name for kind in kinds], catalogue.kind[item]),
            "alias": spoken([kind.alias for kind in kinds], catalogue.kind[item]),
            "uses_alias": rng.random(len(item)) < 0.5,
            "brand": spoken(words.all_brands(), catalogue.brand[item]),
            **{name: values.gather(pl.Series(item)) for name, values in attribute_words(catalogue, words).items()},
            "weight": np.exp(rng.normal(size=len(item))),
        }
    )
    name = pl.when("uses_alias").then("alias").otherwise("name")
    asked = pl.coalesce(
        pl.when(pl.col("asks_for") == number).then(word) for number, word in enumerate(ASKS_FOR) if number
    )
    is_size = pl.col("asks_for") == ASKS_FOR.index("size")
    kept = (
        drafts.with_columns(asked=asked)
        .with_columns(asks_for=pl.when(pl.col("asked").is_null()).then(0).otherwise("asks_for"))
        .with_columns(
            text=pl.when(pl.col("asked").is_null())
            .then(name)
            .when(is_size)
            .then(pl.format("{} {}", name, "asked"))
            .otherwise(pl.format("{} {}", pl.col("asked").str.to_lowercase(), name))
        )
        .unique("text", keep="first", maintain_order=True)
        .sort("theme", maintain_order=True)
    )
    item, asks_for, theme = kept["item"].to_numpy(), kept["asks_for"].to_numpy(), kept["theme"].to_numpy()
    num_shelves = len(words.categories)

    def asked_code(name: str, codes: NDArray[np.integer]) -> NDArray[np.integer]:
        code = np.where(asks_for == ASKS_FOR.index(name), codes[item], NO_VALUE).astype(codes.dtype)
        return np.append(code, np.full(num_shelves, NO_VALUE, codes.dtype))

    # The text is the query: two that ask for different things must read differently.
    shelves = [path.split(" > ")[1].lower() for path in words.categories]
    text = pl.concat([kept["text"], pl.Series(shelves)]).rename("query_text")
    assert text.is_unique().all(), "the name of a shelf is also the name of a kind"
    none = np.full(num_shelves, NO_VALUE)
    return Queries(
        text=text,
        theme=np.append(theme, none).astype(np.int16),
        category=np.append(catalogue.category[item], np.arange(num_shelves)).astype(np.int16),
        kind=np.append(catalogue.kind[item], none).astype(np.int16),
        brand=asked_code("brand", catalogue.brand).astype(np.int16),
        colour=asked_code("colour", catalogue.colour).astype(np.int8),
        size=asked_code("size", catalogue.size).astype(np.int8),
        material=asked_code("material", catalogue.material).astype(np.int8),
        item=np.append(item, none),
        # The plain name of a kind is asked for more often than any of its variants.
        weight=np.append(kept["weight"].to_numpy() * np.where(asks_for == 0, 5.0, 1.0), np.ones(num_shelves)),
        first_of_theme=np.searchsorted(theme, np.arange(len(words.themes) + 1)),
    )


def query_ids(num_queries: int) -> pl.Series:
    """Ids in the order of `Queries`."""
    return pl.select("query-" + pl.int_range(num_queries).cast(pl.String).str.zfill(6)).to_series()


def relevance_grades(
    queries: Queries, catalogue: Catalogue, query: NDArray[np.int64], item: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Grade of each (query, item) pair.

        3   the category matches, and so does all else that the query asks for: kind, brand, colour, size, material
        2   the category matches, but not all else
        1   another category, but the first or second theme of the item is that of the query
        0   none of these

    A query that names only a shelf asks for nothing else and has no theme: its grades are 3 and 0.
    """
    category = queries.category[query] == catalogue.category[item]
    theme = queries.theme[query]
    same_theme = (theme >= 0) & ((theme == catalogue.theme[item]) | (theme == catalogue.second_theme[item]))
    all_else = np.ones(len(query), bool)
    for name in ("kind", "brand", "colour", "size", "material"):
        asked = getattr(queries, name)[query]
        all_else &= (asked == NO_VALUE) | (asked == getattr(catalogue, name)[item])
    return np.where(category, np.where(all_else, 3, 2), np.where(same_theme, 1, 0)).astype(np.int8)
