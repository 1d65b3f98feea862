"""A search world with a known answer: a query names a maker and a kind, and so does an item, among other words.

The teacher scores every pair by whether both match; people have labelled few pairs, with noise. It
has four different scores only, so a student that orders all pairs rightly has a rank correlation of 0.94, not 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from embedders.fit_mkd import MkdSettings, fit_mkd
from embedders.mkd import InteractionStudent, RepresentationStudent, Student
from embedders.mkd_model import MkdModel
from embedders.mkd_objective import LossWeights
from embedders.student_encoder import CitedSpans
from embedders.teacher_signal import TeacherSignal

NUM_EACH, NUM_OTHER, NUM_LABELLED = 3, 4, 60
WORDS = [f"{name}{n}" for name in ("kind", "maker", "word") for n in range(max(NUM_EACH, NUM_OTHER))]

LABELS_ONLY = LossWeights(alpha=0, alpha_list=0, beta=0, gamma=0)
SCORES = LossWeights(alpha_list=0, beta=0, gamma=0)
REASONING = LossWeights()


@dataclass(frozen=True)
class World:
    """Pairs, four a query."""

    pairs: list[tuple[str, str]]
    query_N: NDArray[np.int64]
    score_N: NDArray[np.float64]
    match_NA: NDArray[np.int64]
    query_class_NC: NDArray[np.int64]
    item_class_NC: NDArray[np.int64]
    cited: list[CitedSpans]

    @classmethod
    def of(cls, num: int, seed: int) -> "World":
        rng = np.random.default_rng(seed)
        query_N = np.arange(num) // 4
        query = rng.integers(0, NUM_EACH, (num // 4, 2))[query_N]
        item = np.where(rng.random((num, 2)) < 0.5, query, rng.integers(0, NUM_EACH, (num, 2)))
        word = rng.integers(0, NUM_OTHER, num)
        differs = item != query
        return cls(
            [
                (f"maker{q[1]} kind{q[0]}", f"word{w} maker{i[1]} kind{i[0]}")
                for q, i, w in zip(query, item, word, strict=True)
            ],
            query_N,
            1 / (1 + np.exp(-(3.5 - 5 * differs[:, 0] - 3 * differs[:, 1]))),
            np.column_stack([differs, np.full((num, 2), 2)]),
            query,
            item,
            [CitedSpans(((0, 5), (7, 12)), ((6, 12), (13, 18)))] * num,
        )


def signal(world: World) -> TeacherSignal:
    rng = np.random.default_rng(0)
    label_N = np.full(len(world.pairs), -1)
    labelled = rng.choice(len(world.pairs), NUM_LABELLED, replace=False)
    label_N[labelled] = rng.random(NUM_LABELLED) < world.score_N[labelled]
    return TeacherSignal.of(
        world.query_N,
        label_N=label_N,
        probabilities_NK=np.column_stack([1 - world.score_N, world.score_N]),
        match_NA=world.match_NA,
        highlight=world.cited,
        query_class_NC=world.query_class_NC,
        item_class_NC=world.item_class_NC,
    )


Learn = Callable[[str, LossWeights, int], tuple[Student, float]]


@pytest.fixture(scope="module")
def learn(save_word_encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Learn:
    """Trains a student of a kind with some losses; gives it and its rank correlation with the teacher on new pairs."""
    folder = str(save_word_encoder(tmp_path_factory.mktemp("encoder"), WORDS, dropout=0.0))
    train, test = World.of(1000, 0), World.of(400, 1)

    def fitted(kind: str, weights: LossWeights, epochs: int) -> tuple[Student, float]:
        student: Student = (
            InteractionStudent.pretrained(folder)
            if kind == "interaction"
            else RepresentationStudent.pretrained(folder, num_classes=(NUM_EACH, NUM_EACH))
        )
        known, pairs = signal(train), train.pairs
        if weights == LABELS_ONLY:  # nothing is known of the other pairs: leave them out, and make up in epochs
            rows = np.flatnonzero(known.label_N >= 0)
            known = TeacherSignal.of(
                known.query_N[rows],
                label_N=known.label_N[rows],
                query_class_NC=known.query_class_NC[rows],
                item_class_NC=known.item_class_NC[rows],
            )
            pairs, epochs = [pairs[row] for row in rows], 6 * epochs
        fit_mkd(student, pairs, known, MkdSettings(weights, epochs=epochs, batch_size=16, learning_rate=1e-3))
        agreement: Any = spearmanr(MkdModel(student).log_odds(test.pairs), test.score_N)
        return student, float(agreement.statistic)

    return fitted


def test_a_cross_encoder_recovers_the_teachers_order_from_scores_where_few_labels_do_not(learn: Learn) -> None:
    _, from_labels = learn("interaction", LABELS_ONLY, 5)
    _, from_scores = learn("interaction", SCORES, 5)
    assert from_scores > from_labels + 0.2
    assert from_scores > 0.75


def test_reasoning_heads_beat_the_majority_and_the_order_is_recovered(learn: Learn) -> None:
    student, from_reasoning = learn("interaction", REASONING, 5)
    assert from_reasoning > 0.85
    assert isinstance(student, InteractionStudent)
    test = World.of(400, 1)
    lists = student.reader.pairs(test.pairs, test.cited)
    tokens = student.reader.padded(lists, range(400))
    with torch.no_grad():
        outputs = student.training_outputs(tokens)
    found = outputs.match_NA2.argmax(dim=-1).numpy()
    for step in range(2):
        majority = max(test.match_NA[:, step].mean(), 1 - test.match_NA[:, step].mean())
        assert (found[:, step] == test.match_NA[:, step]).mean() > majority + 0.2
    assert lists.highlights is not None
    cited = np.stack(lists.highlights)
    is_token = cited >= 0
    majority = max(cited[is_token].mean(), 1 - cited[is_token].mean())
    assert ((outputs.highlight_NL.numpy() > 0) == cited)[is_token].mean() > max(majority, 0.95)


def test_a_bi_encoder_recovers_the_teachers_order_from_scores_where_few_labels_do_not(learn: Learn) -> None:
    _, from_labels = learn("representation", LABELS_ONLY, 2)
    _, from_scores = learn("representation", SCORES, 2)
    assert from_scores > from_labels + 0.1
    assert from_scores > 0.8


def test_attribute_heads_of_a_bi_encoder_beat_the_majority(learn: Learn) -> None:
    student, from_reasoning = learn("representation", REASONING, 2)
    assert from_reasoning > 0.9
    assert isinstance(student, RepresentationStudent)
    test = World.of(400, 1)
    for texts, classes in (
        ([query for query, _ in test.pairs], test.query_class_NC),
        ([item for _, item in test.pairs], test.item_class_NC),
    ):
        with torch.no_grad():
            outputs = student.training_outputs(student.reader.padded(student.reader.texts(texts), range(400)))
        for attribute, logit_NG in enumerate(outputs.class_logits):
            majority = np.bincount(classes[:, attribute]).max() / 400
            assert (logit_NG.argmax(dim=1).numpy() == classes[:, attribute]).mean() > majority + 0.4
