"""Keep evaluations in MLflow, for a team that compares its models there. Needs `pip install 'tailrank[mlflow]'`.

One evaluation is one run, which holds the report and the tables; below it every ranker has a run of its own. Metric
names do not name the ranker, so in MLflow's table a column is a metric and the rows are rankers, of one evaluation or
of many:

    clicked/all/uauc    clicked/all/uauc_gain    clicked/item_segment/cold_start/uauc    clicked/all/platt/log_loss

Every figure is in the parquet files beside the report; here are those that one sorts and plots by. Nothing is sent
anywhere but to the tracking store: MLflow's own telemetry is switched off.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import dataframely as dy

from feature_repo.table_schemas import CalibrationMetrics, SegmentMetrics
from jobs.lake import utc_now
from jobs.provenance import without_passwords
from ranker.calibration import AS_SCORED

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

COMPARED = {
    "value": "",
    "low": "_low",
    "high": "_high",
    "gain": "_gain",
    "gain_low": "_gain_low",
    "gain_high": "_gain_high",
}
"""Columns of `SegmentMetrics` that are logged -> what follows the metric's name."""

CALIBRATION_FIGURES = ("predicted_over_observed", "log_loss", "normalised_entropy", "expected_calibration_error")

LONGEST_PART = 60
LONGEST_VALUE = 5000
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
"""MLflow takes as much, or more."""


class LoggedEvaluation(NamedTuple):
    """Where an evaluation is to be found."""

    experiment_id: str
    run_id: str
    """Of the evaluation."""
    ranker_run_ids: dict[str, str]


def log_evaluation(
    tracking_uri: str,
    experiment: str,
    run_name: str,
    *,
    metrics: dy.DataFrame[SegmentMetrics],
    calibration: dy.DataFrame[CalibrationMetrics] | None = None,
    params: Mapping[str, object] | None = None,
    ranker_params: Mapping[str, Mapping[str, object]] | None = None,
    artifacts: Sequence[Path] = (),
    now: Callable[[], datetime] = utc_now,
) -> LoggedEvaluation:
    """Log one evaluation as a new run with a run for each ranker below it; logging it again makes new runs.

    Args:
        tracking_uri: of the tracking store: `http://...`, `sqlite:////folder/mlflow.db`, or another database.
        experiment: its name; made if there is none. Artifacts of one made in an SQLite file go beside that file,
            elsewhere to where the server keeps them.
        run_name: of the evaluation; the rankers' runs are named after them.
        metrics: the segment table. Nulls are left out.
        calibration: the calibration table: overall by every method, in segments as scored.
        params: facts of the evaluation, such as data, seeds and commit.
        ranker_params: facts of each ranker, by name.
        artifacts: files to keep with the evaluation: the report, its JSON, parquet.
        now: the clock that stamps the metrics.

    Raises:
        ValueError: MLflow is not installed, the store cannot be had or refuses, or the experiment was deleted.
        FileNotFoundError: an artifact is not there; nothing has been logged then.
    """
    if absent := [str(path) for path in artifacts if not path.is_file()]:
        raise FileNotFoundError(f"MLflow: {', '.join(absent)} to be logged: no such file. Write the report first.")
    moment = now()
    with _store(tracking_uri) as client:
        experiment_id = _experiment(client, experiment, tracking_uri)
        baseline = next(iter(metrics["baseline"].drop_nulls()), None)
        with _run(client, experiment_id, run_name, {}) as run_id:
            _log(client, run_id, params or {}, {}, moment)
            for path in artifacts:
                client.log_artifact(run_id, str(path))
            ranker_run_ids = {}
            for ranker in dict.fromkeys(metrics["ranker"]):
                facts = {"ranker": ranker, "baseline": baseline, **(ranker_params or {}).get(ranker, {})}
                figures = ranker_figures(ranker, metrics, calibration)
                with _run(client, experiment_id, ranker, {"mlflow.parentRunId": run_id}) as ranker_run_id:
                    _log(client, ranker_run_id, {**(params or {}), **facts}, figures, moment)
                ranker_run_ids[ranker] = ranker_run_id
    logger.info("MLflow: %s logged to experiment `%s` at %s", run_name, experiment, without_passwords(tracking_uri))
    return LoggedEvaluation(experiment_id, run_id, ranker_run_ids)


def ranker_figures(
    ranker: str, metrics: dy.DataFrame[SegmentMetrics], calibration: dy.DataFrame[CalibrationMetrics] | None
) -> dict[str, float]:
    """The figures of one ranker by the names under which MLflow keeps them; nulls are left out."""
    figures: dict[str, float | None] = {}
    for row in metrics.filter(ranker=ranker).iter_rows(named=True):
        place = _place(row["label"], row["segment_kind"], row["segment"])
        figures |= {f"{place}/{_part(row['metric'])}{suffix}": row[column] for column, suffix in COMPARED.items()}
    if calibration is not None:
        for row in calibration.filter(ranker=ranker).iter_rows(named=True):
            if row["segment_kind"] != "all" and row["method"] != AS_SCORED:
                continue
            place = _place(row["label"], row["segment_kind"], row["segment"])
            place += "" if row["method"] == AS_SCORED else f"/{_part(row['method'])}"
            figures |= {f"{place}/{name}": row[name] for name in CALIBRATION_FIGURES}
    return {name: float(value) for name, value in figures.items() if value is not None}


def _place(label: str, kind: str, segment: str) -> str:
    return "/".join(_part(part) for part in ((label, kind) if kind == "all" else (label, kind, segment)))


def _part(text: str) -> str:
    """A part of a name, of what MLflow takes; a changed one ends in a checksum, so that no two become the same."""
    part = re.sub(r"[^\w.\- ]", "_", text).strip(" .")[:LONGEST_PART].strip(" .")
    return part if part and part == text else f"{part}_{crc32(text.encode()):08x}"


@contextlib.contextmanager
def _store(tracking_uri: str) -> "Iterator[MlflowClient]":
    """A client of the store, whose complaints come as ValueError."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        if error.name != "mlflow":
            raise
        raise ValueError(
            "logging to MLflow needs the package, which is not installed. Run: pip install 'tailrank[mlflow]'"
        ) from error
    try:
        yield MlflowClient(tracking_uri=tracking_uri)
    except MlflowException as error:
        raise ValueError(
            f"MLflow at {without_passwords(tracking_uri)}: {without_passwords(str(error.message))}"
        ) from error


def _experiment(client: "MlflowClient", name: str, tracking_uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=_artifacts_beside(tracking_uri)))
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"MLflow: experiment `{name}` was deleted from {without_passwords(tracking_uri)}. "
            "Restore it there, or log to another."
        )
    return str(found.experiment_id)


def _artifacts_beside(tracking_uri: str) -> str | None:
    """For an SQLite file the folder beside it: MLflow's default is the folder in which one happens to be."""
    scheme, _, path = tracking_uri.partition(":///")
    if scheme != "sqlite" or not path:
        return None
    return (Path(path).resolve().parent / "mlartifacts").as_uri()


@contextlib.contextmanager
def _run(client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """A run that ends as FINISHED, or as FAILED where its block did not come to its end."""
    run_id = str(client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id)
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)


def _log(
    client: "MlflowClient", run_id: str, params: Mapping[str, object], figures: Mapping[str, float], moment: datetime
) -> None:
    from mlflow.entities import Metric, Param

    milliseconds = int(moment.timestamp() * 1000)
    metrics = [Metric(name, value, milliseconds, 0) for name, value in figures.items()]
    said = [Param(_part(name), str(value)[:LONGEST_VALUE]) for name, value in params.items() if value is not None]
    for start in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])
    for start in range(0, len(said), PARAMS_PER_CALL):
        client.log_batch(run_id, params=said[start : start + PARAMS_PER_CALL])
