"""User vectors out of histories, written once and left alone until what they were made of changes.

What `embed_users`, `embed_users_learn` and `embed_users_karma` have in common: every entry of a history is looked up
among the vectors known at the history's time, a hash of the vectors' ids says whether a stored row is still right, and
only what is new is embedded. If an old history has changed (late events, other item vectors), the whole table is
written anew.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import UserHistories
from jobs.content_vectors import ItemVectors
from jobs.lake import Lake
from jobs.progress import progress_bar

if TYPE_CHECKING:
    from embedders.interests import HistoryMeans

logger = logging.getLogger(__name__)

KEY = ["user_id", "event_timestamp"]


class InterestTable(NamedTuple):
    """One of the tables of user vectors. Columns: user_<method>_vector_id, _interest, _num_items and _hash.

    Attributes:
        schema: the table.
        method: `content`, `learn` or `karma`.
        step: who writes it, for messages.
    """

    schema: type[dy.Schema]
    method: str
    step: str


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


class Counts(NamedTuple):
    """What became of the histories.

    Attributes:
        histories: all of them.
        embedded: written by this run.
        kept: left as they were.
        without_vector: no item of theirs has a vector.
        cancelled: their items' vectors add up to nothing.
    """

    histories: int
    embedded: int
    kept: int
    without_vector: int
    cancelled: int

    def told(self, since: datetime, seconds: float) -> str:
        """In a log line's words.

        Args:
            since: histories from then on.
            seconds: that they took.
        """
        return (
            f"{self.histories:_} histories from {since:%Y-%m-%d} on: {self.embedded:_} embedded, {self.kept:_} left as "
            f"they are, {self.without_vector:_} without any item vector, {seconds:.1f} s, "
            f"{self.embedded / max(seconds, 1e-9):.1f} histories/s"
        )


def bring_up_to_date(
    lake: Lake,
    table: InterestTable,
    histories: pl.LazyFrame,
    items: ItemVectors,
    fingerprint: Fingerprint,
    embed: "Callable[[NDArray[np.int64], NDArray[np.int64], Callable[[int], None]], HistoryMeans]",
    *,
    chunk_size: int,
    chunks_per_commit: int | None = None,
) -> Counts:
    """Embed the histories that are new, or all of them where an old one has changed.

    Args:
        lake: where the table is.
        table: which one.
        histories: `user_id`, `event_timestamp`, `history_item_ids`; one row per (user, time).
        items: content vectors.
        fingerprint: identity of the user vectors.
        embed: vectors of some histories, from rows of `items.vectors` and lengths (as `mean_of_history`). Where that
            takes long, it calls its third argument whenever so many more histories are done.
        chunk_size: histories embedded at one time.
        chunks_per_commit: what a killed job loses at most; None: all is committed at the end.
    """
    histories = histories.select(*KEY, "history_item_ids")
    num_histories = histories.select(pl.len()).collect(engine="streaming").item()
    done = _still_right(lake, table, histories, items, fingerprint, chunk_size)
    append, num_done = done is not None, 0 if done is None else len(done)
    if done is not None:
        histories = histories.join(done.lazy(), on=KEY, how="anti", maintain_order="left")
        if num_histories == num_done:
            return Counts(num_histories, 0, num_done, 0, 0)
    counts = Counts(num_histories, 0, num_done, 0, 0)
    pending = chunks(histories, items, chunk_size)
    with progress_bar(f"{table.step}: histories", total=num_histories - num_done, unit="histories") as advance:
        # a table written anew is replaced even where there is nothing to write
        while (first := next(pending, None)) is not None or not append:
            commit = chain(
                [] if first is None else [first], islice(pending, chunks_per_commit and chunks_per_commit - 1)
            )
            with lake.writer(table.schema, append=append, fingerprint=fingerprint.as_tags()) as writer:
                for chunk in commit:
                    done_of_chunk = 0

                    def done_more(count: int) -> None:
                        nonlocal done_of_chunk
                        done_of_chunk += count
                        advance(count)

                    means = embed(chunk.rows, chunk.lengths, done_more)
                    writer.write_shard(_rows(table, chunk, items, means, first_id=num_done + counts.embedded))
                    counts = counts._replace(
                        embedded=counts.embedded + len(means.histories),
                        without_vector=counts.without_vector
                        + len(chunk.keys)
                        - len(means.histories)
                        - means.num_cancelled,
                        cancelled=counts.cancelled + means.num_cancelled,
                    )
                    advance(len(chunk.keys) - done_of_chunk)
            append = True
    return counts


def histories_from(lake: Lake, trained_through: datetime) -> pl.LazyFrame:
    """The histories from `trained_through` on, and each user's newest one before it, dated then.

    User after user, as `user_histories` is: merged, because a sort would hold all histories of the log in memory.
    """
    histories = lake.scan(UserHistories).lazy().select(*KEY, "history_item_ids")
    at = pl.lit(trained_through, pl.Datetime("us", "UTC"))
    from_then = histories.filter(pl.col("event_timestamp") >= at)
    newest_before = (
        histories.filter(pl.col("event_timestamp") < at).group_by("user_id").agg(pl.col("event_timestamp").max())
    )
    has_one_then = histories.filter(pl.col("event_timestamp") == at)
    carried = (
        histories.join(newest_before, on=KEY, how="semi")
        .join(has_one_then, on="user_id", how="anti")
        .with_columns(event_timestamp=at)
    )
    return carried.sort("user_id").merge_sorted(from_then, key="user_id")


def chunks(histories: pl.LazyFrame, items: ItemVectors, chunk_size: int) -> Iterator[Chunk]:
    """Look up, for every entry of every history, the item's newest vector known at the history's time."""
    for batch in histories.collect_batches(chunk_size=chunk_size):
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
            keys=chunk.select(KEY),
            rows=entries.get_column("row").fill_null(-1).to_numpy(),
            lengths=chunk.get_column("history_item_ids").list.len().cast(pl.Int64).to_numpy(),
        )


def hashes(chunk: Chunk, items: ItemVectors) -> list[str | None]:
    """Of the ids of the vectors that each history is made of, in order; None where it has none."""
    found: list[str | None] = []
    end = 0
    for length in chunk.lengths.tolist():
        start, end = end, end + length
        rows = chunk.rows[start:end]
        rows = rows[rows >= 0]
        found.append(hashlib.blake2b(items.ids[rows].tobytes(), digest_size=16).hexdigest() if len(rows) else None)
    return found


def _still_right(
    lake: Lake,
    table: InterestTable,
    histories: pl.LazyFrame,
    items: ItemVectors,
    fingerprint: Fingerprint,
    chunk_size: int,
) -> pl.DataFrame | None:
    """Keys of the rows that can stay; None where the table has to be written anew."""
    if not lake.exists(table.schema):
        return None
    if lake.manifest(table.schema).fingerprint != fingerprint.as_tags():
        logger.warning(
            "%s: the item vectors are now those of %s; all histories are embedded anew", table.step, fingerprint
        )
        return None
    hash_column = f"user_{table.method}_hash"
    stored = lake.scan(table.schema).select(*KEY, then=hash_column).collect()
    num_found = 0
    for chunk in chunks(histories.join(stored.lazy(), on=KEY, how="semi"), items, chunk_size):
        found = chunk.keys.with_columns(now=pl.Series(hashes(chunk, items), dtype=pl.String)).join(stored, on=KEY)
        num_changed = len(found.filter(pl.col("now").ne_missing(pl.col("then"))))
        if num_changed:
            logger.info("%s: %s histories have changed; all are embedded anew", table.step, f"{num_changed:_} or more")
            return None
        num_found += len(found)
    if num_found < len(stored):
        logger.info("%s: %s histories are gone; all are embedded anew", table.step, f"{len(stored) - num_found:_}")
        return None
    return stored.select(KEY)


def _rows(
    table: InterestTable, chunk: Chunk, items: ItemVectors, means: "HistoryMeans", *, first_id: int
) -> pl.DataFrame:
    prefix, width = f"user_{table.method}", means.vectors.shape[1]
    keys = chunk.keys.with_columns(pl.Series(f"{prefix}_hash", hashes(chunk, items), dtype=pl.String))
    return keys[means.histories].with_columns(
        pl.col("event_timestamp").alias("created_timestamp"),
        pl.int_range(first_id, first_id + pl.len(), dtype=pl.Int64).alias(f"{prefix}_vector_id"),
        pl.Series(f"{prefix}_interest", means.vectors, dtype=pl.Array(pl.Float32, width)).arr.to_list(),
        pl.Series(f"{prefix}_num_items", means.num_items),
    )
