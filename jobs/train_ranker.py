"""Train every ranker from every seed on the training set, and score the test and the validation split.

reads   training_examples (and the vector matrices beside it), user_segments, item_segments
writes  ranker_predictions      one row per (ranker, seed, test impression)
        validation_predictions  one row per (ranker, seed, validation impression), to recalibrate probabilities on
        training_curves         one row per (ranker, seed, validation)
        models/<ranker>/<seed>  checkpoint, vocabularies, and how it was trained

Rankers are compared on equal terms: same rows, same number of passes, same number of settings tried, each chosen by
validation UAUC of clicks. What is already trained on the same inputs is not trained again, and a killed run goes on
from its last validation.
"""

import logging
from typing import Any, Literal

import dataframely as dy
from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from feature_repo.table_schemas import (
    ItemSegments,
    RankerPredictions,
    TrainingCurves,
    TrainingExamples,
    UserSegments,
    ValidationPredictions,
)
from jobs.lake import Lake

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (TrainingExamples, UserSegments, ItemSegments)
WRITES: tuple[type[dy.Schema], ...] = (RankerPredictions, ValidationPredictions, TrainingCurves)


class RankerConfig(BaseModel, extra="forbid", frozen=True):
    """One ranker."""

    kind: Literal["network", "gbdt"]
    """ID network with ESMM heads, or LightGBM."""
    service: str
    """The Feast feature service whose features it reads."""
    auxiliary: Literal["none", "detached", "joint"] = "none"
    """LEARN's auxiliary networks (networks only), one for each pair of vectors of the service: absent, trained by
    their own loss alone, or jointly."""


PRESETS = {
    "base": RankerConfig(kind="network", service="ranker_base_v1"),
    "content": RankerConfig(kind="network", service="ranker_content_v1", auxiliary="detached"),
    "content_joint": RankerConfig(kind="network", service="ranker_content_v1", auxiliary="joint"),
    "learn": RankerConfig(kind="network", service="ranker_learn_v1", auxiliary="detached"),
    "learn_joint": RankerConfig(kind="network", service="ranker_learn_v1", auxiliary="joint"),
    "karma": RankerConfig(kind="network", service="ranker_karma_v1", auxiliary="detached"),
    "karma_joint": RankerConfig(kind="network", service="ranker_karma_v1", auxiliary="joint"),
    "relevance": RankerConfig(kind="network", service="ranker_relevance_v1", auxiliary="detached"),
    "relevance_joint": RankerConfig(kind="network", service="ranker_relevance_v1", auxiliary="joint"),
    "all": RankerConfig(kind="network", service="ranker_all_v1", auxiliary="detached"),
    "all_joint": RankerConfig(kind="network", service="ranker_all_v1", auxiliary="joint"),
    "gbdt_base": RankerConfig(kind="gbdt", service="ranker_base_v1"),
    "gbdt_content": RankerConfig(kind="gbdt", service="ranker_content_v1"),
    "gbdt_learn": RankerConfig(kind="gbdt", service="ranker_learn_v1"),
    "gbdt_karma": RankerConfig(kind="gbdt", service="ranker_karma_v1"),
    "gbdt_relevance": RankerConfig(kind="gbdt", service="ranker_relevance_v1"),
    "gbdt_all": RankerConfig(kind="gbdt", service="ranker_all_v1"),
}
"""Rankers that can be asked for by name alone."""

DEFAULT_RANKERS = ("base", "content", "learn", "gbdt_base", "gbdt_learn")


class Config(BaseModel, extra="forbid", frozen=True):
    """Which rankers, and how long they train. Everything but `kind`, `service` and `auxiliary` is the same for all."""

    rankers: dict[str, RankerConfig] = Field(
        default_factory=lambda: {name: PRESETS[name] for name in DEFAULT_RANKERS}, min_length=1
    )
    """Name -> ranker; or a list of names of presets: base, content, content_joint, learn, learn_joint, karma,
    karma_joint, relevance, relevance_joint, all, all_joint, gbdt_base, gbdt_content, gbdt_learn, gbdt_karma,
    gbdt_relevance, gbdt_all. Rankers of a method that is switched off ([fit_embedder], [fit_embedder_karma],
    [label_relevance]: enabled) are left out by default, and those of one that is on are there."""
    seeds: tuple[NonNegativeInt, ...] = Field((0,), min_length=1)
    """Each ranker is trained from each."""
    trials: PositiveInt = 1
    """Settings tried for each ranker, from the first seed; the best on validation trains every seed. 1: no search."""
    passes: PositiveInt = 3
    """Most passes of a network over the training rows."""
    evaluations_per_pass: PositiveInt = 2
    """Validations of a network within a pass."""
    patience: PositiveInt = 2
    """Validations of a network without a better one before it stops."""
    batch_size: PositiveInt = 2048
    """Impressions a training step."""
    learning_rate: PositiveFloat = 1e-3
    """Of the networks; embeddings learn three times as fast."""
    weight_decay: NonNegativeFloat = 1e-5
    """Of the networks, embeddings left out."""
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    """In the networks' MLPs."""
    embedding_dim: PositiveInt = 16
    """Width of an ID embedding."""
    history_length: PositiveInt = 30
    """Most recent history items that are read."""
    min_id_count: PositiveInt = 2
    """An id with fewer training rows shares the out-of-vocabulary row."""
    auxiliary_label: Literal["converted", "clicked"] = "converted"
    """Label of the auxiliary network's own loss. A log without conversions falls back to `clicked`, and says so."""
    num_rounds: PositiveInt = 500
    """Most boosting rounds of LightGBM."""

    @field_validator("rankers", mode="before")
    @classmethod
    def _names_are_presets(cls, rankers: Any) -> Any:
        if not isinstance(rankers, list | tuple):
            return rankers
        if unknown := [name for name in rankers if name not in PRESETS]:
            raise ValueError(f"no preset is named {unknown}; the presets are {', '.join(PRESETS)}")
        return {name: PRESETS[name] for name in rankers}

    @field_validator("rankers")
    @classmethod
    def _names_are_folders(cls, rankers: dict[str, RankerConfig]) -> dict[str, RankerConfig]:
        if broken := [name for name in rankers if not name.replace("_", "").replace("-", "").isalnum()]:
            raise ValueError(f"ranker names become folders: letters, digits, `_` and `-` only, got {broken}")
        return rankers


def run(lake: Lake, config: Config) -> None:
    """Train what is not trained yet, score test and validation with every ranker, write predictions and curves."""
    # torch takes seconds to import, and whoever lists the steps imports this file
    from jobs.ranker_runs import train_all

    train_all(lake, config)
