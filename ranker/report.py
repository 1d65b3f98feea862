"""The report: one HTML page that opens offline, with the verdict first and all that made it last.

`render` takes frames and plain values and gives the page as text; reading tables and the clock is for the jobs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING

import dataframely as dy
import jinja2
from markupsafe import Markup

from feature_repo.table_schemas import (
    CalibrationMetrics,
    EmbedderCurves,
    FeatureGroupCosts,
    FeatureGroupValues,
    SegmentMetrics,
    TrainingCurves,
)
from ranker.calibration import Calibration
from ranker.judged_runs import LABELS
from ranker.report_tables import calibration_rows, curves_by_ranker, forest_points, segment_table, size_rows
from ranker.wording import CEILING, DEFINITIONS, LABEL_NAMES, METRIC_NAMES, verdict

if TYPE_CHECKING:
    from ranker.calibration import ScoreHistogram

FOREST_METRICS = ("uauc", "wuauc")


@dataclass(frozen=True)
class Window:
    """A split of the log in time."""

    split: str
    start: datetime
    end: datetime
    labels_as_of: datetime
    num_impressions: int


@dataclass(frozen=True)
class ReportData:
    """All that a report shows."""

    title: str
    source: str
    """Where the impressions come from, in a few words."""
    metrics: dy.DataFrame[SegmentMetrics]
    calibrations: Mapping[tuple[str, str], Sequence[Calibration]]
    """By (label, ranker): one a seed."""
    created: datetime
    label_rule: str | None = None
    """What `clicked` and `converted` stand for in this log."""
    num_sampled: int = 0
    """Impressions judged that are negatives drawn by us, not logged."""
    segment_rules: Sequence[str] = ()
    """How each kind of segment is cut."""
    curves: dy.DataFrame[TrainingCurves] | None = None
    windows: Sequence[Window] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Fact to value, printed in this order: seeds, commit, versions, command."""
    configuration: str = ""
    notes: Sequence[str] = ()
    """What was found and mended while reading the input."""
    calibration_metrics: dy.DataFrame[CalibrationMetrics] | None = None
    """As scored and recalibrated, overall and by segment."""
    recalibrations: Mapping[tuple[str, str, str], Sequence[Calibration]] = field(default_factory=dict)
    """By (label, ranker, method), all impressions: the bins of the recalibrated reliability curves, one a seed."""
    histograms: "Mapping[tuple[str, str], ScoreHistogram]" = field(default_factory=dict)
    """By (label, ranker): positives and negatives by score."""
    embedder_curves: dy.DataFrame[EmbedderCurves] | None = None
    feature_group_values: dy.DataFrame[FeatureGroupValues] | None = None
    feature_group_costs: dy.DataFrame[FeatureGroupCosts] | None = None


def render(data: ReportData) -> str:
    """The page, self-contained: no scripts, no fonts, no images from elsewhere.

    Args:
        data: what to show; charts are drawn here.

    Returns:
        HTML text.
    """
    from ranker import charts  # matplotlib takes a second to load, and only a report needs it

    rankers = list(dict.fromkeys(data.metrics["ranker"]))
    labels = [label for label in LABELS if label.name in set(data.metrics["label"])]
    baseline = next(iter(data.metrics["baseline"].drop_nulls()), None)
    challengers = [ranker for ranker in rankers if ranker not in (baseline, CEILING)]
    series = {ranker: place for place, ranker in enumerate(rankers)}
    overall = data.metrics.filter(segment_kind="all", label="clicked", metric="uauc").row(0, named=True)
    page = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_resource("report.html.jinja"))
    return page.render(
        data=data,
        css=Markup(_resource("report.css")),
        baseline=baseline,
        rankers=rankers,
        series=series,
        ceiling=CEILING,
        overall=overall,
        verdicts={ranker: verdict(data.metrics, ranker) for ranker in challengers or rankers},
        metric_names=METRIC_NAMES,
        tables=[
            {
                "name": label.name,
                "caption": LABEL_NAMES[label.name],
                "judged_on": label.judged_on,
                "score": label.score,
                "rows": segment_table(data.metrics, label.name),
                "sizes": size_rows(data.metrics, label.name),
            }
            for label in labels
        ],
        forests=[Markup(svg) for svg in _forests(data.metrics, [label.name for label in labels], rankers)],
        calibration_rows=calibration_rows(data.calibrations, rankers),
        reliability=[
            Markup(charts.reliability(f"reliability-{place}", ranker, data.calibrations["clicked", ranker], place))
            for ranker, place in series.items()
            if ("clicked", ranker) in data.calibrations
        ],
        training=[
            Markup(charts.training(f"training-{place}", ranker, curves, series.get(ranker, place)))
            for place, (ranker, curves) in enumerate(curves_by_ranker(data.curves).items())
        ],
        definitions=DEFINITIONS,
    )


def _forests(metrics: dy.DataFrame[SegmentMetrics], labels: Sequence[str], rankers: Sequence[str]) -> list[str]:
    """A forest plot for each label that has gains to show, on the same rows: UAUC first, then WUAUC."""
    from ranker import charts

    drawn = []
    points = {(label, metric): forest_points(metrics, label, metric) for metric in FOREST_METRICS for label in labels}
    segments = list(dict.fromkeys(point.segment for several in points.values() for point in several))
    for (label, metric), several in points.items():
        if several:
            title = f"{LABEL_NAMES[label]}: {METRIC_NAMES[metric]}"
            drawn.append(charts.forest(f"forest-{label}-{metric}", title, several, segments, rankers))
    return drawn


def _resource(name: str) -> str:
    return files("ranker").joinpath(name).read_text(encoding="utf-8")
