"""Seconds to build and milliseconds to search an index of item vectors, what it misses, and exact ranks of targets.

    OMP_NUM_THREADS=1 pytest -m bench -s tests/benches/bench_retrieval.py

64 numbers a vector. Clustered: N/100 centres with noise about them, as trained embeddings lie about topics.
Structureless: drawn from the whole sphere, the hardest case for an approximate index.
"""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedders.histories import Sequences
from embedders.retrieval import retrieval_metrics
from embedders.vector_index import VectorIndex

WIDTH = 64
NUM_QUERIES = 200


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def draw(shape: str, num: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(num, WIDTH))
    if shape == "structureless":
        return unit(noise)
    centres = unit(rng.normal(size=(num // 100, WIDTH)))
    return unit(centres[rng.integers(0, len(centres), num)] + 0.7 / WIDTH**0.5 * noise)


@pytest.mark.bench
@pytest.mark.parametrize("num_items", [10_000, 100_000])
@pytest.mark.parametrize("shape", ["clustered", "structureless"])
def test_an_index_finds_what_exact_search_finds(shape: str, num_items: int, tmp_path: Path) -> None:
    vectors = draw(shape, num_items + NUM_QUERIES)
    items, queries = vectors[:num_items], vectors[num_items:]
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"\n{num_items:,} items x {WIDTH}, {shape}, {threads} threads")
    for kind in ("flat", "ivf", "hnsw"):
        started, cpu = time.perf_counter(), time.process_time()
        index = VectorIndex.build(items, kind)  # type: ignore[arg-type]
        built, built_cpu = time.perf_counter() - started, time.process_time() - cpu
        started, cpu = time.perf_counter(), time.process_time()
        index.search(queries, 100)
        searched, searched_cpu = time.perf_counter() - started, time.process_time() - cpu
        recall = [index.recall_against_exact(queries, k) for k in (10, 100)]
        index.save(tmp_path / kind)
        print(
            f"  {kind:<5} built in {built:6.2f} s ({built_cpu:6.2f} CPU)   "
            f"{1000 * searched / NUM_QUERIES:7.3f} ms a query ({1000 * searched_cpu / NUM_QUERIES:7.3f} CPU)   "
            f"recall@10 {recall[0]:.3f} @100 {recall[1]:.3f}   {(tmp_path / kind).stat().st_size / 1e6:6.1f} MB"
        )
        assert kind != "flat" or recall == [1.0, 1.0]
        assert shape != "clustered" or min(recall) > 0.98


@pytest.mark.bench
@pytest.mark.parametrize(("num_items", "num_users", "targets_each"), [(10_000, 10_000, 1), (100_000, 1_000, 10)])
def test_exact_ranks_take_seconds(num_items: int, num_users: int, targets_each: int) -> None:
    items, users = draw("clustered", num_items), draw("structureless", num_users)
    drawn = np.random.default_rng(1).integers(0, num_items, num_users * targets_each).astype(np.int32)
    targets = Sequences(drawn, None, np.arange(num_users + 1) * targets_each)
    started, cpu = time.perf_counter(), time.process_time()
    metrics = retrieval_metrics(users, items, targets)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(f"\n{num_users:,} users x {num_items:,} items, {targets_each} targets each: {seconds:.2f} s ({cpu:.2f} CPU)")
    expected = 200 / num_items  # users know nothing of the items
    assert metrics.at(200).recall == pytest.approx(expected, rel=0.5)
