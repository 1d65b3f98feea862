"""Charts of the report, as SVG text that takes its colours and its typeface from the page around it.

Each chart is as wide as a phone, and is never scaled up: a wide page sets several side by side.
Matplotlib is given stand-in colours, which become CSS variables, so that the page's dark mode reaches the charts.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ranker.calibration import Calibration
from ranker.report_tables import ForestPoint, TrainingCurve

WIDTH = 340
"""Pixels: three fit side by side on the page, one on a phone."""

PIXELS_PER_INCH = 96

INK, MUTED, RULE, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
MARKERS = ("o", "s", "D", "^", "v", "P")
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    colour: f"--series-{place + 1}" for place, colour in enumerate(SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 8.25,  # points: 11 px
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.75,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.25,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def forest(
    name: str, title: str, points: Sequence[ForestPoint], segments: Sequence[str], rankers: Sequence[str]
) -> str:
    """Gains over the baseline with their intervals, a row per segment, a colour and a marker per ranker.

    The axis fits the segments that can tell; the interval of one that cannot may run off it.
    """
    row = 15 * len(rankers) + 9
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(height=row * len(segments) + 66, left=112, right=20, top=26, bottom=40)
        certain = [point for point in points if point.certain] or list(points)
        low, high = min(0.0, *(point.low for point in certain)), max(0.0, *(point.high for point in certain))
        pad = 0.06 * (high - low) or 0.01
        left, right = low - pad, high + pad
        axes.set_xlim(left, right)
        axes.set_ylim(row * len(segments), 0)
        axes.axvline(0, color=MUTED, linewidth=0.75)
        for place in range(1, len(segments)):
            axes.axhline(row * place, color=RULE, linewidth=0.5)
        for point in points:
            series = rankers.index(point.ranker)
            colour, y = _series(series), row * segments.index(point.segment) + 12 + 15 * series
            alpha = 1.0 if point.certain else 0.55
            axes.plot([point.low, point.high], [y, y], color=colour, alpha=alpha, linewidth=1.5)
            axes.plot(
                [min(max(point.gain, left), right)],
                [y],
                marker=MARKERS[series % len(MARKERS)],
                markersize=5,
                color=colour,
                markerfacecolor=colour if point.certain else PAPER,
                linestyle="none",
                alpha=alpha,
            )
        axes.set_yticks([row * (place + 0.5) for place in range(len(segments))], segments)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0")
        )
        axes.set_title(title, x=-112 / (WIDTH - 132))
        axes.set_xlabel("worse   ←   gain   →   better")
        return _svg(figure, name, _describe_forest(title, points))


def reliability(name: str, title: str, runs: Sequence[Calibration], series: int) -> str:
    """Observed rate against mean prediction, a line per seed, on logarithmic axes; the diagonal is right."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(height=290, left=52, right=12, top=26, bottom=44)
        drawn = [[b for b in run.bins if b.mean_predicted > 0 and b.observed_rate > 0] for run in runs]
        values = [v for bins in drawn for b in bins for v in (b.mean_predicted, b.observed_rate)] or [0.01, 1.0]
        low, high = min(values) * 0.8, min(max(values) * 1.25, 1.0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.75, dashes=(4, 3))
        for bins in drawn:
            axes.plot(
                [b.mean_predicted for b in bins],
                [b.observed_rate for b in bins],
                color=_series(series),
                marker=MARKERS[series % len(MARKERS)],
                markersize=3.5,
                alpha=0.85,
            )
        ticks = [tick for tick in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0) if low <= tick <= high]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, labels=[f"{100 * tick:g}%" for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_title(title, x=-52 / (WIDTH - 64))
        axes.set_xlabel("mean predicted probability")
        axes.set_ylabel("observed rate")
        means = [f"{b.mean_predicted:.2%} predicted, {b.observed_rate:.2%} observed" for b in drawn[0]] if drawn else []
        return _svg(figure, name, f"{title}. Bins of the first seed: {'; '.join(means)}.")


def training(name: str, title: str, curves: Sequence[TrainingCurve], series: int) -> str:
    """Training loss (pale) and validation loss (full) by epoch, a pair of lines per seed; the kept epoch is marked."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(height=230, left=62, right=12, top=26, bottom=44)
        for curve in curves:
            colour = _series(series)
            axes.plot(curve.epochs, curve.train_loss, color=colour, alpha=0.45, dashes=(3, 2))
            axes.plot(curve.epochs, curve.validation_loss, color=colour)
            if curve.best_epoch is not None:
                kept = list(curve.epochs).index(curve.best_epoch)
                axes.plot(
                    [curve.best_epoch],
                    [curve.validation_loss[kept]],
                    color=colour,
                    marker=MARKERS[series % len(MARKERS)],
                    markersize=5,
                    linestyle="none",
                )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(title, x=-62 / (WIDTH - 74))
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        ends = [f"seed {c.seed}: {c.validation_loss[0]:.4g} to {min(c.validation_loss):.4g}" for c in curves]
        return _svg(figure, name, f"{title}. Validation loss from first to best epoch, {'; '.join(ends)}.")


def _canvas(height: int, left: int, right: int, top: int, bottom: int) -> tuple[Figure, Axes]:
    """A figure WIDTH x height pixels, with one set of axes inside the given margins."""
    figure = Figure(figsize=(WIDTH / PIXELS_PER_INCH, height / PIXELS_PER_INCH))
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
    return figure, figure.add_axes(box)


def _series(place: int) -> str:
    return SERIES[place % len(SERIES)]


def _describe_forest(title: str, points: Sequence[ForestPoint]) -> str:
    said = [f"{p.segment}, {p.ranker}: {p.gain:+.4f} ({p.low:+.4f} to {p.high:+.4f})" for p in points]
    return f"{title}. Gain over the baseline with 95% interval. {'; '.join(said)}."


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element for the inside of a page; the same figure always gives the same text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        nothing: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\n\s*", "\n", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    height = round(figure.get_figheight() * PIXELS_PER_INCH)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        rf'<svg viewBox="\1" width="{WIDTH}" height="{height}" role="img" aria-label="{label}">',
        svg,
        count=1,
    ).strip()
