"""What cannot be trained is said before the first step, and what went wrong right after it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from embedders.karma import KarmaNetwork
from embedders.karma_draws import KarmaLog
from embedders.karma_settings import KarmaSettings


def check_catalogue(network: KarmaNetwork, log: KarmaLog, settings: KarmaSettings) -> None:
    """One title an item, and pictures where they are told."""
    features = network.towers.features.frozen
    if len(features) != len(log.titles):
        raise ValueError(
            f"fit_karma: the catalogue has {len(features)} items with features and {len(log.titles)} titles; expected "
            "one title an item, an empty one where there is none"
        )
    if settings.image != "off" and features.image is None:
        raise ValueError(
            f"fit_karma: image = {settings.image!r} tells pictures, but no item has one. Embed images first "
            "(embed_images), or choose image = 'off'."
        )


def check_dtype(trained: Mapping[str, Tensor]) -> None:
    """What is trained is float32."""
    for name, weight in trained.items():
        if weight.dtype != torch.float32:
            raise ValueError(
                f"fit_karma: {name} is {weight.dtype}, too coarse for small steps to add up; expected float32. Load "
                "the language model with dtype = 'float32' (precision says what its passes are in), or freeze it."
            )


def check_finite(loss: Tensor, terms: Mapping[str, Tensor], epoch: int, settings: KarmaSettings) -> None:
    """After every step: one such step spoils all weights, and an epoch of a language model may be an hour."""
    value = float(loss.detach())
    if not math.isfinite(value):
        parts = ", ".join(f"{name} {float(term):.4g}" for name, term in terms.items())
        raise ValueError(
            f"fit_karma: the training loss became {value} in epoch {epoch} (seed {settings.seed}; {parts}). "
            f"Expected a finite number: lower learning_rate (now {settings.learning_rate}) or language_model_rate (now "
            f"{settings.language_model_rate}), choose precision = 'float32', or look for NaN in the frozen vectors."
        )
