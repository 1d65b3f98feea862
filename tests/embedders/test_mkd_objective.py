"""The weighted sum that a student learns from, by hand on three pairs."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from embedders.mkd import InteractionOutputs, RepresentationOutputs, RepresentationStudent
from embedders.mkd_objective import LossWeights, SignalBatch, interaction_losses, representation_losses
from embedders.student_encoder import TextReader
from embedders.teacher_signal import TeacherSignal

SIGNAL = TeacherSignal.of(
    np.array([4, 4, 9]),
    label_N=np.array([1, -1, 0]),
    probabilities_NK=np.array([[0.25, 0.75], [0.5, 0.5], [np.nan, np.nan]]),
    match_NA=np.array([[0, 0, 2, 2], [0, 0, 2, 1], [-1, -1, -1, -1]]),
    query_class_NC=np.array([[1, -1], [1, -1], [-1, -1]]),
    item_class_NC=np.array([[-1, -1], [0, 2], [1, -1]]),
)
BATCH = SignalBatch.of(SIGNAL, np.arange(3), torch.device("cpu"))
LOG2 = math.log(2)


def test_scores_and_verdicts_are_the_teachers_or_else_the_humans() -> None:
    assert BATCH.scores()[:2].tolist() == pytest.approx([0.75, 0.5])
    assert BATCH.scores()[2].isnan()
    assert BATCH.label_scores()[[0, 2]].tolist() == [1.0, 0.0]
    assert BATCH.label_scores()[1].isnan()
    assert BATCH.verdicts().tolist() == [1, 1, 0]
    nothing = SignalBatch.of(TeacherSignal.of(np.array([0])), np.arange(1), torch.device("cpu"))
    assert nothing.verdicts().tolist() == [-1]


def test_losses_of_a_cross_encoder_that_knows_nothing() -> None:
    outputs = InteractionOutputs(torch.zeros(3, 2), torch.zeros(3, 4, 2), torch.zeros(3, 5))
    cited = torch.tensor([[-1, 1, 0, 0, -1]] * 2 + [[-1] * 5])
    weights = LossWeights(hard=2.0, alpha=3.0, alpha_list=5.0, beta=7.0, gamma=11.0, tau=1.0)
    found = {name: part.item() for name, part in interaction_losses(outputs, BATCH, cited, weights).items()}
    divergence = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)  # of pair 0; the teacher of pair 1 is even, too
    assert found == pytest.approx(
        {
            "hard": 2 * LOG2,
            "score": 3 * divergence / 2,
            "list": 5 * divergence,  # log-odds log 3 and 0 over two items: 3 : 1 against even
            "steps": 7 * 3 * LOG2,  # nobody asked for the model
            "highlight": 11 * LOG2,
        }
    )


class Width(nn.Module):
    """Stands where an encoder is; the losses do not call it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 2})


def test_losses_of_a_bi_encoder_whose_odds_are_even() -> None:
    student = RepresentationStudent(Width(), TextReader(None, max_tokens=8, has_segments=False), num_classes=(2, 3))
    with torch.no_grad():
        student.bias.zero_()
    # queries point up, items right: every cosine is 0, all log-odds are 0
    queries = RepresentationOutputs(torch.tensor([[0.0, 1.0]] * 2), [torch.zeros(2, 2), torch.zeros(2, 3)])
    items = RepresentationOutputs(torch.tensor([[1.0, 0.0]] * 3), [torch.zeros(3, 2), torch.zeros(3, 3)])
    weights = LossWeights(hard=2.0, alpha=3.0, alpha_list=5.0, beta=7.0, gamma=11.0, tau=1.0, hard_negative=2.0)
    at = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    found = {
        name: part.item() for name, part in representation_losses(student, queries, items, *at, BATCH, weights).items()
    }
    assert found == pytest.approx(
        {
            "hard": 2 * LOG2,
            "score": 3 * LOG2,
            "list": 5 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
            # the query's kind is known of one query, its maker of none; of items: two kinds, one maker of three
            "attributes": 7 * (LOG2 + LOG2 + math.log(3)),
            # query 0 has items 0 and 1 as positives (1 is good by its even score, and fits in category and brand), and
            # item 2, not judged for it, as its negative; query 1 has no positive
            "contrast": 11 * LOG2,
        }
    )


def test_a_text_that_pairs_know_different_classes_of_has_the_known_one() -> None:
    student = RepresentationStudent(Width(), TextReader(None, max_tokens=8, has_segments=False), num_classes=(2, 3))
    outputs = RepresentationOutputs(torch.tensor([[0.0, 1.0]]), [torch.zeros(1, 2), torch.zeros(1, 3)])
    same = torch.zeros(3, dtype=torch.int64)
    weights = LossWeights(hard=0, alpha=0, alpha_list=0, beta=1.0, gamma=0)
    found = representation_losses(student, outputs, outputs, same, same, BATCH, weights)
    assert found["attributes"].item() == pytest.approx(LOG2 + LOG2 + math.log(3))


def test_all_off_is_nothing() -> None:
    outputs = InteractionOutputs(torch.zeros(3, 2), torch.zeros(3, 4, 2), torch.zeros(3, 5))
    off = LossWeights(hard=0, alpha=0, alpha_list=0, beta=0, gamma=0)
    assert interaction_losses(outputs, BATCH, None, off) == {}
