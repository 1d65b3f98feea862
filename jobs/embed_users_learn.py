"""Take every user's history through LEARN's user tower.

reads   embedder_curves (its manifest names the model), user_histories, item_content_embeddings
writes  user_learn_interests     one row per (user_id, event_timestamp)

Point in time: the model has seen the interactions before `trained_through`, so no row is earlier. At that time, every
user gets the vector of their newest history; each history of a later midnight gives a row of that midnight. The tower
reads the newest content vectors known at the row's time. A history of which no item has a vector gets no row.

Only histories that are new are embedded. If an old one has changed since (late events, other content vectors), or the
model has, the whole table is written anew.
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

from feature_repo.table_schemas import EmbedderCurves, ItemContentEmbeddings, UserHistories, UserLearnInterests
from jobs.content_vectors import item_vectors
from jobs.fitted_embedder import check_content, fitted_learn
from jobs.lake import Lake
from jobs.user_interests import InterestTable, bring_up_to_date, histories_from

if TYPE_CHECKING:
    from embedders.interests import HistoryMeans
    from embedders.learn_model import LearnModel

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (EmbedderCurves, UserHistories, ItemContentEmbeddings)
WRITES: tuple[type[dy.Schema], ...] = (UserLearnInterests,)

TABLE = InterestTable(UserLearnInterests, method="learn", step="embed_users_learn")

CHUNKS_PER_COMMIT = 10
"""What a killed job loses at most. Each commit looks for keys that are there twice, so it cannot be one a chunk."""


class Config(BaseModel, extra="forbid", frozen=True):
    """How much is done at one time."""

    chunk_size: PositiveInt = 20_000
    """Histories embedded at one time; ten times as many are committed together."""


def run(lake: Lake, config: Config) -> None:
    """Embed the histories that are new, or all of them where an old one has changed.

    Raises:
        ValueError: the content vectors are not those that the model was trained on, or the model's files are gone.
    """
    started = time.monotonic()
    fitted = fitted_learn(lake)
    if fitted is None:
        lake.write(UserLearnInterests, UserLearnInterests.create_empty())
        logger.info("embed_users_learn: this lake does without LEARN; the table is empty")
        return
    content = check_content(lake, fitted, "embed_users_learn")

    @cache
    def model() -> "LearnModel":
        return fitted.load("embed_users_learn")

    with tempfile.TemporaryFile(dir=lake.folder("scratch")) as file:
        items = item_vectors(lake, file, content.dimension)

        def embed(rows_T: NDArray[np.int64], lengths_H: NDArray[np.int64], _: Callable[[int], None]) -> "HistoryMeans":
            return model().user_vectors(items.vectors, rows_T, lengths_H)

        counts = bring_up_to_date(
            lake,
            TABLE,
            histories_from(lake, fitted.trained_through),
            items,
            fitted.fingerprint,
            embed,
            chunk_size=config.chunk_size,
            chunks_per_commit=CHUNKS_PER_COMMIT,
        )
    logger.info("embed_users_learn: %s", counts.told(fitted.trained_through, time.monotonic() - started))
