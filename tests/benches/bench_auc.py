"""Seconds and peak memory of AUC, UAUC and WUAUC and of a whole evaluation, beside other people's code.

    OMP_NUM_THREADS=1 pytest -m bench -s tests/benches/bench_auc.py

Each case reads the same file in a process of its own, so that its peak memory is its own; seconds include reading.
20 impressions a user, a tenth clicked. Environment:

    TAILRANK_BENCH_ROWS     sizes, default 1000000,10000000,20000000; 100000000 needs 10 GB of disk under TMPDIR
    TAILRANK_BENCH_PEERS    a folder with FuxiCTR and torch-rechub (pip install --no-deps --target FOLDER fuxictr
                            torch-rechub); without it those rows are left out

The peers and a loop over users with sklearn are run on a million rows only: their time grows with users.
"""

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

IMPRESSIONS_PER_USER = 20
ROWS_PER_CHUNK = 5_000_000
MOST_ROWS_OF_A_LOOP = 1_000_000
MOST_ROWS_AT_ONCE = 20_000_000

SIZES = [int(size) for size in os.environ.get("TAILRANK_BENCH_ROWS", "1000000,10000000,20000000").split(",")]
PEERS = os.environ.get("TAILRANK_BENCH_PEERS", "")


def write_predictions(path: Path, num_rows: int, seed: int = 0) -> None:
    """The same impressions for every seed, in the same order; scores of their own."""
    import pyarrow.parquet as pq

    writer = None
    tiers = np.array(["cold_start", "long_tail", "others"])
    for start in range(0, num_rows, ROWS_PER_CHUNK):
        rng = np.random.default_rng(start)
        number = np.arange(start, min(start + ROWS_PER_CHUNK, num_rows))
        user = rng.integers(0, num_rows // IMPRESSIONS_PER_USER, len(number))
        p = rng.beta(1, 9, len(number))
        clicked, item = rng.random(len(number)) < p, rng.integers(0, 100_000, len(number))
        item_tier = tiers[rng.integers(0, 3, len(number))]
        table = pl.DataFrame(
            {
                "impression_id": pl.Series(number).cast(pl.String),
                "user_id": pl.Series(user).cast(pl.String),
                "item_id": pl.Series(item).cast(pl.String),
                "event_timestamp": pl.Series(number + 1_700_000_000_000_000).cast(pl.Datetime("us", "UTC")),
                "clicked": clicked,
                "p_ctr": p if seed == 0 else p ** np.random.default_rng([start, seed]).uniform(0.8, 1.2, len(number)),
                "user_segment": tiers[user % 3],
                "item_segment": item_tier,
            }
        ).to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def columns(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path, columns=["user_id", "clicked", "p_ctr"])


def three_figures(path: Path) -> dict[str, float | None]:
    from ranker.auc import aucs

    found = aucs(columns(path), "clicked", "p_ctr")
    return {"auc": found.auc.value, "uauc": found.uauc.value, "wuauc": found.wuauc.value}


def whole_evaluation(path: Path, rows_in_memory: int = 1_000_000_000, baseline: Path | None = None) -> dict[str, float]:
    """Read, check, seven segments, three metrics, 1000 draws, calibration; alone or against a baseline."""
    from rich.console import Console

    from jobs.evaluate_predictions import run

    console = Console(quiet=True)
    metrics = run(path, baseline, path.with_suffix(".json"), console=console, rows_in_memory=rows_in_memory)
    overall = metrics.filter(ranker=path.stem, segment_kind="all", label="clicked")
    return dict(zip(overall["metric"], overall["value"], strict=True))


def evaluation_in_parts(path: Path) -> dict[str, float]:
    """The same with 4 million rows in memory."""
    return whole_evaluation(path, rows_in_memory=4_000_000)


def comparison_in_parts(path: Path) -> dict[str, float]:
    return whole_evaluation(path, rows_in_memory=4_000_000, baseline=path.with_name("baseline.parquet"))


def sklearn_loop(path: Path) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    frame = columns(path)
    users = [rows for _, rows in frame.group_by("user_id") if rows["clicked"].n_unique() == 2]
    each = [roc_auc_score(rows["clicked"], rows["p_ctr"]) for rows in users]
    return {
        "auc": roc_auc_score(frame["clicked"], frame["p_ctr"]),
        "uauc": float(np.mean(each)),
        "wuauc": float(np.average(each, weights=[rows.height for rows in users])),
    }


def fuxictr(path: Path) -> dict[str, float]:
    """Its gAUC weighs users by impressions and leaves out those of one class: WUAUC."""
    from fuxictr.metrics import evaluate_metrics

    frame = columns(path)
    found = evaluate_metrics(
        frame["clicked"].to_numpy().astype(np.int64), frame["p_ctr"].to_numpy(), ["gAUC"], frame["user_id"].to_numpy()
    )
    return {"wuauc": float(found["gAUC"])}


def torch_rechub(path: Path) -> dict[str, float]:
    """Its gauc_score weighs users by impressions. Given users of both classes only: see `torch_rechub_first_rows`."""
    return _gauc_score(columns(path).filter(pl.col("clicked").n_unique().over("user_id") == 2))


def torch_rechub_first_rows(path: Path) -> dict[str, float]:
    """With users of one class, as a log has them."""
    return _gauc_score(columns(path).head(1000))


def _gauc_score(frame: pl.DataFrame) -> dict[str, float]:
    from torch_rechub.basic.metric import gauc_score

    return {"wuauc": float(gauc_score(*(frame[name].to_numpy() for name in ("clicked", "p_ctr", "user_id"))))}


CASES: dict[str, Callable[[Path], dict[str, float | None]]] = {
    case.__name__: case  # type: ignore[misc]
    for case in (
        three_figures,
        whole_evaluation,
        evaluation_in_parts,
        comparison_in_parts,
        sklearn_loop,
        fuxictr,
        torch_rechub,
        torch_rechub_first_rows,
    )
}
LOOPS = {"sklearn_loop", "fuxictr", "torch_rechub", "torch_rechub_first_rows"}
OF_PEERS = LOOPS - {"sklearn_loop"}
AT_ONCE = {"whole_evaluation"}
PAIRED = {"comparison_in_parts"}


def why_left_out(case: str, num_rows: int) -> str | None:
    if case in LOOPS and num_rows > MOST_ROWS_OF_A_LOOP:
        return "a loop over users: run on a million rows only"
    if case in OF_PEERS and not PEERS:
        return "TAILRANK_BENCH_PEERS names no folder with it"
    if case in AT_ONCE and num_rows > MOST_ROWS_AT_ONCE:
        return "more rows than fit into memory"
    if case in PAIRED and num_rows > MOST_ROWS_AT_ONCE:
        return "run on fewer rows"
    return None


def measure(case: str, path: Path) -> dict[str, float]:
    """Seconds, peak resident MB and the values, from a process of its own."""
    root = str(Path(__file__).resolve().parents[2])
    folders = [root, PEERS] if case in OF_PEERS else [root]
    command = (sys.executable, "-W", "ignore", __file__, case, str(path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.bench
@pytest.mark.parametrize("num_rows", SIZES)
def test_three_figures_are_exact_fast_and_need_little_memory(num_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(path, num_rows)
    expected: dict[str, float | None] = {}
    for case in CASES:
        reason = why_left_out(case, num_rows)
        if reason is not None:
            print(f"\n{num_rows:>12,} rows  {case:<24} left out: {reason}", end="", flush=True)
            continue
        if case in PAIRED:
            write_predictions(path.with_name("baseline.parquet"), num_rows, seed=1)
        result = measure(case, path)
        values = result.pop("values")
        expected = expected or values
        figures = f"{result['seconds']:8.2f} s  {result['cpu']:8.2f} s of CPU  {result['megabytes']:7,.0f} MB  "
        shown = "  ".join(f"{name} {value:.12f}" for name, value in values.items())
        print(f"\n{num_rows:>12,} rows  {case:<24} {figures} {shown}", end="", flush=True)
        if case == "torch_rechub_first_rows":
            assert np.isnan(values["wuauc"])  # a user of one class leaves no answer at all
            continue
        for name, value in values.items():
            assert value == pytest.approx(expected[name], abs=1e-12)
    path.with_name("baseline.parquet").unlink(missing_ok=True)
    path.unlink()


@pytest.mark.bench
def test_ties_are_where_codes_differ() -> None:
    """What a sort that keeps the order of the file makes of tied scores, beside ours."""
    from sklearn.metrics import roc_auc_score

    from ranker.auc import wuauc

    rng = np.random.default_rng(0)
    num_rows = 200_000
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, num_rows // IMPRESSIONS_PER_USER, num_rows),
            "clicked": np.sort(rng.random(num_rows) < 0.1)[::-1],  # a log that lists clicks first
            "p_ctr": rng.integers(0, 4, num_rows) / 4,
        }
    )
    by_order = frame.with_columns(p_ctr=pl.col("p_ctr") - pl.int_range(pl.len()) * 1e-9)
    ours, ordered = (wuauc(one, "clicked", "p_ctr").value for one in (frame, by_order))
    users = [rows for _, rows in frame.group_by("user_id") if rows["clicked"].n_unique() == 2]
    theirs = np.average([roc_auc_score(u["clicked"], u["p_ctr"]) for u in users], weights=[u.height for u in users])
    print(
        f"\nfour distinct scores: mid-ranks {ours:.4f}, sklearn {theirs:.4f}, ties by order of the file {ordered:.4f}"
    )
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert abs(ordered - ours) > 0.1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    found = CASES[sys.argv[1]](Path(sys.argv[2]))
    seconds = time.perf_counter() - started
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)  # of all threads and processes
    status = Path("/proc/self/status").read_text()  # ru_maxrss would start from the peak of the process that made this
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "megabytes": peak, "values": found}))
