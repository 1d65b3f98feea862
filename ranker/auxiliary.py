"""LEARN's ranking-stage network: content vectors become a fusion vector, trained by a loss of its own.

    LEARN: Knowledge Adaptation from Large Language Model to Recommendation, arXiv:2405.03988 (the LEARN-Adaptor)

Two linear layers merge the user's and the item's vector into a fusion vector; an MLP on top of it is trained on
conversions; the ranker reads concat(fusion, user vector, item vector, everything else).

What we keep: that structure, and the vectors as frozen inputs.
What differs, or is our proposal because the paper does not say [NF->P]:
    widths 256 and 128, ReLU, input [u; v; u*v] and its two mask bits
    the fusion vector is detached before the ranker (only its own loss trains it), or joint with weight 0.1
    a missing vector is replaced by a learnt one, and known vectors are hidden at random while training
    the ranker reads u and v through one shared linear projection: two raw 384-wide vectors would make the
    full-matrix crosses ten times as dear, and one projection for both keeps their products meaningful
    cosine(u, v) is one more scalar, 0 where either is missing

    B batch   V vector width   P projected width   H fusion width   E all outputs for the ranker
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranker.batches import Batch

FIRST_WIDTH = 256
FUSION_WIDTH = 128
HEAD_WIDTH = 64


class AuxiliaryOutput(NamedTuple):
    """What the auxiliary network gives the ranker, and its own logit."""

    features_BE: Tensor
    logit_B: Tensor


class AuxiliaryNetwork(nn.Module):
    """Fusion of the content vectors.

    Args:
        vector_dim: V, of the user's and the item's vectors alike.
        projected_dim: P, of the two vectors as the ranker's crosses see them.
        detach: stop the ranker's gradient at the fusion vector.
        modality_dropout: share of training rows whose user vector (and, independently, item vector) is hidden.
    """

    def __init__(
        self, vector_dim: int, *, projected_dim: int = 32, detach: bool = True, modality_dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.detach = detach
        self.modality_dropout = modality_dropout
        self.missing_user_V = nn.Parameter(torch.zeros(vector_dim))
        self.missing_item_V = nn.Parameter(torch.zeros(vector_dim))
        self.fusion = nn.Sequential(
            nn.Linear(3 * vector_dim + 2, FIRST_WIDTH), nn.ReLU(), nn.Linear(FIRST_WIDTH, FUSION_WIDTH), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Linear(FUSION_WIDTH, HEAD_WIDTH), nn.ReLU(), nn.Linear(HEAD_WIDTH, 1))
        self.projection = nn.Linear(vector_dim, projected_dim, bias=False)
        # unit-norm inputs: scaled so that a projected coordinate starts near 1, as the standardised scalars do
        nn.init.normal_(self.projection.weight)
        self.width = FUSION_WIDTH + 2 * projected_dim + 3

    def forward(self, batch: Batch) -> AuxiliaryOutput:
        """Features for the ranker `[B, E]` and the auxiliary logit `[B]`."""
        user_BV, user_known_B = self._filled(batch.user_vector_BV, batch.user_known_B, self.missing_user_V)
        item_BV, item_known_B = self._filled(batch.item_vector_BV, batch.item_known_B, self.missing_item_V)
        known_B2 = torch.stack([user_known_B, item_known_B], dim=1).to(user_BV.dtype)
        fusion_BH = self.fusion(torch.cat([user_BV, item_BV, user_BV * item_BV, known_B2], dim=1))
        logit_B = self.head(fusion_BH).squeeze(1)
        # the vectors carry no gradient, but their learnt stand-ins do, and they too belong to the auxiliary loss
        user_seen_BV, item_seen_BV, fusion_seen_BH = user_BV, item_BV, fusion_BH
        if self.detach:
            user_seen_BV, item_seen_BV, fusion_seen_BH = user_BV.detach(), item_BV.detach(), fusion_BH.detach()
        both_B1 = known_B2.prod(dim=1, keepdim=True)
        cosine_B1 = functional.cosine_similarity(user_seen_BV, item_seen_BV, dim=1).unsqueeze(1) * both_B1
        projected = [self.projection(user_seen_BV), self.projection(item_seen_BV)]
        return AuxiliaryOutput(torch.cat([fusion_seen_BH, *projected, cosine_B1, known_B2], dim=1), logit_B)

    def _filled(self, vector_BV: Tensor | None, known_B: Tensor | None, missing_V: Tensor) -> tuple[Tensor, Tensor]:
        assert vector_BV is not None, "the ranker checked that the examples have both vectors"
        assert known_B is not None
        if self.training and self.modality_dropout > 0:
            known_B = known_B & (torch.rand(len(known_B), device=known_B.device) >= self.modality_dropout)
        return torch.where(known_B.unsqueeze(1), vector_BV, missing_V), known_B
