"""Settings of one student's training: [distill_relevance.interaction] and [distill_relevance.representation]."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from embedders.fit_mkd import MkdSettings

WEIGHTS = ("hard", "alpha", "alpha_list", "beta", "gamma", "tau", "hard_negative")
"""Fields that are those of `embedders.mkd_objective.LossWeights`, by the same names."""


class RepresentationSettings(BaseModel, extra="forbid", frozen=True):
    """How the bi-encoder is trained. Defaults are the card's but for what their docstrings say."""

    epochs: PositiveInt = 1
    """Most passes over the pairs. The card has 4, for many more pairs than are trained on by default."""
    learning_rate: PositiveFloat = 5e-5
    """Of the encoder at its peak, the card's. A thousand pairs at 2e-4 make more of a simulated search log (ROC-AUC
    0.94, untrained 0.87) and spoil the encoder for Home Depot's (0.63, untrained 0.69, at 5e-5 0.70)."""
    batch_size: int = 32
    """Pairs a training step."""
    patience: NonNegativeInt = 1
    """Epochs without a better ROC-AUC of the validation pairs before training stops."""
    hard: NonNegativeFloat = 1.0
    """Weight of human labels. 0 switches a loss off; this holds of all the weights."""
    alpha: NonNegativeFloat = 1.0
    """Of the teacher's score distribution."""
    alpha_list: NonNegativeFloat = 1.0
    """Of how the teacher orders a query's items."""
    beta: NonNegativeFloat = 0.3
    """Of the reasoning: attributes of both texts (representation), the steps (interaction)."""
    gamma: NonNegativeFloat = 0.0
    """Of contrast (representation), of the cited words (interaction). 0.1 is the card's; with a thousand pairs the
    contrast made a worse bi-encoder of a simulated search log (ROC-AUC 0.94 for 0.95)."""
    tau: PositiveFloat = 2.0
    """Temperature of the score distribution and of the lists."""
    hard_negative: NonNegativeFloat = 2.0
    """How many other negatives one that differs in exactly one step is worth."""

    def of_fit(self, *, precision: str, seed: int, is_scored: bool) -> "MkdSettings":
        """As `embedders.fit_mkd` takes them.

        Without scores of a teacher, what learns from them is off: lists would only keep pairs of a query in one batch.
        """
        from embedders.fit_mkd import MkdSettings  # here: torch takes seconds to import
        from embedders.mkd_objective import LossWeights

        told: dict[str, Any] = self.model_dump(exclude={"pooling"})  # of the student, not of the fit
        weights = LossWeights(**{name: told.pop(name) for name in WEIGHTS})
        if not is_scored:
            weights = replace(weights, alpha=0.0, alpha_list=0.0)
        return MkdSettings(weights=weights, precision=precision, seed=seed, **told)  # type: ignore[arg-type]


class InteractionSettings(RepresentationSettings):
    """How the cross-encoder is trained."""

    epochs: PositiveInt = 4
    """Most passes over the pairs, the card's. It wants thousands of pairs to pass the representation student."""
    pooling: Literal["alignment", "first", "mean"] = "alignment"
    """What stands for a pair: the first token's state and the alignment of the query's tokens with the item's, that
    state alone (the card's; an encoder of single texts then knows nothing of pairs at first), or the mean of all."""
    batch_size: int = 16
    """Pairs a training step."""
    learning_rate: PositiveFloat = 5e-5
    """Of the encoder at its peak. 2e-5 is the card's, for many more steps than there are by default. As with the
    bi-encoder, more pays where labels are plain and harms where they are noisy (DECISIONS.md)."""
    alpha_list: NonNegativeFloat = 0.0
    """Of how the teacher orders a query's items. The card has it for the representation student only."""
    gamma: NonNegativeFloat = 0.1
    """Of the words that the reasoning cites."""
