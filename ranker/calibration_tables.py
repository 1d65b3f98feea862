"""The calibration tables of the report: overall by label, ranker and method, and by segment."""

from collections.abc import Mapping, Sequence
from typing import Any

import dataframely as dy

from feature_repo.table_schemas import CalibrationMetrics
from ranker.calibration import AS_SCORED, Calibration, mean_over_seeds
from ranker.printed_table import Cell, Column, PrintedTable, Row, mark_repeats, number, percent
from ranker.wording import LABEL_NAMES, segment_name

METHOD_NAMES = {AS_SCORED: "as scored", "isotonic": "isotonic", "platt": "Platt"}

FIGURES = (
    "mean_predicted",
    "observed_rate",
    "predicted_over_observed",
    "expected_calibration_error",
    "log_loss",
    "normalised_entropy",
)

OVERALL_COLUMNS = (
    Column("Label", is_text=True, is_said_once=True),
    Column("Ranker", is_text=True),
    Column("Probabilities", is_text=True),
    Column("predicted"),
    Column("observed"),
    Column("ratio"),
    Column("ECE"),
    Column("log loss"),
    Column("normalised entropy"),
)

SEGMENT_FIGURES = {
    "predicted_over_observed": ("Predicted / observed", 3),
    "expected_calibration_error": ("ECE", 4),
    "normalised_entropy": ("Normalised entropy", 4),
}
"""Figure -> heading and digits, of the tables by segment."""


def overall_figures(
    metrics: dy.DataFrame[CalibrationMetrics] | None, calibrations: Mapping[tuple[str, str], Sequence[Calibration]]
) -> list[dict[str, Any]]:
    """Figures on all impressions: those of the table where there is one, else of the runs, which are as scored."""
    if metrics is not None:
        return metrics.filter(segment_kind="all").select("label", "ranker", "method", *FIGURES).to_dicts()
    return [
        {"label": label, "ranker": ranker, "method": AS_SCORED}
        | {figure: mean_over_seeds(runs, figure) for figure in FIGURES}
        for (label, ranker), runs in calibrations.items()
        if runs
    ]


def printed_overall(figures: Sequence[dict[str, Any]], rankers: Sequence[str], about: str) -> PrintedTable:
    """A row per (label, ranker, method), in the order of the rankers."""
    labels, methods = list(LABEL_NAMES), list(METHOD_NAMES)
    ordered = sorted(
        figures,
        key=lambda row: (labels.index(row["label"]), rankers.index(row["ranker"]), methods.index(row["method"])),
    )
    rows = [
        Row(
            (
                Cell(LABEL_NAMES[row["label"]]),
                Cell(row["ranker"]),
                Cell(METHOD_NAMES[row["method"]]),
                percent(row["mean_predicted"]),
                percent(row["observed_rate"]),
                number(row["predicted_over_observed"], 3),
                number(row["expected_calibration_error"], 4),
                number(row["log_loss"], 4),
                number(row["normalised_entropy"], 4),
            ),
            ranker=row["ranker"],
        )
        for row in ordered
    ]
    return PrintedTable("calibration", "Probabilities", about, OVERALL_COLUMNS, mark_repeats(OVERALL_COLUMNS, rows))


def printed_by_segment(metrics: dy.DataFrame[CalibrationMetrics], label: str, about: str) -> PrintedTable | None:
    """A row per (segment, ranker) of one label, the methods side by side; None where there are no segments."""
    rows_of_label = metrics.filter(label=label)
    if rows_of_label.filter(rows_of_label["segment_kind"] != "all").is_empty():
        return None
    methods = [method for method in METHOD_NAMES if method in set(rows_of_label["method"])]
    columns = (
        Column("Segment", is_text=True, is_said_once=True),
        Column("observed", is_said_once=True),
        Column("Ranker", is_text=True),
        *(Column(METHOD_NAMES[method], heading) for heading, _ in SEGMENT_FIGURES.values() for method in methods),
    )
    cells: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows_of_label.iter_rows(named=True):
        cells.setdefault((row["segment_kind"], row["segment"], row["ranker"]), {})[row["method"]] = row
    rows = []
    for (kind, segment, ranker), by_method in cells.items():
        observed = next(iter(by_method.values()))["observed_rate"]
        figures = [
            number(by_method[method][figure], digits) if method in by_method else Cell("")
            for figure, (_, digits) in SEGMENT_FIGURES.items()
            for method in methods
        ]
        rows.append(
            Row(
                (Cell(segment_name(kind, segment)), percent(observed), Cell(ranker), *figures), kind=kind, ranker=ranker
            )
        )
    title = f"Probabilities by segment: {LABEL_NAMES[label][0].lower()}{LABEL_NAMES[label][1:]}"
    return PrintedTable(f"calibration-{label}", title, about, columns, mark_repeats(columns, rows))
