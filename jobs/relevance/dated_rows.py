"""Which rows of a relevance table are due, and when each became available: of vectors and of scores alike.

first text               `known_from` of the row, but never before the labels that taught the student; in a lake
                         without impressions nobody knows when that was, so now
edited text              now, and later than the row it replaces, which stays for impressions before the edit
same text, new student   as a first one, and the table is written anew; but an edited text keeps the time of its
                         edit, so that no earlier impression sees it
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import dataframely as dy
import polars as pl

from embedders.fingerprint import Fingerprint
from jobs.lake import Lake
from jobs.relevance.fitted_students import FittedStudent

TIME = pl.Datetime("us", "UTC")


class DueRows(NamedTuple):
    """What a table lacks.

    Attributes:
        rows: those wanted that have to be written, with `available` and `is_late` (an edit that keeps its time).
        append: to the table; otherwise it is written anew.
        num_kept: wanted rows that are right as they are.
        num_edited: of `rows`.
    """

    rows: pl.DataFrame
    append: bool
    num_kept: int
    num_edited: int


def text_hash(text: str) -> str:
    """Of a text as students read it."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def due_rows(
    lake: Lake, schema: type[dy.Schema], student: FittedStudent, wanted: pl.DataFrame, *, key: list[str], hashed: str
) -> DueRows:
    """Compare a table with what it should hold.

    Args:
        lake: where it is.
        schema: of the table.
        student: who makes the rows; those of another one cannot stay.
        wanted: `key`, `hash` of the texts as they are now, `known_from` (null: it does not matter).
        key: of an entity.
        hashed: the table's column of the hash.
    """
    tags: dict[str, str] | None = None
    metadata: dict[str, Any] = {}
    table: pl.LazyFrame = schema.create_empty(lazy=True)
    if lake.exists(schema):
        manifest = lake.manifest(schema)
        tags, metadata, table = manifest.fingerprint, manifest.metadata, lake.scan(schema)
    newest = pl.col("event_timestamp").arg_max()
    stored = table.group_by(key).agg(stored_at=pl.col("event_timestamp").max(), stored_hash=pl.col(hashed).get(newest))
    append = tags == student.fingerprint.as_tags()
    same_wording = (tags or {}).get("prompt") == student.fingerprint.prompt
    floor, floor_then = _time(student.labels_through or lake.now()), _time(metadata.get("labels_through"))

    def first(floor: pl.Expr) -> pl.Expr:
        return pl.max_horizontal(floor, "known_from")

    after_stored = pl.col("stored_at") + pl.duration(microseconds=1)
    compared = (
        wanted.lazy()
        .join(stored, on=key, how="left", maintain_order="left")
        .with_columns(
            is_new=pl.col("stored_at").is_null(),
            # another wording changes every hash and says nothing of edits
            is_edited=((pl.col("stored_hash") != pl.col("hash")) & same_wording).fill_null(False),
        )
        .with_columns(
            is_late=~pl.col("is_new")
            & ~pl.col("is_edited")
            & (pl.col("stored_at") > first(pl.coalesce(floor_then, floor))),
        )
        .with_columns(
            available=pl.when("is_edited")
            .then(pl.max_horizontal(_time(lake.now()), after_stored, first(floor)))
            .when("is_late")
            .then(pl.max_horizontal("stored_at", first(floor)))
            .otherwise(first(floor))
        )
        .collect()
    )
    due = compared.filter(pl.col("is_new") | pl.col("is_edited")) if append else compared
    return DueRows(
        rows=due.drop("stored_at", "stored_hash"),
        append=append,
        num_kept=len(compared) - len(due),
        num_edited=due.filter("is_edited").height,
    )


def commits(shards: list[pl.DataFrame], *, append: bool) -> Iterator[list[pl.DataFrame]]:
    """Shards that are committed together: each by itself, but for the first commit of a table written anew.

    That one replaces the old table, and with it the only record of when texts were edited. So it holds every edit: if
    the job is killed later, none can be dated back.
    """
    first = 0
    if not append:
        first = max([1, *(number + 1 for number, shard in enumerate(shards) if keeps_its_time(shard))])
        yield shards[:first]  # also of no shard at all: an empty table is a table
    for shard in shards[first:]:
        yield [shard]


def keeps_its_time(shard: pl.DataFrame) -> bool:
    """Whether an edit is among the rows."""
    return bool((shard.get_column("is_late") | shard.get_column("is_edited")).any())


def told_of(student: FittedStudent) -> dict[str, Any]:
    """For the manifest of a table that the student made."""
    through = student.labels_through
    return {"student": student.kind, "labels_through": None if through is None else through.isoformat()}


def described(tags: dict[str, str]) -> str:
    """A manifest's fingerprint in a few words."""
    return str(Fingerprint.from_tags(tags)) if tags else "nobody"


def _time(at: datetime | str | None) -> pl.Expr:
    return pl.lit(datetime.fromisoformat(at) if isinstance(at, str) else at, TIME)
