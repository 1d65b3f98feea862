"""Read every user's history with KARMA's language model.

reads   karma_curves (its manifest names the model), user_histories, item_content_embeddings,
        item_image_embeddings (may be empty)
writes  user_karma_interests     one row per (user_id, event_timestamp)

Point in time: the model has seen the interactions before `trained_through`, so no row is earlier. At that time, every
user gets the vector of their newest history; each history of a later midnight gives a row of that midnight. The model
reads the newest content and image vectors known at the row's time. A history of which no item has a content vector
gets no row. Nothing is generated: the vector is the state at one read-out token.

The vector of a day stands for the user, whatever they search for, so it is read out without a query [NF->P]; with one,
`KarmaModel.user_vectors` gives the vector of a request.

Only histories that are new are embedded. If an old one has changed since (late events, other content or image
vectors), or the model has, the whole table is written anew.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import dataframely as dy
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, PositiveInt

from feature_repo.table_schemas import (
    ItemContentEmbeddings,
    ItemImageEmbeddings,
    KarmaCurves,
    UserHistories,
    UserKarmaInterests,
)
from jobs.fitted_karma import check_content, fitted_karma
from jobs.karma_items import copy_pairs, known_pairs, pairs_of_histories
from jobs.lake import Lake
from jobs.user_interests import InterestTable, bring_up_to_date, histories_from

if TYPE_CHECKING:
    from embedders.interests import HistoryMeans
    from embedders.karma_model import KarmaModel

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (KarmaCurves, UserHistories, ItemContentEmbeddings, ItemImageEmbeddings)
WRITES: tuple[type[dy.Schema], ...] = (UserKarmaInterests,)

TABLE = InterestTable(UserKarmaInterests, method="karma", step="embed_users_karma")

CHUNKS_PER_COMMIT = 4
"""What a killed job loses at most: minutes of a CPU. Each commit looks for keys that are there twice, so it cannot be
one a chunk."""


class Config(BaseModel, extra="forbid", frozen=True):
    """How much is done at one time."""

    chunk_size: PositiveInt = 500
    """Histories read at one time, those of one user together; four times as many are committed together."""


def run(lake: Lake, config: Config) -> None:
    """Read the histories that are new, or all of them where an old one has changed.

    Raises:
        ValueError: the vectors are not those that the model was trained on, or the model's files are gone.
    """
    started = time.monotonic()
    fitted = fitted_karma(lake)
    if fitted is None:
        lake.write(UserKarmaInterests, UserKarmaInterests.create_empty())
        logger.info("embed_users_karma: this lake does without KARMA; the table is empty")
        return
    frozen = check_content(lake, fitted, "embed_users_karma")

    @cache
    def model() -> "KarmaModel":
        return fitted.load("embed_users_karma")

    scratch = lake.folder("scratch")
    with tempfile.TemporaryFile(dir=scratch) as content_file, tempfile.TemporaryFile(dir=scratch) as image_file:
        pairs = known_pairs(lake, frozen.images)
        content_NC, image_NV = copy_pairs(lake, (content_file, image_file), pairs, frozen)

        def embed(
            rows_T: NDArray[np.int64], lengths_H: NDArray[np.int64], done_more: Callable[[int], None]
        ) -> "HistoryMeans":
            return model().user_vectors(content_NC, rows_T, lengths_H, image_NV=image_NV, on_progress=done_more)

        counts = bring_up_to_date(
            lake,
            TABLE,
            # one user's histories come one after the other: the model reads what they begin with once
            histories_from(lake, fitted.trained_through),
            pairs_of_histories(pairs, content_NC),
            fitted.fingerprint,
            embed,
            chunk_size=config.chunk_size,
            chunks_per_commit=CHUNKS_PER_COMMIT,
        )
    logger.info("embed_users_karma: %s", counts.told(fitted.trained_through, time.monotonic() - started))
