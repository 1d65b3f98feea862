"""What KARMA knows of an item: its frozen text vector and, where there is one, its frozen image vector.

Letters: N items, C text width, V image width, F = C + V.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedders.learn import FrozenContent
from embedders.standard_scale import mean_and_scale


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
    """Each coordinate with mean 0, all of one deviation [NF->P]; a learnt vector stands for a missing picture.

    That of a text's coordinates is 1, that of a picture's sqrt(C / V), so that both weigh alike: at 1, the 1,280 of
    EfficientNet beside 384 of MiniLM would be three quarters of what every layer reads first.

    Args:
        frozen: the catalogue's vectors. A model with pictures may be given a catalogue without any, not the reverse.
    """

    content_mean_C: Tensor
    content_scale_C: Tensor
    image_mean_V: Tensor
    image_scale_V: Tensor

    def __init__(self, frozen: FrozenFeatures) -> None:
        super().__init__()
        self.frozen = frozen
        image_dim = frozen.image_dim or 0
        self.register_buffer("content_mean_C", torch.zeros(frozen.content_dim))
        self.register_buffer("content_scale_C", torch.ones(frozen.content_dim))
        self.register_buffer("image_mean_V", torch.zeros(image_dim))
        self.register_buffer("image_scale_V", torch.ones(image_dim))
        self.no_image_V = nn.Parameter(torch.zeros(image_dim))

    @property
    def width(self) -> int:
        """F."""
        return self.content_mean_C.numel() + self.image_mean_V.numel()

    def fit(self, content_NC: NDArray[np.float32], image_MV: NDArray[np.float32] | None = None) -> None:
        """Take mean and deviation from samples.

        Args:
            content_NC: text vectors of some items.
            image_MV: image vectors of items that have a picture; they may be other items.
        """
        device = self.content_mean_C.device
        self.content_mean_C, self.content_scale_C = (part.to(device) for part in mean_and_scale(content_NC))
        if image_MV is not None and len(image_MV):
            mean_V, scale_V = mean_and_scale(image_MV)
            self.image_mean_V, self.image_scale_V = mean_V.to(device), (scale_V * self._image_weight).to(device)

    def to_standard_images(self) -> tuple[Tensor, Tensor]:
        """Mean and factor [V] that give pictures a deviation of 1, whatever they weigh beside a text."""
        return self.image_mean_V, self.image_scale_V / self._image_weight

    @property
    def _image_weight(self) -> float:
        return math.sqrt(self.content_mean_C.numel() / self.image_mean_V.numel())

    def forward(self, rows: Tensor) -> Tensor:
        """`rows` of any shape, int64, all valid; gives [..., F] float32."""
        content = (self.frozen.content(rows) - self.content_mean_C) * self.content_scale_C
        if self.image_mean_V.numel() == 0:
            return content
        if self.frozen.image is None:
            return torch.cat([content, self.no_image_V.expand(*rows.shape, -1)], dim=-1)
        image = self.frozen.image(rows)
        has_one = image.abs().sum(dim=-1, keepdim=True) > 0
        standard = (image - self.image_mean_V) * self.image_scale_V
        return torch.cat([content, torch.where(has_one, standard, self.no_image_V)], dim=-1)
