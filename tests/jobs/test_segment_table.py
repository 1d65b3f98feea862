"""What the terminal shows of many segments."""

import io

import dataframely as dy
import numpy as np
import polars as pl
import pytest
from rich.console import Console

from feature_repo.table_schemas import SegmentMetrics
from jobs.impression_segments import SegmentShare
from jobs.segment_table import shares_table, terminal_table
from ranker.comparison import compare
from ranker.judged_runs import Run, line_up


@pytest.fixture(scope="module")
def metrics() -> dy.DataFrame[SegmentMetrics]:
    rng = np.random.default_rng(0)
    n = 2000
    frame = pl.DataFrame(
        {
            "impression_id": [str(i) for i in range(n)],
            "user_id": [str(u) for u in rng.integers(0, 80, n)],
            "clicked": rng.random(n) < 0.3,
            "item_segment": rng.choice(["cold_start", "others"], n),
            "country": rng.choice(["de", "fr"], n),
            "position": rng.choice(["0", "1-3", "10 and more"], n),
        }
    )
    runs = [Run(name, 0, frame.with_columns(p_ctr=pl.Series(rng.random(n)))) for name in ("base", "content")]
    judged = line_up(runs, segment_kinds=["item_segment", "country", "position"])
    return compare(judged, baseline="base", num_draws=100)


def printed(table: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_tiers_are_shown_and_the_others_counted(metrics: dy.DataFrame[SegmentMetrics]) -> None:
    shown = printed(terminal_table(metrics))
    assert "cold-start items" in shown
    assert "fr" not in shown.split("gain in percentage points")[0]
    assert "5 more segments in the report, by country, position" in shown


def test_all_kinds_can_be_shown_in_the_order_that_a_reader_expects(metrics: dy.DataFrame[SegmentMetrics]) -> None:
    shown = printed(terminal_table(metrics, segment_kinds=None))
    places = [shown.index(name) for name in ("cold-start items", "other items", "de", "fr", "1-3", "10 and more")]
    assert places == sorted(places)
    assert "more segments" not in shown
    only = printed(terminal_table(metrics, segment_kinds=("country",)))
    assert "5 more segments in the report, by item segment, position" in only


def test_every_figure_fits_80_columns(metrics: dy.DataFrame[SegmentMetrics]) -> None:
    assert "…" not in printed(terminal_table(metrics))


def test_shares_are_printed_kind_by_kind() -> None:
    shares = [
        SegmentShare("user_segment", "cold_start", 0.25, 0.5, None),
        SegmentShare("user_segment", "others", 0.75, 0.5, None),
        SegmentShare("brand", "acme", 0.1, 0.2, None),
    ]
    lines = [line.split() for line in printed(shares_table(shares)).splitlines()]
    assert ["cold-start", "users", "25.0%", "50.0%", "–"] in lines
    assert lines[lines.index(["Brand"]) + 1] == ["acme", "10.0%", "20.0%", "–"]
