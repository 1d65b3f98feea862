"""The step of the flow: from the tables of the lake to segment metrics and a report."""

import datetime as dt
import json

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import (
    Impressions,
    ItemSegments,
    RankerPredictions,
    SegmentMetrics,
    SplitWindows,
    TrainingCurves,
    TrueProbabilities,
    UserSegments,
)
from jobs.evaluate_ranker import Config, run
from jobs.lake import Lake, TableError

START = dt.datetime(2024, 3, 1, tzinfo=dt.timezone.utc)
TIERS = np.array(["cold_start", "long_tail", "others"])
NUM_USERS, PER_USER, NUM_ITEMS = 150, 16, 30


def fill(lake: Lake, *, simulated: bool = True, sampled: bool = False) -> None:
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
    tier = pl.Enum(list(TIERS))
    lake.write(
        UserSegments,
        pl.DataFrame(
            {
                "user_id": [f"u{u}" for u in range(NUM_USERS)],
                "user_segment": TIERS[np.arange(NUM_USERS) % 3],
                "num_interactions": np.array([0, 5, 60])[np.arange(NUM_USERS) % 3],
            },
            schema_overrides={"user_segment": tier},
        ),
    )
    lake.write(
        ItemSegments,
        pl.DataFrame(
            {
                "item_id": [f"p{i}" for i in range(NUM_ITEMS)],
                "item_segment": TIERS[np.arange(NUM_ITEMS) % 3],
                "num_interactions": np.array([0, 5, 60])[np.arange(NUM_ITEMS) % 3],
            },
            schema_overrides={"item_segment": tier},
        ),
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


def test_the_step_finds_the_gain_planted_on_cold_items(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    fill(lake)
    run(lake, Config(num_draws=200))
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
    assert (
        "Users by interactions in the 180 days before the test window: cold-start 0, long-tail 5, others 60." in report
    )
    numbers = json.loads((lake.folder("reports") / "report.json").read_text())
    assert (numbers["ranker"], numbers["baseline"]) == ("content", "base")
    printed = capsys.readouterr().out
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


def test_the_same_lake_gives_the_same_numbers(lake: Lake) -> None:
    fill(lake)
    run(lake, Config(num_draws=100))
    first = lake.read(SegmentMetrics)
    run(lake, Config(num_draws=100))
    assert first.equals(lake.read(SegmentMetrics))


def test_a_baseline_that_was_not_trained_is_refused_and_nothing_is_written(lake: Lake) -> None:
    fill(lake)
    with pytest.raises(ValueError, match="there is no ranker `gbdt` to compare with"):
        run(lake, Config(baseline="gbdt"))
    assert not lake.exists(SegmentMetrics)


def test_without_predictions_the_step_says_what_to_run(lake: Lake) -> None:
    with pytest.raises(TableError, match="ranker_predictions: there is no such table"):
        run(lake, Config())
