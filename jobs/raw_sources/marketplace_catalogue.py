"""The items of the simulated marketplace: what they are, what they cost and since when they are sold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.raw_sources.marketplace_vocabulary import Vocabulary

NUM_BRAND_STYLES = 5
"""Brands come in styles (thrifty, sporty, luxurious, ...) and a user leans to one: an ID ranker can learn it."""

SHARE_AT_START = 0.6
"""Items sold before the log begins; the others arrive evenly over its days."""
NO_VALUE = -1
"""Code of an attribute that an item does not have."""


@dataclass(frozen=True)
class Catalogue:
    """One entry per item, in order of arrival. A ranker sees of it what `marketplace_texts` writes, and no more.

    Codes are positions in the vocabulary.
    """

    kind: NDArray[np.int16]
    theme: NDArray[np.int16]
    category: NDArray[np.int16]
    second_theme: NDArray[np.int16]  # another theme that the item serves, NO_VALUE for most
    second_weight: NDArray[np.float32]  # how well, against 1 for the first theme
    brand: NDArray[np.int16]
    brand_style: NDArray[np.int8]
    colour: NDArray[np.int8]
    size: NDArray[np.int8]
    material: NDArray[np.int8]
    price_cents: NDArray[np.int64]
    price_level: NDArray[np.float32]  # log price against its kind, in standard deviations
    quality: NDArray[np.float32]  # standard normal; a third of its variance is the brand's
    popularity: NDArray[np.float64]  # how often the shop shows it once established; heavy tail
    arrival_day: NDArray[np.int32]  # first day on which it may be shown, 0 = first day of the log

    def __len__(self) -> int:
        return len(self.kind)


def option_codes(
    groups: NDArray[np.int16], num_options: Sequence[int], share_missing: float, rng: np.random.Generator
) -> NDArray[np.int8]:
    """For each item one of the `num_options[group]` of its group; NO_VALUE where there are none or by chance."""
    limit = np.asarray(num_options)[groups]
    code = (rng.random(len(groups)) * limit).astype(np.int8)
    code[(limit == 0) | (rng.random(len(groups)) < share_missing)] = NO_VALUE
    return code


def draw_catalogue(num_items: int, num_days: int, words: Vocabulary, rng: np.random.Generator) -> Catalogue:
    """Draw `num_items` items that arrive before and during a log of `num_days` days."""
    themes, brands, categories = list(words.themes.values()), words.all_brands(), list(words.categories.values())
    theme_codes = {name: code for code, name in enumerate(words.themes)}
    median_price = np.array([kind.median_price for kind in words.kinds()])

    # Every kind once before any twice: a small catalogue still reaches over all themes and categories.
    kind = np.concatenate([rng.permutation(len(median_price)) for _ in range(-(-num_items // len(median_price)))])
    kind = kind[:num_items].astype(np.int16)
    theme, category = words.kind_themes()[kind], words.kind_categories()[kind]

    neighbours = np.array([[theme_codes[name] for name in each.neighbours] for each in themes])
    has_second = rng.random(num_items) < 0.25
    second = neighbours[theme, rng.integers(0, neighbours.shape[1], num_items)]

    own_brands = len(themes[0].brands)
    assert all(len(each.brands) == own_brands for each in themes)
    of_theme = len(words.brands) + theme * own_brands + rng.integers(0, own_brands, num_items)
    of_all = rng.integers(0, len(words.brands), num_items)
    brand = np.where(rng.random(num_items) < 0.35, of_theme, of_all).astype(np.int16)
    brand_style = rng.integers(0, NUM_BRAND_STYLES, len(brands)).astype(np.int8)
    brand_quality = rng.normal(size=len(brands))
    quality = np.sqrt(1 / 3) * brand_quality[brand] + np.sqrt(2 / 3) * rng.normal(size=num_items)

    price_level = rng.normal(size=num_items)
    price = median_price[kind] * np.exp(0.35 * price_level)
    arrival = np.where(
        rng.random(num_items) < SHARE_AT_START,
        -1 - rng.integers(0, 180, num_items),
        rng.integers(0, num_days, num_items),
    )
    order = np.argsort(arrival, kind="stable")
    sizes, materials = [len(each.sizes) for each in categories], [len(each.materials) for each in categories]
    colours = [len(words.colours) if each.coloured else 0 for each in categories]
    return Catalogue(
        kind=kind[order],
        theme=theme[order],
        category=category[order],
        second_theme=np.where(has_second, second, NO_VALUE).astype(np.int16)[order],
        second_weight=np.where(has_second, 0.6, 0.0).astype(np.float32)[order],
        brand=brand[order],
        brand_style=brand_style[brand][order],
        colour=option_codes(category, colours, 0.1, rng)[order],
        size=option_codes(category, sizes, 0.15, rng)[order],
        material=option_codes(category, materials, 0.15, rng)[order],
        price_cents=(np.maximum(np.round(price), 1) * 100 - 1).astype(np.int64)[order],
        price_level=price_level.astype(np.float32)[order],
        quality=quality.astype(np.float32)[order],
        popularity=np.exp(2.2 * rng.normal(size=num_items) + 0.8 * quality)[order],
        arrival_day=arrival.astype(np.int32)[order],
    )
