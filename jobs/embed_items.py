"""Embed the text of every item with a frozen language model (LEARN, content extraction).

reads   items
writes  item_content_embeddings     one row per (item_id, event_timestamp)

Only what is new or has changed is encoded. Every shard is committed by itself, so a killed job loses one at most.

When a vector became available (its event_timestamp, which is its created_timestamp, too)
    first text of an item    with the item: a frozen encoder adds no knowledge, a daily run would have written it then
    edited text              now; the row of the old text stays, for impressions before the edit
    same text, new encoder   as before: the table is written anew, and vectors of two encoders never stand in one table

An edit shows only from one run to the next: the items table holds a text as it is now. What was edited before the first
run, and a text that an item gains after it was first shown without any, is dated with the item.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, PositiveInt

from embedders.fingerprint import Fingerprint, sha256_of_files
from embedders.model_files import find_model_files
from embedders.prompts import PROMPTS, Prompt
from feature_repo.table_schemas import ItemContentEmbeddings, Items
from jobs.lake import Lake
from jobs.progress import progress_bar

if TYPE_CHECKING:
    from embedders.backbone import Backbone

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (Items,)
WRITES: tuple[type[dy.Schema], ...] = (ItemContentEmbeddings,)

NUM_CANARIES = 8
LEAST_CANARY_COSINE = 0.999
"""Batches of another shape move a cosine by 1e-6; another version of a model or a broken library moves it far more."""


class Config(BaseModel, extra="forbid", frozen=True):
    """Which encoder reads what."""

    backbone: str = "minilm"
    """Name of a packaged model (minilm, mpnet, smollm2, gemma3), path of a Hugging Face folder or of a GGUF file."""
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
    stored = _newest_stored(lake)
    stored_tags = lake.manifest(ItemContentEmbeddings).fingerprint if lake.exists(ItemContentEmbeddings) else None
    append = stored_tags == fingerprint.as_tags()
    if stored_tags is not None and not append:
        logger.warning(
            "embed_items: item_content_embeddings was made by %s; it is written anew by %s",
            _described(stored_tags),
            fingerprint,
        )

    texts = _texts(lake, prompt, stored_prompt=prompt.version if append else (stored_tags or {}).get("prompt"))
    num_without_text = lake.manifest(Items).rows - len(texts)
    texts = texts.join(stored, on="item_id", how="left", maintain_order="left").with_columns(
        is_new=pl.col("stored_timestamp").is_null(),
        is_edited=(pl.col("stored_hash") != pl.col("text_hash_then")).fill_null(False),
    )
    pending = _in_shards(
        _dated(texts.filter(pl.col("is_new") | pl.col("is_edited")) if append else texts, lake), shard_size
    )
    if append and not pending.is_empty():
        _check_canaries(lake, backbone, fingerprint, texts.filter(~pl.col("is_new") & ~pl.col("is_edited")))

    largest = stored.select(pl.col("largest_vector_id").max()).item()
    next_vector_id = 0 if largest is None else largest + 1
    rules = {f"vector_is_{backbone.dimension}_wide": pl.col("item_content_embedding").list.len() == backbone.dimension}
    made_with = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    num_texts = pending.get_column("text_number").n_unique()
    with progress_bar("encode items", total=num_texts, unit="texts") as advance:
        for commit in _commits(pending, append=append):
            with lake.writer(
                ItemContentEmbeddings,
                append=append,
                fingerprint=fingerprint.as_tags(),
                metadata={"made_with": made_with},
                rules=rules,
            ) as writer:
                for shard in commit:
                    distinct = shard.unique("text_number", maintain_order=True)
                    vectors = backbone.encode(distinct.get_column("text").to_list(), batch_size, advance)
                    writer.write_shard(_rows(shard, distinct, vectors, next_vector_id))
                    next_vector_id += len(shard)
            append = True

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


def _newest_stored(lake: Lake) -> pl.DataFrame:
    """One row per item that has a vector: item_id, and time, text hash and the largest vector id of its newest row."""
    empty = ItemContentEmbeddings.create_empty(lazy=True)
    table = lake.scan(ItemContentEmbeddings) if lake.exists(ItemContentEmbeddings) else empty
    newest = pl.col("event_timestamp").arg_max()
    return (
        table.group_by("item_id")
        .agg(
            stored_timestamp=pl.col("event_timestamp").max(),
            stored_hash=pl.col("item_content_hash").get(newest),
            largest_vector_id=pl.col("item_content_vector_id").max(),
        )
        .collect()
    )


def _texts(lake: Lake, prompt: Prompt, stored_prompt: str | None) -> pl.DataFrame:
    """Items that have a text: item_id, event_timestamp, text, text_hash, and text_hash_then.

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
        text_hash=hash_of[prompt.version],
        text_hash_then=hash_of.get(stored_prompt or "", pl.lit(None, pl.String)),
    )
    return texts.filter(pl.col("text").is_not_null()).collect(engine="streaming")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _dated(texts: pl.DataFrame, lake: Lake) -> pl.DataFrame:
    """With `available`: when each vector counts as known (the module's docstring)."""
    # later than the row it replaces, whatever the clock says: an online store drops a rewrite of the same time
    after_stored = pl.col("stored_timestamp") + pl.duration(microseconds=1)
    return texts.with_columns(
        available=pl.when("is_new")
        .then("event_timestamp")
        .when("is_edited")
        .then(pl.max_horizontal(pl.lit(lake.now(), pl.Datetime("us", "UTC")), after_stored))
        .otherwise("stored_timestamp")
    )


def _in_shards(pending: pl.DataFrame, shard_size: int) -> pl.DataFrame:
    """With `text_number` (equal texts share one) and `shard`; items whose time is not their own come first."""
    pending = pending.with_columns(is_late=pl.col("available") != pl.col("event_timestamp")).sort(
        pl.col("is_late").not_(), "event_timestamp", "item_id"
    )
    numbers = pending.select(pl.col("text_hash").unique(maintain_order=True)).with_row_index("text_number")
    return (
        pending.join(numbers, on="text_hash", maintain_order="left")
        .sort("text_number", maintain_order=True)
        .with_columns(shard=pl.col("text_number") // shard_size)
    )


def _commits(pending: pl.DataFrame, append: bool) -> Iterator[list[pl.DataFrame]]:
    """Shards that are committed together: each by itself, but for the first commit of a table written anew.

    That one replaces the old table, and with it the only record of when texts were edited. So it holds all items whose
    time is not their own: if the job is killed later, no edit can be dated back.
    """
    shards = pending.partition_by("shard", maintain_order=True)
    first = 0
    if not append:
        first = max(1, sum(bool(shard.get_column("is_late").any()) for shard in shards))
        yield shards[:first]  # also of no shard at all: an empty table is a table
    for shard in shards[first:]:
        yield [shard]


def _rows(
    shard: pl.DataFrame, distinct: pl.DataFrame, vectors: NDArray[np.float32], next_vector_id: int
) -> pl.DataFrame:
    """Rows of `ItemContentEmbeddings`: the vector of each distinct text, given to every item that has it."""
    of_text = distinct.select("text_number").with_columns(
        item_content_embedding=pl.Series(vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])).arr.to_list()
    )
    return shard.join(of_text, on="text_number", maintain_order="left").select(
        "item_id",
        event_timestamp="available",
        created_timestamp="available",
        item_content_vector_id=pl.int_range(next_vector_id, next_vector_id + pl.len(), dtype=pl.Int64),
        item_content_embedding="item_content_embedding",
        item_content_hash="text_hash",
    )


def _check_canaries(lake: Lake, backbone: "Backbone", fingerprint: Fingerprint, unchanged: pl.DataFrame) -> None:
    """Encode a few texts whose vectors are stored, and stop where other vectors come out."""
    canaries = unchanged.sort("text_hash").head(NUM_CANARIES)  # by hash: spread evenly, the same every time
    if canaries.is_empty():
        return
    stored = (
        lake.scan(ItemContentEmbeddings)
        .join(
            canaries.lazy().select("item_id", "text", event_timestamp="stored_timestamp"),
            on=["item_id", "event_timestamp"],
        )
        .select("item_id", "text", "item_content_embedding")
        .collect()
    )
    vectors_now = backbone.encode(stored.get_column("text").to_list())
    vectors_then = np.array(stored.get_column("item_content_embedding").to_list(), np.float32)
    cosines = (vectors_now * vectors_then).sum(axis=1)
    if (cosines > LEAST_CANARY_COSINE).all():
        return
    manifest = lake.manifest(ItemContentEmbeddings)
    worst = int(np.argmin(cosines))
    raise ValueError(
        f"embed_items: {int((cosines <= LEAST_CANARY_COSINE).sum())} of {len(cosines)} canary texts no longer give "
        f"their vectors (item {stored.get_column('item_id')[worst]}: cosine {cosines[worst]:.4f}, expected above "
        f"{LEAST_CANARY_COSINE}), so new vectors would not fit the old ones.\n"
        f"  stored: {_described(manifest.fingerprint)}, made with {manifest.metadata.get('made_with')}\n"
        f"  now:    {fingerprint}, made with torch {version('torch')}, transformers {version('transformers')}\n"
        f"  what to do: install the versions that made the table, or remove {lake.root / 'item_content_embeddings'} "
        "and run embed_items again to embed everything anew"
    )


def _described(tags: Mapping[str, str]) -> str:
    """A manifest's fingerprint in a few words; the table may be of a version that knew other parts."""
    try:
        return str(Fingerprint.from_tags(tags))
    except KeyError:
        return ", ".join(f"{name} {value}" for name, value in tags.items()) or "an encoder without a fingerprint"
