"""Embed the text of every item with a frozen language model (LEARN, content extraction).

reads   items
writes  item_content_embeddings     one row per (item_id, event_timestamp)

Only what is new or has changed is encoded. Every shard is committed by itself, so a killed job loses one at most.
`jobs.dated_vectors` says since when a vector counts as known.

An edit shows only from one run to the next: the items table holds a text as it is now. What was edited before the first
run, and a text that an item gains after it was first shown without any, is dated with the item.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import dataframely as dy
import numpy as np
import polars as pl
from pydantic import BaseModel, PositiveInt

from embedders.fingerprint import sha256_of_files
from embedders.model_files import find_model_files
from embedders.prompts import PROMPTS, Prompt
from feature_repo.table_schemas import ItemContentEmbeddings, Items
from jobs.content_vectors import CONTENT
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
    from embedders.backbone import Backbone

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (Items,)
WRITES: tuple[type[dy.Schema], ...] = (ItemContentEmbeddings,)


class Config(BaseModel, extra="forbid", frozen=True):
    """Which encoder reads what."""

    backbone: str = "minilm"
    """Name of a packaged model (minilm, mpnet, smollm2, gemma3, qwen2.5), path of a Hugging Face folder or of a GGUF
    file."""
    prompt: Literal["learn", "learn_described", "amazon"] = "learn"
    """Item text: LEARN's six slots, the same with the description, or title, brand and category only."""
    max_tokens: PositiveInt = 500
    """Tokens read of a text."""
    layer: PositiveInt | None = None
    """Layer whose states are read, the last by default. A small decoder says more below its last one."""
    pooling: Literal["mean", "mean_without_first"] = "mean"
    """Over all tokens, or over all but the first, which decoders use as a place to park attention."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass. Auto is bfloat16 on a GPU; name one where machines of both kinds run this job.

    On a CPU with AMX (Intel servers from 2023 on) bfloat16 is two to three times as fast as float32; on others slower.
    """
    batch_size: PositiveInt = 64
    """Most texts per forward pass; a CPU takes fewer of long ones."""
    shard_size: PositiveInt = 1024
    """Distinct texts per commit: what a killed job loses at most."""


def outside_inputs(config: Config) -> str:
    """Hash of the model's files: other weights under the same name make the step stale."""
    files = find_model_files(config.backbone)
    return sha256_of_files(files.weights | files.tokenizer)


def run(lake: Lake, config: Config) -> None:
    """Embed what is new or changed in the items table."""
    from embedders.backbone import load_backbone  # here: torch takes seconds to import, and `plan` does not need it

    backbone = load_backbone(
        config.backbone, max_tokens=config.max_tokens, dtype=config.dtype, layer=config.layer, pooling=config.pooling
    )
    embed_catalogue(lake, backbone, PROMPTS[config.prompt], batch_size=config.batch_size, shard_size=config.shard_size)


def embed_catalogue(lake: Lake, backbone: "Backbone", prompt: Prompt, *, batch_size: int, shard_size: int) -> None:
    """Bring `item_content_embeddings` up to date with `items`, under one encoder and one prompt.

    Raises:
        TableError: the encoder gave vectors that are not finite, not of length 1 or not of its width.
        ValueError: the encoder calls itself the one that wrote the table, but gives other vectors.
    """
    started = time.monotonic()
    fingerprint = backbone.fingerprint(prompt.version)
    stored = newest_stored(lake, CONTENT)
    stored_tags = lake.manifest(ItemContentEmbeddings).fingerprint if lake.exists(ItemContentEmbeddings) else None
    append = stored_tags == fingerprint.as_tags()
    if stored_tags is not None and not append:
        logger.warning(
            "embed_items: item_content_embeddings was made by %s; it is written anew by %s",
            described(stored_tags),
            fingerprint,
        )

    texts = _texts(lake, prompt, stored_prompt=prompt.version if append else (stored_tags or {}).get("prompt"))
    num_without_text = lake.manifest(Items).rows - len(texts)
    texts = compared(texts, stored)
    pending = in_shards(
        dated(texts.filter(pl.col("is_new") | pl.col("is_edited")) if append else texts, lake.now()),
        shard_size,
        order=("event_timestamp", "item_id"),
    )
    made_with = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    num_texts = pending.get_column("content_number").n_unique()

    with progress_bar("encode items", total=num_texts, unit="texts") as advance:

        def encode(of_texts: pl.DataFrame, on_progress: Callable[[int], None] | None = None) -> Encoded:
            vectors = backbone.encode(of_texts.get_column("text").to_list(), batch_size, on_progress)
            return Encoded(vectors, np.ones(len(vectors), np.bool_))

        if append and not pending.is_empty():
            check_canaries(
                lake,
                CONTENT,
                texts.filter(~pl.col("is_new") & ~pl.col("is_edited")),
                encode,
                fingerprint=fingerprint,
                made_with=made_with,
                step="embed_items",
            )
        write_in_shards(
            lake,
            CONTENT,
            pending,
            lambda distinct: encode(distinct, advance),
            append=append,
            fingerprint=fingerprint,
            metadata=lambda: {"made_with": made_with},
            next_vector_id=first_free_id(stored),
        )

    seconds = time.monotonic() - started
    num_new, num_edited = (len(pending.filter(kind)) for kind in ("is_new", "is_edited"))
    logger.info(
        "embed_items: %s items encoded (%s new, %s edited, %s unchanged under another encoder; %s distinct texts), "
        "%s left as they are, %s without text, %.1f s, %.1f texts/s",
        f"{len(pending):_}",
        f"{num_new:_}",
        f"{num_edited:_}",
        f"{len(pending) - num_new - num_edited:_}",
        f"{num_texts:_}",
        f"{len(texts) - len(pending):_}",
        f"{num_without_text:_}",
        seconds,
        num_texts / max(seconds, 1e-9),
    )


def _texts(lake: Lake, prompt: Prompt, stored_prompt: str | None) -> pl.DataFrame:
    """Items that have a text: item_id, event_timestamp, text, content_hash, and content_hash_then.

    The last is the hash of the text as the stored table's prompt words it, so that an edit shows even where prompt and
    table change together; null where that prompt is no longer known, and the text then counts as unedited.
    """
    hash_of = {
        known.version: known.text.map_elements(_hash, return_dtype=pl.String)
        for known in (*PROMPTS.values(), prompt)
        if known.version in (prompt.version, stored_prompt)
    }
    texts = lake.scan(Items).select(
        "item_id",
        "event_timestamp",
        text=prompt.text,
        content_hash=hash_of[prompt.version],
        content_hash_then=hash_of.get(stored_prompt or "", pl.lit(None, pl.String)),
    )
    return texts.filter(pl.col("text").is_not_null()).collect(engine="streaming")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
