"""Take the content vector of every item through LEARN's item tower.

reads   embedder_curves (its manifest names the model), item_content_embeddings
writes  item_learn_embeddings     one row per (item_id, event_timestamp)

Point in time: the model has seen the interactions before `trained_through`, so no row is earlier. At that time, every
item gets the vector of its newest content then known; each content vector that becomes known later gives a row of that
moment. A row counts as written when its scheduled run would have written it (created_timestamp = event_timestamp).

Only content that has not been embedded yet is; every shard is committed by itself, so a killed job loses one at most.
Another model writes the table anew, and so do content vectors that were made again from the beginning.
"""

import hashlib
import json
import logging
import tempfile
import time
from datetime import datetime
from typing import Any

import dataframely as dy
import polars as pl
from pydantic import BaseModel, PositiveInt

from feature_repo.table_schemas import EmbedderCurves, ItemContentEmbeddings, ItemLearnEmbeddings
from jobs.content_vectors import content_keys, copy_vectors, known_rows, newest_known
from jobs.fitted_embedder import FittedEmbedder, check_content, fitted_learn
from jobs.lake import Lake, Manifest
from jobs.progress import progress_bar

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (EmbedderCurves, ItemContentEmbeddings)
WRITES: tuple[type[dy.Schema], ...] = (ItemLearnEmbeddings,)

KEY = ["item_id", "event_timestamp", "item_learn_content_vector_id"]


class Config(BaseModel, extra="forbid", frozen=True):
    """How much is done at one time."""

    shard_size: PositiveInt = 50_000
    """Vectors per commit: what a killed job loses at most."""


def run(lake: Lake, config: Config) -> None:
    """Embed the content vectors that are new.

    Raises:
        ValueError: the content vectors are not those that the model was trained on, or the model's files are gone.
    """
    started = time.monotonic()
    fitted = fitted_learn(lake)
    if fitted is None:
        lake.write(ItemLearnEmbeddings, ItemLearnEmbeddings.create_empty())
        logger.info("embed_items_learn: this lake does without LEARN; the table is empty")
        return
    content = check_content(lake, fitted, "embed_items_learn")
    content_manifest = lake.manifest(ItemContentEmbeddings)
    wanted = _wanted(lake, fitted.trained_through)
    stored = _still_right(lake, fitted, content_manifest, wanted)
    append, num_stored = stored is not None, 0 if stored is None else len(stored)
    pending = (wanted if stored is None else wanted.join(stored, on=KEY, how="anti")).sort("row")

    if append and pending.is_empty():
        logger.info("embed_items_learn: all %s vectors are there already", f"{num_stored:_}")
        return
    model = fitted.load("embed_items_learn")
    width = fitted.fingerprint.dimension
    with (
        tempfile.TemporaryFile(dir=lake.folder("scratch")) as file,
        progress_bar("embed_items_learn: items", total=len(pending), unit="items") as advance,
    ):
        vectors = copy_vectors(lake, file, content.dimension, pending.get_column("row").to_numpy())
        # a table written anew is replaced even where there is nothing to write
        for start in range(0, max(1, len(pending)), config.shard_size):
            shard = pending.slice(start, config.shard_size)
            embedded = model.item_vectors(vectors[start : start + len(shard)])
            with lake.writer(
                ItemLearnEmbeddings,
                append=append,
                fingerprint=fitted.fingerprint.as_tags(),
                metadata=_made_of(content_manifest),
            ) as writer:
                first_id = num_stored + start
                writer.write_shard(
                    shard.drop("row").with_columns(
                        created_timestamp="event_timestamp",
                        item_learn_vector_id=pl.int_range(first_id, first_id + pl.len(), dtype=pl.Int64),
                        item_learn_embedding=pl.Series(embedded, dtype=pl.Array(pl.Float32, width)).arr.to_list(),
                    )
                )
            append = True
            advance(len(shard))
    seconds = time.monotonic() - started
    logger.info(
        "embed_items_learn: %s vectors embedded by %s, %s left as they are, %.1f s, %.0f vectors/s",
        f"{len(pending):_}",
        fitted.fingerprint,
        f"{num_stored:_}",
        seconds,
        len(pending) / max(seconds, 1e-9),
    )


def _wanted(lake: Lake, trained_through: datetime) -> pl.DataFrame:
    """Rows that the table should have: `KEY`, and the place of the content vector."""
    keys = content_keys(lake)
    known = known_rows(keys)
    at_once = newest_known(known, trained_through).with_columns(
        known_from=pl.lit(trained_through, pl.Datetime("us", "UTC"))
    )
    rows = pl.concat([at_once, known.filter(pl.col("known_from") > trained_through)])
    return rows.select(
        "item_id",
        "row",
        event_timestamp="known_from",
        item_learn_content_vector_id=keys.get_column("item_content_vector_id").gather(rows.get_column("row")),
    )


def _still_right(lake: Lake, fitted: FittedEmbedder, content: Manifest, wanted: pl.DataFrame) -> pl.DataFrame | None:
    """Keys of the rows that can stay; None where the table has to be written anew."""
    if not lake.exists(ItemLearnEmbeddings):
        return None
    manifest = lake.manifest(ItemLearnEmbeddings)
    if manifest.fingerprint != fitted.fingerprint.as_tags():
        logger.warning("embed_items_learn: the model is now %s; all items are embedded anew", fitted.fingerprint)
        return None
    made_of = manifest.metadata
    if _made_of(content, made_of["num_content_shards"]) != made_of:
        logger.warning("embed_items_learn: the content vectors were made again; all items are embedded anew")
        return None
    stored = lake.scan(ItemLearnEmbeddings).select(KEY).collect()
    if num_gone := len(stored.join(wanted, on=KEY, how="anti")):
        logger.info("embed_items_learn: %s rows have changed; all items are embedded anew", f"{num_gone:_}")
        return None
    return stored


def _made_of(content: Manifest, num_shards: int | None = None) -> dict[str, Any]:
    """Identity of the first shards of the content table. While it only grows, they and their vector ids stay."""
    shards = [shard.sha256 for shard in content.shards[:num_shards]]
    digest = hashlib.sha256(json.dumps(shards).encode()).hexdigest()
    return {"num_content_shards": len(shards), "content_digest": digest}
