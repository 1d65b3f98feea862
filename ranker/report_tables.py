"""The rows of the report's tables and charts, from the table of segment metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dataframely as dy
import polars as pl

from feature_repo.table_schemas import SegmentMetrics, TrainingCurves
from ranker.calibration import Calibration, mean_over_seeds
from ranker.comparison import METRICS
from ranker.wording import CEILING, LABEL_NAMES, segment_name, signed

NO_VALUE = "–"
MARKS = {"better": "▲", "worse": "▼"}


@dataclass(frozen=True)
class MetricCell:
    """One value and its gain, as printed."""

    value: str
    interval: str
    gain: str
    gain_interval: str
    mark: str
    verdict: str
    """Empty for the baseline."""
    seeds: str


@dataclass(frozen=True)
class RankerRow:
    """One ranker within a segment; a cell per metric, UAUC first."""

    ranker: str
    cells: tuple[MetricCell, ...]


@dataclass(frozen=True)
class SegmentRows:
    """A segment, its size, and a row per ranker."""

    name: str
    share: str
    users: str
    rows: tuple[RankerRow, ...]


@dataclass(frozen=True)
class ForestPoint:
    """A ranker's gain in one segment."""

    segment: str
    ranker: str
    gain: float
    low: float
    high: float
    certain: bool
    """False where the segment is too small to tell: drawn hollow and pale."""


@dataclass(frozen=True)
class TrainingCurve:
    """One training run: a value an epoch, and the epoch that was kept."""

    ranker: str
    seed: int
    epochs: Sequence[int]
    train_loss: Sequence[float]
    validation_loss: Sequence[float]
    best_epoch: int | None


SHOWN_METRICS = ("uauc", "wuauc", "auc")
assert set(SHOWN_METRICS) == set(METRICS)


def segment_table(metrics: dy.DataFrame[SegmentMetrics], label: str) -> list[SegmentRows]:
    """Segments of one label in the table's order, each with its rankers."""
    total = metrics.filter(label=label, segment_kind="all")["num_impressions"][0]
    segments = []
    for (kind, segment), rows in _segments(metrics.filter(label=label)):
        by_ranker: dict[str, dict[str, dict[str, Any]]] = {}
        for row in rows.iter_rows(named=True):
            by_ranker.setdefault(row["ranker"], {})[row["metric"]] = row
        users = rows.filter(metric="uauc").row(0, named=True)
        segments.append(
            SegmentRows(
                name=segment_name(kind, segment),
                share=share(users["num_impressions"], total),
                users=f"{users['num_users']:,}",
                rows=tuple(
                    RankerRow(ranker, tuple(_cell(by_metric[metric]) for metric in SHOWN_METRICS))
                    for ranker, by_metric in by_ranker.items()
                ),
            )
        )
    return segments


def size_rows(metrics: dy.DataFrame[SegmentMetrics], label: str) -> list[dict[str, str]]:
    """How much of the log each segment is, and what UAUC and WUAUC leave out of it. The same for every ranker."""
    uauc = metrics.filter(label=label, metric="uauc")
    uauc = uauc.filter(ranker=uauc["ranker"][0])
    everything = uauc.row(0, named=True)
    return [
        {
            "segment": segment_name(row["segment_kind"], row["segment"]),
            "impressions": f"{row['num_impressions']:,}",
            "share_impressions": share(row["num_impressions"], everything["num_impressions"]),
            "positives": f"{row['num_positives']:,}",
            "share_positives": share(row["num_positives"], everything["num_positives"]),
            "users": f"{row['num_users']:,}",
            "users_skipped": f"{row['num_users_skipped']:,}",
            "impressions_skipped": share(row["num_impressions_skipped"], row["num_impressions"]),
            "positives_skipped": share(row["num_positives_skipped"], row["num_positives"]),
        }
        for row in uauc.iter_rows(named=True)
    ]


def forest_points(metrics: dy.DataFrame[SegmentMetrics], label: str, metric: str) -> list[ForestPoint]:
    """Gains with intervals, by segment; the ceiling is left to the table, as it would dwarf the rest."""
    rows = metrics.filter(pl.col("gain_low").is_not_null(), pl.col("ranker") != CEILING, label=label, metric=metric)
    return [
        ForestPoint(
            segment=segment_name(row["segment_kind"], row["segment"]),
            ranker=row["ranker"],
            gain=row["gain"],
            low=row["gain_low"],
            high=row["gain_high"],
            certain=row["verdict"] != "cannot tell",
        )
        for _, group in _segments(rows)
        for row in group.iter_rows(named=True)
    ]


def calibration_rows(
    calibrations: Mapping[tuple[str, str], Sequence[Calibration]], rankers: Sequence[str]
) -> list[dict[str, str]]:
    """Figures of each (label, ranker), the mean over its seeds."""
    rows = []
    for label in LABEL_NAMES:
        for ranker in rankers:
            runs = calibrations.get((label, ranker))
            if runs:
                rows.append(
                    {
                        "label": LABEL_NAMES[label],
                        "ranker": ranker,
                        "predicted": _percent(mean_over_seeds(runs, "mean_predicted")),
                        "observed": _percent(runs[0].observed_rate),
                        "ratio": _number(mean_over_seeds(runs, "predicted_over_observed"), 3),
                        "ece": _number(mean_over_seeds(runs, "expected_calibration_error"), 4),
                        "log_loss": _number(mean_over_seeds(runs, "log_loss"), 4),
                        "normalised_entropy": _number(mean_over_seeds(runs, "normalised_entropy"), 4),
                    }
                )
    return rows


def curves_by_ranker(curves: dy.DataFrame[TrainingCurves] | None) -> dict[str, list[TrainingCurve]]:
    """Training runs of each ranker, by seed."""
    drawn: dict[str, list[TrainingCurve]] = {}
    if curves is None:
        return drawn
    for (ranker, seed), run in curves.sort("epoch").group_by("ranker", "seed", maintain_order=True):
        best = run.filter(pl.col("is_best"))["epoch"]
        drawn.setdefault(str(ranker), []).append(
            TrainingCurve(
                ranker=str(ranker),
                seed=int(str(seed)),
                epochs=run["epoch"].to_list(),
                train_loss=run["train_loss"].to_list(),
                validation_loss=run["validation_loss"].to_list(),
                best_epoch=best[-1] if len(best) else None,
            )
        )
    return {ranker: sorted(runs, key=lambda run: run.seed) for ranker, runs in sorted(drawn.items())}


def share(part: int, whole: int) -> str:
    """12.3%, or a dash where there is no whole."""
    return f"{part / whole:.1%}" if whole else NO_VALUE


def _segments(metrics: pl.DataFrame) -> list[tuple[tuple[str, str], pl.DataFrame]]:
    groups = metrics.group_by("segment_kind", "segment", maintain_order=True)
    return [((str(kind), str(segment)), rows) for (kind, segment), rows in groups]


def _cell(row: dict[str, Any]) -> MetricCell:
    return MetricCell(
        value=_number(row["value"], 4),
        interval=f"{row['low']:.4f} to {row['high']:.4f}" if row["low"] is not None else "",
        gain=signed(row["gain"]) if row["gain"] is not None else NO_VALUE,
        gain_interval=f"{signed(row['gain_low'])} to {signed(row['gain_high'])}" if row["gain_low"] is not None else "",
        mark=MARKS.get(row["verdict"] or "", ""),
        verdict=row["verdict"] or "",
        seeds=f"standard deviation over {row['num_seeds']} seeds {row['seed_standard_deviation']:.4f}"
        if row["seed_standard_deviation"] is not None
        else "",
    )


def _number(value: float | None, digits: int) -> str:
    return NO_VALUE if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.2%}"
