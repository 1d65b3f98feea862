"""Are the probabilities right, not only their order? Reliability bins, ECE, predicted over observed, log loss.

A ranker whose scores are multiplied into a bid or a blend needs probabilities that mean what they say. AUC cannot
tell: it is the same for p and for p/10.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np
import polars as pl

from ranker.auc import check_scores
from ranker.judged_runs import LABELS, JudgedRuns

NUM_BINS = 15
"""Bins of equal numbers of impressions: bins of equal width would put nearly every click probability in the first."""

SMALLEST_PROBABILITY = 1e-7
"""A probability of exactly 0 or 1 is read as this far from it, or one surprise would make the log loss infinite."""


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
    n = predictions.height
    ordered = predictions.select(label=pl.col(label), p=pl.col(score).cast(pl.Float64)).sort("p", "label")
    y, p = ordered["label"].to_numpy(), ordered["p"].to_numpy()
    num_positives, predicted = int(y.sum()), float(p.mean())
    clipped = p.clip(SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY)
    log_loss = float(-np.log(np.where(y, clipped, 1.0 - clipped)).mean())
    bin_of = ((ordered["p"].rank("average").to_numpy() - 0.5) * NUM_BINS / n).astype(np.int64)
    sizes, promised, came = (np.bincount(bin_of, weights) for weights in (None, p, y))
    observed = num_positives / n
    entropy = -(observed * np.log(observed) + (1 - observed) * np.log(1 - observed)) if 0 < observed < 1 else None
    reliability = tuple(
        ReliabilityBin(float(promised[b] / sizes[b]), float(came[b] / sizes[b]), int(sizes[b]))
        for b in np.flatnonzero(sizes)
    )
    return Calibration(
        num_impressions=n,
        num_positives=num_positives,
        mean_predicted=predicted,
        observed_rate=observed,
        predicted_over_observed=predicted / observed if observed else None,
        log_loss=log_loss,
        normalised_entropy=float(log_loss / entropy) if entropy else None,
        expected_calibration_error=fsum(
            b.num_impressions / n * abs(b.mean_predicted - b.observed_rate) for b in reliability
        ),
        bins=reliability,
    )


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
