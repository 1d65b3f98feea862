"""What each feature group is worth and what it costs, as the report prints and draws it."""

from typing import Any

import dataframely as dy
import polars as pl

from feature_repo.table_schemas import FeatureGroupCosts, FeatureGroupValues
from ranker.printed_table import NO_VALUE, Cell, Column, PrintedTable, Row, count, mark_repeats, number
from ranker.report_tables import ForestPoint
from ranker.segments import TIER_KINDS
from ranker.wording import METRIC_NAMES, segment_name, short_segment_name, signed

MARKS = {"helps": "▲", "hurts": "▼"}

METRICS = ("uauc", "wuauc")

VALUE_COLUMNS = (
    Column("Group", is_text=True, is_said_once=True),
    Column("Ranker", is_text=True),
    Column("Method", is_text=True),
    Column("Segment", is_text=True),
    Column("users"),
    *(Column(name, METRIC_NAMES[metric]) for metric in METRICS for name in ("with", "without", "lost")),
)

COST_COLUMNS = (
    Column("Group", is_text=True, is_said_once=True),
    Column("Ranker", is_text=True),
    Column("features"),
    Column("to make"),
    Column("online"),
    Column("with", "Rows scored a second"),
    Column("without", "Rows scored a second"),
)

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def printed_values(values: dy.DataFrame[FeatureGroupValues], about: str) -> PrintedTable:
    """A row per (group, ranker, method, segment), both metrics side by side."""
    key = ("feature_group", "ranker", "method", "segment_kind", "segment")
    cells: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in values.sort("feature_group", maintain_order=True).iter_rows(named=True):
        cells.setdefault(tuple(row[name] for name in key), {})[row["metric"]] = row
    rows = []
    for (group, ranker, method, kind, segment), by_metric in cells.items():
        words = (group, ranker, method, segment_name(kind, segment))
        users = count(next(iter(by_metric.values()))["num_users"])
        figures = [cell for metric in METRICS for cell in _value_cells(by_metric.get(metric))]
        rows.append(Row((*map(Cell, words), users, *figures), kind=kind, ranker=ranker))
    return PrintedTable("group-values", "Value by segment", about, VALUE_COLUMNS, mark_repeats(VALUE_COLUMNS, rows))


def _value_cells(row: dict[str, Any] | None) -> tuple[Cell, Cell, Cell]:
    """With the group, without it, and what is lost."""
    if row is None:
        return Cell(""), Cell(""), Cell("")
    verdict = row["verdict"] or ""
    lost = Cell(
        NO_VALUE if row["value_lost"] is None else signed(row["value_lost"]),
        row["value_lost"],
        small="" if row["low"] is None else f"{signed(row['low'])} to {signed(row['high'])}",
        verdict=verdict,
        mark=MARKS.get(verdict, ""),
    )
    return number(row["value_with"], 4), number(row["value_without"], 4), lost


def printed_costs(costs: dy.DataFrame[FeatureGroupCosts], about: str) -> PrintedTable:
    """A row per (group, ranker)."""
    rows = [
        Row(
            (
                Cell(row["feature_group"]),
                Cell(row["ranker"]),
                count(row["num_features"]),
                _seconds(row["seconds_to_make"]),
                _bytes(row["num_bytes_online"]),
                _rate(row["rows_per_second_with"]),
                _rate(row["rows_per_second_without"]),
            ),
            ranker=row["ranker"],
        )
        for row in costs.sort("feature_group", maintain_order=True).iter_rows(named=True)
    ]
    return PrintedTable("group-costs", "What a group costs", about, COST_COLUMNS, mark_repeats(COST_COLUMNS, rows))


def overall_points(values: dy.DataFrame[FeatureGroupValues], method: str) -> list[ForestPoint]:
    """UAUC lost on all impressions, a row per group."""
    return _points(values.filter(method=method, metric="uauc", segment_kind="all"), "feature_group")


def tier_points(values: dy.DataFrame[FeatureGroupValues], method: str, group: str) -> list[ForestPoint]:
    """UAUC lost without one group: overall and in each tier; other segments are left to the table."""
    rows = values.filter(pl.col("segment_kind").is_in(["all", *TIER_KINDS]))
    return _points(rows.filter(method=method, metric="uauc", feature_group=group), "segment")


def _points(rows: pl.DataFrame, beside: str) -> list[ForestPoint]:
    return [
        ForestPoint(
            row=short_segment_name(row["segment_kind"], row["segment"]) if beside == "segment" else row[beside],
            ranker=row["ranker"],
            gain=row["value_lost"],
            low=row["low"],
            high=row["high"],
            certain=row["verdict"] != "cannot tell",
        )
        for row in rows.filter(pl.col("low").is_not_null()).iter_rows(named=True)
    ]


def _seconds(value: float | None) -> Cell:
    if value is None:
        return Cell(NO_VALUE)
    if value < 10:
        return Cell(f"{value:.1f} s", value)
    return Cell(f"{value:,.0f} s" if value < 600 else f"{value / 60:,.0f} min", value)


def _bytes(value: int | None) -> Cell:
    if value is None:
        return Cell(NO_VALUE)
    size, unit = next(((size, unit) for size, unit in UNITS if value >= size), UNITS[-1])
    return Cell(f"{value / size:,.{0 if unit == 'B' else 1}f} {unit}", value)


def _rate(value: float | None) -> Cell:
    return Cell(NO_VALUE) if value is None else Cell(f"{value:,.0f}", value)
