"""The training run of `fit_embedder_karma`: arrays in scratch, epochs with checkpoints, the model in its own folder."""

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs
from numpy.typing import NDArray

from embedders.causal_lm import load_causal_lm
from embedders.fit_karma import KarmaEpochRow, KarmaLog, KarmaSettings, KarmaWatch, fit_karma, stages_of
from embedders.karma import KarmaNetwork
from embedders.karma_decoder import KarmaDecoder
from embedders.karma_features import FrozenFeatures
from embedders.karma_model import KarmaModel, Precision
from embedders.karma_packing import QUERY_TOKENS
from embedders.karma_towers import KarmaShape
from feature_repo.table_schemas import Items, KarmaAttention, KarmaCurves
from jobs.checkpoint import UNFINISHED, Checkpoint
from jobs.content_vectors import sampled_vectors
from jobs.fit_embedder_karma import WITHOUT_KARMA, Config, TrainingInputs
from jobs.fitted_embedder import sha256_of_model
from jobs.fitted_karma import MODELS
from jobs.interaction_sequences import LEAST_INTERACTIONS, InteractionCounts, InteractionLog
from jobs.karma_items import FrozenPairs, copy_pairs
from jobs.karma_log import write_search_log
from jobs.karma_texts import TITLE_TOKENS, titles_of, tokenised
from jobs.karma_validation import MOST_VALIDATION_USERS, HeldOutKarma
from jobs.lake import Lake
from jobs.model_folders import keep_only, write_model
from jobs.progress import progress_bar
from jobs.training_window import LEAST_USERS

logger = logging.getLogger(__name__)

PATIENCE_OF_PROCESSES_H = 6
"""The first of several processes trains the heads and validates, and the others wait for it."""

NOT_OF_THE_CONFIG = {"warmup", "weight_decay"}
"""Settings of `embedders.fit_karma` that nobody changes; the others are settings of the step, by the same names."""


def train_karma(lake: Lake, config: Config, log: InteractionLog, inputs: TrainingInputs, scratch: Path) -> None:
    """Train the model and put it in place. See `jobs.fit_embedder_karma`.

    Raises:
        ValueError: too few users to learn from, or the settings do not suit the language model or the data.
    """
    started = time.monotonic()
    item_ids = inputs.catalogue.get_column("item_id")
    log.use_catalogue(item_ids)
    counts = log.counts(inputs.validate_from, most_users=config.max_users, seed=config.seed)
    _log_counts(inputs, counts)
    if counts.users < LEAST_USERS:
        raise ValueError(
            f"fit_embedder_karma: {counts.users:_} users have {LEAST_INTERACTIONS} clicks on items with a content "
            f"vector before {inputs.validate_from:%Y-%m-%d %H:%M} UTC, expected at least {LEAST_USERS}.\n"
            "  what to do: ingest a longer log, raise max_users, trained_share or trained_through, lower "
            f"validation_share, or {WITHOUT_KARMA}"
        )
    searches = write_search_log(log, scratch / "log", inputs.validate_from, counts, most_exposed=max(1, config.exposed))
    with (scratch / "content.f32").open("w+b") as content, (scratch / "images.f32").open("w+b") as images:
        pairs = copy_pairs(lake, (content, images), inputs.catalogue, inputs.frozen)
        network = _network(config, pairs)
        titles = titles_of(lake, item_ids)
        karma_log = KarmaLog(
            sequences=searches.sequences,
            titles=tokenised(titles, network.lm.tokenizer, TITLE_TOKENS),
            queries=tokenised(searches.query_texts, network.lm.tokenizer, QUERY_TOKENS),
            query_E=searches.query_E,
            exposed_EM=searches.exposed_EM,
            listed_N=_listed(lake, item_ids),
        )
        held_out = HeldOutKarma(
            network=network,
            content_NC=pairs.content_NC,
            image_NV=pairs.image_NV,
            titles=titles,
            title_tokens=karma_log.titles,
            users=log.held_out(
                inputs.validate_from,
                inputs.trained_through,
                most_users=MOST_VALIDATION_USERS,
                most_history=config.max_history,
                seed=config.seed,
            ),
            recall_at=config.recall_at,
            precision=_precision(config),
            seed=config.seed,
        )
        untouched = held_out.attention("untouched")
        curve = _fit(lake, config, inputs, network, karma_log, held_out)
        network.merge_low_rank()
        attention = pl.concat([untouched, held_out.attention("fitted")])
    if PartialState().is_main_process:
        seconds = time.monotonic() - started
        _put_in_place(lake, config, inputs, network, curve, attention, counts, seconds)
    PartialState().wait_for_everyone()


def _listed(lake: Lake, item_ids: pl.Series) -> NDArray[np.int64]:
    """Since when each item could be chosen, microseconds since 1970."""
    since = lake.scan(Items).select("item_id", since=pl.col("event_timestamp").dt.epoch("us")).collect()
    joined = item_ids.to_frame("item_id").join(since, on="item_id", how="left", maintain_order="left")
    return joined.get_column("since").fill_null(0).to_numpy()


def _log_counts(inputs: TrainingInputs, counts: InteractionCounts) -> None:
    logger.info(
        "fit_embedder_karma: %s of %s clicks before %s are learnt from, of %s users on a catalogue of %s items, %s of "
        "them with an image vector; dropped: %s on items without a content vector, %s of users with no other, %s of "
        "users beyond max_users",
        f"{counts.learnt_from:_}",
        f"{counts.interactions:_}",
        f"{inputs.validate_from:%Y-%m-%d %H:%M}",
        f"{counts.users:_}",
        f"{len(inputs.catalogue):_}",
        f"{_num_images(inputs):_}",
        f"{counts.without_vector:_}",
        f"{counts.alone:_}",
        f"{counts.left_out:_}",
    )


def _num_images(inputs: TrainingInputs) -> int:
    return 0 if inputs.frozen.images is None else int((inputs.catalogue.get_column("image_row") >= 0).sum())


def _network(config: Config, pairs: FrozenPairs) -> KarmaNetwork:
    """As it is before training; the same for the same settings and vectors."""
    torch.manual_seed(config.seed)
    shape = KarmaShape(
        output_dim=config.output_dim,
        max_history=config.max_history,
        num_layers=config.language_model_layers,
        low_rank=config.low_rank,
        residual=config.residual,
        residual_decay=config.residual_decay,
    )
    lm = load_causal_lm(config.language_model, dtype="float32", device="cpu")
    network = KarmaNetwork(lm, FrozenFeatures(pairs.content_NC, pairs.image_NV), shape)
    rng = np.random.default_rng(config.seed)
    image_MV = None
    if pairs.image_NV is not None:
        of_all_NV = sampled_vectors(pairs.image_NV, rng)
        image_MV = of_all_NV[of_all_NV.any(axis=1)]
    network.towers.standardise(sampled_vectors(pairs.content_NC, rng), image_MV)
    # not PartialState's device: the first to ask sets up the processes, and it alone would not see ACCELERATE_USE_CPU
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=PATIENCE_OF_PROCESSES_H))
    return network.to(Accelerator(kwargs_handlers=[patience]).device)


def _precision(config: Config) -> Precision:
    """Of the vectors that the model makes: whatever trained it, they are to be the same on every machine."""
    return "bfloat16" if config.precision == "bfloat16" else "float32"


def fit_settings(config: Config) -> KarmaSettings:
    """Those of the training loop."""
    names = {field.name for field in fields(KarmaSettings)} - NOT_OF_THE_CONFIG
    return KarmaSettings(**{name: getattr(config, name) for name in names})


def _fit(
    lake: Lake,
    config: Config,
    inputs: TrainingInputs,
    network: KarmaNetwork,
    karma_log: KarmaLog,
    held_out: HeldOutKarma,
) -> tuple[KarmaEpochRow, ...]:
    """Train the network in place, going on from a killed run's last epoch."""
    checkpoint = Checkpoint(
        lake.folder(MODELS) / UNFINISHED,
        {
            "inputs": inputs.digest,
            "titles": hashlib.sha256("\n".join(held_out.titles).encode()).hexdigest(),
            "settings": inputs.settings,
            "trained_through": inputs.trained_through.isoformat(),
            "curve": KarmaEpochRow._fields,  # a checkpoint of a version that measured less is not gone on from
        },
    )
    resume_from, num_epochs = checkpoint.read(), len(stages_of(fit_settings(config)))
    epochs_done = 0
    if resume_from is not None:
        epochs_done = resume_from["state"]["epoch"]
        logger.info("fit_embedder_karma: goes on after epoch %d", epochs_done)

    def on_epoch(row: KarmaEpochRow) -> None:
        name = "untouched" if row.stage == "untouched" else f"epoch {row.epoch + 1} of at most {num_epochs}"
        logger.info("fit_embedder_karma: %s: %s, %.1f s", name, _told(row, config.recall_at), row.seconds)

    if not held_out:
        logger.warning("fit_embedder_karma: no user has clicks on both sides of the validation cut: all epochs are run")
    num_users = len(karma_log.sequences)
    with progress_bar("fit_embedder_karma", total=num_epochs * num_users, unit="users") as advance:
        advance(epochs_done * num_users)
        return fit_karma(
            network,
            karma_log,
            fit_settings(config),
            validate=held_out if held_out else None,
            watch=KarmaWatch(
                on_users=advance, on_epoch=on_epoch, on_checkpoint=checkpoint.write, resume_from=resume_from
            ),
        )


def _told(row: KarmaEpochRow, recall_at: int) -> str:
    """An epoch in a few words: the losses that it has, what held-out users say."""
    parts = {
        "loss": row.train_loss,
        "action": row.action_loss,
        "generation": row.generation_loss,
        "reconstruction": row.reconstruction_loss,
        "image": row.image_loss,
        f"R@{recall_at}": row.validation_recall,
        "JS@50": row.title_similarity,
        "rank": row.effective_rank,
        "top-1 mass": row.top1_mass,
        "perplexity": row.title_perplexity,
    }
    return ", ".join(f"{name} {value:.4g}" for name, value in parts.items() if value is not None) or "nothing to tell"


def _put_in_place(
    lake: Lake,
    config: Config,
    inputs: TrainingInputs,
    network: KarmaNetwork,
    curve: tuple[KarmaEpochRow, ...],
    attention: pl.DataFrame,
    counts: InteractionCounts,
    seconds: float,
) -> None:
    """Write the model into a folder of its own, then the tables about it, then remove what was there before."""
    models = lake.folder(MODELS)
    model = KarmaModel.of_network(network, _precision(config))
    through = inputs.trained_through.isoformat()
    fingerprint = inputs.frozen.content.of_karma(
        inputs.frozen.images,
        weights_sha256=model.weights_sha256(),
        dimension=model.output_dim,
        trained_through=through,
        dtype=model.precision,
    )
    name = fingerprint.digest()[:16]

    def save(folder: Path) -> None:
        model.save(folder / "serving")
        KarmaDecoder.of_network(network).save(folder / "decoder")

    write_model(models, name, save)
    best = next(row for row in curve if row.is_best)
    lake.write(KarmaAttention, attention, metadata={"folder": f"{MODELS}/{name}"})
    lake.write(
        KarmaCurves,
        pl.DataFrame([row._asdict() for row in curve], schema=KarmaCurves.create_empty().schema),
        fingerprint=fingerprint.as_tags(),
        metadata={
            **{part: _told_folder(lake, f"{MODELS}/{name}/{part}") for part in ("serving", "decoder")},
            "uses_images": inputs.frozen.images is not None,
            "inputs": inputs.digest,
            "settings": inputs.settings,
            "language_model": {"model_id": network.lm.model_id, "layers": _num_layers(network)},
            "num_users": counts.users,
            "num_interactions": counts.learnt_from,
            "num_items": len(inputs.catalogue),
            "num_images": _num_images(inputs),
            "best_epoch": best.epoch,
            "seconds": round(seconds, 3),
        },
    )
    keep_only(models, name)
    logger.info(
        "fit_embedder_karma: %s, trained through %s: %s at epoch %d of %d, %.1f s",
        fingerprint,
        through,
        _told(best, config.recall_at),
        best.epoch + 1,
        curve[-1].epoch + 1,
        seconds,
    )


def _told_folder(lake: Lake, folder: str) -> Mapping[str, Any]:
    return {"folder": folder, "files_sha256": sha256_of_model(lake.root / folder)}


def _num_layers(network: KarmaNetwork) -> int:
    return len(network.towers.language_model.layers)
