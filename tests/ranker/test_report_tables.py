"""What the report prints: the figures of the tables, in rows that know how they sort."""

import datetime as dt
import json
from typing import Any

import dataframely as dy
import polars as pl
import pytest

from feature_repo.table_schemas import CalibrationMetrics, FeatureGroupCosts, FeatureGroupValues, SegmentMetrics
from ranker.calibration import Calibration
from ranker.calibration_tables import overall_figures, printed_by_segment, printed_overall
from ranker.feature_group_tables import printed_costs, printed_values, tier_points
from ranker.printed_table import PrintedTable
from ranker.report import ReportData
from ranker.report_json import report_json
from ranker.report_tables import forest_points, printed_segments, printed_sizes
from ranker.wording import kind_name, segment_name, short_segment_name, verdict

SEGMENTS = [("all", "all"), ("user_segment", "cold_start"), ("category", "Tents")]


def validated(schema: type[dy.Schema], rows: list[dict[str, Any]]) -> Any:
    columns = {name: column.dtype for name, column in schema.columns().items()}
    return schema.validate(pl.DataFrame(rows, schema=columns))


def metrics(**changes: Any) -> Any:
    """Gains 0.01, 0.02, 0.03 in the three segments, for every metric; half the impressions from one to the next."""
    rows = []
    for place, (kind, segment) in enumerate(SEGMENTS):
        for ranker in ("base", "content", "ceiling"):
            for metric in ("uauc", "wuauc", "auc"):
                row = {
                    "ranker": ranker,
                    "label": "clicked",
                    "segment_kind": kind,
                    "segment": segment,
                    "metric": metric,
                    "value": 0.6,
                    "low": 0.59,
                    "high": 0.61,
                    "num_impressions": 1000 // 2**place,
                    "num_positives": 100,
                    "num_users": 50,
                    "num_users_skipped": 7,
                    "num_impressions_skipped": 125,
                    "num_positives_skipped": 3,
                    "num_seeds": 1,
                }
                gain = 0.01 * (place + 1)
                if ranker != "base":
                    row |= {"baseline": "base", "gain": gain, "gain_low": gain - 0.005, "gain_high": gain + 0.005}
                    row |= {"p_value": 0.01, "minimum_detectable": 0.007, "verdict": "better"}
                    row |= changes
                rows.append(row)
    return validated(SegmentMetrics, rows)


def texts(table: PrintedTable) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in table.rows]


def test_a_row_of_the_segment_table_has_share_value_gain_and_what_is_detectable() -> None:
    table = printed_segments(metrics(), "clicked", "Clicks", "", baseline="base")
    assert [column.name for column in table.columns[:6]] == [
        "Segment",
        "Share",
        "Ranker",
        "value",
        "gain",
        "detectable",
    ]
    assert [column.group for column in table.columns[3::3]] == ["UAUC", "WUAUC", "AUC"]
    assert texts(table)[4][:6] == ["cold-start users", "50.0%", "content", "0.6000", "+0.0200", "0.0070"]
    assert texts(table)[3][:6] == ["cold-start users", "50.0%", "base", "0.6000", "", ""]
    gains = [row.cells[4] for row in table.rows if row.ranker == "content"]
    assert [cell.value for cell in gains] == pytest.approx([0.01, 0.02, 0.03])
    assert gains[0].small == "+0.0050 to +0.0150"


def test_the_ceiling_has_no_verdict_and_is_no_point_of_the_forest() -> None:
    table = printed_segments(metrics(), "clicked", "Clicks", "", baseline="base")
    assert {row.cells[4].verdict for row in table.rows if row.ranker == "ceiling"} == {""}
    assert {row.cells[4].mark for row in table.rows if row.ranker == "content"} == {"▲"}
    points = forest_points(metrics(), "clicked", "uauc")
    assert [(point.kind, point.row, point.ranker) for point in points] == [
        ("all", "all impressions", "content"),
        ("user_segment", "cold-start users", "content"),
        ("category", "Tents", "content"),
    ]


def test_a_segment_is_said_once_for_the_rankers_below_each_other() -> None:
    table = printed_segments(metrics(), "clicked", "Clicks", "", baseline="base")
    assert [row.is_repeat for row in table.rows] == [False, True, True] * 3
    assert table.kinds == ["user_segment", "category"]
    assert table.rankers == ["base", "content", "ceiling"]


def test_without_a_baseline_there_are_values_only() -> None:
    alone = SegmentMetrics.validate(metrics().filter(ranker="base"))
    table = printed_segments(alone, "clicked", "Clicks", "", baseline=None)
    assert [column.name for column in table.columns] == ["Segment", "Share", "Ranker", "value", "value", "value"]


def test_sizes_are_shares_of_all_impressions_and_positives() -> None:
    table = printed_sizes(metrics(), "clicked", "Sizes", "")
    assert texts(table)[2] == ["category: Tents", "250", "25.0%", "100", "100.0%", "50", "7", "50.0%", "3.0%"]


def test_calibration_by_segment_sets_the_methods_side_by_side() -> None:
    table = printed_by_segment(calibration_metrics(), "clicked", "")
    assert table is not None
    assert [(column.group, column.name) for column in table.columns[3:6]] == [
        ("Predicted / observed", "as scored"),
        ("Predicted / observed", "isotonic"),
        ("ECE", "as scored"),
    ]
    assert texts(table)[1][:6] == ["cold-start users", "10.00%", "base", "1.250", "1.000", "0.0300"]
    assert printed_by_segment(CalibrationMetrics.validate(calibration_metrics().head(2)), "clicked", "") is None


def calibration_metrics() -> Any:
    return validated(
        CalibrationMetrics,
        [
            {
                "ranker": "base",
                "label": "clicked",
                "segment_kind": kind,
                "segment": segment,
                "method": method,
                "num_impressions": 100,
                "num_positives": 10,
                "num_seeds": 1,
                "mean_predicted": 0.1 * ratio,
                "observed_rate": 0.1,
                "predicted_over_observed": ratio,
                "log_loss": 0.3,
                "normalised_entropy": None,
                "expected_calibration_error": 0.03,
            }
            for kind, segment in SEGMENTS[:2]
            for method, ratio in (("as scored", 1.25), ("isotonic", 1.0))
        ],
    )


def test_overall_calibration_is_that_of_the_table_or_else_of_the_runs() -> None:
    table = printed_overall(overall_figures(calibration_metrics(), {}), ["base"], "")
    assert [row[2:6] for row in texts(table)] == [
        ["as scored", "12.50%", "10.00%", "1.250"],
        ["isotonic", "10.00%", "10.00%", "1.000"],
    ]
    assert texts(table)[0][-1] == "–"
    runs = {("clicked", "base"): [Calibration(9, 3, p, 0.3, p / 0.3, 0.5, 0.9, 0.01, ()) for p in (0.2, 0.4)]}
    assert texts(printed_overall(overall_figures(None, runs), ["base"], ""))[0][:6] == [
        "Clicks",
        "base",
        "as scored",
        "30.00%",
        "30.00%",
        "1.000",
    ]


def group_values() -> Any:
    row = {"ranker": "learn", "feature_group": "ids", "method": "permuted", "num_users": 40, "num_seeds": 1}
    found = {"value_with": 0.66, "value_without": 0.65, "value_lost": 0.01, "low": 0.002, "high": 0.018}
    nothing = dict.fromkeys(found) | {"value_with": 0.66, "verdict": "cannot tell"}
    return validated(
        FeatureGroupValues,
        [
            row | {"segment_kind": kind, "segment": segment, "metric": metric} | values
            for (kind, segment), values in zip(SEGMENTS, (found | {"verdict": "helps"}, nothing, nothing), strict=True)
            for metric in ("uauc", "wuauc")
        ],
    )


def test_a_row_of_group_values_has_both_metrics() -> None:
    rows = texts(printed_values(group_values(), ""))
    assert rows[0] == ["ids", "learn", "permuted", "all impressions", "40", *["0.6600", "0.6500", "+0.0100"] * 2]
    assert rows[1][4:8] == ["40", "0.6600", "–", "–"]
    assert [point.row for point in tier_points(group_values(), "permuted", "ids")] == ["all impressions"]


@pytest.mark.parametrize(
    ("change", "place", "text"),
    [
        ({"seconds_to_make": 3.14}, 3, "3.1 s"),
        ({"seconds_to_make": 599.0}, 3, "599 s"),
        ({"seconds_to_make": 7200.0}, 3, "120 min"),
        ({"seconds_to_make": None}, 3, "–"),
        ({"num_bytes_online": 999}, 4, "999 B"),
        ({"num_bytes_online": 1_500_000}, 4, "1.5 MB"),
        ({"num_bytes_online": 0}, 4, "0 B"),
        ({"rows_per_second_with": 41234.5}, 5, "41,234"),
    ],
)
def test_costs_are_printed_in_units_that_fit(change: dict[str, Any], place: int, text: str) -> None:
    costs = validated(FeatureGroupCosts, [{"ranker": "learn", "feature_group": "ids", "num_features": 2} | change])
    assert texts(printed_costs(costs, ""))[0][place] == text


@pytest.mark.parametrize(
    ("kind", "segment", "name", "short"),
    [
        ("user_item_segment", "cold_start users x others items", "cold-start users × other items", None),
        ("category", "others", "category: others", "others"),
        ("user_segment", "mothers", "mothers users", None),
        ("item_age", "7 to 30 days", "items 7 to 30 days old", None),
        ("item_age", "new in the test window", "items new in the test window", None),
        ("item_text", "no text", "items without text", None),
        ("position", "1-3", "position: 1-3", "1-3"),
    ],
)
def test_every_kind_of_segment_is_called_what_a_reader_calls_it(
    kind: str, segment: str, name: str, short: str | None
) -> None:
    assert segment_name(kind, segment) == name
    assert short_segment_name(kind, segment) == (short or name)


def test_a_kind_that_nobody_named_is_called_by_its_column() -> None:
    assert kind_name("price_cents") == "Price cents"
    assert kind_name("item_age") == "Age of the item"


def test_of_many_segments_the_verdict_counts_all_and_names_those_that_are_worse() -> None:
    table = metrics().filter(metric="uauc", ranker="content")
    many = [
        table.filter(segment="Tents").with_columns(
            segment=pl.lit(f"c{n}"), verdict=pl.lit("worse" if n == 4 else "no difference"), gain=pl.lit(-0.0123)
        )
        for n in range(9)
    ]
    said = verdict(SegmentMetrics.validate(pl.concat([table.filter(pl.col("segment") != "Tents"), *many])), "content")
    assert len(said) == 2
    assert said[1] == (
        "By segment, it is better for cold-start users (+0.0200); of 9 further segments, "
        "worse in 1 (category: c4 −0.0123) and no difference in 8."
    )


def test_json_has_the_tables_of_the_report_and_no_number_that_json_has_not() -> None:
    data = ReportData(
        title="t",
        source="s",
        metrics=metrics(),
        calibrations={},
        created=dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc),
        calibration_metrics=calibration_metrics(),
        feature_group_values=group_values(),
    )
    content = json.loads(json.dumps(report_json(data, "content"), allow_nan=False))
    assert content["comparison"][0]["minimum_detectable"] == pytest.approx(0.007)
    assert len(content["segments"]) == 27
    assert len(content["calibration_metrics"]) == 4
    assert len(content["feature_groups"]["values"]) == 6
    assert content["feature_groups"]["costs"] is None
    assert report_json(ReportData("t", "s", metrics(), {}, data.created), "content")["feature_groups"] is None
