"""Relevance in the report: every figure with its interval, every scorer explained, silence where nothing was judged."""

import datetime as dt
import json
import re
from typing import Any

import dataframely as dy
import polars as pl
import pytest

from feature_repo.table_schemas import RelevanceMetrics, SegmentMetrics, StudentCurves
from ranker.relevance_tables import METRIC_NAMES, SCORERS, judged_on, part_points, printed_by_part, printed_overall
from ranker.report import ReportData, render
from ranker.report_json import report_json

SIZES = {"all": (1_234, 56), "head": (900, 40), "tail": (334, 16)}


def validated(schema: type[dy.Schema], rows: list[dict[str, Any]]) -> Any:
    return schema.validate(pl.DataFrame(rows, schema={name: one.dtype for name, one in schema.columns().items()}))


def metrics(scorers: tuple[str, ...] = ("word overlap", "representation"), **changes: Any) -> Any:
    """Each scorer is 0.1 better than the one before; the tail has no ROC-AUC of word overlap."""
    rows = []
    for part, (num_pairs, num_queries) in SIZES.items():
        for place, scorer in enumerate(scorers):
            for metric in METRIC_NAMES:
                value = 0.7 + 0.1 * place
                found: dict[str, float | None] = {"value": value, "low": value - 0.05, "high": value + 0.05}
                if (part, scorer, metric) == ("tail", "word overlap", "roc_auc"):
                    found = dict.fromkeys(found)
                size = {"num_pairs": num_pairs, "num_queries": num_queries}
                rows.append({"scorer": scorer, "part": part, "metric": metric} | found | size | changes)
    return validated(RelevanceMetrics, rows)


def curves(num_epochs: dict[str, int]) -> Any:
    return validated(
        StudentCurves,
        [
            {"student": student, "epoch": epoch, "train_loss": 3.0 - epoch, "validation_roc_auc": 0.8 + 0.05 * epoch}
            | {"seconds": 1.0, "is_best": epoch == num - 1}
            for student, num in num_epochs.items()
            for epoch in range(num)
        ],
    )


def report(**changes: Any) -> ReportData:
    row = {"ranker": "mine", "label": "clicked", "segment_kind": "all", "segment": "all", "value": 0.6, "num_seeds": 1}
    sizes = dict.fromkeys(("num_impressions", "num_positives", "num_users"), 9)
    skipped = dict.fromkeys(("num_users_skipped", "num_impressions_skipped", "num_positives_skipped"), 0)
    judged = validated(SegmentMetrics, [row | sizes | skipped | {"metric": one} for one in ("uauc", "wuauc", "auc")])
    return ReportData(
        "How mine ranks", "made up", judged, {}, dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc), **changes
    )


def section(page: str) -> str:
    found = re.search(r'<section aria-labelledby="relevance">.*?</section>', page, flags=re.DOTALL)
    assert found is not None
    return found.group()


def test_the_table_has_a_row_for_each_scorer_over_all_test_queries() -> None:
    table = printed_overall(metrics(), "")
    assert [column.name for column in table.columns] == ["Scorer", *METRIC_NAMES.values()]
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["word overlap", *["0.700"] * 4],
        ["representation", *["0.800"] * 4],
    ]
    assert {cell.small for cell in table.rows[1].cells[1:]} == {"0.750 to 0.850"}


def test_by_part_every_scorer_is_listed_with_the_size_of_the_part_and_a_missing_value_is_a_dash() -> None:
    table = printed_by_part(metrics(), "")
    assert table is not None
    assert [[cell.text for cell in row.cells[:4]] for row in table.rows] == [
        [part, f"{num_queries}", f"{num_pairs:,}", scorer]
        for part, (num_pairs, num_queries) in SIZES.items()
        for scorer in ("word overlap", "representation")
    ]
    assert [row.is_repeat for row in table.rows] == [False, True] * 3
    missing = table.rows[4].cells[5]
    assert (missing.text, missing.value, missing.small) == ("–", None, "")
    assert printed_by_part(RelevanceMetrics.validate(metrics().filter(part="all")), "") is None


def test_the_chart_has_roc_auc_where_it_has_an_interval() -> None:
    assert [(point.row, point.ranker, round(point.gain, 3)) for point in part_points(metrics())] == [
        ("all: 56 queries", "word overlap", 0.7),
        ("all: 56 queries", "representation", 0.8),
        ("head: 40 queries", "word overlap", 0.7),
        ("head: 40 queries", "representation", 0.8),
        ("tail: 16 queries", "representation", 0.8),
    ]


def test_the_caption_counts_what_was_judged_and_says_that_nobody_learnt_from_it() -> None:
    said = judged_on(metrics())
    assert said.startswith("1,234 pairs that people judged, of 56 test queries")
    assert "No student and no teacher learnt from those queries" in said


def test_the_section_shows_a_table_a_chart_and_what_each_scorer_is() -> None:
    page = render(report(relevance_metrics=metrics()))
    shown = section(page)
    assert '<a href="#relevance">Relevance</a>' in page
    assert "<dt>Relevance</dt>" in page  # what the metrics mean
    assert 'id="table-relevance-all"' in shown
    assert judged_on(metrics()) in shown
    assert "none (tail)" in shown
    assert re.findall(r"<dt>(.*?)</dt>", shown) == ["word overlap", "representation"]
    chart = re.search(r'aria-label="(ROC-AUC by part[^"]*)"', shown)
    assert chart is not None
    assert "all: 56 queries, word overlap: 0.7000 (0.6500 to 0.7500)" in chart.group(1)
    legend = re.search(r'<ul class="legend" aria-label="Scorers">.*?</ul>', shown, flags=re.DOTALL)
    assert legend is not None
    assert [name in legend.group() for name in ("word overlap", "representation", "teacher")] == [True, True, False]


def test_every_scorer_that_is_known_is_explained_and_another_is_shown_by_its_name() -> None:
    page = section(render(report(relevance_metrics=metrics((*SCORERS, "bm25")))))
    assert re.findall(r"<dt>(.*?)</dt>", page) == list(SCORERS)
    assert page.count(">bm25</th>") == 4  # overall, and in each part


@pytest.mark.parametrize("has_metrics", [True, False])
def test_a_training_curve_is_drawn_of_students_with_more_than_one_epoch(has_metrics: bool) -> None:
    trained = curves({"interaction": 3, "representation": 1})
    page = section(render(report(relevance_metrics=metrics() if has_metrics else None, student_curves=trained)))
    assert ("table-relevance-all" in page) is has_metrics
    assert "interaction: validation ROC-AUC by epoch: from 0.8 in epoch 0 to 0.9 in epoch 2." in page
    assert "representation: training loss" not in page
    once = render(report(relevance_metrics=metrics(), student_curves=curves({"representation": 1})))
    assert "training loss" not in once


def test_without_intervals_there_is_a_table_and_no_chart() -> None:
    page = section(render(report(relevance_metrics=metrics(low=None, high=None))))
    assert "table-relevance-all" in page
    assert "<figure>" not in page


def test_a_report_without_relevance_does_not_mention_it() -> None:
    page = render(report())
    without_styles = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "relevance" not in without_styles.lower()
    assert render(report(student_curves=curves({"representation": 1}))) == page
    assert report_json(report(), "mine")["relevance"] is None


def test_json_has_the_same_numbers() -> None:
    data = report(relevance_metrics=metrics(), student_curves=curves({"representation": 2}))
    content = json.loads(json.dumps(report_json(data, "mine"), allow_nan=False))["relevance"]
    assert content["metrics"] == metrics().to_dicts()
    assert content["student_curves"] == curves({"representation": 2}).to_dicts()
    assert report_json(report(relevance_metrics=metrics()), "mine")["relevance"]["student_curves"] is None
