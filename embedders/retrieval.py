"""How well user vectors find items: H@K, R@K, N@K and MRR over the full ranking of all items.

LEARN, arXiv 2405.03988, judges its embeddings so, and so do the data sets that it is compared on: every item of the
catalogue is ranked for every user by dot product, none is sampled.

What we keep: full ranking, several targets a user or one, and the rank of the official code, one more than the number
of items that score strictly higher. What differs, or is our proposal:
    H@K is the share of users with at least one target in the top K [NF->P]. The paper prints H@K below R@K, which that
        definition, the usual one, can never give, and does not say what its H counts. The micro recall stands beside
        them: it can lie on either side of R@K, so one of the two columns may be that.
    another way out of ties, and counts that show how much ties decided: `embedders.target_ranks` [NF->P]

Letters: U users, V users with a target, N items, d their width, T distinct targets of all users, K the cutoff.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedders.histories import Sequences
from embedders.target_ranks import TargetRanks, Ties, rank_targets, rank_targets_in_lists

CUTOFFS = (10, 50, 100, 200)
"""The paper's: 50 and 100 on its own log; 10, 50 and 200 on Amazon Books."""


@dataclass(frozen=True)
class CutoffMetrics:
    """The metrics of the top K: overall, and of each user with a target, so that two models can be compared in pairs.

        H@K    share of users with a target in the top K
        R@K    mean over users of the share of their targets in the top K; of more than K targets it cannot reach 1
        N@K    mean over users of DCG / its value with all targets in front, DCG = sum_{t in top K} 1 / log2(1 + rank_t)
        MRR@K  mean over users of 1 / rank of their best target, 0 if that is beyond K

    Overall values are in [0, 1], and null where no user has a target.
    """

    k: int
    hit_rate: float | None
    recall: float | None
    micro_recall: float | None
    """Targets in the top K over all targets: each target counts alike, where R@K counts each user alike."""
    ndcg: float | None
    mrr: float | None
    hits_V: NDArray[np.int64]
    """Targets in the top K: H@K is the share of users with any."""
    recall_V: NDArray[np.float64]
    ndcg_V: NDArray[np.float64]
    reciprocal_rank_V: NDArray[np.float64]


@dataclass(frozen=True)
class RetrievalMetrics:
    """What a ranking is worth, who was judged, and (in `ranks`) how far ties decided it."""

    cutoffs: tuple[CutoffMetrics, ...]
    mrr: float | None
    """Of the whole ranking, as the official code has it. Null for lists, which end, and where no user has a target."""
    ranks: TargetRanks

    @property
    def num_users(self) -> int:
        """Users with a target: row `users_V[v]` of the user vectors has the v-th of the per-user values."""
        return len(self.ranks.users_V)

    @property
    def num_targets(self) -> int:
        """Distinct targets of all users."""
        return len(self.ranks.ranks_T)

    @property
    def num_users_skipped(self) -> int:
        """Users without a target."""
        return self.ranks.num_users_skipped

    def at(self, k: int) -> CutoffMetrics:
        """The metrics of the top `k`.

        Raises:
            KeyError: `k` is not one of the cutoffs asked for.
        """
        for metrics in self.cutoffs:
            if metrics.k == k:
                return metrics
        raise KeyError(f"no metrics at {k}: the cutoffs were {', '.join(str(one.k) for one in self.cutoffs)}")


def retrieval_metrics(
    users_UD: NDArray[np.float32],
    items_ND: NDArray[np.float32],
    targets: Sequences,
    history: Sequences | None = None,
    *,
    cutoffs: tuple[int, ...] = CUTOFFS,
    ties: Ties = "optimistic",
) -> RetrievalMetrics:
    """Rank all items for each user by dot product; see where the targets are.

    Args:
        users_UD: one vector a user.
        items_ND: the gallery; it needs no unit norm.
        targets: of each user, the items to be found; a repeated one counts once, a user without is skipped and counted.
        history: filtered protocol: of each user, items taken out of the gallery. A target stays in it, even one met
            before. None, the official code's protocol: nothing is taken out.
        cutoffs: the K of the metrics.
        ties: see `embedders.target_ranks.Ties`. By either, a user for whom all items score the same gets the mid-rank,
            and is counted in `ranks.num_users_constant`.

    Raises:
        ValueError: widths or numbers of users differ, a vector is not finite, an entry is not an item, or a cutoff is
            not positive.
    """
    _check(cutoffs)
    return _metrics(rank_targets(users_UD, items_ND, targets, history, ties=ties), cutoffs, ranks_end=False)


def retrieval_metrics_of_lists(
    lists_UK: NDArray[np.int64], targets: Sequences, *, cutoffs: tuple[int, ...] = CUTOFFS
) -> RetrievalMetrics:
    """The same metrics of lists of items, such as an index finds. A target beyond the list is a miss.

    Args:
        lists_UK: rows of items for each user, best first, none twice; -1 where the index found no more. For the
            filtered protocol, have the search leave the history out, but for targets.
        targets: of each user, the items to be found; a repeated one counts once, a user without is skipped and counted.
        cutoffs: the K of the metrics; lists must be as long.

    Raises:
        ValueError: numbers of users differ, the lists are shorter than a cutoff or have an item twice, or a target is
            negative.
    """
    _check(cutoffs)
    ranks = rank_targets_in_lists(lists_UK, targets)
    if max(cutoffs) > lists_UK.shape[1]:
        raise ValueError(
            f"cutoff {max(cutoffs)} needs lists of as many items, got {lists_UK.shape[1]}: search for more"
        )
    return _metrics(ranks, cutoffs, ranks_end=True)


def _check(cutoffs: tuple[int, ...]) -> None:
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"cutoffs must be whole numbers from 1, got {cutoffs}")


def _metrics(ranks: TargetRanks, cutoffs: tuple[int, ...], *, ranks_end: bool) -> RetrievalMetrics:
    starts_V = np.cumsum(ranks.num_targets_V) - ranks.num_targets_V
    best_V = np.minimum.reduceat(ranks.ranks_T, starts_V) if len(starts_V) else np.empty(0)
    return RetrievalMetrics(
        cutoffs=tuple(_at(k, ranks, best_V) for k in cutoffs),
        mrr=None if ranks_end else _mean(1 / best_V),
        ranks=ranks,
    )


def _at(k: int, ranks: TargetRanks, best_V: NDArray[np.float64]) -> CutoffMetrics:
    num_users = len(ranks.users_V)
    is_found_T = ranks.ranks_T <= k
    owner_F = np.repeat(np.arange(num_users), ranks.num_targets_V)[is_found_T]
    hits_V = np.bincount(owner_F, minlength=num_users)
    dcg_V = np.bincount(owner_F, 1 / np.log2(1 + ranks.ranks_T[is_found_T]), minlength=num_users)
    best_dcg_K = np.cumsum(1 / np.log2(1 + np.arange(1, k + 1)))
    recall_V = hits_V / ranks.num_targets_V
    ndcg_V = dcg_V / best_dcg_K[np.minimum(ranks.num_targets_V, k) - 1]
    reciprocal_rank_V = np.where(best_V <= k, 1 / best_V, 0.0)
    return CutoffMetrics(
        k=k,
        hit_rate=_mean(hits_V > 0),
        recall=_mean(recall_V),
        micro_recall=_mean(is_found_T),
        ndcg=_mean(ndcg_V),
        mrr=_mean(reciprocal_rank_V),
        hits_V=hits_V,
        recall_V=recall_V,
        ndcg_V=ndcg_V,
        reciprocal_rank_V=reciprocal_rank_V,
    )


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None
