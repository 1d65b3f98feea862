"""Train LEARN on the interactions before a time: content vectors in, vectors of users and of what they want out.

reads   impressions, item_content_embeddings
writes  embedder_curves     one row per (method, epoch); its manifest names the model and the folder of its weights
        learn_attention     one row per (moment, layer, head): where its user tower attends, before and after
        embedders/learn     the model, and the checkpoint of one that is being trained

Point in time: the model sees the interactions before `trained_through` and the content vectors known then, and none of
its vectors is dated earlier. The last part of that time (`validation_share`) is held out for early stop: what users did
before it is their history, what they did in it are the targets that R@K counts.

What is already trained on the same is not trained again. By default `trained_through` is a share of the log's span, so
it moves as the log grows; the model is kept until it has moved by `refit_after_days`, as long as all that it was
trained on is still the same. A killed run goes on from its last epoch.
"""

import hashlib
import json
import logging
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import dataframely as dy
import polars as pl
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import EmbedderCurves, Impressions, ItemContentEmbeddings, LearnAttention
from jobs.content_vectors import content_keys, known_rows, newest_known
from jobs.fitted_embedder import fitted_learn
from jobs.interaction_sequences import InteractionLog, LogSpan, open_log
from jobs.lake import Lake
from jobs.training_window import TrainingWindow, how_far_moved, trained_through, why_anew

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (Impressions, ItemContentEmbeddings)
WRITES: tuple[type[dy.Schema], ...] = (EmbedderCurves, LearnAttention)

ROWS_HASHED_AT_ONCE = 200_000

CONTENT_IDENTITY = ("item_content_vector_id", "item_content_hash")
"""Under one encoder, these columns say which vector a row holds."""

WITHOUT_LEARN = "do without LEARN: [fit_embedder] enabled = false"


class Config(TrainingWindow, extra="forbid", frozen=True):
    """What is learnt from, how large the network is, how long it trains."""

    enabled: bool = True
    """False: this lake does without LEARN. Its tables are written empty, and feature services and rankers that need it
    are left out of [build_training_set] and [train_ranker] wherever those do not name their own."""
    shape: Literal["tiny", "small", "amazon", "paper"] = "small"
    """Size of the network: `small` is for a CPU, `paper` is as published (12 layers, 768 wide) and needs a GPU."""
    item_tower: Literal["sequence", "single", "content"] = "sequence"
    """The paper's (a), (b) and (c): targets as one sequence in training, each alone, or content vectors as they are."""
    objective: Literal["dense", "single", "full_softmax"] = "dense"
    """All sampled pairs of history and targets, one target a user, or one target against the whole catalogue."""
    pair_sampling: Literal["recency", "uniform"] = "recency"
    """Of the dense objective: newer positions more often, or all alike."""
    scale: PositiveFloat = 10.0
    """Factor of the cosines in the loss, 1 / temperature [NF->P]. The official code has 20; 10 gave vectors that tell a
    user's items from others better on a retail log of a year (DECISIONS.md)."""
    epochs: PositiveInt = 10
    """Most passes over the users."""
    patience: NonNegativeInt = 3
    """Epochs without a better R@K before training stops."""
    batch_size: int = Field(64, ge=2)
    """Users a training step; each user's negatives are the others' targets. The paper has 30 on each of 8 GPUs."""
    learning_rate: PositiveFloat = 1e-3
    """At its peak. The published 5e-5 is for the `paper` shape."""
    recall_at: PositiveInt = 100
    """K of R@K."""
    seed: NonNegativeInt = 0
    """Of the weights, of the order, of every sample."""


class TrainingInputs(NamedTuple):
    """What a model is trained on.

    Attributes:
        trained_through: interactions before it.
        validate_from: interactions from here on are held out.
        span: of the log.
        catalogue: `item_id` and `row` (of the content table), one row per item with a content vector, sorted by item.
        content: identity of the content vectors.
        digest: of all of it.
    """

    trained_through: datetime
    validate_from: datetime
    span: LogSpan
    catalogue: pl.DataFrame
    content: Fingerprint
    digest: str


def run(lake: Lake, config: Config) -> None:
    """Train the model, unless there is one that is still right.

    Raises:
        ValueError: no content vectors; the log is too short, or too few users have done enough.
    """
    if not config.enabled:
        lake.write(LearnAttention, LearnAttention.create_empty())
        lake.write(EmbedderCurves, EmbedderCurves.create_empty())
        logger.info("fit_embedder: not enabled, this lake does without LEARN")
        return
    content = lake.manifest(ItemContentEmbeddings)
    if content.rows == 0:
        raise ValueError(
            "fit_embedder: item_content_embeddings is empty, so there is nothing to learn from.\n"
            f"  what to do: give the items a text (title, category, ...) and run embed_items, or {WITHOUT_LEARN}"
        )
    with (
        tempfile.TemporaryDirectory(dir=lake.folder("scratch")) as scratch,
        open_log(lake, Path(scratch), config.memory_limit) as log,
    ):
        span = log.span()
        if span is None:
            raise ValueError("fit_embedder: there are no impressions; ingest a log first")
        encoder = Fingerprint.from_tags(content.fingerprint)
        through = trained_through(
            span,
            lake.now(),
            time=config.trained_through,
            share=config.trained_share,
            step="fit_embedder",
            way_out=WITHOUT_LEARN,
        )
        if _is_still_right(lake, config, log, span, encoder, through):
            if not lake.exists(LearnAttention):  # the model is older than this table
                lake.write(LearnAttention, LearnAttention.create_empty())
            return
        inputs = training_inputs(lake, config, log, span, encoder, through)
        # torch takes seconds to import, and whoever lists the steps imports this file
        from jobs.learn_training import train_learn

        train_learn(lake, config, log, inputs, Path(scratch))


def training_inputs(
    lake: Lake, config: Config, log: InteractionLog, span: LogSpan, content: Fingerprint, through: datetime
) -> TrainingInputs:
    """What a model trained through that time is trained on."""
    keys = content_keys(lake)
    known = newest_known(known_rows(keys), through)
    named = known.select(
        "item_id", *(keys.get_column(name).gather(known.get_column("row")) for name in CONTENT_IDENTITY)
    )
    digest = hashlib.sha256(f"{content.digest()} {log.digest(through)}\n".encode())
    for rows in named.iter_slices(ROWS_HASHED_AT_ONCE):
        digest.update(rows.write_csv(include_header=False).encode())
    return TrainingInputs(
        trained_through=through,
        validate_from=through - config.validation_share * (through - span.first),
        span=span,
        catalogue=known.select("item_id", "row"),
        content=content,
        digest=digest.hexdigest(),
    )


def _is_still_right(
    lake: Lake, config: Config, log: InteractionLog, span: LogSpan, content: Fingerprint, through: datetime
) -> bool:
    """Whether the model at hand can stay; says why, or why not."""
    fitted = fitted_learn(lake) if lake.exists(EmbedderCurves) else None
    if fitted is None:
        return False
    why = why_anew(
        fitted,
        lake.manifest(EmbedderCurves).metadata,
        json.loads(json.dumps(config.settings())),
        through=through,
        refit_after_days=config.refit_after_days if config.trained_through is None else None,
        digest_through=lambda then: training_inputs(lake, config, log, span, content, then).digest,
        seen="interactions or content vectors",
    )
    then = f"{fitted.trained_through:%Y-%m-%d %H:%M}"
    if why is None:
        logger.info(
            "fit_embedder: kept: the model trained through %s has seen the same interactions and content%s",
            then,
            how_far_moved(fitted, through, config.refit_after_days),
        )
        return True
    logger.info("fit_embedder: the model trained through %s is trained anew: %s", then, why)
    return False
