"""The trained weights of a model, kept aside while it goes on learning, and put back."""

from collections.abc import Mapping

import torch
from torch import Tensor


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy in the CPU's memory, which later steps do not change."""
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}


@torch.no_grad()
def put_back(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give every weight the value that `copied` kept, in place."""
    for name, weight in weights.items():
        weight.copy_(values[name])
