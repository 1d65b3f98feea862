"""Average the content vectors of what each user clicked (LEARN's baseline without alignment).

reads   user_histories, item_content_embeddings
writes  user_content_interests     one row per (user_id, event_timestamp) of user_histories

Point in time: a history of some midnight is averaged over the newest item vectors known at that midnight, so the row
counts as available then (event_timestamp = created_timestamp = the midnight). A history of which no item has a vector
gets no row. Histories already averaged over the same vectors are left as they are; if one of them has changed since
(late events, other item vectors), the whole table is written anew.
"""

import hashlib
import logging
import tempfile
import time
from collections.abc import Iterator
from typing import IO, NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, PositiveInt

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import ItemContentEmbeddings, UserContentInterests, UserHistories
from jobs.lake import Lake
from jobs.progress import progress_bar

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (UserHistories, ItemContentEmbeddings)
WRITES: tuple[type[dy.Schema], ...] = (UserContentInterests,)


class Config(BaseModel, extra="forbid", frozen=True):
    """How much is done at one time."""

    chunk_size: PositiveInt = 20_000
    """Histories averaged at one time: 20 000 of 50 items, 384 wide, take about 0.3 GB."""


class ItemVectors(NamedTuple):
    """All item vectors, and which of them is known when.

    Attributes:
        vectors: [N, width] float32, memory-mapped.
        ids: [N] int64, their item_content_vector_id.
        known: one row per (item_id, known_from): `row` of `vectors` that is the newest known from then on.
    """

    vectors: NDArray[np.float32]
    ids: NDArray[np.int64]
    known: pl.DataFrame


def run(lake: Lake, config: Config) -> None:
    """Average the histories that are new, or all of them where an old one has changed."""
    started = time.monotonic()
    fingerprint = Fingerprint.from_tags(lake.manifest(ItemContentEmbeddings).fingerprint).of_mean_of_history()
    num_histories = lake.manifest(UserHistories).rows
    # a large catalogue does not fit into memory; and a file without a name is gone with the job, even a killed one
    with tempfile.TemporaryFile(dir=lake.root) as file:
        items = _item_vectors(lake, file, fingerprint.dimension)
        done = _already_averaged(lake, items, fingerprint, config.chunk_size)
        counts = _average(lake, items, fingerprint, done, config.chunk_size)
    seconds = time.monotonic() - started
    logger.info(
        "embed_users: %s histories: %s averaged, %s left as they are, %s without any item vector, %s cancelled out, "
        "%.1f s, %.0f histories/s",
        f"{num_histories:_}",
        f"{counts.averaged:_}",
        f"{0 if done is None else len(done):_}",
        f"{counts.without_vector:_}",
        f"{counts.cancelled:_}",
        seconds,
        num_histories / max(seconds, 1e-9),
    )


def _item_vectors(lake: Lake, file: IO[bytes], width: int) -> ItemVectors:
    """Copy the vectors, shard by shard, into a memory-mapped file."""
    # an empty file cannot be mapped; the row too many is never named
    num_rows = max(1, lake.manifest(ItemContentEmbeddings).rows)
    vectors = np.memmap(file, np.float32, mode="w+", shape=(num_rows, width))
    keys, first = [ItemContentEmbeddings.create_empty().drop("item_content_embedding")], 0
    for path in lake.parquet_files(ItemContentEmbeddings):
        shard = pl.read_parquet(path)
        flat = shard.get_column("item_content_embedding").explode().to_numpy()
        vectors[first : first + len(shard)] = flat.reshape(len(shard), width)
        first += len(shard)
        keys.append(shard.drop("item_content_embedding"))
    rows = pl.concat(keys).with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))

    oldest_first = rows.sort("item_id", "event_timestamp", "created_timestamp").with_columns(age=pl.int_range(pl.len()))
    known = (
        oldest_first.with_columns(known_from=pl.max_horizontal("event_timestamp", "created_timestamp"))
        .sort("item_id", "known_from", "age")
        # a row written late about an earlier time does not push out a newer one that is already known
        .with_columns(age=pl.col("age").cum_max().over("item_id"))
        .unique(["item_id", "known_from"], keep="last", maintain_order=True)
    )
    return ItemVectors(
        vectors=vectors,
        ids=rows.get_column("item_content_vector_id").to_numpy(),
        known=known.select(
            "item_id", "known_from", row=oldest_first.get_column("row").gather(known.get_column("age"))
        ).sort("known_from"),
    )


class Chunk(NamedTuple):
    """Some histories, and for each of their entries a row of the item vectors, or -1.

    Attributes:
        keys: user_id and event_timestamp, one row per history.
        rows: [entries over all histories] int64.
        lengths: [histories] int64, entries of each.
    """

    keys: pl.DataFrame
    rows: NDArray[np.int64]
    lengths: NDArray[np.int64]


def _chunks(histories: pl.LazyFrame, items: ItemVectors, chunk_size: int) -> Iterator[Chunk]:
    """Look up, for every entry of every history, the item's newest vector known at the history's midnight."""
    for batch in histories.select("user_id", "event_timestamp", "history_item_ids").collect_batches(
        chunk_size=chunk_size
    ):
        chunk = batch.sort("event_timestamp", maintain_order=True)
        entries = (
            chunk.select("event_timestamp", item_id="history_item_ids")
            .explode("item_id")
            .join_asof(
                items.known,
                left_on="event_timestamp",
                right_on="known_from",
                by="item_id",
                strategy="backward",
                check_sortedness=False,  # both sides are sorted; polars cannot see it within groups and warns
            )
        )
        yield Chunk(
            keys=chunk.select("user_id", "event_timestamp"),
            rows=entries.get_column("row").fill_null(-1).to_numpy(),
            lengths=chunk.get_column("history_item_ids").list.len().cast(pl.Int64).to_numpy(),
        )


def _hashes(chunk: Chunk, items: ItemVectors) -> list[str | None]:
    """Of the ids of the vectors that each history averages, in order; None where it has none."""
    ids = np.where(chunk.rows >= 0, items.ids[chunk.rows], -1) if len(items.ids) else chunk.rows
    hashes: list[str | None] = []
    end = 0
    for length in chunk.lengths.tolist():
        start, end = end, end + length
        of_history = ids[start:end]
        of_history = of_history[of_history >= 0]
        hashes.append(hashlib.blake2b(of_history.tobytes(), digest_size=16).hexdigest() if len(of_history) else None)
    return hashes


def _already_averaged(lake: Lake, items: ItemVectors, fingerprint: Fingerprint, chunk_size: int) -> pl.DataFrame | None:
    """Keys of the rows that can stay; None where the table has to be written anew."""
    if not lake.exists(UserContentInterests):
        return None
    if lake.manifest(UserContentInterests).fingerprint != fingerprint.as_tags():
        logger.warning(
            "embed_users: the item vectors are now those of %s; all histories are averaged anew", fingerprint
        )
        return None
    key = ["user_id", "event_timestamp"]
    stored = lake.scan(UserContentInterests).select(*key, "user_content_hash").collect()
    num_found = 0
    for chunk in _chunks(lake.scan(UserHistories).join(stored.lazy(), on=key, how="semi"), items, chunk_size):
        found = chunk.keys.with_columns(now=pl.Series(_hashes(chunk, items), dtype=pl.String)).join(stored, on=key)
        num_changed = len(found.filter(pl.col("now").ne_missing(pl.col("user_content_hash"))))
        if num_changed:
            logger.info("embed_users: %s histories have changed; all are averaged anew", f"{num_changed:_} or more")
            return None
        num_found += len(found)
    if num_found < len(stored):
        logger.info("embed_users: %s histories are gone; all are averaged anew", f"{len(stored) - num_found:_}")
        return None
    return stored.select(key)


class Counts(NamedTuple):
    """What became of the histories that were looked at."""

    averaged: int
    without_vector: int
    cancelled: int


def _average(
    lake: Lake, items: ItemVectors, fingerprint: Fingerprint, done: pl.DataFrame | None, chunk_size: int
) -> Counts:
    """Write the interests of all histories but those done."""
    from embedders.interests import mean_of_history  # here: torch takes seconds to import, and `plan` does not need it

    histories: pl.LazyFrame = lake.scan(UserHistories)
    num_pending = lake.manifest(UserHistories).rows
    next_vector_id = 0
    if done is not None:
        histories = histories.join(done.lazy(), on=["user_id", "event_timestamp"], how="anti")
        num_pending -= len(done)
        if num_pending == 0:
            return Counts(0, 0, 0)
        next_vector_id = len(done)
    width = fingerprint.dimension
    averaged = without_vector = cancelled = 0
    with (
        lake.writer(
            UserContentInterests,
            append=done is not None,
            fingerprint=fingerprint.as_tags(),
            rules={f"vector_is_{width}_wide": pl.col("user_content_interest").list.len() == width},
        ) as writer,
        progress_bar("average histories", total=num_pending, unit="histories") as advance,
    ):
        for chunk in _chunks(histories, items, chunk_size):
            means = mean_of_history(items.vectors, chunk.rows, chunk.lengths)
            keys = chunk.keys.with_columns(user_content_hash=pl.Series(_hashes(chunk, items), dtype=pl.String))
            writer.write_shard(
                keys[means.histories].with_columns(
                    created_timestamp="event_timestamp",
                    user_content_vector_id=pl.int_range(next_vector_id, next_vector_id + pl.len(), dtype=pl.Int64),
                    user_content_interest=pl.Series(means.vectors, dtype=pl.Array(pl.Float32, width)).arr.to_list(),
                    user_content_num_items=pl.Series(means.num_items),
                )
            )
            next_vector_id += len(means.histories)
            averaged += len(means.histories)
            cancelled += means.num_cancelled
            without_vector += len(chunk.keys) - len(means.histories) - means.num_cancelled
            advance(len(chunk.keys))
    return Counts(averaged, without_vector, cancelled)
