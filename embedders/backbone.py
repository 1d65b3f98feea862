"""Frozen language models that turn text into one vector (LEARN, content extraction).

    text -> tokens (at most 500) -> last-layer states -> mean over the text's tokens -> unit norm

Encoder or decoder, Hugging Face folder or GGUF file: all take the same road. What we keep of LEARN (arXiv 2405.03988):
frozen weights, 500 tokens, last layer, attention-masked mean, L2 norm, each item encoded alone. What differs: the
default is a 22M-parameter sentence encoder that fits on two cores, not a 7B decoder; batches are sorted by length and
equal texts are encoded once, neither of which the vectors show. `[NF->P]`: a layer below the top can be read, and the
first token left out of the mean; both help small decoders, whose last layer is turned to the next word.

The same texts in the same call give the same bytes. A text encoded beside others may differ from the text encoded
alone in the last digits, because batches of another shape add up in another order (float32: below 1e-5 a component).
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from embedders.fingerprint import Fingerprint, sha256_of_files
from embedders.hidden_layer import StatesOf, last_layer, layer_below
from embedders.model_files import ModelFiles, find_model_files
from embedders.pooling import batches_by_length, masked_mean, padded, unit_norm, without_first

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: it reads this once

from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)

MAX_TOKENS = 500
"""LEARN's limit. What a text says later is not read."""

Pooling = Literal["mean", "mean_without_first"]

TEXTS_TOKENIZED_AT_ONCE = 4096
TOKENS_PER_PASS_ON_CPU = 2048
"""More no longer fit into the caches: 64 texts of 200 tokens at once take a third more time than ten by ten."""


class Backbone(Protocol):
    """Anything that turns texts into vectors of one space."""

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        ...

    def encode(
        self, texts: Sequence[str], batch_size: int = 64, on_progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Unit-norm vectors [N, dimension] in the order of the texts; `on_progress(n)` is told of n more texts."""
        ...

    def fingerprint(self, prompt: str) -> Fingerprint:
        """Identity of the vectors of texts written with this version of a prompt."""
        ...


def load_backbone(
    name_or_path: str,
    *,
    max_tokens: int = MAX_TOKENS,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    layer: int | None = None,
    pooling: Pooling = "mean",
    device: str | None = None,
) -> "LocalBackbone":
    """A model of this machine. Weights are read when the first text is encoded, not before.

    Args:
        name_or_path: a name of `PACKAGED_MODELS`, the path of a Hugging Face folder, or of a GGUF file. A folder's own
            pooling settings are not read.
        max_tokens: tokens read of a text; the model's own limit where that is lower.
        dtype: of the forward pass; auto = bfloat16 on a GPU, float32 on a CPU. It is part of the fingerprint: name one
            where machines of both kinds write to one table.
        layer: whose states are read, 1 to the number of layers; None = the last. Layers above are not computed.
        pooling: the mean over all tokens of a text, or over all but the first.
        device: a torch device; default is the GPU where there is one.

    Raises:
        ValueError: there is no such model on this machine (nothing is ever downloaded), or no such layer.
    """
    if max_tokens < 1:
        raise ValueError(f"load_backbone: max_tokens must be 1 or more, got {max_tokens}")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype == "auto":
        dtype = "float32" if chosen.type == "cpu" else "bfloat16"
    files = find_model_files(name_or_path)
    return LocalBackbone(files, max_tokens=max_tokens, dtype=dtype, layer=layer, pooling=pooling, device=chosen)


class LocalBackbone:
    """A transformer from a folder or a GGUF file; see `load_backbone`."""

    def __init__(
        self,
        files: ModelFiles,
        *,
        max_tokens: int,
        dtype: Literal["float32", "bfloat16"],
        layer: int | None,
        pooling: Pooling,
        device: torch.device,
    ) -> None:
        self.files, self.device, self.dtype, self.pooling = files, device, dtype, pooling
        with quiet():
            config = AutoConfig.from_pretrained(files.folder, **self._source())
        text_config = config.get_text_config()
        self.dimension: int = text_config.hidden_size
        positions: int | None = getattr(text_config, "max_position_embeddings", None)
        self.max_tokens = min(max_tokens, positions or max_tokens)
        self.num_layers: int = text_config.num_hidden_layers
        if layer is not None and not 1 <= layer <= self.num_layers:
            raise ValueError(f"{files.model_id} has layers 1 to {self.num_layers}; there is no layer {layer}")
        self.layer = None if layer == self.num_layers else layer

    def fingerprint(self, prompt: str) -> Fingerprint:
        """Identity of the vectors of texts written with this version of a prompt. Reads the files, loads nothing."""
        return Fingerprint(
            model_id=self.files.model_id,
            weights_sha256=sha256_of_files(self.files.weights),
            tokenizer_sha256=sha256_of_files(self.files.tokenizer),
            prompt=prompt,
            pooling=self._pooling_described(),
            dimension=self.dimension,
            normalisation="l2",
            dtype=self.dtype,
        )

    def encode(
        self, texts: Sequence[str], batch_size: int = 64, on_progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Vectors of texts, each encoded alone.

        Args:
            texts: N texts. Equal ones are encoded once.
            batch_size: most texts per forward pass; a CPU takes fewer of long ones.
            on_progress: called after every batch with the number of texts it finished.

        Returns:
            [N, dimension] float32, unit norm, in the order of the texts.

        Raises:
            ValueError: a text has no tokens at all, e.g. an empty one under a tokenizer without special tokens.
        """
        distinct = list(dict.fromkeys(texts))
        number_of = {text: number for number, text in enumerate(distinct)}
        numbers_N = np.fromiter((number_of[text] for text in texts), np.int64, count=len(texts))
        if not distinct:
            return np.empty((0, self.dimension), np.float32)

        token_ids = self._tokenize(distinct)
        lengths = np.fromiter((len(ids) for ids in token_ids), np.int64, count=len(token_ids))
        if not lengths.all():
            empty = distinct[int(np.argmin(lengths))]
            raise ValueError(
                f"{self.files.model_id}: {int((lengths == 0).sum())} of {len(distinct)} texts have no tokens, "
                f"e.g. {empty[:40]!r}; leave texts without content out"
            )
        times_wanted = np.bincount(numbers_N)
        vectors = np.empty((len(distinct), self.dimension), np.float32)
        most_tokens = TOKENS_PER_PASS_ON_CPU if self.device.type == "cpu" else None
        for batch in batches_by_length(lengths, batch_size, most_tokens):
            vectors[batch] = self._forward([token_ids[number] for number in batch])
            if on_progress:
                on_progress(int(times_wanted[batch].sum()))
        return vectors[numbers_N]

    def _pooling_described(self) -> str:
        layer = "the last layer" if self.layer is None else f"layer {self.layer} of {self.num_layers}"
        left_out = "" if self.pooling == "mean" else " without the first token"
        return f"masked mean of {layer}{left_out}, {self.max_tokens} tokens"

    def _source(self) -> dict[str, Any]:
        return {"local_files_only": True, **({"gguf_file": self.files.gguf_file} if self.files.gguf_file else {})}

    @cached_property
    def _tokenizer(self) -> Any:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(self.files.folder, **self._source())
        tokenizer.truncation_side = "right"
        return tokenizer

    @cached_property
    def _states(self) -> StatesOf:
        model = self._model
        return last_layer(model) if self.layer is None else layer_below(model, self.layer, self.num_layers)

    @cached_property
    def _model(self) -> Any:
        with quiet():
            model, report = AutoModel.from_pretrained(
                self.files.folder,
                dtype=getattr(torch, self.dtype),
                output_loading_info=True,
                **self._source(),
            )
        # a pooler works on top of the last layer, which is all that is read
        absent = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
        if absent:
            raise ValueError(
                f"{self.files.folder}: the weights lack {len(absent)} tensors that the configuration asks for "
                f"({', '.join(absent[:3])}, ...), which would be left random. Save model and config.json together."
            )
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        model.config.use_cache = False  # a decoder would keep keys and values for tokens that never come
        logger.info(
            "%s: %s, %s M parameters, %s wide, at most %s tokens, %s on %s",
            self.files.model_id,
            type(model).__name__,
            f"{model.num_parameters() / 1e6:.1f}",
            self.dimension,
            self.max_tokens,
            self.dtype,
            self.device,
        )
        return model.eval().to(self.device)

    def _tokenize(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        tokens: list[NDArray[np.int64]] = []
        longest = min(self.max_tokens, self._tokenizer.model_max_length)
        for start in range(0, len(texts), TEXTS_TOKENIZED_AT_ONCE):
            encoded = self._tokenizer(
                list(texts[start : start + TEXTS_TOKENIZED_AT_ONCE]),
                truncation=True,
                max_length=longest,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            tokens.extend(np.asarray(ids, np.int64) for ids in encoded["input_ids"])
        return tokens

    def _forward(self, token_ids: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        # any id would do, as padding is masked; but RoBERTa counts positions by its own padding id
        padding_id = self._tokenizer.pad_token_id or 0
        ids_NL, mask_NL = (tensor.to(self.device) for tensor in padded(token_ids, padding_id))
        with torch.inference_mode():
            hidden_NLD = self._states(ids_NL, mask_NL.long())
            kept_NL = mask_NL if self.pooling == "mean" else without_first(mask_NL)
            return unit_norm(masked_mean(hidden_NLD, kept_NL)).cpu().numpy()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's progress bars and loading tables off the terminal; errors are raised all the same."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # reading GGUF draws a bar of its own
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        logger.debug("%s", said.getvalue())
