"""LEARN's network: content vectors in, user and item vectors out.

    LEARN: Knowledge Adaptation from Large Language Model to Recommendation for Practical Industrial Application,
    arXiv:2405.03988 (content extraction + preference alignment, PAL)

A frozen language model encodes each item's text once (`embedders.backbone`). A small transformer, trained from scratch
on interactions, maps those vectors into the space where users and the items they want are close. The same transformer
reads a user's history (every position is a user vector, the last one at serving) and, as the item tower, the items.

What we keep: content adaptor -> causal BERT-shaped encoder without position embeddings -> projection -> unit norm;
the three item towers; weights shared between the towers.
What differs, or is our proposal [NF->P]: shapes small enough for a CPU; content standardised before the adaptor;
position embeddings as a switch; a learnt ID table in the place of the content vectors, for comparison (with tower (c)
and positions it is a SASRec).

Letters: B users, L history length, T targets, N items, C content width, d output width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embedders.histories import PADDING
from embedders.standard_scale import mean_and_scale, principal_directions

ItemTower = Literal["sequence", "single", "content"]
INITIAL_STANDARD_DEVIATION = 0.02
"""As BERT initialises its weights."""


@dataclass(frozen=True)
class LearnShape:
    """Size of the network; the content width comes with the content."""

    num_layers: int = 2
    num_heads: int = 4
    hidden: int = 128
    feedforward: int = 512
    output_dim: int = 64
    dropout: float = 0.1
    max_history: int = 80
    """Items that the user tower reads; of a longer history the newest."""
    positions: bool = False
    """Learnt position embeddings: the official code has none."""
    residual: bool = False
    """Add the content's principal components, averaged over the positions so far, to the projection [NF->P]: the
    network starts at the quality of the mean of the history, where a short log would never let it arrive."""
    item_tower: ItemTower = "sequence"
    """(a) sequence: targets as one causal sequence in training, each alone at serving; (b) single: each alone in both;
    (c) content: the content vector itself, so that `output_dim` must be the content width."""


SHAPES: Mapping[str, LearnShape] = {
    "tiny": LearnShape(num_layers=1, num_heads=2, hidden=32, feedforward=64, output_dim=16),
    "small": LearnShape(residual=True),
    "amazon": LearnShape(num_layers=4, num_heads=12, hidden=768, feedforward=3072, output_dim=64),
    "paper": LearnShape(num_layers=12, num_heads=12, hidden=768, feedforward=3072, output_dim=64),
}
"""`paper` is BERT-base-like (88 M parameters under a 4096-wide encoder), `amazon` the official scripts' depth; `small`
and `tiny` are ours, for a CPU and for tests [NF->P]."""


class FrozenContent(nn.Module):
    """Content vectors by row. No parameters: the matrix may be memory-mapped and is not part of the model."""

    def __init__(self, content_NC: NDArray[np.float32]) -> None:
        super().__init__()
        self.content_NC = content_NC

    @property
    def width(self) -> int:
        """C."""
        return int(self.content_NC.shape[1])

    def forward(self, rows: Tensor) -> Tensor:
        """`rows` of any shape, int64, all valid; gives [..., C] float32."""
        # each distinct row is read once, in order: a mapped file is walked forwards
        distinct, inverse = np.unique(rows.cpu().numpy(), return_inverse=True)
        found = torch.from_numpy(np.ascontiguousarray(self.content_NC[distinct], np.float32))
        return found.to(rows.device)[torch.from_numpy(inverse.reshape(tuple(rows.shape))).to(rows.device)]


class IdTable(nn.Module):
    """One learnt vector per item: what an item is worth without its text. It knows nothing of an item never seen."""

    def __init__(self, num_items: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_items, width)
        nn.init.normal_(self.table.weight, std=INITIAL_STANDARD_DEVIATION)

    @property
    def width(self) -> int:
        """C."""
        return self.table.embedding_dim

    def forward(self, rows: Tensor) -> Tensor:
        """`rows` of any shape, int64, all valid; gives [..., C]."""
        vectors: Tensor = self.table(rows)
        return vectors


class LearnNetwork(nn.Module):
    """Preference alignment: both towers.

    Args:
        inputs: gives the content vectors of catalogue rows; may be exchanged for those of a newer catalogue.
        shape: size.

    Raises:
        ValueError: tower (c) with an output width other than the content's.
    """

    content_mean_C: Tensor
    content_scale_C: Tensor

    def __init__(self, inputs: FrozenContent | IdTable, shape: LearnShape) -> None:
        super().__init__()
        if shape.item_tower == "content" and shape.output_dim != inputs.width:
            raise ValueError(
                f"LearnNetwork: item tower `content` compares users with content vectors, which are {inputs.width} "
                f"wide, got output_dim {shape.output_dim}. Make them equal, or choose `sequence` or `single`."
            )
        self.shape = shape
        self.inputs = inputs
        self.adaptor = nn.Linear(inputs.width, shape.hidden)
        self.register_buffer("content_mean_C", torch.zeros(inputs.width))
        self.register_buffer("content_scale_C", torch.ones(inputs.width))
        self.position = nn.Embedding(shape.max_history, shape.hidden) if shape.positions else None
        layer = nn.TransformerEncoderLayer(
            shape.hidden,
            shape.num_heads,
            shape.feedforward,
            shape.dropout,
            activation="gelu",
            layer_norm_eps=1e-12,
            batch_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, shape.num_layers, enable_nested_tensor=False)
        self.projection = nn.Linear(shape.hidden, shape.output_dim)
        self.shortcut = nn.Linear(inputs.width, shape.output_dim, bias=False) if shape.residual else None
        for module in (self.adaptor, self.position, self.encoder, self.projection):
            if module is not None:
                module.apply(_initialise)

    def standardise(self, content_NC: NDArray[np.float32]) -> None:
        """Let the adaptor see each coordinate of the content with mean 0 and standard deviation 1 [NF->P].

        Vectors of a language model lie in a narrow cone (of a small decoder's mean states, two random texts have a
        cosine above 0.9): what they differ in would be lost beside what they share.

        Args:
            content_NC: the catalogue, or a sample of it.
        """
        assert self.content_mean_C.shape == (content_NC.shape[1],)
        mean_C, scale_C = self.content_mean_C, self.content_scale_C = mean_and_scale(content_NC)
        if self.shortcut is not None:
            with torch.no_grad():
                self.shortcut.weight[:] = principal_directions(content_NC, mean_C, scale_C, self.shape.output_dim)

    def forward(self, history_BL: Tensor, target_BT: Tensor) -> tuple[Tensor, Tensor]:
        """One training step's vectors: users [B, L, d] at every history position, targets [B, T, d]."""
        return self.users(history_BL), self.targets(target_BT)

    def users(self, history_BL: Tensor) -> Tensor:
        """A user vector for every position, from the items up to it.

        Args:
            history_BL: catalogue rows, oldest first, PADDING on the right.

        Returns:
            [B, L, d] unit norm; meaningless at padded positions, which no other position sees.
        """
        return self._aligned(self.inputs(history_BL.clamp_min(0)))

    def last_users(self, history_BL: Tensor) -> Tensor:
        """The user vector at the last position of each history, [B, d]: what serving uses."""
        last_B = (history_BL != PADDING).sum(dim=1) - 1
        return self.users(history_BL)[torch.arange(len(history_BL)), last_B]

    def targets(self, target_BT: Tensor) -> Tensor:
        """Item vectors as training sees them, [B, T, d]; meaningless at padded positions."""
        rows_BT = target_BT.clamp_min(0)
        if self.shape.item_tower == "sequence":
            return self._aligned(self.inputs(rows_BT))
        return self.items(rows_BT.reshape(-1)).view(*target_BT.shape, self.shape.output_dim)

    def items(self, rows_N: Tensor) -> Tensor:
        """Item vectors as serving sees them, [N, d] unit norm: each item alone."""
        content_NC = self.inputs(rows_N)
        if self.shape.item_tower == "content":
            return functional.normalize(content_NC, dim=1)
        return self._aligned(content_NC.unsqueeze(1)).squeeze(1)

    def _aligned(self, content_BLC: Tensor) -> Tensor:
        """Content adaptor, causal encoder, projection, unit norm."""
        content_BLC = (content_BLC - self.content_mean_C) * self.content_scale_C
        hidden_BLH = self.adaptor(content_BLC)
        length = hidden_BLH.shape[1]
        if self.position is not None:
            hidden_BLH = hidden_BLH + self.position.weight[:length]
        # padding stands on the right, so the causal mask already hides it from every real position
        mask_LL = nn.Transformer.generate_square_subsequent_mask(length, device=hidden_BLH.device)
        hidden_BLH = self.encoder(hidden_BLH, mask=mask_LL, is_causal=True)
        aligned_BLd = self.projection(hidden_BLH).float()
        if self.shortcut is not None:
            so_far_L1 = torch.arange(1, length + 1, device=hidden_BLH.device).unsqueeze(1)
            aligned_BLd = aligned_BLd + self.shortcut(content_BLC).float().cumsum(dim=1) / so_far_L1
        return functional.normalize(aligned_BLd, dim=-1)


def _initialise(module: nn.Module) -> None:
    """BERT's: normal weights, zero biases; layer norms as they are."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STANDARD_DEVIATION)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=INITIAL_STANDARD_DEVIATION)
