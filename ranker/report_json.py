"""The report's numbers for machines: a JSON object whose first keys are the overall AUC, UAUC and WUAUC of clicks."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from ranker.calibration import Calibration, mean_over_seeds
from ranker.comparison import METRICS
from ranker.judged_runs import LABELS
from ranker.report import ReportData
from ranker.wording import DEFINITIONS, verdict

SIZE_COLUMNS = (
    "num_impressions",
    "num_positives",
    "num_users",
    "num_users_skipped",
    "num_impressions_skipped",
    "num_positives_skipped",
)
KEY_COLUMNS = ("ranker", "label", "segment_kind", "segment", "metric")
VALUE_COLUMNS = ("value", "low", "high", "num_seeds", "seed_standard_deviation", *SIZE_COLUMNS)
GAIN_COLUMNS = ("baseline", "gain", "gain_low", "gain_high", "p_value", "minimum_detectable", "verdict")
CALIBRATION_FIGURES = (
    "mean_predicted",
    "observed_rate",
    "predicted_over_observed",
    "log_loss",
    "normalised_entropy",
    "expected_calibration_error",
)


def report_json(data: ReportData, ranker: str) -> dict[str, Any]:
    """All numbers of a report.

    Args:
        data: what the report shows.
        ranker: whose overall figures come first.

    Returns:
        auc, uauc, wuauc: value, low, high on all impressions, for clicks; labels: the same for each label, with the
        rows judged and the calibration; segments: every value; comparison: every gain over the baseline (null without
        one); calibration_metrics: by segment and method; feature_groups: values and costs; relevance: metrics of every
        scorer and part, and the students' training curves; left_out: what UAUC and WUAUC do not count; verdict,
        definitions, notes, provenance.
    """
    overall = data.metrics.filter(ranker=ranker, segment_kind="all")
    labels: dict[str, Any] = {}
    left_out: dict[str, Any] = {}
    for label in LABELS:
        rows = {row["metric"]: row for row in overall.filter(label=label.name).iter_rows(named=True)}
        if not rows:
            continue
        labels[label.name] = {
            **{metric: _interval(rows[metric]) for metric in METRICS},
            "score": label.score,
            "judged_on": label.judged_on,
            "num_impressions": rows["auc"]["num_impressions"],
            "num_positives": rows["auc"]["num_positives"],
            "calibration": _calibration(data.calibrations.get((label.name, ranker), ())),
        }
        left_out[label.name] = _left_out(rows["uauc"])
    compared = data.metrics.filter(pl.col("baseline").is_not_null())
    return {
        **{metric: labels["clicked"][metric] for metric in METRICS},
        "ranker": ranker,
        "baseline": compared["baseline"][0] if compared.height else None,
        "verdict": verdict(data.metrics, ranker),
        "labels": labels,
        "segments": _rows(data.metrics.select(*KEY_COLUMNS, *VALUE_COLUMNS)),
        "comparison": _rows(compared.select(*KEY_COLUMNS, *GAIN_COLUMNS)) if compared.height else None,
        "calibration_metrics": _rows(data.calibration_metrics),
        "feature_groups": None
        if data.feature_group_values is None and data.feature_group_costs is None
        else {"values": _rows(data.feature_group_values), "costs": _rows(data.feature_group_costs)},
        "relevance": None
        if data.relevance_metrics is None and data.student_curves is None
        else {"metrics": _rows(data.relevance_metrics), "student_curves": _rows(data.student_curves)},
        "left_out": left_out,
        "definitions": DEFINITIONS,
        "notes": list(data.notes),
        "provenance": {
            "source": data.source,
            "label_rule": data.label_rule,
            "num_sampled_negatives": data.num_sampled,
            "created_timestamp": data.created.isoformat(),
            "windows": [
                {
                    "split": window.split,
                    "start": window.start.isoformat(),
                    "end": window.end.isoformat(),
                    "labels_as_of": window.labels_as_of.isoformat(),
                    "num_impressions": window.num_impressions,
                }
                for window in data.windows
            ],
            **data.provenance,
        },
    }


def _rows(table: pl.DataFrame | None) -> list[dict[str, Any]] | None:
    """Rows of a table; null where there is none. The schemas let no number be NaN or infinite, which JSON has not."""
    return None if table is None else table.to_dicts()


def _interval(row: dict[str, Any]) -> dict[str, float | None]:
    return {"value": row["value"], "low": row["low"], "high": row["high"]}


def _left_out(row: dict[str, Any]) -> dict[str, float]:
    users = row["num_users"] + row["num_users_skipped"]
    return {
        "num_users": row["num_users_skipped"],
        "share_of_users": row["num_users_skipped"] / users if users else 0.0,
        "num_impressions": row["num_impressions_skipped"],
        "share_of_impressions": row["num_impressions_skipped"] / max(row["num_impressions"], 1),
        "num_positives": row["num_positives_skipped"],
        "share_of_positives": row["num_positives_skipped"] / max(row["num_positives"], 1),
    }


def _calibration(runs: Sequence[Calibration]) -> dict[str, float | None] | None:
    return {figure: mean_over_seeds(runs, figure) for figure in CALIBRATION_FIGURES} if runs else None
