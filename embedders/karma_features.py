"""What KARMA knows of an item: its frozen text vector and, where there is one, its frozen image vector.

Letters: N items, C text width, V image width, P components of a picture that are read, F = C + P.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedders.learn import FrozenContent
from embedders.standard_scale import SAME, mean_and_scale, principal_directions

IMAGE_COMPONENTS = 64
"""Of a picture, at most."""


class FrozenFeatures(nn.Module):
    """Text and image vectors of the catalogue by row. No parameters: the matrices may be memory-mapped.

    Args:
        content_NC: text vectors.
        image_NV: image vectors, a row of zeros where an item has no picture; None: nobody has one.
    """

    def __init__(self, content_NC: NDArray[np.float32], image_NV: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        if image_NV is not None and len(image_NV) != len(content_NC):
            raise ValueError(f"{len(content_NC)} text vectors, {len(image_NV)} image vectors: one row an item in both")
        self.content = FrozenContent(content_NC)
        self.image = None if image_NV is None else FrozenContent(image_NV)

    @property
    def content_dim(self) -> int:
        """C."""
        return self.content.width

    @property
    def image_dim(self) -> int | None:
        """V; None where there are no pictures."""
        return None if self.image is None else self.image.width

    def __len__(self) -> int:
        return len(self.content.content_NC)


class StandardFeatures(nn.Module):
    """A text's coordinates with mean 0 and deviation 1, and a picture's principal components [NF->P].

    Of a picture the first `IMAGE_COMPONENTS` are read, by one common factor that gives them together the variance of a
    text. More of it is learnt by heart: with all 1,280 numbers of EfficientNet two thousand users found less than with
    the text alone (DECISIONS.md). A learnt vector stands for a missing picture.

    Args:
        frozen: the catalogue's vectors. A model with pictures may be given a catalogue without any, not the reverse.
    """

    content_mean_C: Tensor
    content_scale_C: Tensor
    image_mean_V: Tensor
    image_scale_V: Tensor
    image_basis_VP: Tensor

    def __init__(self, frozen: FrozenFeatures) -> None:
        super().__init__()
        self.frozen = frozen
        image_dim = frozen.image_dim or 0
        num_components = min(image_dim, IMAGE_COMPONENTS)
        self.register_buffer("content_mean_C", torch.zeros(frozen.content_dim))
        self.register_buffer("content_scale_C", torch.ones(frozen.content_dim))
        self.register_buffer("image_mean_V", torch.zeros(image_dim))
        self.register_buffer("image_scale_V", torch.ones(image_dim))
        self.no_image_P = nn.Parameter(torch.zeros(num_components))
        self.register_buffer("image_basis_VP", self._as_they_are())

    @property
    def width(self) -> int:
        """F."""
        return self.content_mean_C.numel() + self.no_image_P.numel()

    def fit(self, content_NC: NDArray[np.float32], image_MV: NDArray[np.float32] | None = None) -> None:
        """Take mean and deviation from samples, and the components of pictures.

        Args:
            content_NC: text vectors of some items.
            image_MV: image vectors of items that have a picture; they may be other items.
        """
        device = self.content_mean_C.device
        self.content_mean_C, self.content_scale_C = (part.to(device) for part in mean_and_scale(content_NC))
        if image_MV is None or not len(image_MV):
            return
        self.image_mean_V, self.image_scale_V = (part.to(device) for part in mean_and_scale(image_MV))
        plain_V = torch.ones_like(self.image_mean_V)
        basis_VP = principal_directions(image_MV, self.image_mean_V, plain_V, self.no_image_P.numel()).T
        found_MP = (torch.from_numpy(image_MV).to(device) - self.image_mean_V) @ basis_VP
        variance = float(found_MP.square().mean(dim=0).sum())
        # a sample of one picture says nothing of how others differ
        self.image_basis_VP = (
            basis_VP * math.sqrt(self.content_mean_C.numel() / variance) if variance > SAME else self._as_they_are()
        )

    def _as_they_are(self) -> Tensor:
        """The first coordinates."""
        return torch.eye(self.image_mean_V.numel(), self.no_image_P.numel(), device=self.no_image_P.device)

    def forward(self, rows: Tensor) -> Tensor:
        """`rows` of any shape, int64, all valid; gives [..., F] float32."""
        content = (self.frozen.content(rows) - self.content_mean_C) * self.content_scale_C
        if self.no_image_P.numel() == 0:
            return content
        if self.frozen.image is None:
            return torch.cat([content, self.no_image_P.expand(*rows.shape, -1)], dim=-1)
        image = self.frozen.image(rows)
        has_one = image.abs().sum(dim=-1, keepdim=True) > 0
        components = (image - self.image_mean_V) @ self.image_basis_VP
        return torch.cat([content, torch.where(has_one, components, self.no_image_P)], dim=-1)
