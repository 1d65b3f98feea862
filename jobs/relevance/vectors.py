"""Vectors of queries and of items by the representation student, brought up to date; and read back.

Only texts that are new or edited are embedded, equal ones once; every shard is committed by itself, so a killed job
loses one at most. Before a table is added to, a few of its texts are embedded again.
"""

import logging
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import IO, TYPE_CHECKING, Literal

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import Impressions, ItemRelevanceEmbeddings, QueryEmbeddings
from jobs.lake import Lake, table_name
from jobs.progress import progress_bar
from jobs.relevance.dated_rows import TIME, commits, described, due_rows, text_hash, told_of
from jobs.relevance.distilled_pairs import texts_of_items, texts_of_queries
from jobs.relevance.fitted_students import FittedStudent, check_one_student

if TYPE_CHECKING:
    from embedders.mkd_model import MkdModel

logger = logging.getLogger(__name__)

NUM_CANARIES = 8
LEAST_CANARY_COSINE = 0.999
"""Batches of another shape move a cosine by 1e-6, in bfloat16 by 1e-4; another model moves it far more."""


@dataclass(frozen=True)
class VectorTable:
    """One of the two tables, and how its columns begin."""

    schema: type[dy.Schema]
    entity: Literal["query", "item"]

    @property
    def key(self) -> str:
        """Whose vectors."""
        return f"{self.entity}_id"

    def column(self, what: Literal["vector_id", "embedding", "hash"]) -> str:
        """Name of a column."""
        return f"{self.entity}_relevance_{what}"


QUERIES = VectorTable(QueryEmbeddings, "query")
ITEMS = VectorTable(ItemRelevanceEmbeddings, "item")


def embed_queries(lake: Lake, student: FittedStudent, *, shard_size: int) -> None:
    """Bring `query_embeddings` up to date: a query counts from the midnight after it was first shown."""
    shown = Impressions.create_empty(lazy=True) if not lake.exists(Impressions) else lake.scan(Impressions)
    first = shown.group_by("query_id").agg(known_from=midnight_after(pl.col("event_timestamp").min()))
    texts = texts_of_queries(lake).join(first, on="query_id", how="left").rename({"query_text": "text"})
    _bring_up_to_date(lake, QUERIES, student, texts, shard_size)


def embed_items(lake: Lake, student: FittedStudent, *, shard_size: int) -> None:
    """Bring `item_relevance_embeddings` up to date: an item counts from its event_timestamp."""
    texts = texts_of_items(lake).rename({"item_text": "text", "event_timestamp": "known_from"})
    _bring_up_to_date(lake, ITEMS, student, texts, shard_size)


def midnight_after(time: pl.Expr) -> pl.Expr:
    """The first midnight UTC after a time: what a day taught is known when it is over."""
    return (time.dt.truncate("1d") + pl.duration(days=1)).cast(TIME)


def _bring_up_to_date(
    lake: Lake, table: VectorTable, student: FittedStudent, texts: pl.LazyFrame, shard_size: int
) -> None:
    started = time.monotonic()
    hashed = pl.col("text").map_elements(text_hash, return_dtype=pl.String)
    wanted = texts.with_columns(hash=hashed).sort(table.key).collect(engine="streaming")
    due = due_rows(lake, table.schema, student, wanted, key=[table.key], hashed=table.column("hash"))
    if due.append and due.rows.is_empty():
        logger.info("distill_relevance: all %s %s vectors are there already", f"{due.num_kept:_}", table.entity)
        return
    if not due.append and lake.exists(table.schema) and (tags := lake.manifest(table.schema).fingerprint):
        logger.warning(
            "distill_relevance: the %s vectors are by %s; all are made anew by %s",
            table.entity,
            described(tags),
            student.fingerprint,
        )
    model = student.load("distill_relevance")
    if due.append:
        _check_canaries(lake, table, model, wanted)
    shards = _in_shards(due.rows, shard_size)
    append, next_id = due.append, _next_id(lake, table) if due.append else 0
    with progress_bar(f"distill_relevance: {table.entity} vectors", total=len(due.rows), unit="texts") as advance:
        for commit in commits(shards, append=append):
            with lake.writer(
                table.schema,
                append=append,
                fingerprint=student.fingerprint.as_tags(),
                metadata={**told_of(student), "made_with": {"torch": version("torch")}},
            ) as writer:
                for shard in commit:
                    writer.write_shard(_rows(table, student, model, shard, next_id))
                    next_id += len(shard)
                    advance(len(shard))
            append = True
    logger.info(
        "distill_relevance: %s %s texts embedded (%s edited), %s left as they are, %.1f s",
        f"{len(due.rows):_}",
        table.entity,
        f"{due.num_edited:_}",
        f"{due.num_kept:_}",
        time.monotonic() - started,
    )


def _in_shards(rows: pl.DataFrame, shard_size: int) -> list[pl.DataFrame]:
    """Runs of about so many rows; equal texts stand together, edits come first."""
    rows = rows.with_columns(is_first=(pl.col("is_late") | pl.col("is_edited")).any().over("hash"))
    rows = rows.sort(~pl.col("is_first"), "hash", "available", maintain_order=True).drop("is_first")
    number = pl.col("hash").rle_id() // shard_size
    return rows.with_columns(shard=number).partition_by("shard", maintain_order=True, include_key=False)


def _rows(
    table: VectorTable, student: FittedStudent, model: "MkdModel", shard: pl.DataFrame, next_id: int
) -> pl.DataFrame:
    vectors = model.embed_queries(shard.get_column("text").to_list())  # one encoder reads both sides
    column = pl.Series(vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])).arr.to_list()
    rows = shard.select(
        pl.col(table.key),
        pl.col("available").alias("event_timestamp"),
        pl.col("available").alias("created_timestamp"),
        pl.int_range(next_id, next_id + pl.len(), dtype=pl.Int64).alias(table.column("vector_id")),
        column.alias(table.column("embedding")),
        pl.col("hash").alias(table.column("hash")),
    )
    if table is QUERIES:
        rows = rows.with_columns(query_relevance_scale=pl.lit(student.scale), query_relevance_bias=pl.lit(student.bias))
    return rows


def _next_id(lake: Lake, table: VectorTable) -> int:
    largest = lake.scan(table.schema).select(pl.col(table.column("vector_id")).max()).collect().item()
    return 0 if largest is None else int(largest) + 1


def _check_canaries(lake: Lake, table: VectorTable, model: "MkdModel", wanted: pl.DataFrame) -> None:
    """Embed a few texts whose vectors are stored, and stop where other vectors come out."""
    texts = wanted.select(pl.col("hash").alias(table.column("hash")), "text").unique(table.column("hash"))
    hashed = table.column("hash")
    chosen = lake.scan(table.schema).select(hashed).unique().sort(hashed).collect()
    chosen = chosen.join(texts, on=hashed, maintain_order="left").head(NUM_CANARIES)
    stored = lake.scan(table.schema).join(chosen.lazy(), on=hashed).unique(hashed).collect()
    if stored.is_empty():
        return
    then = np.array(stored.get_column(table.column("embedding")).to_list(), np.float32)
    cosines = (model.embed_queries(stored.get_column("text").to_list()) * then).sum(axis=1)
    if (cosines > LEAST_CANARY_COSINE).all():
        return
    worst = int(np.argmin(cosines))
    raise ValueError(
        f"distill_relevance: {int((cosines <= LEAST_CANARY_COSINE).sum())} of {len(cosines)} {table.entity} texts no "
        f"longer give their vectors ({stored.get_column(table.key)[worst]}: cosine {cosines[worst]:.4f}, expected over "
        f"{LEAST_CANARY_COSINE}), so new vectors would not fit the old ones. They were made with "
        f"{lake.manifest(table.schema).metadata.get('made_with')}, now there is torch {version('torch')}.\n"
        f"  what to do: install the versions that made the table, or remove {lake.root / table_name(table.schema)} "
        "(and the other table of vectors) and run distill_relevance again"
    )


class StoredVectors:
    """The newest vectors of both tables, out of memory.

    Args:
        lake: with both tables.
        step: who reads.
        files: an open temporary file for each, queries first.

    Raises:
        ValueError: the tables are of two students.
    """

    def __init__(self, lake: Lake, step: str, files: tuple[IO[bytes], IO[bytes]]) -> None:
        check_one_student(lake, step)
        self._of = {
            table.entity: _copied(lake, table, file) for table, file in zip((QUERIES, ITEMS), files, strict=True)
        }

    def cosines(self, pairs: pl.DataFrame) -> NDArray[np.float64]:
        """Of pairs with query_id and item_id that both have a vector. [N]"""
        sides = []
        for table in (QUERIES, ITEMS):
            rows, vectors = self._of[table.entity]
            at = pairs.select(table.key).join(rows, on=table.key, how="left", maintain_order="left")
            assert not at.get_column("row").has_nulls(), f"a {table.entity} without a vector"
            sides.append(vectors[at.get_column("row").to_numpy()])
        return np.einsum("nd,nd->n", *sides).astype(np.float64)


def _copied(lake: Lake, table: VectorTable, file: IO[bytes]) -> tuple[pl.DataFrame, NDArray[np.float32]]:
    """Row of each entity's newest vector, and all vectors, mapped."""
    manifest = lake.manifest(table.schema)
    width = int(manifest.fingerprint["dimension"])
    vectors = np.memmap(file, np.float32, mode="w+", shape=(max(1, manifest.rows), width))
    keys, start = [pl.DataFrame(schema={table.key: pl.String, "event_timestamp": TIME})], 0
    for path in lake.parquet_files(table.schema):
        shard = pl.read_parquet(path, columns=[table.key, "event_timestamp", table.column("embedding")])
        vectors[start : start + len(shard)] = (
            shard.get_column(table.column("embedding")).explode().to_numpy().reshape(len(shard), width)
        )
        keys.append(shard.select(table.key, "event_timestamp"))
        start += len(shard)
    numbered = pl.concat(keys).with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
    newest = numbered.sort("event_timestamp").unique(table.key, keep="last").select(table.key, "row")
    return newest, vectors
