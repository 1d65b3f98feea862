"""What the other public definitions of "AUC by user" give from the same scores: why two dashboards differ.

They differ in the weight of a user, in what becomes of users with one class, and in how ties are broken. Which public
code does what was read from, and where it installs run against, the versions named here.

A code that sorts by score and counts positions breaks ties by the order of the rows. A file written with the positives
first then gets another figure than the same file shuffled, so these values say something of the file, not of the model.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import polars as pl

from ranker.auc import auc, user_aucs


class Definition(NamedTuple):
    """One way to condense the AUCs of the users into one figure."""

    name: str
    sentence: str
    weight: str
    ties: str
    one_class: str
    """What becomes of users whose impressions are all positive or all negative."""
    user_auc: str
    """Column that is averaged: see `_users`."""
    user_weight: pl.Expr
    used_by: str
    """Public codes that compute this; empty where we know of none."""

    def said(self) -> dict[str, str]:
        """The definition in words."""
        return {
            "name": self.name,
            "definition": self.sentence,
            "weight": self.weight,
            "ties": self.ties,
            "one_class_users": self.one_class,
            "used_by": self.used_by,
        }


EACH_ALIKE, HALF, LEFT_OUT, FILE_ORDER = "users alike", "half", "left out", "file order"

_P, _N = pl.col("num_positives"), pl.col("num_impressions") - pl.col("num_positives")
_ALIKE, _IMPRESSIONS = pl.lit(1.0), pl.col("num_impressions").cast(pl.Float64)

# fmt: off
DEFINITIONS = (
    Definition("UAUC", "Plain mean over users of the AUC of their own impressions.",
               EACH_ALIKE, HALF, LEFT_OUT, "auc", _ALIKE,
               "ours; FuxiCTR 2.3 avgAUC, EasyRec gauc (mean, its default), TorchEasyRec GroupedAUC"),
    Definition("WUAUC", "The mean over users weighted by their impressions, as in the paper of DIN.",
               "impressions", HALF, LEFT_OUT, "auc", _IMPRESSIONS,
               "ours; FuxiCTR 2.3 gAUC, EasyRec gauc (mean_by_sample_num); torch-rechub 0.9 gauc_score, which stops "
               "or gives NaN at the first user with one class"),
    Definition("weighted by positives", "The mean over users weighted by their positives.",
               "positives", HALF, LEFT_OUT, "auc", _P.cast(pl.Float64),
               "RecBole 1.2 GAUC, EasyRec gauc (mean_by_positive_num)"),
    Definition("weighted by pairs",
               "Share of all pairs of a positive and a negative of one user that are in the right order.",
               "pairs", HALF, LEFT_OUT, "auc", (_P * _N).cast(pl.Float64), ""),
    Definition("UAUC, one class 0.5", "Plain mean over all users; a user with one class counts as 0.5.",
               EACH_ALIKE, HALF, "0.5", "auc_or_half", _ALIKE, ""),
    Definition("UAUC, one class 0", "Plain mean over all users; a user with one class counts as 0.",
               EACH_ALIKE, HALF, "0", "auc_or_zero", _ALIKE, "CatBoost 1.2 QueryAUC"),
    Definition("WUAUC, one class 0",
               "The mean over all users weighted by their impressions; a user with one class counts as 0.",
               "impressions", HALF, "0", "auc_or_zero", _IMPRESSIONS,
               "LibRecommender 1.5 roc_gauc_score, with a scikit-learn that raises on one class (before 1.6)"),
    Definition("UAUC, sorted up",
               "As UAUC, but ties as a stable sort from low to high leaves them: the later row ranks higher.",
               EACH_ALIKE, FILE_ORDER, LEFT_OUT, "auc_sorted_up", _ALIKE, ""),
    Definition("UAUC, sorted down",
               "As UAUC, but ties as a stable sort from high to low leaves them: the earlier row ranks higher.",
               EACH_ALIKE, FILE_ORDER, LEFT_OUT, "auc_sorted_down", _ALIKE, ""),
    Definition("one class 0.5, sorted down",
               "Plain mean over all users, ties by file order, a user with one class as 0.5.",
               EACH_ALIKE, FILE_ORDER, "0.5", "auc_sorted_down_or_half", _ALIKE,
               "torchrec AUC (grouped_auc), but its sort is not stable"),
    Definition("no constant, sorted down",
               "As UAUC, ties by file order, without the users whose scores are all equal.",
               EACH_ALIKE, FILE_ORDER, LEFT_OUT, "auc_sorted_down_not_constant", _ALIKE,
               "torchrec GAUC, but its sort is not stable"),
    Definition("UAUC, ties lost",
               "As UAUC, but a positive must score above a negative to count: the least that any row order gives.",
               EACH_ALIKE, "lost", LEFT_OUT, "auc_lowest", _ALIKE,
               "the code published with DIN, of one positive and one negative a user"),
    Definition("UAUC, ties won", "As UAUC, but a tie counts as won: the most that any row order gives.",
               EACH_ALIKE, "won", LEFT_OUT, "auc_highest", _ALIKE, ""),
)
POOLED = Definition("AUC",
                    "Probability that any positive of the log scores above any negative, of whichever users.",
                    "one pool", HALF, "count", "", _ALIKE, "ours; scikit-learn roc_auc_score, RecBole 1.2 AUC")
# fmt: on


@dataclass(frozen=True)
class DefinitionValue:
    """What one definition gives, and whom it leaves out."""

    name: str
    definition: str
    weight: str
    ties: str
    one_class_users: str
    used_by: str
    value: float | None
    num_users: int
    num_users_left_out: int
    share_impressions_left_out: float
    share_positives_left_out: float


@dataclass(frozen=True)
class TiedPairs:
    """Pairs of a positive and a negative of one user that have the same score, and how far they can move UAUC."""

    num_pairs: int
    num_tied: int
    num_users_with_ties: int
    """Of the users with both classes."""
    uauc: float | None
    uauc_lowest: float | None
    uauc_highest: float | None
    """With every tie lost, and won."""
    uauc_sorted_up: float | None
    uauc_sorted_down: float | None
    """With ties in the order of the rows, after a stable sort from low to high, or from high to low."""

    def sentence(self) -> str:
        """The warning, or that there is nothing to warn of."""
        if not self.num_tied:
            return "No positive of a user ties with a negative, so the order of the rows changes nothing."
        return (
            f"{self.num_tied:,} of {self.num_pairs:,} pairs ({self.num_tied / self.num_pairs:.2%}), of "
            f"{self.num_users_with_ties:,} users, are tied: a code that breaks ties by the order of the rows can give "
            f"any UAUC from {self.uauc_lowest:.4f} to {self.uauc_highest:.4f}, and on the rows as they stand "
            f"{self.uauc_sorted_up:.4f} sorted from low to high, {self.uauc_sorted_down:.4f} from high to low; "
            f"with half for a tie, as here, it is {self.uauc:.4f} in any order."
        )


@dataclass(frozen=True)
class Reconciliation:
    """Every definition on the same scores."""

    values: tuple[DefinitionValue, ...]
    tied: TiedPairs

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {**asdict(self), "warning": self.tied.sentence()}


def other_definitions(predictions: pl.DataFrame, label: str, score: str, user: str = "user_id") -> Reconciliation:
    """What each public definition of AUC by user gives from one set of scores.

    Args:
        predictions: one row per impression, in the order of the file.
        label: Boolean column.
        score: numeric column; higher ranks first; any scale.
        user: the column that tells users apart.

    Raises:
        ValueError: a score is null or NaN, or a label is null.
    """
    users = _users(predictions, label, score, user)
    pooled = auc(predictions, label, score)
    values = [_value(users, definition) for definition in DEFINITIONS]
    values.append(
        DefinitionValue(
            **POOLED.said(),
            value=pooled.value,
            num_users=users.height,
            num_users_left_out=0,
            share_impressions_left_out=0.0,
            share_positives_left_out=0.0,
        )
    )
    by_name = {value.name: value.value for value in values}
    pairs, tied, with_ties = users.select(
        (_P * _N).sum(), pl.col("num_tied").sum(), (pl.col("num_tied") > 0).sum().alias("with_ties")
    ).row(0)
    return Reconciliation(
        values=tuple(values),
        tied=TiedPairs(
            num_pairs=pairs,
            num_tied=tied,
            num_users_with_ties=with_ties,
            uauc=by_name["UAUC"],
            uauc_lowest=by_name["UAUC, ties lost"],
            uauc_highest=by_name["UAUC, ties won"],
            uauc_sorted_up=by_name["UAUC, sorted up"],
            uauc_sorted_down=by_name["UAUC, sorted down"],
        ),
    )


def _users(predictions: pl.DataFrame, label: str, score: str, user: str) -> pl.DataFrame:
    """One row per user: counts, tied pairs, and the AUC under each way to treat ties and single classes.

    With T tied pairs of P N, losing or winning them all moves a user's AUC by T / 2 P N. A stable sort from low to
    high gives row numbers as ranks; the sort from high to low wins exactly the ties that the other loses.
    """
    by_user = user_aucs(predictions, label, score, by=(user,))
    rows = predictions.select(pl.col(user), pl.col(label).cast(pl.Int64).alias("p"), pl.col(score).alias("s"))
    tied = (
        rows.group_by(user, "s")
        .agg(pl.col("p").sum(), pl.len().cast(pl.Int64).alias("n"))
        .group_by(user)
        .agg((pl.col("p") * (pl.col("n") - pl.col("p"))).sum().alias("num_tied"), pl.len().alias("num_scores"))
    )
    ranked = rows.group_by(user).agg((pl.col("s").rank("ordinal").cast(pl.Int64) * pl.col("p")).sum().alias("rank_sum"))
    table = by_user.join(tied, on=user, validate="1:1").join(ranked, on=user, validate="1:1")
    assert table.height == by_user.height
    pairs = (_P * _N).cast(pl.Float64)
    return (
        table.with_columns(
            auc_or_half=pl.col("auc").fill_null(0.5),
            auc_or_zero=pl.col("auc").fill_null(0.0),
            auc_lowest=pl.col("auc") - 0.5 * pl.col("num_tied") / pairs,
            auc_highest=pl.col("auc") + 0.5 * pl.col("num_tied") / pairs,
            auc_sorted_up=pl.when((_P > 0) & (_N > 0)).then((pl.col("rank_sum") - _P * (_P + 1) / 2) / pairs),
        )
        .with_columns(auc_sorted_down=2 * pl.col("auc") - pl.col("auc_sorted_up"))
        .with_columns(
            auc_sorted_down_or_half=pl.col("auc_sorted_down").fill_null(0.5),
            auc_sorted_down_not_constant=pl.when(pl.col("num_scores") > 1).then("auc_sorted_down"),
        )
    )


def _value(users: pl.DataFrame, definition: Definition) -> DefinitionValue:
    kept = users.filter(pl.col(definition.user_auc).is_not_null())
    value = kept.select(definition.user_weight.alias("w"), pl.col(definition.user_auc).alias("a")).select(
        (pl.col("w") * pl.col("a")).sum() / pl.col("w").sum() if kept.height else pl.lit(None, pl.Float64)
    )
    return DefinitionValue(
        **definition.said(),
        value=value.item(),
        num_users=kept.height,
        num_users_left_out=users.height - kept.height,
        share_impressions_left_out=_share_left_out(users["num_impressions"], kept["num_impressions"]),
        share_positives_left_out=_share_left_out(users["num_positives"], kept["num_positives"]),
    )


def _share_left_out(everyone: pl.Series, kept: pl.Series) -> float:
    total = int(everyone.sum())
    return 1.0 - int(kept.sum()) / total if total else 0.0
