import numpy as np
import pytest
import torch
from torch import Tensor

from ranker.auxiliary import AuxiliaryNetwork
from ranker.batches import Batch, ExampleLayout, PairVectors, VectorPair
from ranker.ctr_cvr import CtrCvrNetwork
from ranker.id_network import IdNetwork, ScalarStatistics
from ranker.losses import auxiliary_loss, click_loss, conversion_loss

PAIRS = tuple(VectorPair(name, f"user_{name}_vector_id", f"item_{name}_vector_id") for name in ("content", "learn"))
WIDTHS = (80, 8)
"""The ranker reads the first pair projected, the second as it is."""
LAYOUT = ExampleLayout(
    ids=("user_id", "item_id"),
    num_rows=(20, 20),
    scalars=(),
    scalar_roles=(),
    history=None,
    history_length=0,
    item_attributes=(),
    vectors=PAIRS,
    vocabulary_digest="d",
)


def make_network(*, auxiliary: bool = True, detach: bool = True) -> CtrCvrNetwork:
    torch.manual_seed(0)
    auxiliaries = [AuxiliaryNetwork(width, detach=detach) for width in WIDTHS] if auxiliary else []
    statistics = ScalarStatistics.of(np.empty((1, 0), np.float32), ())
    extra_width = sum(each.width for each in auxiliaries)
    id_network = IdNetwork(LAYOUT, statistics, torch.zeros(20, 0, dtype=torch.int32), extra_width=extra_width)
    return CtrCvrNetwork(id_network, auxiliaries).eval()


def make_batch(rows: int = 16) -> Batch:
    torch.manual_seed(1)
    clicked_B = (torch.rand(rows) < 0.5).float()
    return Batch(
        ids_BF=torch.randint(2, 20, (rows, 2)).int(),
        scalars_BS=torch.empty(rows, 0),
        history_BL=torch.empty(rows, 0, dtype=torch.int32),
        vectors=tuple(
            PairVectors(
                torch.randn(rows, width), torch.rand(rows) < 0.7, torch.randn(rows, width), torch.rand(rows) < 0.7
            )
            for width in WIDTHS
        ),
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
    logits = make_network(auxiliary=False)(make_batch())
    assert logits.auxiliary is None
    assert logits.ctr_B.shape == logits.cvr_B.shape == (16,)


def test_there_is_one_auxiliary_logit_a_pair() -> None:
    network, batch = make_network(), make_batch()
    auxiliary = network(batch).auxiliary
    assert auxiliary is not None
    for one, pair, logit_B, known_B in zip(network.auxiliaries, batch.vectors, *auxiliary, strict=True):
        torch.testing.assert_close(logit_B, one(pair).logit_B)
        torch.testing.assert_close(known_B, pair.context_known_B | pair.item_known_B)


def test_conversions_train_both_towers_and_clicks_the_click_tower_alone() -> None:
    network, batch = make_network(auxiliary=False), make_batch()
    assert not any(name.startswith("cvr_tower") for name in reached(network, click_loss(network(batch), batch)))
    by_conversion = reached(network, conversion_loss(network(batch), batch))
    assert {"ctr_tower.0.weight", "cvr_tower.0.weight", "id_network.embeddings.1.weight"} <= by_conversion


def test_detached_each_auxiliary_network_is_trained_by_its_own_loss_alone() -> None:
    network, batch = make_network(detach=True), make_batch()
    own = {name for name, _ in network.named_parameters() if name.startswith("auxiliaries.")}
    own.remove("auxiliaries.0.projection.weight")
    by_ranker = reached(network, click_loss(network(batch), batch) + conversion_loss(network(batch), batch))
    assert not own & by_ranker
    assert "auxiliaries.0.projection.weight" in by_ranker, "the projection belongs to the ranker"
    assert reached(network, auxiliary_loss(network(batch), batch, "converted")) == own


@pytest.mark.parametrize("absent", [0, 1])
def test_a_pair_without_vectors_is_not_trained_by_the_auxiliary_loss_and_the_other_is(absent: int) -> None:
    network, batch = make_network(detach=True), make_batch()
    vectors = list(batch.vectors)
    nothing = torch.zeros(16, dtype=torch.bool)
    vectors[absent] = vectors[absent]._replace(context_known_B=nothing, item_known_B=nothing)
    batch = batch._replace(vectors=tuple(vectors))
    found = reached(network, auxiliary_loss(network(batch), batch, "clicked"))
    assert {name.split(".")[1] for name in found} == {str(1 - absent)}


def test_joint_the_ranker_trains_every_fusion_too() -> None:
    network, batch = make_network(detach=False), make_batch()
    by_ranker = reached(network, click_loss(network(batch), batch))
    for number in range(2):
        fusion = {f"auxiliaries.{number}.fusion.0.weight", f"auxiliaries.{number}.missing_context_V"}
        assert fusion <= by_ranker
        assert f"auxiliaries.{number}.head.0.weight" not in by_ranker, "the head only serves the auxiliary loss"
