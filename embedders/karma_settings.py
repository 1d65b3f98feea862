"""What a fit of KARMA learns, how long, how fast (arXiv 2603.22779); all but the terms themselves is ours [NF->P]."""

from dataclasses import dataclass
from typing import Literal

Action = Literal["pairwise", "infonce"]
Image = Literal["off", "history", "vector"]


@dataclass(frozen=True)
class KarmaSettings:
    """Of `embedders.fit_karma`."""

    action: Action = "pairwise"
    """L_act. pairwise: every negative by itself below the target (the paper's). infonce: softmax over all of them."""
    scale: float | None = 5.0
    """Of the cosines in L_act; None: the raw dot product of unit vectors. LEARN's 20 is too much for a mean over pairs:
    of what is as yet undecided it teaches to tell nothing apart."""
    decodability: float = 0.5
    """lambda, of all that is decoded; 0: action alone, and users' vectors decode nothing."""
    generation: bool = True
    """L_gen: the target's title, with the history in sight."""
    reconstruction: bool = True
    """L_recon: the target's title, from the user's vector alone."""
    image: Image = "off"
    """L_img: the target's picture, told from the state at the read-out (history) or from the user's vector."""
    read_outs: int = 4
    """Of a user and epoch, at most: places of the window that are predicted from what is before them."""
    decoded: int = 1
    """How many of these also decode their title: each costs about 20 tokens a decoder, a read-out about one."""
    exposed: int = 4
    """Items shown beside a target and not clicked that a read-out takes as negatives, at most."""
    catalogue_negatives: int = 1024
    """Items of the catalogue that all read-outs of a step are compared with, at most: negatives of the batch alone know
    nothing of what is rarely chosen."""
    in_batch_weight: float = 0.0
    """Of the batch's negatives. What is often chosen is often one of them, so they teach what a user wants more than
    others do; those of the catalogue teach what is wanted at all, and with both less is found."""
    query_share: float = 0.5
    """Of the read-outs with a query, how many see it: the vector must also be good without one."""
    title_epochs: int = 0
    """Of the stage in which titles are said from items' own tokens; 0: there is none."""
    title_rate: float = 5e-4
    """Of that stage, at its peak: of the language model, too, unless it is frozen."""
    warm_up_epochs: int = 0
    """Of the warm-up; by L_gen, whatever `generation` says of the joint stage."""
    head_epochs: int = 20
    """Most epochs of the heads' stage, over states of the language model at rest; 0: there is none."""
    head_held_out: float = 0.1
    """Share of the users that train no heads in that stage but say which of its epochs is kept; 0: the last is."""
    epochs: int = 3
    """Most passes over the users in the joint stage."""
    patience: int = 1
    """Validations of the joint stage without a better one before training stops."""
    batch_size: int = 16
    """Users a step, of all processes together; the batch's negatives are those of one process."""
    head_dropout: float = 0.3
    """Of the heads' stage: share of each state that is left out of a step."""
    head_rate: float = 1e-3
    """Of the heads' stage, at its peak."""
    learning_rate: float = 3e-4
    """Of what is new beside the language model, at its peak."""
    language_model_rate: float = 1e-4
    """Of the language model or its LoRA adapters, at its peak."""
    warmup: float = 0.1
    """Share of a stage's steps until the peak."""
    weight_decay: float = 0.0
    """Of AdamW."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the passes; weights, losses and optimizer are float32. auto: bfloat16 on a GPU, float32 on a CPU. bfloat16: on
    a CPU, too, where it has AMX."""
    frozen_language_model: bool = False
    """The comparison: only what is new beside the language model learns."""
    seed: int = 0
    """Of the order, the windows, the read-outs, the flow's noise and first weights, dropout."""
