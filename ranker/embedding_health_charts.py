"""Charts of the training of embedding models: losses, what is found, and whether what is trained collapses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ranker.charts import INK, MUTED, STYLE, canvas, series_colour, svg
from ranker.printed_table import compact

BEFORE = -1
"""The epoch that stands for the model before any step."""

LABEL_GAP = 0.085
"""Between the names of two lines, as a share of the height of the axes."""

EPOCHS_BESIDE_BEFORE = 6
"""With more epochs the tick of epoch 0 would touch the word before it."""

DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1.5, 1.5), (7, 2), (5, 1.5, 1.5, 1.5))
"""Of the lines of one chart, so that colour is not all that tells them apart."""


class Chart(NamedTuple):
    """A title, the unit of the vertical axis, the columns of the lines by their names, and how the axis is divided."""

    title: str
    unit: str
    columns: Mapping[str, str]
    is_log: bool = False


CHARTS = (
    Chart(
        "training loss",
        "loss",
        {
            "total": "train_loss",
            "action": "action_loss",
            "generation": "generation_loss",
            "reconstruction": "reconstruction_loss",
            "image": "image_loss",
        },
    ),
    Chart("recall of held-out items", "recall", {"recall": "validation_recall"}),
    Chart("likeness of titles, JS@50", "Jaccard", {"JS@50": "title_similarity"}),
    Chart("user vectors", "directions", {"effective rank": "effective_rank", "participation": "participation_ratio"}),
    Chart("heaviest positions", "share of attention", {"top 1": "top1_mass", "top 4": "top4_mass"}),
    Chart("titles", "perplexity", {"perplexity": "title_perplexity"}, is_log=True),
)
"""Of every embedding model, as far as its curves have the columns."""


@dataclass(frozen=True)
class Line:
    """A value an epoch, None where it was not measured."""

    label: str
    values: Sequence[float | None]


def training_curves(method: str, curves: pl.DataFrame) -> list[str]:
    """Every chart of CHARTS that there is something to draw for.

    Args:
        method: as it is printed; what ids begin with.
        curves: rows of `EmbedderCurves` of one method, or of `KarmaCurves`. A column that the table is too old to have
            was not measured.
    """
    run = curves.sort("epoch")
    kept = run.filter("is_best").get_column("epoch").to_list()
    stages = run.get_column("stage").cast(pl.String).to_list() if "stage" in run.columns else ()
    drawn = []
    for place, chart in enumerate(CHARTS):
        lines = [
            Line(label, run.get_column(column).to_list())
            for label, column in chart.columns.items()
            if column in run.columns and run.get_column(column).is_not_null().any()
        ]
        if lines:
            name, title = f"{method.lower()}-curve-{place}", f"{method}: {chart.title}"
            epochs = run.get_column("epoch").to_list()
            drawn.append(
                by_epoch(name, title, chart.unit, epochs, lines, kept=kept[-1:], stages=stages, is_log=chart.is_log)
            )
    return drawn


def by_epoch(
    name: str,
    title: str,
    unit: str,
    epochs: Sequence[int],
    lines: Sequence[Line],
    *,
    kept: Sequence[int] = (),
    stages: Sequence[str] = (),
    is_log: bool = False,
) -> str:
    """Lines over epochs, several named at their ends; a kept epoch has a large dot, a new stage follows a dotted line.

    Args:
        name: unique on the page.
        title: of the chart.
        unit: of the vertical axis.
        epochs: ascending; BEFORE is said in words.
        lines: each with a value at least.
        kept: the epochs whose weights were kept.
        stages: of each epoch, or none.
        is_log: whether equal steps of the vertical axis are equal ratios, where values differ a hundredfold; all must
            be above 0.
    """
    with matplotlib.rc_context(STYLE):
        by_ratio = is_log and _spans_orders(lines)
        left = 78 if by_ratio else 62  # "100,000" is wide
        figure, axes = canvas(title, height=230, left=left, right=104 if len(lines) > 1 else 12, bottom=44)
        for place, line in enumerate(lines):
            values = np.array([np.nan if value is None else value for value in line.values])
            (stroke,) = axes.plot(epochs, values, color=_colour(place), marker="o", markersize=2.5)
            stroke.set_dashes(DASHES[place % len(DASHES)])
            for epoch in kept:
                at = list(epochs).index(epoch)
                axes.plot([epoch], [values[at]], color=_colour(place), marker="o", markersize=6, linestyle="none")
        for place in range(1, len(stages)):
            if stages[place] != stages[place - 1] and epochs[place - 1] != BEFORE:
                axes.axvline((epochs[place - 1] + epochs[place]) / 2, color=MUTED, linewidth=0.75, dashes=(1, 2))
        ticks = MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]).tick_values(0, max(epochs))
        shown = [BEFORE] * (BEFORE in epochs) + [int(at) for at in ticks if 0 <= at <= max(epochs)]
        if BEFORE in epochs and max(epochs) > EPOCHS_BESIDE_BEFORE:
            shown.remove(0)  # the word has no room beside it
        axes.set_xticks(shown, ["before" if at == BEFORE else f"{at}" for at in shown])
        if by_ratio:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=6))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        if len(lines) > 1:
            _name_at_the_end(axes, lines)
        return svg(figure, name, f"{title} by epoch: {'; '.join(_said(line, epochs) for line in lines)}.")


def _spans_orders(lines: Sequence[Line]) -> bool:
    known = [value for line in lines for value in line.values if value is not None]
    return max(known) > 100 * min(known)


def _colour(place: int) -> str:
    """Of a chart's lines: ink, then the colours of the page."""
    return series_colour(place) if place else INK


def _said(line: Line, epochs: Sequence[int]) -> str:
    ends = [(value, epoch) for value, epoch in zip(line.values, epochs, strict=True) if value is not None]
    (first, start), (last, end) = ends[0], ends[-1]
    began = "before training" if start == BEFORE else f"in epoch {start}"
    return f"{line.label} {first:.4g} {began}, {last:.4g} in epoch {end}"


def _name_at_the_end(axes: Axes, lines: Sequence[Line]) -> None:
    """Names with a piece of the line beside their last values, pushed apart where they would cover each other."""
    low, high = axes.get_ylim()
    ends = [next(value for value in reversed(line.values) if value is not None) for line in lines]
    order = sorted(range(len(lines)), key=lambda place: ends[place])
    heights = [(ends[place] - low) / (high - low) for place in order]
    for place in range(1, len(heights)):
        heights[place] = max(heights[place], heights[place - 1] + LABEL_GAP)
    overshoot = max(0.0, heights[-1] - 1.0)
    for height, place in zip(heights, order, strict=True):
        y = height - overshoot
        (sample,) = axes.plot([1.03, 1.11], [y, y], color=_colour(place), transform=axes.transAxes, clip_on=False)
        sample.set_dashes(DASHES[place % len(DASHES)])
        axes.text(1.14, y, lines[place].label, color=INK, transform=axes.transAxes, va="center")
