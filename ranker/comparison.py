"""Judge rankers segment by segment: value, interval, and the paired gain over a baseline.

The intervals say how a figure would move had other users come; what another training seed would do is the standard
deviation beside it, over the seeds there are. With several seeds the figure is their mean.
"""

from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import SegmentMetrics
from ranker.auc import check_scores
from ranker.bootstrap import Interval, holm, percentile_interval, resampled_totals, standard_deviation, two_sided_p
from ranker.judged_runs import LABELS, JudgedLabel, JudgedRuns
from ranker.ranked_rows import dense_ranks, score_bits
from ranker.segments import TIER_KINDS
from ranker.user_sums import Cell, SegmentCodes, codes_of, count_cells

METRICS = ("auc", "uauc", "wuauc")
SIGNIFICANCE = 0.05
POWER = 0.8
MIN_USERS_FOR_AN_INTERVAL = 10  # percentiles of a handful of users say nothing

DETECTABLE_DEVIATIONS = NormalDist().inv_cdf(1 - SIGNIFICANCE / 2) + NormalDist().inv_cdf(POWER)
"""A true gain of this many standard deviations is found with probability POWER."""

Vector = NDArray[np.float64]


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
    classes within it. P-values are Holm-adjusted over overall and the tiers of users and items,
    and over each further kind of segment by itself.

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
    check_baseline(baseline, rankers)
    return judge_cells(
        (_cells(judged, label, rankers) for label in LABELS),
        judged.num_users,
        baseline=baseline,
        num_draws=num_draws,
        seed=seed,
        min_users=min_users,
        min_positives=min_positives,
    )


def judge_cells(
    cells_of_labels: Iterable[Sequence[Cell]],
    num_users: int,
    *,
    baseline: str | None,
    num_draws: int,
    seed: int,
    min_users: int,
    min_positives: int,
) -> dy.DataFrame[SegmentMetrics]:
    """The table of `compare` from what users add to each cell, however that was counted.

    Args:
        cells_of_labels: the cells of each label, overall first; made one label at a time.
        num_users: users in the whole log.
        baseline: as the rest, see `compare`.
    """
    rows: list[dict[str, Any]] = []
    for cells in cells_of_labels:
        for cell, totals in zip(cells, resampled_totals(cells, num_users, num_draws, seed), strict=True):
            rows += _judge_cell(cell, cell.drawn(totals), baseline, min_users, min_positives)
    if not rows:
        raise ValueError("there is nothing to judge: expected at least one impression with a score, got none.")
    _adjust(rows)
    table = pl.DataFrame(rows, schema={name: column.dtype for name, column in SegmentMetrics.columns().items()})
    return SegmentMetrics.validate(table)


def check_baseline(baseline: str | None, rankers: Sequence[str]) -> None:
    """Refuse a baseline that is not among the rankers."""
    if baseline is not None and baseline not in rankers:
        raise ValueError(f"there is no ranker `{baseline}` to compare with; the predictions are of {rankers}.")


def _cells(judged: JudgedRuns, label: JudgedLabel, rankers: Sequence[str]) -> list[Cell]:
    runs = {ranker: judged.runs_with(label.score, ranker) for ranker in rankers}
    runs = {ranker: frames for ranker, frames in runs.items() if frames}
    mask = label.mask(judged.impressions)
    if not runs or not mask.any():
        return []
    impressions = judged.impressions if mask.all() else judged.impressions.filter(mask)
    ranks: dict[str, list[NDArray[np.int64]]] = {}
    for ranker, frames in runs.items():
        for frame in frames:
            column = frame[label.score] if mask.all() else frame[label.score].filter(mask)
            check_ranker_scores(label, ranker, impressions, column)
            # sorted once: segments only ever compare ranks
            ranks.setdefault(ranker, []).append(dense_ranks(score_bits(column.cast(pl.Float64).to_numpy())))
    user, positive = impressions["user"].to_numpy(), impressions[label.name].to_numpy()
    kinds = [SegmentCodes("all", ("all",), np.zeros(len(user), np.int64))]
    kinds += [codes_of(kind, impressions[kind]) for kind in judged.segment_kinds]
    return [cell for kind in kinds for cell in count_cells(label.name, kind, user, judged.num_users, positive, ranks)]


def check_ranker_scores(label: JudgedLabel, ranker: str, impressions: pl.DataFrame, column: pl.Series) -> None:
    """Refuse scores that cannot be ranked, naming the ranker.

    Args:
        label: what they predict.
        ranker: its name.
        impressions: (N,) those on which the label is judged.
        column: (N,) scores.

    Raises:
        ValueError: a score is null or NaN.
    """
    try:
        check_scores(impressions.with_columns(column.alias(label.score)), label.name, label.score)
    except ValueError as error:
        raise ValueError(f"ranker `{ranker}`: {error}") from error


def _judge_cell(
    cell: Cell, draws: dict[str, Vector], baseline: str | None, min_users: int, min_positives: int
) -> list[dict[str, Any]]:
    values = {ranker: sums.values.mean(axis=0) for ranker, sums in cell.rankers.items()}
    rows = []
    fewest = min(cell.num_positives, cell.num_impressions - cell.num_positives)
    for ranker, sums in cell.rankers.items():
        seeds = sums.values
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
            if baseline is not None and baseline in cell.rankers and ranker != baseline:
                gain_draws = draws[ranker][m] - draws[baseline][m]
                gain = Interval(None, None) if few else percentile_interval(gain_draws)
                enough = left_out["num_users"] >= min_users and fewest >= min_positives and gain.low is not None
                row |= {
                    "baseline": baseline,
                    "gain": _or_none(values[ranker][m] - values[baseline][m]),
                    "gain_low": gain.low,
                    "gain_high": gain.high,
                    "p_value": two_sided_p(values[ranker][m] - values[baseline][m], gain_draws) if enough else None,
                    "minimum_detectable": DETECTABLE_DEVIATIONS * standard_deviation(gain_draws) if enough else None,
                }
            rows.append(row)
    return rows


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _adjust(rows: list[dict[str, Any]]) -> None:
    """Holm-adjust the p-values within each family, and say the verdict.

    A family is one ranker, label and metric, and either overall with the tiers of users and items (the question asked
    beforehand) or one further kind of segment: a column that somebody adds to look at must not hide the answer.
    """
    families: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("baseline") is not None:
            kind = "all" if row["segment_kind"] in TIER_KINDS else row["segment_kind"]
            families.setdefault((row["ranker"], row["label"], row["metric"], kind), []).append(row)
    for family in families.values():
        for row, p_value in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row["p_value"] = p_value
            if p_value is None:
                row["verdict"] = "cannot tell"
            elif p_value >= SIGNIFICANCE:
                row["verdict"] = "no difference"
            else:
                row["verdict"] = "better" if row["gain"] > 0 else "worse"
