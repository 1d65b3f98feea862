"""What a history was like up to each of its items.

Letters: B users, L items, F numbers of an item.
"""

import torch
from torch import Tensor


def running_mean(values_BLF: Tensor, decay: float) -> Tensor:
    """Mean of each item and those before it, [B, L, F].

    Args:
        values_BLF: oldest first; padding on the right touches nothing before it.
        decay: what an item weighs beside the one after it; 1: all weigh the same.
    """
    place_L = torch.arange(values_BLF.shape[1], device=values_BLF.device)
    age_LL = place_L.unsqueeze(1) - place_L
    weight_LL = torch.where(age_LL >= 0, decay ** age_LL.clamp_min(0).to(values_BLF.dtype), 0.0)
    with torch.autocast(values_BLF.device.type, enabled=False):  # eight bits are too few for a mean
        return (weight_LL / weight_LL.sum(dim=1, keepdim=True)) @ values_BLF
