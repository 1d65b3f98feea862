"""Any log in CSV or parquet: `tailrank.toml` says which columns it has, as a SQL query says it.

    [sources.columns.impressions]             # also: items, users, queries, relevance_grades
    files = "clicks-*.parquet"                # FROM: names or globs in ingest.path
    joins = [{ files = "orders.csv", on = ["click_id"] }]       # LEFT JOIN, one row per key
    where = "country = 'UK'"                  # rows left out are counted
    time_unit = "s"
    [sources.columns.impressions.select]      # SELECT: column of the table = SQL expression, mostly a column's name
    user_id = "member"
    item_id = "sku"
    event_timestamp = "clicked_at"
    clicked = "label = 1"

Only impressions are needed. Of the columns that the tables require, these may be left out: `impression_id` (then user,
item and time make it, so that the same row twice is a duplicate), `converted` (true where there is a
`conversion_timestamp`; where there is none either, nothing converted), `conversion_timestamp` (the impression's time),
`is_sampled` (false), and the `event_timestamp` of items and users (the first impression).

Pictures are a table of their own, `[sources.columns.item_images]`, often of the same files as the items: `item_id`, and
`image`, a column of bytes or of paths (`jobs.raw_sources.picture_files`). An item that has none there simply has none.

Files are scanned lazily and come out shard by shard; only the files joined to them are held in memory.
"""

import difflib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dataframely as dy
import polars as pl
from pydantic import BaseModel, Field

from feature_repo.table_schemas import Impressions, ItemImages, Items, Queries, RelevanceGrades, Users
from jobs.raw_sources import LeftOut, Refused, Shard, negative_sampling
from jobs.raw_sources.picture_files import FOLDER, existing_files, pictures_of
from jobs.raw_sources.tabular_files import find_files, folder_of, id_text, named_columns, scan_file, sql_expression
from jobs.raw_sources.times import TimeNotation, TimeUnit, as_utc, check_times

ROWS_PER_SHARD = 500_000
ROWS_LOOKED_AT = 10_000
"""First rows of a table whose times are checked before anything is read in earnest."""

KEPT = "__kept"


class Join(BaseModel, extra="forbid", frozen=True):
    """Further files whose columns are added to each row, where the keys match (a left join)."""

    files: str | tuple[str, ...]
    """Names or globs, relative to `ingest.path`."""
    on: tuple[str, ...] = Field(min_length=1)
    """Key columns, of the same name on both sides."""
    first_by: str | None = None
    """Where several rows have the same key: keep the one with the smallest value in this column."""


class Table(BaseModel, extra="forbid", frozen=True):
    """Where the rows of one table come from."""

    files: str | tuple[str, ...]
    """Names or globs, relative to `ingest.path`."""
    select: dict[str, str]
    """Column of the table = SQL expression over the columns of the files (polars' dialect)."""
    joins: tuple[Join, ...] = ()
    """Files joined to these, in order."""
    where: str | None = None
    """SQL condition; rows for which it is false or null are left out and counted."""
    time_unit: TimeUnit | None = None
    """Of times that are numbers: what they count since 1970."""
    time_format: str | None = None
    """Of times that are text, where it is not ISO 8601: e.g. "%d/%m/%Y %H:%M"."""
    time_zone: str = "UTC"
    """Of times that do not say theirs."""
    encoding: str = "utf-8"
    """Of CSV files; a common other one is "latin-1"."""
    separator: str = ","
    """Of CSV files."""

    @property
    def time_notation(self) -> TimeNotation:
        """How the times of this table are written."""
        return TimeNotation(self.time_unit, self.time_format, self.time_zone)


class Config(BaseModel, extra="forbid", frozen=True):
    """Which files make which table, and what the labels mean."""

    impressions: Table
    """One row per item shown to a user."""
    items: Table | None = None
    """One row per item, with its text. Of several rows with the same id the first is kept."""
    item_images: Table | None = None
    """One row per item with a picture: its bytes, or a path relative to the folder of the file that names it."""
    users: Table | None = None
    """One row per user; without it, the users of the impressions."""
    queries: Table | None = None
    """One row per query; may be the impressions' own files."""
    relevance_grades: Table | None = None
    """One row per judged (query, item)."""
    label_rule: str = ""
    """What a click and a conversion are in this log, in a sentence, for the report."""
    negatives: negative_sampling.Config | None = None
    """For a log of positives alone: how to draw negatives. The log is then read once for every week."""


SCHEMAS: dict[str, type[dy.Schema]] = {
    "items": Items,
    "item_images": ItemImages,
    "users": Users,
    "queries": Queries,
    "impressions": Impressions,
    "relevance_grades": RelevanceGrades,
}


def label_rule(config: Config) -> str:
    """What `clicked` and `converted` stand for."""
    select = config.impressions.select
    if "converted" in select:
        converted = f"converted = {select['converted']}"
    elif "conversion_timestamp" in select:
        converted = f"converted = there is a {select['conversion_timestamp']}"
    else:
        converted = "converted = never (the log has no conversions)"
    sentences = [config.label_rule, f"clicked = {select.get('clicked')}, {converted}"]
    if config.negatives:
        sentences.append(negative_sampling.label_rule(config.negatives))
    return "; ".join(sentence for sentence in sentences if sentence)


def raw_files(path: Path | None, config: Config) -> list[Path]:
    """The files of all tables, of what is joined to them, and the pictures whose paths they hold."""
    folder = folder_of("columns", path)
    found: list[Path] = []
    for name in SCHEMAS:
        table: Table | None = getattr(config, name)
        for files in [table.files, *(join.files for join in table.joins)] if table else []:
            found += find_files(folder, files, f"[sources.columns.{name}]")
    if config.item_images:
        with tempfile.TemporaryDirectory() as workspace:
            setting = "[sources.columns.item_images]"
            rows = _selected(folder, config.item_images, ItemImages, setting, Path(workspace))
            found += existing_files(rows.filter(KEPT))
    return found


def shards(path: Path | None, config: Config) -> Iterator[Shard | LeftOut | Refused]:
    """The tables in turn, impressions last.

    Raises:
        ValueError: a file is missing or unreadable, an expression names no column, times cannot be what they are said
            to be; the message names the setting.
    """
    folder = folder_of("columns", path)
    with tempfile.TemporaryDirectory() as workspace:
        for name, schema in SCHEMAS.items():
            table: Table | None = getattr(config, name)
            if table is None:
                continue
            setting = f"[sources.columns.{name}]"
            rows = _selected(folder, table, schema, setting, Path(workspace))
            try:
                if schema is ItemImages:
                    yield from pictures_of(rows.filter(KEPT).drop(KEPT), setting)
                    if table.where is not None:
                        yield _left_out(int(rows.select((~pl.col(KEPT)).sum()).collect().item()), table, setting)
                elif schema is Impressions and config.negatives:
                    yield from _with_negatives(rows, table, setting, config.negatives)
                else:
                    yield from _shards(schema, rows, table, setting)
            except pl.exceptions.PolarsError as error:
                raise ValueError(
                    f"{setting}: the rows of {table.files} cannot be read: {error}. Where a column of a CSV is text "
                    "although its first rows are numbers, write the file as parquet"
                ) from error


def _selected(folder: Path, table: Table, schema: type[dy.Schema], setting: str, workspace: Path) -> pl.LazyFrame:
    """The columns of `select` with the types of the schema, and the column `__kept`: what `where` says."""
    _check_names(table, schema, setting)
    ids = [column for name, text in table.select.items() if _is_text(name) for column in named_columns(text)]

    def scan(files: str | tuple[str, ...], text_columns: list[str], *, with_folder: bool = False) -> pl.LazyFrame:
        scans = [
            scan_file(
                file, workspace=workspace, encoding=table.encoding, separator=table.separator, text_columns=text_columns
            ).with_columns([pl.lit(str(file.parent)).alias(FOLDER)] if with_folder else [])
            for file in find_files(folder, files, setting)
        ]
        return pl.concat(scans, how="vertical_relaxed") if len(scans) > 1 else scans[0]

    has_paths = schema is ItemImages
    frame = scan(table.files, ids, with_folder=has_paths)
    for join in table.joins:
        frame = _joined(frame, scan(join.files, ids), join, setting)
    available = frame.collect_schema()
    raw = {name: sql_expression(text, available, f"{setting} select.{name}") for name, text in table.select.items()}
    kept = pl.lit(True) if table.where is None else sql_expression(table.where, available, f"{setting} where")
    picked = frame.select(
        kept.fill_null(False).alias(KEPT),
        *[expr.alias(name) for name, expr in raw.items()],
        *([FOLDER] if has_paths else []),
    )
    wanted = schema.create_empty().schema
    if times := [name for name in table.select if isinstance(wanted[name], pl.Datetime)]:
        head = picked.filter(KEPT).select(times).head(ROWS_LOOKED_AT).collect()
        for name in times:
            check_times(head[name], table.time_notation, f"{setting} select.{name} = {table.select[name]!r}")
    return _completed(picked.with_columns(_conversions(picked.collect_schema(), table, schema, setting)), schema)


def _is_text(name: str) -> bool:
    """Columns of a CSV that are text though they may look like numbers: ids and paths."""
    return name.endswith("_id") or name == "image"


def _check_names(table: Table, schema: type[dy.Schema], setting: str) -> None:
    known = [name for name in schema.column_names() if name != "created_timestamp"]
    for name in table.select:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"{setting} select: there is no column {name!r} in the table"
                f"{f'; is {near[0]!r} meant?' if near else ''} It has {', '.join(known)}"
            )
    required = {
        Impressions: ("user_id", "item_id", "event_timestamp", "clicked"),
        Items: ("item_id",),
        ItemImages: ("item_id", "image"),
        Users: ("user_id",),
    }.get(schema, tuple(known))
    if missing := [name for name in required if name not in table.select]:
        raise ValueError(f"{setting} select: {', '.join(missing)} missing; say which column of {table.files} it is")


def _joined(frame: pl.LazyFrame, other: pl.LazyFrame, join: Join, setting: str) -> pl.LazyFrame:
    wanted = [*join.on, *([join.first_by] if join.first_by else [])]
    for side, schema in ((frame, frame.collect_schema()), (other, other.collect_schema())):
        missing = [name for name in (wanted if side is other else join.on) if name not in schema]
        if missing:
            where = join.files if side is other else "the files it is joined to"
            raise ValueError(
                f"{setting} joins: column {', '.join(missing)} missing in {where} (found: {', '.join(schema.names())})"
            )
    dimension = other.collect()
    for key in join.on:  # an id may be a number in one file and text in the other
        have, of_other = frame.collect_schema()[key], dimension.schema[key]
        if have != of_other:
            frame = frame.with_columns(id_text(pl.col(key), have))
            dimension = dimension.with_columns(id_text(pl.col(key), of_other))
    if join.first_by:
        dimension = dimension.sort(join.first_by, nulls_last=True, maintain_order=True)
        dimension = dimension.unique(join.on, keep="first", maintain_order=True)
    elif repeated := len(dimension) - dimension.select(join.on).n_unique():
        raise ValueError(
            f"{setting} joins: {repeated:_} of {len(dimension):_} rows of {join.files} repeat a key "
            f"({', '.join(join.on)}) and would repeat rows; set first_by to the column whose smallest value is kept"
        )
    return frame.join(dimension.lazy(), on=join.on, how="left", maintain_order="left")


def _conversions(found: pl.Schema, table: Table, schema: type[dy.Schema], setting: str) -> list[pl.Expr]:
    """Each selected column as the type that the schema declares, where the types allow it at all."""
    wanted = schema.create_empty().schema
    expressions = []
    for name in table.select:
        column, have, want = pl.col(name), found[name], wanted[name]
        if name.endswith("_id"):
            column = id_text(column, have)
        elif isinstance(want, pl.Datetime):
            column = as_utc(column, have, table.time_notation)
        elif isinstance(want, pl.Boolean) and have != want and not isinstance(have, pl.Null):
            raise ValueError(
                f"{setting} select.{name} = {table.select[name]!r} is {have}, expected true or false: "
                f'write a comparison, e.g. {name} = "{table.select[name]} = 1"'
            )
        elif isinstance(want, pl.Binary) and not isinstance(have, (pl.Binary, pl.String, pl.Null)):
            raise ValueError(
                f"{setting} select.{name} = {table.select[name]!r} is {have}, expected the bytes of pictures, or text: "
                "the paths of their files"
            )
        elif want.is_integer() and have.is_float():
            column = column.round().cast(pl.Int64, strict=False)
        elif isinstance(want, pl.String) and have.is_numeric():
            column = column.cast(pl.String)
        expressions.append(column.alias(name))
    return expressions


def _completed(rows: pl.LazyFrame, schema: type[dy.Schema]) -> pl.LazyFrame:
    """Impressions with the columns that `select` may leave out."""
    if schema is not Impressions:
        return rows
    given = rows.collect_schema().names()
    if "conversion_timestamp" not in given:
        converted = pl.col("converted") if "converted" in given else pl.lit(False)
        rows = rows.with_columns(conversion_timestamp=pl.when(converted).then("event_timestamp"))
    if "converted" not in given:
        rows = rows.with_columns(converted=pl.col("conversion_timestamp").is_not_null())
    if "is_sampled" not in given:
        rows = rows.with_columns(is_sampled=pl.lit(False))
    if "impression_id" not in given:
        time = pl.col("event_timestamp").dt.epoch("us")
        rows = rows.with_columns(impression_id=pl.format("{}:{}:{}", "user_id", "item_id", time))
    return rows


def _shards(schema: type[dy.Schema], rows: pl.LazyFrame, table: Table, setting: str) -> Iterator[Shard | LeftOut]:
    num_left_out = 0
    for batch in rows.collect_batches(chunk_size=ROWS_PER_SHARD):
        kept = batch.filter(KEPT).drop(KEPT)
        num_left_out += len(batch) - len(kept)
        yield Shard(schema, kept)
    if table.where is not None:
        yield _left_out(num_left_out, table, setting)


def _with_negatives(
    rows: pl.LazyFrame, table: Table, setting: str, config: negative_sampling.Config
) -> Iterator[Shard | LeftOut]:
    """Impressions week by week, each week followed by its negatives: only a week is in memory."""
    if "request_id" not in rows.collect_schema():
        time = pl.col("event_timestamp").dt.epoch("us")
        rows = rows.with_columns(request_id=pl.format("{}@{}", "user_id", time))
    rows = rows.with_columns(week=pl.col("event_timestamp").dt.truncate("1w"))
    kept_in_week = rows.group_by("week").agg(pl.len(), pl.col(KEPT).sum()).sort("week", nulls_last=True).collect()
    for (week,) in kept_in_week.filter(pl.col(KEPT) > 0).select("week").iter_rows():
        taken = rows.filter(pl.col("week").eq_missing(week), KEPT).drop("week", KEPT).collect()
        yield Shard(Impressions, taken)
        if week is not None:
            for negatives in negative_sampling.sample_negatives(taken.filter("clicked"), config):
                yield Shard(Impressions, negatives)
    if table.where is not None:
        left_out = int(kept_in_week.get_column("len").sum()) - int(kept_in_week.get_column(KEPT).sum())
        yield _left_out(left_out, table, setting)


def _left_out(num_rows: int, table: Table, setting: str) -> LeftOut:
    return LeftOut(f"{setting} where: not ({table.where})", num_rows)
