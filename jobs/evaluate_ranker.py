"""Judge the rankers by AUC, UAUC and WUAUC, overall and by segment, and write the report.

reads   ranker_predictions, training_curves, user_segments, item_segments, split_windows, impressions
        true_probabilities              where the log is simulated: judged as one more ranker, the ceiling
writes  segment_metrics                 one row per (ranker, label, segment, metric)
        reports/report.html, report.json
"""

import json
import logging
from collections.abc import Iterator
from typing import Any

import dataframely as dy
import polars as pl
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt
from rich.console import Console

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
from jobs.lake import Lake
from jobs.provenance import command, commit, versions
from jobs.report_files import write_json, write_text
from jobs.segment_table import terminal_table
from ranker.calibration import calibrate_runs
from ranker.comparison import compare
from ranker.judged_runs import Run, line_up
from ranker.report import ReportData, Window, render
from ranker.report_json import report_json
from ranker.wording import CEILING, verdict

READS: tuple[type[dy.Schema], ...] = (
    RankerPredictions,
    TrainingCurves,
    UserSegments,
    ItemSegments,
    SplitWindows,
    Impressions,
    TrueProbabilities,
)
WRITES: tuple[type[dy.Schema], ...] = (SegmentMetrics,)

logger = logging.getLogger(__name__)


class Config(BaseModel, extra="forbid", frozen=True):
    """What the rankers are compared with, and how surely."""

    baseline: str = "base"
    """Name of the ranker that gains are over."""
    num_draws: PositiveInt = Field(1000, ge=100)
    """Bootstrap draws of users."""
    seed: NonNegativeInt = 0
    """Of the bootstrap."""
    min_users: PositiveInt = 30
    """With fewer users counted, a segment says "cannot tell"."""
    min_positives: PositiveInt = 30
    """The same for positives, and for negatives."""


def run(lake: Lake, config: Config) -> None:
    """Judge every ranker and seed on the test impressions, write the table and the report, print both.

    Raises:
        TableError: a table that this step reads has not been written.
        ValueError: rankers were scored on different impressions, or none is called as the baseline.
    """
    judged = line_up(_runs(lake))
    metrics = compare(
        judged,
        baseline=config.baseline,
        num_draws=config.num_draws,
        seed=config.seed,
        min_users=config.min_users,
        min_positives=config.min_positives,
    )
    lake.write(SegmentMetrics, metrics)
    rankers = [ranker for ranker in judged.rankers(config.baseline) if ranker not in (config.baseline, CEILING)]
    impressions = lake.manifest(Impressions).metadata
    data = ReportData(
        title="Do content features lift the tail?",
        source=_source(impressions),
        metrics=metrics,
        calibrations=calibrate_runs(judged),
        created=lake.now(),
        label_rule=impressions.get("label_rule"),
        num_sampled=_num_sampled(lake),
        segment_rules=_segment_rules(lake),
        curves=lake.read(TrainingCurves),
        windows=[Window(**row) for row in lake.read(SplitWindows).sort("start").to_dicts()],
        provenance=_provenance(lake, config, sorted(judged.scores)),
        configuration=json.dumps(_configuration(lake, config), indent=2),
    )
    folder = lake.folder("reports")
    write_json(folder / "report.json", report_json(data, rankers[0] if rankers else config.baseline))
    write_text(folder / "report.html", render(data))
    logger.info(
        "evaluate_ranker: %s impressions, %s users, %s runs, %s rows of segment metrics",
        f"{judged.impressions.height:_}",
        f"{judged.num_users:_}",
        len(judged.scores),
        f"{metrics.height:_}",
    )
    console = Console()
    console.print(terminal_table(metrics))
    for ranker in rankers:
        console.print(" ".join(verdict(metrics, ranker)))
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def _runs(lake: Lake) -> Iterator[Run]:
    """Each (ranker, seed) of the predictions, then the ceiling where the log is simulated; one in memory at a time."""
    scan = lake.scan(RankerPredictions)
    users, items = lake.read(UserSegments), lake.read(ItemSegments)
    keys = scan.select("ranker", "seed").unique(maintain_order=True).collect()
    columns = ["impression_id", "user_id", "item_id", "clicked", "converted", "p_ctr", "p_cvr", "p_ctcvr"]
    predictions = pl.DataFrame()
    for ranker, seed in keys.iter_rows():
        predictions = (
            scan.filter(ranker=ranker, seed=seed)
            .select(columns)
            .join(users.lazy().select("user_id", "user_segment"), on="user_id", how="left", maintain_order="left")
            .join(items.lazy().select("item_id", "item_segment"), on="item_id", how="left", maintain_order="left")
            .collect()
        )
        yield Run(ranker, seed, predictions)
    if lake.exists(TrueProbabilities) and not predictions.is_empty():
        truth = lake.scan(TrueProbabilities).join(
            predictions.lazy().select("impression_id"), on="impression_id", how="semi"
        )
        yield Run(
            CEILING,
            0,
            predictions.drop("p_ctr", "p_cvr", "p_ctcvr").join(
                truth.collect(), on="impression_id", how="left", maintain_order="left"
            ),
        )


def _num_sampled(lake: Lake) -> int:
    """Impressions judged that are negatives drawn by us."""
    judged = lake.scan(RankerPredictions).select("impression_id").unique()
    sampled = lake.scan(Impressions).filter("is_sampled").select("impression_id")
    return int(sampled.join(judged, on="impression_id", how="semi").select(pl.len()).collect().item())


def _segment_rules(lake: Lake) -> list[str]:
    """The tiers as they came out: from how few to how many interactions each holds."""
    rules = []
    for schema, things, column in ((UserSegments, "Users", "user_segment"), (ItemSegments, "Items", "item_segment")):
        tiers = (
            lake.scan(schema)
            .group_by(pl.col(column).cast(pl.String))
            .agg(pl.col("num_interactions").min().alias("low"), pl.col("num_interactions").max().alias("high"))
            .sort("low")
            .collect()
        )
        said = [
            f"{name.replace('_', '-')} {low:,}" + (f" to {high:,}" if high > low else "")
            for name, low, high in tiers.iter_rows()
        ]
        rules.append(f"{things} by interactions in the 180 days before the test window: {', '.join(said)}.")
    return rules


def _source(impressions: dict[str, Any]) -> str:
    source = impressions.get("source") or {}
    path = source.get("path")
    name = str(source.get("name", "an unnamed source")).replace("_", " ")
    return f"Log: {name}" + (f", {path}" if path not in (None, "None") else "")


def _provenance(lake: Lake, config: Config, runs: list[tuple[str, int]]) -> dict[str, str]:
    seeds: dict[str, list[str]] = {}
    for ranker, seed in runs:
        if ranker != CEILING:
            seeds.setdefault(ranker, []).append(str(seed))
    predictions = lake.manifest(RankerPredictions)
    return {
        "Log": f"{lake.manifest(Impressions).rows:,} impressions in all",
        "Rankers and seeds": "; ".join(f"{ranker}: {', '.join(several)}" for ranker, several in seeds.items()),
        "Predictions": f"{predictions.rows:,} rows, version {predictions.version}, "
        f"written {predictions.created_timestamp:%Y-%m-%d %H:%M} UTC",
        "Bootstrap": f"{config.num_draws:,} draws of users, seed {config.seed}",
        "Too few to tell": f"below {config.min_users} users, {config.min_positives} positives or as many negatives",
        "Commit": commit(),
        "Versions": versions(),
        "Command": command(),
    }


def _configuration(lake: Lake, config: Config) -> dict[str, Any]:
    """This step's configuration, and what the log was read with."""
    return {
        "evaluate_ranker": config.model_dump(mode="json"),
        "ingest": lake.manifest(Impressions).metadata.get("source"),
    }
