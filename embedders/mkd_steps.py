"""From the places of pairs to the losses of a student: what one step of its training computes (arXiv 2411.13045).

Texts are tokenised once, before the first epoch. A bi-encoder reads each distinct text of a batch once, so a query with
many items costs one pass of its own.

Letters: N pairs, B pairs of a batch.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedders.mkd import InteractionStudent, RepresentationStudent, Student
from embedders.mkd_losses import UNKNOWN
from embedders.mkd_objective import LossWeights, SignalBatch, interaction_losses, representation_losses
from embedders.student_encoder import TokenLists, padded_to_longest
from embedders.teacher_signal import TeacherSignal


class TrainingStep(Protocol):
    """One step."""

    length_N: NDArray[np.int64]
    """Tokens of each pair: what a batch is sorted by."""

    def losses(self, rows_B: NDArray[np.int64], half: bool) -> dict[str, Tensor]:
        """Each loss that is switched on, weighted, for some pairs; `half` runs the encoder in bfloat16."""
        ...


def training_step(
    student: Student,
    pairs: Sequence[tuple[str, str]],
    signal: TeacherSignal,
    weights: LossWeights,
    device: torch.device,
) -> TrainingStep:
    """The step of this kind of student.

    Raises:
        ValueError: no pairs, or not as many as the signal has; the student has no heads for a loss that is switched on.
    """
    if len(pairs) != len(signal.query_N) or not pairs:
        raise ValueError(
            f"fit_mkd: {len(pairs)} pairs of texts and a signal of {len(signal.query_N)}; expected as many"
        )
    if isinstance(student, InteractionStudent):
        return _InteractionStep(student, pairs, signal, weights, device)
    return _RepresentationStep(student, pairs, signal, weights, device)


class _InteractionStep:
    """From the places of pairs to the losses of a cross-encoder."""

    def __init__(
        self,
        student: InteractionStudent,
        pairs: Sequence[tuple[str, str]],
        signal: TeacherSignal,
        weights: LossWeights,
        device: torch.device,
    ) -> None:
        if student.reasoning_heads is None:
            raise ValueError("fit_mkd: this student has no reasoning heads (it was made for serving); make a new one")
        self._student, self._signal, self._weights, self._device = student, signal, weights, device
        self._tokens = student.reader.pairs(pairs, signal.highlight if weights.gamma else None)
        self.length_N = self._tokens.lengths()

    def losses(self, rows_B: NDArray[np.int64], half: bool) -> dict[str, Tensor]:
        tokens = self._student.reader.padded(self._tokens, rows_B).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            outputs = self._student.training_outputs(tokens)
        highlight_BL = None
        if self._tokens.highlights is not None:
            cited = [self._tokens.highlights[row] for row in rows_B]
            highlight_BL = padded_to_longest(cited, UNKNOWN).to(self._device)
        batch = SignalBatch.of(self._signal, rows_B, self._device)
        return interaction_losses(outputs, batch, highlight_BL, self._weights)


class _RepresentationStep:
    """From the places of pairs to the losses of a bi-encoder; a text is encoded once a batch."""

    def __init__(
        self,
        student: RepresentationStudent,
        pairs: Sequence[tuple[str, str]],
        signal: TeacherSignal,
        weights: LossWeights,
        device: torch.device,
    ) -> None:
        num_attributes = signal.query_class_NC.shape[1]
        num_heads = 0 if student.reasoning_heads is None else len(student.reasoning_heads)
        if weights.beta and num_heads != num_attributes:
            raise ValueError(
                f"fit_mkd: the signal has classes of {num_attributes} attributes, but the student {num_heads} heads; "
                "make it with the number of classes of each (num_classes), or switch the loss off (beta = 0)"
            )
        self._student, self._signal, self._weights, self._device = student, signal, weights, device
        self._queries, self._query_N = _distinct(student, [query for query, _ in pairs])
        self._items, self._item_N = _distinct(student, [item for _, item in pairs])
        self.length_N = np.maximum(self._queries.lengths()[self._query_N], self._items.lengths()[self._item_N])

    def losses(self, rows_B: NDArray[np.int64], half: bool) -> dict[str, Tensor]:
        reader, device = self._student.reader, self._device
        queries, query_at = np.unique(self._query_N[rows_B], return_inverse=True)
        items, item_at = np.unique(self._item_N[rows_B], return_inverse=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            of_queries = self._student.training_outputs(reader.padded(self._queries, queries).to(device))
            of_items = self._student.training_outputs(reader.padded(self._items, items).to(device))
        return representation_losses(
            self._student,
            of_queries,
            of_items,
            torch.from_numpy(query_at).to(device),
            torch.from_numpy(item_at).to(device),
            SignalBatch.of(self._signal, rows_B, device),
            self._weights,
        )


def _distinct(student: RepresentationStudent, texts: list[str]) -> tuple[TokenLists, NDArray[np.int64]]:
    """Tokens of the distinct texts, and which of them each text is."""
    number_of = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return student.reader.texts(list(number_of)), np.array([number_of[text] for text in texts], np.int64)
