"""Maps of where an embedding model attends, before training and after: barcodes, if it has collapsed."""

from collections.abc import Mapping

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ranker.charts import INK, MUTED, PIXELS_PER_INCH, RULE, STYLE, WIDTH, svg

SHADES = 20
"""Steps between nothing and the darkest cell: cells of a shade are one path, so a large map is a small text."""


def attention_maps(name: str, method: str, attention: pl.DataFrame) -> list[str]:
    """Two charts, of heads and of positions, each of the untouched and of the fitted model side by side.

    Args:
        name: unique on the page.
        method: as it is printed.
        attention: rows of `LearnAttention` or `KarmaAttention`; none gives no chart.
    """
    heads, positions = {}, {}
    for moment in ("untouched", "fitted"):
        rows = attention.filter(pl.col("moment").cast(pl.String) == moment).sort("layer", "head")
        if rows.height:
            by_layer = rows.partition_by("layer", maintain_order=True)
            heads[moment] = np.array([layer["top1_mass"].to_list() for layer in by_layer])
            positions[moment] = np.array([np.mean(layer["column_means"].to_list(), axis=0) for layer in by_layer])
    if not heads:
        return []
    return [
        heat_maps(f"{name}-heads", f"{method}: heaviest position of a head", "head", heads),
        heat_maps(f"{name}-positions", f"{method}: attention by position", "position", positions, is_faint=True),
    ]


def heat_maps(
    name: str, title: str, across: str, maps: Mapping[str, NDArray[np.float64]], *, is_faint: bool = False
) -> str:
    """Maps [layers, columns] of shares side by side, on one scale from 0 to the largest; more ink is more.

    Args:
        name: unique on the page.
        title: of the chart.
        across: what the columns are.
        maps: by what each is a map of.
        is_faint: most shares are small beside the largest: ink goes by their square root, and cells touch.
    """
    layers = max(len(each) for each in maps.values())
    top = max(float(each.max()) for each in maps.values()) or 1.0
    cell = min(26, max(5, round(180 / layers)))
    left, right, gap, above, below = 40, 8, 16, 46, 38
    height = above + cell * layers + below
    width = (WIDTH - left - right - gap * (len(maps) - 1)) / len(maps)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / PIXELS_PER_INCH, height / PIXELS_PER_INCH))
        figure.text(0, 1 - 18 / height, title, color=INK, fontsize=9)
        _key(figure, height, top, is_faint=is_faint)
        for place, (said, shares) in enumerate(maps.items()):
            box = (left + place * (width + gap), below, width, cell * layers)
            axes = figure.add_axes((box[0] / WIDTH, box[1] / height, box[2] / WIDTH, box[3] / height))
            axes.set_title(said, color=MUTED, fontsize=8.25, pad=4)
            _shade(axes, shares / top, is_faint=is_faint, inset=0.0 if is_faint else 0.06)
            axes.set_xlabel(across)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(min(6, layers), integer=True, steps=[1, 2, 5, 10]))
            for spine in axes.spines.values():
                spine.set_visible(True)
            if place:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel("layer")
        told = "; ".join(_peak(said, shares, across) for said, shares in maps.items())
        return svg(figure, name, f"{title}, by layer and {across}: {told}.")


def _peak(said: str, shares: NDArray[np.float64], across: str) -> str:
    layer, column = np.unravel_index(int(shares.argmax()), shares.shape)
    return (
        f"{said} {shares.mean():.3f} on average, at most {shares.max():.3f} in layer {layer + 1}, {across} {column + 1}"
    )


def _shade(axes: Axes, shares: NDArray[np.float64], *, is_faint: bool, inset: float) -> None:
    """Cells of a map in [0, 1], layer 1 on top; neighbours of one shade are one rectangle where cells touch."""
    shades = np.rint((np.sqrt(shares) if is_faint else shares) * SHADES).astype(int)
    corners: dict[int, list[tuple[float, float, float]]] = {}
    for row, line in enumerate(shades.tolist()):
        start = 0
        for stop in range(1, len(line) + 1):
            if stop == len(line) or line[stop] != line[start] or inset:
                corners.setdefault(line[start], []).append((row + 0.5, start + 0.5, stop + 0.5))
                start = stop
    for shade, runs in sorted(corners.items()):
        if shade:
            paths = [_rectangle(x0 + inset, x1 - inset, y + inset, y + 1 - inset) for y, x0, x1 in runs]
            axes.add_patch(PathPatch(Path.make_compound_path(*paths), color=INK, alpha=shade / SHADES, linewidth=0))
    axes.set_xlim(0.5, shares.shape[1] + 0.5)
    axes.set_ylim(shares.shape[0] + 0.5, 0.5)


def _rectangle(x0: float, x1: float, y0: float, y1: float) -> Path:
    return Path([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], closed=True)


def _key(figure: Figure, height: int, top: float, *, is_faint: bool) -> None:
    """What the darkest ink stands for, in the top right corner."""
    right, wide, high = WIDTH - 8, 48, 8
    axes = figure.add_axes(((right - wide - 26) / WIDTH, 1 - 18 / height, wide / WIDTH, high / height))
    _shade(axes, np.linspace(0, 1, 9)[None], is_faint=is_faint, inset=0.0)
    axes.set_axis_off()
    for at, text, side in ((right - wide - 30, "0", "right"), (right, f"{top:.2f}", "right")):
        figure.text(at / WIDTH, 1 - 17 / height, text, color=MUTED, ha=side)
    axes.add_patch(PathPatch(_rectangle(0.5, 9.5, 0.5, 1.5), facecolor="none", edgecolor=RULE, linewidth=0.75))
