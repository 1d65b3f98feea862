"""What every ranker does, whatever is inside: fit, predict, save, load.

`NetworkRanker` (torch) and `GbdtRanker` (LightGBM) both do it, and one test file holds both to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ranker.batches import EncodedExamples, ExampleLayout


class Scores(NamedTuple):
    """Probabilities of each impression, `[N]`."""

    p_ctr: NDArray[np.float64]
    p_cvr: NDArray[np.float64]
    """Of converting, given the click."""
    p_ctcvr: NDArray[np.float64]
    """p_ctr * p_cvr."""


class Validation(NamedTuple):
    """How good the scores of the validation rows are."""

    loss: float
    uauc: float | None
    """None where no user has both a click and a row without one."""

    @property
    def merit(self) -> float:
        """What early stopping maximises: UAUC, or the negative loss where there is no UAUC."""
        return -self.loss if self.uauc is None else self.uauc


Validate = Callable[[Scores], Validation]


class CurveRow(NamedTuple):
    """One validation. `epoch` counts them from 0; for trees, an epoch is a number of boosting rounds."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_uauc: float | None
    seconds: float
    """Of training and validation, since the one before."""
    is_best: bool


TrainingCurve = tuple[CurveRow, ...]


@dataclass(frozen=True)
class Watch:
    """What a caller hears of a running fit, and gives it to go on from."""

    on_rows: Callable[[int], None] = lambda rows: None
    """Told the number of training rows read since the last call."""
    on_checkpoint: Callable[[Mapping[str, Any]], None] | None = None
    """Given the whole state after each validation; whoever stores it can resume."""
    resume_from: Mapping[str, Any] | None = None
    """A state that `on_checkpoint` was given."""


class Ranker(Protocol):
    """Scores impressions. Same seed and same examples: same bits."""

    def fit(
        self, train: EncodedExamples, validation: EncodedExamples, validate: Validate, watch: Watch = ...
    ) -> TrainingCurve:
        """Train, and keep the state of the best validation."""

    def predict(self, examples: EncodedExamples) -> Scores:
        """Score impressions. Unknown ids, missing vectors and empty histories get a score too."""

    def save(self, folder: Path) -> None:
        """Write the fitted ranker, with the fingerprints of the vectors it was trained on."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""


class FittedOn(NamedTuple):
    """What a fitted ranker remembers of its training examples, to refuse others."""

    layout: ExampleLayout
    vector_fingerprints: dict[str, dict[str, str]]

    @classmethod
    def of(cls, examples: EncodedExamples) -> Self:
        """Take it from the training examples."""
        return cls(examples.layout, examples.vector_fingerprints)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"layout": self.layout.as_dict(), "vector_fingerprints": self.vector_fingerprints}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`."""
        return cls(ExampleLayout.from_dict(values["layout"]), values["vector_fingerprints"])

    def check(self, examples: EncodedExamples, where: str) -> None:
        """Refuse examples that do not mean what the ranker learnt.

        Raises:
            ValueError: other columns, other vocabularies, or vectors of another encoder.
        """
        expected, found = self.layout.as_dict(), examples.layout.as_dict()
        if differing := [name for name in expected if expected[name] != found[name]]:
            sides = "; ".join(f"{name}: expected {expected[name]}, got {found[name]}" for name in differing)
            raise ValueError(
                f"{where}: the examples were encoded otherwise than the training rows. {sides}. "
                "Encode them with the FeatureEncoder saved beside this ranker."
            )
        check_same_vectors(self.vector_fingerprints, examples.vector_fingerprints, where)


def check_same_vectors(
    expected: Mapping[str, Mapping[str, str]], found: Mapping[str, Mapping[str, str]], where: str
) -> None:
    """Refuse vectors of another encoder than the ranker was trained on: the same width proves nothing.

    Args:
        expected: vector column -> fingerprint at training.
        found: vector column -> fingerprint now.
        where: for the message.

    Raises:
        ValueError: naming each differing entry of both sides.
    """
    for column in sorted({*expected, *found}):
        trained, now = expected.get(column, {}), found.get(column, {})
        if differing := sorted(key for key in {*trained, *now} if trained.get(key) != now.get(key)):
            sides = "; ".join(f"{key}: trained on {trained.get(key)!r}, got {now.get(key)!r}" for key in differing)
            raise ValueError(
                f"{where}: {column} was made by another encoder. {sides}. "
                "Train the ranker again, or point the feature service back at the vectors it was trained on."
            )
