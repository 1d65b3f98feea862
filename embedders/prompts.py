"""What an encoder reads of an item: one text per item, as a polars expression over the `Items` columns.

LEARN (arXiv 2405.03988) describes six slots in this order: title, category, brand, price, keywords, attributes; a
lead-in, then one short sentence per slot with the value in quotes. The wording is ours, the slots are the paper's.
`learn_described` adds the description as a seventh (ours: some catalogues say most of what they know there).
`amazon` is the three-slot form of RecFormer that LEARN uses on the Amazon sets: `Title: a. Brand: b. Category: c`.
`relevance` is what the students of MKD read beside a query: title, category, brand and attributes, bare; ours [NF->P].

A missing slot is left out with its sentence. An item without any text has no prompt (null), and so no vector; a price
alone is not text.
"""

import html
from typing import NamedTuple

import polars as pl

_FORMATTING_TAGS = (
    r"(?i)</?(?:br|p|b|i|u|em|strong|small|sub|sup|span|div|font|ul|ol|li|hr|h[1-6]|a|img|table|tbody|tr|td|th)"
    r"(?:\s[^<>]*)?/?>"
)
_BLANKS = r"[\s\p{Cc}\x{200B}\x{FEFF}]+"


class Prompt(NamedTuple):
    """A template under its version.

    Attributes:
        version: goes into the fingerprint. Any change of wording or cleaning needs a new one.
        text: String expression over the columns of `Items`, null where an item has no text.
    """

    version: str
    text: pl.Expr


def cleaned(column: str) -> pl.Expr:
    """A text column without HTML entities, formatting tags and runs of blanks; null where nothing is left."""
    raw = pl.col(column)
    with_entities = pl.when(raw.str.contains("&", literal=True)).then(raw)  # few texts have any: unescape only those
    return (
        pl.coalesce(with_entities.map_elements(html.unescape, return_dtype=pl.String), raw)
        .str.replace_all(_FORMATTING_TAGS, " ")
        .str.replace_all(_BLANKS, " ")
        .str.strip_chars()
        .replace("", None)
    )


def _price() -> pl.Expr:
    cents = pl.col("price_cents")
    return pl.concat_str((cents // 100).cast(pl.String), pl.lit("."), (cents % 100).cast(pl.String).str.zfill(2))


def _learn(*more: pl.Expr) -> pl.Expr:
    place = pl.concat_str(
        pl.format('in "{}"', cleaned("category")),
        pl.format('made by "{}"', cleaned("brand")),
        separator=", ",
        ignore_nulls=True,
    ).replace("", None)
    title = pl.format('Title is "{}".', cleaned("title"))
    keywords = pl.format('Its keywords are "{}".', cleaned("keywords"))
    attributes = pl.format('It offers "{}".', cleaned("attributes"))
    sentences = [
        pl.lit("Product record."),
        title,
        pl.format("It is {}.", place),
        pl.format('It costs "{}".', _price()),
        keywords,
        attributes,
        *more,
    ]
    has_text = pl.any_horizontal(slot.is_not_null() for slot in (title, place, keywords, attributes, *more))
    return pl.when(has_text).then(pl.concat_str(sentences, separator=" ", ignore_nulls=True))


def _amazon() -> pl.Expr:
    category = cleaned("category").str.replace_all(r"\s*[>|]\s*", " ")  # a path of categories is joined by spaces
    return pl.concat_str(
        pl.format("Title: {}", cleaned("title")),
        pl.format("Brand: {}", cleaned("brand")),
        pl.format("Category: {}", category),
        separator=". ",
        ignore_nulls=True,
    ).replace("", None)


def _relevance() -> pl.Expr:
    """Without names of slots, and the brand only where the title does not say it: shorter, and read no worse."""
    title, brand = cleaned("title"), cleaned("brand")
    is_said = title.str.to_lowercase().str.contains(brand.str.to_lowercase(), literal=True).fill_null(False)
    category = cleaned("category").str.replace_all(r"\s*[>|]\s*", " ")
    slots = (title, category, pl.when(~is_said).then(brand), cleaned("attributes"))
    return pl.concat_str(slots, separator=". ", ignore_nulls=True).replace("", None)


QUERY_TEXT = cleaned("query_text")
"""What the students read of a query, over the columns of `Queries`; part of the version of `relevance`."""

PROMPTS = {
    "learn": Prompt("learn_v1", _learn()),
    "learn_described": Prompt(
        "learn_described_v1", _learn(pl.format('It is described as "{}".', cleaned("description")))
    ),
    "amazon": Prompt("amazon_v1", _amazon()),
    "relevance": Prompt("relevance_v1", _relevance()),
}
"""The templates by the name that a configuration gives them."""
