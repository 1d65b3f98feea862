"""The rows of the report's tables and charts, from the table of segment metrics."""

from dataclasses import dataclass
from typing import Any

import dataframely as dy
import polars as pl

from feature_repo.table_schemas import SegmentMetrics
from ranker.comparison import METRICS
from ranker.printed_table import NO_VALUE, Cell, Column, PrintedTable, Row, count, mark_repeats, share
from ranker.wording import CEILING, METRIC_NAMES, segment_name, short_segment_name, signed

MARKS = {"better": "▲", "worse": "▼"}


@dataclass(frozen=True)
class MetricCell:
    """One value and its gain, as printed, and the numbers behind."""

    value: str
    interval: str
    gain: str
    gain_interval: str
    mark: str
    verdict: str
    """Empty for the baseline."""
    seeds: str
    detectable: str
    numbers: tuple[float | None, float | None, float | None]
    """Value, gain, minimum detectable difference."""


@dataclass(frozen=True)
class RankerRow:
    """One ranker within a segment; a cell per metric, UAUC first."""

    ranker: str
    cells: tuple[MetricCell, ...]


@dataclass(frozen=True)
class SegmentRows:
    """A segment, its size, and a row per ranker."""

    kind: str
    name: str
    share: Cell
    users: str
    rows: tuple[RankerRow, ...]


@dataclass(frozen=True)
class ForestPoint:
    """A ranker's gain in one segment, or whatever else has an interval on both sides of zero."""

    row: str
    """What it is drawn beside: a segment, under the heading of its kind."""
    ranker: str
    gain: float
    low: float
    high: float
    certain: bool
    """False where the segment is too small to tell: drawn hollow and pale."""
    kind: str = ""


SHOWN_METRICS = ("uauc", "wuauc", "auc")
assert set(SHOWN_METRICS) == set(METRICS)


def segment_table(metrics: dy.DataFrame[SegmentMetrics], label: str) -> list[SegmentRows]:
    """Segments of one label in the table's order, each with its rankers."""
    total = metrics.filter(label=label, segment_kind="all")["num_impressions"][0]
    segments = []
    for (kind, segment), rows in _segments(metrics.filter(label=label)):
        by_ranker: dict[str, dict[str, dict[str, Any]]] = {}
        for row in rows.iter_rows(named=True):
            by_ranker.setdefault(row["ranker"], {})[row["metric"]] = row
        users = rows.filter(metric="uauc").row(0, named=True)
        segments.append(
            SegmentRows(
                kind=kind,
                name=segment_name(kind, segment),
                share=share(users["num_impressions"], total),
                users=f"{users['num_users']:,}",
                rows=tuple(
                    RankerRow(ranker, tuple(_cell(by_metric[metric]) for metric in SHOWN_METRICS))
                    for ranker, by_metric in by_ranker.items()
                ),
            )
        )
    return segments


def printed_segments(
    metrics: dy.DataFrame[SegmentMetrics], label: str, title: str, about: str, *, baseline: str | None
) -> PrintedTable:
    """The segment table of one label: a row per (segment, ranker), sortable by every figure."""
    columns = [
        Column("Segment", is_text=True, is_said_once=True),
        Column("Share", is_said_once=True),
        Column("Ranker", is_text=True),
    ]
    for metric in SHOWN_METRICS:
        figures = ("value", "gain", "detectable") if baseline else ("value",)
        columns += [Column(figure, METRIC_NAMES[metric]) for figure in figures]
    rows = []
    for segment in segment_table(metrics, label):
        size = Cell(segment.share.text, segment.share.value, small=f"{segment.users} users")
        for row in segment.rows:
            cells = [Cell(segment.name), size, Cell(row.ranker)]
            for one in row.cells:
                value, gain, detectable = one.numbers
                cells.append(Cell(one.value, value, small=one.interval, tip=one.seeds))
                if baseline and row.ranker == baseline:
                    cells += [Cell(""), Cell("")]
                elif baseline:
                    said = (one.verdict, one.mark) if row.ranker != CEILING else ("", "")
                    cells.append(Cell(one.gain, gain, one.gain_interval, *said))
                    cells.append(Cell(one.detectable, detectable))
            rows.append(Row(tuple(cells), segment.kind, row.ranker))
    return PrintedTable(label, title, about, tuple(columns), mark_repeats(tuple(columns), rows))


SIZE_COLUMNS = (
    Column("Segment", is_text=True),
    Column("number", "Impressions"),
    Column("share", "Impressions"),
    Column("number", "Positives"),
    Column("share", "Positives"),
    Column("counted", "Users"),
    Column("left out", "Users"),
    Column("impressions", "Left out, share of"),
    Column("positives", "Left out, share of"),
)


def printed_sizes(metrics: dy.DataFrame[SegmentMetrics], label: str, title: str, about: str) -> PrintedTable:
    """How much of the log each segment is, and what UAUC and WUAUC leave out of it. The same for every ranker."""
    uauc = metrics.filter(label=label, metric="uauc")
    uauc = uauc.filter(ranker=uauc["ranker"][0])
    everything = uauc.row(0, named=True)
    rows = [
        Row(
            (
                Cell(segment_name(row["segment_kind"], row["segment"])),
                count(row["num_impressions"]),
                share(row["num_impressions"], everything["num_impressions"]),
                count(row["num_positives"]),
                share(row["num_positives"], everything["num_positives"]),
                count(row["num_users"]),
                count(row["num_users_skipped"]),
                share(row["num_impressions_skipped"], row["num_impressions"]),
                share(row["num_positives_skipped"], row["num_positives"]),
            ),
            row["segment_kind"],
        )
        for row in uauc.iter_rows(named=True)
    ]
    return PrintedTable(f"sizes-{label}", title, about, SIZE_COLUMNS, tuple(rows))


def forest_points(metrics: dy.DataFrame[SegmentMetrics], label: str, metric: str) -> list[ForestPoint]:
    """Gains with intervals, by segment; the ceiling is left to the table, as it would dwarf the rest."""
    rows = metrics.filter(pl.col("gain_low").is_not_null(), pl.col("ranker") != CEILING, label=label, metric=metric)
    return [
        ForestPoint(
            row=short_segment_name(row["segment_kind"], row["segment"]),
            ranker=row["ranker"],
            gain=row["gain"],
            low=row["gain_low"],
            high=row["gain_high"],
            certain=row["verdict"] != "cannot tell",
            kind=row["segment_kind"],
        )
        for _, group in _segments(rows)
        for row in group.iter_rows(named=True)
    ]


def _segments(metrics: pl.DataFrame) -> list[tuple[tuple[str, str], pl.DataFrame]]:
    groups = metrics.group_by("segment_kind", "segment", maintain_order=True)
    return [((str(kind), str(segment)), rows) for (kind, segment), rows in groups]


def _cell(row: dict[str, Any]) -> MetricCell:
    return MetricCell(
        value=_number(row["value"]),
        interval=f"{row['low']:.4f} to {row['high']:.4f}" if row["low"] is not None else "",
        gain=signed(row["gain"]) if row["gain"] is not None else NO_VALUE,
        gain_interval=f"{signed(row['gain_low'])} to {signed(row['gain_high'])}" if row["gain_low"] is not None else "",
        mark=MARKS.get(row["verdict"] or "", ""),
        verdict=row["verdict"] or "",
        seeds=f"standard deviation over {row['num_seeds']} seeds {row['seed_standard_deviation']:.4f}"
        if row["seed_standard_deviation"] is not None
        else "",
        detectable=_number(row["minimum_detectable"]),
        numbers=(row["value"], row["gain"], row["minimum_detectable"]),
    )


def _number(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.4f}"
