"""AUC, UAUC and WUAUC: exact, with ties at their average rank, and with every user left out counted.

    AUC    probability that a positive scores above a negative, over all pairs of the log
    UAUC   plain mean over users of the AUC of their own impressions
    WUAUC  the same mean, each user weighted by their impressions (the literature's GAUC)

A ranker never chooses between two users, so UAUC and WUAUC are the figures that follow what it can change; AUC also
rewards telling active users from idle ones. Every function here takes a frame and gives a frame or a number back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray


@dataclass(frozen=True)
class Auc:
    """Pooled AUC. `value` is null where the rows have one class only."""

    value: float | None
    num_impressions: int
    num_positives: int


@dataclass(frozen=True)
class UserAuc:
    """A mean of per-user AUCs, with what it leaves out: users whose impressions are all positive or all negative."""

    value: float | None
    num_users: int
    num_users_skipped: int
    num_impressions: int
    num_impressions_skipped: int
    num_positives: int
    num_positives_skipped: int

    @property
    def share_impressions_skipped(self) -> float:
        """Share of the impressions that belong to users left out, in [0, 1]."""
        return self.num_impressions_skipped / self.num_impressions if self.num_impressions else 0.0

    @property
    def share_positives_skipped(self) -> float:
        """Share of the positives that belong to users left out, in [0, 1]."""
        return self.num_positives_skipped / self.num_positives if self.num_positives else 0.0


def auc(predictions: pl.DataFrame, label: str, score: str) -> Auc:
    """Probability that a random positive scores above a random negative; a tie counts one half.

        AUC = (sum of the positives' ranks - P(P+1)/2) / (P N),   P positives, N negatives, ties at their average rank

    Args:
        predictions: one row per impression.
        label: Boolean column.
        score: numeric column; higher ranks first; any scale.

    Returns:
        value in [0, 1] (null when one class is missing), num_impressions, num_positives.

    Raises:
        ValueError: a score is null or NaN, or a label is null.
    """
    check_scores(predictions, label, score)
    return Auc(
        *predictions.select(*_auc_columns(label, score)).select("auc", "num_impressions", "num_positives").row(0)
    )


def user_aucs(predictions: pl.DataFrame, label: str, score: str, by: Sequence[str] = ("user_id",)) -> pl.DataFrame:
    """The AUC of each user's own impressions.

    Args:
        predictions: one row per impression.
        label: Boolean column.
        score: numeric column; higher ranks first; any scale.
        by: the columns whose values make a user; add a segment column to judge each user within each segment.

    Returns:
        one row per distinct `by`, in no particular order: num_impressions, num_positives, and auc
        (null for a user with one class).

    Raises:
        ValueError: a score is null or NaN, or a label is null.
    """
    check_scores(predictions, label, score)
    return predictions.group_by(*by).agg(*_auc_columns(label, score))


def uauc(predictions: pl.DataFrame, label: str, score: str) -> UserAuc:
    """Mean over users of the AUC of their own impressions.

        UAUC = 1/|U'| * sum_{u in U'} AUC_u,   U' = users with both a positive and a negative

    Ties share the average rank, so a constant score gives 0.5. Users with one class have no AUC:
    they are left out and counted in `num_users_skipped`.

    Args:
        predictions: one row per impression.
        label: Boolean column.
        score: numeric column; higher ranks first; any scale.

    Returns:
        value in [0, 1] (null when U' is empty), and the users, impressions and positives kept and left out.

    Raises:
        ValueError: a score is null or NaN, or a label is null.

    References:
        LEARN, arXiv:2405.03988, evaluation metrics.
    """
    return _mean_of_users(user_aucs(predictions, label, score), weight=pl.lit(1.0))


def wuauc(predictions: pl.DataFrame, label: str, score: str) -> UserAuc:
    """Mean over users of the AUC of their own impressions, weighted by the user's impressions (also called GAUC).

        WUAUC = sum_{u in U'} n_u AUC_u / sum_{u in U'} n_u,   n_u = impressions of u, U' = users with both classes

    LEARN names the weighting without giving the weight; impressions are our reading of it.

    Args:
        predictions: one row per impression.
        label: Boolean column.
        score: numeric column; higher ranks first; any scale.

    Returns:
        value in [0, 1] (null when U' is empty), and the users, impressions and positives kept and left out.

    Raises:
        ValueError: a score is null or NaN, or a label is null.

    References:
        LEARN, arXiv:2405.03988; GAUC: Zhu et al., Optimized Cost per Click in Taobao, arXiv:1703.02091.
    """
    return _mean_of_users(user_aucs(predictions, label, score), weight=pl.col("num_impressions"))


def placements(label: NDArray[np.bool_], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """For a positive, the share of negatives below it; for a negative, the share of positives above it; ties half.

    The mean over the positives, or over the negatives, is the pooled AUC: placements say what each row adds to it.

    Args:
        label: (N,) with both classes present.
        score: (N,) finite.

    Returns:
        (N,) in [0, 1].
    """
    order = np.argsort(score)
    positive = label[order]
    num_positives = int(positive.sum())
    num_negatives = len(positive) - num_positives
    assert 0 < num_positives < len(positive), "placements need both classes"
    ordered = score[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    sizes = np.diff(np.append(starts, len(ordered)))
    tied_positives = np.add.reduceat(positive.astype(np.int64), starts)
    tied_negatives = sizes - tied_positives
    negatives_below = np.cumsum(tied_negatives) - tied_negatives
    positives_above = num_positives - np.cumsum(tied_positives)
    of_positive = (negatives_below + 0.5 * tied_negatives) / num_negatives
    of_negative = (positives_above + 0.5 * tied_positives) / num_positives
    placement = np.empty(len(ordered))
    placement[order] = np.where(positive, np.repeat(of_positive, sizes), np.repeat(of_negative, sizes))
    return placement


def check_scores(predictions: pl.DataFrame, label: str, score: str) -> None:
    """Refuse a score that cannot be ranked and a label that says nothing.

    Raises:
        TypeError: the label is not Boolean.
        ValueError: a score is null or NaN, or a label is null.
    """
    if predictions.schema[label] != pl.Boolean:
        raise TypeError(f"label `{label}` must be Boolean, got {predictions.schema[label]}. Cast it before judging.")
    num_null_labels = predictions[label].null_count()
    if num_null_labels:
        raise ValueError(
            f"{num_null_labels} of {predictions.height} labels `{label}` are null. "
            "Leave out the impressions whose outcome is not known yet."
        )
    scores = predictions[score]
    num_null = scores.null_count()
    num_nan = int(scores.is_nan().sum()) if scores.dtype.is_float() else 0
    if num_null or num_nan:
        broken = predictions.filter(pl.col(score).is_null() | pl.col(score).cast(pl.Float64).is_nan()).head(3)
        where = f" (impressions {', '.join(map(str, broken['impression_id']))})" if "impression_id" in broken else ""
        raise ValueError(
            f"{num_null} null and {num_nan} NaN scores in `{score}` of {predictions.height} rows{where}. "
            "Every impression needs a score: look for a diverged model or a failed join."
        )


def _auc_columns(label: str, score: str) -> list[pl.Expr]:
    """num_impressions, num_positives and auc of a group of rows, from the rank sum of its positives."""
    positives = pl.col(label).sum().cast(pl.Int64)
    negatives = pl.len().cast(pl.Int64) - positives
    rank_sum = (pl.col(score).rank("average") * pl.col(label)).sum()
    above = rank_sum - positives * (positives + 1) / 2
    return [
        pl.len().cast(pl.Int64).alias("num_impressions"),
        positives.alias("num_positives"),
        pl.when((positives > 0) & (negatives > 0)).then(above / (positives * negatives)).alias("auc"),
    ]


def _mean_of_users(users: pl.DataFrame, weight: pl.Expr) -> UserAuc:
    kept = pl.col("auc").is_not_null()
    weighted = (pl.col("auc") * weight).sum() / (kept * weight).sum()
    return UserAuc(
        *users.select(
            value=pl.when(kept.any()).then(weighted),
            num_users=kept.sum(),
            num_users_skipped=(~kept).sum(),
            num_impressions=pl.col("num_impressions").sum(),
            num_impressions_skipped=(pl.col("num_impressions") * ~kept).sum(),
            num_positives=pl.col("num_positives").sum(),
            num_positives_skipped=(pl.col("num_positives") * ~kept).sum(),
        ).row(0)
    )
