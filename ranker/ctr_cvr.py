"""Click and conversion over the entire space (ESMM), on top of the ID network and, if asked, the auxiliary network.

    Entire Space Multi-Task Model, arXiv:1804.07931

A conversion is only seen after a click, so a CVR model trained on clicked rows meets rows at serving that it never
saw. ESMM trains p_ctcvr = p_ctr * p_cvr on every impression instead; p_cvr is never trained directly.
What differs: both towers stand on one shared representation, not on shared embeddings only.

    B batch   E outputs of the auxiliary network   X representation
"""

from typing import NamedTuple

from torch import Tensor, nn

from ranker.auxiliary import AuxiliaryNetwork
from ranker.batches import Batch
from ranker.id_network import IdNetwork

TOWER_WIDTH = 64


class Logits(NamedTuple):
    """Log-odds of a click, of a conversion given the click, and of the auxiliary network's label."""

    ctr_B: Tensor
    cvr_B: Tensor
    auxiliary_B: Tensor | None


class CtrCvrNetwork(nn.Module):
    """The ranker as one module.

    Args:
        id_network: the shared representation.
        auxiliary: adds content vectors; None for a ranker of ID features only.
        dropout: in the towers.
    """

    def __init__(self, id_network: IdNetwork, auxiliary: AuxiliaryNetwork | None, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.id_network = id_network
        self.auxiliary = auxiliary
        self.ctr_tower = _tower(id_network.width, dropout)
        self.cvr_tower = _tower(id_network.width, dropout)

    def forward(self, batch: Batch) -> Logits:
        """One logit of each kind per impression."""
        auxiliary = self.auxiliary(batch) if self.auxiliary is not None else None
        shared_BX = self.id_network(batch, auxiliary.features_BE if auxiliary is not None else None)
        return Logits(
            ctr_B=self.ctr_tower(shared_BX).squeeze(1),
            cvr_B=self.cvr_tower(shared_BX).squeeze(1),
            auxiliary_B=auxiliary.logit_B if auxiliary is not None else None,
        )


def _tower(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, TOWER_WIDTH), nn.ReLU(), nn.Dropout(dropout), nn.Linear(TOWER_WIDTH, 1))
