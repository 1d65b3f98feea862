"""How healthy embedding models are before training and after, as the report prints it."""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from ranker.printed_table import MANY, Cell, Column, PrintedTable, Row, compact, number, percent

SINK_MASS = 0.3
"""A head has a sink if one position takes a larger share: that of `embedders.attention_maps`."""

COLUMNS = (
    Column("Model", is_text=True, is_said_once=True),
    Column("Moment", is_text=True),
    Column("recall", "Found"),
    Column("JS@50", "Found"),
    Column("effective rank", "User vectors"),
    Column("participation", "User vectors"),
    Column("uniformity", "User vectors"),
    Column("alignment", "User vectors"),
    Column("top 1", "Attention"),
    Column("top 4", "Attention"),
    Column("entropy", "Attention"),
    Column("heads with a sink", "Attention"),
    Column("perplexity", "Titles"),
)

MOMENTS = {"untouched": "before training", "fitted": "as kept"}


def printed_health(models: Mapping[str, tuple[pl.DataFrame | None, pl.DataFrame | None]]) -> PrintedTable | None:
    """A row per (model, moment) of which anything but the loss is known; None of none.

    Args:
        models: by name: training curves, and where it attends; each may be missing.
    """
    rows = []
    for model, (curves, attention) in models.items():
        known = False
        for moment, said in MOMENTS.items():
            values = {**_of_attention(attention, moment), **_of_curves(curves, moment)}
            cells = _cells(values)
            if any(cell.value is not None for cell in cells):
                rows.append(Row((Cell(model), Cell(said), *cells), is_repeat=known))
                known = True
    if not rows:
        return None
    about = (
        "Of held-out users. A collapse shows as fewer directions of user vectors (effective rank, participation), as "
        "uniformity nearer to 0, and as more attention on the heaviest position (top 1) or four (top 4), its entropy "
        f"below that of even attention (1). A sink: one position has more than {SINK_MASS:.0%} of a head."
    )
    return PrintedTable("embeddings", "Embedding models before training and after", about, COLUMNS, tuple(rows))


def _of_curves(curves: pl.DataFrame | None, moment: str) -> dict[str, Any]:
    """Figures of epoch -1, or of the epoch kept; empty where there is no such epoch."""
    if curves is None:
        return {}
    chosen = curves.filter(pl.col("epoch") < 0) if moment == "untouched" else curves.filter("is_best")
    known = chosen.row(-1, named=True) if chosen.height else {}
    return {name: value for name, value in known.items() if value is not None}


def _of_attention(attention: pl.DataFrame | None, moment: str) -> dict[str, float]:
    """Means over heads; empty where attention was not looked at."""
    if attention is None:
        return {}
    heads = attention.filter(pl.col("moment").cast(pl.String) == moment)
    if heads.is_empty():
        return {}
    means = {name: math.fsum(heads[name]) / heads.height for name in ("top1_mass", "top4_mass", "column_entropy")}
    return {**means, "share_of_sink_heads": heads.filter(pl.col("top1_mass") > SINK_MASS).height / heads.height}


def _cells(values: Mapping[str, Any]) -> list[Cell]:
    return [
        number(values.get("validation_recall"), 4),
        number(values.get("title_similarity"), 4),
        number(values.get("effective_rank"), 1),
        number(values.get("participation_ratio"), 1),
        _below_zero(values.get("uniformity")),
        number(values.get("alignment"), 2),
        number(values.get("top1_mass"), 3),
        number(values.get("top4_mass"), 3),
        number(values.get("column_entropy"), 3),
        percent(values.get("share_of_sink_heads"), 0),
        _perplexity(values.get("title_perplexity")),
    ]


def _perplexity(value: float | None) -> Cell:
    return number(value, 1) if value is None or value < MANY else Cell(compact(value), value)


def _below_zero(value: float | None) -> Cell:
    cell = number(value, 2)
    return Cell(cell.text.replace("-", "−"), cell.value)
