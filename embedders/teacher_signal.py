"""What the students of MKD are told of pairs: people's labels, a teacher's score distribution, and its reasoning.

Letters: N pairs, K labels, A steps, C attributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embedders.mkd_losses import UNKNOWN
from embedders.student_encoder import CitedSpans

MATCH, MISMATCH, NOT_ASKED = 0, 1, 2
"""What a step of the reasoning found; UNKNOWN where there is none."""


@dataclass(frozen=True)
class TeacherSignal:
    """What is known of N pairs, by a teacher or a human. Any of it may be missing for any pair.

    Attributes:
        query_N: int64, which query a pair is of; pairs of one number are a list.
        label_N: int8, the human's label, 0 (bad) to K - 1; UNKNOWN.
        probabilities_NK: float32, the teacher's score distribution; NaN rows are unknown.
        match_NA: int8, the steps of its reasoning: MATCH, MISMATCH, NOT_ASKED or UNKNOWN; category first, then brand.
        highlight: what the reasoning cites of the two texts; None for a pair: unknown. None for all: no highlight.
        query_class_NC: int64, the query's category, brand, ... as the teacher read it, as classes; UNKNOWN.
        item_class_NC: int64, the item's, in the same classes.
    """

    query_N: NDArray[np.int64]
    label_N: NDArray[np.int8]
    probabilities_NK: NDArray[np.float32]
    match_NA: NDArray[np.int8]
    highlight: Sequence[CitedSpans | None] | None
    query_class_NC: NDArray[np.int64]
    item_class_NC: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        query_N: NDArray[np.int64],
        *,
        num_labels: int = 2,
        num_steps: int = 4,
        label_N: NDArray[Any] | None = None,
        probabilities_NK: NDArray[Any] | None = None,
        match_NA: NDArray[Any] | None = None,
        highlight: Sequence[CitedSpans | None] | None = None,
        query_class_NC: NDArray[Any] | None = None,
        item_class_NC: NDArray[Any] | None = None,
    ) -> Self:
        """A signal of what there is; the rest is unknown.

        Raises:
            ValueError: parts are of different numbers of pairs, or hold what they must not.
        """
        num = len(query_N)
        num_attributes = next((len(part[0]) for part in (query_class_NC, item_class_NC) if part is not None and num), 0)
        signal = cls(
            query_N=np.asarray(query_N, np.int64),
            label_N=_or_unknown(label_N, (num,), np.int8),
            probabilities_NK=_or_unknown(probabilities_NK, (num, num_labels), np.float32),
            match_NA=_or_unknown(match_NA, (num, num_steps), np.int8),
            highlight=highlight,
            query_class_NC=_or_unknown(query_class_NC, (num, num_attributes), np.int64),
            item_class_NC=_or_unknown(item_class_NC, (num, num_attributes), np.int64),
        )
        signal._check(num_labels, num_steps, num_attributes)
        return signal

    @property
    def num_labels(self) -> int:
        """K."""
        return self.probabilities_NK.shape[1]

    def _check(self, num_labels: int, num_steps: int, num_attributes: int) -> None:
        num = len(self.query_N)
        wrong = [
            f"{name} is {part.shape}, expected {shape}"
            for name, part, shape in (
                ("label_N", self.label_N, (num,)),
                ("probabilities_NK", self.probabilities_NK, (num, num_labels)),
                ("match_NA", self.match_NA, (num, num_steps)),
                ("query_class_NC", self.query_class_NC, (num, num_attributes)),
                ("item_class_NC", self.item_class_NC, (num, num_attributes)),
            )
            if part.shape != shape
        ]
        if self.highlight is not None and len(self.highlight) != num:
            wrong.append(f"highlight is of {len(self.highlight)} pairs, expected {num}")
        if not wrong:
            total_N = self.probabilities_NK.sum(axis=1)
            is_off_N = ~np.isnan(total_N) & ((np.abs(total_N - 1) > 1e-3) | (self.probabilities_NK.min(axis=1) < 0))
            if is_off_N.any():
                first = int(np.argmax(is_off_N))
                wrong.append(
                    f"{int(is_off_N.sum())} of {num} rows of probabilities_NK are no distribution, e.g. row {first}: "
                    f"{self.probabilities_NK[first].tolist()}"
                )
            for name, part, most in (("label_N", self.label_N, num_labels - 1), ("match_NA", self.match_NA, NOT_ASKED)):
                if part.size and (part.min() < UNKNOWN or part.max() > most):
                    wrong.append(f"{name} holds {part.min()} to {part.max()}, expected {UNKNOWN} to {most}")
        if wrong:
            raise ValueError(f"teacher signal of {num} pairs: {'; '.join(wrong)}")


def _or_unknown(part: NDArray[Any] | None, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    if part is None:
        return np.full(shape, np.nan if dtype is np.float32 else UNKNOWN, dtype)
    return np.asarray(part, dtype)
