"""Are the probabilities right on the test, as scored and after a fit on the validation split? One ranker at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import dataframely as dy
import polars as pl

from feature_repo.table_schemas import CalibrationMetrics, ValidationPredictions
from jobs.lake import Lake
from ranker.calibration import Calibration, calibrate_runs, calibrate_segments
from ranker.judged_runs import LABELS, JudgedRuns, Run
from ranker.recalibration import Method, fit_recalibrations, recalibrate_runs


class CalibratedRuns(NamedTuple):
    """What a report says of probabilities."""

    metrics: dy.DataFrame[CalibrationMetrics]
    as_scored: Mapping[tuple[str, str], Sequence[Calibration]]
    """By (label, ranker): one a seed."""
    recalibrated: Mapping[tuple[str, str, str], Sequence[Calibration]]
    """By (label, ranker, method): one a seed."""


def calibrate(lake: Lake, judged: JudgedRuns, methods: Sequence[Method]) -> CalibratedRuns:
    """Judge every ranker's probabilities, overall and by segment.

    Args:
        lake: where `validation_predictions` are; without them, or without those of a ranker, it is judged as scored.
        judged: test predictions, lined up.
        methods: what is fitted on the validation predictions; none for as scored only.
    """
    return calibrate_on(lambda ranker: _validation_runs(lake, ranker), judged, methods)


def calibrate_on(
    validation_runs: Callable[[str], Iterable[Run]], judged: JudgedRuns, methods: Sequence[Method]
) -> CalibratedRuns:
    """Judge every ranker's probabilities; the mended scores of one at a time are in memory, beside those of `judged`.

    Args:
        validation_runs: by ranker, its seeds on rows that it was not trained on; none where it is judged as scored.
        judged: test predictions, lined up.
        methods: what is fitted on the validation predictions; none for as scored only.
    """
    tables: list[pl.DataFrame] = []
    recalibrated: dict[tuple[str, str, str], Sequence[Calibration]] = {}
    for ranker in judged.rankers(None):
        alone = replace(judged, scores={run: scores for run, scores in judged.scores.items() if run[0] == ranker})
        fitted = fit_recalibrations(validation_runs(ranker), methods) if methods else {}
        mended: dict[str, JudgedRuns] = {
            method: recalibrate_runs(alone, maps) for method, maps in fitted.items() if maps
        }
        tables.append(calibrate_segments(alone, mended))
        for method, runs in mended.items():
            for (label, _), calibrations in calibrate_runs(runs).items():
                recalibrated[label, ranker, method] = calibrations
    return CalibratedRuns(CalibrationMetrics.validate(_by_segment(tables)), calibrate_runs(judged), recalibrated)


def _validation_runs(lake: Lake, ranker: str) -> Iterator[Run]:
    """Each seed of the ranker, one in memory at a time; none where they were not written."""
    if not lake.exists(ValidationPredictions):
        return
    scan = lake.scan(ValidationPredictions).filter(pl.col("ranker") == ranker)
    columns = ["impression_id", "clicked", "converted", *(label.score for label in LABELS)]
    for seed in scan.select("seed").unique().collect().get_column("seed").sort():
        yield Run(ranker, seed, scan.filter(pl.col("seed") == seed).select(columns).collect())


def _by_segment(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Rankers one after another -> the rows of a segment together, in the order of the labels and segments."""
    rows = pl.concat(tables)
    cell = ("segment_kind", "segment")
    places = rows.select(cell).unique(maintain_order=True).with_row_index("place")
    return (
        rows.join(places, on=cell, how="left", maintain_order="left")
        .sort(pl.col("label").cast(pl.Enum([label.name for label in LABELS])), "place", maintain_order=True)
        .drop("place")
    )
