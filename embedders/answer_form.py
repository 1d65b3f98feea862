"""The teacher's form of an answer in the tokens of one model.

Each fixed piece and each value is turned into tokens by itself and the tokens are put one after the other, in training
as in scoring. So the label position is known without a search, and a value never shares a token with the text around.

Letters: V vocabulary, K labels.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedders.causal_lm import CausalLM
from embedders.label_tokens import label_of_token, label_probabilities
from embedders.relevance_prompts import (
    CHAIN_PIECES,
    INSTRUCTION,
    LABEL_ONLY_INSTRUCTION,
    LABEL_ONLY_PIECES,
    LABELS,
    MATCHES,
    Label,
    QueryItem,
    Reasoning,
    alternated,
    pair_text,
)


class AnswerForm:
    """Prompts, fixed pieces and values as tokens.

    Raises:
        ValueError: the tokenizer does not give the text back as it was, or two values begin with the same token.
    """

    def __init__(self, lm: CausalLM) -> None:
        self.lm = lm
        self.chain_pieces = tuple(tuple(lm.tokens(piece)) for piece in CHAIN_PIECES)
        self.label_only_pieces = tuple(tuple(lm.tokens(piece)) for piece in LABEL_ONLY_PIECES)
        self.matches = tuple(tuple(lm.tokens(value)) for value in MATCHES)
        self.labels = tuple(tuple(lm.tokens(value)) for value in LABELS)
        whole = Reasoning.of_values(
            ["two chairs", "", "x-1", "3 in, red"] * 2 + ["match", "mismatch", "na", "na", "good"]
        )
        back = lm.text([id for piece in self._parts(CHAIN_PIECES, whole.values()) for id in piece])
        if back != whole.line():
            raise ValueError(
                f"AnswerForm: the tokenizer of {lm.model_id} does not give back an answer put together from its "
                f"pieces: expected {whole.line()[:50]!r}..., got {back[:50]!r}.... Name a model with a byte-level "
                "tokenizer."
            )
        for names, tokens in ((MATCHES, self.matches), (LABELS, self.labels)):
            if len({each[0] for each in tokens}) < len(tokens):
                raise ValueError(
                    f"AnswerForm: the tokenizer of {lm.model_id} begins two of {', '.join(names)} with the same token; "
                    "their probabilities could not be told apart at one position. Name another model."
                )

    def instruction(self, *, label_only: bool = False) -> list[int]:
        """Tokens that every prompt begins with."""
        return self.lm.opening_tokens(LABEL_ONLY_INSTRUCTION if label_only else INSTRUCTION)

    def question(self, pair: QueryItem) -> list[int]:
        """Tokens of the rest of the prompt."""
        return self.lm.tokens(pair_text(pair))

    def answer(self, reasoning: Reasoning) -> list[int]:
        """Tokens of a whole chain, and the end."""
        return [*(id for part in self._parts(CHAIN_PIECES, reasoning.values()) for id in part), *self.lm.end]

    def steps(self, reasoning: Reasoning) -> list[int]:
        """Tokens of a chain up to where its label would stand."""
        return [id for part in self._parts(CHAIN_PIECES, reasoning.values())[:-2] for id in part]

    def label_only_answer(self, label: Label) -> list[int]:
        """Tokens of an answer without reasoning, and the end."""
        return [*(id for part in self._parts(LABEL_ONLY_PIECES, (label,)) for id in part), *self.lm.end]

    def _parts(self, fixed: Sequence[str], values: Sequence[str]) -> list[list[int]]:
        return [self.lm.tokens(part) for part in alternated(fixed, values)]

    @cached_property
    def match_starts(self) -> list[int]:
        """First token of each value of a comparison."""
        return [tokens[0] for tokens in self.matches]

    @cached_property
    def match_start_mask(self) -> Tensor:
        """The same as a mask."""
        return torch.tensor([number in self.match_starts for number in range(len(self.lm.vocabulary))], device=self._on)

    @cached_property
    def label_starts(self) -> dict[str, int]:
        """Every token that could stand at the label position and begin a label, by its text."""
        return {
            text: number
            for number, text in enumerate(self.lm.vocabulary)
            if text is not None and label_of_token(text) is not None
        }

    def label_alternatives(self, logits_V: Tensor) -> dict[str, float]:
        """Logits of the tokens that could begin a label: what `label_probabilities` takes."""
        ids = list(self.label_starts.values())
        return dict(zip(self.label_starts, logits_V[ids].tolist(), strict=True))

    def label_probabilities(self, logits_V: Tensor) -> NDArray[np.float64]:
        """Of the K labels, where the quotation mark before the label has been written."""
        return label_probabilities(self.label_alternatives(logits_V))

    @cached_property
    def closing_mask(self) -> Tensor:
        """Tokens that end a fact: those that begin with a quotation mark."""
        return torch.tensor([text is not None and text.startswith('"') for text in self.lm.vocabulary], device=self._on)

    @cached_property
    def in_fact_mask(self) -> Tensor:
        """Tokens that a fact may hold."""
        forbidden = ('"', "\\", *map(chr, range(32)), chr(127))
        return torch.tensor(
            [bool(text) and not any(sign in text for sign in forbidden) for text in self.lm.vocabulary],  # type: ignore[operator]
            device=self._on,
        )

    @cached_property
    def in_text_mask(self) -> Tensor:
        """Tokens of ordinary text, and the end."""
        ends = set(self.lm.end)
        return torch.tensor(
            [bool(text) or number in ends for number, text in enumerate(self.lm.vocabulary)], device=self._on
        )

    @property
    def _on(self) -> torch.device:
        return self.lm.device
