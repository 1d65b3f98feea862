"""Each loss against a value worked by hand, against a plain loop, and against what it must not depend on."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedders import mkd_losses as losses

NAN = float("nan")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# worked by hand ------------------------------------------------------------------------------------------------------


def test_two_labels_have_the_difference_of_their_logits_as_log_odds() -> None:
    assert losses.log_odds(torch.tensor([[0.5, 2.0]])).item() == pytest.approx(1.5)


def test_log_odds_of_three_labels_are_those_of_the_expected_label() -> None:
    # p = 1/6, 2/6, 3/6: the expected label is 8/6 of 2, so the score is 2/3 and the odds are 2
    probability = torch.tensor([[1 / 6, 2 / 6, 3 / 6]])
    assert losses.expected_score(probability).item() == pytest.approx(2 / 3)
    assert losses.log_odds(probability.log()).item() == pytest.approx(math.log(2))


def test_hard_label_even_logits_cost_log_k() -> None:
    loss = losses.hard_label_loss(torch.zeros(2, 3), torch.tensor([0, 2], dtype=torch.int8))
    assert loss.item() == pytest.approx(math.log(3))


def test_score_distribution_at_temperature_1_is_the_plain_divergence() -> None:
    # teacher 0.25 / 0.75, student even: KL = .25 log .5 + .75 log 1.5
    loss = losses.score_distillation_loss(torch.zeros(1, 2), torch.tensor([[0.25, 0.75]]), tau=1.0)
    assert loss.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_at_temperature_2_the_teacher_is_the_root_of_its_distribution_and_the_loss_is_fourfold() -> None:
    # teacher 0.1 / 0.9 at tau = 2: proportional to sqrt(.1), sqrt(.9) = 1 : 3, so 0.25 / 0.75; student even
    loss = losses.score_distillation_loss(torch.zeros(1, 2), torch.tensor([[0.1, 0.9]]), tau=2.0)
    assert loss.item() == pytest.approx(4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5)))


def test_tau_squared_keeps_the_gradient_as_temperature_grows() -> None:
    """For small logits tau^2 KL tends to the squared difference of the logits: its gradient does not depend on tau."""
    gradients = []
    for tau in (1.0, 2.0, 4.0, 8.0):
        logit = torch.tensor([[0.0, 0.02]], requires_grad=True)
        teacher = torch.softmax(torch.tensor([[0.0, 0.10]]), dim=1)
        losses.score_distillation_loss(logit, teacher, tau=tau).backward()  # type: ignore[no-untyped-call]
        assert logit.grad is not None
        gradients.append(logit.grad[0, 1].item())
    assert gradients == pytest.approx([gradients[0]] * 4, rel=5e-3)


def test_a_label_that_the_teacher_rules_out_costs_nothing_by_itself() -> None:
    # KL((0, 1) || even) = log 2
    loss = losses.score_distillation_loss(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]), tau=2.0)
    assert loss.item() == pytest.approx(4 * math.log(2))


def test_score_of_one_half_costs_log_2() -> None:
    loss = losses.score_loss(torch.tensor([0.0, 0.0]), torch.tensor([0.9, 0.2]))
    assert loss.item() == pytest.approx(math.log(2))


def test_a_list_of_two_is_a_divergence_of_two() -> None:
    # query 0: teacher 3 : 1 (log-odds log 3 and 0), student even; query 1 has one pair and says nothing
    student, teacher = torch.zeros(3), torch.tensor([math.log(3), 0.0, 5.0])
    loss = losses.listwise_loss(student, teacher, torch.tensor([0, 0, 1]), tau=1.0)
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_steps_add_up_over_steps_and_average_over_pairs() -> None:
    # one step known of pair 0 (even logits: log 2), both of pair 1 (sure and right: 0; sure of match and wrong: 20)
    logit = torch.tensor([[[0.0, 0.0], [9.0, 9.0]], [[20.0, 0.0], [20.0, 0.0]]])
    match = torch.tensor([[0, 2], [0, 1]], dtype=torch.int8)
    assert losses.steps_loss(logit, match).item() == pytest.approx(math.log(2) / 2 + 20)


def test_highlight_averages_over_known_tokens() -> None:
    logit = torch.tensor([[0.0, 0.0, 50.0], [0.0, -50.0, 7.0]])
    cited = torch.tensor([[1, 0, -1], [1, 0, -1]], dtype=torch.int8)
    assert losses.highlight_loss(logit, cited).item() == pytest.approx(3 * math.log(2) / 4)


def test_contrast_of_one_positive_and_one_negative_is_a_softplus() -> None:
    cosine = torch.tensor([[0.3, 0.1]])
    loss = losses.contrastive_loss(cosine, torch.tensor([[True, False]]), torch.tensor([[0.0, 1.0]]), scale=10.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(10 * (0.1 - 0.3))))
    twice = losses.contrastive_loss(cosine, torch.tensor([[True, False]]), torch.tensor([[0.0, 2.0]]), scale=10.0)
    assert twice.item() == pytest.approx(math.log(1 + 2 * math.exp(10 * (0.1 - 0.3))))


# against plain loops -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.sampled_from([0.5, 1.0, 2.0, 5.0]), num_labels=st.integers(2, 4))
def test_score_distribution_is_what_a_loop_says(seed: int, tau: float, num_labels: int) -> None:
    logit = 3 * torch.randn(6, num_labels, generator=seeded(seed))
    teacher = torch.softmax(2 * torch.randn(6, num_labels, generator=seeded(seed + 1)), dim=1)
    teacher[seed % 5] = NAN
    expected = []
    for row in range(6):
        if row == seed % 5:
            continue
        p = softmax([math.log(x) / tau for x in teacher[row].tolist()])
        q = softmax([x / tau for x in logit[row].tolist()])
        expected.append(tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    found = losses.score_distillation_loss(logit, teacher, tau=tau).item()
    assert found == pytest.approx(sum(expected) / 5, rel=1e-4, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.sampled_from([0.5, 1.0, 2.0]))
def test_listwise_is_what_a_loop_over_queries_says(seed: int, tau: float) -> None:
    student, teacher = (3 * torch.randn(12, generator=seeded(seed + at)) for at in (0, 1))
    query = torch.randint(0, 5, (12,), generator=seeded(seed + 2)) * 7
    teacher[seed % 12] = NAN
    expected = []
    for number in query.unique().tolist():
        rows = [row for row in range(12) if query[row] == number and not math.isnan(teacher[row])]
        if len(rows) > 1:
            p = softmax([teacher[row].item() / tau for row in rows])
            q = softmax([student[row].item() / tau for row in rows])
            expected.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    found = losses.listwise_loss(student, teacher, query, tau=tau).item()
    assert found == pytest.approx(float(np.mean(expected)) if expected else 0.0, rel=1e-4, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_steps_and_highlight_and_classes_are_what_loops_say(seed: int) -> None:
    logit = 2 * torch.randn(5, 3, 2, generator=seeded(seed))
    match = torch.randint(-1, 3, (5, 3), generator=seeded(seed + 1))
    expected = 0.0
    for step in range(3):
        of_step = [
            -math.log(softmax(logit[row, step].tolist())[int(match[row, step])])
            for row in range(5)
            if match[row, step] in (0, 1)
        ]
        expected += sum(of_step) / max(1, len(of_step))
    assert losses.steps_loss(logit, match).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)

    token, cited = logit[:, :, 0], torch.randint(-1, 2, (5, 3), generator=seeded(seed + 2))
    of_tokens = [
        -math.log(sigmoid(x if y else -x))
        for x, y in zip(token.flatten().tolist(), cited.flatten().tolist(), strict=True)
        if y != -1
    ]
    mean = sum(of_tokens) / max(1, len(of_tokens))
    assert losses.highlight_loss(token, cited).item() == pytest.approx(mean, rel=1e-4, abs=1e-6)

    heads = [torch.randn(5, 3, generator=seeded(seed + 3)), torch.randn(5, 4, generator=seeded(seed + 4))]
    classes = torch.randint(-1, 3, (5, 2), generator=seeded(seed + 5))
    expected = 0.0
    for at, head in enumerate(heads):
        known = [row for row in range(5) if classes[row, at] != -1]
        of_head = [-math.log(softmax(head[row].tolist())[int(classes[row, at])]) for row in known]
        expected += sum(of_head) / max(1, len(of_head))
    assert losses.classes_loss(heads, classes).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_contrast_is_what_a_loop_says(seed: int) -> None:
    cosine = torch.rand(4, 6, generator=seeded(seed)) * 2 - 1
    kind = torch.randint(0, 4, (4, 6), generator=seeded(seed + 1))  # 0 neither, 1 positive, 2 negative, 3 hard
    positive, weight = kind == 1, (kind == 2).float() + 2.0 * (kind == 3).float()
    expected = []
    for q in range(4):
        below = sum(weight[q, n].item() * math.exp(20 * cosine[q, n].item()) for n in range(6))
        own = [math.exp(20 * cosine[q, i].item()) for i in range(6) if positive[q, i]]
        if own and below:
            expected.append(sum(-math.log(e / (e + below)) for e in own) / len(own))
    found = losses.contrastive_loss(cosine, positive, weight).item()
    assert found == pytest.approx(float(np.mean(expected)) if expected else 0.0, rel=1e-4, abs=1e-6)


# what must not matter ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("num_labels", [2, 4])
def test_a_student_that_equals_its_teacher_pays_nothing_and_is_not_moved(tau: float, num_labels: int) -> None:
    logit = torch.randn(8, num_labels, generator=seeded(0)).requires_grad_()
    teacher = torch.softmax(logit.detach() + 3.0, dim=1)  # a constant added to a row is the same distribution
    query = torch.arange(8) // 3
    for loss in (
        losses.score_distillation_loss(logit, teacher, tau=tau),
        losses.listwise_loss(losses.log_odds(logit) + 2.0, losses.teacher_log_odds(teacher), query, tau=tau),
    ):
        assert loss.item() == pytest.approx(0.0, abs=1e-6)
        (gradient,) = torch.autograd.grad(loss, logit)
        assert gradient.abs().max().item() < 1e-6


def each_loss() -> dict[str, tuple[Callable[..., Tensor], Callable[[int], tuple[Tensor, ...]], tuple[Tensor, ...]]]:
    """By name: the loss, arguments of n known rows (the student's first), and a row that nothing is known of."""
    wide = torch.full((1, 2), NAN)
    return {
        "hard": (
            losses.hard_label_loss,
            lambda n: (torch.randn(n, 2, generator=seeded(1)), torch.arange(n) % 2),
            (torch.full((1, 2), 9.0), torch.tensor([-1])),
        ),
        "score distribution": (
            lambda z, p: losses.score_distillation_loss(z, p, tau=2.0),
            lambda n: (torch.randn(n, 2, generator=seeded(1)), torch.softmax(torch.arange(2.0 * n).view(n, 2), dim=1)),
            (torch.full((1, 2), 9.0), wide),
        ),
        "score": (
            losses.score_loss,
            lambda n: (torch.randn(n, generator=seeded(1)), torch.rand(n, generator=seeded(2))),
            (torch.tensor([9.0]), torch.tensor([NAN])),
        ),
        "list": (
            lambda s, t, q: losses.listwise_loss(s, t, q, tau=2.0),
            lambda n: (torch.randn(n, generator=seeded(1)), torch.randn(n, generator=seeded(2)), torch.arange(n) // 2),
            (torch.tensor([9.0]), torch.tensor([NAN]), torch.tensor([0])),
        ),
        "steps": (
            losses.steps_loss,
            lambda n: (torch.randn(n, 2, 2, generator=seeded(1)), torch.arange(2 * n).view(n, 2) % 2),
            (torch.full((1, 2, 2), 9.0), torch.tensor([[2, -1]])),
        ),
        "highlight": (
            losses.highlight_loss,
            lambda n: (torch.randn(n, 3, generator=seeded(1)), torch.arange(3 * n).view(n, 3) % 2),
            (torch.full((1, 3), 9.0), torch.tensor([[-1, -1, -1]])),
        ),
        "contrast": (
            losses.contrastive_loss,
            lambda n: (torch.rand(n, 2, generator=seeded(1)), torch.eye(2)[[0] * n] == 1, torch.eye(2)[[1] * n]),
            (torch.full((1, 2), 0.9), torch.tensor([[True, False]]), torch.zeros(1, 2)),
        ),
    }


@pytest.mark.parametrize("name", each_loss())
def test_what_is_unknown_changes_neither_loss_nor_gradient(name: str) -> None:
    loss_of, known_rows, unknown_row = each_loss()[name]
    student, *rest = known_rows(4)
    plain = student.clone().requires_grad_()
    loss = loss_of(plain, *rest)
    (gradient,) = torch.autograd.grad(loss, plain)
    assert loss.item() > 0

    more = torch.cat([student, unknown_row[0]]).requires_grad_()
    masked = loss_of(more, *(torch.cat([a, b]) for a, b in zip(rest, unknown_row[1:], strict=True)))
    assert masked.item() == pytest.approx(loss.item(), rel=1e-6)
    (of_more,) = torch.autograd.grad(masked, more)
    assert torch.allclose(of_more[:4], gradient, atol=1e-7)
    assert of_more[4].abs().max().item() == 0.0


@pytest.mark.parametrize("name", each_loss())
def test_where_nothing_is_known_the_loss_is_0_with_a_gradient_of_0(name: str) -> None:
    loss_of, _, (student, *rest) = each_loss()[name]
    student = student.clone().requires_grad_()
    loss = loss_of(student, *rest)
    assert loss.item() == 0.0
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.abs().max().item() == 0.0


@pytest.mark.parametrize("name", each_loss())
def test_gradients_are_finite_for_extreme_students(name: str) -> None:
    loss_of, known_rows, unknown_row = each_loss()[name]
    student, *rest = known_rows(4)
    rest = [torch.cat([a, b]) for a, b in zip(rest, unknown_row[1:], strict=True)]
    for size in (1e-6, 1e4):
        extreme = (size * torch.cat([student, unknown_row[0]])).requires_grad_()
        loss = loss_of(extreme, *rest)
        (gradient,) = torch.autograd.grad(loss, extreme)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_a_teacher_that_is_wholly_sure_has_finite_log_odds() -> None:
    odds = losses.teacher_log_odds(torch.tensor([[0.0, 1.0], [1.0, 0.0], [NAN, NAN]]))
    assert odds[:2].tolist() == pytest.approx([math.log(1000), -math.log(1000)])
    assert odds[2].isnan()
