import pytest
import torch

from ranker.auxiliary import FUSION_WIDTH, AuxiliaryNetwork
from ranker.batches import Batch


def make_batch(rows: int = 4, width: int = 6) -> Batch:
    torch.manual_seed(3)
    nothing = torch.zeros(rows)
    return Batch(
        ids_BF=torch.zeros(rows, 2).int(),
        scalars_BS=torch.empty(rows, 0),
        history_BL=torch.empty(rows, 0).int(),
        user_vector_BV=torch.nn.functional.normalize(torch.randn(rows, width), dim=1),
        user_known_B=torch.ones(rows, dtype=torch.bool),
        item_vector_BV=torch.nn.functional.normalize(torch.randn(rows, width), dim=1),
        item_known_B=torch.ones(rows, dtype=torch.bool),
        clicked_B=nothing,
        converted_B=nothing,
        converted_known_B=nothing.bool(),
    )


def make_network(**changed: float) -> AuxiliaryNetwork:
    torch.manual_seed(4)
    network = AuxiliaryNetwork(6, projected_dim=5, **changed)  # type: ignore[arg-type]
    with torch.no_grad():
        network.missing_user_V.normal_()
        network.missing_item_V.normal_()
    return network


def test_the_ranker_reads_fusion_both_projections_the_cosine_and_the_mask() -> None:
    network, batch = make_network().eval(), make_batch()
    features_BE = network(batch).features_BE
    user_BV, item_BV = batch.user_vector_BV, batch.item_vector_BV
    assert user_BV is not None
    assert item_BV is not None
    fusion_BH = network.fusion(torch.cat([user_BV, item_BV, user_BV * item_BV, torch.ones(4, 2)], dim=1))
    expected = [fusion_BH, network.projection(user_BV), network.projection(item_BV)]
    expected += [(user_BV * item_BV).sum(dim=1, keepdim=True), torch.ones(4, 2)]
    torch.testing.assert_close(features_BE, torch.cat(expected, dim=1))
    assert features_BE.shape == (4, network.width) == (4, FUSION_WIDTH + 2 * 5 + 3)


def test_a_missing_vector_reads_as_its_learnt_stand_in_whatever_the_row_holds() -> None:
    network, batch = make_network().eval(), make_batch()
    assert batch.item_vector_BV is not None
    missing = batch._replace(item_known_B=torch.tensor([True, False, False, True]))
    garbled = missing._replace(
        item_vector_BV=torch.where(missing.item_known_B.unsqueeze(1), batch.item_vector_BV, torch.tensor(float("nan")))
    )
    ours, with_nan = network(missing), network(garbled)
    torch.testing.assert_close(ours.features_BE, with_nan.features_BE)
    torch.testing.assert_close(ours.logit_B, with_nan.logit_B)
    stand_in_P = network.projection(network.missing_item_V)
    torch.testing.assert_close(ours.features_BE[1, FUSION_WIDTH + 5 : FUSION_WIDTH + 10], stand_in_P)
    assert ours.features_BE[:, -3].tolist()[1:3] == [0, 0], "no cosine with a stand-in"
    assert ours.features_BE[:, -1].tolist() == [1, 0, 0, 1]


def test_known_vectors_are_hidden_at_random_in_training_only() -> None:
    network, batch = make_network(modality_dropout=0.3), make_batch(rows=4000)
    hidden = 1 - network(batch).features_BE[:, -2:].mean(dim=0)
    assert hidden.tolist() == pytest.approx([0.3, 0.3], abs=0.03)
    assert network.eval()(batch).features_BE[:, -2:].min() == 1


def test_scores_do_not_depend_on_the_rest_of_the_batch() -> None:
    network, batch = make_network().eval(), make_batch()
    alone = Batch(*(None if part is None else part[2:3] for part in batch))  # type: ignore[arg-type]
    torch.testing.assert_close(network(alone).logit_B, network(batch).logit_B[2:3])
