import numpy as np
import pytest
import torch
from torch import Tensor

from embedders.contrastive import dense_all_action_loss
from embedders.histories import PADDING
from embedders.learn import SHAPES, FrozenContent, IdTable, LearnNetwork, LearnShape

CONTENT = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)


def network(**changes: object) -> LearnNetwork:
    torch.manual_seed(0)
    plain = {"num_layers": 2, "num_heads": 2, "hidden": 32, "feedforward": 64, "output_dim": 16}
    return LearnNetwork(FrozenContent(CONTENT), LearnShape(**{**plain, **changes})).eval()  # type: ignore[arg-type]


def rows(*lists: list[int]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in lists], True, PADDING)


@pytest.mark.parametrize(("positions", "millions"), [(False, 88.25), (True, 88.64)])
def test_under_a_4096_wide_encoder_the_papers_shape_has_the_published_number_of_parameters(
    positions: bool, millions: float
) -> None:
    shape = LearnShape(12, 12, 768, 3072, 64, max_history=512, positions=positions)
    with torch.device("meta"):
        built = LearnNetwork(FrozenContent(np.empty((0, 4096), np.float32)), shape)
    assert sum(p.numel() for p in built.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert SHAPES["paper"] == LearnShape(12, 12, 768, 3072, 64)


@pytest.mark.parametrize("positions", [False, True])
def test_no_user_vector_sees_a_later_item(positions: bool) -> None:
    one = network(positions=positions)
    before, after = one.users(rows([1, 2, 3, 4, 5])), one.users(rows([1, 2, 3, 9, 8]))
    assert torch.equal(before[0, :3], after[0, :3])
    assert (before[0, 3:] - after[0, 3:]).abs().max() > 1e-4
    earlier = one.users(rows([7, 2, 3, 4, 5]))
    assert (before[0, 4] - earlier[0, 4]).abs().max() > 1e-5, "but it does see the earlier ones"


def test_padding_changes_nothing() -> None:
    one = network()
    together = one.last_users(rows([1, 2], [3, 4, 5, 6, 7]))
    assert torch.allclose(together[0], one.last_users(rows([1, 2]))[0], atol=1e-6)


def test_without_positions_the_network_only_sees_order_through_the_mask() -> None:
    """One layer, no positions: the last vector is a function of the last item and the set of items before it."""
    one = network(num_layers=1)
    assert torch.allclose(one.last_users(rows([1, 2, 3, 4])), one.last_users(rows([3, 1, 2, 4])), atol=1e-6)
    placed = network(num_layers=1, positions=True)
    for name, weight in placed.named_parameters():  # freshly made, attention is nearly uniform, and a sum has no order
        if name.startswith("position") or "in_proj_weight" in name:
            torch.nn.init.normal_(weight, std=0.5)
    assert not torch.allclose(placed.last_users(rows([1, 2, 3, 4])), placed.last_users(rows([3, 1, 2, 4])), atol=1e-4)


def test_every_vector_is_of_length_one() -> None:
    one = network()
    for vectors in (one.users(rows([1, 2, 3])), one.targets(rows([4, 5])), one.items(torch.arange(50))):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]), atol=1e-5)


def test_towers_a_and_b_are_one_at_a_single_target_and_differ_at_two() -> None:
    a, b = network(item_tower="sequence"), network(item_tower="single")
    assert torch.allclose(a.targets(rows([7], [9])), b.targets(rows([7], [9])), atol=1e-6)
    two_a, two_b = a.targets(rows([7, 9])), b.targets(rows([7, 9]))
    assert torch.allclose(two_a[0, 0], two_b[0, 0], atol=1e-6)
    assert (two_a[0, 1] - two_b[0, 1]).abs().max() > 1e-4
    assert torch.allclose(a.items(torch.arange(9)), b.items(torch.arange(9)), atol=1e-6), "at serving they are the same"


def test_towers_a_and_b_have_one_loss_and_one_gradient_at_single_targets() -> None:
    gradients = []
    for tower in ("sequence", "single"):
        one = network(item_tower=tower)
        users, targets = one(rows([1, 2, 3], [4, 5]), rows([6], [7]))
        valid = torch.ones(2, 1, dtype=torch.bool)
        loss = dense_all_action_loss(users[:, 1:2], valid, targets, valid, torch.tensor([[6], [7]]))
        gradients.append(torch.autograd.grad(loss, [one.adaptor.weight])[0])
    assert torch.allclose(*gradients, atol=1e-6)


def test_tower_c_gives_the_content_itself_and_wants_its_width() -> None:
    one = network(item_tower="content")
    expected = CONTENT / np.linalg.norm(CONTENT, axis=1, keepdims=True)
    assert np.allclose(one.items(torch.arange(50)).numpy(), expected, atol=1e-6)
    assert np.allclose(one.targets(rows([4, 5]))[0].numpy(), expected[4:6], atol=1e-6)
    with pytest.raises(ValueError, match="content vectors, which are 16 wide, got output_dim 8"):
        network(item_tower="content", output_dim=8)


def test_an_id_table_is_learnt_and_frozen_content_is_not() -> None:
    assert not list(FrozenContent(CONTENT).parameters())
    table = IdTable(50, 16)
    one = LearnNetwork(table, LearnShape(1, 2, 32, 64, 16))
    one.users(rows([1, 2]))[0, 1].sum().backward()
    assert table.table.weight.grad is not None
    touched = table.table.weight.grad.abs().sum(dim=1) > 0
    assert touched.nonzero().ravel().tolist() == [1, 2]


def test_standardised_content_is_seen_with_mean_0_and_deviation_1_whatever_cone_it_lay_in() -> None:
    cone = CONTENT * 0.01 + 5.0
    plain, shifted = network(), LearnNetwork(FrozenContent(cone), network().shape).eval()
    shifted.load_state_dict(plain.state_dict())
    plain.standardise(CONTENT)
    shifted.standardise(cone)
    assert torch.allclose(plain.items(torch.arange(50)), shifted.items(torch.arange(50)), atol=1e-3)
    constant = np.ones((50, 16), np.float32)
    plain.standardise(constant)
    assert plain.items(torch.arange(50)).isfinite().all(), "a coordinate that never differs"


def test_with_the_residual_the_network_starts_as_the_mean_of_the_histories_principal_components() -> None:
    one = network(residual=True, output_dim=16)  # as many components as coordinates: a rotation, which keeps cosines
    one.standardise(CONTENT)
    for weight in one.projection.parameters():
        torch.nn.init.zeros_(weight)
    standard = (CONTENT - CONTENT.mean(axis=0)) / CONTENT.std(axis=0)
    mean = standard[[3, 7, 9]].mean(axis=0)
    expected = standard @ mean / np.linalg.norm(standard, axis=1) / np.linalg.norm(mean)
    found = (one.items(torch.arange(50)) @ one.last_users(rows([3, 7, 9]))[0]).detach()
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    half = network(residual=True, output_dim=8)
    half.standardise(CONTENT)
    assert half.shortcut is not None
    axes = np.linalg.svd(standard, full_matrices=False)[2][:8]
    spanned = half.shortcut.weight.detach().numpy()
    assert np.allclose(spanned.T @ spanned, axes.T @ axes, atol=1e-3), "the directions in which items differ most"


def test_with_the_residual_no_user_vector_sees_a_later_item() -> None:
    one = network(residual=True)
    one.standardise(CONTENT)
    before, after = one.users(rows([1, 2, 3, 4, 5])), one.users(rows([1, 2, 3, 9, 8]))
    assert torch.equal(before[0, :3], after[0, :3])
