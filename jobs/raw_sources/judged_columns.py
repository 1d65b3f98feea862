"""Which column of which file says what of judged pairs: as the settings say it, else by a usual name.

Three kinds of tables: `judgements`, and where there are such files `items` and `queries`, which are looked at first for
what they are about.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl

from jobs.raw_sources import LeftOut
from jobs.raw_sources.tabular_files import id_text, named_columns, scan_file, sql_expression

USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "query_text", "search_term", "search_query"),
    "query_id": ("query_id", "qid"),
    "item_id": ("item_id", "product_id", "product_uid", "asin", "sku", "doc_id"),
    "grade": ("grade", "relevance", "relevance_grade", "label", "esci_label", "judgement", "judgment"),
    "title": ("title", "product_title", "product_name", "item_title", "item_name", "name"),
    "category": ("category", "product_category", "product_class", "category_path", "category hierarchy"),
    "brand": ("brand", "product_brand", "brand_name"),
    "attributes": ("attributes", "product_attributes", "product_features", "product_bullet_point"),
    "description": ("description", "product_description"),
    "keywords": ("keywords", "tags"),
}
"""What a column may be called where the settings do not say; the first of them that there is."""

ITEM_FIELDS = ("title", "category", "brand", "attributes", "description", "keywords")
REQUIRED = ("query", "item_id", "title", "grade")
ID_FIELDS = {"items": "item_id", "queries": "query_id"}

SEPARATORS = ("\t", ";", "|", ",")
KEPT = "__kept"


class Table(NamedTuple):
    """The rows of one kind, still on disk.

    Attributes:
        name: of its file, for messages.
        rows: all of them.
        where: SQL condition; other rows are left out.
        setting: how its settings begin, for messages.
    """

    name: str
    rows: pl.LazyFrame
    where: str | None
    setting: str

    @property
    def columns(self) -> pl.Schema:
        """Its columns."""
        return self.rows.collect_schema()


class Found(NamedTuple):
    """Where a field is: its column or expression, and what it is called there."""

    value: pl.Expr
    called: str


def open_table(
    files: list[Path],
    *,
    said: Iterable[str | None],
    where: str | None,
    setting: str,
    encoding: str,
    separator: str,
    workspace: Path,
) -> Table:
    """Open files of one kind. The columns of a CSV that may be meant are read as text: queries can look like numbers.

    Args:
        files: at least one.
        said: columns and expressions that the settings name.
        where, setting: see `Table`.
        encoding, separator, workspace: see `scan_file`.

    Raises:
        ValueError: a file cannot be read.
    """
    texts = [name for text in said for name in named_columns(text or "")]
    texts += [name for names in USUAL_NAMES.values() for name in names]
    scans = [
        scan_file(file, workspace=workspace, encoding=encoding, separator=separator, text_columns=texts)
        for file in files
    ]
    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    return Table(name, pl.concat(scans, how="vertical_relaxed") if len(scans) > 1 else scans[0], where, setting)


def find_fields(
    tables: Mapping[str, Table], said: Mapping[str, str | None], ids: Mapping[str, str | None]
) -> dict[str, dict[str, Found]]:
    """For each table, the fields to be taken from it.

    Args:
        tables: by kind.
        said: what the settings say of each field: a column, an expression, "" for none, None for a usual name.
        ids: what they say of the id column of `items` and `queries`, where it is not called as in the judgements.

    Raises:
        ValueError: a field that is needed is nowhere, or what the settings name is not there.
    """
    fields: dict[str, dict[str, Found]] = {kind: {} for kind in tables}
    for kind, id_field in ID_FIELDS.items():
        if kind in tables:
            text = ids.get(kind) or said[id_field]
            _, fields[kind][id_field] = _needed(id_field, text, {kind: tables[kind]}, f"{kind}.id")
    for field in USUAL_NAMES:
        first = "items" if field in ITEM_FIELDS else "queries" if field == "query" else None
        looked_at = {kind: tables[kind] for kind in (first, "judgements") if kind is not None and kind in tables}
        if field in REQUIRED or (field == "query_id" and "queries" in tables):
            kind, fields_found = _needed(field, said[field], looked_at, field)
            fields[kind][field] = fields_found
        elif (optional := _found(field, said[field], looked_at, field)) is not None:
            fields[optional[0]][field] = optional[1]
    return fields


def _needed(field: str, said: str | None, tables: Mapping[str, Table], setting: str) -> tuple[str, Found]:
    found = _found(field, said or None, tables, setting)
    if found is not None:
        return found
    held = "; ".join(f"{table.name} has {', '.join(table.columns.names())}" for table in tables.values())
    whole = [name for table in tables.values() for name in table.columns.names() if len(table.columns) == 1]
    marks = [mark for mark in SEPARATORS if any(mark in name for name in whole)]
    hint = f" Its one column looks like several, separated by {marks[0]!r}: set separator." if marks else ""
    raise ValueError(
        f"[sources.judged_pairs] {setting}: which column is it? None is called {', '.join(USUAL_NAMES[field])}: "
        f"{held}.{hint}\n"
        f"  what to do: say it in tailrank.toml, or with --set sources.judged_pairs.{setting}=COLUMN"
    )


def _found(field: str, said: str | None, tables: Mapping[str, Table], setting: str) -> tuple[str, Found] | None:
    """The first table that has the field, and where."""
    if said == "":
        return None
    if said is None:
        for kind, table in tables.items():
            for name in USUAL_NAMES[field]:
                if name in table.columns:
                    return kind, Found(pl.col(name), name)
        return None
    last = list(tables)[-1]
    for kind, table in tables.items():
        named = named_columns(said)[1:]
        if said in table.columns or (named and set(named) <= {*table.columns.names()}) or kind == last:
            try:
                return kind, Found(sql_expression(said, table.columns, f"[sources.judged_pairs] {setting}"), said)
            except ValueError as error:
                raise ValueError(f"{table.name}: {error}") from error
    raise AssertionError("the last table returns or raises")


def read_fields(table: Table, fields: Mapping[str, Found]) -> tuple[pl.DataFrame, LeftOut | None]:
    """The fields of the rows that `where` keeps: ids and texts as text, the grade as it is; and what it leaves out.

    Raises:
        ValueError: `where` is no condition over the columns.
    """
    kept = pl.lit(True)
    if table.where is not None:
        kept = sql_expression(table.where, table.columns, f"{table.setting}where").fill_null(False)
    picked = table.rows.select(kept.alias(KEPT), **{field: found.value for field, found in fields.items()}).collect()
    columns = []
    for field, dtype in picked.drop(KEPT).schema.items():
        column = pl.col(field)
        columns.append(
            column if field == "grade" else id_text(column, dtype) if "_id" in field else _text(field, dtype)
        )
    rows = picked.filter(KEPT).select(columns)
    if table.where is None:
        return rows, None
    return rows, LeftOut(f"{table.setting}where: not ({table.where})", len(picked) - len(rows))


def _text(field: str, dtype: pl.DataType) -> pl.Expr:
    """One line, null where nothing is left; a list of texts is joined."""
    column = pl.col(field)
    column = column.list.join("; ", ignore_nulls=True) if dtype == pl.List(pl.String) else column.cast(pl.String)
    return column.str.replace_all(r"\s+", " ").str.strip_chars().replace("", None)
