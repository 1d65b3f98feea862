"""Mend probabilities whose order is right and whose size is not: isotonic regression and Platt scaling.

A map from probability to probability is fitted on the validation split and applied to the test split, so that what is
reported is what a team would get. Both maps never decrease. Platt's keeps the order and every AUC; the isotonic one
makes neighbours equal where validation cannot tell them apart, so ties appear and an AUC may change a little.

p_ctr, p_cvr and p_ctcvr are mended each by itself: afterwards p_ctcvr is no longer p_ctr times p_cvr.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranker.calibration_cells import SMALLEST_PROBABILITY
from ranker.judged_runs import LABELS, JudgedRuns, Run

logger = logging.getLogger(__name__)

Method: TypeAlias = Literal["isotonic", "platt"]
METHODS: tuple[Method, ...] = get_args(Method)

WEAKEST_PENALTY = 1e8
"""sklearn's C of Platt's logistic regression: no penalty to speak of. Platt's targets keep the slope finite."""

Vector: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class IsotonicMap:
    """The non-decreasing step-like function that fits best by squares, linear between its corners, flat beyond."""

    predicted: Vector
    """(K,) corners, increasing."""
    mended: Vector
    """(K,) their probabilities, never decreasing, inside (0, 1)."""

    def apply(self, probabilities: Vector) -> Vector:
        """(N,) probabilities -> (N,) mended ones."""
        return np.interp(_checked(probabilities), self.predicted, self.mended)


@dataclass(frozen=True)
class PlattMap:
    """sigmoid(slope * logit(p) + intercept)."""

    slope: float
    """Never negative; 1 with an intercept of 0 changes nothing."""
    intercept: float

    def apply(self, probabilities: Vector) -> Vector:
        """(N,) probabilities -> (N,) mended ones."""
        logit = self.slope * _logit(_checked(probabilities)) + self.intercept
        mended: Vector = np.exp(-np.logaddexp(0.0, -logit))
        return mended


Recalibration: TypeAlias = IsotonicMap | PlattMap
"""Plain numbers, so a team can carry it into its own service."""


class RunScore(NamedTuple):
    """One score column of one run."""

    ranker: str
    seed: int
    score: str


def fit_recalibration(method: Method, probabilities: Vector, labels: NDArray[np.bool_]) -> Recalibration:
    """Fit a non-decreasing map from what was predicted to what came.

    Isotonic: a first block without positives would say 0, and one surprise there would cost 16 nats. [NF->P] It says
    (0 + 1/2)/(n + 1) instead, n its rows, but no more than the next block; a last block without negatives likewise.
    Platt: on the logit, towards Platt's targets, (n+ + 1)/(n+ + 2) for a positive and 1/(n- + 2) for a negative, which
    keep the slope finite where the classes are separable. Where the likelihood would turn the order round, the slope is
    0 and everything gets the observed rate, which is the best that a non-decreasing map can do.

    Args:
        method: "isotonic", which follows any monotone error and wants some thousand positives, or "platt", two
            numbers, which can be had from some hundred.
        probabilities: (N,) in [0, 1], of rows that the model was not trained on.
        labels: (N,) Boolean, both classes present.

    Raises:
        ValueError: an unknown method, lengths differ, a value is no probability, or only one class is there.
        TypeError: labels are not Boolean.

    References:
        Zadrozny and Elkan, Transforming Classifier Scores into Accurate Multiclass Probability Estimates, KDD 2002.
        Platt, Probabilistic Outputs for Support Vector Machines, 1999; on the logit as in Kull et al., AISTATS 2017.
    """
    if method not in METHODS:
        raise ValueError(f"recalibration: there is no method {method!r}; the methods are {', '.join(METHODS)}.")
    p = _checked(probabilities)
    y = np.asarray(labels)
    if y.dtype != np.bool_:
        raise TypeError(f"recalibration: labels must be Boolean, got {y.dtype}. Cast them, and leave out unknown ones.")
    if y.shape != p.shape:
        raise ValueError(f"recalibration: expected as many labels as probabilities, got {y.shape} and {p.shape}.")
    num_positives = int(y.sum())
    if num_positives in (0, len(y)):
        raise ValueError(
            f"recalibration: expected rows of both classes, got {num_positives} positives among {len(y)} rows. "
            "Fit on a longer validation window, or leave this label as it is scored."
        )
    return _fit_isotonic(p, y) if method == "isotonic" else _fit_platt(p, y)


def _fit_isotonic(p: Vector, y: NDArray[np.bool_]) -> IsotonicMap:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=True, out_of_bounds="clip").fit(
        p, y.astype(np.float64)
    )
    predicted = np.asarray(fitted.X_thresholds_, dtype=np.float64)
    mended = np.asarray(fitted.y_thresholds_, dtype=np.float64).copy()
    zero, one = mended <= 0.0, mended >= 1.0
    # both classes are there, so neither end block is the whole
    if zero.any():
        num_rows = int((p <= predicted[zero][-1]).sum())
        mended[zero] = min(0.5 / (num_rows + 1), mended[~zero][0])
    if one.any():
        num_rows = int((p >= predicted[one][0]).sum())
        mended[one] = max((num_rows + 0.5) / (num_rows + 1), mended[~one][-1])
    return IsotonicMap(predicted, mended)


def _fit_platt(p: Vector, y: NDArray[np.bool_]) -> PlattMap:
    from sklearn.linear_model import LogisticRegression

    rate = float(y.mean())
    flat = PlattMap(0.0, float(np.log(rate) - np.log1p(-rate)))
    logit = _logit(p)
    centre, spread = float(logit.mean()), float(logit.std())
    if spread < 1e-9:
        return flat
    num_positives = int(y.sum())
    target = np.where(y, (num_positives + 1) / (num_positives + 2), 1 / (len(y) - num_positives + 2))
    # sklearn takes no soft targets: every row is there as a positive and as a negative, weighted by them. Logits are
    # standardised, which changes the units of the slope only, so that Newton's method is at ease
    standard = np.tile((logit - centre) / spread, 2)[:, None]
    fitted = LogisticRegression(C=WEAKEST_PENALTY, solver="newton-cholesky", tol=1e-9, max_iter=1000)
    fitted.fit(standard, np.repeat((True, False), len(y)), np.concatenate((target, 1.0 - target)))
    slope = float(fitted.coef_[0, 0]) / spread
    return PlattMap(slope, float(fitted.intercept_[0]) - slope * centre) if slope > 0.0 else flat


def fit_recalibrations(
    validation: Iterable[Run], methods: Sequence[Method] = METHODS
) -> dict[Method, dict[RunScore, Recalibration]]:
    """Fit every score of every run on its own validation predictions.

    `p_ctr` is fitted to `clicked` on all rows, `p_cvr` to `converted` on the clicked ones, `p_ctcvr` to both on all;
    the latter two where the outcome is known. Scores that are no probabilities are passed over, as in `calibrate_runs`;
    a score that is null somewhere, or whose label has one class only, is passed over with a warning.

    Args:
        validation: predictions for rows that no ranker was trained on; read one at a time.
        methods: any of `METHODS`.

    Returns:
        By method: the map of each score column.
    """
    fitted: dict[Method, dict[RunScore, Recalibration]] = {method: {} for method in methods}
    for run in validation:
        known = run.predictions
        if "converted" not in known.columns:
            known = known.with_columns(converted=pl.lit(None, pl.Boolean))
        known = known.with_columns(clicked_and_converted=pl.col("clicked") & pl.col("converted"))
        for label in LABELS:
            if label.score not in known.columns or known[label.score].null_count() == known.height:
                continue
            rows = known.filter(label.rows)
            p, y = rows[label.score].cast(pl.Float64), rows[label.name]
            if rows.is_empty() or not p.is_between(0.0, 1.0).all():
                continue
            if p.null_count() or y.all() or not y.any():
                logger.warning(
                    "%s of `%s`, seed %d, is not recalibrated: of its %s validation rows %s are positive, %s unscored",
                    label.score,
                    run.ranker,
                    run.seed,
                    f"{rows.height:_}",
                    f"{y.sum():_}",
                    f"{p.null_count():_}",
                )
                continue
            for method in methods:
                fitted[method][RunScore(run.ranker, run.seed, label.score)] = fit_recalibration(
                    method, p.to_numpy(), y.to_numpy()
                )
    return fitted


def recalibrate_runs(judged: JudgedRuns, fitted: Mapping[RunScore, Recalibration]) -> JudgedRuns:
    """The same runs on the same impressions, their probabilities mended. A score without a fitted map is left out.

    Args:
        judged: test predictions, lined up.
        fitted: maps of one method, from `fit_recalibrations`.
    """
    scores = {}
    for (ranker, seed), frame in judged.scores.items():
        maps = {score: fitted.get(RunScore(ranker, seed, score)) for score in frame.columns}
        scores[ranker, seed] = pl.DataFrame(
            {
                score: one.apply(frame[score].cast(pl.Float64).to_numpy())
                for score, one in maps.items()
                if one is not None
            }
        )
    return replace(judged, scores=scores)


def _checked(probabilities: Vector) -> Vector:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 1 or len(p) == 0:
        raise ValueError(f"recalibration: expected a row of probabilities, at least one, got shape {p.shape}.")
    wrong = ~((p >= 0.0) & (p <= 1.0))  # NaN is wrong, too
    if wrong.any():
        raise ValueError(
            f"recalibration: {int(wrong.sum())} of {len(p)} values are no probabilities in [0, 1], such as "
            f"{p[wrong][0]:.4g}. Pass the score through a sigmoid first; a raw score has an order and no calibration."
        )
    return p


def _logit(p: Vector) -> Vector:
    inside = p.clip(SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY)
    odds: Vector = np.log(inside) - np.log1p(-inside)
    return odds
