"""Content vectors and image vectors of items, out of memory, and which of them was known when.

A vector is known from the later of its event_timestamp and its created_timestamp on. A row written late about an
earlier time does not push out a newer one that is already known.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import IO, NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import ItemContentEmbeddings, ItemImageEmbeddings
from jobs.lake import Lake

VECTORS_SAMPLED = 20_000


class VectorTable(NamedTuple):
    """A table with one vector per (item, time), and the names of its columns."""

    schema: type[dy.Schema]
    vector: str
    vector_id: str
    hash: str
    """Of what was encoded."""


CONTENT = VectorTable(ItemContentEmbeddings, "item_content_embedding", "item_content_vector_id", "item_content_hash")
IMAGES = VectorTable(ItemImageEmbeddings, "item_image_embedding", "item_image_vector_id", "item_image_hash")


class ItemVectors(NamedTuple):
    """All item vectors, and which of them is known when.

    Attributes:
        vectors: [N, width] float32, memory-mapped.
        ids: [N] int64, their vector ids; or [N, 2], where a row stands for two vectors of an item.
        known: as `known_rows` gives it.
    """

    vectors: NDArray[np.float32]
    ids: NDArray[np.int64]
    known: pl.DataFrame


def item_vectors(lake: Lake, file: IO[bytes], width: int, table: VectorTable = CONTENT) -> ItemVectors:
    """Copy all vectors, shard by shard, into `file`, and map it."""
    keys = content_keys(lake, table)
    everything = np.arange(len(keys))
    return ItemVectors(
        vectors=copy_vectors(lake, file, width, everything, table),
        ids=keys.get_column(table.vector_id).to_numpy(),
        known=known_rows(keys),
    )


def content_keys(lake: Lake, table: VectorTable = CONTENT) -> pl.DataFrame:
    """The table without its vectors, in the order of its shards, with `row`: the place in the table."""
    keys = [table.schema.create_empty().drop(table.vector)]
    for path in lake.parquet_files(table.schema):
        keys.append(pl.read_parquet(path, columns=keys[0].columns))
    return pl.concat(keys).with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))


def known_rows(keys: pl.DataFrame) -> pl.DataFrame:
    """Which row holds from when on.

    Args:
        keys: as `content_keys` gives them.

    Returns:
        `item_id`, `known_from`, `row`, sorted by `known_from`: one row per (item, time at which another row becomes
        the newest known one).
    """
    oldest_first = keys.sort("item_id", "event_timestamp", "created_timestamp").with_columns(age=pl.int_range(pl.len()))
    known = (
        oldest_first.with_columns(known_from=pl.max_horizontal("event_timestamp", "created_timestamp"))
        .sort("item_id", "known_from", "age")
        .with_columns(age=pl.col("age").cum_max().over("item_id"))
        .unique(["item_id", "known_from"], keep="last", maintain_order=True)
        .unique("age", keep="first", maintain_order=True)
    )
    return known.select(
        "item_id", "known_from", row=oldest_first.get_column("row").gather(known.get_column("age"))
    ).sort("known_from")


def newest_known(known: pl.DataFrame, as_of: datetime) -> pl.DataFrame:
    """The row that holds for each item at a time: `item_id`, `known_from`, `row`, sorted by item.

    Args:
        known: as `known_rows` gives it.
        as_of: what becomes known later is not seen.
    """
    return (
        known.filter(pl.col("known_from") <= as_of).unique("item_id", keep="last", maintain_order=True).sort("item_id")
    )


def copy_vectors(
    lake: Lake, file: IO[bytes], width: int, rows: NDArray[np.int64], table: VectorTable = CONTENT
) -> NDArray[np.float32]:
    """Copy the vectors of some rows of the table, in the order given, into `file`, and map it. [len(rows), width].

    A row of -1 gives zeros: no vector.
    """
    # an empty file cannot be mapped; the row too many is never named
    vectors = np.memmap(file, np.float32, mode="w+", shape=(max(1, len(rows)), width))
    order = np.argsort(rows, kind="stable")
    sorted_rows = rows[order]
    for first, shard in _shards(lake, table, width):
        start, stop = np.searchsorted(sorted_rows, [first, first + len(shard)])
        vectors[order[start:stop]] = shard[sorted_rows[start:stop] - first]
    return vectors


def _shards(lake: Lake, table: VectorTable, width: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Place of the first row, and the vectors, of each shard."""
    first = 0
    for path in lake.parquet_files(table.schema):
        column = pl.read_parquet(path, columns=[table.vector]).get_column(table.vector)
        yield first, column.explode().to_numpy().reshape(len(column), width)
        first += len(column)


def sampled_vectors(vectors_NC: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """At most VECTORS_SAMPLED of them, in order: they say how each coordinate is spread."""
    size = min(len(vectors_NC), VECTORS_SAMPLED)
    return vectors_NC[np.sort(rng.choice(len(vectors_NC), size, replace=False, shuffle=False))]
