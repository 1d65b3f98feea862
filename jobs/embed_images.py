"""Embed the picture of every item with a frozen vision model (the image side of KARMA).

reads   item_images
writes  item_image_embeddings       one row per (item_id, event_timestamp); empty where `enabled` is false

Only what is new or has changed, by the hash of its bytes, is encoded. Every shard is committed by itself, so a killed
job loses one at most. `jobs.dated_vectors` says since when a vector counts as known: an item's first picture dates with
the item, also one that was given or mended later, as the table of pictures has no history; a changed one, now. Do not
let pictures follow what was clicked: they would be known to impressions before it. A picture that cannot be read gets
no vector, so its item keeps that of an earlier picture, or has none; it is counted in the manifest, named in the log,
and tried again by the next run.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dataframely as dy
import polars as pl
from pydantic import BaseModel, PositiveInt

from embedders.fingerprint import sha256_of_files
from feature_repo.table_schemas import ItemImageEmbeddings, ItemImages
from jobs.content_vectors import IMAGES
from jobs.dated_vectors import (
    Encoded,
    check_canaries,
    compared,
    dated,
    described,
    first_free_id,
    in_shards,
    newest_stored,
    write_in_shards,
)
from jobs.lake import Lake
from jobs.progress import progress_bar

if TYPE_CHECKING:
    from embedders.vision import VisionEncoder

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (ItemImages,)
WRITES: tuple[type[dy.Schema], ...] = (ItemImageEmbeddings,)

NUM_SAMPLE_ITEMS = 8
"""Items named whose picture cannot be read."""


class Config(BaseModel, extra="forbid", frozen=True):
    """Whether pictures are read, and by which model."""

    enabled: bool = False
    """Pictures take a CPU some 50 ms each, and the extra `vision` or a model of your own. Off empties the table."""
    backbone: str = "efficientnet_lite0"
    """The packaged model, or the path of a Hugging Face folder of a vision model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass. Auto is bfloat16 on a GPU; name one where machines of both kinds run this job."""
    batch_size: PositiveInt = 32
    """Pictures per forward pass."""
    shard_size: PositiveInt = 512
    """Distinct pictures per commit: what a killed job loses at most, and what is in memory at a time."""


def outside_inputs(config: Config) -> str | None:
    """Hash of the model's files: other weights under the same name make the step stale."""
    if not config.enabled:
        return None
    from embedders.vision import find_vision_files

    return sha256_of_files(find_vision_files(config.backbone).weights)


def run(lake: Lake, config: Config) -> None:
    """Embed what is new or changed among the pictures."""
    if not config.enabled:
        lake.write(ItemImageEmbeddings, ItemImageEmbeddings.create_empty(), metadata={"enabled": False})
        logger.info("embed_images: not enabled, this lake does without pictures")
        return
    if not lake.exists(ItemImages):
        logger.warning(
            "embed_images: %s was ingested by a version that took in no pictures; run ingest again (--force) for them",
            lake.root,
        )
    if not lake.exists(ItemImages) or lake.manifest(ItemImages).rows == 0:
        if not lake.exists(ItemImageEmbeddings) or lake.manifest(ItemImageEmbeddings).rows == 0:
            lake.write(ItemImageEmbeddings, ItemImageEmbeddings.create_empty(), metadata={"enabled": True})
        logger.info("embed_images: the items have no pictures")
        return
    from embedders.vision import load_vision  # here: torch takes seconds to import, and `plan` does not need it

    embed_pictures(
        lake,
        load_vision(config.backbone, dtype=config.dtype),
        batch_size=config.batch_size,
        shard_size=config.shard_size,
    )


def embed_pictures(lake: Lake, encoder: "VisionEncoder", *, batch_size: int, shard_size: int) -> None:
    """Bring `item_image_embeddings` up to date with `item_images`, under one encoder.

    Raises:
        TableError: the encoder gave vectors that are not finite, not of length 1 or not of its width.
        ValueError: the encoder calls itself the one that wrote the table, but gives other vectors.
    """
    started = time.monotonic()
    fingerprint = encoder.fingerprint()
    stored = newest_stored(lake, IMAGES)
    manifest = lake.manifest(ItemImageEmbeddings) if lake.exists(ItemImageEmbeddings) else None
    append = manifest is not None and manifest.fingerprint == fingerprint.as_tags()
    if manifest is not None and manifest.rows and not append:
        logger.warning(
            "embed_images: item_image_embeddings was made by %s; it is written anew by %s",
            described(manifest.fingerprint),
            fingerprint,
        )
    pictures = compared(_pictures(lake), stored)
    # in the order in which the pictures lie on disk: a shard then needs a file or two
    pending = in_shards(
        dated(pictures.filter(pl.col("is_new") | pl.col("is_edited")) if append else pictures, lake.now()),
        shard_size,
        order=("file", "row"),
    )
    made_with = {name: version(name) for name in ("torch", "transformers", "pillow")}
    num_pictures = pending.get_column("content_number").n_unique()
    unreadable: list[str] = []

    def encode(wanted: pl.DataFrame, on_progress: Callable[[int], None] | None = None) -> Encoded:
        return Encoded(*encoder.encode(_contents(lake, wanted), batch_size, on_progress))

    with progress_bar("encode pictures", total=num_pictures, unit="pictures") as advance:

        def encode_and_count(distinct: pl.DataFrame) -> Encoded:
            encoded = encode(distinct, advance)
            bad = distinct.filter(~pl.Series(encoded.is_good)).select("content_number")
            unreadable.extend(pending.join(bad, on="content_number", how="semi").get_column("item_id").to_list())
            return encoded

        def metadata() -> dict[str, Any]:
            sample = {"unreadable_sample": sorted(unreadable)[:NUM_SAMPLE_ITEMS]}
            return {"enabled": True, "made_with": made_with, "num_unreadable": len(unreadable), **sample}

        if append and not pending.is_empty():
            unchanged = pictures.filter(~pl.col("is_new") & ~pl.col("is_edited"))
            check_canaries(
                lake, IMAGES, unchanged, encode, fingerprint=fingerprint, made_with=made_with, step="embed_images"
            )
        write_in_shards(
            lake,
            IMAGES,
            pending,
            encode_and_count,
            append=append,
            fingerprint=fingerprint,
            metadata=metadata,
            next_vector_id=first_free_id(stored),
        )

    if unreadable:
        logger.warning(
            "embed_images: the pictures of %s items of %s cannot be read and get no vector (items %s)",
            f"{len(unreadable):_}",
            f"{len(pictures):_}",
            ", ".join(sorted(unreadable)[:NUM_SAMPLE_ITEMS]) + (", ..." if len(unreadable) > NUM_SAMPLE_ITEMS else ""),
        )
    seconds = time.monotonic() - started
    num_new, num_edited = (len(pending.filter(kind)) for kind in ("is_new", "is_edited"))
    logger.info(
        "embed_images: pictures of %s items encoded (%s new, %s changed, %s unchanged under another encoder; %s "
        "distinct pictures), %s left as they are, %.1f s, %.1f pictures/s",
        f"{len(pending) - len(unreadable):_}",
        f"{num_new:_}",
        f"{num_edited:_}",
        f"{len(pending) - num_new - num_edited:_}",
        f"{num_pictures:_}",
        f"{len(pictures) - len(pending):_}",
        seconds,
        num_pictures / max(seconds, 1e-9),
    )


def _pictures(lake: Lake) -> pl.DataFrame:
    """Every picture without its bytes: item_id, event_timestamp, content_hash, and the place of its bytes on disk."""
    frames = [
        pl.DataFrame(
            schema={"item_id": pl.String, "event_timestamp": pl.Datetime("us", "UTC"), "content_hash": pl.String}
        ).with_columns(file=pl.lit(0, pl.Int64), row=pl.lit(0, pl.Int64))
    ]
    for number, path in enumerate(lake.parquet_files(ItemImages)):
        pictures = pl.read_parquet(path)
        hashes = [hashlib.sha256(image).hexdigest() for image in pictures.get_column("image")]
        frames.append(
            pictures.select(
                "item_id",
                "event_timestamp",
                pl.Series("content_hash", hashes, dtype=pl.String),
                file=pl.lit(number, pl.Int64),
                row=pl.int_range(pl.len(), dtype=pl.Int64),
            )
        )
    return pl.concat(frames).with_columns(content_hash_then="content_hash")


def _contents(lake: Lake, wanted: pl.DataFrame) -> list[bytes]:
    """The bytes of pictures, in the order of the rows of `wanted` (file, row)."""
    contents: list[bytes] = [b""] * len(wanted)
    paths: list[Path] = lake.parquet_files(ItemImages)
    for (number,), of_file in wanted.select("file", "row").with_row_index("place").group_by("file"):
        images = pl.read_parquet(paths[int(str(number))], columns=["image"]).get_column("image")
        for place, image in zip(of_file.get_column("place"), images.gather(of_file.get_column("row")), strict=True):
            contents[place] = image
    return contents
