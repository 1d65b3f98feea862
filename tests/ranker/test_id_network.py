import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ranker.batches import Batch, ExampleLayout
from ranker.id_network import CrossLayer, HistoryMatches, IdNetwork, ScalarInputs, ScalarStatistics, TargetAttention


def plain_attention(attention: TargetAttention, history_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor) -> Tensor:
    """DIN as it is written in the paper: the activation unit on [h, t, h-t, h*t] of every position."""
    target_BLD = target_BD.unsqueeze(1).expand_as(history_BLD)
    parts = [history_BLD, target_BLD, history_BLD - target_BLD, history_BLD * target_BLD]
    score_BL1 = attention.score(attention.hidden(torch.cat(parts, dim=2)).relu())
    return (score_BL1 * mask_BL.unsqueeze(2) * history_BLD).sum(dim=1)


def test_attention_equals_its_plain_form_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    attention = TargetAttention(dim=6, hidden=10).double()
    history_BLD = torch.randn(5, 7, 6, dtype=torch.float64, requires_grad=True)
    target_BD = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    mask_BL = torch.arange(7) < torch.tensor([[7], [1], [3], [5], [2]])
    ours, plain = (
        attention(history_BLD, mask_BL, target_BD),
        plain_attention(attention, history_BLD, mask_BL, target_BD),
    )
    torch.testing.assert_close(ours, plain)
    inputs = (history_BLD, target_BD, attention.hidden.weight, attention.hidden.bias)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), inputs), torch.autograd.grad(plain.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_padding_does_not_count() -> None:
    attention = TargetAttention(dim=4, hidden=8)
    history_BLD, target_BD = torch.randn(1, 5, 4), torch.randn(1, 4)
    mask_BL = torch.tensor([[True, True, False, False, False]])
    garbled_BLD = history_BLD.clone()
    garbled_BLD[:, 2:] = 1e3
    torch.testing.assert_close(attention(history_BLD, mask_BL, target_BD), attention(garbled_BLD, mask_BL, target_BD))
    torch.testing.assert_close(
        attention(history_BLD, mask_BL, target_BD), attention(history_BLD[:, :2], mask_BL[:, :2], target_BD)
    )


@pytest.mark.parametrize("length", [0, 3])
def test_an_empty_history_reads_as_a_learnt_default(length: int) -> None:
    attention = TargetAttention(dim=4, hidden=8)
    with torch.no_grad():
        attention.empty_D.copy_(torch.arange(4.0))
    interest_BD = attention(torch.randn(2, length, 4), torch.zeros(2, length, dtype=torch.bool), torch.randn(2, 4))
    assert interest_BD.tolist() == [[0, 1, 2, 3]] * 2
    interest_BD.sum().backward()
    assert attention.empty_D.grad is not None
    assert attention.empty_D.grad.tolist() == [2] * 4


def test_matches_count_the_history_items_of_the_candidates_kind() -> None:
    matches = HistoryMatches(attribute_columns=[2])
    ids_BF = torch.tensor([[9, 5, 3], [9, 1, 1], [9, 5, 0]]).int()
    history_BL = torch.tensor([[5, 6, 5, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).int()
    attributes_BLK = torch.tensor([[3, 3, 3, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).int().unsqueeze(2)
    # log1p(count) of item and category, their shares, log1p(length); an unknown candidate matches nothing
    expected = [[2, 3, 2 / 3, 1, 3], [0, 0, 0, 0, 2], [0, 0, 0, 0, 0]]
    found = matches(ids_BF, history_BL, attributes_BLK)
    found[:, [0, 1, 4]] = found[:, [0, 1, 4]].expm1()
    torch.testing.assert_close(found, torch.tensor(expected).float())


def test_a_cross_layer_is_the_formula_worked_by_hand() -> None:
    cross = CrossLayer(2)
    with torch.no_grad():
        cross.linear.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        cross.linear.bias.copy_(torch.tensor([1.0, 0.0]))
    # x0 = (2, 3), x = (1, 4): W x + b = (10, -4), times x0 = (20, -12), plus x = (21, -8)
    assert cross(torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 4.0]])).tolist() == [[21.0, -8.0]]


def test_scalars_are_standardised_by_role_and_missing_is_the_mean() -> None:
    scalars = np.array([[0, 0.1, np.nan], [np.e - 1, 0.3, np.nan], [0, np.nan, 5], [np.e - 1, np.nan, 5]], np.float32)
    roles = ("count", "rate", "scalar")
    inputs = ScalarInputs(ScalarStatistics.of(scalars, roles), roles)
    # log1p of the counts is 0, 1, 0, 1; the rates have mean 0.2 and deviation 0.1; the last column is constant
    expected = [[-1, -1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1], [-1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0]]
    torch.testing.assert_close(inputs(torch.from_numpy(scalars)), torch.tensor(expected).float(), atol=1e-5, rtol=1e-5)


def test_columns_missing_together_share_one_indicator() -> None:
    scalars = np.array([[1, 1, 1], [np.nan, np.nan, 1], [2, 2, np.nan]], np.float32)
    statistics = ScalarStatistics.of(scalars, ("rate",) * 3)
    assert statistics.indicator_G.tolist() == [0, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_extreme_scalars_give_finite_inputs(value: float) -> None:
    roles = ("count", "rate", "scalar")
    inputs = ScalarInputs(ScalarStatistics.of(np.ones((2, 3), np.float32), roles), roles)
    assert inputs(torch.full((1, 3), value)).isfinite().all()


def test_without_scalars_there_are_no_inputs() -> None:
    inputs = ScalarInputs(ScalarStatistics.of(np.empty((4, 0), np.float32), ()), ())
    assert inputs(torch.empty(3, 0)).shape == (3, 0)
    assert inputs.width == 0


LAYOUT = ExampleLayout(
    ids=("user_id", "item_id", "category"),
    num_rows=(50, 40, 6),
    scalars=("s",),
    scalar_roles=("rate",),
    history="history",
    history_length=5,
    item_attributes=("category",),
    vectors=(),
    vocabulary_digest="d",
)
CATEGORY_OF_ITEM = torch.cat([torch.zeros(2, 1), torch.arange(38).unsqueeze(1) % 4 + 2]).int()


def make_network(**changed: float | bool) -> IdNetwork:
    torch.manual_seed(1)
    statistics = ScalarStatistics.of(np.zeros((2, 1), np.float32), ("rate",))
    return IdNetwork(LAYOUT, statistics, CATEGORY_OF_ITEM, **{"dropout": 0.0, **changed})  # type: ignore[arg-type]


def make_batch(rows: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(2)
    history_BL = torch.randint(1, 40, (rows, 5), generator=generator).int()
    history_BL[0] = 0
    history_BL[1, 2:] = 0
    ids = [torch.randint(2, count, (rows,), generator=generator) for count in LAYOUT.num_rows]
    nothing = torch.zeros(rows)
    return Batch(
        torch.stack(ids, dim=1).int(),
        torch.rand(rows, 1, generator=generator),
        history_BL,
        (),
        nothing,
        nothing,
        nothing.bool(),
    )


def test_a_history_item_is_its_id_and_its_attributes() -> None:
    network, batch = make_network().eval(), make_batch()
    of_id, of_category = network.embeddings[1], network.embeddings[2]
    history_BL = batch.history_BL.long()
    expected = of_id(history_BL) + of_category(CATEGORY_OF_ITEM[:, 0].long()[history_BL])
    torch.testing.assert_close(network._embed_history(batch.history_BL), expected)


def test_sparse_and_dense_gradients_are_the_same() -> None:
    sparse, dense = make_network(sparse=True, id_dropout=0.0), make_network(sparse=False, id_dropout=0.0)
    for network in (sparse, dense):
        network(make_batch()).square().sum().backward()
    for one, other in zip(sparse.embeddings, dense.embeddings, strict=True):
        gradient = one.weight.grad
        assert isinstance(gradient, Tensor)
        assert gradient.is_sparse
        torch.testing.assert_close(gradient.to_dense(), other.weight.grad)
        assert gradient.to_dense()[0].abs().sum() == 0, "padding stays zero"


def test_forgotten_ids_read_as_out_of_vocabulary_in_training_only() -> None:
    network = make_network(id_dropout=0.5)
    ids_BF = torch.full((2000, 3), 5, dtype=torch.int32)
    forgotten_BF = network._forget_some(ids_BF)
    share = (forgotten_BF == 1).float().mean(dim=0)
    assert share[:2].tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert (forgotten_BF[:, 2] == 5).all(), "a category is not an id"
    network.eval()
    torch.testing.assert_close(network(make_batch()), network(make_batch()))


def test_a_network_without_history_needs_none() -> None:
    layout = ExampleLayout(**{**LAYOUT.__dict__, "history": None, "history_length": 0})
    network = IdNetwork(layout, ScalarStatistics.of(np.zeros((2, 1), np.float32), ("rate",)), CATEGORY_OF_ITEM)
    batch = make_batch()._replace(history_BL=torch.empty(6, 0, dtype=torch.int32))
    assert network(batch).shape == (6, network.width)
    assert functional.relu(network(batch)).isfinite().all()


def test_a_scalar_that_no_training_row_knows_stays_missing() -> None:
    train = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]], dtype=np.float32)
    inputs = ScalarInputs(ScalarStatistics.of(train, ("rate", "count")), ("rate", "count"))
    later = inputs(torch.tensor([[2.0, 1e6], [2.0, float("inf")], [2.0, float("nan")]]))
    assert later.tolist() == [[0, 0, 0, 1]] * 3
