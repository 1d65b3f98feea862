"""How the report's charts are drawn: SVG text that takes its colours and its typeface from the page around it.

Each chart is as wide as a phone, and is never scaled up: a wide page sets several side by side.
Matplotlib is given stand-in colours, which become CSS variables, so that the page's dark mode reaches the charts.
"""

import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 340
"""Pixels: three fit side by side on the page, one on a phone."""

PIXELS_PER_INCH = 96

INK, MUTED, RULE, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
MARKERS = ("o", "s", "D", "^", "v", "P")
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    colour: f"--series-{place + 1}" for place, colour in enumerate(SERIES)
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a category may be called "$5 to $10"
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
"""For `matplotlib.rc_context`, around all drawing."""


def canvas(title: str, *, height: int, left: int, right: int, bottom: int) -> tuple[Figure, Axes]:
    """A figure WIDTH x height pixels: a title flush left, and one set of axes inside the given margins."""
    top = 26
    figure = Figure(figsize=(WIDTH / PIXELS_PER_INCH, height / PIXELS_PER_INCH))
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
    axes = figure.add_axes(box)
    axes.set_title(title, x=-left / (WIDTH - left - right))
    return figure, axes


def series_colour(place: int) -> str:
    """Colour of the ranker in that place."""
    return SERIES[place % len(SERIES)]


def series_marker(place: int) -> str:
    """Marker of the ranker in that place; the legend of the page repeats it."""
    return MARKERS[place % len(MARKERS)]


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element for the inside of a page; the same figure always gives the same text.

    Args:
        figure: drawn inside `matplotlib.rc_context(STYLE)`.
        name: unique on the page; ids begin with it.
        description: what a reader who does not see the chart is told.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        nothing: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*\n\s*", "\n", text)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag.group()), text)  # finer is not seen
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    height = round(figure.get_figheight() * PIXELS_PER_INCH)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    opening = f'<svg viewBox="0 0 {_points(WIDTH)} {_points(height)}" width="{WIDTH}" height="{height}" role="img" '
    return opening + f'aria-label="{label}">' + text[text.index(">") + 1 :].strip()


def _points(pixels: int) -> str:
    """Matplotlib draws in points, 72 to the inch."""
    return f"{pixels * 72 / PIXELS_PER_INCH:g}"
