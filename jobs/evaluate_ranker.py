"""Judge the rankers by AUC, UAUC and WUAUC, overall and by segment, and write the report.

reads   ranker_predictions, impression_segments, training_curves, split_windows, impressions
        validation_predictions          what probabilities are recalibrated on
        true_probabilities              where the log is simulated: judged as one more ranker, the ceiling
        embedder_curves, learn_attention, karma_curves, karma_attention    where there are embedding models
        relevance_metrics, student_curves    where there are students of a relevance teacher
writes  segment_metrics                 one row per (ranker, label, segment, metric)
        calibration_metrics             one row per (ranker, label, segment, method)
        reports/report.html, report.json, and a parquet file of each table behind it

What `tailrank ablate` has found of the predictions judged here is shown, too.
"""

import difflib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import dataframely as dy
import polars as pl
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt
from rich.console import Console

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
from jobs.ablate_features import feature_group_tables
from jobs.calibrated_runs import calibrate
from jobs.lake import Lake, Manifest, table_name
from jobs.provenance import command, commit, versions, without_passwords
from jobs.report_files import write_json, write_parquet, write_text
from jobs.segment_table import terminal_table
from ranker.calibration import score_histograms
from ranker.comparison import compare
from ranker.judged_runs import Run, line_up
from ranker.recalibration import METHODS, Method
from ranker.report import ReportData, Window, render
from ranker.report_json import report_json
from ranker.wording import CEILING, verdict

READS: tuple[type[dy.Schema], ...] = (
    RankerPredictions,
    ValidationPredictions,
    ImpressionSegments,
    TrainingCurves,
    EmbedderCurves,
    LearnAttention,
    KarmaCurves,
    KarmaAttention,
    RelevanceMetrics,
    StudentCurves,
    SplitWindows,
    Impressions,
    TrueProbabilities,
)
SHOWS: tuple[type[dy.Schema], ...] = (FeatureGroupValues, FeatureGroupCosts)
"""What `tailrank ablate` writes."""
WRITES: tuple[type[dy.Schema], ...] = (SegmentMetrics, CalibrationMetrics)


logger = logging.getLogger(__name__)

S = TypeVar("S", bound=dy.Schema)


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
    segment_kinds: tuple[str, ...] | None = None
    """Kinds of segments to judge by; by default all that assign_segments wrote."""
    recalibrate: tuple[Method, ...] = METHODS
    """How probabilities are mended on the validation split, to be judged on the test; [] for not at all."""
    mlflow_tracking_uri: str = ""
    """MLflow store that the evaluation is logged to, such as `sqlite:////data/mlflow.db`; empty for none."""
    mlflow_experiment: str = "tailrank"
    """The experiment that it is logged under."""


def run(lake: Lake, config: Config) -> None:
    """Judge every ranker and seed on the test impressions, write the tables and the report, print them.

    Raises:
        TableError: a table that this step reads has not been written.
        ValueError: rankers were scored on different impressions, none is called as the baseline, or a kind of segment
            was asked for that assign_segments did not write.
    """
    predictions = lake.manifest(RankerPredictions)
    rules = _segment_rules(lake, config.segment_kinds)
    judged = line_up(_runs(lake, list(rules)), segment_kinds=list(rules))
    metrics = compare(
        judged,
        baseline=config.baseline,
        num_draws=config.num_draws,
        seed=config.seed,
        min_users=config.min_users,
        min_positives=config.min_positives,
    )
    calibrated = calibrate(lake, judged, config.recalibrate)
    lake.write(SegmentMetrics, metrics)
    lake.write(CalibrationMetrics, calibrated.metrics)
    groups = feature_group_tables(lake)
    rankers = [ranker for ranker in judged.rankers(config.baseline) if ranker not in (config.baseline, CEILING)]
    impressions = lake.manifest(Impressions).metadata
    data = ReportData(
        title="Do content features lift the tail?",
        source=_source(impressions),
        metrics=metrics,
        calibrations=calibrated.as_scored,
        created=lake.now(),
        label_rule=impressions.get("label_rule"),
        num_sampled=_num_sampled(lake),
        segment_rules=[f"{kind.replace('_', ' ')}: {rule}." for kind, rule in rules.items()],
        curves=lake.read(TrainingCurves),
        windows=[Window(**row) for row in lake.read(SplitWindows).sort("start").to_dicts()],
        provenance=_provenance(lake, config, predictions, sorted(judged.scores)),
        configuration=without_passwords(json.dumps(_configuration(lake, config), indent=2)),
        calibration_metrics=calibrated.metrics,
        recalibrations=calibrated.recalibrated,
        histograms=score_histograms(judged),
        embedder_curves=_rows(lake, EmbedderCurves),
        learn_attention=_rows(lake, LearnAttention),
        karma_curves=_rows(lake, KarmaCurves),
        karma_attention=_rows(lake, KarmaAttention),
        feature_group_values=groups.values if groups else None,
        feature_group_costs=groups.costs if groups else None,
        relevance_metrics=_rows(lake, RelevanceMetrics),
        student_curves=_rows(lake, StudentCurves),
    )
    folder = lake.folder("reports")
    write_json(folder / "report.json", report_json(data, rankers[0] if rankers else config.baseline))
    write_text(folder / "report.html", render(data))
    tables = _write_tables(folder, data)
    if config.mlflow_tracking_uri:
        _log_to_mlflow(config, data, [folder / "report.html", folder / "report.json", *tables])
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


def _runs(lake: Lake, segment_kinds: Sequence[str]) -> Iterator[Run]:
    """Each (ranker, seed) of the predictions, then the ceiling where the log is simulated; one in memory at a time.

    The first brings the segments, which are those of its impressions.
    """
    scan = lake.scan(RankerPredictions)
    segments = lake.scan(ImpressionSegments).select("impression_id", pl.col(segment_kinds).cast(pl.Categorical))
    keys = scan.select("ranker", "seed").unique(maintain_order=True).collect()
    columns = ["impression_id", "user_id", "item_id", "clicked", "converted", "p_ctr", "p_cvr", "p_ctcvr"]
    predictions = pl.DataFrame()
    for place, (ranker, seed) in enumerate(keys.iter_rows()):
        predictions = scan.filter(ranker=ranker, seed=seed).select(columns).collect()
        if place == 0:
            predictions = predictions.join(segments.collect(), on="impression_id", how="left", maintain_order="left")
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


def _segment_rules(lake: Lake, chosen: Sequence[str] | None) -> dict[str, str]:
    """Kind of segment -> how it is cut, of the kinds chosen."""
    rules = {kind: str(one["rule"]) for kind, one in lake.manifest(ImpressionSegments).metadata["kinds"].items()}
    for kind in chosen or ():
        if kind not in rules:
            near = difflib.get_close_matches(kind, rules, n=1)
            raise ValueError(
                f"evaluate_ranker: segment_kinds names `{kind}`, which assign_segments did not write"
                + (f"; did you mean `{near[0]}`?" if near else "")
                + f" It wrote {', '.join(rules)}: choose among them, or name it in [assign_segments]."
            )
    return rules if chosen is None else {kind: rules[kind] for kind in chosen}


def _rows(lake: Lake, schema: type[S]) -> dy.DataFrame[S] | None:
    """The table, where it is there and has any."""
    return lake.read(schema) if lake.exists(schema) and lake.manifest(schema).rows else None


def _write_tables(folder: Path, data: ReportData) -> list[Path]:
    """The numbers of the report as parquet beside it; a file of an earlier report that has no rows now is removed."""
    written = []
    tables: Mapping[type[dy.Schema], pl.DataFrame | None] = {
        SegmentMetrics: data.metrics,
        CalibrationMetrics: data.calibration_metrics,
        FeatureGroupValues: data.feature_group_values,
        FeatureGroupCosts: data.feature_group_costs,
        RelevanceMetrics: data.relevance_metrics,
    }
    for schema, table in tables.items():
        path = folder / f"{table_name(schema)}.parquet"
        if table is None:
            path.unlink(missing_ok=True)
        else:
            write_parquet(path, table)
            written.append(path)
    return written


def _log_to_mlflow(config: Config, data: ReportData, artifacts: Sequence[Path]) -> None:
    from jobs.experiment_log import log_evaluation

    log_evaluation(
        config.mlflow_tracking_uri,
        config.mlflow_experiment,
        f"{data.source}, {data.created:%Y-%m-%d %H:%M} UTC",
        metrics=data.metrics,
        calibration=data.calibration_metrics,
        params={**data.provenance, "Source": data.source, "Baseline": config.baseline},
        artifacts=artifacts,
        now=lambda: data.created,
    )


def _source(impressions: dict[str, Any]) -> str:
    source = impressions.get("source") or {}
    path = source.get("path")
    name = str(source.get("name", "an unnamed source")).replace("_", " ")
    return f"Log: {name}" + (f", {path}" if path not in (None, "None") else "")


def _provenance(lake: Lake, config: Config, predictions: Manifest, runs: list[tuple[str, int]]) -> dict[str, str]:
    seeds: dict[str, list[str]] = {}
    for ranker, seed in runs:
        if ranker != CEILING:
            seeds.setdefault(ranker, []).append(str(seed))
    return {
        "Log": f"{lake.manifest(Impressions).rows:,} impressions in all",
        "Rankers and seeds": "; ".join(f"{ranker}: {', '.join(several)}" for ranker, several in seeds.items()),
        "Predictions": f"{predictions.rows:,} rows, version {predictions.version}, "
        f"written {predictions.created_timestamp:%Y-%m-%d %H:%M} UTC",
        "Data": f"sha256 {predictions.digest} of the predictions, {lake.manifest(Impressions).digest} of the log",
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
