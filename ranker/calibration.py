"""Are the probabilities right, not only their order? Reliability bins, ECE, predicted over observed, log loss.

A ranker whose scores are multiplied into a bid or a blend needs probabilities that mean what they say. AUC cannot
tell: it is the same for p and for p/10. Nor can one figure for all impressions: a model may promise too much to one
segment and too little to another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any, NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import CalibrationMetrics
from ranker.auc import check_scores
from ranker.calibration_cells import FIGURES, Cells, Codes, Vector, Whole, judge_cells
from ranker.judged_runs import LABELS, JudgedLabel, JudgedRuns
from ranker.segments import in_order

AS_SCORED = "as scored"
"""The method of probabilities that nothing was done to."""

NUM_HISTOGRAM_BINS = 40

LOGARITHMIC_BELOW = 0.2
"""Mean probability below which a histogram has bins of equal factors."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Impressions with neighbouring probabilities: what was predicted and what came."""

    mean_predicted: float
    observed_rate: float
    num_impressions: int


@dataclass(frozen=True)
class Calibration:
    """How well a probability agrees with what was observed."""

    num_impressions: int
    num_positives: int
    mean_predicted: float
    observed_rate: float
    predicted_over_observed: float | None
    """1 is right, 2 promises twice what came; null without positives."""
    log_loss: float
    """Nats per impression."""
    normalised_entropy: float | None
    """Log loss over that of always saying the observed rate: below 1 is better than knowing only the rate."""
    expected_calibration_error: float
    """Mean over bins of |predicted - observed|, weighted by impressions."""
    bins: tuple[ReliabilityBin, ...]


def calibration(predictions: pl.DataFrame, label: str, score: str) -> Calibration:
    """Judge a column of probabilities against what was observed.

        log loss = -mean(y log p + (1 - y) log(1 - p))
        NE       = log loss / entropy of the observed rate
        ECE      = sum_b n_b/n |mean p in b - rate in b|,  b = bins of equal size, in order of p

    Equal probabilities always share a bin and sums run in order of p, so row order does not change a bit of the result.

    Args:
        predictions: one row per impression, at least one.
        label: Boolean column.
        score: probability in [0, 1].

    Raises:
        ValueError: no rows, a score is null, NaN or outside [0, 1], or a label is null.

    References:
        NE: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014.
        ECE: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.
    """
    check_scores(predictions, label, score)
    if predictions.is_empty():
        raise ValueError(f"calibration of `{score}`: expected at least one row, got none.")
    lowest, highest = predictions.select(pl.col(score).min().alias("low"), pl.col(score).max().alias("high")).row(0)
    if lowest < 0.0 or highest > 1.0:
        raise ValueError(
            f"calibration of `{score}`: expected probabilities in [0, 1], got {lowest:.4g} to {highest:.4g}. "
            "Pass the score through a sigmoid, or judge its order only (auc, uauc, wuauc)."
        )
    ordered = predictions.select(y=pl.col(label), p=pl.col(score).cast(pl.Float64)).sort("p")
    n = predictions.height
    cells = judge_cells(ordered["p"].to_numpy(), ordered["y"].to_numpy(), np.zeros(n, np.uint8), 1)
    sizes, promised, came = cells.bins[:, 0]
    reliability = tuple(
        ReliabilityBin(float(promised[b] / sizes[b]), float(came[b] / sizes[b]), int(sizes[b]))
        for b in np.flatnonzero(sizes)
    )
    figures = {name: _or_none(values[0]) for name, values in cells.figures.items()}
    return Calibration(
        num_impressions=n,
        num_positives=int(cells.num_positives[0]),
        bins=reliability,
        **figures,  # type: ignore[arg-type]
    )


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def calibrate_runs(judged: JudgedRuns) -> dict[tuple[str, str], list[Calibration]]:
    """Calibration of every (label, ranker) whose scores are probabilities, one a seed. Other scores have none."""
    runs: dict[tuple[str, str], list[Calibration]] = {}
    for label in LABELS:
        for ranker in judged.rankers(None):
            for scores in judged.runs_with(label.score, ranker):
                rows = judged.impressions.select(pl.all(), scores[label.score]).filter(label.rows)
                if rows.height and rows[label.score].is_between(0.0, 1.0).all():
                    runs.setdefault((label.name, ranker), []).append(calibration(rows, label.name, label.score))
    return runs


def mean_over_seeds(runs: Sequence[Calibration], figure: str) -> float | None:
    """Mean of one figure of several runs of a ranker; null where a run lacks it."""
    values = [getattr(run, figure) for run in runs]
    return None if not values or None in values else fsum(values) / len(values)


def calibrate_segments(
    judged: JudgedRuns, recalibrated: Mapping[str, JudgedRuns] | None = None
) -> dy.DataFrame[CalibrationMetrics]:
    """Calibration of every ranker whose scores are probabilities, overall and in each segment, as scored and mended.

    Every figure is the mean over the ranker's seeds; it is null where a seed lacks it. Row order does not change a bit.

    Args:
        judged: test predictions, lined up.
        recalibrated: by method, the same runs with mended probabilities, from `ranker.recalibration.recalibrate_runs`.

    Returns:
        one row per (label, segment, ranker, method): overall first, then each segment kind.
    """
    rows: list[dict[str, Any]] = []
    methods = {AS_SCORED: judged, **(recalibrated or {})}
    for label in LABELS:
        mask = judged.impressions.with_columns(label.rows.alias("judged"))["judged"]
        if not mask.any():
            continue
        impressions = judged.impressions.filter(mask)
        kinds = _kinds(impressions, judged.segment_kinds)
        found = {
            (ranker, method): seeds
            for ranker in judged.rankers(None)
            for method, seeds in _judge_ranker(methods, ranker, label, mask, impressions[label.name], kinds)
        }
        for place, kind in enumerate(kinds):
            for cell, segment in enumerate(kind.segments):
                for (ranker, method), seeds in found.items():
                    cells = [by_kind[place] for by_kind in seeds]
                    rows.append(
                        {
                            "ranker": ranker,
                            "label": label.name,
                            "segment_kind": kind.name,
                            "segment": segment,
                            "method": method,
                            "num_impressions": int(cells[0].num_impressions[cell]),
                            "num_positives": int(cells[0].num_positives[cell]),
                            "num_seeds": len(cells),
                        }
                        | {name: _or_none(np.mean([one.figures[name][cell] for one in cells])) for name in FIGURES}
                    )
    table = pl.DataFrame(rows, schema={name: column.dtype for name, column in CalibrationMetrics.columns().items()})
    return CalibrationMetrics.validate(table)


class _Kind(NamedTuple):
    """One kind of segment: which cell each impression is in."""

    name: str
    segments: list[str]
    cell: Codes
    """(N,) place in `segments`; their number where the impression is in none."""


def _kinds(impressions: pl.DataFrame, names: Sequence[str]) -> list[_Kind]:
    """Overall, then every kind that has a segment here."""
    kinds = [_Kind("all", ["all"], np.zeros(impressions.height, np.uint8))]
    for name in names:
        value = impressions[name].cast(pl.String)
        if segments := in_order(value.drop_nulls().unique()):
            cell = value.cast(pl.Enum(segments)).to_physical().fill_null(len(segments))
            kinds.append(_Kind(name, segments, cell.to_numpy()))
    return kinds


def _judge_ranker(
    methods: Mapping[str, JudgedRuns],
    ranker: str,
    label: JudgedLabel,
    mask: pl.Series,
    truth: pl.Series,
    kinds: Sequence[_Kind],
) -> Iterator[tuple[str, list[list[Cells]]]]:
    """Each method that gives this ranker probabilities from every seed, with its cells by seed and kind."""
    y = truth.to_numpy()
    orders: dict[int, Whole] = {}
    for method, runs in methods.items():
        columns = [frame[label.score].filter(mask).cast(pl.Float64) for frame in runs.runs_with(label.score, ranker)]
        for column in columns:
            check_scores(pl.DataFrame({label.name: truth, label.score: column}), label.name, label.score)
        if not columns or not all(column.is_between(0.0, 1.0).all() for column in columns):
            continue
        seeds = []
        for place, column in enumerate(columns):
            p = column.to_numpy()
            order = orders.get(place)
            # a map that never decreases keeps the order as scored, so most columns are sorted once for all methods
            if order is None or (np.diff(p[order]) < 0.0).any():
                order = orders[place] = np.argsort(p, kind="stable")
            p_ordered, y_ordered = p[order], y[order]
            seeds.append([judge_cells(p_ordered, y_ordered, kind.cell[order], len(kind.segments)) for kind in kinds])
        yield method, seeds


@dataclass(frozen=True)
class ScoreHistogram:
    """Impressions by score. Each bin holds its left edge; the last holds both."""

    edges: Vector
    """(B + 1,) increasing; equally far apart, or by equal factors where `is_logarithmic`."""
    positives: Whole
    """(B,)"""
    negatives: Whole
    """(B,)"""
    is_logarithmic: bool


def score_histograms(judged: JudgedRuns) -> dict[tuple[str, str], ScoreHistogram]:
    """Positives and negatives by score, of the first seed of every (label, ranker), probabilities or not.

    Probabilities that are small on average (below `LOGARITHMIC_BELOW`) get bins of equal factors, or nearly all would
    fall into the first; those below a ten-thousandth of the largest share the first bin.
    """
    found: dict[tuple[str, str], ScoreHistogram] = {}
    for label in LABELS:
        mask = judged.impressions.with_columns(label.rows.alias("judged"))["judged"]
        truth = judged.impressions[label.name].filter(mask)
        for ranker in judged.rankers(None):
            for scores in judged.runs_with(label.score, ranker)[:1]:
                rows = pl.DataFrame({label.name: truth, label.score: scores[label.score].filter(mask)})
                if rows.height:
                    check_scores(rows, label.name, label.score)
                    score = rows[label.score].cast(pl.Float64).to_numpy()
                    found[label.name, ranker] = _histogram(score, rows[label.name].to_numpy())
    return found


def _histogram(score: Vector, y: NDArray[np.bool_]) -> ScoreHistogram:
    low, high = float(score.min()), float(score.max())
    is_logarithmic = 0.0 <= low < high <= 1.0 and float(score.mean()) < LOGARITHMIC_BELOW
    if is_logarithmic:
        low = max(low, high * 1e-4)
        edges = np.geomspace(low, high, NUM_HISTOGRAM_BINS + 1)
    else:
        edges = np.histogram_bin_edges(score, NUM_HISTOGRAM_BINS)
    inside = score.clip(edges[0], edges[-1])
    positives, negatives = (np.histogram(inside[rows], edges)[0].astype(np.int64) for rows in (y, ~y))
    return ScoreHistogram(edges, positives, negatives, is_logarithmic)
