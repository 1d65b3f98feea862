"""Pairs of queries and items that people have judged, without a log: WANDS, ESCI, Home Depot, or a team's own.

    [sources.judged_pairs]                    # one file: a judgement a row, with the texts of its query and item
    grade_worst = 1
    grade_best = 3

    [sources.judged_pairs]                    # three files (WANDS)
    files = "label.csv"
    separator = "\\t"
    grades = { Exact = 3, Partial = 1.5, Irrelevant = 0 }
    items = { files = "product.csv" }
    queries = { files = "query.csv" }

Which column is what can be said for each (`query = "search_term"`), as a column's name or a SQL expression; unsaid, a
usual name is looked for (`jobs.raw_sources.judged_columns`), and what was found is logged. A column is taken from the
file of items (or of queries) where that has it, else from the judgements.

What we make of it
    query     one row a distinct text; without an id of its own, a hash of the text, blanks aside
    item      one row an id, the first of several texts. With a file of items all of them, judged or not
    grade     0 to 3: numbers are mapped linearly from `grade_worst` .. `grade_best`, labels as `grades` says
    time      judgements have none; items can be shown from `available_from` on, by default from the first ingest on

There are no users and no impressions, so nothing that learns from clicks can run on such a lake. All is held in memory:
people judge at most some million pairs.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import BaseModel, Field, ValidationInfo, field_validator

from feature_repo.table_schemas import Items, Queries, RelevanceGrades
from jobs.raw_sources import LeftOut, Shard
from jobs.raw_sources.judged_columns import ITEM_FIELDS, USUAL_NAMES, Table, find_fields, open_table, read_fields
from jobs.raw_sources.tabular_files import PARQUET_SUFFIXES, find_files, folder_of, id_text, listing

logger = logging.getLogger(__name__)

HAS_IMPRESSIONS = False
"""Nobody was shown anything: `jobs.ingest` takes it all the same."""

SECTION = "[sources.judged_pairs]"
BEST_GRADE = 3.0
MOST_LABELS_SHOWN = 8

Grade = Annotated[float, Field(ge=0.0, le=BEST_GRADE)]


class OtherFiles(BaseModel, extra="forbid", frozen=True):
    """Files that tell more of the items, or of the queries, than the judgements do."""

    files: str | tuple[str, ...]
    """Names or globs, relative to `ingest.path`."""
    id: str | None = None
    """Column of the id, where it is not called as in the judgements."""
    where: str | None = None
    """SQL condition; other rows are left out and counted."""


class Config(BaseModel, extra="forbid", frozen=True):
    """Which file and which column says what, and what the grades mean."""

    files: str | tuple[str, ...] | None = None
    """Where the path is a folder: names or globs of the judgements; by default its only CSV or parquet file."""
    items: OtherFiles | None = None
    """Texts of the items, one row an id."""
    queries: OtherFiles | None = None
    """Texts of the queries, one row an id."""
    query: str | None = None
    """Text of the query."""
    query_id: str | None = None
    """Id of the query; not needed where the text stands beside the judgement."""
    item_id: str | None = None
    """Id of the item."""
    grade: str | None = None
    """What people said: a number, or a label."""
    title: str | None = None
    """Title of the item. Of this and the following, "" leaves out what would be found under a usual name."""
    category: str | None = None
    """Category of the item."""
    brand: str | None = None
    """Brand of the item."""
    attributes: str | None = None
    """Attributes of the item, as text."""
    description: str | None = None
    """Description of the item."""
    keywords: str | None = None
    """Keywords of the item."""
    grade_worst: float | None = None
    """Of grades that are numbers: the one that means irrelevant (0)."""
    grade_best: float | None = None
    """The one that means an exact match (3). May be the smaller one."""
    grades: dict[str, Grade] | None = None
    """Of grades that are labels: what each is worth, 0 to 3."""
    repeated: Literal["average", "refuse"] = "average"
    """What several judgements of one pair are: averaged, or an error."""
    available_from: datetime | None = None
    """Since when the items can be shown. UTC where it names no time zone."""
    where: str | None = None
    """SQL condition over the columns of the judgements; others are left out and counted."""
    encoding: str = "utf-8"
    """Of CSV files; a common other one is "latin-1"."""
    separator: str = ","
    """Of CSV files."""

    @field_validator("separator")
    @classmethod
    def _one_sign(cls, separator: str) -> str:
        separator = separator.replace("\\t", "\t")  # a shell hands on the two signs
        if len(separator) != 1:
            raise ValueError('expected one sign, such as ";" or "\\t"')
        return separator

    @field_validator("available_from")
    @classmethod
    def _in_utc(cls, time: datetime | None) -> datetime | None:
        return time.replace(tzinfo=timezone.utc) if time is not None and time.tzinfo is None else time

    @field_validator("grades")
    @classmethod
    def _one_scale(cls, grades: dict[str, float] | None, info: ValidationInfo) -> dict[str, float] | None:
        if grades is not None and any(info.data.get(name) is not None for name in ("grade_worst", "grade_best")):
            raise ValueError("set either this, or grade_worst and grade_best")
        return grades


def label_rule(config: Config) -> str:
    """There are no clicks."""
    return "pairs judged by people; nothing was shown to anybody"


def raw_files(path: Path | None, config: Config) -> list[Path]:
    """The files of judgements, items and queries."""
    return [file for files in _files(path, config).values() for file in files]


def shards(path: Path | None, config: Config) -> Iterator[Shard | LeftOut]:
    """Queries, items, then grades.

    Raises:
        ValueError: a file or a column is missing or unreadable, or the grades cannot be what they are said to be; the
            message names the setting and what the files hold.
    """
    said: dict[str, str | None] = {field: getattr(config, field) for field in USUAL_NAMES}
    others = {"items": config.items, "queries": config.queries}
    rows = {}
    with tempfile.TemporaryDirectory() as workspace:
        try:
            tables: dict[str, Table] = {}
            for kind, files in _files(path, config).items():
                other = others.get(kind)
                tables[kind] = open_table(
                    files,
                    said=[*said.values(), other.id if other else None],
                    where=other.where if other else config.where,
                    setting=f"{SECTION} {kind}." if other else f"{SECTION} ",
                    encoding=config.encoding,
                    separator=config.separator,
                    workspace=Path(workspace),
                )
            ids = {kind: other.id for kind, other in others.items() if other is not None}
            for kind, fields in find_fields(tables, said, ids).items():
                columns = ", ".join(f"{field} is {found.called}" for field, found in fields.items())
                logger.info("judged_pairs: of %s, %s", tables[kind].name, columns)
                rows[kind], left_out = read_fields(tables[kind], fields)
                if left_out is not None:
                    yield left_out
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{SECTION}: the rows of {path} cannot be read: {error}") from error
    yield from _canonical(rows, config)


def _files(path: Path | None, config: Config) -> dict[str, list[Path]]:
    """The files of each kind: judgements first, then items and queries where there are any."""
    is_file = path is not None and path.is_file()
    folder = path.parent if path is not None and is_file else folder_of("judged_pairs", path)
    others = {
        kind: find_files(folder, other.files, f"{SECTION} {kind}.files")
        for kind, other in (("items", config.items), ("queries", config.queries))
        if other is not None
    }
    if path is not None and is_file:
        return {"judgements": [path], **others}
    if config.files is not None:
        return {"judgements": find_files(folder, config.files, f"{SECTION} files"), **others}
    taken = {file for files in others.values() for file in files}
    tabular = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in (".csv", ".tsv", *PARQUET_SUFFIXES)]
    judgements = [file for file in tabular if file not in taken]
    if len(judgements) != 1:
        raise ValueError(
            f"judged_pairs: expected one CSV or parquet file of judgements in {folder}, which holds {listing(folder)}; "
            f"say which it is: {SECTION} files, or name the file instead of the folder"
        )
    return {"judgements": judgements, **others}


def _canonical(rows: Mapping[str, pl.DataFrame], config: Config) -> Iterator[Shard | LeftOut]:
    """The shards of what was read."""
    judged = rows["judgements"]
    if "query_id" not in judged.columns:
        judged = judged.with_columns(query_id=_ids_of_texts(judged.get_column("query")))
    queries = rows["queries"] if "query" in rows.get("queries", pl.DataFrame()).columns else judged
    queries = queries.select("query_id", query_text="query").drop_nulls().unique(maintain_order=True)
    yield Shard(Queries, queries)
    items = _items(rows, judged)
    if config.available_from is not None:
        items = items.with_columns(event_timestamp=pl.lit(config.available_from, pl.Datetime("us", "UTC")))
    yield Shard(Items, items)
    grades = judged.select("query_id", "item_id", grade=scaled_grades(judged.get_column("grade"), config))
    known = grades.join(queries, on="query_id", how="semi", maintain_order="left")
    if num_lost := len(grades) - len(known):
        yield LeftOut("judgement without a query, or of one without a text", num_lost)
    described = known.filter(pl.col("item_id").is_null() | pl.col("item_id").is_in(items["item_id"].implode()))
    if num_lost := len(known) - len(described):
        yield LeftOut("judgement of an item that the file of items does not have", num_lost)
    yield from _one_a_pair(described, config)


def _ids_of_texts(texts: pl.Series) -> pl.Series:
    """A hash of each text, the same in every file and at any time."""
    distinct = texts.drop_nulls().unique()
    ids = [f"q-{hashlib.sha256(text.encode()).hexdigest()[:16]}" for text in distinct]
    return texts.replace_strict(distinct, pl.Series(ids, dtype=pl.String), default=None, return_dtype=pl.String)


def _items(rows: Mapping[str, pl.DataFrame], judged: pl.DataFrame) -> pl.DataFrame:
    """Distinct rows of items; several texts of one id are left to the catalogue to count."""
    beside = [field for field in ITEM_FIELDS if field in judged.columns]
    items = judged.select("item_id", *beside).drop_nulls("item_id").unique(maintain_order=True)
    if "items" not in rows:
        return items
    described = rows["items"].unique(maintain_order=True)
    if not beside:
        return described
    first = items.unique("item_id", keep="first", maintain_order=True)
    if "title" in beside:  # an item that only the judgements name has a text all the same
        return described.join(first, on="item_id", how="full", coalesce=True, maintain_order="left_right")
    return described.join(first, on="item_id", how="left", maintain_order="left")


def scaled_grades(raw: pl.Series, config: Config) -> pl.Series:
    """What people said, as 0 to 3; null where they said nothing.

    Raises:
        ValueError: the settings do not say what a label or the ends of the scale mean.
    """
    if config.grades is not None:
        said = raw.to_frame("grade").select(id_text(pl.col("grade"), raw.dtype)).to_series().replace("", None)
        if unknown := [label for label in _labels(said) if label not in config.grades]:
            raise ValueError(
                f"{SECTION} grades: {_counted(said, unknown)} not among {', '.join(config.grades)}; "
                "say what each is worth, or leave such rows out with where"
            )
        worth = {label: float(grade) for label, grade in config.grades.items()}
        return said.replace_strict(worth, default=None, return_dtype=pl.Float64)
    number = raw.replace("", None) if isinstance(raw.dtype, pl.String) else raw
    number = number.cast(pl.Float64, strict=False).fill_nan(None)
    if unread := _labels(raw.filter(number.is_null()).cast(pl.String).replace("", None)):
        raise ValueError(
            f"{SECTION} grade is text: {_counted(raw.cast(pl.String), unread)}. Say what each is worth, from 0 "
            f"(irrelevant) to 3 (exact): grades = {{ {unread[0]} = ... }}"
        )
    worst, best = config.grade_worst, config.grade_best
    if worst is None or best is None or worst == best:
        raise ValueError(
            f"{SECTION} grade is a number, here from {number.min()!r} to {number.max()!r}. Say which means irrelevant "
            f"and which an exact match: grade_worst and grade_best (now {worst} and {best})"
        )
    return (number - worst) / (best - worst) * BEST_GRADE


def _labels(said: pl.Series) -> list[str]:
    """Distinct labels, the most frequent first."""
    return list(said.drop_nulls().value_counts(sort=True).to_series(0))


def _counted(said: pl.Series, labels: Sequence[str]) -> str:
    counts = said.value_counts()
    number = dict(counts.iter_rows())
    shown = [f"{label} ({number[label]:_} times)" for label in labels[:MOST_LABELS_SHOWN]]
    more = f" and {len(labels) - MOST_LABELS_SHOWN} more" if len(labels) > MOST_LABELS_SHOWN else ""
    return ", ".join(shown) + more


def _one_a_pair(grades: pl.DataFrame, config: Config) -> Iterator[Shard | LeftOut]:
    """Several judgements of a pair as one. Rows without id or grade, or beyond the scale, are the lake's to refuse."""
    is_whole = pl.col("item_id").is_not_null() & pl.col("grade").is_between(0.0, BEST_GRADE).fill_null(False)
    whole = grades.filter(is_whole)
    pairs = whole.group_by("query_id", "item_id", maintain_order=True).agg(pl.col("grade").mean(), pl.len())
    if num_repeated := len(whole) - len(pairs):
        if config.repeated == "refuse":
            some = pairs.filter(pl.col("len") > 1).head(3).select("query_id", "item_id").rows()
            raise ValueError(
                f"judged_pairs: {num_repeated:_} of {len(grades):_} judgements are of a pair that was judged before, "
                f"such as {', '.join(f'({query}, {item})' for query, item in some)}; mend the file, or set "
                f'{SECTION} repeated = "average"'
            )
        yield LeftOut("further judgement of a pair, averaged with the first", num_repeated)
    refused = grades.filter(~is_whole)
    yield Shard(RelevanceGrades, pl.concat([pairs.drop("len"), refused.select("query_id", "item_id", "grade")]))
