"""Train KARMA on the interactions before a time: a language model that reads histories of item tokens.

reads   impressions, queries, items, item_content_embeddings, item_image_embeddings (where there are any)
writes  karma_curves        one row per epoch; its manifest names the model and the folders of its files
        karma_attention     one row per (moment, layer, head): where its language model attends
        embedders/karma     the model, and the checkpoint of one that is being trained

Point in time: the model sees the impressions before `trained_through` and the vectors known then, and none of its own
vectors is dated earlier. The last part of that time (`validation_share`) is held out for early stop. Items have no past
in the lake: of titles, those of now are learnt. A title edited later does not train the model anew, just as its new
content vector does not; both count at the next refit.

What is already trained on the same is not trained again; by default the cut follows the log, and a model is kept until
it has moved by `refit_after_days`. A killed run goes on from its last epoch.
"""

import hashlib
import json
import logging
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import dataframely as dy
import polars as pl
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from embedders.fingerprint import Fingerprint, sha256_of_files
from embedders.model_files import find_model_files
from feature_repo.table_schemas import (
    Impressions,
    ItemContentEmbeddings,
    ItemImageEmbeddings,
    Items,
    KarmaAttention,
    KarmaCurves,
    Queries,
)
from jobs.content_vectors import CONTENT, IMAGES, content_keys, newest_known
from jobs.fitted_karma import FrozenEncoders, fitted_karma, images_encoder
from jobs.interaction_sequences import InteractionLog, LogSpan, open_log
from jobs.karma_items import known_pairs
from jobs.karma_log import search_digest, use_queries
from jobs.lake import Lake
from jobs.training_window import TrainingWindow, how_far_moved, trained_through, why_anew

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (Impressions, Queries, Items, ItemContentEmbeddings, ItemImageEmbeddings)
WRITES: tuple[type[dy.Schema], ...] = (KarmaCurves, KarmaAttention)

ROWS_HASHED_AT_ONCE = 200_000

WITHOUT_KARMA = "do without KARMA: [fit_embedder_karma] enabled = false"


class Config(TrainingWindow, extra="forbid", frozen=True):
    """What is learnt from, which language model learns it, how long it trains."""

    enabled: bool = False
    """True: train KARMA, which takes language-model time. False: its tables are written empty, and feature services and
    rankers that need it are left out wherever [build_training_set] and [train_ranker] do not name their own."""
    language_model: str = "smollm2"
    """Name of a packaged decoder (smollm2, gemma3, qwen2.5), a local Hugging Face folder, or a GGUF file."""
    language_model_layers: PositiveInt | None = None
    """The first so many blocks of it; by default all. Fewer are faster in proportion."""
    low_rank: PositiveInt | None = None
    """Rank of LoRA adapters in the language model (needs the package peft); by default all its weights are trained."""
    max_users: PositiveInt | None = 1_000
    """Learn from a sample of so many users. Language-model time on one CPU core is some 8 minutes a thousand users and
    epoch with `smollm2`, 4 with its first 4 blocks, less than half of it in bfloat16 where the CPU has AMX."""
    max_history: PositiveInt = 50
    """Items that the language model reads of a user, the newest. Serving has [collect_histories] max_length of them at
    most, so more than that would be trained on and never served."""
    output_dim: PositiveInt = 128
    """Width of the vectors."""
    residual: bool = True
    """Start from the mean of the history's principal components, so that training never begins below it [NF->P]."""
    residual_decay: float = Field(1.0, gt=0.0, le=1.0)
    """What an item weighs in that mean beside the one after it [NF->P]; 1: all weigh the same. What comes next wants .8
    (DECISIONS.md), what the next weeks bring 1."""
    action: Literal["pairwise", "infonce"] = "pairwise"
    """L_act: every negative by itself below the target (the paper's), or a softmax over all of them."""
    scale: PositiveFloat = 5.0
    """Factor of the cosines in L_act, 1 / temperature [NF->P]; 1: raw dot products. At 20 what is learnt first from few
    users is to tell nothing apart (DECISIONS.md)."""
    decodability: NonNegativeFloat = 0.5
    """lambda of what is decoded; 0: action alone."""
    generation: bool = True
    """L_gen: decode the target's title with the history in sight."""
    reconstruction: bool = True
    """L_recon: decode it from the user's vector alone."""
    image: Literal["off", "history", "vector"] = "off"
    """L_img: tell the target's picture from the state at the read-out or from the user's vector; needs embed_images."""
    read_outs: PositiveInt = 4
    """Places of a user's window that are predicted in an epoch, at most."""
    decoded: PositiveInt = 1
    """How many of these also decode their title."""
    exposed: NonNegativeInt = 4
    """Items shown beside a target and not clicked that count as its negatives, at most. 0: none of them do."""
    catalogue_negatives: NonNegativeInt = 1024
    """Items on sale at the time that all targets of a step are compared with, at most [NF->P]; 0: none."""
    in_batch_weight: NonNegativeFloat = 0.0
    """Of the targets of other users in the batch; the paper has them. They come as often as they are chosen, those of
    the catalogue all alike, and with both less was found (DECISIONS.md)."""
    query_share: float = Field(0.5, ge=0.0, le=1.0)
    """Of the read-outs with a query, how many see it: vectors of midnights have none."""
    title_epochs: NonNegativeInt = 0
    """Passes over the catalogue, before all else, in which the language model learns to read items and to say their
    titles [NF->P]; of a large catalogue 20,000 titles each. The first blocks of a language model cannot speak yet. A
    pass over 12,000 titles takes minutes with 4 blocks of `smollm2`, and a killed run begins all of them again."""
    title_rate: PositiveFloat = 5e-4
    """Of these, at its peak."""
    warm_up_epochs: NonNegativeInt = 0
    """Epochs before the heads' in which only what is new beside the language model learns, from L_gen."""
    head_epochs: NonNegativeInt = 20
    """Most epochs of the two heads over states of the language model at rest [NF->P], each a second or so with the
    default `max_users`; 0: none."""
    epochs: PositiveInt = 3
    """Most passes over the users in which everything learns."""
    patience: NonNegativeInt = 1
    """Epochs without a better R@K before training stops."""
    batch_size: int = Field(16, ge=2)
    """Users a training step."""
    head_dropout: float = Field(0.3, ge=0.0, lt=1.0)
    """Share of each state that is left out in a step of the heads at rest."""
    head_held_out: float = Field(0.1, ge=0.0, le=0.5)
    """Share of the training users that choose the heads' epoch in place of training them (20 at least, otherwise no
    one); they train in the other stages. 0: the last epoch is kept."""
    head_rate: PositiveFloat = 1e-3
    """Of the heads at rest, at its peak."""
    learning_rate: PositiveFloat = 3e-4
    """Of what is new beside the language model, at its peak."""
    language_model_rate: PositiveFloat = 1e-4
    """Of the language model or its LoRA adapters, at its peak."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of training. auto: bfloat16 on a GPU, float32 on a CPU, and vectors in float32. bfloat16: vectors, too."""
    frozen_language_model: bool = False
    """Only what is new beside the language model learns: a baseline."""
    recall_at: PositiveInt = 100
    """K of R@K."""
    seed: NonNegativeInt = 0
    """Of the weights, of the order, of every sample."""


class TrainingInputs(NamedTuple):
    """What a model is trained on.

    Attributes:
        trained_through: impressions before it.
        validate_from: impressions from here on are held out.
        catalogue: of each item with a content vector its newest pair, as `known_pairs` has them; sorted by item.
        frozen: what made these vectors; no images where none was known of any item.
        settings: those of the config, and which files the language model had.
        digest: of log and vectors.
    """

    trained_through: datetime
    validate_from: datetime
    catalogue: pl.DataFrame
    frozen: FrozenEncoders
    settings: dict[str, Any]
    digest: str


def run(lake: Lake, config: Config) -> None:
    """Train the model, unless there is one that is still right.

    Raises:
        ValueError: no content vectors, no such language model; the log is too short, or too few users have done enough.
    """
    if not config.enabled:
        for table in (KarmaAttention, KarmaCurves):
            lake.write(table, table.create_empty())
        logger.info("fit_embedder_karma: not enabled, this lake does without KARMA")
        return
    if lake.manifest(ItemContentEmbeddings).rows == 0:
        raise ValueError(
            "fit_embedder_karma: item_content_embeddings is empty, so there is nothing to learn from.\n"
            f"  what to do: give the items a text (title, category, ...) and run embed_items, or {WITHOUT_KARMA}"
        )
    with (
        tempfile.TemporaryDirectory(dir=lake.folder("scratch")) as scratch,
        open_log(lake, Path(scratch), config.memory_limit) as log,
    ):
        span = log.span()
        if span is None:
            raise ValueError("fit_embedder_karma: there are no impressions; ingest a log first")
        use_queries(lake, log)
        through = trained_through(
            span,
            lake.now(),
            time=config.trained_through,
            share=config.trained_share,
            step="fit_embedder_karma",
            way_out=WITHOUT_KARMA,
        )
        if _is_still_right(lake, config, log, span, through):
            return
        inputs = training_inputs(lake, config, log, span, through)
        # torch takes seconds to import, and whoever lists the steps imports this file
        from jobs.karma_training import train_karma

        train_karma(lake, config, log, inputs, Path(scratch))


def training_inputs(
    lake: Lake, config: Config, log: InteractionLog, span: LogSpan, through: datetime
) -> TrainingInputs:
    """What a model trained through that time is trained on."""
    content, images = Fingerprint.from_tags(lake.manifest(ItemContentEmbeddings).fingerprint), images_encoder(lake)
    catalogue = newest_known(known_pairs(lake, images), through)
    if not (catalogue.get_column("image_row") >= 0).any():
        images = None
    identity = [content.digest(), "no images" if images is None else images.digest(), search_digest(log, through)]
    digest = hashlib.sha256(json.dumps(identity).encode())
    named = catalogue.select(
        "item_id",
        "content_vector_id",
        "image_vector_id",
        content_keys(lake, CONTENT).get_column(CONTENT.hash).gather(catalogue.get_column("row")),
    )
    if images is not None:
        hashes = content_keys(lake, IMAGES).select(pl.col(IMAGES.vector_id).alias("image_vector_id"), IMAGES.hash)
        named = named.join(hashes, on="image_vector_id", how="left", maintain_order="left")
    for rows in named.iter_slices(ROWS_HASHED_AT_ONCE):
        digest.update(rows.write_csv(include_header=False).encode())
    return TrainingInputs(
        trained_through=through,
        validate_from=through - config.validation_share * (through - span.first),
        catalogue=catalogue,
        frozen=FrozenEncoders(content, images),
        settings=_settings(config),
        digest=digest.hexdigest(),
    )


def _settings(config: Config) -> dict[str, Any]:
    """With the language model's files: a folder of the same name may hold another one."""
    files = find_model_files(config.language_model)
    told = {"language_model_sha256": sha256_of_files({**files.weights, **files.tokenizer})}
    return json.loads(json.dumps(config.settings() | told))  # type: ignore[no-any-return]


def _is_still_right(lake: Lake, config: Config, log: InteractionLog, span: LogSpan, through: datetime) -> bool:
    """Whether the model at hand can stay; says why, or why not."""
    fitted = fitted_karma(lake) if lake.exists(KarmaCurves) else None
    if fitted is None:
        return False
    why = why_anew(
        fitted,
        lake.manifest(KarmaCurves).metadata,
        _settings(config),
        through=through,
        refit_after_days=config.refit_after_days if config.trained_through is None else None,
        digest_through=lambda then: training_inputs(lake, config, log, span, then).digest,
        seen="impressions, content vectors or image vectors",
    )
    then = f"{fitted.trained_through:%Y-%m-%d %H:%M}"
    if why is None:
        logger.info(
            "fit_embedder_karma: kept: the model trained through %s has seen the same log and the same vectors%s",
            then,
            how_far_moved(fitted, through, config.refit_after_days),
        )
        return True
    logger.info("fit_embedder_karma: the model trained through %s is trained anew: %s", then, why)
    return False
