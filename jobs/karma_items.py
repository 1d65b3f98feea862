"""What KARMA reads of an item: the newest content vector and the newest image vector known at a time, as one pair."""

from typing import IO, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedders.fingerprint import Fingerprint
from jobs.content_vectors import CONTENT, IMAGES, ItemVectors, VectorTable, content_keys, copy_vectors, known_rows
from jobs.fitted_karma import FrozenEncoders
from jobs.lake import Lake


class FrozenPairs(NamedTuple):
    """Vectors of some pairs, memory-mapped.

    Attributes:
        content_NC: float32.
        image_NV: float32, a row of zeros where there is no picture; None where no pair has one to read.
    """

    content_NC: NDArray[np.float32]
    image_NV: NDArray[np.float32] | None


def known_pairs(lake: Lake, images: Fingerprint | None) -> pl.DataFrame:
    """Which pair holds from when on.

    Args:
        lake: where the vectors are.
        images: identity of the image vectors; None: none are read.

    Returns:
        `item_id`, `known_from`; `row` and `image_row`, the places in the two tables (-1: no picture); and the ids of
        the vectors, `content_vector_id` and `image_vector_id` (null: no picture). One row per (item, time at which
        another content or image vector becomes the newest known one), from the first content on; sorted by time.
    """
    content_ids, content = _known(lake, CONTENT)
    image_ids, image = (pl.Series([], dtype=pl.Int64), content.clear()) if images is None else _known(lake, IMAGES)
    times = pl.concat([content.select("item_id", "known_from"), image.select("item_id", "known_from")])
    pairs = times.unique().sort("known_from", "item_id")
    for rows, name in ((content, "row"), (image, "image_row")):
        pairs = pairs.join_asof(
            rows.rename({"row": name}),
            on="known_from",
            by="item_id",
            strategy="backward",
            check_sortedness=False,  # both sides are sorted; polars cannot see it within groups and warns
        )
    return pairs.filter(pl.col("row").is_not_null()).with_columns(
        pl.col("image_row").fill_null(-1),
        content_vector_id=pl.lit(content_ids).gather("row"),
        image_vector_id=pl.lit(image_ids).gather("image_row"),
    )


def copy_pairs(
    lake: Lake, files: tuple[IO[bytes], IO[bytes]], pairs: pl.DataFrame, frozen: FrozenEncoders
) -> FrozenPairs:
    """Copy the vectors of the pairs, in the order given, into the files, and map them."""
    content_NC = copy_vectors(lake, files[0], frozen.content.dimension, pairs.get_column("row").to_numpy())
    if frozen.images is None:
        return FrozenPairs(content_NC, None)
    rows = pairs.get_column("image_row").to_numpy()
    return FrozenPairs(content_NC, copy_vectors(lake, files[1], frozen.images.dimension, rows, IMAGES))


def pairs_of_histories(pairs: pl.DataFrame, content_NC: NDArray[np.float32]) -> ItemVectors:
    """The pairs as histories look them up: a row of the result is a row of `pairs`, and of the vectors copied."""
    ids = pairs.select("content_vector_id", pl.col("image_vector_id").fill_null(-1)).to_numpy()
    known = pairs.select("item_id", "known_from", row=pl.int_range(pl.len(), dtype=pl.Int64))
    return ItemVectors(vectors=content_NC, ids=ids, known=known)


def _known(lake: Lake, table: VectorTable) -> tuple[pl.Series, pl.DataFrame]:
    """Ids of the vectors in the order of the table, and `known_rows`."""
    keys = content_keys(lake, table)
    return keys.get_column(table.vector_id), known_rows(keys)
