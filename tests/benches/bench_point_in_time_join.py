"""Seconds and peak memory of the point-in-time join: our offline store against Feast's stock duckdb store.

    pytest -m bench tests/benches/bench_point_in_time_join.py -s

50 000 users with 20 activity rows each, 20 000 items with 30, 20 000 item vectors of 384 numbers in 3 versions; both
stores leave out what was written after the impression, both give Arrow. Every case runs in a process of its own, so
that its peak is its own; `peak` is the whole process, `import feast` (about 0.4 GB) and the entity rows included.
"""

import datetime as dt
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
NUM_USERS, NUM_ITEMS, NUM_DAYS, WIDTH = 50_000, 20_000, 60, 384
STORES: dict[str, dict[str, Any]] = {
    "ours": {"type": "jobs.asof_offline_store.AsofOfflineStore"},
    "duckdb": {"type": "duckdb"},
}
CASES = [(100_000, "scalars"), (1_000_000, "scalars"), (100_000, "vectors"), (1_000_000, "vectors")]
ROUNDS = 3


def times(days: np.ndarray[Any, Any]) -> pl.Series:
    return pl.Series(
        np.datetime64("2025-01-01", "us") + (days * 86_400e6).astype("timedelta64[us]")
    ).dt.replace_time_zone("UTC")


def write_world(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for kind, number, rows in (("user", NUM_USERS, 20), ("item", NUM_ITEMS, 30)):
        total = number * rows
        counts = {f"{kind}_num_{n}": rng.poisson(5.0, total) for n in range(12)}
        rates = {f"{kind}_rate_{n}": rng.random(total) for n in range(8)}
        known = times(rng.integers(0, NUM_DAYS, total).astype(float))
        keys = pl.Series(np.repeat(np.arange(number), rows)).cast(pl.String)
        pl.DataFrame(
            {f"{kind}_id": keys, "event_timestamp": known, "created_timestamp": known, **counts, **rates}
        ).unique([f"{kind}_id", "event_timestamp"]).write_parquet(folder / f"{kind}.parquet")
    total = NUM_ITEMS * 3
    known = times(np.tile([-1.0, 20.0, 40.0], NUM_ITEMS))
    pl.DataFrame(
        {
            "item_id": pl.Series(np.repeat(np.arange(NUM_ITEMS), 3)).cast(pl.String),
            "event_timestamp": known,
            "created_timestamp": known,
            "item_vector": pl.Series(rng.normal(size=(total, WIDTH)).astype(np.float32)).cast(pl.List(pl.Float32)),
        }
    ).write_parquet(folder / "vector.parquet")


def open_store(folder: Path, name: str) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Array, Float32, Float64, Int64, String

    config = RepoConfig(
        project="bench",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder / name}.db"},
        online_store={"type": "sqlite", "path": str(folder / f"{name}-online.db")},
        offline_store=STORES[name],
        entity_key_serialization_version=3,
    )
    store = FeatureStore(repo_path=str(folder), config=config)
    objects: list[Any] = []
    for kind in ("user", "item"):
        objects.append(Entity(name=kind, join_keys=[f"{kind}_id"], value_type=ValueType.STRING))
    for table, kind, fields in (
        (
            "user",
            "user",
            [(f"user_num_{n}", Int64) for n in range(12)] + [(f"user_rate_{n}", Float64) for n in range(8)],
        ),
        (
            "item",
            "item",
            [(f"item_num_{n}", Int64) for n in range(12)] + [(f"item_rate_{n}", Float64) for n in range(8)],
        ),
        ("vector", "item", [("item_vector", Array(Float32))]),
    ):
        objects.append(
            FeatureView(
                name=table,
                entities=[next(one for one in objects if one.name == kind)],
                ttl=dt.timedelta(days=0 if table == "vector" else 181),
                schema=[Field(name=f"{kind}_id", dtype=String), *(Field(name=n, dtype=t) for n, t in fields)],
                source=FileSource(
                    name=f"{table}_source",
                    path=str(folder / f"{table}.parquet"),
                    timestamp_field="event_timestamp",
                    created_timestamp_column="created_timestamp",
                ),
            )
        )
    store.apply(objects)
    return store


def measure(folder: Path, name: str, rows: int, what: str) -> None:
    """In a process of its own: join, and print seconds, peak memory and a checksum as JSON."""
    import warnings

    warnings.simplefilter("ignore")
    store = open_store(folder, name)
    rng = np.random.default_rng(1)
    entity_df = pl.DataFrame(
        {
            "user_id": pl.Series(rng.integers(0, NUM_USERS, rows)).cast(pl.String),
            "item_id": pl.Series(rng.integers(0, NUM_ITEMS, rows)).cast(pl.String),
            "event_timestamp": times(np.sort(rng.random(rows)) * NUM_DAYS),
        }
    ).to_pandas()
    features = [f"{kind}:{kind}_num_{n}" for kind in ("user", "item") for n in range(12)]
    features += [f"{kind}:{kind}_rate_{n}" for kind in ("user", "item") for n in range(8)]
    if what == "vectors":
        features.append("vector:item_vector")
    started = time.perf_counter()
    table = store.get_historical_features(entity_df, features, filter_by_created_timestamp=True).to_arrow()
    seconds = time.perf_counter() - started
    joined = pl.from_arrow(table.select(["user_num_0", "item_rate_3"]))
    assert isinstance(joined, pl.DataFrame)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    checksum = [len(joined), joined["user_num_0"].sum(), round(float(joined["item_rate_3"].sum()), 3)]
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "checksum": checksum}))


@pytest.mark.bench
def test_the_join_is_faster_and_smaller_than_the_stock_stores(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bench")
    write_world(folder)
    print(f"\n{'rows':>10} {'features':>9} {'store':>7} {'seconds (median, min-max)':>28} {'peak GiB':>9}")
    for rows, what in CASES:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in STORES}
        for _ in range(ROUNDS):  # alternating, so that a busy moment hits both
            for name in STORES:
                command = [sys.executable, "-W", "ignore", __file__, str(folder), name, str(rows), what]
                done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
                assert done.returncode == 0, done.stderr[-2000:]
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        for name, runs in found.items():
            seconds = sorted(run["seconds"] for run in runs)
            spread = f"{seconds[len(seconds) // 2]:.1f} ({seconds[0]:.1f}-{seconds[-1]:.1f})"
            peak = max(run["peak_gib"] for run in runs)
            print(f"{rows:>10_} {what:>9} {name:>7} {spread:>28} {peak:>9.1f}", flush=True)
        assert found["ours"][0]["checksum"] == found["duckdb"][0]["checksum"]


if __name__ == "__main__":
    measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
