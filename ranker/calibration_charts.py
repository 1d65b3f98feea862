"""Charts of probabilities: reliability, and how scores of positives and negatives are spread."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ranker.calibration import Calibration, ReliabilityBin, ScoreHistogram
from ranker.calibration_cells import Vector
from ranker.charts import INK, MUTED, STYLE, canvas, series_colour, series_marker, svg

DASHES: Mapping[str, tuple[float, float]] = {"isotonic": (5, 2), "platt": (1.2, 1.8)}
"""Of each way of mending probabilities; the legend of the page repeats them."""

PERCENT_TICKS = (*(mantissa * 10.0**power for power in range(-7, 0) for mantissa in (1, 3)), 1.0)


def reliability(
    name: str, title: str, runs: Sequence[Calibration], recalibrated: Mapping[str, Calibration], series: int
) -> str:
    """Observed rate against mean prediction on logarithmic axes; the diagonal is right.

    Args:
        name: unique on the page.
        title: the ranker.
        runs: as scored, one a seed: a line with markers each.
        recalibrated: by method, of one seed: a thin line, dashed or dotted.
        series: place of the ranker in the colours and markers of the page.

    Returns:
        an <svg> element.
    """
    drawn = [_drawable(run) for run in runs]
    mended = {method: _drawable(run) for method, run in recalibrated.items()}
    values = [v for bins in (*drawn, *mended.values()) for b in bins for v in (b.mean_predicted, b.observed_rate)]
    low, high = (min(values) * 0.8, min(max(values) * 1.25, 1.0)) if values else (0.01, 1.0)
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(title, height=290, left=52, right=12, bottom=44)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.75, dashes=(4, 3))
        for bins in drawn:
            axes.plot(
                [b.mean_predicted for b in bins],
                [b.observed_rate for b in bins],
                color=series_colour(series),
                marker=series_marker(series),
                markersize=3.5,
                alpha=0.85,
            )
        for method, bins in mended.items():
            x, y = [b.mean_predicted for b in bins], [b.observed_rate for b in bins]
            axes.plot(x, y, color=INK, linewidth=1.0, dashes=DASHES[method])
        for axis in (axes.xaxis, axes.yaxis):
            ticks = _percent_ticks(low, high)
            axis.set_ticks(ticks, labels=[_percent(tick) for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel("mean predicted probability")
        axes.set_ylabel("observed rate")
        means = [f"{b.mean_predicted:.2%} predicted, {b.observed_rate:.2%} observed" for b in drawn[0]] if drawn else []
        return svg(figure, name, f"{title}. Bins of the first seed as scored: {'; '.join(means)}.")


def distribution(name: str, title: str, histogram: ScoreHistogram, series: int) -> str:
    """Share of all positives, and of all negatives, in each bin of the score.

    Args:
        name: unique on the page.
        title: the ranker.
        histogram: of one seed.
        series: place of the ranker in the colours of the page.

    Returns:
        an <svg> element.
    """
    positives, negatives = (counts / max(counts.sum(), 1) for counts in (histogram.positives, histogram.negatives))
    edges = histogram.edges
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(title, height=200, left=52, right=12, bottom=44)
        axes.stairs(negatives, edges, color=MUTED, linewidth=1.0, linestyle=(0, (3, 2)))
        axes.stairs(positives, edges, color=series_colour(series), fill=True, alpha=0.22)
        axes.stairs(positives, edges, color=series_colour(series), linewidth=1.25)
        if histogram.is_logarithmic:
            axes.set_xscale("log")
            ticks = _percent_ticks(edges[0], edges[-1])
            axes.xaxis.set_ticks(ticks, labels=[_percent(tick) for tick in ticks])
            axes.xaxis.set_ticks([], minor=True)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
        axes.set_xlabel("score")
        axes.set_ylabel("share of its class")
        above = [f"{_median(shares, edges):.3g}" for shares in (positives, negatives)]
        said = f"Half of the positives score above {above[0]}, half of the negatives above {above[1]}."
        return svg(figure, name, f"{title}. {said}")


def _drawable(run: Calibration) -> list[ReliabilityBin]:
    """A logarithmic axis has no place for zero."""
    return [b for b in run.bins if b.mean_predicted > 0 and b.observed_rate > 0]


def _percent_ticks(low: float, high: float) -> list[float]:
    """1, 3, 10, 30 ... %, every tenfold only where that is too many, and finer steps where it is too few."""
    ticks = [tick for tick in PERCENT_TICKS if low <= tick <= high]
    if len(ticks) > 5:
        ticks = [tick for tick in PERCENT_TICKS[::2] if low <= tick <= high]
    if len(ticks) < 2:
        ticks = [float(f"{tick:.1g}") for tick in np.geomspace(low, high, 4)[1:-1]]
    return sorted(set(ticks))


def _percent(value: float) -> str:
    return f"{float(f'{100 * value:.3g}'):g}%"


def _median(shares: Vector, edges: Vector) -> float:
    """Left edge of the bin that the median is in."""
    place = int(np.searchsorted(np.cumsum(shares), 0.5))
    return float(edges[min(place, len(shares) - 1)])
