"""Segments on a terminal: how much of the log each is, and how the rankers do within it."""

import re
from collections.abc import Iterable, Sequence

import dataframely as dy
import polars as pl
from rich import box
from rich.table import Table
from rich.text import Text

from feature_repo.table_schemas import SegmentMetrics
from jobs.impression_segments import SegmentShare
from ranker.printed_table import NO_VALUE
from ranker.report_tables import MetricCell, segment_table
from ranker.segments import TIER_KINDS
from ranker.wording import CEILING, LABEL_NAMES, kind_name, short_segment_name

VERDICT_STYLES = {"better": "green", "worse": "red", "cannot tell": "dim"}


def shares_table(shares: Iterable[SegmentShare]) -> Table:
    """Each segment's share of the test, as LEARN's paper states it of its own."""
    table = Table(
        title="Share of the test split",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("segment", overflow="fold")
    for column in ("impressions", "clicks", "conversions"):
        table.add_column(column, justify="right", no_wrap=True)
    last = None
    for one in shares:
        if last != one.kind:
            table.add_section()
            if one.kind not in TIER_KINDS:
                table.add_row(Text(kind_name(one.kind), "bold"))
        last = one.kind
        printed = (NO_VALUE if part is None else f"{part:.1%}" for part in one[2:])
        table.add_row(short_segment_name(one.kind, one.segment), *printed)
    return table


def terminal_table(
    metrics: dy.DataFrame[SegmentMetrics],
    label: str = "clicked",
    segment_kinds: Sequence[str] | None = TIER_KINDS,
) -> Table:
    """UAUC and WUAUC by segment and ranker, with the gain over the baseline. Fits 80 columns.

    The interval of UAUC is printed; that of WUAUC is in the report, with AUC.

    Args:
        metrics: what `ranker.comparison.compare` gives.
        label: which outcome.
        segment_kinds: kinds to show beside the overall figures, None for all; those not shown are named below.
    """
    shown, not_shown = _shown(metrics, label, segment_kinds)
    compared = bool(metrics["baseline"].is_not_null().any())
    table = Table(
        title=f"{LABEL_NAMES[label]}, by segment",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        caption=(
            "gain in percentage points [95% interval], paired by user\n"
            "▲ better, ▼ worse (Holm-adjusted); dim: too little to tell"
            if compared
            else "value [95% interval]"
        )
        + not_shown,
        caption_justify="left",
    )
    table.add_column("segment", no_wrap=True)
    table.add_column("ranker", no_wrap=True)
    table.add_column("UAUC", justify="right", no_wrap=True)
    table.add_column("gain" if compared else "", justify="right", no_wrap=True)
    table.add_column("WUAUC", justify="right", no_wrap=True)
    table.add_column("gain" if compared else "", justify="right", no_wrap=True)
    for segment in segment_table(shown, label):
        for place, row in enumerate(segment.rows):
            uauc, wuauc = row.cells[:2]
            is_ceiling = row.ranker == CEILING
            style = "dim italic" if is_ceiling else ""
            table.add_row(
                (Text(segment.name), Text(f"{segment.users} users", "dim"), Text())[min(place, 2)],
                Text(row.ranker, style),
                Text(_short(uauc.value), style),
                _gain(uauc, is_ceiling) + _interval(uauc, compared, is_ceiling),
                Text(_short(wuauc.value), style),
                _gain(wuauc, is_ceiling) if compared else _interval(wuauc, compared, is_ceiling),
                end_section=place == len(segment.rows) - 1,
            )
    return table


def _shown(
    metrics: dy.DataFrame[SegmentMetrics], label: str, segment_kinds: Sequence[str] | None
) -> tuple[dy.DataFrame[SegmentMetrics], str]:
    """The rows of the kinds shown, and a line on those that are not."""
    if segment_kinds is None:
        return metrics, ""
    is_shown = pl.col("segment_kind").is_in(["all", *segment_kinds])
    others = metrics.filter(~is_shown, label=label).select("segment_kind", "segment").unique(maintain_order=True)
    kinds = others["segment_kind"].unique(maintain_order=True).str.replace_all("_", " ")
    line = f"\n{others.height} more segments in the report, by {', '.join(kinds)}" if others.height else ""
    return SegmentMetrics.cast(metrics.filter(is_shown)), line


def _gain(cell: MetricCell, is_ceiling: bool) -> Text:
    if not cell.verdict:
        return Text()
    if is_ceiling:
        return Text(_points(cell.gain), "dim italic")
    return Text(f"{cell.mark} {_points(cell.gain)}".strip(), VERDICT_STYLES.get(cell.verdict, ""))


def _interval(cell: MetricCell, compared: bool, is_ceiling: bool) -> Text:
    printed = _points(cell.gain_interval) if compared else _short(cell.interval)
    if not printed:
        return Text()
    return Text(f" [{printed.replace(' to ', ', ')}]", "dim italic" if is_ceiling else "dim")


def _points(numbers: str) -> str:
    """+2.46 for +0.0246: percentage points, in a line of 80 columns."""
    return re.sub(r"[+−]\d\.\d+", lambda found: _hundredfold(found.group()), numbers)


def _hundredfold(number: str) -> str:
    return f"{100 * float(number.replace('−', '-')):+.2f}".replace("-", "−")


def _short(number: str) -> str:
    """.6384 for 0.6384: four digits are what fits."""
    return number.replace("0.", ".")
