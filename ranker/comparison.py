"""Judge rankers segment by segment: value, interval, and the paired gain over a baseline.

The intervals say how a figure would move had other users come; what another training seed would do is the standard
deviation beside it, over the seeds there are. With several seeds the figure is their mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import SegmentMetrics
from ranker.auc import check_scores, placements, user_aucs
from ranker.bootstrap import Interval, UserSums, holm, percentile_interval, resampled_totals, two_sided_p
from ranker.judged_runs import LABELS, JudgedLabel, JudgedRuns
from ranker.segments import in_order

METRICS = ("auc", "uauc", "wuauc")
SIGNIFICANCE = 0.05
MIN_USERS_FOR_AN_INTERVAL = 10  # percentiles of a handful of users say nothing

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class _Cell:
    """One label within one segment. Arrays over users (U,) follow `users`."""

    label: str
    segment_kind: str
    segment: str
    num_impressions: int
    num_positives: int
    users: NDArray[np.int64]
    user_impressions: Vector
    user_positives: Vector
    values: dict[str, Vector]
    """By ranker: (seeds, 3) its auc, uauc and wuauc."""
    sums: dict[str, Vector]
    """By ranker: (U, 4) what each user adds to the metrics' numerators, mean over seeds; see `_user_sums`."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(U,) users with both classes."""
        return (self.user_positives > 0) & (self.user_positives < self.user_impressions)

    def left_out(self, metric: str) -> dict[str, int]:
        """Users who count, and those left out, with their impressions and positives. AUC leaves nobody out."""
        skipped = np.zeros(len(self.users), bool) if metric == "auc" else ~self.kept
        return {
            "num_users": int((~skipped).sum()),
            "num_users_skipped": int(skipped.sum()),
            "num_impressions_skipped": int(self.user_impressions[skipped].sum()),
            "num_positives_skipped": int(self.user_positives[skipped].sum()),
        }


def compare(
    judged: JudgedRuns,
    *,
    baseline: str | None,
    num_draws: int = 1000,
    seed: int = 0,
    min_users: int = 30,
    min_positives: int = 30,
) -> dy.DataFrame[SegmentMetrics]:
    """AUC, UAUC and WUAUC of every ranker, overall and in each segment, with paired gains over the baseline.

    `converted` is judged by p_cvr on clicked impressions, `clicked_and_converted` by p_ctcvr on all; both only where
    the outcome is known. A segment keeps its own impressions only, so a user counts in UAUC when they have both
    classes within it. P-values are Holm-adjusted over the segments (overall included) of one ranker, label and metric.

    Args:
        judged: rankers lined up on the same impressions.
        baseline: the ranker that gains are over; None gives values and intervals only.
        num_draws: bootstrap draws of users.
        seed: of the bootstrap.
        min_users: with fewer users counted, a segment says "cannot tell".
        min_positives: the same for positives, and for negatives.

    Returns:
        overall first, then each segment kind; baseline first within each.

    Raises:
        ValueError: no such baseline, a score is null or NaN, or there is nothing to judge.
    """
    rankers = judged.rankers(baseline)
    if baseline is not None and baseline not in rankers:
        raise ValueError(f"there is no ranker `{baseline}` to compare with; the predictions are of {rankers}.")
    rows: list[dict[str, Any]] = []
    for label in LABELS:
        cells = _cells(judged, label, rankers)
        if not cells:
            continue
        sums = [UserSums(cell.users, _stack(cell)) for cell in cells]
        for cell, totals in zip(cells, resampled_totals(sums, judged.num_users, num_draws, seed), strict=True):
            rows += _judge_cell(cell, totals, baseline, min_users, min_positives)
    if not rows:
        raise ValueError("there is nothing to judge: expected at least one impression with a score, got none.")
    _adjust(rows)
    table = pl.DataFrame(rows, schema={name: column.dtype for name, column in SegmentMetrics.columns().items()})
    return SegmentMetrics.validate(table)


def _cells(judged: JudgedRuns, label: JudgedLabel, rankers: Sequence[str]) -> list[_Cell]:
    runs = {ranker: judged.runs_with(label.score, ranker) for ranker in rankers}
    runs = {ranker: frames for ranker, frames in runs.items() if frames}
    mask = judged.impressions.with_columns(label.rows.alias("judged"))["judged"]
    if not runs or not mask.any():
        return []
    impressions = judged.impressions.filter(mask)
    scores = {
        ranker: [frame[label.score].filter(mask).cast(pl.Float64) for frame in frames]
        for ranker, frames in runs.items()
    }
    for ranker, columns in scores.items():
        for column in columns:
            _check(label, ranker, impressions, column)
    cells = [_cell(impressions, label, "all", "all", scores)]
    for kind in judged.segment_kinds:
        for segment in in_order(impressions[kind].drop_nulls().cast(pl.String).unique()):
            inside = (impressions[kind] == segment).fill_null(False)
            inside_scores = {ranker: [s.filter(inside) for s in columns] for ranker, columns in scores.items()}
            cells.append(_cell(impressions.filter(inside), label, kind, segment, inside_scores))
    return cells


def _check(label: JudgedLabel, ranker: str, impressions: pl.DataFrame, column: pl.Series) -> None:
    try:
        check_scores(impressions.with_columns(column.alias(label.score)), label.name, label.score)
    except ValueError as error:
        raise ValueError(f"ranker `{ranker}`: {error}") from error


def _cell(
    impressions: pl.DataFrame, label: JudgedLabel, kind: str, segment: str, scores: dict[str, list[pl.Series]]
) -> _Cell:
    truth = impressions[label.name].to_numpy()
    user = impressions["user"].to_numpy()
    values: dict[str, Vector] = {}
    sums: dict[str, Vector] = {}
    users = user_impressions = user_positives = np.zeros(0)
    for ranker, columns in scores.items():
        per_seed = []
        total = np.zeros((0, 4))
        for column in columns:
            frame = impressions.select("user", label.name, column.alias("score"))
            by_user = user_aucs(frame, label.name, "score", by=("user",)).sort("user")
            users = by_user["user"].to_numpy()
            user_impressions = by_user["num_impressions"].cast(pl.Float64).to_numpy()
            user_positives = by_user["num_positives"].cast(pl.Float64).to_numpy()
            three, added = _user_sums(by_user, truth, column.to_numpy(), user)
            per_seed.append(three)
            total = added / len(columns) if not len(total) else total + added / len(columns)
        values[ranker] = np.array(per_seed)
        sums[ranker] = total
    return _Cell(
        label=label.name,
        segment_kind=kind,
        segment=segment,
        num_impressions=len(truth),
        num_positives=int(truth.sum()),
        users=users.astype(np.int64),
        user_impressions=user_impressions,
        user_positives=user_positives,
        values=values,
        sums=sums,
    )


def _user_sums(
    by_user: pl.DataFrame, truth: NDArray[np.bool_], score: Vector, user: NDArray[np.int64]
) -> tuple[Vector, Vector]:
    """The three metrics of one run in one cell, and what each user adds to them, centred on the value.

    UAUC and WUAUC are ratios of sums over users as they stand. Pooled AUC compares rows of different users, so its
    draw is written to first order in the users' weights w, with a_u and b_u the sums over u's positives and negatives
    of (placement - AUC):

        AUC(w) ~ AUC + sum_u w_u a_u / sum_u w_u P_u + sum_u w_u b_u / sum_u w_u N_u

    What is dropped is of order 1/(number of users), against an interval of order 1/sqrt(number of users).

    Returns:
        (3,) auc, uauc, wuauc, NaN where there is none; (U, 4) a, b, kept * (AUC_u - UAUC), kept * n * (AUC_u - WUAUC).
    """
    user_auc = by_user["auc"].to_numpy()
    impressions = by_user["num_impressions"].to_numpy()
    kept = ~np.isnan(user_auc)
    centred = np.zeros((len(user_auc), 4))
    metrics = np.full(3, np.nan)
    if truth.any() and not truth.all():
        placement = placements(truth, score)
        metrics[0] = placement[truth].mean()
        users = by_user["user"].to_numpy()
        for column, rows in enumerate((truth, ~truth)):
            per_user = np.bincount(user[rows], placement[rows] - metrics[0], minlength=int(users[-1]) + 1)
            centred[:, column] = per_user[users]
    if kept.any():
        metrics[1] = user_auc[kept].mean()
        metrics[2] = np.average(user_auc[kept], weights=impressions[kept])
        centred[kept, 2] = user_auc[kept] - metrics[1]
        centred[kept, 3] = impressions[kept] * (user_auc[kept] - metrics[2])
    return metrics, centred


def _stack(cell: _Cell) -> Vector:
    """(U, 4 + 4 per ranker): the denominators, then each ranker's numerators."""
    denominators = (
        cell.user_positives,
        cell.user_impressions - cell.user_positives,
        cell.kept.astype(np.float64),
        cell.kept * cell.user_impressions,
    )
    return np.column_stack((*denominators, *cell.sums.values()))


def _judge_cell(
    cell: _Cell, totals: Vector, baseline: str | None, min_users: int, min_positives: int
) -> list[dict[str, Any]]:
    values = {ranker: seeds.mean(axis=0) for ranker, seeds in cell.values.items()}
    draws: dict[str, Vector] = {}
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw without positives has no value
        for place, ranker in enumerate(cell.values):
            a, b, uauc, wuauc = totals[4 + 4 * place : 8 + 4 * place] / totals[:4]
            draws[ranker] = np.clip(values[ranker][:, None] + np.stack((a + b, uauc, wuauc)), 0.0, 1.0)
    rows = []
    fewest = min(cell.num_positives, cell.num_impressions - cell.num_positives)
    for ranker, seeds in cell.values.items():
        for m, metric in enumerate(METRICS):
            left_out = cell.left_out(metric)
            few = left_out["num_users"] < MIN_USERS_FOR_AN_INTERVAL
            interval = Interval(None, None) if few else percentile_interval(draws[ranker][m])
            row = {
                "ranker": ranker,
                "label": cell.label,
                "segment_kind": cell.segment_kind,
                "segment": cell.segment,
                "metric": metric,
                "value": _or_none(values[ranker][m]),
                "low": interval.low,
                "high": interval.high,
                "num_impressions": cell.num_impressions,
                "num_positives": cell.num_positives,
                **left_out,
                "num_seeds": len(seeds),
                "seed_standard_deviation": _or_none(seeds[:, m].std(ddof=1)) if len(seeds) > 1 else None,
            }
            if baseline in cell.values and ranker != baseline:
                gain_draws = draws[ranker][m] - draws[baseline][m]
                gain = Interval(None, None) if few else percentile_interval(gain_draws)
                enough = left_out["num_users"] >= min_users and fewest >= min_positives and gain.low is not None
                row |= {
                    "baseline": baseline,
                    "gain": _or_none(values[ranker][m] - values[baseline][m]),
                    "gain_low": gain.low,
                    "gain_high": gain.high,
                    "p_value": two_sided_p(values[ranker][m] - values[baseline][m], gain_draws) if enough else None,
                }
            rows.append(row)
    return rows


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _adjust(rows: list[dict[str, Any]]) -> None:
    """Holm-adjust the p-values within each (ranker, label, metric), and say the verdict."""
    families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("baseline") is not None:
            families.setdefault((row["ranker"], row["label"], row["metric"]), []).append(row)
    for family in families.values():
        for row, p_value in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row["p_value"] = p_value
            if p_value is None:
                row["verdict"] = "cannot tell"
            elif p_value >= SIGNIFICANCE:
                row["verdict"] = "no difference"
            else:
                row["verdict"] = "better" if row["gain"] > 0 else "worse"
