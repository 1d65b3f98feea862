"""The sums behind calibration, for many cells of impressions in one pass over the probabilities in order.

Letters: N impressions, C cells (segments of one kind), G groups of equal probability within a cell.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
"""Bins of equal numbers of impressions: bins of equal width would put nearly every click probability in the first."""

SMALLEST_PROBABILITY = 1e-7
"""A probability of exactly 0 or 1 is read as this far from it, or one surprise would make the log loss infinite."""

FIGURES = (
    "mean_predicted",
    "observed_rate",
    "predicted_over_observed",
    "log_loss",
    "normalised_entropy",
    "expected_calibration_error",
)

Vector: TypeAlias = NDArray[np.float64]
Whole: TypeAlias = NDArray[np.int64]
Codes: TypeAlias = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Cells:
    """Calibration of several cells of impressions at once."""

    num_impressions: Whole
    """(C,)"""
    num_positives: Whole
    """(C,)"""
    figures: dict[str, Vector]
    """By name: (C,), NaN where there is none."""
    bins: Vector
    """(3, C, NUM_BINS) impressions, sum of p, positives."""


def judge_cells(p: Vector, y: NDArray[np.bool_], cell: Codes, num_cells: int) -> Cells:
    """Judge every cell. Only groups of equal probability enter the sums, so rows may be in any order within a group.

    Args:
        p: (N,) probabilities, increasing.
        y: (N,) labels.
        cell: (N,) from 0; rows whose cell is `num_cells` are in none.
        num_cells: C.
    """
    if num_cells > 1 or cell.any():
        by_cell = np.argsort(cell, kind="stable")  # radix sort: the codes are small
        by_cell = by_cell[: len(cell) - int((cell == num_cells).sum())]
        p, y, cell = p[by_cell], y[by_cell], cell[by_cell]
    rows_C = np.bincount(cell, minlength=num_cells)
    starts_G = np.flatnonzero(np.concatenate(([True], (p[1:] != p[:-1]) | (cell[1:] != cell[:-1])))[: len(p)])
    rows_G = np.diff(starts_G, append=len(p))
    positives_G = np.diff(np.concatenate(([0], np.cumsum(y, dtype=np.int64)))[np.append(starts_G, len(p))])
    p_G, cell_G = p[starts_G], cell[starts_G].astype(np.int64)
    middle_G = starts_G - (np.cumsum(rows_C) - rows_C)[cell_G] + rows_G / 2
    bin_G = cell_G * NUM_BINS + (middle_G * NUM_BINS / rows_C[cell_G]).astype(np.int64)
    bins: Vector = np.stack(
        [
            np.bincount(bin_G, weights, num_cells * NUM_BINS).reshape(num_cells, NUM_BINS)
            for weights in (rows_G, p_G * rows_G, positives_G)
        ]
    )
    clipped_G = p_G.clip(SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY)
    nats_G = -(positives_G * np.log(clipped_G) + (rows_G - positives_G) * np.log1p(-clipped_G))
    _, promised, came = bins
    positives_C = came.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty cell, or one class
        observed = positives_C / rows_C
        predicted = promised.sum(axis=1) / rows_C
        log_loss = np.bincount(cell_G, nats_G, num_cells) / rows_C
        entropy = -(observed * np.log(observed) + (1.0 - observed) * np.log(1.0 - observed))
        ratio = np.where(observed > 0.0, predicted / observed, np.nan)
        gap = np.abs(promised - came).sum(axis=1) / rows_C
    figures = (predicted, observed, ratio, log_loss, log_loss / entropy, gap)
    return Cells(rows_C, positives_C.astype(np.int64), dict(zip(FIGURES, figures, strict=True)), bins)
