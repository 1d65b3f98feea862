"""Mend the probabilities in anyone's file of predictions by another file: the same model's, on a validation split.

`read_validation` is what `tailrank evaluate --calibrate-on` reads the other file with; `recalibrate_file` writes the
mended predictions, to be served, or judged in turn.
"""

import logging
from pathlib import Path

import polars as pl

from jobs.predictions_file import PredictionsFile, read_predictions, scan_file
from jobs.report_files import write_parquet
from ranker.judged_runs import Run
from ranker.recalibration import METHODS, Method, Recalibration, RunScore, fit_recalibrations

logger = logging.getLogger(__name__)


def read_validation(validation: Path, predictions: Path, judged: PredictionsFile) -> PredictionsFile:
    """Read the predictions that a recalibration is fitted on.

    Args:
        validation: file of the same model's predictions, on other impressions than those judged.
        predictions: path of the predictions judged, for messages.
        judged: those predictions.

    Returns:
        the validation predictions. Their notes say so where they are not all earlier than those judged.

    Raises:
        TableError: the file cannot be read as predictions.
        ValueError: the two files share impressions: a fit on the rows that it is judged on is always right.
    """
    read = read_predictions(validation)
    shared = read.frame.select("impression_id").join(judged.frame, on="impression_id", how="semi")
    if shared.height:
        sample = ", ".join(shared["impression_id"].sort().head(3))
        raise ValueError(
            f"{validation}: {shared.height:_} of {read.frame.height:_} impressions (such as {sample}) are in "
            f"{predictions}, too. A recalibration must be fitted on other rows than it is judged on: give the same "
            "model's predictions for the validation split."
        )
    if read.end <= judged.start:
        return read
    late = (
        f"{validation.name} runs to {read.end:%Y-%m-%d %H:%M}, and {predictions.name} starts at "
        f"{judged.start:%Y-%m-%d %H:%M} UTC: served, a recalibration knows earlier impressions only."
    )
    return read._replace(notes=(*read.notes, late))


def recalibrate_file(
    predictions: Path, validation: Path, recalibrated: Path, *, method: Method = "platt"
) -> dict[str, Recalibration]:
    """Write the predictions again, with mended probabilities.

    Args:
        predictions: parquet or CSV, one row per impression; see `jobs.predictions_file`.
        validation: the same model's predictions for the validation split.
        recalibrated: parquet to write: all columns and rows of `predictions` in their order, `p_ctr`, `p_cvr` and
            `p_ctcvr` mended. A score that validation has not, or that is no probability, stays as it is, and a line
            in the log says so.
        method: "platt" keeps the order of the scores; "isotonic" follows any shape but makes ties.

    Returns:
        the map of each score that was mended.

    Raises:
        TableError: a file cannot be read as predictions.
        ValueError: the two files share impressions, or nothing could be mended.
    """
    judged = read_predictions(predictions)
    fitted_on = read_validation(validation, predictions, judged)
    for note in (*judged.notes, *fitted_on.notes):
        logger.warning("%s", note)
    fitted = fit_recalibrations([Run(validation.stem, 0, fitted_on.frame)], [method])[method]
    maps: dict[str, Recalibration] = {}
    columns: list[pl.Series] = []
    for score in (name for name in ("p_ctr", "p_cvr", "p_ctcvr") if name in judged.frame.columns):
        one = fitted.get(RunScore(validation.stem, 0, score))
        values = judged.frame[score].cast(pl.Float64)
        if one is None or not values.is_between(0.0, 1.0).all():
            where = validation.name if one is None else predictions.name
            logger.warning("%s stays as it is: %s gives no probabilities of it to work with", score, where)
            continue
        known = values.is_not_null()
        mended = pl.Series(one.apply(values.filter(known).to_numpy()))
        columns.append(pl.Series(score, [None] * len(values), dtype=pl.Float64).scatter(known.arg_true(), mended))
        maps[score] = one
    if not columns:
        raise ValueError(
            f"{predictions}: nothing to recalibrate by {method}, one of {', '.join(METHODS)}. p_ctr must be a "
            f"probability in both files, and {validation} must have clicked and other impressions."
        )
    write_parquet(recalibrated, scan_file(predictions).collect().with_columns(columns))
    logger.info(
        "%s: %s rows written, %s mended by %s on %s rows of %s",
        recalibrated.name,
        f"{judged.frame.height:_}",
        ", ".join(maps),
        method,
        f"{fitted_on.frame.height:_}",
        validation.name,
    )
    return maps
