"""Each of KARMA's losses against a value worked by hand, a plain loop, an outside oracle, and its gradient."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from embedders.karma_losses import (
    ImageFlow,
    SampledItems,
    flow_loss,
    infonce_action_loss,
    pairwise_action_loss,
    title_loss,
)

ActionLoss = Callable[..., Tensor]
ACTION_LOSSES = pytest.mark.parametrize("loss", [pairwise_action_loss, infonce_action_loss])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(*shape: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(*shape, generator=seeded(seed)), dim=-1)


def sure(difference: float) -> float:
    """-log sigmoid, as a school book writes it."""
    return -math.log(1 / (1 + math.exp(-difference)))


# the action loss -----------------------------------------------------------------------------------------------------


def test_l_act_of_two_users_worked_by_hand() -> None:
    # h1 = (1, 0), h2 = (0, 1); e1 = (0.8, 0.6), e2 = (0, 1): s11 = .8, s12 = 0, s21 = .6, s22 = 1
    user, item = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    loss = pairwise_action_loss(user, item, torch.tensor([7, 9]), torch.tensor([0, 1]), scale=None)
    assert loss.item() == pytest.approx((sure(0.8 - 0.0) + sure(1.0 - 0.6)) / 2)
    scaled = pairwise_action_loss(user, item, torch.tensor([7, 9]), torch.tensor([0, 1]), scale=5.0)
    assert scaled.item() == pytest.approx((sure(4.0) + sure(2.0)) / 2)


def test_l_act_with_exposed_items_worked_by_hand() -> None:
    # the first read-out was shown (0.6, 0.8) and (-1, 0), s = .6 and -1; the second nothing, so it adds 0 for them
    user, item = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    exposed = torch.tensor([[[0.6, 0.8], [-1.0, 0.0]], [[9.0, 9.0], [9.0, 9.0]]])
    is_there = torch.tensor([[True, True], [False, False]])
    in_batch = (sure(0.8) + sure(0.4)) / 2
    of_exposed = (sure(0.2) + sure(1.8)) / 2
    arguments = (user, item, torch.tensor([7, 9]), torch.tensor([0, 1]), exposed, is_there)
    assert pairwise_action_loss(*arguments, scale=None).item() == pytest.approx(in_batch + of_exposed / 2)
    half = pairwise_action_loss(*arguments, scale=None, exposed_weight=0.5)
    assert half.item() == pytest.approx(in_batch + 0.5 * of_exposed / 2)


def test_l_act_with_sampled_items_worked_by_hand() -> None:
    # items 9 (e2 again), 3 = (0.6, 0.8) and 4 = (-1, 0) are sampled; the first user could not know item 4,
    # and 9 is the second user's own target: s13 = .6, s19 = 0; s23 = .8, s24 = 0
    user, item = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    sampled = SampledItems(
        torch.tensor([[0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]]),
        torch.tensor([9, 3, 4]),
        torch.tensor([[True, True, False], [True, True, True]]),
    )
    which, owner = torch.tensor([7, 9]), torch.tensor([0, 1])
    in_batch = (sure(0.8) + sure(0.4)) / 2
    of_sampled = ((sure(0.8) + sure(0.2)) / 2 + (sure(0.2) + sure(1.0)) / 2) / 2
    loss = pairwise_action_loss(user, item, which, owner, sampled=sampled, scale=None)
    assert loss.item() == pytest.approx(in_batch + of_sampled)
    alone = pairwise_action_loss(user, item, which, owner, sampled=sampled, scale=None, in_batch_weight=0.0)
    assert alone.item() == pytest.approx(of_sampled)
    softmax = infonce_action_loss(user, item, which, owner, sampled=sampled, scale=None, in_batch_weight=0.0)
    first = math.log(math.exp(0.8) + math.exp(0.0) + math.exp(0.6)) - 0.8
    second = math.log(math.exp(1.0) + math.exp(0.8) + math.exp(0.0)) - 1.0
    assert softmax.item() == pytest.approx((first + second) / 2)


def test_one_pair_is_logistic_regression_on_the_difference() -> None:
    user, item = unit(2, 6, seed=0), unit(2, 6, seed=1)
    loss = pairwise_action_loss(user, item, torch.tensor([0, 1]), torch.tensor([0, 1]), scale=3.0)
    score = 3.0 * (user @ item.T).numpy()
    wins = 1 / (1 + np.exp(-np.array([score[0, 0] - score[0, 1], score[1, 1] - score[1, 0]], np.float64)))
    assert loss.item() == pytest.approx(log_loss([1, 1], wins, labels=[0, 1]), rel=1e-5)


def looped(
    user: Tensor,
    item: Tensor,
    which: list[int],
    owner: list[int],
    exposed: Tensor,
    is_there: Tensor,
    sampled: SampledItems,
    scale: float,
) -> float:
    """L_act as its formula reads, one negative at a time."""
    total = 0.0
    for k in range(len(which)):
        own = {which[j] for j in range(len(which)) if owner[j] == owner[k]}
        above = scale * float(user[k] @ item[k])
        in_batch = [sure(above - scale * float(user[k] @ item[j])) for j in range(len(which)) if which[j] not in own]
        shown = [
            sure(above - scale * float(user[k] @ exposed[k, m])) for m in range(exposed.shape[1]) if is_there[k, m]
        ]
        drawn = [
            sure(above - scale * float(user[k] @ vector))
            for vector, one, known in zip(sampled.items_Sd, sampled.item_S.tolist(), sampled.known_KS[k], strict=True)
            if known and one not in own
        ]
        total += sum(sum(kind) / max(1, len(kind)) for kind in (in_batch, shown, drawn))
    return total / len(which)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=9),
    st.integers(0, 3),
    st.integers(0, 10_000),
)
def test_l_act_is_the_plain_loop_whoever_repeats_whatever(pairs: list[tuple[int, int]], shown: int, seed: int) -> None:
    which, owner = [item for item, _ in pairs], [user for _, user in pairs]
    catalogue, user = unit(5, 4, seed=seed), unit(len(pairs), 4, seed=seed + 1)
    exposed = unit(len(pairs), shown, 4, seed=seed + 2)
    is_there = torch.rand(len(pairs), shown, generator=seeded(seed)) < 0.5
    item = catalogue[torch.tensor(which)]
    drawn = torch.randperm(5, generator=seeded(seed + 3))[:shown]
    known = torch.rand(len(pairs), shown, generator=seeded(seed + 4)) < 0.7
    sampled = SampledItems(catalogue[drawn], drawn, known)
    got = pairwise_action_loss(
        user, item, torch.tensor(which), torch.tensor(owner), exposed, is_there, sampled, scale=2.0
    )
    assert got.item() == pytest.approx(looped(user, item, which, owner, exposed, is_there, sampled, 2.0), abs=1e-5)


@ACTION_LOSSES
def test_a_target_s_own_item_is_never_its_negative(loss: ActionLoss) -> None:
    # three users want the same item: there is nothing to tell apart
    item = unit(1, 4, seed=0).expand(3, 4)
    got = loss(unit(3, 4, seed=1), item, torch.tensor([5, 5, 5]), torch.tensor([0, 1, 2]))
    assert got.item() == 0.0


@ACTION_LOSSES
def test_a_user_s_other_targets_are_not_negatives_even_in_another_user_s_column(loss: ActionLoss) -> None:
    """User 0 wants items 1 and 2; user 1 wants 2, too. Where item 2 lies matters to user 1 alone."""
    which, owner = torch.tensor([1, 2, 2]), torch.tensor([0, 0, 1])
    user = unit(3, 4, seed=0)
    item = unit(3, 4, seed=1)
    item[2] = item[1]
    item.requires_grad_()
    of_first = torch.zeros(3)
    of_first[0] = 1.0
    (moves,) = torch.autograd.grad(loss((user.T * of_first).T, item, which, owner), item)
    assert moves[1].abs().sum() == 0.0
    assert moves[2].abs().sum() == 0.0


@ACTION_LOSSES
def test_one_user_alone_learns_from_what_was_shown_only(loss: ActionLoss) -> None:
    which, owner = torch.tensor([1, 2]), torch.tensor([0, 0])
    user = unit(2, 4, seed=0).requires_grad_()
    alone = loss(user, unit(2, 4, seed=1), which, owner)
    alone.backward()
    assert alone.item() == 0.0
    assert user.grad is not None
    assert user.grad.abs().sum() == 0.0
    shown = loss(user, unit(2, 4, seed=1), which, owner, unit(2, 3, 4, seed=2), torch.ones(2, 3, dtype=torch.bool))
    assert shown.item() > 0.0


@ACTION_LOSSES
def test_nobody_to_learn_from_is_0_with_a_gradient(loss: ActionLoss) -> None:
    user = torch.zeros(0, 4, requires_grad=True)
    nobody = torch.zeros(0, dtype=torch.int64)
    got = loss(user, torch.zeros(0, 4), nobody, nobody)
    got.backward()
    assert got.item() == 0.0


@ACTION_LOSSES
def test_a_step_down_the_gradient_brings_the_user_to_the_target_and_away_from_what_was_passed_over(
    loss: ActionLoss,
) -> None:
    user, item = unit(4, 8, seed=0).requires_grad_(), unit(4, 8, seed=1)
    exposed = unit(4, 2, 8, seed=2)
    is_there = torch.tensor([[True, False]] * 4)
    loss(user, item, torch.arange(4), torch.arange(4), exposed, is_there, scale=2.0).backward()
    assert user.grad is not None
    moved = user.detach() - 0.1 * user.grad
    assert bool(((moved * (item - exposed[:, 0])).sum(1) > (user * (item - exposed[:, 0])).sum(1)).all())


@ACTION_LOSSES
def test_what_stands_at_invalid_places_does_not_matter(loss: ActionLoss) -> None:
    user, item, which = unit(4, 8, seed=0).requires_grad_(), unit(4, 8, seed=1), torch.arange(4)
    rubbish, nothing = 100 * unit(4, 2, 8, seed=2), torch.zeros(4, 2, dtype=torch.bool)
    (with_rubbish,) = torch.autograd.grad(loss(user, item, which, which, rubbish, nothing), user)
    (without,) = torch.autograd.grad(loss(user, item, which, which), user)
    assert torch.equal(with_rubbish, without)


class Shapes(TorchDispatchMode):
    """Notes the shape of all that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.made |= {
            tuple(one.shape) for one in (out if isinstance(out, tuple | list) else [out]) if hasattr(one, "shape")
        }
        return out


@ACTION_LOSSES
def test_where_the_batch_gives_no_negatives_its_matrix_is_never_made(loss: ActionLoss) -> None:
    users, items = unit(30, 4, seed=0), unit(30, 4, seed=1)
    sampled = SampledItems(unit(5, 4, seed=2), torch.arange(100, 105), torch.ones(30, 5, dtype=torch.bool))
    arguments = (users, items, torch.arange(30), torch.arange(30), None, None, sampled)
    with Shapes() as with_it:
        loss(*arguments, in_batch_weight=1.0)
    assert (30, 30) in with_it.made
    with Shapes() as without:
        alone = loss(*arguments, in_batch_weight=0.0)
    assert (30, 30) not in without.made
    assert alone.item() == pytest.approx(loss(*arguments, in_batch_weight=1e-12).item())


def test_gradients_of_l_act_are_those_of_finite_differences() -> None:
    item, exposed = unit(4, 3, seed=1).double(), unit(4, 2, 3, seed=2).double()
    is_there = torch.tensor([[True, True], [True, False], [False, False], [True, True]])
    which, owner = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 1, 2])
    nothing = SampledItems(item[:0], which[:0], torch.zeros(4, 0, dtype=torch.bool))
    user = unit(4, 3, seed=0).double().requires_grad_()
    loss = pairwise_action_loss(user, item, which, owner, exposed, is_there, scale=2.0)
    (slope,) = torch.autograd.grad(loss, user)
    for k, coordinate in ((0, 0), (1, 2), (3, 1)):
        step = torch.zeros_like(user)
        step[k, coordinate] = 1e-3
        up, down = (
            looped((user + sign * step).detach(), item, which.tolist(), owner.tolist(), exposed, is_there, nothing, 2.0)
            for sign in (1, -1)
        )
        assert slope[k, coordinate].item() == pytest.approx((up - down) / 2e-3, abs=1e-5)


def test_infonce_is_torch_s_cross_entropy_over_the_target_and_its_negatives() -> None:
    user, item, exposed = unit(5, 8, seed=0), unit(5, 8, seed=1), unit(5, 3, 8, seed=2)
    logits = torch.cat([20.0 * user @ item.T, 20.0 * torch.einsum("kd,kmd->km", user, exposed)], dim=1)
    oracle = functional.cross_entropy(logits, torch.arange(5))
    is_there = torch.ones(5, 3, dtype=torch.bool)
    got = infonce_action_loss(user, item, torch.arange(5), torch.arange(5), exposed, is_there)
    assert got.item() == pytest.approx(oracle.item(), rel=1e-5)
    alone = infonce_action_loss(user, item, torch.arange(5), torch.arange(5))
    assert alone.item() == pytest.approx(functional.cross_entropy(logits[:, :5], torch.arange(5)).item(), rel=1e-5)


def test_an_exposed_item_of_weight_2_counts_twice_in_infonce() -> None:
    user, item, exposed = unit(2, 8, seed=0), unit(2, 8, seed=1), unit(2, 1, 8, seed=2)
    which = torch.arange(2)
    twice = exposed.expand(2, 2, 8)
    weighted = infonce_action_loss(
        user, item, which, which, exposed, torch.ones(2, 1, dtype=torch.bool), exposed_weight=2.0
    )
    repeated = infonce_action_loss(user, item, which, which, twice, torch.ones(2, 2, dtype=torch.bool))
    assert weighted.item() == pytest.approx(repeated.item(), rel=1e-6)
    without = infonce_action_loss(
        user, item, which, which, exposed, torch.ones(2, 1, dtype=torch.bool), exposed_weight=0.0
    )
    assert without.item() == infonce_action_loss(user, item, which, which).item()


# the words of a title ------------------------------------------------------------------------------------------------


def test_two_words_of_a_vocabulary_of_two_worked_by_hand() -> None:
    # logits (0, log 3) give the words 1/4 and 3/4; (0, 0) a half each
    state, output = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [math.log(3)]])
    loss = title_loss(state, output, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_words_cost_what_sklearn_says() -> None:
    state, output = torch.randn(6, 4, generator=seeded(0)), torch.randn(9, 4, generator=seeded(1))
    words = torch.tensor([3, 0, 8, 8, 1, 5])
    probability = torch.softmax((state @ output.T).double(), dim=1).numpy()
    oracle = log_loss(words.numpy(), probability, labels=list(range(9)))
    assert title_loss(state, output, words).item() == pytest.approx(oracle, rel=1e-5)


def test_states_and_output_embeddings_both_learn_from_words() -> None:
    state = torch.randn(3, 4, generator=seeded(0), requires_grad=True)
    output = torch.randn(9, 4, generator=seeded(1), requires_grad=True)
    title_loss(state, output, torch.tensor([3, 0, 8])).backward()
    assert state.grad is not None
    assert output.grad is not None
    assert bool((state.grad.abs().sum(1) > 0).all())
    # softmax minus one-hot, by hand
    error = torch.softmax(state.detach() @ output.detach().T, dim=1) - functional.one_hot(torch.tensor([3, 0, 8]), 9)
    torch.testing.assert_close(output.grad, error.T @ state.detach() / 3)


def test_no_words_cost_nothing() -> None:
    state = torch.zeros(0, 4, requires_grad=True)
    loss = title_loss(state, torch.ones(9, 4), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0


# the picture ---------------------------------------------------------------------------------------------------------


class PointMass:
    """All pictures are one: where the noise that led to a point came from is known, and so is the velocity."""

    def __init__(self, image_V: Tensor, off: float = 0.0) -> None:
        self.image_V, self.off = image_V, off

    def standardised(self, image_KV: Tensor) -> Tensor:
        return image_KV

    def __call__(self, noisy_KV: Tensor, tau_K: Tensor, condition_KC: Tensor) -> Tensor:
        return (self.image_V - noisy_KV) / (1 - tau_K).unsqueeze(1) + self.off + 0.0 * condition_KC.sum()


def test_the_exact_velocity_of_a_point_mass_costs_nothing_and_one_that_is_off_by_3_costs_9() -> None:
    image = torch.tensor([0.5, -1.0, 2.0])
    images, condition = image.expand(64, 3), torch.zeros(64, 2)
    assert flow_loss(PointMass(image), images, condition, seeded(0)).item() == pytest.approx(0.0, abs=1e-6)
    assert flow_loss(PointMass(image, off=3.0), images, condition, seeded(0)).item() == pytest.approx(9.0, rel=1e-3)


def flow(condition_dim: int = 4, width: int = 6, seed: int = 0) -> ImageFlow:
    torch.manual_seed(seed)
    return ImageFlow(torch.zeros(width), torch.ones(width), condition_dim, hidden=32)


def test_an_untrained_flow_predicts_0_and_so_costs_the_variance_of_noise_and_image() -> None:
    images = torch.randn(4000, 6, generator=seeded(1))
    loss = flow_loss(flow(), images, torch.zeros(4000, 4), seeded(0))
    assert loss.item() == pytest.approx(2.0, rel=0.05)


def test_items_without_a_picture_are_left_out() -> None:
    network = flow()
    torch.nn.init.normal_(network.last.weight)
    images, condition = torch.randn(5, 6, generator=seeded(1)), torch.randn(5, 4, generator=seeded(2))
    holes = torch.zeros(8, 6)
    holes[[0, 2, 3, 5, 7]] = images
    conditions = torch.full((8, 4), 1e3)
    conditions[[0, 2, 3, 5, 7]] = condition
    assert flow_loss(network, holes, conditions, seeded(0)).equal(flow_loss(network, images, condition, seeded(0)))


def test_no_picture_at_all_costs_nothing_and_moves_nothing() -> None:
    condition = torch.randn(3, 4, generator=seeded(0), requires_grad=True)
    loss = flow_loss(flow(), torch.zeros(3, 6), condition)
    loss.backward()
    assert loss.item() == 0.0
    assert condition.grad is not None
    assert condition.grad.abs().sum() == 0.0


def test_images_are_standardised_before_the_noise_is_mixed_in() -> None:
    mean, scale = torch.tensor([10.0, -4.0]), torch.tensor([0.5, 2.0])
    network = ImageFlow(mean, scale, 3, hidden=8)
    images = torch.tensor([[12.0, -4.0], [10.0, -3.5]])
    torch.testing.assert_close(network.standardised(images), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert {name for name, _ in network.named_buffers()} == {"mean_V", "scale_V"}


def test_the_flow_learns_which_picture_a_condition_goes_with_and_teaches_the_condition() -> None:
    network = flow(condition_dim=2, width=2)
    condition = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(64, 1)
    images = torch.tensor([[1.5, -1.5], [-1.5, 1.5]]).repeat(64, 1)
    noise = seeded(3)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        flow_loss(network, images, condition, noise).backward()
        optimizer.step()
    right = flow_loss(network, images, condition, seeded(4)).item()
    wrong = flow_loss(network, images, condition.flip(1), seeded(4)).item()
    assert right < 0.5 < wrong
    unsure = torch.full_like(condition, 0.5).requires_grad_()
    flow_loss(network, images, unsure, seeded(4)).backward()
    assert unsure.grad is not None
    towards = -unsure.grad * (condition - 0.5)
    assert towards.sum() > 0


def test_the_same_generator_gives_the_same_loss_and_another_does_not() -> None:
    images, condition = torch.randn(5, 6, generator=seeded(1)), torch.randn(5, 4, generator=seeded(2))
    network = flow()
    first, second, third = (flow_loss(network, images, condition, seeded(s)).item() for s in (0, 0, 1))
    assert first == second != third


def test_in_a_bfloat16_pass_all_but_the_words_logits_stay_float32() -> None:
    user, item = unit(4, 8, seed=0), unit(4, 8, seed=1)
    network, images, condition = flow(), torch.randn(5, 6, generator=seeded(1)), torch.zeros(5, 4)
    torch.nn.init.normal_(network.last.weight)
    state, output, word = (
        torch.randn(3, 4, generator=seeded(0)),
        torch.randn(9, 4, generator=seeded(1)),
        torch.arange(3),
    )
    which = torch.arange(4)
    plain = [
        pairwise_action_loss(user, item, which, which),
        infonce_action_loss(user, item, which, which),
        flow_loss(network, images, condition, seeded(0)),
        title_loss(state, output, word),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        half = [
            pairwise_action_loss(user, item, which, which),
            infonce_action_loss(user, item, which, which),
            flow_loss(network, images, condition, seeded(0)),
            title_loss(state, output, word),
        ]
    assert all(loss.dtype == torch.float32 for loss in half)
    assert all(one.equal(other) for one, other in zip(plain[:3], half[:3], strict=True))
    assert half[3].item() == pytest.approx(plain[3].item(), rel=0.02)
