"""The table `items` of the simulated marketplace: what a ranker can read of each item."""

import datetime as dt
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from jobs.raw_sources.marketplace_catalogue import NO_VALUE, Catalogue, option_codes
from jobs.raw_sources.marketplace_vocabulary import Vocabulary, title_case

SHARE_OF_SECOND_VOICE = 0.5
"""An item that serves two themes takes half of its adjectives and occasions from the second one."""
SHARE_OF_PLAIN_LOOKS = 0.45
"""Adjectives that say nothing: with them, only the name of the kind tells the theme."""

TITLES = (
    "{brand} {look} {name}",
    "{brand} {name} {occasion}",
    "{look} {name}, {variant}",
    "{brand} {look} {name} with {feature}",
    "{name} by {brand}, {variant}",
    "{look} {name} {occasion}, {variant}",
    "{brand} {name} with {feature}, {variant}",
    "{brand} {look} {name} {occasion} - {variant}",
)
"""`variant` is the colour, or the material, or the size, whichever the item has first."""


def item_ids(num_items: int) -> pl.Series:
    """Ids in order of arrival; they say nothing else about the item."""
    return pl.select("item-" + pl.int_range(num_items).cast(pl.String).str.zfill(6)).to_series()


def spoken(words: Sequence[str], codes: NDArray[np.integer]) -> pl.Series:
    """`words[code]` for each code, null for NO_VALUE."""
    index = pl.Series(codes, dtype=pl.Int64)
    return pl.Series(words, dtype=pl.String).gather(index.set(index == NO_VALUE, None))


def spoken_of(groups: NDArray[np.int16], options: Sequence[Sequence[str]], codes: NDArray[np.int8]) -> pl.Series:
    """`options[group][code]` for each item, null for NO_VALUE."""
    starts = np.cumsum([0, *(len(each) for each in options)])
    return spoken([word for each in options for word in each], np.where(codes < 0, NO_VALUE, starts[groups] + codes))


def attribute_words(catalogue: Catalogue, words: Vocabulary) -> dict[str, pl.Series]:
    """Colour, size and material of each item, null where it has none."""
    categories = list(words.categories.values())
    return {
        "colour": spoken(words.colours, catalogue.colour),
        "size": spoken_of(catalogue.category, [each.sizes for each in categories], catalogue.size),
        "material": spoken_of(catalogue.category, [each.materials for each in categories], catalogue.material),
    }


def items_frame(
    catalogue: Catalogue, words: Vocabulary, first_day: dt.datetime, rng: np.random.Generator
) -> pl.DataFrame:
    """The table `items`, one row per item of the catalogue, in its order.

    Titles follow one of eight patterns; attributes are "name: value" pairs; keywords begin with both names of the kind.
    An item is listed in the twelve hours before the day on which it is first shown.
    """
    themes, kinds, num_items = list(words.themes.values()), words.kinds(), len(catalogue)
    second_voice = (catalogue.second_theme >= 0) & (rng.random(num_items) < SHARE_OF_SECOND_VOICE)
    voice = np.where(second_voice, catalogue.second_theme, catalogue.theme)
    looks, occasions = [each.looks for each in themes], [each.occasions for each in themes]
    features = [each.features for each in words.categories.values()]
    uses_alias = rng.random(num_items) < 0.4
    parts = pl.DataFrame(
        {
            "item_id": item_ids(num_items),
            "category": spoken(list(words.categories), catalogue.category),
            "brand": spoken(words.all_brands(), catalogue.brand),
            "price_cents": catalogue.price_cents,
            **attribute_words(catalogue, words),
            "kind": spoken([each.name for each in kinds], catalogue.kind),
            "alias": spoken([each.alias for each in kinds], catalogue.kind),
            "uses_alias": uses_alias,
            "theme_look": spoken_of(voice, looks, option_codes(voice, [len(each) for each in looks], 0.0, rng)),
            "plain_look": spoken(words.plain_looks, rng.integers(0, len(words.plain_looks), num_items)),
            "is_plain": rng.random(num_items) < SHARE_OF_PLAIN_LOOKS,
            "occasion": spoken_of(voice, occasions, option_codes(voice, [len(each) for each in occasions], 0.0, rng)),
            "feature": spoken_of(
                catalogue.category,
                features,
                option_codes(catalogue.category, [len(each) for each in features], 0.0, rng),
            ),
            "pattern": rng.integers(0, len(TITLES), num_items),
            "has_keywords": rng.random(num_items) < 0.8,
            "has_description": rng.random(num_items) < 0.6,
            "arrival_day": catalogue.arrival_day,
            "seconds_before": rng.integers(1, 12 * 3600, num_items),
        }
    )
    capitals = {phrase: title_case(phrase) for phrase in _phrases(words)}
    name = pl.when("uses_alias").then("alias").otherwise("kind")
    return (
        parts.with_columns(
            name=name,
            look=pl.when("is_plain").then("plain_look").otherwise("theme_look"),
            variant=pl.coalesce("colour", "material", "size", pl.lit("one size")),
        )
        .with_columns(pl.col("name", "look").replace_strict(capitals))
        .select(
            "item_id",
            title=pl.coalesce(
                pl.when(pl.col("pattern") == number).then(_filled(pattern)) for number, pattern in enumerate(TITLES)
            ),
            category="category",
            brand="brand",
            price_cents="price_cents",
            keywords=pl.when("has_keywords").then(pl.concat_str("kind", "alias", "theme_look", separator=", ")),
            attributes=pl.concat_str(
                *(pl.lit(f"{column}: ") + pl.col(column) for column in ("colour", "size", "material")),
                separator="; ",
                ignore_nulls=True,
            ).replace("", None),
            description=pl.when("has_description").then(
                _filled("{name} {occasion}, from {brand}. Comes with {feature}.")
            ),
            event_timestamp=pl.lit(first_day)
            + pl.duration(days=pl.col("arrival_day"), time_unit="us")
            - pl.duration(seconds=pl.col("seconds_before"), time_unit="us"),
        )
    )


def _phrases(words: Vocabulary) -> set[str]:
    """Everything that a title writes with capitals."""
    names = {name for kind in words.kinds() for name in (kind.name, kind.alias)}
    return names | set(words.plain_looks) | {look for theme in words.themes.values() for look in theme.looks}


def _filled(pattern: str) -> pl.Expr:
    """The pattern with its {columns} filled in."""
    columns = [part.split("}")[0] for part in pattern.split("{")[1:]]
    for column in columns:
        pattern = pattern.replace("{" + column + "}", "{}")
    return pl.format(pattern, *columns)
