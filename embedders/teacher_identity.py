"""Identity of a language model in memory: what it computes and how it cuts text, whatever folder or file it came from.

Answers are kept under it: equal identities give equal answers, and another weight, another number format or another
tokenizer gives another identity.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch

_NOT_COMPUTED_WITH = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
"""Parts of a configuration that say where a model came from; the number format is that of the weights."""


def weights_sha256(model: Any) -> str:
    """Hash of what differs from the architecture's defaults, and of every weight with its number format.

    Args:
        model: a transformers model.
    """
    described = {name: value for name, value in model.config.to_diff_dict().items() if name not in _NOT_COMPUTED_WITH}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        # as bytes: numpy knows no bfloat16
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of the vocabulary, the rules that cut text, and the tokens that begin and end it.

    Args:
        tokenizer: a transformers tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    for passing in ("padding", "truncation"):  # of the last call
        rules.pop(passing, None)
    told = [rules, sorted(tokenizer.get_vocab().items()), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def brands_sha256(brands: Iterable[str]) -> str:
    """Hash of the names that a reader of titles knows, in whatever order."""
    return hashlib.sha256("\n".join(sorted(brands)).encode()).hexdigest()
