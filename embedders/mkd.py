"""ELLM-rele + MKD (arXiv 2411.13045, WWW 2025): the students, and what the teacher tells them.

A language model that judges step by step whether an item answers a query is too dear to serve. Its score distribution
and its reasoning, taken apart into learning tasks, are distilled into two small encoders: an interaction student
(cross-encoder: query and item read together) for the short list, and a representation student (bi-encoder: one vector
each) for any pair, whose item vectors are computed once.

    interaction      z = label_head([CLS] of "query [SEP] item")                           K logits
    representation   s = kappa cos(f(q), f(i)) + b,   f = masked mean of the last layer

What we keep: both kinds of student, both dimensions of knowledge (scores, reasoning), only students at serving. What
differs, as the paper's formulas could not be read [NF->P]: all losses (mkd_losses.py); the heads below; one encoder for
both sides of the bi-encoder; heads that read a vector before its norm is taken; kappa = 10 and b = -4 at the start.

`reasoning_heads` holds everything that only training needs: `for_serving()` leaves it out, `forward` never reads it.

Letters: N pairs or texts, L tokens, D width, K labels, A steps, C attributes, G classes of an attribute, Q queries.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedders.mkd_losses import UNKNOWN
from embedders.pooling import masked_mean, unit_norm
from embedders.student_encoder import CitedSpans, TextReader, Tokens, load_encoder

MATCH, MISMATCH, NOT_ASKED = 0, 1, 2
"""What a step of the reasoning found; UNKNOWN where there is none."""

START_KAPPA, START_BIAS = 10.0, -4.0
"""A cosine of 0.4 is even odds: sentence encoders give unrelated texts about 0.1 and like ones 0.6."""


StudentT = TypeVar("StudentT", "InteractionStudent", "RepresentationStudent")


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


class InteractionOutputs(NamedTuple):
    """What the losses of a cross-encoder read, float32."""

    logit_NK: Tensor
    match_NA2: Tensor
    highlight_NL: Tensor


class RepresentationOutputs(NamedTuple):
    """What the losses of a bi-encoder read of one side, float32."""

    vector_ND: Tensor
    class_logits: list[Tensor]
    """C tensors [N, G]."""


class InteractionStudent(nn.Module):
    """Reads query and item together.

    Args:
        encoder: gives states of the last layer; trained along.
        reader: of the encoder.
        num_labels: K.
        num_steps: A, steps of the reasoning. 0: no reasoning heads.
        pooling: what stands for the pair: the first token's state (the card's), or the mean [NF->P].
    """

    def __init__(
        self,
        encoder: nn.Module,
        reader: TextReader,
        *,
        num_labels: int = 2,
        num_steps: int = 4,
        pooling: Literal["first", "mean"] = "first",
    ) -> None:
        super().__init__()
        self.encoder, self.reader, self.pooling = encoder, reader, pooling
        width = encoder_width(encoder)
        self.label_head = nn.Linear(width, num_labels)
        self.reasoning_heads = (
            nn.ModuleDict({"steps": nn.Linear(width, 2 * num_steps), "highlight": nn.Linear(width, 1)})
            if num_steps
            else None
        )

    @classmethod
    def pretrained(
        cls,
        name_or_path: str = "minilm",
        *,
        num_labels: int = 2,
        num_steps: int = 4,
        pooling: Literal["first", "mean"] = "first",
        max_tokens: int = 128,
        seed: int = 0,
    ) -> Self:
        """A student on a pretrained encoder; the seed is that of its new heads."""
        encoder, reader = load_encoder(name_or_path, max_tokens=max_tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(encoder, reader, num_labels=num_labels, num_steps=num_steps, pooling=pooling)

    def forward(self, ids_NL: Tensor, mask_NL: Tensor, segment_NL: Tensor | None = None) -> Tensor:
        """Logits of the labels [N, K], float32: what is served."""
        return self._logits(_states(self.encoder, ids_NL, mask_NL, segment_NL), mask_NL)

    def training_outputs(self, tokens: Tokens) -> InteractionOutputs:
        """Logits and what the reasoning heads say.

        Raises:
            ValueError: the student was made without reasoning heads.
        """
        if self.reasoning_heads is None:
            raise ValueError("this student has no reasoning heads (it was made for serving): make it with num_steps")
        hidden_NLD = _states(self.encoder, *tokens)
        with _float32(hidden_NLD):
            pooled_ND = self._pooled(hidden_NLD, tokens.mask_NL)
            match_NA2 = self.reasoning_heads["steps"](pooled_ND).unflatten(1, (-1, 2))
            highlight_NL = self.reasoning_heads["highlight"](hidden_NLD.float()).squeeze(-1)
            return InteractionOutputs(self.label_head(pooled_ND), match_NA2, highlight_NL)

    def for_serving(self) -> "InteractionStudent":
        """The same student without reasoning heads; shares its weights."""
        return _without_heads(self)

    def _logits(self, hidden_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        with _float32(hidden_NLD):
            return self.label_head(self._pooled(hidden_NLD, mask_NL))

    def _pooled(self, hidden_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        return hidden_NLD[:, 0].float() if self.pooling == "first" else masked_mean(hidden_NLD, mask_NL)


class RepresentationStudent(nn.Module):
    """Reads query and item each alone, with one encoder.

    Args:
        encoder: gives states of the last layer; trained along.
        reader: of the encoder.
        num_classes: G of each attribute that queries and items are asked for. (): no reasoning heads.
    """

    def __init__(self, encoder: nn.Module, reader: TextReader, *, num_classes: Sequence[int] = ()) -> None:
        super().__init__()
        self.encoder, self.reader = encoder, reader
        self.log_kappa = nn.Parameter(torch.tensor(math.log(START_KAPPA)))
        self.bias = nn.Parameter(torch.tensor(START_BIAS))
        width = encoder_width(encoder)
        self.reasoning_heads = nn.ModuleList([nn.Linear(width, num) for num in num_classes]) if num_classes else None

    @classmethod
    def pretrained(
        cls, name_or_path: str = "minilm", *, num_classes: Sequence[int] = (), max_tokens: int = 128, seed: int = 0
    ) -> Self:
        """A student on a pretrained encoder; the seed is that of its new heads."""
        encoder, reader = load_encoder(name_or_path, max_tokens=max_tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(encoder, reader, num_classes=num_classes)

    def forward(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Vectors of texts [N, D], unit norm, float32: what is served."""
        return unit_norm(masked_mean(_states(self.encoder, ids_NL, mask_NL, None), mask_NL))

    def training_outputs(self, tokens: Tokens) -> RepresentationOutputs:
        """Vectors, and what the reasoning heads say of each text's attributes."""
        pooled_ND = masked_mean(_states(self.encoder, tokens.ids_NL, tokens.mask_NL, None), tokens.mask_NL)
        with _float32(pooled_ND):
            heads = self.reasoning_heads if self.reasoning_heads is not None else ()
            return RepresentationOutputs(unit_norm(pooled_ND), [head(pooled_ND) for head in heads])

    def log_odds(self, cosine: Tensor) -> Tensor:
        """s = kappa cos + b."""
        return self.log_kappa.exp() * cosine + self.bias

    def for_serving(self) -> "RepresentationStudent":
        """The same student without reasoning heads; shares its weights."""
        return _without_heads(self)


Student = InteractionStudent | RepresentationStudent


def _without_heads(student: StudentT) -> StudentT:
    bare = copy.copy(student)
    bare._modules = {**student._modules, "reasoning_heads": None}
    return bare.eval()


def _states(encoder: nn.Module, ids_NL: Tensor, mask_NL: Tensor, segment_NL: Tensor | None) -> Tensor:
    segments = {} if segment_NL is None else {"token_type_ids": segment_NL}
    return encoder(input_ids=ids_NL, attention_mask=mask_NL.long(), **segments).last_hidden_state


def encoder_width(encoder: nn.Module) -> int:
    """D."""
    return int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]


def _float32(like: Tensor) -> torch.autocast:
    """No bf16 in the heads, whatever the encoder runs in: it would round a logit of 5 to the next 1/32."""
    return torch.autocast(like.device.type, enabled=False)


def _or_unknown(part: NDArray[Any] | None, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    if part is None:
        return np.full(shape, np.nan if dtype is np.float32 else UNKNOWN, dtype)
    return np.asarray(part, dtype)
