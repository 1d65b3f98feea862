"""Evaluations in a real tracking store, read back through MLflow's own client."""

import datetime as dt
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dataframely as dy
import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import CalibrationMetrics, SegmentMetrics
from jobs.experiment_log import LoggedEvaluation, log_evaluation, ranker_figures
from ranker.calibration import calibrate_segments
from ranker.comparison import compare
from ranker.judged_runs import JudgedRuns, Run, line_up
from ranker.recalibration import fit_recalibrations, recalibrate_runs

mlflow = pytest.importorskip("mlflow", reason="needs the extra: pip install 'tailrank[mlflow]'")
# MLflow asks SQLAlchemy for something that is deprecated there
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload``")

ROOT = Path(__file__).resolve().parents[2]
SEGMENTS = ["cold_start", "a/b", "a_b", "über 5 €", ".."]
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)


def predictions(seed: int) -> list[Run]:
    rng = np.random.default_rng(seed)
    rows = 1500
    p = rng.beta(2, 5, rows)
    frame = pl.DataFrame(
        {
            "impression_id": [f"{seed}-{row}" for row in range(rows)],
            "user_id": [f"u{row}" for row in rng.integers(0, 60, rows)],
            "clicked": rng.random(rows) < p,
            "p_ctr": p / 2,
            "item_segment": rng.choice(SEGMENTS, rows),
        }
    )
    noisy = frame.with_columns(p_ctr=(pl.col("p_ctr") + pl.Series(rng.normal(0, 0.1, rows))).clip(0, 1))
    return [Run("base", 0, noisy), Run("learn", 0, frame)]


@pytest.fixture(scope="module")
def judged() -> JudgedRuns:
    return line_up(predictions(0))


@pytest.fixture(scope="module")
def metrics(judged: JudgedRuns) -> dy.DataFrame[SegmentMetrics]:
    return compare(judged, baseline="base", num_draws=100)


@pytest.fixture(scope="module")
def calibration(judged: JudgedRuns) -> dy.DataFrame[CalibrationMetrics]:
    fitted = fit_recalibrations(predictions(1))
    return calibrate_segments(judged, {method: recalibrate_runs(judged, maps) for method, maps in fitted.items()})


@pytest.fixture(scope="module")
def fresh_store(metrics: dy.DataFrame[SegmentMetrics], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which nothing but MLflow's tables and one other experiment is: making them takes seconds."""
    path = tmp_path_factory.mktemp("fresh") / "mlflow.db"
    log_evaluation(f"sqlite:///{path}", "another", "other", metrics=metrics)
    return path


@pytest.fixture
def store(fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of one's own. MLflow makes folders where one happens to be: nothing may appear in `cwd`."""
    for folder in ("store", "cwd"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return f"sqlite:///{shutil.copy(fresh_store, tmp_path / 'store' / 'mlflow.db')}"


def log(
    store: str, metrics: dy.DataFrame[SegmentMetrics], calibration: dy.DataFrame[CalibrationMetrics], tmp_path: Path
) -> LoggedEvaluation:
    report = tmp_path / "report.html"
    report.write_text("<h1>a report</h1>")
    table = tmp_path / "segment_metrics.parquet"
    metrics.write_parquet(table)
    return log_evaluation(
        store,
        "rankers",
        "evaluation 7",
        metrics=metrics,
        calibration=calibration,
        params={"Data": "a log", "Seeds": [0], "Commit": None, "Too few (to tell)": "below 30"},
        ranker_params={"learn": {"service": "ranker_learn_v1"}},
        artifacts=[report, table],
        now=lambda: NOW,
    )


def test_an_evaluation_is_read_back_as_it_was_logged(
    store: str,
    metrics: dy.DataFrame[SegmentMetrics],
    calibration: dy.DataFrame[CalibrationMetrics],
    tmp_path: Path,
) -> None:
    logged = log(store, metrics, calibration, tmp_path)
    client = mlflow.MlflowClient(tracking_uri=store)
    assert client.get_experiment_by_name("rankers").experiment_id == logged.experiment_id

    whole = client.get_run(logged.run_id)
    assert whole.info.status == "FINISHED"
    assert whole.info.run_name == "evaluation 7"
    assert whole.data.params["Data"] == "a log"
    assert "Commit" not in whole.data.params
    assert {file.path for file in client.list_artifacts(logged.run_id)} == {"report.html", "segment_metrics.parquet"}
    kept = client.download_artifacts(logged.run_id, "segment_metrics.parquet", str(tmp_path / "store"))
    assert pl.read_parquet(kept).equals(metrics)

    assert list(logged.ranker_run_ids) == ["base", "learn"]
    learn = client.get_run(logged.ranker_run_ids["learn"])
    assert learn.info.status == "FINISHED"
    assert learn.data.tags["mlflow.parentRunId"] == logged.run_id
    assert learn.data.params["service"] == "ranker_learn_v1"
    assert learn.data.params["baseline"] == "base"
    row = metrics.row(
        by_predicate=(pl.col("ranker") == "learn")
        & (pl.col("segment") == "cold_start")
        & (pl.col("label") == "clicked")
        & (pl.col("metric") == "wuauc"),
        named=True,
    )
    place = "clicked/item_segment/cold_start/wuauc"
    assert learn.data.metrics[place] == row["value"]
    assert learn.data.metrics[f"{place}_gain"] == row["gain"]
    assert learn.data.metrics[f"{place}_gain_low"] == row["gain_low"]
    platt = calibration.filter(ranker="learn", segment_kind="all", method="platt")
    assert learn.data.metrics["clicked/all/platt/log_loss"] == platt["log_loss"].item()
    assert learn.data.metrics["clicked/all/predicted_over_observed"] == pytest.approx(0.5, abs=0.05)
    assert learn.data.metrics["clicked/all/platt/predicted_over_observed"] == pytest.approx(1.0, abs=0.1)
    assert not any("gain" in name for name in client.get_run(logged.ranker_run_ids["base"]).data.metrics)
    assert client.get_metric_history(learn.info.run_id, place)[0].timestamp == NOW.timestamp() * 1000


def test_rankers_are_rows_of_one_table_and_can_be_sorted_by_a_metric(
    store: str, metrics: dy.DataFrame[SegmentMetrics], calibration: dy.DataFrame[CalibrationMetrics], tmp_path: Path
) -> None:
    logged = log(store, metrics, calibration, tmp_path)
    client = mlflow.MlflowClient(tracking_uri=store)
    runs = client.search_runs(
        [logged.experiment_id], "metrics.`clicked/all/uauc` > 0", order_by=["metrics.`clicked/all/uauc` DESC"]
    )
    assert [run.info.run_name for run in runs] == ["learn", "base"]


def test_every_segment_keeps_its_figures_whatever_it_is_called(metrics: dy.DataFrame[SegmentMetrics]) -> None:
    figures = ranker_figures("learn", metrics, None)
    values = metrics.filter(ranker="learn", metric="uauc")
    names = [name for name in figures if name.endswith("/uauc")]
    assert len(names) == values.height == 1 + len(SEGMENTS)
    assert sorted(figures[name] for name in names) == sorted(values["value"])
    assert "clicked/item_segment/cold_start/uauc" in names
    assert "clicked/item_segment/a_b/uauc" in names


def test_a_second_evaluation_makes_new_runs_in_the_same_experiment(
    store: str, metrics: dy.DataFrame[SegmentMetrics], calibration: dy.DataFrame[CalibrationMetrics], tmp_path: Path
) -> None:
    first, second = (log(store, metrics, calibration, tmp_path) for _ in range(2))
    assert first.experiment_id == second.experiment_id
    assert first.run_id != second.run_id
    client = mlflow.MlflowClient(tracking_uri=store)
    assert len(client.search_runs([first.experiment_id])) == 2 * 3


def test_artifacts_of_an_sqlite_store_lie_beside_it_and_nothing_where_one_happens_to_be(
    store: str, metrics: dy.DataFrame[SegmentMetrics], calibration: dy.DataFrame[CalibrationMetrics], tmp_path: Path
) -> None:
    logged = log(store, metrics, calibration, tmp_path)
    found = {path.name for path in (tmp_path / "store" / "mlartifacts" / logged.run_id).rglob("*") if path.is_file()}
    assert found == {"report.html", "segment_metrics.parquet"}
    assert not list((tmp_path / "cwd").iterdir())


def test_a_log_that_breaks_off_is_marked_as_failed(
    store: str, metrics: dy.DataFrame[SegmentMetrics], tmp_path: Path
) -> None:
    (tmp_path / "store" / "mlartifacts").write_text("a file where the folder of artifacts should be")
    report = tmp_path / "report.html"
    report.write_text("a report")
    with pytest.raises(OSError, match="mlartifacts"):
        log_evaluation(store, "rankers", "broken", metrics=metrics, artifacts=[report])
    client = mlflow.MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("rankers")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_an_artifact_that_is_not_there_is_named_before_anything_is_logged(
    store: str, metrics: dy.DataFrame[SegmentMetrics], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.html to be logged: no such file"):
        log_evaluation(store, "rankers", "none", metrics=metrics, artifacts=[tmp_path / "gone.html"])
    client = mlflow.MlflowClient(tracking_uri=store)
    assert client.get_experiment_by_name("rankers") is None


def test_a_store_that_refuses_is_named_without_its_password(metrics: dy.DataFrame[SegmentMetrics]) -> None:
    with pytest.raises(ValueError, match=r"MLflow at nosuch://host/x: ") as caught:
        log_evaluation("nosuch://me:secret@host/x", "rankers", "none", metrics=metrics)
    assert str(caught.value).startswith("MLflow at nosuch://host/x: ")


def test_a_deleted_experiment_is_named(store: str, metrics: dy.DataFrame[SegmentMetrics]) -> None:
    logged = log_evaluation(store, "rankers", "one", metrics=metrics)
    mlflow.MlflowClient(tracking_uri=store).delete_experiment(logged.experiment_id)
    with pytest.raises(ValueError, match="experiment `rankers` was deleted"):
        log_evaluation(store, "rankers", "two", metrics=metrics)


def test_without_the_package_the_extra_is_named(
    metrics: dy.DataFrame[SegmentMetrics], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # what an import finds where it is not installed
    with pytest.raises(ValueError, match=r"pip install 'tailrank\[mlflow\]'"):
        log_evaluation(store, "rankers", "none", metrics=metrics)


def test_logging_to_a_local_store_asks_for_no_address_and_opens_no_connection(
    store: str, metrics: dy.DataFrame[SegmentMetrics], tmp_path: Path
) -> None:
    table = tmp_path / "metrics.parquet"
    metrics.write_parquet(table)
    code = f"""
import sys
asked = []
sys.addaudithook(lambda event, args: asked.append((event, args)) if event in ("socket.connect", "socket.getaddrinfo")
                 else None)
import polars as pl
from pathlib import Path
from jobs.experiment_log import log_evaluation
table = Path({str(table)!r})
log_evaluation({store!r}, "rankers", "offline", metrics=pl.read_parquet(table), artifacts=[table])
import threading
assert threading.active_count() == 1, threading.enumerate()
assert not asked, asked
"""
    # MLflow sends nothing from a test or a build server anyway: this must be neither
    quiet = {"PATH", "HOME", "OMP_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_WAIT_POLICY"}
    environment = {name: value for name, value in os.environ.items() if name in quiet} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, jobs.experiment_log; assert 'mlflow' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
