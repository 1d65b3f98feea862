"""From token states to one vector per text, and from texts to batches of like length.

Letters: N texts of a batch, L tokens, D width.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def masked_mean(hidden_NLD: Tensor, mask_NL: Tensor) -> Tensor:
    """Mean over the tokens whose mask is true (LEARN, content extraction).

    What stands at the other positions has no influence, not even NaN.

    Args:
        hidden_NLD: token states, any float type.
        mask_NL: bool, true for the tokens of the text; at least one a row.

    Returns:
        [N, D] float32.
    """
    kept_NLD = hidden_NLD.float().masked_fill(~mask_NL.unsqueeze(-1), 0.0)
    return kept_NLD.sum(dim=1) / mask_NL.sum(dim=1, keepdim=True)


def without_first(mask_NL: Tensor) -> Tensor:
    """The mask without each text's first token; a text of one token keeps it.

    Decoders park attention on the first token, whose state then outgrows the others and says nothing of the text; with
    it, the means of all texts point the same way. `[NF->P]`: LEARN reads every token.
    """
    first_NL = mask_NL.cumsum(dim=1) == 1
    return mask_NL & ~(first_NL & (mask_NL.sum(dim=1, keepdim=True) > 1))


def unit_norm(vectors_ND: Tensor) -> Tensor:
    """Each row scaled to length 1; a row of zeros stays zero, and the lake refuses it."""
    return torch.nn.functional.normalize(vectors_ND, dim=1)


def batches_by_length(
    lengths_N: NDArray[np.int64], batch_size: int, most_tokens: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Positions of texts of like length together, so that little is padding.

    The longest come first: what does not fit into memory fails at once, and the time left is not underestimated.

    Args:
        lengths_N: tokens of each text, at least 1.
        batch_size: most texts of a batch.
        most_tokens: most tokens of a batch, padding included; a longer text is a batch by itself.
    """
    order = np.argsort(-lengths_N, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths_N[order[start]])
        size = batch_size if most_tokens is None else max(1, min(batch_size, most_tokens // longest))
        yield order[start : start + size]
        start += size


def padded(token_ids: list[NDArray[np.int64]], padding_id: int) -> tuple[Tensor, Tensor]:
    """Stack texts of several lengths, padded on the right.

    Right padding is safe for decoders too: under a causal mask no token sees what follows, and positions count
    from the first token of the text.

    Returns:
        ids_NL int64, mask_NL bool.
    """
    longest = max(len(ids) for ids in token_ids)
    ids_NL = torch.full((len(token_ids), longest), padding_id, dtype=torch.int64)
    mask_NL = torch.zeros((len(token_ids), longest), dtype=torch.bool)
    for row, ids in enumerate(token_ids):
        ids_NL[row, : len(ids)] = torch.from_numpy(ids)
        mask_NL[row, : len(ids)] = True
    return ids_NL, mask_NL
