"""Tables of a frozen encoder's vectors, brought up to date: what is new or changed, since when it counts, in shards.

When a vector became available (its event_timestamp, which is its created_timestamp, too)
    first content of an item     with the item: a frozen encoder adds no knowledge, a daily run would have had it then
    changed content              now; the row of the old content stays, for impressions before the change
    same content, new encoder    as before: the table is written anew, and vectors of two encoders never share a table

A *content* is what the encoder reads of an item, a text or a picture; equal ones have one `content_hash`, and are
encoded once. Every shard is committed by itself, so a killed job loses one at most.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedders.fingerprint import Fingerprint
from jobs.content_vectors import VectorTable
from jobs.lake import Lake

NUM_CANARIES = 8
LEAST_CANARY_COSINE = 0.999
"""Batches of another shape move a cosine by 1e-6; another version of a model or a broken library moves it far more."""


class Encoded(NamedTuple):
    """Vectors [N, width] float32, and [N] which of them are good: what could not be read has none."""

    vectors: NDArray[np.float32]
    is_good: NDArray[np.bool_]


Encode = Callable[[pl.DataFrame], Encoded]
"""Encodes the contents that the rows of a frame stand for."""


def newest_stored(lake: Lake, table: VectorTable) -> pl.DataFrame:
    """One row per item that has a vector: item_id, and time, hash and the largest vector id of its newest row."""
    empty = table.schema.create_empty(lazy=True)
    rows = lake.scan(table.schema) if lake.exists(table.schema) else empty
    newest = pl.col("event_timestamp").arg_max()
    return (
        rows.group_by("item_id")
        .agg(
            stored_timestamp=pl.col("event_timestamp").max(),
            stored_hash=pl.col(table.hash).get(newest),
            largest_vector_id=pl.col(table.vector_id).max(),
        )
        .collect()
    )


def compared(contents: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    """Contents (item_id, event_timestamp, content_hash, content_hash_then, ...) with `is_new` and `is_edited`.

    `content_hash_then` is the hash as the stored table would have it; null counts as unchanged.
    """
    return contents.join(stored, on="item_id", how="left", maintain_order="left").with_columns(
        is_new=pl.col("stored_timestamp").is_null(),
        is_edited=(pl.col("stored_hash") != pl.col("content_hash_then")).fill_null(False),
    )


def dated(contents: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """With `available`: when each vector counts as known (the module's docstring)."""
    # later than the row it replaces, whatever the clock says: an online store drops a rewrite of the same time
    after_stored = pl.col("stored_timestamp") + pl.duration(microseconds=1)
    return contents.with_columns(
        available=pl.when("is_new")
        .then("event_timestamp")
        .when("is_edited")
        .then(pl.max_horizontal(pl.lit(now, pl.Datetime("us", "UTC")), after_stored))
        .otherwise("stored_timestamp")
    )


def in_shards(pending: pl.DataFrame, shard_size: int, order: Sequence[str]) -> pl.DataFrame:
    """With `content_number` (equal contents share one) and `shard`; items whose time is not their own come first."""
    pending = pending.with_columns(is_late=pl.col("available") != pl.col("event_timestamp")).sort(
        pl.col("is_late").not_(), *order
    )
    numbers = pending.select(pl.col("content_hash").unique(maintain_order=True)).with_row_index("content_number")
    return (
        pending.join(numbers, on="content_hash", maintain_order="left")
        .sort("content_number", maintain_order=True)
        .with_columns(shard=pl.col("content_number") // shard_size)
    )


def write_in_shards(
    lake: Lake,
    table: VectorTable,
    pending: pl.DataFrame,
    encode: Encode,
    *,
    append: bool,
    fingerprint: Fingerprint,
    metadata: Callable[[], Mapping[str, Any]],
    next_vector_id: int,
) -> None:
    """Encode the distinct contents of every shard and commit the rows of all items that have them.

    Args:
        lake: where the table is.
        table: which one.
        pending: as `in_shards` gives it.
        encode: is handed one row per distinct content of a shard.
        append: keep the rows there are; otherwise the first commit replaces the table.
        fingerprint: of the encoder.
        metadata: asked for at every commit, after its shards were encoded.
        next_vector_id: of the first row.

    Raises:
        TableError: the encoder gave vectors that are not finite, not of length 1 or not of its width.
    """
    rules = {f"vector_is_{fingerprint.dimension}_wide": pl.col(table.vector).list.len() == fingerprint.dimension}
    for commit in _commits(pending, append=append):
        with lake.writer(table.schema, append=append, fingerprint=fingerprint.as_tags(), rules=rules) as writer:
            for shard in commit:
                distinct = shard.unique("content_number", maintain_order=True)
                rows = _rows(table, shard, distinct, encode(distinct), next_vector_id)
                writer.write_shard(rows)
                next_vector_id += len(rows)
            writer.metadata = dict(metadata())
        append = True


def check_canaries(
    lake: Lake,
    table: VectorTable,
    unchanged: pl.DataFrame,
    encode: Encode,
    *,
    fingerprint: Fingerprint,
    made_with: Mapping[str, str],
    step: str,
) -> None:
    """Encode a few contents whose vectors are stored, and stop where other vectors come out.

    Raises:
        ValueError: the encoder calls itself the one that wrote the table, but gives other vectors.
    """
    canaries = unchanged.sort("content_hash").head(NUM_CANARIES)  # by hash: spread evenly, the same every time
    if canaries.is_empty():
        return
    wanted = canaries.lazy().drop("event_timestamp").rename({"stored_timestamp": "event_timestamp"})
    stored = lake.scan(table.schema).join(wanted, on=["item_id", "event_timestamp"]).collect()
    vectors_then = np.array(stored.get_column(table.vector).to_list(), np.float32)
    cosines = (encode(stored).vectors * vectors_then).sum(axis=1)
    if (cosines > LEAST_CANARY_COSINE).all():
        return
    manifest = lake.manifest(table.schema)
    worst = int(np.argmin(cosines))
    raise ValueError(
        f"{step}: {int((cosines <= LEAST_CANARY_COSINE).sum())} of {len(cosines)} canary items no longer give "
        f"their vectors (item {stored.get_column('item_id')[worst]}: cosine {cosines[worst]:.4f}, expected above "
        f"{LEAST_CANARY_COSINE}), so new vectors would not fit the old ones.\n"
        f"  stored: {described(manifest.fingerprint)}, made with {manifest.metadata.get('made_with')}\n"
        f"  now:    {fingerprint}, made with {dict(made_with)}\n"
        f"  what to do: install the versions that made the table, or remove {lake.root / manifest.table} "
        f"and run {step} again to embed everything anew"
    )


def described(tags: Mapping[str, str]) -> str:
    """A manifest's fingerprint in a few words; the table may be of a version that knew other parts."""
    try:
        return str(Fingerprint.from_tags(tags))
    except KeyError:
        return ", ".join(f"{name} {value}" for name, value in tags.items()) or "an encoder without a fingerprint"


def first_free_id(stored: pl.DataFrame) -> int:
    """Beyond every vector id of the table: an id never means two vectors."""
    largest = stored.select(pl.col("largest_vector_id").max()).item()
    return 0 if largest is None else int(largest) + 1


def _commits(pending: pl.DataFrame, append: bool) -> Iterator[list[pl.DataFrame]]:
    """Shards that are committed together: each by itself, but for the first commit of a table written anew.

    That one replaces the old table, and with it the only record of when contents changed. So it holds all items whose
    time is not their own: if the job is killed later, no change can be dated back.
    """
    shards = pending.partition_by("shard", maintain_order=True)
    first = 0
    if not append:
        first = max(1, sum(bool(shard.get_column("is_late").any()) for shard in shards))
        yield shards[:first]  # also of no shard at all: an empty table is a table
    for shard in shards[first:]:
        yield [shard]


def _rows(
    table: VectorTable, shard: pl.DataFrame, distinct: pl.DataFrame, encoded: Encoded, next_vector_id: int
) -> pl.DataFrame:
    """Rows of the table: the vector of each distinct content that is good, given to every item that has it."""
    width = encoded.vectors.shape[1]
    of_content = (
        distinct.select("content_number")
        .with_columns(vector=pl.Series(encoded.vectors, dtype=pl.Array(pl.Float32, width)).arr.to_list())
        .filter(pl.Series(encoded.is_good))
    )
    return shard.join(of_content, on="content_number", maintain_order="left").select(
        "item_id",
        pl.col("available").alias("event_timestamp"),
        pl.col("available").alias("created_timestamp"),
        pl.int_range(next_vector_id, next_vector_id + pl.len(), dtype=pl.Int64).alias(table.vector_id),
        pl.col("vector").alias(table.vector),
        pl.col("content_hash").alias(table.hash),
    )
