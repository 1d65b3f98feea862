"""Real fashion products for `fashion_traffic`: titles, categories and thumbnails, and what their pixels look like.

A *look* is what a thumbnail shows beyond what the words say: five measures of the pixels of the product (lightness,
red against green, yellow against blue, contrast, colourfulness) less what a linear model reads of them from the title's
words, the article type, the usage, and the colour words of each article type. About two fifths of their variance is
left; neither a linear model nor boosted trees predict any of it from the words. An image encoder sees part of it:
ridge regression on 4,000 vectors of EfficientNet-Lite0 reads .31, .15, .17, .29 and .35 of the variance of the five.

The colour that the data set's own annotation names stays out of the items: it says what the picture shows.
"""

import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from jobs.raw_sources.tabular_files import folder_of, scan_file

PRODUCTS = "thumbnails_12k.parquet"
COLUMNS = ("product_id", "title", "description", "jpeg")

GENDERS = ("men", "women", "boys", "girls", "unisex")
SAID_OF_GENDER = {"men": 0, "mens": 0, "women": 1, "womens": 1, "boys": 2, "boy": 2, "girls": 3, "girl": 3, "unisex": 4}
NO_GENDER = -1
"""The title names none."""

LEAST_PRODUCTS = 8
"""Words of fewer products say nothing about the others."""
RIDGE = 5.0
NUM_LOOKS = 5
NUM_WORD_TASTES = 6
"""Dimensions in which what titles say may please or not."""

SHARE_AT_START = 0.6
"""Products sold before the log begins; the others arrive evenly over its days."""


@dataclass(frozen=True)
class FashionCatalogue:
    """One entry per product, by id. `looks` and `words` are known to nobody but the simulated users."""

    products: pl.DataFrame  # item_id, title, category, brand, attributes, jpeg
    type_names: list[str]
    shelf_names: list[str]
    colour_names: list[str]
    type: NDArray[np.int16]  # article type: tshirts, watches
    shelf: NDArray[np.int16]  # sub-category: topwear, watches
    gender: NDArray[np.int8]  # code of GENDERS, or NO_GENDER
    colour: NDArray[np.int16]  # as people annotated the picture
    words: NDArray[np.float32]  # (items, NUM_WORD_TASTES) what the title says, beside brand, type and gender
    looks: NDArray[np.float32]  # (items, NUM_LOOKS) what only the picture shows; mean 0, variance 1
    quality: NDArray[np.float32]  # standard normal
    popularity: NDArray[np.float64]  # how often the shop shows it; heavy tail
    arrival_day: NDArray[np.int32]  # 0 = first day of the log

    def __len__(self) -> int:
        return len(self.products)


def product_file(path: Path | None) -> Path:
    """The file of titles and thumbnails in the folder."""
    return folder_of("fashion_traffic", path) / PRODUCTS


def read_products(path: Path | None) -> pl.DataFrame:
    """Titles, categories and thumbnails as they are published, by id.

    Raises:
        ValueError: the folder, the file or a column is missing, or a category path does not have five parts.
    """
    file = product_file(path)
    frame = scan_file(file, workspace=file.parent)
    found = frame.collect_schema().names()
    if missing := [name for name in COLUMNS if name not in found]:
        raise ValueError(f"{file}: column {', '.join(missing)} missing (found: {', '.join(found)})")
    products = frame.select(COLUMNS).sort("product_id").collect()
    wrong = products.filter(pl.col("description").str.count_matches(" - ", literal=True) != 4)
    if not wrong.is_empty():
        raise ValueError(
            f"{file}: description is {wrong['description'][0]!r} ({len(wrong):_} such rows), expected category - "
            "sub-category - article type - colour - usage"
        )
    return products


def draw_catalogue(products: pl.DataFrame, num_items: int, num_days: int, rng: np.random.Generator) -> FashionCatalogue:
    """Choose `num_items` of the products, read their words and pixels, and draw what the data set does not have.

    Raises:
        ValueError: there are fewer products.
    """
    if num_items > len(products):
        raise ValueError(
            f"[sources.fashion_traffic] num_items = {num_items:_}, but only {len(products):_} products have a "
            "thumbnail; lower it"
        )
    chosen = products[np.sort(rng.permutation(len(products))[:num_items])]
    level = chosen["description"].str.split(" - ").list
    master, shelf, kind, colour, usage = (level.get(at) for at in range(5))
    tokens = [re.findall(r"[a-z]+", title.lower()) for title in chosen["title"]]
    gender = np.array([_gender(of_title) for of_title in tokens], np.int8)

    colour_words = {word for name in colour.unique() for word in name.lower().split()}
    told = [
        {
            *of_title,
            f"type={of_type}",
            f"usage={used}",
            *(f"{of_type}&{word}" for word in of_title if word in colour_words),
        }
        for of_title, of_type, used in zip(tokens, kind, usage, strict=True)
    ]
    brands = [_brand(title) for title in chosen["title"]]
    type_words = {word for name in kind.unique() for word in re.findall(r"[a-z]+", name.lower())}
    plain = [
        set(of_title) - type_words - SAID_OF_GENDER.keys() - {*(brand or "").lower().split()}
        for of_title, brand in zip(tokens, brands, strict=True)
    ]
    said = _said(plain)
    arrival = np.where(rng.random(num_items) < SHARE_AT_START, -1, rng.integers(0, num_days, num_items))
    type_names, shelf_names, colour_names = (sorted(set(names)) for names in (kind, shelf, colour))
    quality = rng.normal(size=num_items)
    return FashionCatalogue(
        products=chosen.select(
            pl.col("product_id").cast(pl.String).alias("item_id"),
            "title",
            pl.concat_str(master, shelf, kind, separator=" > ").alias("category"),
            pl.Series("brand", brands, dtype=pl.String),
            pl.format("usage: {}", usage).alias("attributes"),
            "jpeg",
        ),
        type_names=type_names,
        shelf_names=shelf_names,
        colour_names=colour_names,
        type=_codes(kind, type_names),
        shelf=_codes(shelf, shelf_names),
        gender=gender,
        colour=_codes(colour, colour_names),
        words=_standardised(said @ rng.normal(size=(said.shape[1], NUM_WORD_TASTES))).astype(np.float32),
        looks=unsaid_looks(pixel_looks(chosen["jpeg"].to_list()), _said(told)).astype(np.float32),
        quality=quality.astype(np.float32),
        popularity=np.exp(1.3 * rng.normal(size=num_items) + 0.5 * quality),
        arrival_day=arrival.astype(np.int32),
    )


def pixel_looks(images: Sequence[bytes]) -> NDArray[np.float64]:
    """(pictures, NUM_LOOKS) of the pixels that are not ground: of a thumbnail that cannot be read, NaN."""
    from embedders.pictures import decoded  # here: planning the flow needs no pictures

    looks = np.full((len(images), NUM_LOOKS), np.nan)
    for at, content in enumerate(images):
        picture = decoded(content)
        if picture is None:
            continue
        pixels = np.asarray(picture, np.float32) / 255
        is_product = pixels.min(axis=2) < 0.93  # products lie on white
        red, green, blue = pixels[is_product if is_product.mean() > 0.02 else np.ones_like(is_product)].T
        light = 0.299 * red + 0.587 * green + 0.114 * blue
        colourful = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
        looks[at] = (
            light.mean(),
            (red - green).mean(),
            ((red + green) / 2 - blue).mean(),
            light.std(),
            colourful.mean(),
        )
    return looks


def unsaid_looks(looks: NDArray[np.float64], said: NDArray[np.float32]) -> NDArray[np.float64]:
    """What is left of looks when what words say of them (ridge regression) is taken away; mean 0, variance 1.

    Args:
        looks: (items, looks), NaN where there is no picture: such an item looks like the mean.
        said: (items, words) 0 or 1.
    """
    seen = _standardised(np.where(np.isnan(looks), np.nanmean(looks, axis=0), looks))
    told = (said - said.mean(axis=0)).astype(np.float64)
    weights = np.linalg.solve(told.T @ told + RIDGE * np.eye(told.shape[1]), told.T @ seen)
    return _standardised(seen - told @ weights)


def _said(tokens: Sequence[Set[str]]) -> NDArray[np.float32]:
    """(items, words) which of the words of `LEAST_PRODUCTS` or more items each has."""
    counts = Counter(word for of_item in tokens for word in of_item)
    words = {word: code for code, word in enumerate(sorted(w for w, n in counts.items() if n >= LEAST_PRODUCTS))}
    said = np.zeros((len(tokens), len(words)), np.float32)
    for row, of_item in enumerate(tokens):
        said[row, [words[word] for word in of_item if word in words]] = 1
    return said


def _gender(tokens: Sequence[str]) -> int:
    return next((SAID_OF_GENDER[word] for word in tokens if word in SAID_OF_GENDER), NO_GENDER)


def _brand(title: str) -> str | None:
    """What stands before the word for the gender, as in "Puma Men Ferrari Track Jacket"."""
    words = title.split()
    at = next((at for at, word in enumerate(words) if re.sub(r"[^a-z]", "", word.lower()) in SAID_OF_GENDER), 0)
    return " ".join(words[:at]) if 1 <= at <= 4 else None


def _codes(values: pl.Series, names: list[str]) -> NDArray[np.int16]:
    return values.replace_strict({name: code for code, name in enumerate(names)}, return_dtype=pl.Int16).to_numpy()


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = values.std(axis=0)
    scaled: NDArray[np.float64] = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return scaled
