"""The training run of `fit_embedder`: arrays in scratch, epochs with checkpoints, the model in a folder of its own."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from accelerate import PartialState
from numpy.typing import NDArray

from embedders.fit_learn import EpochRow, LearnSettings, Watch, fit_learn
from embedders.histories import Cut, Sequences
from embedders.learn import SHAPES, FrozenContent, LearnNetwork
from embedders.learn_model import LearnModel
from feature_repo.table_schemas import EmbedderCurves, LearnAttention
from jobs.checkpoint import UNFINISHED, Checkpoint
from jobs.content_vectors import copy_vectors, sampled_vectors
from jobs.fit_embedder import WITHOUT_LEARN, Config, TrainingInputs
from jobs.fitted_embedder import MODELS, sha256_of_model
from jobs.interaction_sequences import LEAST_INTERACTIONS, InteractionCounts, InteractionLog
from jobs.lake import Lake
from jobs.learn_validation import HeldOutUsers
from jobs.model_folders import keep_only, write_model
from jobs.progress import progress_bar
from jobs.training_window import LEAST_USERS

logger = logging.getLogger(__name__)

METHOD = "learn"

MOST_VALIDATION_USERS = 5_000
"""R@K of so many users is known to within 0.01 or so, and costs seconds."""


def train_learn(lake: Lake, config: Config, log: InteractionLog, inputs: TrainingInputs, scratch: Path) -> None:
    """Train the model and put it in place. See `jobs.fit_embedder`.

    Raises:
        ValueError: too few users to learn from.
    """
    started = time.monotonic()
    catalogue = inputs.catalogue
    log.use_catalogue(catalogue.get_column("item_id"))
    counts = log.counts(inputs.validate_from)
    _log_counts(config, inputs, counts)
    if counts.users < LEAST_USERS:
        raise ValueError(
            f"fit_embedder: {counts.users:_} users have {LEAST_INTERACTIONS} clicks on items with a content vector "
            f"before {inputs.validate_from:%Y-%m-%d %H:%M} UTC, expected at least {LEAST_USERS}.\n"
            "  what to do: ingest a longer log, raise trained_share (or trained_through), lower validation_share, or "
            + WITHOUT_LEARN
        )
    train = log.write_sequences(scratch / "sequences", inputs.validate_from, counts)
    with (scratch / "content.f32").open("w+b") as file:
        content_NC = copy_vectors(lake, file, inputs.content.dimension, catalogue.get_column("row").to_numpy())
        network = _network(config, content_NC)
        users = log.held_out(
            inputs.validate_from,
            inputs.trained_through,
            most_users=MOST_VALIDATION_USERS,
            most_history=network.shape.max_history,
            seed=config.seed,
        )
        known_NC = content_NC[: len(catalogue)]
        held_out = HeldOutUsers(network, known_NC, users, recall_at=config.recall_at, seed=config.seed)
        untouched = held_out.attention("untouched")
        curve = _fit(lake, config, inputs, network, train, known_NC, held_out)
        attention = pl.concat([untouched, held_out.attention("fitted")])
    if PartialState().is_main_process:
        seconds = time.monotonic() - started
        _put_in_place(lake, config, inputs, LearnModel(network), curve, attention, counts, seconds)
    PartialState().wait_for_everyone()


def _log_counts(config: Config, inputs: TrainingInputs, counts: InteractionCounts) -> None:
    logger.info(
        "fit_embedder: %s of %s clicks before %s are learnt from, of %s users on a catalogue of %s items; dropped: %s "
        "on items without a content vector, %s of users with no other",
        f"{counts.learnt_from:_}",
        f"{counts.interactions:_}",
        f"{inputs.validate_from:%Y-%m-%d %H:%M}",
        f"{counts.users:_}",
        f"{len(inputs.catalogue):_}",
        f"{counts.without_vector:_}",
        f"{counts.alone:_}",
    )


def _network(config: Config, content_NC: NDArray[np.float32]) -> LearnNetwork:
    shape = replace(SHAPES[config.shape], item_tower=config.item_tower)
    if config.item_tower == "content":  # users are compared with the content vectors themselves
        shape = replace(shape, output_dim=content_NC.shape[1])
    torch.manual_seed(config.seed)
    network = LearnNetwork(FrozenContent(content_NC), shape)
    network.standardise(sampled_vectors(content_NC, np.random.default_rng(config.seed)))
    return network


def _fit(
    lake: Lake,
    config: Config,
    inputs: TrainingInputs,
    network: LearnNetwork,
    train: Sequences,
    content_NC: NDArray[np.float32],
    held_out: HeldOutUsers,
) -> tuple[EpochRow, ...]:
    """Train the network in place, going on from a killed run's last epoch."""
    checkpoint = Checkpoint(
        lake.folder(MODELS) / UNFINISHED,
        {
            "inputs": inputs.digest,
            "settings": config.settings(),
            "trained_through": inputs.trained_through.isoformat(),
            "curve": EpochRow._fields,  # a checkpoint of a version that measured less is not gone on from
        },
    )
    resume_from, epochs_done = checkpoint.read(), 0
    if resume_from is not None:
        epochs_done = len(resume_from["state"]["curve"])
        logger.info("fit_embedder: goes on after epoch %d", epochs_done)

    def on_epoch(row: EpochRow) -> None:
        recall_text = "" if row.validation_recall is None else f", R@{config.recall_at} {row.validation_recall:.4f}"
        logger.info(
            "fit_embedder: epoch %d of at most %d: loss %.4f%s, %.1f s",
            row.epoch + 1,
            config.epochs,
            row.train_loss,
            recall_text,
            row.seconds,
        )

    if not held_out:
        logger.warning("fit_embedder: no user has clicks on both sides of the validation cut: all epochs are trained")
    with progress_bar("fit_embedder: learn", total=config.epochs * len(train), unit="users") as advance:
        advance(epochs_done * len(train))
        return fit_learn(
            network,
            train,
            LearnSettings(
                objective=config.objective,
                cut=Cut(max_history=network.shape.max_history),
                pair_sampling=config.pair_sampling,
                scale=config.scale,
                epochs=config.epochs,
                patience=config.patience,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                seed=config.seed,
            ),
            num_items=len(content_NC),
            validate=held_out.recall if held_out else None,
            measure=held_out.health if held_out else None,
            watch=Watch(on_users=advance, on_epoch=on_epoch, on_checkpoint=checkpoint.write, resume_from=resume_from),
        )


def _put_in_place(
    lake: Lake,
    config: Config,
    inputs: TrainingInputs,
    model: LearnModel,
    curve: tuple[EpochRow, ...],
    attention: pl.DataFrame,
    counts: InteractionCounts,
    seconds: float,
) -> None:
    """Write the model into a folder of its own, then the tables about it, then remove what was there before."""
    models = lake.folder(MODELS)
    weights_sha256 = model.weights_sha256()
    through = inputs.trained_through.isoformat()
    fingerprint = inputs.content.of_learn(
        weights_sha256=weights_sha256, dimension=model.output_dim, trained_through=through
    )
    name = fingerprint.digest()[:16]
    write_model(models, name, model.save)
    best = next(row for row in curve if row.is_best)
    frame = pl.DataFrame([{"method": METHOD, **row._asdict()} for row in curve], schema=_curve_types())
    lake.write(LearnAttention, attention, metadata={"folder": f"{MODELS}/{name}"})
    lake.write(
        EmbedderCurves,
        frame,
        fingerprint=fingerprint.as_tags(),
        metadata={
            "folder": f"{MODELS}/{name}",
            "files_sha256": sha256_of_model(models / name),
            "inputs": inputs.digest,
            "settings": config.settings(),
            "num_users": counts.users,
            "num_interactions": counts.learnt_from,
            "num_items": len(inputs.catalogue),
            "best_epoch": best.epoch,
            "seconds": round(seconds, 3),
        },
    )
    keep_only(models, name)
    recall_text = "not judged" if best.validation_recall is None else f"{best.validation_recall:.4f}"
    logger.info(
        "fit_embedder: %s, trained through %s: R@%d %s at epoch %d of %d, %.1f s",
        fingerprint,
        through,
        config.recall_at,
        recall_text,
        best.epoch + 1,
        len(curve),
        seconds,
    )


def _curve_types() -> Mapping[str, pl.DataType]:
    return EmbedderCurves.create_empty().schema
