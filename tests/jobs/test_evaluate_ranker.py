"""The step of the flow: from the tables of the lake to segment metrics and a report."""

import contextlib
import datetime as dt
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import (
    CalibrationMetrics,
    EmbedderCurves,
    FeatureGroupCosts,
    FeatureGroupValues,
    Impressions,
    ImpressionSegments,
    KarmaAttention,
    KarmaCurves,
    LearnAttention,
    RankerPredictions,
    RelevanceMetrics,
    SegmentMetrics,
    SplitWindows,
    StudentCurves,
    TrainingCurves,
    TrueProbabilities,
    ValidationPredictions,
)
from jobs.calibrated_runs import calibrate
from jobs.evaluate_ranker import Config, _log_to_mlflow, _runs, run
from jobs.lake import Lake, TableError
from ranker.judged_runs import line_up
from ranker.recalibration import METHODS
from ranker.report import ReportData

START = dt.datetime(2024, 3, 1, tzinfo=dt.timezone.utc)
TIERS = np.array(["cold_start", "long_tail", "others"])
NUM_USERS, PER_USER, NUM_ITEMS = 150, 16, 30


def fill(lake: Lake, *, simulated: bool = True, sampled: bool = False, validated: bool = False) -> None:
    """A test window in which `content` knows what clicks on cold items and `base` does not."""
    rng = np.random.default_rng(0)
    n = NUM_USERS * PER_USER
    user, item = np.repeat(np.arange(NUM_USERS), PER_USER), rng.integers(0, NUM_ITEMS, n)
    logit = rng.normal(-1, 1.5, n)
    p_true = 1 / (1 + np.exp(-logit))
    clicked = rng.random(n) < p_true
    converted = clicked & (rng.random(n) < 0.4)
    times = [START + dt.timedelta(minutes=i) for i in range(n)]
    log = pl.DataFrame(
        {
            "impression_id": [f"i{i}" for i in range(n)],
            "user_id": [f"u{u}" for u in user],
            "item_id": [f"p{i}" for i in item],
            "event_timestamp": times,
            "clicked": clicked,
            "converted": converted,
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )
    lake.write(
        Impressions,
        log.with_columns(
            request_id=pl.lit(None, pl.String),
            query_id=pl.lit(None, pl.String),
            position=pl.lit(None, pl.Int32),
            conversion_timestamp=pl.when("converted").then("event_timestamp"),
            is_sampled=~pl.col("clicked") if sampled else pl.lit(False),
        ),
        metadata={"label_rule": "A click stands for a click.", "source": {"name": "simulate", "path": "None"}},
    )
    cold = item % 3 == 0
    runs = []
    for ranker in ("base", "content"):
        for seed in (0, 1):
            noise = np.where(cold & (ranker == "content"), 0.1, 2.5)
            p = 1 / (1 + np.exp(-(logit + noise * np.random.default_rng(seed).normal(0, 1, n))))
            runs.append(
                log.with_columns(
                    p_ctr=p,
                    p_cvr=p,
                    p_ctcvr=p * p,
                    user_segment=pl.lit(None, pl.String),
                    item_segment=pl.lit(None, pl.String),
                    ranker=pl.lit(ranker),
                    seed=pl.lit(seed, pl.Int64),
                )
            )
    lake.write(RankerPredictions, pl.concat(runs))
    if validated:
        # as many rows, other users, the same error: what is learnt there holds here
        lake.write(ValidationPredictions, pl.concat(runs).with_columns(pl.col("impression_id", "user_id") + "v"))
    shuffled = rng.permutation(n)  # segments go by impression_id, not by the order of the rows
    lake.write(
        ImpressionSegments,
        pl.DataFrame(
            {
                "impression_id": [f"i{i}" for i in range(n)],
                "user_segment": TIERS[user % 3],
                "item_segment": TIERS[item % 3],
                "position": np.array(["0", "1-3", "4-9", "10 and more"])[np.arange(n) % 4],
                "brand": np.array(["", "acme", "other", "other", "other"])[item % 5],
            }
        ).with_columns(pl.col("brand").replace("", None))[shuffled],
        metadata={
            "kinds": {
                "user_segment": {
                    "rule": "Clicks of the user in 180 days. Cold-start 0, long-tail 1 to 35, others more"
                },
                "item_segment": {"rule": "Conversions of the item"},
                "position": {"rule": "Position in the slate, 0 at the top"},
                "brand": {"rule": "Brand of items"},
            }
        },
    )
    lake.write(
        SplitWindows,
        pl.DataFrame(
            {
                "split": ["test"],
                "start": [START],
                "end": [START + dt.timedelta(days=3)],
                "labels_as_of": [START + dt.timedelta(days=9)],
                "num_impressions": [n],
            },
            schema_overrides={
                "split": pl.Enum(["train", "validation", "test"]),
                **dict.fromkeys(("start", "end", "labels_as_of"), pl.Datetime("us", "UTC")),
            },
        ),
    )
    lake.write(
        TrainingCurves,
        pl.DataFrame(
            {
                "ranker": ["base", "base"],
                "seed": [0, 0],
                "epoch": [0, 1],
                "train_loss": [0.5, 0.4],
                "validation_loss": [0.5, 0.45],
                "validation_uauc": [0.5, 0.6],
                "seconds": [1.0, 1.0],
                "is_best": [False, True],
            },
            schema_overrides={"epoch": pl.Int32},
        ),
    )
    if simulated:
        lake.write(
            TrueProbabilities,
            log.select("impression_id").with_columns(p_ctr=p_true, p_cvr=pl.lit(0.4), p_ctcvr=0.4 * p_true),
        )


class Judged(NamedTuple):
    """A lake after the step, and what the step printed. Read only."""

    lake: Lake
    printed: str


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    lake = Lake(tmp_path_factory.mktemp("judged") / "lake")
    fill(lake)
    (lake.folder("reports") / "feature_group_values.parquet").write_text("of an earlier report")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run(lake, Config(num_draws=200))
    return Judged(lake, printed.getvalue())


def test_the_step_finds_the_gain_planted_on_cold_items(judged: Judged) -> None:
    lake, printed = judged
    metrics = lake.read(SegmentMetrics)
    clicks = metrics.filter(label="clicked", metric="auc", segment_kind="item_segment", ranker="content")
    assert dict(clicks.select("segment", "verdict").iter_rows()) == {
        "cold_start": "better",
        "long_tail": "no difference",
        "others": "no difference",
    }
    ceiling = metrics.filter(label="clicked", metric="auc", segment_kind="all", ranker="ceiling")["value"][0]
    assert ceiling == metrics.filter(label="clicked", metric="auc", segment_kind="all")["value"].max()
    report = (lake.folder("reports") / "report.html").read_text()
    assert "A click stands for a click." in report
    assert "Clicks of the user in 180 days. Cold-start 0, long-tail 1 to 35, others more." in report
    numbers = json.loads((lake.folder("reports") / "report.json").read_text())
    assert (numbers["ranker"], numbers["baseline"]) == ("content", "base")
    assert "cold-start items" in printed
    assert str(lake.folder("reports") / "report.html") in printed


def test_a_log_that_is_not_simulated_has_no_ceiling(lake: Lake) -> None:
    fill(lake, simulated=False)
    run(lake, Config(num_draws=100))
    assert set(lake.read(SegmentMetrics)["ranker"]) == {"base", "content"}
    assert "Ceiling" not in (lake.folder("reports") / "report.html").read_text()


def test_sampled_negatives_are_counted_and_warned_of(lake: Lake) -> None:
    fill(lake, sampled=True)
    run(lake, Config(num_draws=100))
    negatives = lake.read(Impressions).filter(~pl.col("clicked")).height
    report = (lake.folder("reports") / "report.html").read_text()
    assert f"{negatives / (NUM_USERS * PER_USER):.1%} of the impressions are sampled" in report


def test_the_same_lake_gives_the_same_numbers(judged: Judged) -> None:
    lake = judged.lake
    first = [lake.read(schema) for schema in (SegmentMetrics, CalibrationMetrics)]
    run(lake, Config(num_draws=200))
    for schema, before in zip((SegmentMetrics, CalibrationMetrics), first, strict=True):
        assert before.equals(lake.read(schema))


def test_a_baseline_that_was_not_trained_is_refused_and_nothing_is_written(lake: Lake) -> None:
    fill(lake)
    with pytest.raises(ValueError, match="there is no ranker `gbdt` to compare with"):
        run(lake, Config(baseline="gbdt"))
    assert not lake.exists(SegmentMetrics)


def test_without_predictions_the_step_says_what_to_run(lake: Lake) -> None:
    with pytest.raises(TableError, match="ranker_predictions: there is no such table"):
        run(lake, Config())


def test_every_kind_of_segment_is_judged_and_tiers_are_printed(judged: Judged) -> None:
    lake, printed = judged
    rows = lake.read(SegmentMetrics).filter(label="clicked", metric="auc", ranker="base")
    assert rows.select("segment_kind", "segment").rows() == [
        ("all", "all"),
        *(("user_segment", tier) for tier in TIERS),
        *(("item_segment", tier) for tier in TIERS),
        *(("position", name) for name in ("0", "1-3", "4-9", "10 and more")),
        ("brand", "acme"),
        ("brand", "other"),
    ]
    sizes = dict(rows.filter(segment_kind="brand").select("segment", "num_impressions").iter_rows())
    items = lake.read(RankerPredictions).filter(ranker="base", seed=0)["item_id"].str.slice(1).cast(pl.Int64) % 5
    assert sizes == {"acme": (items == 1).sum(), "other": (items > 1).sum()}
    assert "6 more segments in the report, by position, brand" in printed
    assert "4-9" not in printed.split("gain in percentage points")[0]


def test_kinds_of_segments_can_be_chosen(lake: Lake) -> None:
    fill(lake)
    run(lake, Config(num_draws=100, segment_kinds=("brand",)))
    assert lake.read(SegmentMetrics)["segment_kind"].unique().sort().to_list() == ["all", "brand"]
    with pytest.raises(ValueError, match="names `brnd`, which assign_segments did not write; did you mean `brand`"):
        run(lake, Config(segment_kinds=("brnd",)))


def test_the_numbers_lie_beside_the_report_as_parquet(judged: Judged) -> None:
    lake = judged.lake
    for schema, name in ((SegmentMetrics, "segment_metrics"), (CalibrationMetrics, "calibration_metrics")):
        assert pl.read_parquet(lake.folder("reports") / f"{name}.parquet").equals(lake.read(schema))
    assert {path.name for path in lake.folder("reports").iterdir()} == {
        "report.html",
        "report.json",
        "segment_metrics.parquet",
        "calibration_metrics.parquet",
    }


def test_probabilities_are_mended_on_the_validation_split_and_judged_on_the_test(lake: Lake) -> None:
    fill(lake, validated=True)
    judged = line_up(_runs(lake, ["brand"]), segment_kinds=["brand"])
    metrics = calibrate(lake, judged, METHODS).metrics
    clicks = metrics.filter(label="clicked", ranker="base")
    overall = clicks.filter(segment_kind="all")
    errors = dict(overall.select("method", "expected_calibration_error").iter_rows())
    assert set(errors) == {"as scored", "isotonic", "platt"}
    assert max(errors["isotonic"], errors["platt"]) < 0.5 * errors["as scored"]
    assert metrics.select("label", "segment_kind", "segment").unique(maintain_order=True).rows() == [
        (label, kind, segment)
        for label in ("clicked", "converted", "clicked_and_converted")
        for kind, segment in (("all", "all"), ("brand", "acme"), ("brand", "other"))
    ]
    assert set(metrics.filter(method="as scored")["ranker"]) == {"base", "content", "ceiling"}
    assert set(metrics.filter(method="platt")["ranker"]) == {"base", "content"}  # the truth needs no mending


@pytest.mark.parametrize("validated", [False, True])
def test_without_validation_predictions_or_a_method_rankers_are_judged_as_scored(lake: Lake, validated: bool) -> None:
    fill(lake, validated=validated)
    judged = line_up(_runs(lake, []), segment_kinds=[])
    assert set(calibrate(lake, judged, [] if validated else METHODS).metrics["method"]) == {"as scored"}


@pytest.mark.parametrize("is_of_these_predictions", [True, False])
def test_feature_groups_are_shown_where_they_are_of_the_predictions_judged(
    lake: Lake, is_of_these_predictions: bool
) -> None:
    fill(lake)
    digest = lake.manifest(RankerPredictions).digest if is_of_these_predictions else "of other predictions"
    lake.write(
        FeatureGroupCosts,
        pl.DataFrame(
            {
                "ranker": ["content"],
                "feature_group": ["item_content"],
                "num_features": [2],
                "seconds_to_make": [1.5],
                "num_bytes_online": [100],
                "rows_per_second_with": [1.0],
                "rows_per_second_without": [2.0],
            }
        ),
        metadata={"predictions": digest},
    )
    lake.write(
        FeatureGroupValues,
        pl.DataFrame(
            {
                "ranker": ["content"],
                "feature_group": "item_content",
                "method": "permuted",
                "segment_kind": "all",
                "segment": "all",
                "metric": "uauc",
                "value_with": 0.6,
                "value_without": 0.55,
                "value_lost": 0.05,
                "low": 0.01,
                "high": 0.09,
                "p_value": 0.01,
                "verdict": "helps",
                "num_users": 100,
                "num_seeds": 1,
            }
        ),
        metadata={"predictions": digest},
    )
    lake.write(
        EmbedderCurves,
        pl.DataFrame(
            {
                "method": "learn",
                "epoch": [0, 1],
                "train_loss": [2.0, 1.0],
                "validation_recall": [0.1, 0.2],
                "participation_ratio": [5.0, 6.0],
                "effective_rank": [7.0, 8.0],
                "uniformity": -2.0,
                "alignment": 1.0,
                "seconds": 1.0,
                "is_best": [False, True],
            },
            schema_overrides={"epoch": pl.Int32},
        ),
    )
    run(lake, Config(num_draws=100))
    for name in ("feature_group_values", "feature_group_costs"):
        assert (lake.folder("reports") / f"{name}.parquet").exists() == is_of_these_predictions
    page = (lake.folder("reports") / "report.html").read_text()
    assert ("item_content" in page.split("<pre")[0]) == is_of_these_predictions


def test_relevance_is_shown_where_its_tables_have_rows(lake: Lake) -> None:
    fill(lake)
    reports = lake.folder("reports")

    def page() -> str:
        run(lake, Config(num_draws=100))
        return (reports / "report.html").read_text()

    def relevance() -> Any:
        return json.loads((reports / "report.json").read_text())["relevance"]

    of_none = page()
    assert 'id="relevance"' not in of_none
    for schema in (RelevanceMetrics, StudentCurves):
        lake.write(schema, schema.create_empty())  # what distill_relevance writes in a lake that does without
    assert sections(page()) == sections(of_none)
    assert relevance() is None
    assert not (reports / "relevance_metrics.parquet").exists()

    sizes = {"num_pairs": 20, "num_queries": 5}
    judged = pl.DataFrame(
        [
            {"scorer": "representation", "part": "all", "metric": metric, "value": 0.8, "low": 0.7, "high": 0.9} | sizes
            for metric in ("spearman", "roc_auc", "pr_auc_irrelevant", "ndcg_at_10")
        ]
    )
    lake.write(RelevanceMetrics, judged)
    assert "20 pairs that people judged, of 5 test queries" in page()
    assert relevance() == {"metrics": judged.to_dicts(), "student_curves": None}
    assert pl.read_parquet(reports / "relevance_metrics.parquet").equals(lake.read(RelevanceMetrics))


def test_embedding_models_are_shown_where_their_tables_have_rows(lake: Lake) -> None:
    fill(lake)

    def page() -> str:
        run(lake, Config(num_draws=100))
        return (lake.folder("reports") / "report.html").read_text()

    of_none = page()
    assert 'id="embeddings"' not in of_none
    for schema in (EmbedderCurves, LearnAttention, KarmaCurves, KarmaAttention):
        lake.write(schema, schema.create_empty())  # what the steps write in a lake that does without
    assert sections(page()) == sections(of_none)
    means = [{"layer": 1, "head": 1, "top1_mass": 0.5, "top4_mass": 1.0, "column_entropy": 0.9, "column_means": [1.0]}]
    lake.write(
        LearnAttention,
        pl.DataFrame(
            [{"moment": moment, **row} for moment in ("untouched", "fitted") for row in means],
            schema=LearnAttention.create_empty().schema,
        ),
    )
    lake.write(
        KarmaCurves,
        pl.DataFrame(
            [
                {"epoch": epoch, "stage": stage, "validation_recall": 0.1, "seconds": 1.0, "is_best": epoch == 0}
                for epoch, stage in ((-1, "untouched"), (0, "joint"))
            ],
            schema=KarmaCurves.create_empty().schema,
        ),
    )
    told = re.findall(r'aria-label="((?:LEARN|KARMA): [^"]*?),? by (?:layer|epoch)', page())
    assert told == [
        "LEARN: heaviest position of a head",
        "LEARN: attention by position",
        "KARMA: recall of held-out items",
    ]


def test_curves_written_before_health_was_measured_are_shown_as_far_as_they_go(lake: Lake) -> None:
    fill(lake)
    row = {"method": "learn", "epoch": 0, "train_loss": 1.0, "validation_recall": 0.1, "seconds": 1.0, "is_best": True}
    lake.write(EmbedderCurves, pl.DataFrame([row], schema=EmbedderCurves.create_empty().schema))
    (file,) = lake.parquet_files(EmbedderCurves)
    pl.read_parquet(file).drop("participation_ratio", "effective_rank", "uniformity", "alignment").write_parquet(file)
    manifest = file.parent / "manifest.json"
    written = json.loads(manifest.read_text())
    written["shards"][0]["bytes"] = file.stat().st_size
    manifest.write_text(json.dumps(written))
    run(lake, Config(num_draws=100))
    page = (lake.folder("reports") / "report.html").read_text()
    assert "LEARN: recall of held-out items" in page
    assert "LEARN: user vectors" not in page


def sections(page: str) -> str:
    """The page without the time at which it was written."""
    return re.sub(r"\d+ \w+ \d{4}, \d\d:\d\d UTC", "", page)


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_an_evaluation_can_be_logged_to_mlflow(judged: Judged, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra: pip install 'tailrank[mlflow]'")
    metrics = judged.lake.read(SegmentMetrics)
    data = ReportData(title="", source="Log: simulate", metrics=metrics, calibrations={}, created=START)
    report = judged.lake.folder("reports") / "report.html"
    config = Config(mlflow_tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", mlflow_experiment="clicks")
    _log_to_mlflow(config, data, [report])
    client = mlflow.MlflowClient(tracking_uri=config.mlflow_tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("clicks").experiment_id])
    names = {run.info.run_name: run for run in runs}
    assert set(names) == {"Log: simulate, 2024-03-01 00:00 UTC", "base", "content", "ceiling"}
    value = metrics.filter(ranker="content", label="clicked", segment_kind="all", metric="uauc")["value"][0]
    assert names["content"].data.metrics["clicked/all/uauc"] == pytest.approx(value)
