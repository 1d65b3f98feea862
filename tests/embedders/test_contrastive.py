import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from embedders.contrastive import (
    dense_all_action_loss,
    full_softmax_loss,
    recency_weights,
    sample_positions,
    sampled_softmax_loss,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(users: Tensor, users_valid: Tensor, targets: Tensor, targets_valid: Tensor, items: Tensor) -> float:
    """The formula, term by term."""
    terms = []
    for i in range(len(users)):
        for j in range(users.shape[1]):
            for k in range(targets.shape[1]):
                if not (users_valid[i, j] and targets_valid[i, k]):
                    continue
                positive = math.exp(20 * float(users[i, j] @ targets[i, k]))
                negatives = sum(
                    math.exp(20 * float(users[i, j] @ targets[z, other]))
                    for z in range(len(users))
                    for other in range(targets.shape[1])
                    if z != i and targets_valid[z, other] and items[z, other] != items[i, k]
                )
                terms.append(-math.log(positive / (positive + negatives)))
    return sum(terms) / len(terms)


def test_two_users_with_one_target_each_by_hand() -> None:
    users = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    targets = torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]]])
    valid, items = torch.ones(2, 1, dtype=torch.bool), torch.tensor([[0], [1]])
    loss = dense_all_action_loss(users, valid, targets, valid, items, scale=2.0)
    # user 1: cosines 1 (own), 0.6; user 2: 0.8 (own), 0. Each term is log(1 + exp(2 * (other - own))).
    expected = (math.log(1 + math.exp(2 * (0.6 - 1.0))) + math.log(1 + math.exp(2 * (0.0 - 0.8)))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_papers_formula_term_by_term(seed: int) -> None:
    users, targets = unit(5, 4, 8, seed=seed), unit(5, 3, 8, seed=seed + 100)
    draw = torch.Generator().manual_seed(seed)
    users_valid, targets_valid = torch.rand(5, 4, generator=draw) > 0.3, torch.rand(5, 3, generator=draw) > 0.3
    items = torch.randint(0, 6, (5, 3), generator=draw)  # few items: many columns show the positive's own
    loss = dense_all_action_loss(users, users_valid, targets, targets_valid, items)
    assert loss.item() == pytest.approx(by_hand(users, users_valid, targets, targets_valid, items), rel=1e-5)


def test_with_one_position_and_one_target_it_is_the_in_batch_softmax() -> None:
    users, targets = unit(7, 1, 8), unit(7, 1, 8, seed=1)
    valid = torch.ones(7, 1, dtype=torch.bool)
    loss = dense_all_action_loss(users, valid, targets, valid, torch.arange(7).unsqueeze(1))
    assert loss.item() == pytest.approx(
        cross_entropy(20 * users[:, 0] @ targets[:, 0].T, torch.arange(7)).item(), rel=1e-5
    )


def test_the_users_other_targets_and_padding_are_no_negatives() -> None:
    users, targets = unit(3, 2, 8), unit(3, 2, 8, seed=1)
    valid = torch.ones(3, 2, dtype=torch.bool)
    items = torch.arange(6).view(3, 2)
    only_first_target = valid.clone()
    only_first_target[0, 1] = False
    loss = dense_all_action_loss(users, valid, targets, only_first_target, items)
    moved = targets.clone()
    moved[0, 1] = users[1, 0]  # would be the hardest negative of all, were it there
    assert dense_all_action_loss(users, valid, moved, only_first_target, items).item() == loss.item()


def test_columns_of_the_positives_item_are_masked() -> None:
    users, targets = unit(2, 1, 4), unit(2, 1, 4, seed=1)
    valid = torch.ones(2, 1, dtype=torch.bool)
    same = dense_all_action_loss(users, valid, targets, valid, torch.tensor([[3], [3]]))
    assert same.item() == pytest.approx(0.0, abs=1e-6), "nothing is left to be told apart from"


def test_gradients_agree_with_differences_and_identical_items_do_not_break_them() -> None:
    users, targets = unit(3, 2, 4).double().requires_grad_(), unit(3, 2, 4, seed=1).double().requires_grad_()
    valid, items = torch.ones(3, 2, dtype=torch.bool), torch.tensor([[0, 1], [0, 2], [0, 0]])
    loss = dense_all_action_loss(users, valid, targets, valid, items, scale=5.0)
    (gradient,) = torch.autograd.grad(loss, [users])
    step = torch.zeros_like(users)
    step[1, 0, 2] = 1e-2
    with torch.no_grad():
        higher = dense_all_action_loss(users + step, valid, targets, valid, items, scale=5.0)
        lower = dense_all_action_loss(users - step, valid, targets, valid, items, scale=5.0)
    assert gradient[1, 0, 2].item() == pytest.approx((higher - lower).item() / 2e-2, rel=2e-2)


def test_vectors_far_apart_and_equal_vectors_stay_finite() -> None:
    same = unit(1, 1, 4).expand(6, 3, 4).contiguous().requires_grad_()
    valid = torch.ones(6, 3, dtype=torch.bool)
    loss = dense_all_action_loss(same, valid, -same.detach(), valid, torch.arange(18).view(6, 3), scale=100.0)
    (gradient,) = torch.autograd.grad(loss, [same])
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_the_full_softmax_is_the_cross_entropy_over_the_catalogue() -> None:
    users, catalogue = unit(4, 8), unit(9, 8, seed=1)
    loss = full_softmax_loss(users, torch.tensor([0, 8, 3, 3]), catalogue)
    probabilities = (20 * users @ catalogue.T).softmax(dim=1)
    expected = -torch.stack([probabilities[row, item].log() for row, item in enumerate([0, 8, 3, 3])]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_sampled_softmax_over_the_whole_catalogue_is_the_full_softmax() -> None:
    users, catalogue, item = unit(6, 8), unit(9, 8, seed=1), torch.tensor([0, 8, 3, 3, 1, 5])
    drawn = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    sampled = sampled_softmax_loss(users, catalogue[item], item, catalogue[drawn], drawn)
    assert sampled.item() == pytest.approx(full_softmax_loss(users, item, catalogue).item(), rel=1e-5)


def test_a_drawn_item_that_is_the_target_is_no_negative() -> None:
    user, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    target = torch.tensor([[0.8, 0.6]])
    loss = sampled_softmax_loss(
        user, target, torch.tensor([4]), torch.cat([target, other]), torch.tensor([4, 7]), scale=2.0
    )
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2 * (0.6 - 0.8))), abs=1e-6)


def test_recency_weights_are_those_of_the_paper() -> None:
    weights = recency_weights(torch.tensor([3, 1, 0]), 4)
    expected = [math.log(10), math.log(10 + 9990 / 2), math.log(10_000)]
    assert weights[0].tolist() == pytest.approx([each / math.log(10_000) for each in expected] + [0.0], rel=1e-5)
    assert weights[1].tolist()[1:] == [0.0, 0.0, 0.0]
    assert weights[2].tolist() == [0.0] * 4


def test_positions_are_drawn_without_replacement_and_only_valid_ones() -> None:
    draw = torch.Generator().manual_seed(0)
    positions, valid = sample_positions(torch.tensor([12, 3, 0]), 12, 5, recency=True, generator=draw)
    assert positions.shape == valid.shape == (3, 5)
    assert valid.sum(dim=1).tolist() == [5, 3, 0]
    assert len(set(positions[0].tolist())) == 5
    assert sorted(positions[1][valid[1]].tolist()) == [0, 1, 2]


def test_the_newest_is_drawn_as_often_as_its_weight_says() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.full((40_000,), 4)
    positions, _ = sample_positions(lengths, 4, 1, recency=True, generator=draw)
    shares = torch.bincount(positions[:, 0], minlength=4) / len(lengths)
    weights = recency_weights(lengths[:1], 4)[0]
    assert shares.tolist() == pytest.approx((weights / weights.sum()).tolist(), abs=0.01)
    uniform, _ = sample_positions(lengths, 4, 1, recency=False, generator=draw)
    assert (torch.bincount(uniform[:, 0], minlength=4) / len(lengths)).tolist() == pytest.approx([0.25] * 4, abs=0.01)
