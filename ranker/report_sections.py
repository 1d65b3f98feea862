"""What each section of the report shows: its printed tables and its drawn charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dataframely as dy
from markupsafe import Markup

from feature_repo.table_schemas import (
    CalibrationMetrics,
    FeatureGroupCosts,
    FeatureGroupValues,
    RelevanceMetrics,
    SegmentMetrics,
    StudentCurves,
    TrainingCurves,
)
from ranker import calibration_charts, relevance_tables, training_charts
from ranker.calibration import Calibration, ScoreHistogram
from ranker.calibration_tables import overall_figures, printed_by_segment, printed_overall
from ranker.feature_group_tables import overall_points, printed_costs, printed_values, tier_points
from ranker.forest_chart import fitting_limits, forest
from ranker.judged_runs import JudgedLabel
from ranker.printed_table import PrintedTable
from ranker.report_tables import ForestPoint, forest_points, printed_segments, printed_sizes
from ranker.segments import TIER_KINDS
from ranker.wording import CEILING, LABEL_NAMES, METRIC_NAMES, kind_name

FOREST_METRICS = ("uauc", "wuauc")


@dataclass(frozen=True)
class Forests:
    """Gains over the baseline, drawn."""

    tiers: Sequence[Markup]
    """Overall and in the tiers, a chart for each label and metric."""
    kinds: Sequence[Markup]
    """UAUC of clicks in every other kind of segment, a chart each, on one scale."""


@dataclass(frozen=True)
class FeatureValues:
    """What feature groups are worth, as one way of measuring it found."""

    method: str
    overall: Markup | None
    by_tier: Sequence[Markup]


@dataclass(frozen=True)
class Features:
    """The section on feature groups."""

    values: Sequence[FeatureValues]
    table: PrintedTable | None
    costs: PrintedTable | None
    rankers: Sequence[str]


@dataclass(frozen=True)
class Relevance:
    """The section on scores of (query, item) pairs."""

    series: Mapping[str, int]
    """Place of each scorer in the colours and markers of the chart; none where nothing was judged."""
    scorers: Mapping[str, str]
    """What each of them is."""
    table: PrintedTable | None
    by_part: PrintedTable | None
    chart: Markup | None
    training: Sequence[Markup]


def results(
    metrics: dy.DataFrame[SegmentMetrics], labels: Sequence[JudgedLabel], baseline: str | None
) -> list[PrintedTable]:
    """The segment table of each label; clicks first."""
    return [
        printed_segments(
            metrics,
            label.name,
            LABEL_NAMES[label.name],
            f"Judged by {label.score} on {label.judged_on}.",
            baseline=baseline,
        )
        for label in labels
    ]


def sizes(metrics: dy.DataFrame[SegmentMetrics], labels: Sequence[JudgedLabel]) -> list[PrintedTable]:
    """How much of the log each segment is, for each label."""
    about = "Users without both classes have no AUC of their own: UAUC and WUAUC leave them out. AUC leaves nobody out."
    return [
        printed_sizes(metrics, label.name, f"{LABEL_NAMES[label.name]}: size of each segment", about)
        for label in labels
    ]


def forests(metrics: dy.DataFrame[SegmentMetrics], labels: Sequence[str], series: Mapping[str, int]) -> Forests:
    """The tiers for every label on the same rows, UAUC first; the other kinds for UAUC of clicks."""
    points = {(label, metric): forest_points(metrics, label, metric) for metric in FOREST_METRICS for label in labels}
    tiers = {key: [p for p in several if p.kind in ("all", *TIER_KINDS)] for key, several in points.items()}
    rows = list(dict.fromkeys(point.row for several in tiers.values() for point in several))
    by_kind: dict[str, list[ForestPoint]] = {}
    for point in points["clicked", "uauc"]:
        if point.kind not in ("all", *TIER_KINDS):
            by_kind.setdefault(point.kind, []).append(point)
    further = [point for several in by_kind.values() for point in several]
    limits = fitting_limits(further) if further else None
    return Forests(
        tiers=[
            Markup(
                forest(
                    f"forest-{label}-{metric}",
                    f"{LABEL_NAMES[label]}: {METRIC_NAMES[metric]}",
                    several,
                    series,
                    rows=rows,
                )
            )
            for (label, metric), several in tiers.items()
            if several
        ],
        kinds=[
            Markup(forest(f"forest-kind-{place}", kind_name(kind), several, series, limits=limits))
            for place, (kind, several) in enumerate(by_kind.items())
        ],
    )


def features(
    values: dy.DataFrame[FeatureGroupValues] | None,
    costs: dy.DataFrame[FeatureGroupCosts] | None,
    series: Mapping[str, int],
) -> Features | None:
    """What feature groups are worth and cost; None where that was not measured."""
    if values is None and costs is None:
        return None
    axis = "hurts   ←   UAUC lost without it   →   helps"
    drawn = []
    for method in values["method"].unique(maintain_order=True) if values is not None else ():
        assert values is not None
        overall = overall_points(values, method)
        groups = values.filter(method=method)["feature_group"].unique(maintain_order=True)
        by_tier = {group: several for group in groups if (several := tier_points(values, method, group))}
        rows = list(dict.fromkeys(point.row for several in by_tier.values() for point in several))
        limits = fitting_limits([p for several in by_tier.values() for p in several]) if by_tier else None
        title = f"All impressions, {method}"
        whole = Markup(forest(f"groups-{method}", title, overall, series, axis=axis)) if overall else None
        charts = [
            Markup(forest(f"group-{method}-{place}", group, several, series, rows=rows, limits=limits, axis=axis))
            for place, (group, several) in enumerate(by_tier.items())
            if len(rows) > 1
        ]
        drawn.append(FeatureValues(method, whole, charts))
    judged = {*(values["ranker"] if values is not None else ()), *(costs["ranker"] if costs is not None else ())}
    return Features(
        values=drawn,
        table=printed_values(values, "Lost: the metric with the group minus the metric without it.")
        if values is not None
        else None,
        costs=printed_costs(
            costs,
            "Time to make: of the steps that compute it, when they last ran. "
            "Online: in the online store, all entities.",
        )
        if costs is not None
        else None,
        rankers=[ranker for ranker in series if ranker in judged],
    )


def relevance(
    metrics: dy.DataFrame[RelevanceMetrics] | None, curves: dy.DataFrame[StudentCurves] | None
) -> Relevance | None:
    """How well scorers follow judgements, and how the students among them were trained; None where neither is known."""
    training = [Markup(svg) for svg in training_charts.students(curves)] if curves is not None else []
    if metrics is None:
        return Relevance({}, {}, None, None, None, training) if training else None
    series = {scorer: place for place, scorer in enumerate(metrics["scorer"].unique(maintain_order=True))}
    points = relevance_tables.part_points(metrics)
    title, axis = "ROC-AUC by part", "chance at 0.5   →   better"
    about = "95% intervals, by a bootstrap of queries."
    return Relevance(
        series=series,
        scorers={scorer: said for scorer, said in relevance_tables.SCORERS.items() if scorer in series},
        table=relevance_tables.printed_overall(metrics, f"{relevance_tables.judged_on(metrics)} {about}"),
        by_part=relevance_tables.printed_by_part(metrics, about),
        chart=Markup(forest("relevance-chart", title, points, series, axis=axis, origin=0.5)) if points else None,
        training=training,
    )


def calibration_tables(
    metrics: dy.DataFrame[CalibrationMetrics] | None,
    calibrations: Mapping[tuple[str, str], Sequence[Calibration]],
    rankers: Sequence[str],
) -> list[PrintedTable]:
    """Overall first, then a table by segment for each label; none where no score is a probability."""
    figures = overall_figures(metrics, calibrations)
    if not figures:
        return []
    about = (
        "Mean over seeds. The ratio, predicted over observed, is right at 1. Normalised entropy is the log loss over "
        "that of knowing the observed rate only: below 1 is better than that. ECE: expected calibration error."
    )
    tables = [printed_overall(figures, rankers, about)]
    if metrics is not None:
        by_label = [printed_by_segment(metrics, label, "Mean over seeds.") for label in LABEL_NAMES]
        tables += [table for table in by_label if table is not None]
    return tables


def reliability(
    calibrations: Mapping[tuple[str, str], Sequence[Calibration]],
    recalibrations: Mapping[tuple[str, str, str], Sequence[Calibration]],
    series: Mapping[str, int],
) -> list[Markup]:
    """A chart for each ranker whose p_ctr is a probability."""
    drawn = []
    for ranker, place in series.items():
        if runs := calibrations.get(("clicked", ranker)):
            mended = {
                method: several[0]
                for (label, name, method), several in recalibrations.items()
                if (label, name) == ("clicked", ranker) and several
            }
            drawn.append(Markup(calibration_charts.reliability(f"reliability-{place}", ranker, runs, mended, place)))
    return drawn


def distributions(histograms: Mapping[tuple[str, str], ScoreHistogram], series: Mapping[str, int]) -> list[Markup]:
    """Scores of clicks and of impressions without one, a chart a ranker; the ceiling is left out."""
    return [
        Markup(calibration_charts.distribution(f"scores-{place}", ranker, histograms["clicked", ranker], place))
        for ranker, place in series.items()
        if ("clicked", ranker) in histograms and ranker != CEILING
    ]


def training(curves: dy.DataFrame[TrainingCurves] | None, series: Mapping[str, int]) -> list[Markup]:
    """A chart for each ranker that was trained here, in the order of the page."""
    by_ranker = training_charts.curves_by_ranker(curves)
    ordered = sorted(by_ranker, key=lambda ranker: series.get(ranker, len(series)))
    return [
        Markup(training_charts.training(f"training-{place}", ranker, by_ranker[ranker], series.get(ranker, place)))
        for place, ranker in enumerate(ordered)
    ]
