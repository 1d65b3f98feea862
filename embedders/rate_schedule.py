"""What trainings here have in common: AdamW's betas, the limit of the gradient's norm, the rate's rise and fall.

The betas, the warm-up of 10 % and the cosine are LEARN's (arXiv 2405.03988); the limit and the least rate are ours
[NF->P].
"""

import math

GRADIENT_NORM_LIMIT = 1.0
BETAS = (0.9, 0.98)
LEAST_RATE = 0.01
"""Share of the learning rate that is left at the end of the cosine."""


def share_of_peak_rate(step: int, num_steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to LEAST_RATE."""
    warm = max(1, round(warmup * num_steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, num_steps - warm)
    return LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))
