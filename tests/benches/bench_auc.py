"""Seconds and peak memory of UAUC and of a whole evaluation, against a loop over users with sklearn.

    pytest -m bench -s tests/benches/bench_auc.py

Each case runs in a process of its own, so that its peak memory is its own. 20 impressions a user, a tenth clicked.
The sklearn loop runs on a million rows only: its time grows with the number of users.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

IMPRESSIONS_PER_USER = 20


def write_predictions(path: Path, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    user = rng.integers(0, num_rows // IMPRESSIONS_PER_USER, num_rows)
    p = rng.beta(1, 9, num_rows)
    pl.DataFrame(
        {
            "impression_id": pl.int_range(num_rows, eager=True).cast(pl.String),
            "user_id": pl.Series(user).cast(pl.String),
            "item_id": pl.Series(rng.integers(0, 100_000, num_rows)).cast(pl.String),
            "event_timestamp": (pl.int_range(num_rows, eager=True) + 1_700_000_000_000_000).cast(
                pl.Datetime("us", "UTC")
            ),
            "clicked": rng.random(num_rows) < p,
            "p_ctr": p,
            "user_segment": pl.Series(np.array(["cold_start", "long_tail", "others"])[user % 3]),
            "item_segment": pl.Series(np.array(["cold_start", "long_tail", "others"])[rng.integers(0, 3, num_rows)]),
        }
    ).write_parquet(path)


def sklearn_loop(path: Path) -> float:
    from sklearn.metrics import roc_auc_score

    frame = pl.read_parquet(path, columns=["user_id", "clicked", "p_ctr"])
    aucs = [
        roc_auc_score(rows["clicked"], rows["p_ctr"])
        for _, rows in frame.group_by("user_id")
        if rows["clicked"].n_unique() == 2
    ]
    return float(np.mean(aucs))


def ours(path: Path) -> float:
    from ranker.auc import uauc

    value = uauc(pl.read_parquet(path, columns=["user_id", "clicked", "p_ctr"]), "clicked", "p_ctr").value
    assert value is not None
    return value


def whole_evaluation(path: Path) -> float:
    """Read, check, seven segments, three metrics, 1000 draws, calibration."""
    from rich.console import Console

    from jobs.evaluate_predictions import run

    metrics = run(path, json=path.with_suffix(".json"), console=Console(quiet=True))
    return float(metrics.filter(segment_kind="all", label="clicked", metric="uauc")["value"][0])


CASES = {"sklearn_loop": sklearn_loop, "ours": ours, "whole_evaluation": whole_evaluation}


def measure(case: str, path: Path) -> dict[str, float]:
    """Seconds, peak resident MB and the value, from a process of its own."""
    root = Path(__file__).resolve().parents[2]
    command = (sys.executable, __file__, case, str(path))
    printed = subprocess.run(
        command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True
    )
    return json.loads(printed.stdout.splitlines()[-1])


@pytest.mark.bench
@pytest.mark.parametrize("num_rows", [1_000_000, 10_000_000])
def test_uauc_is_exact_and_fast(num_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(path, num_rows)
    values = []
    for case in CASES:
        if case == "sklearn_loop" and num_rows > 1_000_000:
            continue
        result = measure(case, path)
        values.append(result["value"])
        figures = f"{result['seconds']:8.2f} s  {result['cpu']:8.2f} s of CPU  {result['megabytes']:8.0f} MB"
        print(f"\n{num_rows:>12,} rows  {case:<18} {figures}", end="")
    assert np.ptp(values) < 1e-9


if __name__ == "__main__":
    started = time.perf_counter()
    value = CASES[sys.argv[1]](Path(sys.argv[2]))
    seconds = time.perf_counter() - started
    cpu = time.process_time()  # of all threads; on a busy machine the fairer figure
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "megabytes": peak, "value": value}))
