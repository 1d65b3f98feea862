import pytest
import torch

from ranker.auxiliary import FUSION_WIDTH, WIDEST_AS_IS, AuxiliaryNetwork
from ranker.batches import PairVectors

WIDE = WIDEST_AS_IS + 1


def make_pair(rows: int = 4, width: int = WIDE) -> PairVectors:
    torch.manual_seed(3)
    known_B = torch.ones(rows, dtype=torch.bool)
    context_BV, item_BV = torch.nn.functional.normalize(torch.randn(2, rows, width), dim=2)
    return PairVectors(context_BV, known_B, item_BV, known_B)


def make_network(width: int = WIDE, **changed: float) -> AuxiliaryNetwork:
    torch.manual_seed(4)
    network = AuxiliaryNetwork(width, projected_dim=5, **changed)  # type: ignore[arg-type]
    with torch.no_grad():
        network.missing_context_V.normal_()
        network.missing_item_V.normal_()
    return network


def test_of_wide_vectors_the_ranker_reads_fusion_both_projections_the_cosine_and_the_mask() -> None:
    network, pair = make_network().eval(), make_pair()
    features_BE = network(pair).features_BE
    context_BV, item_BV = pair.context_BV, pair.item_BV
    assert network.projection is not None
    fusion_BH = network.fusion(torch.cat([context_BV, item_BV, context_BV * item_BV, torch.ones(4, 2)], dim=1))
    expected = [fusion_BH, network.projection(context_BV), network.projection(item_BV)]
    expected += [(context_BV * item_BV).sum(dim=1, keepdim=True), torch.ones(4, 2)]
    torch.testing.assert_close(features_BE, torch.cat(expected, dim=1))
    assert features_BE.shape == (4, network.width) == (4, FUSION_WIDTH + 2 * 5 + 3)


@pytest.mark.parametrize("width", [6, WIDEST_AS_IS])
def test_narrow_vectors_the_ranker_reads_themselves(width: int) -> None:
    network, pair = make_network(width).eval(), make_pair(rows=1000, width=width)
    features_BE = network(pair).features_BE
    assert features_BE.shape == (1000, network.width) == (1000, FUSION_WIDTH + 2 * width + 3)
    read_BE = features_BE[:, FUSION_WIDTH : FUSION_WIDTH + 2 * width]
    torch.testing.assert_close(read_BE, width**0.5 * torch.cat([pair.context_BV, pair.item_BV], dim=1))
    assert read_BE.square().mean().item() == pytest.approx(1.0, rel=1e-4), "as large as a standardised scalar"


def test_a_missing_vector_reads_as_its_learnt_stand_in_whatever_the_row_holds() -> None:
    network, pair = make_network().eval(), make_pair()
    missing = pair._replace(item_known_B=torch.tensor([True, False, False, True]))
    garbled = missing._replace(
        item_BV=torch.where(missing.item_known_B.unsqueeze(1), pair.item_BV, torch.tensor(float("nan")))
    )
    ours, with_nan = network(missing), network(garbled)
    torch.testing.assert_close(ours.features_BE, with_nan.features_BE)
    torch.testing.assert_close(ours.logit_B, with_nan.logit_B)
    assert network.projection is not None
    stand_in_P = network.projection(network.missing_item_V)
    torch.testing.assert_close(ours.features_BE[1, FUSION_WIDTH + 5 : FUSION_WIDTH + 10], stand_in_P)
    assert ours.features_BE[:, -3].tolist()[1:3] == [0, 0], "no cosine with a stand-in"
    assert ours.features_BE[:, -1].tolist() == [1, 0, 0, 1]


def test_known_vectors_are_hidden_at_random_in_training_only() -> None:
    network, pair = make_network(modality_dropout=0.3), make_pair(rows=4000)
    output = network(pair)
    assert (1 - output.features_BE[:, -2:].mean(dim=0)).tolist() == pytest.approx([0.3, 0.3], abs=0.03)
    assert output.known_B.all(), "hidden is not unknown"
    assert network.eval()(pair).features_BE[:, -2:].min() == 1


def test_a_pair_is_known_where_either_vector_is() -> None:
    pair = make_pair()._replace(
        context_known_B=torch.tensor([True, True, False, False]), item_known_B=torch.tensor([True, False, True, False])
    )
    assert make_network()(pair).known_B.tolist() == [True, True, True, False]


@pytest.mark.parametrize("sides", ["user", "item", "both"])
def test_a_side_that_training_never_saw_reads_as_missing(sides: str) -> None:
    context_seen, item_seen = sides == "item", sides == "user"
    network, pair = make_network(context_seen=context_seen, item_seen=item_seen).eval(), make_pair()
    nothing = torch.zeros(4, dtype=torch.bool)
    as_missing = pair._replace(
        context_known_B=pair.context_known_B if context_seen else nothing,
        item_known_B=pair.item_known_B if item_seen else nothing,
    )
    for found, expected in zip(network(pair), network(as_missing), strict=True):
        torch.testing.assert_close(found, expected)
    assert network(pair).features_BE[:, -2:].tolist() == [[context_seen, item_seen]] * 4


def test_scores_do_not_depend_on_the_rest_of_the_batch() -> None:
    network, pair = make_network().eval(), make_pair()
    alone = PairVectors(*(part[2:3] for part in pair))
    torch.testing.assert_close(network(alone).logit_B, network(pair).logit_B[2:3])
