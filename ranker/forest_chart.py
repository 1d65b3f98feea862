"""The forest plot: gains or values with their intervals, a row per segment, a colour and a marker per ranker."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ranker.charts import INK, MUTED, PAPER, RULE, STYLE, canvas, series_colour, series_marker, svg
from ranker.report_tables import ForestPoint
from ranker.wording import signed

LEFT = 128
"""Pixels for the names of rows."""

ROW_NAME_LETTERS = 18
"""What fits there."""

RANKER, NAME_LINE = 14, 13
"""Pixels of height for each ranker in a row, and for each line of its name."""


def forest(
    name: str,
    title: str,
    points: Sequence[ForestPoint],
    series: Mapping[str, int],
    *,
    rows: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    axis: str = "worse   ←   gain   →   better",
    origin: float = 0.0,
) -> str:
    """Draw one.

    Args:
        name: unique on the page.
        title: above it.
        points: at least one, each of a row and a ranker.
        series: place of each ranker in the colours and markers of the page.
        rows: in order from the top; by default those of the points.
        limits: of the axis; by default as `fitting_limits` has it.
        axis: what it says below.
        origin: where the upright line is. Zero for gains, which are written with their sign; other numbers have none.

    Returns:
        an <svg> element.
    """
    rows = list(rows or dict.fromkeys(point.row for point in points))
    rankers = [ranker for ranker in series if any(point.ranker == ranker for point in points)]
    names = [_wrapped(row) for row in rows]
    lines = max(name.count("\n") + 1 for name in names)
    row_height = max(RANKER * len(rankers) + 10, NAME_LINE * lines + 8)
    first = (row_height - RANKER * (len(rankers) - 1)) / 2
    left, right = limits or fitting_limits(points, origin)
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(title, height=row_height * len(rows) + 66, left=LEFT, right=20, bottom=40)
        axes.set_xlim(left, right)
        axes.set_ylim(row_height * len(rows), 0)
        axes.axvline(origin, color=MUTED, linewidth=0.75)
        if len(rows) > 1:
            axes.hlines([row_height * n for n in range(1, len(rows))], left, right, color=RULE, linewidth=0.5)
        for place, ranker in enumerate(rankers):
            colour, marker = series_colour(series[ranker]), series_marker(series[ranker])
            for certain in (True, False):
                drawn = [point for point in points if point.ranker == ranker and point.certain is certain]
                if not drawn:
                    continue
                y = [row_height * rows.index(point.row) + first + RANKER * place for point in drawn]
                alpha = 1.0 if certain else 0.55
                low, high = [max(point.low, left) for point in drawn], [min(point.high, right) for point in drawn]
                axes.hlines(y, low, high, color=colour, alpha=alpha, linewidth=1.5)
                axes.plot(
                    [min(max(point.gain, left), right) for point in drawn],
                    y,
                    marker=marker,
                    markersize=5,
                    color=colour,
                    markerfacecolor=colour if certain else PAPER,
                    linestyle="none",
                    alpha=alpha,
                )
        axes.set_yticks([row_height * (n + 0.5) for n in range(len(rows))], names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        if origin:
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))  # meets an origin of one decimal
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
            axes.xaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0")
            )
        axes.set_xlabel(axis)
        return svg(figure, name, _describe(title, points, "{:.4f}".format if origin else signed))


def fitting_limits(points: Sequence[ForestPoint], origin: float = 0.0) -> tuple[float, float]:
    """An axis that fits the origin and every interval that can tell; that of one that cannot may run off it."""
    certain = [point for point in points if point.certain] or list(points)
    low, high = min(origin, *(point.low for point in certain)), max(origin, *(point.high for point in certain))
    pad = 0.06 * (high - low) or 0.01
    return low - pad, high + pad


def _wrapped(row: str) -> str:
    lines = textwrap.wrap(row, ROW_NAME_LETTERS, max_lines=2, placeholder=" …") or [row]
    return "\n".join(line if len(line) <= ROW_NAME_LETTERS else f"{line[: ROW_NAME_LETTERS - 1]}…" for line in lines)


def _describe(title: str, points: Sequence[ForestPoint], written: Callable[[float], str]) -> str:
    """Every point of a small chart; the ends of a large one, whose table has them all."""
    shown = points
    if len(points) > 12:
        shown = [min(points, key=lambda point: point.gain), max(points, key=lambda point: point.gain)]
    said = [f"{p.row}, {p.ranker}: {written(p.gain)} ({written(p.low)} to {written(p.high)})" for p in shown]
    if shown is points:
        return f"{title}. With 95% interval: {'; '.join(said)}."
    return f"{title}. {len(points)} values with 95% interval, from {said[0]} up to {said[1]}."
