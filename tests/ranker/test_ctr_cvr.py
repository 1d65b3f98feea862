import numpy as np
import torch
from torch import Tensor

from ranker.auxiliary import AuxiliaryNetwork
from ranker.batches import Batch, ExampleLayout
from ranker.ctr_cvr import CtrCvrNetwork
from ranker.id_network import IdNetwork, ScalarStatistics
from ranker.losses import auxiliary_loss, click_loss, conversion_loss

LAYOUT = ExampleLayout(
    ids=("user_id", "item_id"),
    num_rows=(20, 20),
    scalars=(),
    scalar_roles=(),
    history=None,
    history_length=0,
    item_attributes=(),
    user_vector="user_vector_id",
    item_vector="item_vector_id",
    vocabulary_digest="d",
)


def make_network(*, with_auxiliary: bool, detach: bool = True) -> CtrCvrNetwork:
    torch.manual_seed(0)
    auxiliary = AuxiliaryNetwork(8, detach=detach) if with_auxiliary else None
    statistics = ScalarStatistics.of(np.empty((1, 0), np.float32), ())
    extra_width = auxiliary.width if auxiliary is not None else 0
    id_network = IdNetwork(LAYOUT, statistics, torch.zeros(20, 0, dtype=torch.int32), extra_width=extra_width)
    return CtrCvrNetwork(id_network, auxiliary).eval()


def make_batch(rows: int = 16) -> Batch:
    torch.manual_seed(1)
    clicked_B = (torch.rand(rows) < 0.5).float()
    return Batch(
        ids_BF=torch.randint(2, 20, (rows, 2)).int(),
        scalars_BS=torch.empty(rows, 0),
        history_BL=torch.empty(rows, 0, dtype=torch.int32),
        user_vector_BV=torch.randn(rows, 8),
        user_known_B=torch.rand(rows) < 0.7,
        item_vector_BV=torch.randn(rows, 8),
        item_known_B=torch.rand(rows) < 0.7,
        clicked_B=clicked_B,
        converted_B=clicked_B * (torch.rand(rows) < 0.5),
        converted_known_B=torch.ones(rows, dtype=torch.bool),
    )


def reached(network: torch.nn.Module, loss: Tensor) -> set[str]:
    """Names of the parameters that a loss trains."""
    network.zero_grad()
    loss.backward()
    found = set()
    for name, parameter in network.named_parameters():
        gradient = parameter.grad
        if gradient is not None and (gradient.to_dense() if gradient.is_sparse else gradient).abs().sum() > 0:
            found.add(name)
    return found


def test_without_an_auxiliary_network_there_is_no_auxiliary_logit() -> None:
    logits = make_network(with_auxiliary=False)(make_batch())
    assert logits.auxiliary_B is None
    assert logits.ctr_B.shape == logits.cvr_B.shape == (16,)


def test_conversions_train_both_towers_and_clicks_the_click_tower_alone() -> None:
    network, batch = make_network(with_auxiliary=False), make_batch()
    assert not any(name.startswith("cvr_tower") for name in reached(network, click_loss(network(batch), batch)))
    by_conversion = reached(network, conversion_loss(network(batch), batch))
    assert {"ctr_tower.0.weight", "cvr_tower.0.weight", "id_network.embeddings.1.weight"} <= by_conversion


def test_detached_the_auxiliary_network_is_trained_by_its_own_loss_alone() -> None:
    network, batch = make_network(with_auxiliary=True, detach=True), make_batch()
    own = {"auxiliary.fusion.0.weight", "auxiliary.head.2.weight", "auxiliary.missing_item_V"}
    by_ranker = reached(network, click_loss(network(batch), batch) + conversion_loss(network(batch), batch))
    assert not own & by_ranker
    assert "auxiliary.projection.weight" in by_ranker, "the projection belongs to the ranker"
    by_auxiliary = reached(network, auxiliary_loss(network(batch), batch, "converted"))
    assert own <= by_auxiliary
    assert all(name.startswith("auxiliary.") for name in by_auxiliary)


def test_joint_the_ranker_trains_the_fusion_too() -> None:
    network, batch = make_network(with_auxiliary=True, detach=False), make_batch()
    by_ranker = reached(network, click_loss(network(batch), batch))
    assert {"auxiliary.fusion.0.weight", "auxiliary.missing_user_V"} <= by_ranker
    assert "auxiliary.head.0.weight" not in by_ranker, "the head only serves the auxiliary loss"
