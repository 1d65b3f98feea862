"""Language models that continue text: loading one of this machine, and many token sequences that grow together.

A prompt's first part is the same for every pair: its keys and values are computed once (`prefix`) and copied to the
rows. Rows may take pieces of different lengths at once: shorter ones are padded on the left and the padding is masked,
so a row's logits do not depend on its neighbours (but for the last digits of float32).

Letters: B rows, L tokens of a piece, S tokens so far with padding, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GgufConfig

from embedders.backbone import quiet
from embedders.model_files import find_model_files


@dataclass(frozen=True)
class CausalLM:
    """A decoder with its tokenizer.

    Attributes:
        model_id: the packaged name, or the name of the folder or file.
        model: a transformers causal language model, in eval mode.
        tokenizer: its tokenizer; must give back the text of its tokens letter by letter.
    """

    model_id: str
    model: Any
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def tokens(self, text: str) -> list[int]:
        """Token ids of a piece of text, without any special token."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def opening_tokens(self, text: str) -> list[int]:
        """Token ids of a text that opens a sequence: with the special token that stands first, where there is one."""
        ids = self.tokenizer(text)["input_ids"]
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    @property
    def end(self) -> list[int]:
        """The token that ends an answer; empty where the tokenizer has none."""
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    @cached_property
    def vocabulary(self) -> tuple[str | None, ...]:
        """Text of each token, of V; None for special tokens and those the tokenizer does not know."""
        special = set(self.tokenizer.all_special_ids)
        known = min(len(self.tokenizer), self.vocabulary_size)
        texts = self.tokenizer.batch_decode([[number] for number in range(known)], clean_up_tokenization_spaces=False)
        return (
            *(None if number in special else text for number, text in enumerate(texts)),
            *[None] * (self.vocabulary_size - known),
        )

    @property
    def vocabulary_size(self) -> int:
        """V: logits of a position."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text; the tokens of one letter add it with the last of them."""
        pieces, before = [], ""
        for end in range(1, len(ids) + 1):
            after = self.text(ids[:end])
            if after.endswith("\ufffd") and end < len(ids):  # a letter whose other bytes are still to come
                pieces.append("")
                continue
            pieces.append(after[len(before) :])
            before = after
        return pieces

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens."""
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def load_causal_lm(
    name_or_path: str,
    *,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str | None = None,
) -> CausalLM:
    """A model of this machine, by the same names as `embedders.backbone.load_backbone`.

    Args:
        name_or_path: a name of `PACKAGED_MODELS`, the path of a Hugging Face folder, or of a GGUF file.
        dtype: of weights and forward pass; auto = bfloat16 on a GPU, float32 on a CPU.
        device: a torch device; default is the GPU where there is one.

    Raises:
        ValueError: there is no such model on this machine (nothing is ever downloaded), or weights of it are missing.
    """
    files = find_model_files(name_or_path)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype == "auto":
        dtype = "float32" if chosen.type == "cpu" else "bfloat16"
    source = {"local_files_only": True, **({"gguf_file": files.gguf_file} if files.gguf_file else {})}
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(files.folder, **source)
        # blocks of a GGUF file are unpacked: packed ones can neither be trained nor saved
        unpacked = {"quantization_config": GgufConfig(dequantize=True)} if files.gguf_file else {}
        model, report = AutoModelForCausalLM.from_pretrained(
            files.folder, dtype=getattr(torch, dtype), output_loading_info=True, **source, **unpacked
        )
    if absent := sorted(report["missing_keys"]):
        raise ValueError(
            f"load_causal_lm: the weights of {files.folder} lack {len(absent)} tensors ({', '.join(absent[:3])}, ...), "
            "which would be left random. This needs a decoder with its language-model head, not an encoder."
        )
    return CausalLM(files.model_id, model.eval().to(chosen), tokenizer)


class GrowingRows:
    """B token sequences over one key-value cache.

    Attributes:
        logits_BV: float32, of the token after each row's last one.
    """

    def __init__(self, model: Any, cache: DynamicCache, mask_BS: Tensor, logits_BV: Tensor) -> None:
        self._model, self._cache, self._mask_BS, self.logits_BV = model, cache, mask_BS, logits_BV

    @classmethod
    def prefix(cls, lm: CausalLM, ids: Sequence[int]) -> Self:
        """One row with the tokens that all sequences begin with; at least one."""
        if not ids:
            raise ValueError("GrowingRows: the prefix has no tokens")
        nothing = torch.zeros((1, 0), dtype=torch.long, device=lm.device)
        row = cls(lm.model, DynamicCache(config=lm.model.config), nothing, torch.empty(0))
        row.feed([list(ids)])
        return row

    def __len__(self) -> int:
        return len(self._mask_BS)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, those of the prefix included."""
        lengths: list[int] = self._mask_BS.sum(dim=1).tolist()
        return lengths

    def repeated(self, times: int) -> "GrowingRows":
        """A copy with every row that often, one beside the other; this one stays as it is."""
        cache = copy.deepcopy(self._cache)
        if times > 1:
            cache.batch_repeat_interleave(times)
        return GrowingRows(
            self._model,
            cache,
            self._mask_BS.repeat_interleave(times, dim=0),
            self.logits_BV.repeat_interleave(times, dim=0),
        )

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be kept more than once."""
        rows_B = torch.tensor(list(rows), dtype=torch.long, device=self._mask_BS.device)
        self._cache.batch_select_indices(rows_B)
        self._mask_BS, self.logits_BV = self._mask_BS[rows_B], self.logits_BV[rows_B]

    @torch.inference_mode()
    def feed(self, pieces: Sequence[Sequence[int]]) -> None:
        """Append tokens to each row, none to some; `logits_BV` of a row without new tokens stays what it was."""
        assert len(pieces) == len(self), f"{len(pieces)} pieces for {len(self)} rows"
        lengths = [len(piece) for piece in pieces]
        longest = max(lengths)
        if longest == 0:
            return
        device = self._mask_BS.device
        # padding on the left: the last column is every row's newest token
        ids_BL = torch.tensor([[0] * (longest - len(piece)) + list(piece) for piece in pieces], device=device)
        mask_BL = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths], device=device)
        position_BL = (self._mask_BS.sum(dim=1, keepdim=True) + mask_BL.cumsum(dim=1) - 1).clamp(min=0)
        self._mask_BS = torch.cat([self._mask_BS, mask_BL], dim=1)
        out = self._model(
            input_ids=ids_BL,
            attention_mask=self._mask_BS,
            position_ids=position_BL,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor([longest - 1], device=device),  # by number: see `embedders.answer_loss`
        )
        fresh_BV = out.logits[:, -1].float()
        if self.logits_BV.numel() and min(lengths) == 0:
            has_new_B1 = torch.tensor(lengths, device=device).unsqueeze(1) > 0
            fresh_BV = torch.where(has_new_B1, fresh_BV, self.logits_BV)
        self.logits_BV = fresh_BV
