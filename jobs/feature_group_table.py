"""Feature groups on a terminal: what each is worth by segment, and what it costs."""

import dataframely as dy
import polars as pl
from rich import box
from rich.table import Table
from rich.text import Text

from feature_repo.table_schemas import FeatureGroupCosts, FeatureGroupValues

MARKS = {"helps": ("▲", "green"), "hurts": ("▼", "red"), "no difference": ("", ""), "cannot tell": ("", "dim")}

HEADINGS = {"all": "all", "cold_start": "cold-start", "long_tail": "long-tail", "others": "others"}


def value_table(values: dy.DataFrame[FeatureGroupValues], ranker: str, method: str, metric: str = "uauc") -> Table:
    """One row a group, one column a segment: the metric lost without the group, in percentage points.

    Args:
        values: of any rankers.
        ranker: which.
        method: `permuted` or `retrained`.
        metric: `uauc` or `wuauc`.
    """
    how = {"permuted": "shuffled within each user", "retrained": "left out, and the ranker trained again"}[method]
    rows = values.filter(ranker=ranker, method=method, metric=metric)
    table = _table(
        f"{ranker}: {metric.upper()} of clicks lost when a group is {how}",
        "percentage points; ▲ the group helps, ▼ it hurts (Holm-adjusted over the segments); dim or –: cannot tell",
    )
    table.add_column("group", no_wrap=True)
    cells = rows.select("segment_kind", "segment").unique(maintain_order=True).rows()
    for kind, segment in cells:
        table.add_column(_heading(kind, segment), justify="right")
    for group in rows["feature_group"].unique(maintain_order=True):
        found = {(row["segment_kind"], row["segment"]): row for row in rows.filter(feature_group=group).to_dicts()}
        told = [
            _lost(found[cell]["value_lost"], found[cell]["verdict"]) if cell in found else Text("") for cell in cells
        ]
        table.add_row(group, *told)
    return table


def cost_table(costs: dy.DataFrame[FeatureGroupCosts], ranker: str) -> Table:
    """One row a group: what it takes to have it."""
    table = _table(
        f"{ranker}: what each group costs",
        "seconds of the steps that make it, when they last ran (–: given with the log); bytes of all entities in the "
        "online store; test rows that the ranker scores in a second with every group, and without this one",
    )
    table.add_column("group", no_wrap=True)
    for heading in ("features", "seconds", "MB online", "rows/s with", "without"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in costs.filter(ranker=ranker).to_dicts():
        online = row["num_bytes_online"]
        table.add_row(
            row["feature_group"],
            f"{row['num_features']}",
            _number(row["seconds_to_make"], 1),
            _number(None if online is None else online / 1e6, 1),
            _number(row["rows_per_second_with"], 0),
            _number(row["rows_per_second_without"], 0),
        )
    return table


def print_order(values: dy.DataFrame[FeatureGroupValues]) -> list[tuple[str, str]]:
    """(ranker, method) of each table of values, in the order of the rows."""
    return values.select(pl.col("ranker", "method")).unique(maintain_order=True).rows()


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _heading(kind: str, segment: str) -> str:
    name = HEADINGS.get(segment, segment)
    things = {"all": "", "user_segment": "users", "item_segment": "items"}.get(kind, kind.replace("_", " "))
    return f"{things}\n{name}" if things else name


def _lost(value: float | None, verdict: str | None) -> Text:
    mark, style = MARKS[verdict or "cannot tell"]
    return Text("–", "dim") if value is None else Text(f"{100 * value:+.2f}{mark}".replace("-", "−"), style)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
