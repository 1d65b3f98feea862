"""ELLM-rele + MKD (arXiv 2411.13045, WWW 2025): the students.

A language model that judges step by step whether an item answers a query is too dear to serve. Its score distribution
and its reasoning, taken apart into learning tasks, are distilled into two small encoders: an interaction student
(cross-encoder: query and item read together) for the short list, and a representation student (bi-encoder: one vector
each) for any pair, whose item vectors are computed once.

    interaction      z = label_head([CLS] of "query [SEP] item", alignment)                K logits
    representation   s = kappa cos(f(q), f(i)) + b,   f = masked mean of the last layer

What we keep: both kinds of student, both dimensions of knowledge (scores, reasoning), only students at serving. What
differs, as the paper's formulas could not be read [NF->P]: all losses (mkd_losses.py); the heads below; one encoder for
both sides of the bi-encoder; heads that read a vector before its norm is taken; kappa = 10 and b = -4 at the start; and
the alignment: how well each token of the query finds one of the item's, by the cosine of their states (the MaxSim of
ColBERT, arXiv 2004.12832, within a pair that is read together). An encoder of single texts knows nothing of pairs, and
thousands of labels go by before its first token does; the alignment orders pairs from the first step on.

`reasoning_heads` holds everything that only training needs: `for_serving()` leaves it out, `forward` never reads it.

Letters: N pairs or texts, L tokens, D width, K labels, A steps, C attributes, G classes of an attribute.
"""

import copy
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedders.pooling import masked_mean, unit_norm
from embedders.student_encoder import TextReader, Tokens, load_encoder

START_KAPPA, START_BIAS = 10.0, -4.0
"""A cosine of 0.4 is even odds: sentence encoders give unrelated texts about 0.1 and like ones 0.6."""

START_ALIGNMENT, EVEN_ALIGNMENT = 8.0, 0.7
"""What a whole alignment adds to the log-odds, and which one is even odds: states of a pair read together are alike."""

PairPooling = Literal["alignment", "first", "mean"]
"""What stands for a pair: the first token's state and the alignment, that state alone (the card's), or the mean."""


StudentT = TypeVar("StudentT", "InteractionStudent", "RepresentationStudent")


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
        pooling: what stands for the pair; all but `first` are ours [NF->P].

    Raises:
        ValueError: the alignment is asked for, and neither segments nor the tokenizer tell query and item apart.
    """

    def __init__(
        self,
        encoder: nn.Module,
        reader: TextReader,
        *,
        num_labels: int = 2,
        num_steps: int = 4,
        pooling: PairPooling = "alignment",
    ) -> None:
        super().__init__()
        if pooling == "alignment" and not reader.tells_item_tokens:
            raise ValueError(
                f"InteractionStudent: {type(reader.tokenizer).__name__} does not tell which tokens are the item's, so "
                "those of the query cannot be aligned with them: give a model with a tokenizer.json, or pooling = "
                '"first" ([distill_relevance.interaction])'
            )
        self.encoder, self.reader, self.pooling = encoder, reader, pooling
        width = encoder_width(encoder)
        self.label_head = _aligned_head(width, num_labels) if pooling == "alignment" else nn.Linear(width, num_labels)
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
        pooling: PairPooling = "alignment",
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
        return self._logits(self._states(ids_NL, mask_NL, segment_NL), mask_NL, segment_NL)

    def training_outputs(self, tokens: Tokens) -> InteractionOutputs:
        """Logits and what the reasoning heads say.

        Raises:
            ValueError: the student was made without reasoning heads.
        """
        if self.reasoning_heads is None:
            raise ValueError("this student has no reasoning heads (it was made for serving): make it with num_steps")
        hidden_NLD = self._states(*tokens)
        with _float32(hidden_NLD):
            pooled_ND = self._pooled(hidden_NLD, tokens.mask_NL)
            match_NA2 = self.reasoning_heads["steps"](pooled_ND).unflatten(1, (-1, 2))
            highlight_NL = self.reasoning_heads["highlight"](hidden_NLD.float()).squeeze(-1)
            return InteractionOutputs(self._logits(hidden_NLD, *tokens[1:]), match_NA2, highlight_NL)

    def for_serving(self) -> "InteractionStudent":
        """The same student without reasoning heads; shares its weights."""
        return _without_heads(self)

    def _states(self, ids_NL: Tensor, mask_NL: Tensor, segment_NL: Tensor | None) -> Tensor:
        return _states(self.encoder, ids_NL, mask_NL, segment_NL if self.reader.has_segments else None)

    def _logits(self, hidden_NLD: Tensor, mask_NL: Tensor, segment_NL: Tensor | None) -> Tensor:
        with _float32(hidden_NLD):
            pooled_ND = self._pooled(hidden_NLD, mask_NL)
            if self.pooling != "alignment":
                return self.label_head(pooled_ND)
            assert segment_NL is not None, "a reader that tells the item's tokens gives them"
            alignment_N = alignment(hidden_NLD.float(), mask_NL.bool(), segment_NL.bool())
            return self.label_head(torch.cat([pooled_ND, alignment_N.unsqueeze(1)], dim=1))

    def _pooled(self, hidden_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        return masked_mean(hidden_NLD, mask_NL) if self.pooling == "mean" else hidden_NLD[:, 0].float()


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


def alignment(hidden_NLD: Tensor, mask_NL: Tensor, item_NL: Tensor) -> Tensor:
    """How well the tokens of the query find one of the item's: mean over them of their best cosine, in [-1, 1]. [N]

    Where segments tell the texts apart, the token that ends each counts with it; that lifts all pairs about alike.

    Args:
        hidden_NLD: states of pairs read together.
        mask_NL: bool, tokens that are there; the first is of no text.
        item_NL: bool, tokens of the item; all others but the first are the query's.
    """
    unit_NLD = functional.normalize(hidden_NLD, dim=-1)
    of_item_NL = mask_NL & item_NL
    of_query_NL = mask_NL & ~item_NL & (torch.arange(mask_NL.shape[1], device=mask_NL.device) > 0)
    cosine_NLL = unit_NLD @ unit_NLD.transpose(1, 2)
    best_NL = cosine_NLL.masked_fill(~of_item_NL.unsqueeze(1), -1.0).amax(dim=2)
    return (best_NL * of_query_NL).sum(dim=1) / of_query_NL.sum(dim=1).clamp(min=1)


def _aligned_head(width: int, num_labels: int) -> nn.Linear:
    """Of the first token's state, which says nothing at first, and of the alignment, which says it all."""
    head = nn.Linear(width + 1, num_labels)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:, -1] = torch.linspace(-0.5, 0.5, num_labels) * START_ALIGNMENT
        head.bias.copy_(-EVEN_ALIGNMENT * head.weight[:, -1])
    return head


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
