"""LEARN's ranking-stage network: a pair of vectors becomes a fusion vector, trained by a loss of its own.

    LEARN: Knowledge Adaptation from Large Language Model to Recommendation, arXiv:2405.03988 (the LEARN-Adaptor)

Two linear layers merge the user's and the item's vector into a fusion vector; an MLP on top of it is trained on
conversions; the ranker reads concat(fusion, user vector, item vector, everything else). A query's vector may stand in
the user's place (relevance): either is the context that the item is shown in, and u below.

What we keep: that structure, and the vectors as frozen inputs.
What differs, or is our proposal because the paper does not say [NF->P]:
    widths 256 and 128, ReLU, input [u; v; u*v] and its two mask bits
    a ranker with several pairs of vectors has one such network for each: a product needs one embedding space
    the fusion vector is detached before the ranker (only its own loss trains it), or joint with weight 0.1
    a missing vector is replaced by a learnt one, and known vectors are hidden at random while training
    a side of which no training row had a vector reads as missing for ever: its weights have learnt nothing
    the ranker reads u and v themselves, times sqrt(V), up to a width of 64. Unscaled, a coordinate is so small that
    three passes are too few (64-wide topic vectors, mean AUC on unseen items from 4 seeds: 0.653 scaled, 0.633
    not, 0.648 projected). Wider ones it reads through one shared linear projection: two raw 384-wide vectors would
    make the full-matrix crosses ten times as dear, and one projection for both keeps their products meaningful
    cosine(u, v) is one more scalar, 0 where either is missing

    B batch   V vector width   P width of a vector as the ranker reads it   H fusion width   E all outputs
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranker.batches import PairVectors

FIRST_WIDTH = 256
FUSION_WIDTH = 128
HEAD_WIDTH = 64
WIDEST_AS_IS = 64
"""LEARN's own vectors are this wide; wider ones are projected for the ranker."""


class AuxiliaryOutput(NamedTuple):
    """What the auxiliary network gives the ranker, and its own logit."""

    features_BE: Tensor
    logit_B: Tensor
    known_B: Tensor
    """Whether either vector is known, hidden ones counted as known."""


class AuxiliaryNetwork(nn.Module):
    """Fusion of one pair of vectors.

    Args:
        vector_dim: V, of the context's and the item's vectors alike.
        projected_dim: P, where V is above 64; below, P = V.
        detach: stop the ranker's gradient at the fusion vector.
        modality_dropout: share of training rows whose context vector (and, independently, item vector) is hidden.
        context_seen: whether any training row has a context vector.
        item_seen: whether any training row has an item vector.
    """

    seen_2: Tensor

    def __init__(
        self,
        vector_dim: int,
        *,
        projected_dim: int = 32,
        detach: bool = True,
        modality_dropout: float = 0.1,
        context_seen: bool = True,
        item_seen: bool = True,
    ) -> None:
        super().__init__()
        self.detach = detach
        self.modality_dropout = modality_dropout
        self.register_buffer("seen_2", torch.tensor([context_seen, item_seen]))
        self.missing_context_V = nn.Parameter(torch.zeros(vector_dim))
        self.missing_item_V = nn.Parameter(torch.zeros(vector_dim))
        self.fusion = nn.Sequential(
            nn.Linear(3 * vector_dim + 2, FIRST_WIDTH), nn.ReLU(), nn.Linear(FIRST_WIDTH, FUSION_WIDTH), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Linear(FUSION_WIDTH, HEAD_WIDTH), nn.ReLU(), nn.Linear(HEAD_WIDTH, 1))
        # either way a coordinate of a unit-norm vector starts near 1, as the standardised scalars do
        self.scale = vector_dim**0.5
        self.projection = None
        if vector_dim > WIDEST_AS_IS:
            self.projection = nn.Linear(vector_dim, projected_dim, bias=False)
            nn.init.normal_(self.projection.weight)
        self.width = FUSION_WIDTH + 2 * (vector_dim if self.projection is None else projected_dim) + 3

    def forward(self, pair: PairVectors) -> AuxiliaryOutput:
        """Features for the ranker `[B, E]`, the auxiliary logit `[B]` and where it means something `[B]`."""
        context_known_B, item_known_B = pair.context_known_B & self.seen_2[0], pair.item_known_B & self.seen_2[1]
        known_B = context_known_B | item_known_B
        context_known_B, item_known_B = self._hide_some(context_known_B), self._hide_some(item_known_B)
        context_BV = torch.where(context_known_B.unsqueeze(1), pair.context_BV, self.missing_context_V)
        item_BV = torch.where(item_known_B.unsqueeze(1), pair.item_BV, self.missing_item_V)
        known_B2 = torch.stack([context_known_B, item_known_B], dim=1).to(context_BV.dtype)
        fusion_BH = self.fusion(torch.cat([context_BV, item_BV, context_BV * item_BV, known_B2], dim=1))
        logit_B = self.head(fusion_BH).squeeze(1)
        # the vectors carry no gradient, but their learnt stand-ins do, and they too belong to the auxiliary loss
        context_seen_BV, item_seen_BV, fusion_seen_BH = context_BV, item_BV, fusion_BH
        if self.detach:
            context_seen_BV, item_seen_BV, fusion_seen_BH = context_BV.detach(), item_BV.detach(), fusion_BH.detach()
        both_B1 = known_B2.prod(dim=1, keepdim=True)
        cosine_B1 = functional.cosine_similarity(context_seen_BV, item_seen_BV, dim=1).unsqueeze(1) * both_B1
        read = [self._as_read(context_seen_BV), self._as_read(item_seen_BV)]
        return AuxiliaryOutput(torch.cat([fusion_seen_BH, *read, cosine_B1, known_B2], dim=1), logit_B, known_B)

    def _hide_some(self, known_B: Tensor) -> Tensor:
        if self.training and self.modality_dropout > 0:
            return known_B & (torch.rand(len(known_B), device=known_B.device) >= self.modality_dropout)
        return known_B

    def _as_read(self, vector_BV: Tensor) -> Tensor:
        """`[B, P]`."""
        return self.scale * vector_BV if self.projection is None else self.projection(vector_BV)
