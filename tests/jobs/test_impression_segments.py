"""Segments of every test impression, worked by hand; what happens in the test window must move nothing."""

import datetime as dt
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from feature_repo.table_schemas import (
    Impressions,
    ImpressionSegments,
    Items,
    SplitWindows,
    TrainingExamples,
    Users,
)
from jobs import ingest
from jobs.assign_segments import Config, run
from jobs.impression_segments import shares_of
from jobs.lake import Lake
from jobs.segment_kinds import SegmentColumn
from jobs.split_windows import LogSpan, split_windows
from ranker.segments import TIERS

TEST_START = dt.datetime(2024, 9, 3, 6, 30, tzinfo=dt.timezone.utc)
UTC = pl.Datetime("us", "UTC")
Row = tuple[str, str, str, float, bool, int | None]
"""impression, user, item, days after the start of the test, clicked, position"""

PAST: list[Row] = [
    ("p0", "ann", "lamp", -20, True, 0),
    ("p1", "ann", "lamp", -19, True, 0),
    ("p2", "ann", "sofa", -18, True, 5),
    ("p3", "bob", "lamp", -9, True, 1),
    ("p4", "bob", "mug", -8, False, 2),
    ("p5", "bob", "vase", -1, False, 2),
]
TEST: list[Row] = [
    ("t0", "ann", "lamp", 0.0, True, 0),
    ("t1", "ann", "mug", 1.0, False, 3),
    ("t2", "bob", "sofa", 2.0, False, 4),
    ("t3", "new", "vase", 3.0, True, 10),
    ("t4", "new", "late", 3.0, False, None),
    ("t5", "bob", "gone", 3.0, False, 9),
]
ITEMS: list[dict[str, Any]] = [
    {"item_id": "lamp", "category": "light", "brand": "acme", "price_cents": 1000, "title": "a lamp", "age": 200.0},
    {"item_id": "sofa", "category": "seat", "brand": "acme", "price_cents": 5000, "title": None, "age": 30.9},
    {"item_id": "mug", "category": "cup", "brand": None, "price_cents": 999, "title": " ", "age": 7.0},
    {"item_id": "vase", "category": None, "brand": "zeta", "price_cents": None, "title": "", "age": 6.9},
    {"item_id": "late", "category": "novelty", "brand": "fresh", "price_cents": 7, "title": "new", "age": -1.0},
]
"""`gone` is not described; `late` came in the test window, alone in its category."""


def at(day: float) -> dt.datetime:
    return TEST_START + dt.timedelta(days=day)


def fill(lake: Lake, past: list[Row] = PAST, test: list[Row] = TEST, items: list[dict[str, Any]] = ITEMS) -> None:
    columns = ["impression_id", "user_id", "item_id", "day", "clicked", "position"]
    log = pl.DataFrame(past + test, schema=columns, orient="row", infer_schema_length=None).with_columns(
        pl.Series("event_timestamp", [at(row[3]) for row in past + test], UTC),
        pl.col("position").cast(pl.Int32),
        converted=pl.lit(False),
        is_sampled=pl.lit(False),
    )
    lake.write(Impressions, pl.concat([Impressions.create_empty(), log.drop("day")], how="diagonal_relaxed"))
    windows = {"train": (-30, -2), "validation": (-2, 0), "test": (0, 10)}
    lake.write(
        SplitWindows,
        pl.DataFrame(
            {
                "split": list(windows),
                "start": [at(start) for start, _ in windows.values()],
                "end": [at(end) for _, end in windows.values()],
                "labels_as_of": at(20),
                "num_impressions": 0,
            },
        ),
    )
    split = pl.when(pl.col("day") >= 0).then(pl.lit("test")).when(pl.col("day") >= -2).then(pl.lit("validation"))
    lake.write(
        TrainingExamples,
        log.with_columns(
            split=split.otherwise(pl.lit("train")),
            score=pl.col("position").cast(pl.Float64) / 2,
            night=pl.col("position") == 0,
        ).reverse(),
    )
    if items:
        catalogue = pl.DataFrame(items, infer_schema_length=None).with_columns(
            pl.Series("event_timestamp", [at(-item["age"]) for item in items], UTC), created_timestamp=pl.lit(at(11))
        )
        lake.write(Items, pl.concat([Items.create_empty(), catalogue.drop("age")], how="diagonal_relaxed"))
    seen = {"ann": -250.0, "bob": -10.0, "new": 3.0}
    lake.write(
        Users,
        pl.DataFrame(
            {"user_id": list(seen), "event_timestamp": pl.Series([at(day) for day in seen.values()], dtype=UTC)}
        ),
    )


def assigned(lake: Lake, **settings: Any) -> dict[str, dict[str, str | None]]:
    """Kind -> impression -> segment."""
    run(lake, Config(**{"user_long_tail_max": 2, "item_long_tail_max": 2, **settings}))
    table = lake.read(ImpressionSegments)
    ids = table["impression_id"].to_list()
    return {kind: dict(zip(ids, table[kind].to_list(), strict=True)) for kind in table.columns[1:]}


def of(segments: dict[str, str | None]) -> list[str | None]:
    """Segments of t0, t1, ..."""
    return [segments[f"t{number}"] for number in range(len(segments))]


def test_every_kind_is_as_worked_by_hand(lake: Lake) -> None:
    fill(lake)
    kinds = {kind: of(segments) for kind, segments in assigned(lake).items()}
    assert kinds == {
        "user_segment": ["others", "others", "long_tail", "cold_start", "cold_start", "long_tail"],
        "item_segment": ["others", "cold_start", "long_tail", "cold_start", "cold_start", "cold_start"],
        "user_item_segment": [
            "others users x others items",
            "others users x cold_start items",
            "long_tail users x long_tail items",
            "cold_start users x cold_start items",
            "cold_start users x cold_start items",
            "long_tail users x cold_start items",
        ],
        "category": ["light", "cup", "seat", None, "other", None],
        "item_age": ["over 180 days", "7 to 30 days", "7 to 30 days", "under 7 days", "new in the test window", None],
        "item_text": ["text", "text", "text", "text", "text", "no text"],
        "position": ["0", "1-3", "4-9", "10 and more", None, "4-9"],
    }


def test_there_is_one_row_for_each_test_example_and_the_same_bytes_every_time(lake: Lake) -> None:
    fill(lake)
    assigned(lake)
    table, digest = lake.read(ImpressionSegments), lake.manifest(ImpressionSegments).digest
    test = lake.read(TrainingExamples).filter(split="test")
    assert table.height == test.height
    assert set(table["impression_id"]) == set(test["impression_id"])
    assert all(dtype == pl.String for dtype in table.dtypes)
    assigned(lake)
    assert lake.manifest(ImpressionSegments).digest == digest


def test_the_cross_is_the_product_of_its_parts(lake: Lake) -> None:
    fill(lake)
    kinds = assigned(lake)
    for impression, both in kinds["user_item_segment"].items():
        assert both == f"{kinds['user_segment'][impression]} users x {kinds['item_segment'][impression]} items"
        assert {kinds["user_segment"][impression], kinds["item_segment"][impression]} <= {*TIERS}


def test_nothing_that_happens_in_the_test_window_moves_a_segment(lake: Lake) -> None:
    many = {"brand": {"table": "items", "column": "brand"}, "score": {"table": "training_examples", "column": "score"}}
    many["place"] = {"table": "impressions", "column": "position"}
    fill(lake)
    settings = {"max_categories": 1, "columns": many}
    before = assigned(lake, **settings)
    rules = lake.manifest(ImpressionSegments).metadata["kinds"]
    # planted: `seat` becomes the biggest category, ann and bob click everything, positions and scores are others
    planted = [(f"x{number}", "bob", "sofa", 4.0, True, 20 + number) for number in range(60)]
    fill(lake, test=[(*row[:4], True, row[5]) for row in TEST] + planted)
    after = assigned(lake, **settings)
    assert {kind: {i: s for i, s in segments.items() if i[0] == "t"} for kind, segments in after.items()} == before
    assert before["category"]["t0"] == "light"  # the biggest of the training rows, not of the test
    assert after["category"]["x0"] == "other"
    assert {kind: one["rule"] for kind, one in rules.items()} == {
        kind: one["rule"] for kind, one in lake.manifest(ImpressionSegments).metadata["kinds"].items()
    }


def test_the_biggest_categories_are_those_with_the_most_training_rows(lake: Lake) -> None:
    fill(lake)
    assert of(assigned(lake, max_categories=2, kinds=("category",))["category"]) == [
        "light",
        "cup",  # one row, as `seat`: the name decides
        "other",
        None,
        "other",
        None,
    ]


def test_a_team_names_columns_of_any_table(lake: Lake) -> None:
    fill(lake)
    columns = {
        "brand": {"table": "items", "column": "brand"},
        "price": {"table": "items", "column": "price_cents", "edges": [1000, 5000]},
        "tenure": {"table": "users", "column": "event_timestamp", "edges": [30]},
        "place": {"table": "impressions", "column": "position"},
        "score": {"table": "training_examples", "column": "score", "edges": [0.5]},
        "night": {"table": "training_examples", "column": "night"},
    }
    kinds = {kind: of(segments) for kind, segments in assigned(lake, kinds=(), columns=columns).items()}
    assert kinds == {
        "brand": ["acme", None, "acme", "zeta", "other", None],
        "price": ["1000 to below 5000", "below 1000", "5000 and more", None, "below 1000", None],
        "tenure": ["30 days and more"] * 2 + ["under 30 days"] + ["new in the test window"] * 2 + ["under 30 days"],
        "place": ["0", "other", "other", "other", None, "other"],
        "score": ["below 0.5", "0.5 and more", "0.5 and more", "0.5 and more", None, "0.5 and more"],
        "night": ["true", "false", "false", "false", None, "false"],
    }


def test_numbers_without_edges_are_cut_at_quartiles_of_the_training_rows(lake: Lake) -> None:
    past: list[Row] = [(f"p{n}", "ann", "lamp", -20.0, n == 0, n) for n in range(100)]
    fill(lake, past=past)
    columns = {"score": {"table": "training_examples", "column": "score"}}
    segments = of(assigned(lake, kinds=(), columns=columns)["score"])
    assert segments == ["below 12.5"] * 4 + [None, "below 12.5"]
    past = [(f"p{n}", "ann", "lamp", -20.0, n == 0, max(0, n - 70)) for n in range(100)]  # most are zero
    fill(lake, past=past)
    assert of(assigned(lake, kinds=(), columns=columns)["score"])[0] == "below 2.5"


def test_a_text_column_of_over_50_values_keeps_the_biggest(lake: Lake) -> None:
    items = [{**ITEMS[0], "item_id": f"i{n}", "brand": f"b{n:02}"} for n in range(60)]
    past: list[Row] = [
        (f"p{n}.{k}", "ann", f"i{n}", -20.0, True, 0) for n in range(60) for k in range(2 if n > 56 else 1)
    ]
    test: list[Row] = [(f"t{n}", "ann", f"i{n}", 1.0, n == 0, 0) for n in range(60)]
    fill(lake, past=past, test=test, items=items)
    columns = {"brand": {"table": "items", "column": "brand"}}
    kept = [
        name for name in of(assigned(lake, kinds=(), columns=columns, max_categories=5)["brand"]) if name != "other"
    ]
    assert sorted(map(str, kept)) == ["b00", "b01", "b57", "b58", "b59"]
    fill(lake, past=past, test=test, items=items[:50])
    assert "b49" in of(assigned(lake, kinds=(), columns=columns)["brand"])


def test_kinds_that_the_log_cannot_give_are_left_out_with_a_reason(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fill(lake, past=[(*row[:5], None) for row in PAST], test=[(*row[:5], None) for row in TEST], items=[])
    assert list(assigned(lake)) == ["user_segment", "item_segment", "user_item_segment"]
    left_out = lake.manifest(ImpressionSegments).metadata["left_out"]
    assert left_out == {
        "category": "category needs items.category, and this log has no items",
        "item_age": "item_age needs items.event_timestamp, and this log has no items",
        "item_text": "item_text needs items.title, and this log has no items",
        "position": "no test impression has one",
        "query": "all test impressions are `no query`",
    }
    assert "impression_segments: position left out: no test impression has one" in caplog.text


def test_a_kind_that_says_the_same_of_all_is_left_out_unless_named(lake: Lake) -> None:
    fill(lake, test=TEST[:5])
    assert "item_text" not in assigned(lake)
    assert lake.manifest(ImpressionSegments).metadata["left_out"] == {
        "item_text": "all test impressions are `text`",
        "query": "all test impressions are `no query`",
    }
    assert set(assigned(lake, kinds=("item_text",))["item_text"].values()) == {"text"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"columns": {"brand": {"table": "items", "column": "brnd"}}},
            "items has no column `brnd`; did you mean `brand`",
        ),
        ({"columns": {"z": {"table": "items", "column": "zzz"}}}, "items has no column `zzz`. It has item_id, title"),
        (
            {"columns": {"c": {"table": "impressions", "column": "clicked"}}},
            "clicked is the outcome or follows from it",
        ),
        ({"columns": {"s": {"table": "training_examples", "column": "is_sampled"}}}, "is_sampled is the outcome"),
        (
            {"columns": {"b": {"table": "items", "column": "brand", "edges": [1]}}},
            "brand is String, and edges need a num",
        ),
        (
            {"columns": {"q": {"table": "impressions", "column": "query_id"}}},
            "query_id, which is empty in all training",
        ),
        (
            {"columns": {"t": {"table": "users", "column": "event_timestamp", "edges": [0.5]}}},
            "give edges in whole days",
        ),
        ({"kinds": ("position",)}, None),
    ],
)
def test_what_the_log_does_not_have_is_refused_when_asked_for_by_name(
    lake: Lake, settings: dict[str, Any], message: str | None
) -> None:
    fill(lake)
    if message is None:
        assert list(assigned(lake, **settings)) == ["position"]
        fill(lake, past=[(*row[:5], None) for row in PAST], test=[(*row[:5], None) for row in TEST])
        message = "no impression of the test split is in a segment of position"
    with pytest.raises(ValueError, match=message):
        assigned(lake, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ["positon"]}, "there is no kind `positon`; did you mean `position`"),
        ({"kinds": ["position", "position"]}, "named twice"),
        ({"kinds": []}, "there is none, and no columns either"),
        ({"columns": {"category": {"table": "items", "column": "category"}}}, "there is a kind `category` already"),
        ({"columns": {"p_ctr": {"table": "items", "column": "category"}}}, "predictions have a column `p_ctr`"),
        ({"columns": {"all": {"table": "items", "column": "category"}}}, "columns.all"),
        ({"columns": {"a:b": {"table": "items", "column": "category"}}}, "a name of letters, digits and _"),
        ({"columns": {"brand": {"table": "item", "column": "brand"}}}, "Input should be 'items', 'users'"),
        ({"columns": {"price": {"table": "items", "column": "price_cents", "edges": [5, 1]}}}, "larger than the one"),
        ({"columns": {"price": {"table": "items", "column": "price_cents", "edges": [math.nan]}}}, "finite numbers"),
        ({"position_edges": [4, 1]}, "larger than the one before"),
        ({"item_age_days": []}, "at least 1 item"),
        ({"max_categories": 51}, "less than or equal to 50"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(settings)


def test_shares_and_rules_are_in_the_manifest_and_printed(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    fill(lake)
    assigned(lake)
    kinds = lake.manifest(ImpressionSegments).metadata["kinds"]
    assert kinds["user_segment"] == {
        "rule": "Clicks of the user in the 180 days before 2024-09-03 06:30 UTC. Cold-start 0, long-tail 1 to 2, "
        "others more",
        "segments": {
            "cold_start": {"impressions": 2 / 6, "clicks": 1 / 2, "conversions": None},
            "long_tail": {"impressions": 2 / 6, "clicks": 0.0, "conversions": None},
            "others": {"impressions": 2 / 6, "clicks": 1 / 2, "conversions": None},
        },
    }
    assert kinds["category"]["rule"] == (
        "Category of items; a value without training rows is `other` (as the catalogue has it now)"
    )
    assert [share.segment for share in shares_of(lake) if share.kind == "item_age"] == [
        "new in the test window",
        "under 7 days",
        "7 to 30 days",
        "over 180 days",
    ]
    printed = capsys.readouterr().out
    assert "Share of the test split" in printed
    assert ["cold-start", "users", "33.3%", "50.0%", "–"] in [line.split() for line in printed.splitlines()]


def test_queries_are_cut_by_how_often_they_were_shown_before_the_test(lake: Lake) -> None:
    """p0 is before the training window and counts for nothing; what the test shows counts for nothing, either."""
    fill(lake, past=[("p0", "ann", "lamp", -31, True, 0), *PAST[1:]])
    queries = {"p0": "tail", "p1": "head", "p2": "head", "p3": "head", "p4": "tail"}
    queries |= {"t0": "head", "t1": "tail", "t2": "tail", "t3": "new", "t4": "new"}
    log = lake.read(Impressions).with_columns(
        query_id=pl.col("impression_id").replace_strict(queries, default=None, return_dtype=pl.String)
    )
    lake.write(Impressions, log)
    kinds = assigned(lake, query_edges=(1, 3))
    assert of(kinds["query"]) == ["3 and more", "1-2", "1-2", "0", "0", "no query"]
    assert kinds["query"] == assigned(lake, kinds=("query",), query_edges=(1, 3))["query"]


def test_edges_and_ages_are_settings(lake: Lake) -> None:
    fill(lake)
    kinds = assigned(lake, kinds=("position", "item_age"), position_edges=(4,), item_age_days=(7,))
    assert of(kinds["position"]) == ["0-3", "0-3", "4 and more", "4 and more", None, "4 and more"]
    assert of(kinds["item_age"])[:4] == ["7 days and more", "7 days and more", "7 days and more", "under 7 days"]


def test_a_column_can_have_any_name(lake: Lake) -> None:
    fill(lake)
    examples = lake.read(TrainingExamples).with_columns(pl.col("night").alias('of "night" 1d'))
    lake.write(TrainingExamples, examples)
    columns = {"night": SegmentColumn(table="training_examples", column='of "night" 1d')}
    assert of(assigned(lake, kinds=(), columns=columns)["night"])[:2] == ["true", "false"]


def split(lake: Lake, test_days: int, validation_days: int) -> None:
    """The split of a real log, and its examples without features."""
    windows = split_windows(
        LogSpan.of(lake.scan(Impressions)), test_days=test_days, validation_days=validation_days, train_days=None
    )
    lake.write(SplitWindows, windows.with_columns(num_impressions=pl.lit(0, pl.Int64)))
    test, validation = windows.filter(split="test")["start"][0], windows.filter(split="validation")["start"][0]
    time = pl.col("event_timestamp")
    lake.write(
        TrainingExamples,
        lake.scan(Impressions).with_columns(
            split=pl.when(time >= test)
            .then(pl.lit("test"))
            .when(time >= validation)
            .then(pl.lit("validation"))
            .otherwise(pl.lit("train"))
        ),
    )


@pytest.mark.realdata
def test_movielens_has_segments_that_agree_with_sql(lake: Lake, real_data: Path) -> None:
    import duckdb

    ingest.run(lake, ingest.Config(source="movielens", path=real_data / "ml_latest_small"))
    split(lake, test_days=365, validation_days=180)
    run(lake, Config())
    segments, test = lake.read(ImpressionSegments), lake.read(TrainingExamples).filter(split="test")
    assert segments.height == test.height > 1000
    examples = lake.read(TrainingExamples)
    tables = {"items": lake.read(Items), "test": test, "train": examples.filter(pl.col("split") != "test")}
    database = duckdb.connect()
    for name, table in tables.items():
        database.register(name, table.to_arrow())
    expected = database.sql(
        """WITH biggest AS (SELECT category FROM train JOIN items USING (item_id) WHERE category IS NOT NULL
            GROUP BY category ORDER BY count(*) DESC, category LIMIT 12)
        SELECT impression_id, CASE WHEN category IN (FROM biggest) THEN category
            WHEN category IS NOT NULL THEN 'other' END AS category
        FROM test LEFT JOIN items USING (item_id) ORDER BY impression_id"""
    ).pl()
    assert_frame_equal(segments.select("impression_id", "category").sort("impression_id"), expected)
    crossed = [share.of_impressions for share in shares_of(lake) if share.kind == "user_item_segment"]
    assert sum(crossed) == pytest.approx(1)


@pytest.mark.realdata
def test_online_retail_has_items_of_every_age_and_prices_by_quartile(lake: Lake, real_data: Path) -> None:
    options = {"negatives": {"negatives_per_positive": 1}}
    ingest.run(lake, ingest.Config(source="online_retail", path=real_data / "online_retail_2", options=options))
    split(lake, test_days=30, validation_days=30)
    run(lake, Config(columns={"price": SegmentColumn(table="items", column="price_cents")}))
    shares = shares_of(lake)
    by_kind = {kind: [share for share in shares if share.kind == kind] for kind in {share.kind for share in shares}}
    assert len(by_kind["item_age"]) == 5
    assert len(by_kind["price"]) == 4
    assert all(0.1 < share.of_impressions < 0.45 for share in by_kind["price"])
    assert lake.manifest(ImpressionSegments).rows == lake.read(TrainingExamples).filter(split="test").height
