"""LoRA by the package peft: small trainable matrices beside the frozen weights of a language model."""

import importlib
import importlib.util
from typing import Any

TARGETS = "all-linear"
"""Every linear layer but the output's; peft's own name for it."""


def with_low_rank(model: Any, rank: int, *, alpha: int | None = None, dropout: float = 0.0) -> Any:
    """The model with trainable adapters of this rank; all other weights are frozen.

    Args:
        model: a transformers causal language model; it is changed.
        rank: of the adapters.
        alpha: their scale is alpha / rank; None: alpha = 2 * rank.
        dropout: on their input.

    Raises:
        ValueError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            "with_low_rank: LoRA needs the package peft, which is not installed. Install it (`pip install peft`), or "
            "train all weights (low_rank = None)."
        )
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def merged(model: Any) -> Any:
    """The model with its adapters added into its weights: an ordinary one again."""
    return model.merge_and_unload()
