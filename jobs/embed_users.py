"""Average the content vectors of what each user clicked (LEARN's baseline without alignment).

reads   user_histories, item_content_embeddings
writes  user_content_interests     one row per (user_id, event_timestamp) of user_histories

Point in time: a history of some midnight is averaged over the newest item vectors known at that midnight, so the row
counts as available then (event_timestamp = created_timestamp = the midnight). A history of which no item has a vector
gets no row. Histories already averaged over the same vectors are left as they are; if one of them has changed since
(late events, other item vectors), the whole table is written anew.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import dataframely as dy
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, PositiveInt

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import ItemContentEmbeddings, UserContentInterests, UserHistories
from jobs.content_vectors import item_vectors
from jobs.lake import Lake
from jobs.user_interests import InterestTable, bring_up_to_date

if TYPE_CHECKING:
    from embedders.interests import HistoryMeans

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (UserHistories, ItemContentEmbeddings)
WRITES: tuple[type[dy.Schema], ...] = (UserContentInterests,)

TABLE = InterestTable(UserContentInterests, method="content", step="embed_users")


class Config(BaseModel, extra="forbid", frozen=True):
    """How much is done at one time."""

    chunk_size: PositiveInt = 20_000
    """Histories averaged at one time: 20 000 of 50 items, 384 wide, take about 0.3 GB."""


def run(lake: Lake, config: Config) -> None:
    """Average the histories that are new, or all of them where an old one has changed."""
    started = time.monotonic()
    fingerprint = Fingerprint.from_tags(lake.manifest(ItemContentEmbeddings).fingerprint).of_mean_of_history()
    histories = lake.scan(UserHistories)
    # a large catalogue does not fit into memory; and a file without a name is gone with the job, even a killed one
    with tempfile.TemporaryFile(dir=lake.root) as file:
        items = item_vectors(lake, file, fingerprint.dimension)

        def average(
            rows_T: NDArray[np.int64], lengths_H: NDArray[np.int64], _: Callable[[int], None]
        ) -> "HistoryMeans":
            from embedders.interests import mean_of_history  # here: torch takes seconds to import, for nothing to do

            return mean_of_history(items.vectors, rows_T, lengths_H)

        counts = bring_up_to_date(lake, TABLE, histories, items, fingerprint, average, chunk_size=config.chunk_size)
    seconds = time.monotonic() - started
    logger.info(
        "embed_users: %s histories: %s averaged, %s left as they are, %s without any item vector, %s cancelled out, "
        "%.1f s, %.0f histories/s",
        f"{counts.histories:_}",
        f"{counts.embedded:_}",
        f"{counts.kept:_}",
        f"{counts.without_vector:_}",
        f"{counts.cancelled:_}",
        seconds,
        counts.histories / max(seconds, 1e-9),
    )
