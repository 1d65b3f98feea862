"""A small pretrained encoder that is to be trained: its weights, and how it reads a text or a pair of texts.

A single text is read as `[CLS] text [SEP]`, a pair as `[CLS] query [SEP] item [SEP]` with segments where the model has
them; a pair that is too long loses tokens of its longer side. Nothing is ever downloaded.

Letters: N texts or pairs, L tokens, D width.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedders.backbone import quiet
from embedders.mkd_losses import UNKNOWN
from embedders.model_files import find_model_files

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: it reads this once

from transformers import AutoModel, AutoTokenizer

TEXTS_TOKENIZED_AT_ONCE = 4096

Span = tuple[int, int]
"""First character and the one after the last."""


class CitedSpans(NamedTuple):
    """What a reasoning cites of the query and of the item: places in their texts."""

    query: tuple[Span, ...]
    item: tuple[Span, ...]


class Tokens(NamedTuple):
    """Texts of several lengths, padded on the right."""

    ids_NL: Tensor
    mask_NL: Tensor
    segment_NL: Tensor | None
    """1 for the item's tokens; None of single texts, and where the tokenizer cannot tell them."""

    def to(self, device: torch.device) -> "Tokens":
        """The same on a device."""
        return Tokens(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


class TokenLists(NamedTuple):
    """Texts before they are padded: one array each."""

    ids: list[NDArray[np.int64]]
    segments: list[NDArray[np.int64]] | None
    highlights: list[NDArray[np.int8]] | None
    """1 for a cited token, 0 for another, UNKNOWN for special ones and for pairs whose spans nobody gave."""

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each."""
        return np.fromiter((len(one) for one in self.ids), np.int64, count=len(self.ids))


class TextReader:
    """From texts to token ids.

    Args:
        tokenizer: of the encoder.
        max_tokens: read of a text, or of both texts of a pair together.
        has_segments: the encoder reads segment ids that tell the two texts of a pair apart.
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int, has_segments: bool) -> None:
        self.tokenizer, self.max_tokens, self.has_segments = tokenizer, max_tokens, has_segments

    @property
    def tells_item_tokens(self) -> bool:
        """Whether the tokens of a pair's item are known: to the encoder by its segments, or to the tokenizer alone."""
        return self.has_segments or bool(self.tokenizer.is_fast)

    def texts(self, texts: Sequence[str]) -> TokenLists:
        """Tokens of each text alone."""
        ids: list[NDArray[np.int64]] = []
        for start in range(0, len(texts), TEXTS_TOKENIZED_AT_ONCE):
            encoded = self._encode(list(texts[start : start + TEXTS_TOKENIZED_AT_ONCE]))
            ids.extend(np.asarray(one, np.int64) for one in encoded["input_ids"])
        return TokenLists(ids, None, None)

    def pairs(self, pairs: Sequence[tuple[str, str]], cited: Sequence[CitedSpans | None] | None = None) -> TokenLists:
        """Tokens of each (query, item), and which of them are cited.

        Raises:
            ValueError: spans are given, but this tokenizer cannot say which characters a token comes from.
        """
        if cited is not None and not self.tokenizer.is_fast:
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not tell which characters a token comes from, which the "
                "highlight needs: use a model with a tokenizer.json, or give no highlight"
            )
        ids: list[NDArray[np.int64]] = []
        segments: list[NDArray[np.int64]] = []
        highlights: list[NDArray[np.int8]] = []
        for start in range(0, len(pairs), TEXTS_TOKENIZED_AT_ONCE):
            chunk = pairs[start : start + TEXTS_TOKENIZED_AT_ONCE]
            encoded = self._encode(
                [query for query, _ in chunk], [item for _, item in chunk], offsets=cited is not None
            )
            ids.extend(np.asarray(one, np.int64) for one in encoded["input_ids"])
            if self.has_segments:
                segments.extend(np.asarray(one, np.int64) for one in encoded["token_type_ids"])
            elif self.tells_item_tokens:
                segments.extend(
                    np.array([of == 1 for of in encoded.sequence_ids(row)], np.int64) for row in range(len(chunk))
                )
            if cited is not None:
                highlights.extend(
                    _highlight(encoded.sequence_ids(row), encoded["offset_mapping"][row], cited[start + row])
                    for row in range(len(chunk))
                )
        return TokenLists(ids, segments if self.tells_item_tokens else None, None if cited is None else highlights)

    def padded(self, lists: TokenLists, rows: Sequence[int] | NDArray[np.int64]) -> Tokens:
        """Some of the texts as one batch."""
        padding_id = self.tokenizer.pad_token_id or 0
        return Tokens(
            padded_to_longest([lists.ids[row] for row in rows], padding_id),
            padded_to_longest([np.ones(len(lists.ids[row]), np.bool_) for row in rows], False),
            None if lists.segments is None else padded_to_longest([lists.segments[row] for row in rows], 0),
        )

    def _encode(self, first: list[str], second: list[str] | None = None, *, offsets: bool = False) -> Any:
        return self.tokenizer(
            first,
            second,
            truncation="longest_first",
            max_length=self.max_tokens,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=self.has_segments and second is not None,
            return_offsets_mapping=offsets,
        )


def load_encoder(name_or_path: str, *, max_tokens: int) -> tuple[nn.Module, TextReader]:
    """An encoder of this machine in float32, without a pooler, and its reader.

    Args:
        name_or_path: a packaged name, or the path of a Hugging Face folder.
        max_tokens: read of a text or of a pair; the model's own limit where that is lower.

    Raises:
        ValueError: there is no such model here, it is no encoder, or its weights are incomplete.
    """
    files = find_model_files(name_or_path)
    if files.gguf_file is not None:
        raise ValueError(
            f"{files.model_id} is a language model that reads from left to right; a student needs an encoder. "
            "Possible: minilm, mpnet, or the path of a Hugging Face folder of a BERT-like model."
        )
    with quiet():
        encoder, report = AutoModel.from_pretrained(
            files.folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
    absent = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if absent or encoder.config.is_encoder_decoder:
        what = f"its weights lack {', '.join(absent[:3])}" if absent else "it is an encoder with a decoder"
        raise ValueError(f"{files.folder}: cannot be a student: {what}. Use a complete BERT-like encoder.")
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # nothing reads it; it would be saved, and moved by weight decay
    limit = min(max_tokens, encoder.config.max_position_embeddings, tokenizer.model_max_length)
    has_segments = "token_type_ids" in tokenizer.model_input_names and getattr(encoder.config, "type_vocab_size", 0) > 1
    return encoder, TextReader(tokenizer, max_tokens=limit, has_segments=has_segments)


def save_encoder(encoder: nn.Module, reader: TextReader, folder: Path) -> None:
    """Write a Hugging Face folder that `load_encoder` and `load_backbone` read."""
    with quiet():
        encoder.save_pretrained(folder)  # type: ignore[operator]
    reader.tokenizer.save_pretrained(folder)


def padded_to_longest(rows: Sequence[NDArray[Any]], padding: int | bool) -> Tensor:
    """Stack arrays of several lengths, padded on the right. [N, L]"""
    padded_NL = np.full((len(rows), max(len(row) for row in rows)), padding, rows[0].dtype)
    for place, row in enumerate(rows):
        padded_NL[place, : len(row)] = row
    return torch.from_numpy(padded_NL)


def _highlight(sides: list[int | None], offsets: list[Span], cited: CitedSpans | None) -> NDArray[np.int8]:
    """Of each token of a pair: does it overlap a cited span of its side?"""
    if cited is None:
        return np.full(len(sides), UNKNOWN, np.int8)
    return np.array(
        [
            UNKNOWN if side is None else any(first < end and start < last for first, last in cited[side])
            for side, (start, end) in zip(sides, offsets, strict=True)
        ],
        np.int8,
    )
