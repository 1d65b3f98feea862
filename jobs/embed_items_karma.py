"""Take the content vector and the image vector of every item through KARMA's item side. No language model takes part.

reads   karma_curves (its manifest names the model), item_content_embeddings, item_image_embeddings (may be empty)
writes  item_karma_embeddings     one row per (item_id, event_timestamp)

Point in time: the model has seen the interactions before `trained_through`, so no row is earlier. At that time, every
item gets the vector of its newest content and its newest picture then known; each content vector and each image vector
that becomes known later gives a row of that moment. A picture alone gives none: an item without text is not in the
catalogue that KARMA learns on. A row counts as written when its scheduled run would have written it
(created_timestamp = event_timestamp).

Only what has not been embedded yet is; every shard is committed by itself, so a killed job loses one at most. Another
model writes the table anew, and so do content or image vectors that were made again from the beginning.
"""

import logging
import tempfile
import time

import dataframely as dy
from pydantic import BaseModel, PositiveInt

from feature_repo.table_schemas import ItemContentEmbeddings, ItemImageEmbeddings, ItemKarmaEmbeddings, KarmaCurves
from jobs.content_vectors import CONTENT, IMAGES
from jobs.fitted_karma import check_content, fitted_karma
from jobs.item_embeddings import ItemTable, plan_rows, write_rows
from jobs.karma_items import copy_pairs, known_pairs
from jobs.lake import Lake

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (KarmaCurves, ItemContentEmbeddings, ItemImageEmbeddings)
WRITES: tuple[type[dy.Schema], ...] = (ItemKarmaEmbeddings,)

TABLE = ItemTable(ItemKarmaEmbeddings, method="karma", step="embed_items_karma", made_of=(CONTENT, IMAGES))


class Config(BaseModel, extra="forbid", frozen=True):
    """How much is done at one time."""

    shard_size: PositiveInt = 50_000
    """Vectors per commit: what a killed job loses at most."""


def run(lake: Lake, config: Config) -> None:
    """Embed the content and image vectors that are new.

    Raises:
        ValueError: the vectors are not those that the model was trained on, or the model's files are gone.
    """
    started = time.monotonic()
    fitted = fitted_karma(lake)
    if fitted is None:
        lake.write(ItemKarmaEmbeddings, ItemKarmaEmbeddings.create_empty())
        logger.info("embed_items_karma: this lake does without KARMA; the table is empty")
        return
    frozen = check_content(lake, fitted, "embed_items_karma")
    known = known_pairs(lake, frozen.images).rename(
        {each.vector_id.removeprefix("item_"): TABLE.made_of_column(each) for each in TABLE.made_of}
    )
    plan = plan_rows(lake, TABLE, fitted.fingerprint, fitted.trained_through, known)
    if plan.is_done:
        logger.info("embed_items_karma: all %s vectors are there already", f"{plan.num_stored:_}")
        return
    model = fitted.load("embed_items_karma")
    scratch = lake.folder("scratch")
    with tempfile.TemporaryFile(dir=scratch) as content_file, tempfile.TemporaryFile(dir=scratch) as image_file:
        content_NC, image_NV = copy_pairs(lake, (content_file, image_file), plan.pending, frozen)
        write_rows(
            lake,
            TABLE,
            plan,
            lambda start, stop: model.item_vectors(
                content_NC[start:stop], None if image_NV is None else image_NV[start:stop]
            ),
            shard_size=config.shard_size,
        )
    seconds = time.monotonic() - started
    logger.info(
        "embed_items_karma: %s vectors embedded by %s (%s with a picture), %s left as they are, %.1f s, %.0f vectors/s",
        f"{len(plan.pending):_}",
        fitted.fingerprint,
        f"{len(plan.pending) - plan.pending.get_column('item_karma_image_vector_id').null_count():_}",
        f"{plan.num_stored:_}",
        seconds,
        len(plan.pending) / max(seconds, 1e-9),
    )
