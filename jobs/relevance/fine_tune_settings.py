"""How a local relevance teacher is fine-tuned on chains: the section [label_relevance.fine_tune] of the settings."""

from typing import Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class FineTune(BaseModel, extra="forbid", frozen=True):
    """Supervised training of the teacher (`embedders.fit_teacher`)."""

    enabled: bool = False
    """False: the teacher is asked as it is. True: it begins with `teacher.model`, which must be a local model."""
    answers: Literal["chain", "label_only"] = "chain"
    """What it learns to write: the whole chain, or the label alone (the comparison without reasoning)."""
    contrast_share: NonNegativeFloat = 0.0
    """Chains of contrast, for each judged chain: half of them pairs of training queries as they are, half the same with
    one value of the item replaced, so that one step says mismatch (`embedders.counterfactuals`). Their labels are not
    learnt. 0: none."""
    low_rank: PositiveInt | None = None
    """Rank of LoRA adapters (needs the package peft); by default all weights are trained."""
    epochs: PositiveInt = 3
    """Most passes over the chains."""
    patience: NonNegativeInt = 1
    """Epochs without a better validation before training stops."""
    batch_size: PositiveInt = 16
    """Pairs a step."""
    pairs_at_once: PositiveInt = 4
    """Pairs of one forward pass; less memory with fewer."""
    learning_rate: PositiveFloat = 2e-5
    """At its peak. Adapters want about ten times as much."""
    warmup: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of all steps until the peak."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the passes. auto: bfloat16 on a GPU, float32 on a CPU; a CPU with AMX is faster with bfloat16, too."""
    validate_by: Literal["loss", "roc_auc"] = "loss"
    """What stops training early, on chains of validation queries: their loss, or the ROC-AUC of the teacher's scores,
    which asks it about them after every epoch."""
    max_validation_pairs: NonNegativeInt = 300
    """Chains of validation queries that are looked at. 0: all epochs are trained."""
    refit_share: float = Field(0.1, ge=0.0, le=1.0)
    """A trained teacher is kept until more than this share of its examples are others (new, gone, or edited): every
    answer of another teacher has to be asked for anew. 0: trained again whenever any of them changes."""
    seed: NonNegativeInt = 0
    """Of the order and of dropout."""
