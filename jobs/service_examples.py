"""The examples of one feature service, encoded for the rankers that read it: every split once, whatever the seeds."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from feature_repo.table_schemas import TrainingExamples
from jobs.lake import Lake
from jobs.train_ranker import Config
from ranker.auc import uauc
from ranker.batches import EncodedExamples
from ranker.feature_columns import FeatureColumns, FeatureEncoder
from ranker.losses import log_loss
from ranker.ranker import Scores, Validate, Validation

logger = logging.getLogger(__name__)

ROWS_PER_CHUNK = 200_000
"""Rows whose strings are in memory while they are encoded."""


@dataclass(frozen=True)
class ServiceExamples:
    """All splits of one feature service, encoded."""

    encoder: FeatureEncoder
    train: EncodedExamples
    validation: EncodedExamples
    test: EncodedExamples
    validate: Validate
    inputs_digest: str
    """Of the training set and of how it was encoded."""

    @property
    def has_conversions(self) -> bool:
        """Whether any training row is converted: without one there is no p_cvr, rather than a made-up one."""
        return bool((self.train.converted_N == 1).any())


def encode_service(lake: Lake, service: str, roles: Mapping[str, str], config: Config) -> ServiceExamples:
    """Encode all splits of one service.

    Args:
        lake: where training_examples and the vector matrices are.
        service: its name, for messages.
        roles: its features and what each is to the ranker.
        config: history length and when an id is known.

    Raises:
        ValueError: a feature has no column, or a split has no rows.
    """
    started = time.monotonic()
    manifest = lake.manifest(TrainingExamples)
    examples = lake.scan(TrainingExamples)
    columns = FeatureColumns.from_roles(roles)
    if missing := sorted({*columns.features} - {*examples.collect_schema().names()}):
        raise ValueError(
            f"train_ranker: training_examples has no columns {missing}, which its metadata promises for {service}. "
            "Run build_training_set again."
        )
    matrices = {name: lake.open_matrix(manifest.metadata["vectors"][name]) for name in columns.vector_ids}
    encoder = FeatureEncoder.fit(
        columns,
        examples.filter(pl.col("split") == "train"),
        min_count=config.min_id_count,
        history_length=config.history_length,
    )

    def encode(split: str) -> EncodedExamples:
        rows = examples.filter(pl.col("split") == split).select(
            *dict.fromkeys((*columns.features, "clicked", "converted"))
        )
        num_rows = rows.select(pl.len()).collect().item()
        if num_rows == 0:
            raise ValueError(
                f"train_ranker: training_examples has no {split} rows. Widen the {split} window of build_training_set."
            )
        return encoder.encode_chunks(rows.collect_batches(chunk_size=ROWS_PER_CHUNK), num_rows, matrices)

    splits = {split: encode(split) for split in ("train", "validation", "test")}
    num_rows = sum(len(each) for each in splits.values())
    seconds = time.monotonic() - started
    logger.info(
        "train_ranker: %s: %s rows encoded, %.0f MB, %.1f s, %s rows/s",
        service,
        f"{num_rows:_}",
        sum(each.num_bytes for each in splits.values()) / 1e6,
        seconds,
        f"{num_rows / max(seconds, 1e-9):_.0f}",
    )
    _say_which_vectors_are_known(service, splits)
    identity = [manifest.digest, encoder.layout.as_dict(), splits["train"].vector_fingerprints]
    return ServiceExamples(
        encoder=encoder,
        **splits,
        validate=_validate(lake, splits["validation"]),
        inputs_digest=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
    )


def _say_which_vectors_are_known(service: str, splits: Mapping[str, EncodedExamples]) -> None:
    """Vectors of a trained model exist from its last interaction on, which may be after most training rows."""
    for pair in splits["train"].layout.vectors:
        known = {
            column: {split: each.vectors[column].rows_N >= 0 for split, each in splits.items()}
            for column in (pair.context, pair.item)
        }
        shares = [f"{(known[pair.context][split] & known[pair.item][split]).mean():.0%} of {split}" for split in splits]
        logger.info("train_ranker: %s: both %s vectors are known in %s", service, pair.name, ", ".join(shares))
        if unseen := [column for column, of_split in known.items() if not of_split["train"].any()]:
            logger.warning(
                "train_ranker: %s: no training row has a vector of %s, so rankers read them as missing everywhere. "
                "Train their model on earlier interactions only, or move the train window on.",
                service,
                unseen,
            )


def _validate(lake: Lake, validation: EncodedExamples) -> Validate:
    """Loss of clicks and conversions, and UAUC of clicks, on the validation rows."""
    users = (
        lake.scan(TrainingExamples)
        .filter(pl.col("split") == "validation")
        .select(pl.col("user_id").rank("dense"), "clicked")
        .collect()
    )

    def validate(scores: Scores) -> Validation:
        judged = uauc(users.with_columns(p_ctr=pl.Series(scores.p_ctr)), "clicked", "p_ctr")
        return Validation(log_loss(scores, validation.clicked_N, validation.converted_N), judged.value)

    return validate
