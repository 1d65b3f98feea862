"""Judge anyone's predictions, alone or against a baseline. The function behind `tailrank evaluate`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import dataframely as dy
from rich.console import Console

from feature_repo.table_schemas import SegmentMetrics
from jobs.calibrated_runs import calibrate_on as calibrate_runs_on
from jobs.definitions_table import definitions_table, reconcile, reconciliation_json
from jobs.lake import utc_now
from jobs.large_predictions import ROWS_AT_ONCE, compare_large
from jobs.predictions_file import PredictionsFile, read_predictions
from jobs.provenance import command, commit, sha256, versions
from jobs.recalibrate_file import read_validation
from jobs.report_files import write_json, write_parquet, write_text
from jobs.segment_table import terminal_table
from jobs.staged_predictions import count_rows
from ranker.calibration import score_histograms
from ranker.comparison import compare
from ranker.judged_runs import JudgedRuns, Run, line_up
from ranker.recalibration import METHODS
from ranker.report import ReportData, render
from ranker.report_json import report_json
from ranker.segments import TIER_KINDS
from ranker.wording import verdict

ROWS_IN_MEMORY = 30_000_000
"""Rows of both files together; more are judged part by part, as then the whole takes more than about 8 GB."""

logger = logging.getLogger(__name__)


class _Judged(NamedTuple):
    """What the files say."""

    metrics: dy.DataFrame[SegmentMetrics]
    runs: JudgedRuns
    """All rows, or a sample of more than fit into memory."""
    ours: PredictionsFile
    """The predictions; of more than fit into memory, only the ids of the sample."""
    num_rows: int
    notes: list[str]


def run(
    predictions: Path,
    baseline: Path | None = None,
    report: Path | None = None,
    json: Path | None = None,
    *,
    segments: Sequence[str] = (),
    calibrate_on: Path | None = None,
    parquet: Path | None = None,
    explain: bool = False,
    num_draws: int = 1000,
    seed: int = 0,
    min_users: int = 30,
    min_positives: int = 30,
    rows_in_memory: int = ROWS_IN_MEMORY,
    console: Console | None = None,
    now: Callable[[], datetime] = utc_now,
) -> dy.DataFrame[SegmentMetrics]:
    """Judge a file of predictions by AUC, UAUC and WUAUC with intervals, by segment, against a baseline's.

    Args:
        predictions: parquet or CSV, one row per impression; see `jobs.predictions_file`.
        baseline: another model's predictions for the same impressions.
        report: write one self-contained HTML file here.
        json: write all numbers here.
        segments: further columns to judge by, of the predictions.
        calibrate_on: predictions of the same model on the validation split; fit isotonic regression and Platt scaling
            there, and judge what they make of the probabilities here.
        parquet: write the tables behind the report into this folder.
        explain: print, and add to the JSON, what other definitions of AUC by user give from the same scores.
        num_draws: bootstrap draws of users.
        seed: of the bootstrap.
        min_users: with fewer users counted, a segment says "cannot tell".
        min_positives: the same for positives, and for negatives.
        rows_in_memory: files that have more rows together are judged part by part. AUC, UAUC and WUAUC are the same;
            calibration and score distributions are then of a sample, and `explain` is left out.
        console: where the table is printed.
        now: the clock that stamps the report.

    Returns:
        the segment table.

    Raises:
        TableError: a file cannot be judged, or has no such column; the message names the column, the rule and a few
            rows.
        ValueError: the two files are not of the same impressions, or those to calibrate on are of some of them.
    """
    name, baseline_name = predictions.stem, None
    if baseline is not None:
        name, baseline_name = (name, baseline.stem) if baseline.stem != name else ("predictions", "baseline")
    files = {name: predictions} | ({baseline_name: baseline} if baseline_name and baseline else {})
    sizes = {"num_draws": num_draws, "seed": seed, "min_users": min_users, "min_positives": min_positives}
    fits = sum(map(count_rows, files.values())) <= rows_in_memory
    found = _judge(files, segments, sizes) if fits else _judge_parts(files, segments, sizes, rows_in_memory, explain)
    metrics, judged, ours, notes = found.metrics, found.runs, found.ours, found.notes
    validation = read_validation(calibrate_on, predictions, ours) if calibrate_on is not None else None
    notes += validation.notes if validation is not None else ()
    for note in notes:
        logger.warning("%s", note)
    fitted_on = [Run(name, 0, validation.frame)] if validation is not None else []
    calibrated = calibrate_runs_on(lambda ranker: fitted_on if ranker == name else (), judged, METHODS)
    data = ReportData(
        title=f"{name} against {baseline_name}" if baseline_name else f"How well {name} ranks",
        source=f"Predictions in {predictions.name}",
        metrics=metrics,
        calibrations=calibrated.as_scored,
        created=now(),
        provenance=_provenance(found, predictions, baseline, calibrate_on, num_draws, seed, min_users, min_positives),
        notes=notes,
        calibration_metrics=calibrated.metrics,
        recalibrations=calibrated.recalibrated,
        histograms=score_histograms(judged),
    )
    console = console or Console()
    console.print(terminal_table(metrics, segment_kinds=None))
    console.print(" ".join(verdict(metrics, name)))
    definitions = reconcile(judged) if explain and fits else {}
    if "clicked" in definitions:
        console.print(definitions_table(definitions["clicked"]))
    if json is not None:
        explained = {"other_definitions": reconciliation_json(definitions)} if explain and fits else {}
        write_json(json, report_json(data, name) | explained)
        console.print(f"numbers: {json}", soft_wrap=True)
    if parquet is not None:
        for table, frame in (("segment_metrics", metrics), ("calibration_metrics", calibrated.metrics)):
            write_parquet(parquet / f"{table}.parquet", frame)
        console.print(f"tables: {parquet}", soft_wrap=True)
    if report is not None:
        write_text(report, render(data))
        console.print(f"report: {report}", soft_wrap=True)
    return metrics


def _judge(files: Mapping[str, Path], segments: Sequence[str], sizes: Mapping[str, int]) -> _Judged:
    """All rows at once; the second file, if any, is the baseline's."""
    read = [read_predictions(path, () if place else segments) for place, path in enumerate(files.values())]
    runs = [Run(name, 0, file.frame) for name, file in zip(files, read, strict=True)]
    judged = line_up(runs, segment_kinds=_kinds(segments))
    metrics = compare(judged, baseline=_baseline(files), **sizes)
    return _Judged(metrics, judged, read[0], read[0].frame.height, [note for file in read for note in file.notes])


def _judge_parts(
    files: Mapping[str, Path], segments: Sequence[str], sizes: Mapping[str, int], rows_in_memory: int, explain: bool
) -> _Judged:
    """The same part by part."""
    found = compare_large(
        files,
        segment_kinds=_kinds(segments),
        named_segments=segments,
        rows_at_once=min(ROWS_AT_ONCE, rows_in_memory),
        **sizes,
    )
    whole, num_sampled = found.whole, found.sampled_ids.height
    note = (
        f"{whole.num_rows:,} impressions are more than fit into memory: AUC, UAUC and WUAUC are of all of them, "
        f"calibration and score distributions of {num_sampled:,} drawn by the hash of impression_id."
    )
    if explain:
        note += " What other definitions of AUC give is left out: they are found with all rows in memory only."
    ours = PredictionsFile(found.sampled_ids, whole.num_items, whole.start, whole.end, found.notes)
    return _Judged(found.metrics, found.sample, ours, whole.num_rows, [*found.notes, note])


def _kinds(segments: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*TIER_KINDS, *segments]))


def _baseline(files: Mapping[str, Path]) -> str | None:
    return list(files)[1] if len(files) > 1 else None


def _provenance(
    found: _Judged,
    predictions: Path,
    baseline: Path | None,
    calibrate_on: Path | None,
    num_draws: int,
    seed: int,
    min_users: int,
    min_positives: int,
) -> dict[str, str]:
    return {
        "Predictions": str(predictions),
        **({"Baseline": str(baseline)} if baseline is not None else {}),
        **({"Recalibrated on": str(calibrate_on)} if calibrate_on is not None else {}),
        "Impressions": f"{found.num_rows:,} of {found.ours.num_items:,} items, "
        f"from {found.ours.start:%Y-%m-%d %H:%M} to {found.ours.end:%Y-%m-%d %H:%M} UTC",
        "Data": ", ".join(f"sha256 {sha256(path)} of {path.name}" for path in (predictions, baseline) if path),
        "Bootstrap": f"{num_draws:,} draws of users, seed {seed}",
        "Too few to tell": f"below {min_users} users, {min_positives} positives or {min_positives} negatives",
        "Commit": commit(),
        "Versions": versions(),
        "Command": command(),
    }
