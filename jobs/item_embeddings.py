"""Item vectors of a trained model, written once and left alone until what they were made of changes.

What `embed_items_learn` and `embed_items_karma` have in common. Point in time: the model has seen the interactions
before `trained_through`, so no row is earlier. At that time, every item gets a vector of what was then known of it;
whatever becomes known later gives a row of that moment. A row counts as written when its scheduled run would have
written it (created_timestamp = event_timestamp).

Every shard is committed by itself, so a killed job loses one at most.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedders.fingerprint import Fingerprint
from jobs.content_vectors import VectorTable
from jobs.lake import Lake, Manifest
from jobs.progress import progress_bar

logger = logging.getLogger(__name__)


class ItemTable(NamedTuple):
    """One of the tables of item vectors. Columns: item_<method>_vector_id, _embedding, and an id for each `made_of`.

    Attributes:
        schema: the table.
        method: `learn` or `karma`.
        step: who writes it, for messages.
        made_of: the frozen vectors that a row is made of.
    """

    schema: type[dy.Schema]
    method: str
    step: str
    made_of: tuple[VectorTable, ...]

    @property
    def key(self) -> list[str]:
        """What tells a row from others: item, time, and the ids of what it is made of."""
        return ["item_id", "event_timestamp", *(self.made_of_column(frozen) for frozen in self.made_of)]

    def made_of_column(self, frozen: VectorTable) -> str:
        """Column of the ids of the frozen vectors."""
        return f"item_{self.method}_{frozen.vector_id.removeprefix('item_')}"


class Plan(NamedTuple):
    """What there is to do.

    Attributes:
        pending: the table's key and the places (`row`, ...) of what each row is made of.
        num_stored: rows that stay.
        append: False where the table has to be written anew.
        fingerprint: of the vectors.
        metadata: of the manifest: which frozen vectors the rows are made of.
    """

    pending: pl.DataFrame
    num_stored: int
    append: bool
    fingerprint: Fingerprint
    metadata: dict[str, Any]

    @property
    def is_done(self) -> bool:
        """Whether the table is as it should be."""
        return self.append and self.pending.is_empty()


def plan_rows(
    lake: Lake, table: ItemTable, fingerprint: Fingerprint, trained_through: datetime, known: pl.DataFrame
) -> Plan:
    """Compare the table with the rows that it should have.

    Args:
        lake: where the tables are.
        table: which one.
        fingerprint: of the model.
        trained_through: no row is earlier.
        known: `item_id`, `known_from`, for each `made_of` the id under the table's own name, and whatever else says
            where the vectors are; one row per (item, time at which other vectors become the newest known ones).
    """
    sources = [
        None if known.get_column(table.made_of_column(frozen)).is_null().all() else lake.manifest(frozen.schema)
        for frozen in table.made_of
    ]
    wanted = _wanted(known, trained_through)
    stored = _still_right(lake, table, fingerprint, sources, wanted)
    pending = wanted if stored is None else wanted.join(stored, on=table.key, how="anti", nulls_equal=True)
    return Plan(
        pending=pending.sort("row"),
        num_stored=0 if stored is None else len(stored),
        append=stored is not None,
        fingerprint=fingerprint,
        metadata=_made_of(table, sources),
    )


def write_rows(
    lake: Lake,
    table: ItemTable,
    plan: Plan,
    embed: Callable[[int, int], NDArray[np.float32]],
    *,
    shard_size: int,
) -> None:
    """Embed what is pending, and commit it shard by shard.

    Args:
        lake: where the table is.
        table: which one.
        plan: as `plan_rows` gives it.
        embed: vectors of the pending rows from a start to a stop, [stop - start, d].
        shard_size: what a killed job loses at most.
    """
    append, prefix = plan.append, f"item_{table.method}"
    width = plan.fingerprint.dimension
    with progress_bar(f"{table.step}: items", total=len(plan.pending), unit="items") as advance:
        # a table written anew is replaced even where there is nothing to write
        for start in range(0, max(1, len(plan.pending)), shard_size):
            shard = plan.pending.slice(start, shard_size)
            embedded = embed(start, start + len(shard))
            with lake.writer(
                table.schema, append=append, fingerprint=plan.fingerprint.as_tags(), metadata=plan.metadata
            ) as writer:
                first_id = plan.num_stored + start
                writer.write_shard(
                    shard.select(
                        *table.key,
                        pl.col("event_timestamp").alias("created_timestamp"),
                        pl.int_range(first_id, first_id + pl.len(), dtype=pl.Int64).alias(f"{prefix}_vector_id"),
                        pl.Series(f"{prefix}_embedding", embedded, dtype=pl.Array(pl.Float32, width)).arr.to_list(),
                    )
                )
            append = True
            advance(len(shard))


def _wanted(known: pl.DataFrame, trained_through: datetime) -> pl.DataFrame:
    """Rows that the table should have: the newest known at `trained_through`, dated then, and all that come later."""
    at = pl.lit(trained_through, pl.Datetime("us", "UTC"))
    at_once = (
        known.filter(pl.col("known_from") <= trained_through)
        .unique("item_id", keep="last", maintain_order=True)
        .with_columns(known_from=at)
    )
    later = known.filter(pl.col("known_from") > trained_through)
    return pl.concat([at_once, later]).rename({"known_from": "event_timestamp"})


def _still_right(
    lake: Lake, table: ItemTable, fingerprint: Fingerprint, sources: list[Manifest | None], wanted: pl.DataFrame
) -> pl.DataFrame | None:
    """Keys of the rows that can stay; None where the table has to be written anew."""
    if not lake.exists(table.schema):
        return None
    manifest = lake.manifest(table.schema)
    if manifest.fingerprint != fingerprint.as_tags():
        logger.warning("%s: the model is now %s; all items are embedded anew", table.step, fingerprint)
        return None
    if _made_of(table, sources, manifest.metadata) != manifest.metadata:
        kinds = " or ".join(_kind(frozen) for frozen in table.made_of)
        logger.warning("%s: the %s vectors were made again; all items are embedded anew", table.step, kinds)
        return None
    stored = lake.scan(table.schema).select(table.key).collect()
    if num_gone := len(stored.join(wanted, on=table.key, how="anti", nulls_equal=True)):
        logger.info("%s: %s rows have changed; all items are embedded anew", table.step, f"{num_gone:_}")
        return None
    return stored


def _made_of(table: ItemTable, sources: list[Manifest | None], then: dict[str, Any] | None = None) -> dict[str, Any]:
    """Identity of the first shards of the frozen tables. While they only grow, those and their vector ids stay.

    Args:
        table: which one.
        sources: manifests of what it is made of; None where no row is, which is as good as an empty table.
        then: as this function gave it before: of as many shards as there were then.
    """
    found: dict[str, Any] = {}
    for frozen, manifest in zip(table.made_of, sources, strict=True):
        kind = _kind(frozen)
        shards = [] if manifest is None else [shard.sha256 for shard in manifest.shards]
        if then is not None:
            shards = shards[: then[f"num_{kind}_shards"]]
        found[f"num_{kind}_shards"] = len(shards)
        found[f"{kind}_digest"] = hashlib.sha256(json.dumps(shards).encode()).hexdigest()
    return found


def _kind(frozen: VectorTable) -> str:
    return frozen.vector_id.removeprefix("item_").removesuffix("_vector_id")
