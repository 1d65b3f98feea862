"""Take the content vector of every item through LEARN's item tower.

reads   embedder_curves (its manifest names the model), item_content_embeddings
writes  item_learn_embeddings     one row per (item_id, event_timestamp)

Point in time: the model has seen the interactions before `trained_through`, so no row is earlier. At that time, every
item gets the vector of its newest content then known; each content vector that becomes known later gives a row of that
moment. A row counts as written when its scheduled run would have written it (created_timestamp = event_timestamp).

Only content that has not been embedded yet is; every shard is committed by itself, so a killed job loses one at most.
Another model writes the table anew, and so do content vectors that were made again from the beginning.
"""

import logging
import tempfile
import time

import dataframely as dy
import polars as pl
from pydantic import BaseModel, PositiveInt

from feature_repo.table_schemas import EmbedderCurves, ItemContentEmbeddings, ItemLearnEmbeddings
from jobs.content_vectors import CONTENT, content_keys, copy_vectors, known_rows
from jobs.fitted_embedder import check_content, fitted_learn
from jobs.item_embeddings import ItemTable, plan_rows, write_rows
from jobs.lake import Lake

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (EmbedderCurves, ItemContentEmbeddings)
WRITES: tuple[type[dy.Schema], ...] = (ItemLearnEmbeddings,)

TABLE = ItemTable(ItemLearnEmbeddings, method="learn", step="embed_items_learn", made_of=(CONTENT,))


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
    keys = content_keys(lake)
    known = known_rows(keys).with_columns(
        pl.lit(keys.get_column(CONTENT.vector_id)).gather("row").alias(TABLE.made_of_column(CONTENT))
    )
    plan = plan_rows(lake, TABLE, fitted.fingerprint, fitted.trained_through, known)
    if plan.is_done:
        logger.info("embed_items_learn: all %s vectors are there already", f"{plan.num_stored:_}")
        return
    model = fitted.load("embed_items_learn")
    with tempfile.TemporaryFile(dir=lake.folder("scratch")) as file:
        vectors = copy_vectors(lake, file, content.dimension, plan.pending.get_column("row").to_numpy())
        write_rows(
            lake,
            TABLE,
            plan,
            lambda start, stop: model.item_vectors(vectors[start:stop]),
            shard_size=config.shard_size,
        )
    seconds = time.monotonic() - started
    logger.info(
        "embed_items_learn: %s vectors embedded by %s, %s left as they are, %.1f s, %.0f vectors/s",
        f"{len(plan.pending):_}",
        fitted.fingerprint,
        f"{plan.num_stored:_}",
        seconds,
        len(plan.pending) / max(seconds, 1e-9),
    )
