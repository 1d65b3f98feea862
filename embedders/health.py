"""How healthy an embedding model is while it is trained: do its vectors, its attention and its words still tell apart?

    KARMA, arXiv:2603.22779: tuned on clicks alone, a language model collapses. Its attention maps turn into barcodes
    (a few positions take most of the weight of every row) and its vectors forget what titles say.

What we keep: the idea, and JS@K as the name of title similarity. What is our proposal [NF->P], because the paper gives
a picture of the barcodes and no formula for any of it: every measure here.

    vectors     participation ratio and effective rank: in how many directions do they spread?
                uniformity and alignment (Wang & Isola 2020, arXiv:2005.10242): over the sphere, and user beside target
    attention   mass of the heaviest columns of an attention map, and more (`embedders.attention_maps`)
    titles      JS@K: do the items found have titles like the target's? (words of the model: `title_perplexity`)

Letters: N vectors, D width, B histories, L positions, U users, K items found.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from embedders.histories import Sequences
from embedders.title_words import jaccard, title_words

MOST_VECTORS = 2048
"""Uniformity of more vectors is that of so many of them: two million pairs."""

SAME_VECTORS = 1e-12
"""Variance below this share of the mean squared length is rounding: the vectors are all the same."""

SCORES_AT_ONCE = 16_000_000
"""Users times items whose scores are held at once: 64 MB."""


class VectorHealth(NamedTuple):
    """The four measures of vectors, under the names that the training curves have; None: too few vectors."""

    participation_ratio: float | None
    effective_rank: float | None
    uniformity: float | None
    alignment: float | None


UNMEASURED = VectorHealth(None, None, None, None)


def vector_health(users_ND: NDArray[np.float32], targets_ND: NDArray[np.float32], *, seed: int = 0) -> VectorHealth:
    """All four measures of user vectors, each beside the vector of an item that its user went on to want.

    Args:
        users_ND: one user a row.
        targets_ND: the item vector of a held-out target of the same user.
        seed: of the sample that uniformity is computed on.
    """
    if len(users_ND) != len(targets_ND):
        raise ValueError(f"vector_health: {len(users_ND)} user vectors, but {len(targets_ND)} vectors of their targets")
    several = len(users_ND) >= 2
    return VectorHealth(
        participation_ratio=participation_ratio(users_ND) if several else None,
        effective_rank=effective_rank(users_ND) if several else None,
        uniformity=uniformity(users_ND, seed=seed) if several else None,
        alignment=alignment(users_ND, targets_ND) if len(users_ND) else None,
    )


def participation_ratio(vectors_ND: NDArray[np.float32]) -> float:
    """How many directions carry the variance: (sum lambda)^2 / sum lambda^2 of the covariance's eigenvalues.

    From 1 (all on one line) to the smaller of D and N - 1 (spread evenly); 0 where all vectors are the same.
    """
    lambda_D = _eigenvalues(vectors_ND)
    return float(lambda_D.sum() ** 2 / (lambda_D**2).sum()) if lambda_D.any() else 0.0


def effective_rank(vectors_ND: NDArray[np.float32]) -> float:
    """exp of the entropy of the covariance's eigenvalues, scaled to sum 1 (Roy & Vetterli 2007, of the covariance).

    Range as of `participation_ratio`, which it never falls below: it gives more weight to faint directions.
    """
    lambda_D = _eigenvalues(vectors_ND)
    if not lambda_D.any():
        return 0.0
    share_D = lambda_D[lambda_D > 0] / lambda_D.sum()
    return float(np.exp(-(share_D * np.log(share_D)).sum()))


def _eigenvalues(vectors_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the covariance; all zero where nothing but rounding varies."""
    if len(vectors_ND) < 2:
        raise ValueError(f"the spread of vectors needs at least 2 of them, got {len(vectors_ND)}")
    exact_ND = vectors_ND.astype(np.float64)
    centred_ND = exact_ND - exact_ND.mean(axis=0)
    eigenvalues_D: NDArray[np.float64] = np.linalg.eigvalsh(centred_ND.T @ centred_ND / (len(centred_ND) - 1))
    if eigenvalues_D.sum() <= SAME_VECTORS * (exact_ND**2).sum() / len(exact_ND):
        return np.zeros_like(eigenvalues_D)
    return eigenvalues_D.clip(min=0.0)  # rounding leaves tiny negative ones


def uniformity(vectors_ND: NDArray[np.float32], *, seed: int = 0, most_vectors: int = MOST_VECTORS) -> float:
    """log of the mean over pairs of exp(-2 |x - y|^2): 0 where all are the same, lower the more evenly they spread.

    Random unit vectors of many dimensions come near -4.

    Args:
        vectors_ND: unit vectors.
        seed: of the sample, where there are more than `most_vectors`.
        most_vectors: all pairs of so many vectors are looked at.
    """
    if len(vectors_ND) < 2:
        raise ValueError(f"uniformity is of pairs and needs at least 2 vectors, got {len(vectors_ND)}")
    if len(vectors_ND) > most_vectors:
        chosen = np.random.default_rng(seed).choice(len(vectors_ND), most_vectors, replace=False, shuffle=False)
        vectors_ND = vectors_ND[np.sort(chosen)]
    exact_ND = vectors_ND.astype(np.float64)
    squares_N = (exact_ND**2).sum(axis=1)
    distance_NN = (squares_N[:, None] + squares_N - 2 * exact_ND @ exact_ND.T).clip(min=0.0)
    first, second = np.triu_indices(len(exact_ND), k=1)
    return min(0.0, float(np.log(np.exp(-2 * distance_NN[first, second]).mean())))


def alignment(users_ND: NDArray[np.float32], targets_ND: NDArray[np.float32]) -> float:
    """Mean |u - v|^2 over pairs of a user and what they wanted: 0 where they coincide, 2 where they are unrelated."""
    return float(((users_ND.astype(np.float64) - targets_ND) ** 2).sum(axis=1).mean())


def title_similarity(
    users_UD: NDArray[np.float32],
    items_ND: NDArray[np.float32],
    targets: Sequences,
    titles: Sequence[str],
    *,
    k: int = 50,
) -> float | None:
    """JS@K: how like the target's title are the titles of the K items nearest to the user's vector?

        mean over targets of  1/K sum_{i in top K} |words(target) & words(i)| / |words(target) | words(i)|

    Words are those of `embedders.title_words`. The target counts if it is among the K. An item without a word is like
    nothing, and a target without one is left out.

    Args:
        users_UD: user vectors, one a sequence of `targets`.
        items_ND: of the whole catalogue; all of it is searched, by dot product.
        targets: what each user went on to want, rows of the catalogue.
        titles: of the catalogue, N.
        k: items found; fewer where the catalogue is smaller.

    Returns:
        In [0, 1]; None where no target has a word.
    """
    if len(users_UD) != len(targets) or len(items_ND) != len(titles):
        raise ValueError(
            f"title_similarity: {len(users_UD)} user vectors for targets of {len(targets)} users, {len(items_ND)} item "
            f"vectors for {len(titles)} titles; expected one vector each"
        )
    words: dict[int, frozenset[str]] = {}

    def words_of(row: int) -> frozenset[str]:
        if row not in words:
            words[row] = title_words(titles[row])
        return words[row]

    similarities = []
    at_once = max(1, SCORES_AT_ONCE // max(1, len(items_ND)))
    for start in range(0, len(users_UD), at_once):
        for user, found in enumerate(_nearest(users_UD[start : start + at_once], items_ND, k), start):
            found_words = [words_of(row) for row in found.tolist()]
            for target in map(words_of, targets.of(user).tolist()):
                if target:
                    shared = math.fsum(jaccard(target, other) for other in found_words)
                    similarities.append(shared / len(found_words))
    return math.fsum(similarities) / len(similarities) if similarities else None


def _nearest(users_UD: NDArray[np.float32], items_ND: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Rows of the k items with the largest dot products, in no order. [U, k]"""
    scores_UN = users_UD @ items_ND.T
    if k >= len(items_ND):
        return np.broadcast_to(np.arange(len(items_ND)), scores_UN.shape)
    return np.argpartition(scores_UN, len(items_ND) - k, axis=1)[:, -k:]


@torch.no_grad()
def title_perplexity(
    model: Any,
    titles: Sequence[Sequence[int]],
    *,
    opening: Sequence[int],
    output: nn.Module | None = None,
    batch_size: int = 16,
) -> float | None:
    """exp of the mean negative log likelihood of the titles' tokens: how well does the model still speak?

    Args:
        model: a transformers causal language model, or the body of one, then with its `output`; on any device.
        titles: token ids of each, without special tokens; empty ones are passed over.
        opening: tokens before each title, not counted themselves (`CausalLM.opening_tokens("")`). Where the model has
            none, a title's first token stands in for it and is not counted either.
        output: the layer from the body's states to logits.
        batch_size: titles of a forward pass.

    Returns:
        At least 1; None where there is no token to count.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss_sum, num_tokens, start_of = 0.0, 0, max(1, len(opening))
    whole = sorted((([*opening, *title]) for title in titles if len(title)), key=len)
    for start in range(0, len(whole), batch_size):
        batch = whole[start : start + batch_size]
        longest = max(map(len, batch))
        ids_BL = torch.tensor([ids + [0] * (longest - len(ids)) for ids in batch], device=device)
        is_there_BL = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch], device=device)
        out = model(input_ids=ids_BL, attention_mask=is_there_BL, use_cache=False)
        logits_BLV = out.logits if output is None else output(out.last_hidden_state)
        counted_BL = is_there_BL[:, start_of:].bool()
        logits_TV = logits_BLV[:, start_of - 1 : -1][counted_BL].float()
        loss_sum += float(nn.functional.cross_entropy(logits_TV, ids_BL[:, start_of:][counted_BL], reduction="sum"))
        num_tokens += int(counted_BL.sum())
    model.train(was_training)
    return math.exp(loss_sum / num_tokens) if num_tokens else None
