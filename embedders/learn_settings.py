"""What a fit of LEARN learns, how long, how fast (arXiv 2405.03988)."""

from dataclasses import dataclass, field
from typing import Literal

from embedders.contrastive import SCALE
from embedders.histories import Cut

Objective = Literal["dense", "single", "full_softmax", "next_item"]


@dataclass(frozen=True)
class LearnSettings:
    """What is learnt from, how long, how fast."""

    objective: Objective = "dense"
    """dense: all sampled positions against all sampled targets, negatives from the batch (the paper's).
    single: the last position against one target, negatives from the batch (the official code's Amazon pretraining).
    full_softmax: the last position against the whole catalogue (its finetuning).
    next_item: every position against the whole catalogue (SASRec's, as a baseline)."""
    num_negatives: int | None = None
    """next_item only: items drawn uniformly in each step, in place of the whole catalogue [NF->P]. None: all."""
    cut: Cut = field(default_factory=Cut)
    """How users are divided into history and targets; next_item does not divide them."""
    num_positions: int = 10
    """Of the history, and of the targets, that stage 2 samples for the dense objective."""
    pair_sampling: Literal["recency", "uniform"] = "recency"
    """Stage 2: newer positions more often (the paper's second version), or all alike."""
    scale: float = SCALE
    """1 / temperature of the cosines."""
    epochs: int = 20
    """Most passes over the users."""
    patience: int = 3
    """Validations without a better one before training stops."""
    batch_size: int = 256
    """Users a step, of all processes together."""
    learning_rate: float = 1e-3
    """At its peak."""
    warmup: float = 0.1
    """Share of all steps until the peak."""
    weight_decay: float = 0.0
    """Of AdamW."""
    precision: Literal["auto", "bfloat16"] = "auto"
    """Of the towers' forward pass; the loss is float32. auto: bfloat16 on a GPU, float32 on a CPU. bfloat16: on a CPU,
    too, where it has AMX."""
    seed: int = 0
    """Of the order, the cuts, the samples, dropout. The caller seeds the initial weights."""
