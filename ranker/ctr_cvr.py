"""Click and conversion over the entire space (ESMM), on top of the ID network and, if asked, auxiliary networks.

    Entire Space Multi-Task Model, arXiv:1804.07931

A conversion is only seen after a click, so a CVR model trained on clicked rows meets rows at serving that it never
saw. ESMM trains p_ctcvr = p_ctr * p_cvr on every impression instead; p_cvr is never trained directly.
What differs: both towers stand on one shared representation, not on shared embeddings only.

    B batch   A pairs of vectors   E outputs of all auxiliary networks   X representation
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ranker.auxiliary import AuxiliaryNetwork
from ranker.batches import Batch
from ranker.id_network import IdNetwork

TOWER_WIDTH = 64


class AuxiliaryLogits(NamedTuple):
    """Log-odds of the auxiliary label, as each pair of vectors by itself sees it."""

    logit_AB: Tensor
    known_AB: Tensor
    """Whether the pair has a vector for the impression at all, the context's or the item's."""


class Logits(NamedTuple):
    """Log-odds of a click, of a conversion given the click, and of the auxiliary networks' label."""

    ctr_B: Tensor
    cvr_B: Tensor
    auxiliary: AuxiliaryLogits | None


class CtrCvrNetwork(nn.Module):
    """The ranker as one module.

    Args:
        id_network: the shared representation.
        auxiliaries: one for each pair of vectors of the layout, in its order; none for a ranker of ID features only.
        dropout: in the towers.
    """

    def __init__(
        self, id_network: IdNetwork, auxiliaries: Iterable[AuxiliaryNetwork] = (), *, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.id_network = id_network
        self.auxiliaries = nn.ModuleList(auxiliaries)
        self.ctr_tower = _tower(id_network.width, dropout)
        self.cvr_tower = _tower(id_network.width, dropout)

    def forward(self, batch: Batch) -> Logits:
        """One logit of each kind per impression."""
        features_BE, auxiliary = None, None
        if len(self.auxiliaries):
            outputs = [network(pair) for network, pair in zip(self.auxiliaries, batch.vectors, strict=True)]
            features_BE = torch.cat([each.features_BE for each in outputs], dim=1)
            logit_AB, known_AB = (torch.stack(parts) for parts in zip(*(each[1:] for each in outputs), strict=True))
            auxiliary = AuxiliaryLogits(logit_AB, known_AB)
        shared_BX = self.id_network(batch, features_BE)
        return Logits(self.ctr_tower(shared_BX).squeeze(1), self.cvr_tower(shared_BX).squeeze(1), auxiliary)


def _tower(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, TOWER_WIDTH), nn.ReLU(), nn.Dropout(dropout), nn.Linear(TOWER_WIDTH, 1))
