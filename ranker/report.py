"""The report: one HTML page that opens offline, with the verdict first and all that made it last.

`render` takes frames and plain values and gives the page as text; reading tables and the clock is for the jobs. What
the sections show is put together in `ranker.report_sections`; how they look is in the templates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from itertools import count

import dataframely as dy
import jinja2
from markupsafe import Markup

from feature_repo.table_schemas import (
    CalibrationMetrics,
    EmbedderCurves,
    FeatureGroupCosts,
    FeatureGroupValues,
    KarmaAttention,
    KarmaCurves,
    LearnAttention,
    RelevanceMetrics,
    SegmentMetrics,
    StudentCurves,
    TrainingCurves,
)
from ranker.calibration import Calibration, ScoreHistogram
from ranker.judged_runs import LABELS
from ranker.segments import TIER_KINDS
from ranker.wording import CEILING, DEFINITIONS, LABEL_NAMES, kind_name, verdict


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
    histograms: Mapping[tuple[str, str], ScoreHistogram] = field(default_factory=dict)
    """By (label, ranker): positives and negatives by score."""
    embedder_curves: dy.DataFrame[EmbedderCurves] | None = None
    learn_attention: dy.DataFrame[LearnAttention] | None = None
    karma_curves: dy.DataFrame[KarmaCurves] | None = None
    karma_attention: dy.DataFrame[KarmaAttention] | None = None
    feature_group_values: dy.DataFrame[FeatureGroupValues] | None = None
    feature_group_costs: dy.DataFrame[FeatureGroupCosts] | None = None
    relevance_metrics: dy.DataFrame[RelevanceMetrics] | None = None
    """Of at least one scorer over all test queries; None where nothing was judged."""
    student_curves: dy.DataFrame[StudentCurves] | None = None


def render(data: ReportData) -> str:
    """The page, self-contained: styles and a small script inside, no fonts, no images, nothing from elsewhere.

    Without its script it shows the same tables, all rows and unfolded.

    Args:
        data: what to show; charts are drawn here.

    Returns:
        HTML text.
    """
    from ranker import (
        report_embeddings,
        report_sections,
    )  # matplotlib takes a second to load, and only a report needs it

    rankers = list(dict.fromkeys(data.metrics["ranker"]))
    series = {ranker: place for place, ranker in enumerate(rankers)}
    labels = [label for label in LABELS if label.name in set(data.metrics["label"])]
    baseline = next(iter(data.metrics["baseline"].drop_nulls()), None)
    challengers = [ranker for ranker in rankers if ranker not in (baseline, CEILING)]
    forests = report_sections.forests(data.metrics, [label.name for label in labels], series)
    features = report_sections.features(data.feature_group_values, data.feature_group_costs, series)
    reliability = report_sections.reliability(data.calibrations, data.recalibrations, series)
    page = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.jinja")
    return page.render(
        data=data,
        css=Markup(_resource("report.css")),
        script=Markup(_resource("report.js")),
        next_table=count(1).__next__,
        next_figure=count(1).__next__,
        baseline=baseline,
        rankers=rankers,
        challengers=challengers,
        series=series,
        ceiling=CEILING,
        overall=data.metrics.filter(segment_kind="all", label="clicked", metric="uauc").row(0, named=True),
        verdicts={ranker: verdict(data.metrics, ranker) for ranker in challengers or rankers},
        labels=labels,
        label_names=LABEL_NAMES,
        kind_name=kind_name,
        tier_kinds=TIER_KINDS,
        results=report_sections.results(data.metrics, labels, baseline),
        sizes=report_sections.sizes(data.metrics, labels),
        forests=forests,
        features=features,
        relevance=report_sections.relevance(data.relevance_metrics, data.student_curves),
        calibration=report_sections.calibration_tables(data.calibration_metrics, data.calibrations, rankers),
        reliability=reliability,
        methods=list(dict.fromkeys(method for _, _, method in data.recalibrations)),
        distributions=report_sections.distributions(data.histograms, series),
        training=report_sections.training(data.curves, series),
        embeddings=report_embeddings.embeddings(
            data.embedder_curves, data.learn_attention, data.karma_curves, data.karma_attention
        ),
        definitions=DEFINITIONS,
    )


def _resource(name: str) -> str:
    return files("ranker").joinpath(name).read_text(encoding="utf-8")
