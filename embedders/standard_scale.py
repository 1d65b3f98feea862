"""What frozen vectors are standardised by, and the directions in which they then spread most.

Letters: N vectors, C their width, d directions.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAME = 1e-6
"""A coordinate that deviates less is the same in all vectors: it is centred and not scaled."""


def mean_and_scale(vectors_NC: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Mean [C] and 1 / deviation [C] of each coordinate, float32 on the CPU."""
    deviation_C = vectors_NC.std(axis=0, dtype=np.float64)
    # what is the same in the whole sample (a single picture, a placeholder) says nothing of how later vectors spread
    deviation_C[deviation_C < SAME] = 1.0
    mean_C = torch.tensor(vectors_NC.mean(axis=0, dtype=np.float64), dtype=torch.float32)
    return mean_C, torch.tensor(1.0 / deviation_C, dtype=torch.float32)


def principal_directions(vectors_NC: NDArray[np.float32], mean_C: Tensor, scale_C: Tensor, most: int) -> Tensor:
    """The d <= most directions of standardised vectors with the largest variance, [d, C], the largest last."""
    sample_NC = torch.from_numpy(vectors_NC).to(mean_C.device)
    standard_NC = (sample_NC - mean_C) * scale_C
    _, directions_CC = torch.linalg.eigh(standard_NC.T @ standard_NC)  # ascending
    directions_dC: Tensor = directions_CC[:, -most:].T
    return directions_dC
