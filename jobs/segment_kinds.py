"""The kinds of segments: what each is cut by, learnt from nothing later than the start of the test window.

Sizes of categories and quartiles are those of the training rows before the test. What the catalogue says of an item
(category, text, price) is what the table has now: a catalogue has no history. The rule of each kind, in words, is in
the manifest of `impression_segments`.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import polars as pl
from pydantic import BaseModel, field_validator

from feature_repo.table_schemas import ImpressionSegments, RankerPredictions
from jobs.log_before_test import LogBeforeTest, quoted, text_value
from ranker.segments import OTHER, age, cross, named_values, number_names, number_ranges, whole_number_ranges

BUILT_IN = (
    "user_segment",
    "item_segment",
    "user_item_segment",
    "category",
    "item_age",
    "item_text",
    "position",
    "query",
)
"""Kinds that need no more than their name."""

NEEDS = {
    "category": ("items", "category"),
    "item_age": ("items", "event_timestamp"),
    "item_text": ("items", "title"),
    "position": ("impressions", "position"),
    "query": ("impressions", "query_id"),
}
"""Built-in kind -> the table and column that it is cut by."""

MAX_VALUES = 50
"""A text column with more values keeps the biggest ones: a segment of a handful of users can tell nothing."""

TEXT_COLUMNS = ("title", "category", "brand", "keywords", "attributes", "description")

OUTCOMES = ("clicked", "converted", "conversion_timestamp", "is_sampled", "split")
"""What is to be predicted, or follows from it: within such a segment there is nothing left to rank."""

TAKEN = {"all", *ImpressionSegments.column_names(), *RankerPredictions.column_names()} - {*BUILT_IN}


class SegmentColumn(BaseModel, extra="forbid", frozen=True):
    """A column to judge by: `brand = {table = "items", column = "brand"}`."""

    table: Literal["items", "users", "impressions", "training_examples"]
    """Where it is."""
    column: str
    """Text, a number, true or false, or a time (its age at the start of the test window)."""
    edges: tuple[float, ...] = ()
    """Where ranges of a number begin (of an age: where they end, in days); by default quartiles."""

    @field_validator("edges")
    @classmethod
    def _ascending(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        return ascending(edges)


@dataclass(frozen=True)
class Cuts:
    """What is configured of the cuts."""

    columns: Mapping[str, SegmentColumn]
    item_age_days: Sequence[int]
    position_edges: Sequence[int]
    query_edges: Sequence[int]
    max_categories: int


class SegmentKind(NamedTuple):
    """One kind: the raw values that it is cut by, and how."""

    name: str
    values: Mapping[str, str]
    """Column -> SQL over training_examples and the tables."""
    tables: tuple[str, ...]
    """Those that the SQL reads, beside training_examples."""
    cut: pl.Expr
    """String expression over those columns; null: in no segment of this kind."""
    rule: str


def ascending(edges: tuple[Any, ...]) -> tuple[Any, ...]:
    """The edges, if each is larger than the one before.

    Raises:
        ValueError: they are not, or one is no number.
    """
    if not all(math.isfinite(edge) for edge in edges) or list(edges) != sorted(set(edges)):
        raise ValueError("expected finite numbers, each larger than the one before")
    return edges


def check_names(kinds: Sequence[str] | None, columns: Mapping[str, SegmentColumn]) -> None:
    """Refuse a kind that nobody knows, and a column under a name that is taken.

    Raises:
        ValueError: naming the nearest known kind, or who has the name.
    """
    for name in columns:
        if name in BUILT_IN:
            raise ValueError(f"columns.{name}: there is a kind `{name}` already; give the column another name")
        if name in TAKEN:
            raise ValueError(f"columns.{name}: predictions have a column `{name}`; give the kind another name")
        if not name.isidentifier():
            raise ValueError(f"columns.{name}: expected a name of letters, digits and _, such as `brand`")
    known = [*BUILT_IN, *columns]
    for name in kinds or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else "."
            raise ValueError(f"kinds: there is no kind `{name}`{hint} Known: {', '.join(known)}")
    if kinds is not None and not kinds and not columns:
        raise ValueError("kinds: there is none, and no columns either; leave `kinds` out for all")
    if kinds is not None and len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds: one is named twice in {', '.join(kinds)}")


def kind_of(name: str, cuts: Cuts, known: LogBeforeTest, tier_rules: Mapping[str, str]) -> SegmentKind:
    """How a kind is cut.

    Args:
        name: built in, or one of the configured columns.
        cuts: the configured edges and columns.
        known: the log before the test.
        tier_rules: in words, of `user_segment` and `item_segment`.

    Raises:
        ValueError: the log has no such column, or none that can be cut; the message says what there is.
    """
    if name in ("user_segment", "item_segment"):
        return SegmentKind(name, {name: f"{name}s.{name}::VARCHAR"}, (f"{name}s",), pl.col(name), tier_rules[name])
    if name == "user_item_segment":
        values = {tier: f"{tier}s.{tier}::VARCHAR" for tier in ("user_segment", "item_segment")}
        cut = cross(pl.col("user_segment"), pl.col("item_segment"))
        return SegmentKind(name, values, ("user_segments", "item_segments"), cut, "Tier of the user and of the item")
    if name in cuts.columns:
        return _column_kind(name, cuts.columns[name], cuts, known)
    table, column = NEEDS[name]
    _dtype_of(name, table, column, known)
    if name == "item_text":
        has_text = " OR ".join(rf"coalesce(regexp_matches(items.{column}, '\S'), false)" for column in TEXT_COLUMNS)
        cut = pl.when(pl.col(name)).then(pl.lit("text")).otherwise(pl.lit("no text"))
        return SegmentKind(
            name, {name: has_text}, (table,), cut, f"Items with any of {', '.join(TEXT_COLUMNS)}, and those without"
        )
    if name == "position":
        cut = whole_number_ranges(pl.col(name), cuts.position_edges)
        return SegmentKind(name, {name: "impressions.position"}, (table,), cut, "Position in the slate, 0 at the top")
    if name == "query":
        return _query_kind(cuts, known)
    if name == "item_age":
        return _age_kind(name, "items", column, cuts.item_age_days, known)
    return _words_kind(name, table, column, cuts.max_categories, cuts.max_categories, known)


def _column_kind(name: str, chosen: SegmentColumn, cuts: Cuts, known: LogBeforeTest) -> SegmentKind:
    if chosen.column in OUTCOMES:
        raise ValueError(
            f"assign_segments: columns.{name}: {chosen.column} is the outcome or follows from it, and within such a "
            "segment nothing is left to rank. Name a column that is known at the impression."
        )
    dtype = _dtype_of(f"columns.{name}", chosen.table, chosen.column, known)
    if isinstance(dtype, pl.Datetime):
        if any(edge != int(edge) or edge < 1 for edge in chosen.edges):
            raise ValueError(f"assign_segments: columns.{name}: {chosen.column} is a time: give edges in whole days")
        limits = [int(edge) for edge in chosen.edges] or cuts.item_age_days
        return _age_kind(name, chosen.table, chosen.column, limits, known)
    if dtype.is_numeric():
        return _numbers_kind(name, chosen, cuts.max_categories, known)
    if chosen.edges:
        raise ValueError(f"assign_segments: columns.{name}: {chosen.column} is {dtype}, and edges need a number")
    if isinstance(dtype, (pl.String, pl.Enum, pl.Categorical, pl.Boolean)):
        return _words_kind(name, chosen.table, chosen.column, MAX_VALUES, cuts.max_categories, known)
    raise ValueError(
        f"assign_segments: columns.{name}: {chosen.table}.{chosen.column} is {dtype}; expected text, a number, true or "
        "false, or a time"
    )


def _dtype_of(name: str, table: str, column: str, known: LogBeforeTest) -> pl.DataType:
    columns = known.columns(table)
    if not columns:
        raise ValueError(f"assign_segments: {name} needs {table}.{column}, and this log has no {table}")
    if column not in columns:
        near = difflib.get_close_matches(column, columns, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else "."
        raise ValueError(f"assign_segments: {name}: {table} has no column `{column}`{hint} It has {', '.join(columns)}")
    return columns[column]


def _age_kind(name: str, table: str, column: str, limits: Sequence[int], known: LogBeforeTest) -> SegmentKind:
    rule = f"Days from {column} of {table} to the start of the test window"
    value = quoted(table, column)
    return SegmentKind(name, {name: value}, (table,), age(pl.col(name), known.test_start, limits), rule)


def _query_kind(cuts: Cuts, known: LogBeforeTest) -> SegmentKind:
    """Head, torso and tail of a search log; impressions of a feed are a segment of their own."""
    values = {"query": "impressions.query_id", "query_impressions": known.impressions_of("query_id")}
    shown = whole_number_ranges(pl.col("query_impressions"), cuts.query_edges)
    cut = pl.when(pl.col("query").is_null()).then(pl.lit("no query")).otherwise(shown)
    return SegmentKind("query", values, ("impressions",), cut, "Impressions of the query before the test window")


def _words_kind(
    name: str, table: str, column: str, max_values: int, max_kept: int, known: LogBeforeTest
) -> SegmentKind:
    words = known.words(table, column, max_values + 1)
    _refuse_empty(name, table, column, words)
    source = f"{column} of {table}"
    if len(words) > max_values:
        words = words[:max_kept]
        rule = f"{_sentence(source)}: the {max_kept} with the most training rows, the rest `{OTHER}`"
    else:
        rule = f"{_sentence(source)}; a value without training rows is `{OTHER}`"
    value = text_value(table, column)
    return SegmentKind(
        name, {name: value}, (table,), named_values(pl.col(name), {word: word for word in words}), rule + _now(table)
    )


def _numbers_kind(name: str, chosen: SegmentColumn, max_values: int, known: LogBeforeTest) -> SegmentKind:
    values, tables = {name: f"{quoted(chosen.table, chosen.column)}::DOUBLE"}, (chosen.table,)
    source = _sentence(f"{chosen.column} of {chosen.table}")
    if chosen.edges:
        cut = number_ranges(pl.col(name), chosen.edges)
        return SegmentKind(name, values, tables, cut, f"{source}, in the ranges configured" + _now(chosen.table))
    distinct, quartiles = known.numbers(chosen.table, chosen.column, max_values + 1)
    _refuse_empty(name, chosen.table, chosen.column, distinct)
    if len(distinct) <= max_values:
        cut = named_values(pl.col(name).fill_nan(None), dict(zip(distinct, number_names(distinct), strict=True)))
        rule = f"{source}; a value without training rows is `{OTHER}`"
    else:
        edges = sorted({quartile for quartile in quartiles if quartile > distinct[0]})
        assert edges, "more than one value, and no quartile above the smallest"
        cut, rule = number_ranges(pl.col(name), edges), f"{source}, by quartiles of the training rows"
    return SegmentKind(name, values, tables, cut, rule + _now(chosen.table))


def _refuse_empty(name: str, table: str, column: str, values: Sequence[object]) -> None:
    if not values:
        raise ValueError(
            f"assign_segments: {name} is cut by {table}.{column}, which is empty in all training rows. "
            "Leave it out, or fill it in the source."
        )


def _now(table: str) -> str:
    """What the reader must know of the table's values in time."""
    return {
        "items": " (as the catalogue has it now)",
        "users": "",
        "impressions": " (of the impression itself)",
        "training_examples": " (as known at the impression)",
    }[table]


def _sentence(source: str) -> str:
    return source[0].upper() + source[1:]
