"""Seconds and peak memory of trailing counts: ours, polars rolling in memory, DuckDB range frames.

    pytest -m bench tests/benches/bench_aggregate_activity.py -k "1M"

Each way runs in a process of its own. The three that count alone do the same work, the counts of users at every
midnight at which one may change, and must agree; `the job` does items, too, adds rates, validates and writes.
"""

import contextlib
import datetime as dt
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import ACTIVITY_WINDOWS_DAYS, Impressions, UserActivity
from jobs.aggregate_activity import EVENTS, MEASURES, TOTALS, Config, run, trailing_counts, whole_entities
from jobs.lake import Lake

ROOT = Path(__file__).resolve().parents[2]
MEMORY_LIMIT = "1GB"
NUM_DAYS = 365
FIRST_DAY = dt.datetime(2022, 1, 1, tzinfo=dt.timezone.utc)
COUNTS = [f"num_{measure}_{days}d" for measure in MEASURES for days in ACTIVITY_WINDOWS_DAYS]
DAILY = f"SELECT user_id AS entity, day, {TOTALS} FROM ({EVENTS}) GROUP BY entity, day ORDER BY entity, day"


class Measured(NamedTuple):
    """One way of counting: rows of activity, sum over all their counts, seconds, peak memory, spilled to disk."""

    rows: int
    checksum: int
    seconds: float
    peak_gb: float
    spilled_gb: float


def lake_at(root: Path) -> Lake:
    return Lake(root, now=lambda: dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc))


def write_log(root: Path, num_events: int) -> None:
    """A year of impressions: 50 a user and 100 an item on average, skewed; 10% clicked, a fifth of those converted."""
    rng = np.random.default_rng(0)
    with lake_at(root).writer(Impressions) as writer:
        for first in range(0, num_events, 1_000_000):
            size = min(1_000_000, num_events - first)
            clicked = rng.random(size) < 0.1
            frame = pl.DataFrame(
                {
                    "impression_id": np.arange(first, first + size),
                    "user_id": (num_events // 50 * rng.random(size) ** 2).astype(np.int64),
                    "item_id": (num_events // 100 * rng.random(size) ** 3).astype(np.int64),
                    "second": rng.integers(0, NUM_DAYS * 86_400, size),
                    "delay": rng.exponential(3 * 86_400.0, size),
                    "clicked": clicked,
                    "converted": clicked & (rng.random(size) < 0.2),
                }
            ).with_columns(
                pl.format("u{}", "user_id").alias("user_id"),
                pl.format("i{}", "item_id").alias("item_id"),
                event_timestamp=FIRST_DAY + pl.duration(seconds="second"),
                is_sampled=False,
            )
            converted_at = pl.col("event_timestamp") + pl.duration(seconds=pl.col("delay").cast(pl.Int64))
            frame = frame.with_columns(conversion_timestamp=pl.when("converted").then(converted_at))
            writer.write_shard(pl.concat([Impressions.create_empty(), frame], how="diagonal_relaxed"))


@contextlib.contextmanager
def connected(root: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    lake = lake_at(root)
    with contextlib.closing(duckdb.connect()) as connection:
        connection.execute("SET memory_limit = ?", [MEMORY_LIMIT])
        connection.execute("SET temp_directory = ?", [str(lake.folder("scratch"))])
        connection.read_parquet([str(path) for path in lake.parquet_files(Impressions)]).create_view("impressions")
        yield connection


def last_midnight(connection: duckdb.DuckDBPyConnection) -> int:
    return int(connection.execute(f"SELECT max(day) + 1 FROM ({EVENTS})").fetchall()[0][0])


def the_job(root: Path) -> tuple[int, int]:
    run(lake_at(root), Config(memory_limit=MEMORY_LIMIT))
    names = [f"user_{name}" for name in COUNTS]
    table = lake_at(root).scan(UserActivity)
    return table.select(pl.len(), pl.sum_horizontal(pl.col(names).sum())).collect(engine="streaming").row(0)


def running_totals(root: Path) -> tuple[int, int]:
    """What the job does, users alone, without rates and table."""
    rows = checksum = 0
    with connected(root) as connection:
        last = last_midnight(connection)
        reader = connection.execute(DAILY).to_arrow_reader(200_000)
        for daily in whole_entities(pl.DataFrame(batch) for batch in reader):
            counts = trailing_counts(daily, last)
            rows += counts.height
            checksum += int(counts.select(pl.sum_horizontal(pl.col(COUNTS).sum())).item())
    return rows, checksum


def polars_rolling(root: Path) -> tuple[int, int]:
    """The plain way: the log in memory, a row for every midnight that matters, a rolling sum a window and measure."""
    log = lake_at(root).read(Impressions)
    shown = log.select("user_id", pl.col("event_timestamp").dt.truncate("1d"), impressions=1, clicks="clicked")
    known = log.filter("converted").select(
        "user_id", pl.col("conversion_timestamp").dt.truncate("1d").alias("event_timestamp"), conversions=1
    )
    daily = (
        pl.concat([shown.cast({"clicks": pl.Int32}), known], how="diagonal")
        .group_by("user_id", "event_timestamp")
        .agg(pl.col(MEASURES).sum().cast(pl.Int64))
    )
    last = daily.get_column("event_timestamp").max() + dt.timedelta(days=1)  # type: ignore[operator]
    midnights = [
        daily.select("user_id", pl.col("event_timestamp").dt.offset_by(f"{1 + age}d"))
        for age in (0, *ACTIVITY_WINDOWS_DAYS)
    ]
    counts = (
        pl.concat([daily, *midnights], how="diagonal")
        .filter(pl.col("event_timestamp") <= last)
        .group_by("user_id", "event_timestamp")
        .agg(pl.col(MEASURES).sum(), is_midnight=pl.col("impressions").is_null().any())
        .sort("user_id", "event_timestamp")
        .with_columns(
            pl.col(measure)
            .rolling_sum_by("event_timestamp", f"{days}d", closed="left")
            .over("user_id")
            .alias(f"num_{measure}_{days}d")
            for measure in MEASURES
            for days in ACTIVITY_WINDOWS_DAYS
        )
        .filter("is_midnight")
    )
    same_user = pl.col("user_id") == pl.col("user_id").shift(1)
    changed = pl.any_horizontal(pl.col(COUNTS) != pl.col(COUNTS).shift(1)) | ~same_user.fill_null(False)
    counts = counts.filter(changed)
    return counts.height, int(counts.select(pl.sum_horizontal(pl.col(COUNTS).sum())).item())


def duckdb_range_frames(root: Path) -> tuple[int, int]:
    """SQL alone: window frames over the days of each user, out of core."""
    ages = ", ".join(f"({1 + age})" for age in (0, *ACTIVITY_WINDOWS_DAYS))
    frame = "PARTITION BY entity ORDER BY day RANGE BETWEEN {} PRECEDING AND 1 PRECEDING"
    sums = ", ".join(
        f"coalesce(sum({measure}) OVER ({frame.format(days)}), 0) AS num_{measure}_{days}d"
        for measure in MEASURES
        for days in ACTIVITY_WINDOWS_DAYS
    )
    lags = " OR ".join(f"{name} IS DISTINCT FROM lag({name}) OVER so_far" for name in COUNTS)
    with connected(root) as connection:
        last = last_midnight(connection)
        result = connection.execute(
            f"""
            WITH daily AS MATERIALIZED ({DAILY}),
            midnights AS (SELECT entity, day + age AS day, NULL AS zero FROM daily, (VALUES {ages}) AS ages(age)),
            days AS (
                SELECT entity, day, {", ".join(f"sum({measure}) AS {measure}" for measure in MEASURES)},
                       bool_or(is_midnight) AS is_midnight
                FROM (SELECT *, false AS is_midnight FROM daily
                      UNION ALL SELECT entity, day, 0, 0, 0, true FROM midnights WHERE day <= {last})
                GROUP BY entity, day
            ),
            counts AS (SELECT entity, day, is_midnight, {sums} FROM days),
            changed AS (
                SELECT * FROM counts WHERE is_midnight
                WINDOW so_far AS (PARTITION BY entity ORDER BY day) QUALIFY {lags}
            )
            SELECT count(*), {" + ".join(f"sum({name})" for name in COUNTS)} FROM changed
            """
        )
        rows, checksum = result.fetchall()[0]
    return int(rows), int(checksum)


WAYS = {way.__name__: way for way in (running_totals, polars_rolling, duckdb_range_frames, the_job)}


def measured(way: str, root: Path) -> Measured:
    started = time.perf_counter()
    rows, checksum = WAYS[way](root)
    seconds = time.perf_counter() - started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Measured(rows, checksum, seconds, int(status["VmHWM"].split()[0]) / 1e6, 0.0)


def measured_apart(way: str, root: Path) -> Measured:
    """In a fresh process, while this one watches what spills to disk."""
    spilled = 0
    command = [sys.executable, str(Path(__file__).resolve()), way, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        while process.poll() is None:
            sizes = []
            for path in (root / "scratch").rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # it went away between the two looks
                    sizes.append(path.stat().st_size)
            spilled = max(spilled, sum(sizes))
            time.sleep(0.05)
        assert process.stdout is not None
        answer = process.stdout.read()
    assert process.returncode == 0, f"{way} failed"
    return Measured(*json.loads(answer))._replace(spilled_gb=spilled / 1e9)


@pytest.mark.bench
@pytest.mark.parametrize("num_events", [1_000_000, 10_000_000], ids=["1M", "10M"])
def test_bench_trailing_counts(tmp_path: Path, num_events: int, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, num_events)
    results = {}
    with capsys.disabled():
        print(f"\n{num_events:_} impressions over {NUM_DAYS} days, DuckDB limited to {MEMORY_LIMIT}")
        print(f"{'way':<22}{'user rows':>12}{'seconds':>10}{'peak GB':>10}{'spilled GB':>12}")
        for way in WAYS:
            results[way] = result = measured_apart(way, tmp_path)
            numbers = f"{result.rows:>12_}{result.seconds:>10.1f}{result.peak_gb:>10.2f}{result.spilled_gb:>12.2f}"
            print(f"{way:<22}{numbers}", flush=True)
    assert len({(result.rows, result.checksum) for result in results.values()}) == 1


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], Path(sys.argv[2]))))
