"""What cannot be trained is said before the first step, and what went wrong right after it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from embedders.karma import KarmaNetwork
from embedders.karma_draws import KarmaLog
from embedders.karma_settings import KarmaSettings


def check_catalogue(network: KarmaNetwork, log: KarmaLog, settings: KarmaSettings) -> None:
    """One title an item, pictures where they are told, and something to compare targets with."""
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
    shown = settings.exposed > 0 and log.exposed_EM is not None and bool((log.exposed_EM >= 0).any())
    if not (shown or settings.catalogue_negatives or settings.in_batch_weight):
        raise ValueError(
            "fit_karma: targets are compared with nothing: catalogue_negatives = 0, in_batch_weight = 0, and the log "
            "does not say what was shown beside them (or exposed = 0). Give one of the two a number above 0."
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
        parts = ", ".join(f"{name} {float(term.detach()):.4g}" for name, term in terms.items())
        raise ValueError(
            f"fit_karma: the training loss became {value} in epoch {epoch} (seed {settings.seed}; {parts}). "
            f"Expected a finite number: lower the rate of that stage (title_rate {settings.title_rate}, head_rate "
            f"{settings.head_rate}, learning_rate {settings.learning_rate}, language_model_rate "
            f"{settings.language_model_rate}), choose precision = 'float32', or look for NaN in the frozen vectors."
        )
