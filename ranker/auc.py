"""AUC, UAUC and WUAUC: exact, with ties at their average rank, and with every user left out counted.

    AUC    probability that a positive scores above a negative, over all pairs of the log
    UAUC   plain mean over users of the AUC of their own impressions
    WUAUC  the same mean, each user weighted by their impressions (the literature's GAUC)

A ranker never chooses between two users, so UAUC and WUAUC are the figures that follow what it can change; AUC also
rewards telling active users from idle ones. Every function here takes a frame and gives a frame or a number back.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import fsum
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranker.ranked_rows import GroupSums, dense_ranks, score_bits, sums_by_group

LARGEST_SPREAD = 4
"""Numbers of groups are made dense again when they run beyond this many times the rows."""


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


class Aucs(NamedTuple):
    """The three figures of one label and score."""

    auc: Auc
    uauc: UserAuc
    wuauc: UserAuc


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
    return _pooled(*_arrays(predictions, label, score))


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
    group = _group_numbers(predictions, by)
    sums = sums_by_group(group, *_arrays(predictions, label, score))
    a_row = np.zeros(int(group.max(initial=-1)) + 1, np.int64)  # of each group: which one does not matter
    a_row[group] = np.arange(len(group))
    return predictions.select(*by)[a_row[sums.groups]].with_columns(
        num_impressions=sums.num_rows,
        num_positives=sums.num_positives,
        auc=pl.Series(sums.auc).fill_nan(None),
    )


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
    users = _users(predictions, label, score)
    return mean_of_users(users, np.ones(len(users.groups), np.int64))


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
    users = _users(predictions, label, score)
    return mean_of_users(users, users.num_rows)


def aucs(predictions: pl.DataFrame, label: str, score: str) -> Aucs:
    """`auc`, `uauc` and `wuauc` of the same rows: every user is numbered and ranked once.

    Args:
        predictions: one row per impression, with user_id.
        label: Boolean column.
        score: numeric column; higher ranks first; any scale.

    Raises:
        ValueError: a score is null or NaN, or a label is null.
    """
    check_scores(predictions, label, score)
    with ThreadPoolExecutor(1) as beside:  # numbering the users takes as long as the rest, and neither holds the GIL
        numbers = beside.submit(_group_numbers, predictions, ("user_id",))
        positive, bits = _arrays(predictions, label, score)
        log = _pooled(positive, bits)
        users = sums_by_group(numbers.result(), positive, bits)
    return Aucs(
        log,
        mean_of_users(users, np.ones(len(users.groups), np.int64)),
        mean_of_users(users, users.num_rows),
    )


def mean_of_users(users: GroupSums, weight: NDArray[np.int64]) -> UserAuc:
    """Mean of the AUCs of the users with both classes. Sums are exact, so the order of users does not matter.

    Args:
        users: (U,) one group a user.
        weight: (U,)
    """
    kept = users.num_pairs > 0
    rows, positives = users.num_rows, users.num_positives
    return UserAuc(
        value=fsum(users.auc[kept] * weight[kept]) / int(weight[kept].sum()) if kept.any() else None,
        num_users=int(kept.sum()),
        num_users_skipped=int((~kept).sum()),
        num_impressions=int(rows.sum()),
        num_impressions_skipped=int(rows[~kept].sum()),
        num_positives=int(positives.sum()),
        num_positives_skipped=int(positives[~kept].sum()),
    )


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


def _arrays(predictions: pl.DataFrame, label: str, score: str) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
    """(N,) labels and (N,) scores as integers in their order."""
    return predictions[label].to_numpy(), score_bits(predictions[score].cast(pl.Float64).to_numpy())


def _users(predictions: pl.DataFrame, label: str, score: str) -> GroupSums:
    """One group a user."""
    check_scores(predictions, label, score)
    return sums_by_group(_group_numbers(predictions, ("user_id",)), *_arrays(predictions, label, score))


def _pooled(positive: NDArray[np.bool_], bits: NDArray[np.uint64]) -> Auc:
    """All rows as one group."""
    log = sums_by_group(np.zeros(len(bits), np.int64), positive, bits)
    value = float(log.auc[0]) if log.num_pairs.any() else None
    return Auc(value, len(positive), int(positive.sum()))


def _group_numbers(predictions: pl.DataFrame, by: Sequence[str]) -> NDArray[np.int64]:
    """(N,) from 0: rows with the same values of `by` share a number. A null is a value of its own."""
    group, size = np.zeros(predictions.height, np.int64), 1
    for name in by:
        column = predictions[name]
        if column.dtype == pl.String:
            # categories of our own: those of another frame would leave gaps
            numbers = column.cast(pl.Categorical(pl.Categories.random())).to_physical()
        elif column.dtype in (pl.Categorical, pl.Enum):
            numbers = column.to_physical()
        else:
            numbers = column.rank("dense")
        missing = int(numbers.max() or 0) + 1  # type: ignore[arg-type]
        group *= missing + 1
        group += numbers.cast(pl.Int64).fill_null(missing).to_numpy()
        size *= missing + 1
        if size > LARGEST_SPREAD * len(group):
            group = dense_ranks(group.view(np.uint64))
            size = int(group.max(initial=0)) + 1
    return group
