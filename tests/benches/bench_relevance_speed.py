"""Pairs a second of a teacher and its students, one after the other in one process.

    python tests/benches/bench_relevance_speed.py --pairs 2000 --teacher smollm2
    make bench                                  (a small run of it)

Students are MiniLM with untrained heads: weights do not change the time. Texts are those of Home Depot where the data
set lies beside the project, else made up of as many words (3 a query, 12 a title). Each line is the best of three
rounds, as what else the machine does can only slow it down; the teacher is asked once, and about fewer pairs.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from embedders.ellm_rele import load_teacher
from embedders.mkd import InteractionStudent, RepresentationStudent
from embedders.mkd_model import MkdModel
from embedders.relevance_prompts import QueryItem

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "homedepot_relevance" / "train.parquet"


def texts(num_pairs: int) -> list[tuple[str, str]]:
    """Queries with titles."""
    if DATA.exists():
        frame = pl.read_parquet(DATA, columns=["search_term", "product_title"])
        rows = np.random.default_rng(0).permutation(len(frame))[:num_pairs]
        return list(frame[rows].iter_rows())
    rng = np.random.default_rng(0)
    words = np.array(["lamp", "shade", "desk", "paint", "white", "door", "hinge", "cordless", "hammer", "box"])
    return [(" ".join(rng.choice(words, 3)), " ".join(rng.choice(words, 12))) for _ in range(num_pairs)]


def best_seconds(call: Callable[[], Any], rounds: int = 3) -> float:
    """Of several rounds."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def measure(
    num_pairs: int, *, teacher: str | None, teacher_pairs: int, precision: Any, decodings: Sequence[str] = ()
) -> dict[str, float]:
    """Pairs a second, by row."""
    pairs = texts(num_pairs)
    queries, titles = [query for query, _ in pairs], [title for _, title in pairs]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cross = MkdModel(InteractionStudent.pretrained("minilm").to(device), precision=precision)
    bi = MkdModel(RepresentationStudent.pretrained("minilm").to(device), precision=precision)
    query_vectors, title_vectors = bi.embed_queries(queries), bi.embed_items(titles)
    calls: dict[str, Callable[[], Any]] = {
        "cross-encoder": lambda: cross.log_odds(pairs),
        "bi-encoder, nothing cached": lambda: bi.log_odds(pairs),
        "bi-encoder, item vectors cached": lambda: bi.log_odds_of_vectors(bi.embed_queries(queries), title_vectors),
        "bi-encoder, both vectors cached": lambda: bi.log_odds_of_vectors(query_vectors, title_vectors),
    }
    found = {name: num_pairs / best_seconds(call) for name, call in calls.items()}
    if teacher:
        model = load_teacher(teacher, dtype=precision)
        asked = [QueryItem(query, title) for query, title in pairs[:teacher_pairs]]
        for decoding in decodings:
            seconds = best_seconds(lambda decoding=decoding: model.score(asked, decoding=decoding), rounds=1)  # type: ignore[misc]
            found[f"teacher {teacher}, {decoding}"] = len(asked) / seconds
    return found


@pytest.mark.bench
def test_a_small_run() -> None:
    found = measure(100, teacher=None, teacher_pairs=0, precision="auto")
    print(found)
    assert found["bi-encoder, both vectors cached"] > found["cross-encoder"]


def main(words: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--teacher", help="a packaged language model, or the folder of a teacher")
    parser.add_argument("--teacher-pairs", type=int, default=32)
    parser.add_argument("--decodings", nargs="+", default=["label_only", "scored"], help="constrained takes minutes")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    one = parser.parse_args(words)
    found = measure(
        one.pairs,
        teacher=one.teacher,
        teacher_pairs=one.teacher_pairs,
        precision=one.precision,
        decodings=one.decodings,
    )
    print(f"{one.pairs:,} pairs, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print("| | pairs/s | cross-encoder = 1 |\n|---|---|---|")
    for name, rate in found.items():
        print(f"| {name} | {rate:,.{0 if rate >= 10 else 2}f} | {rate / found['cross-encoder']:.3g} |")


if __name__ == "__main__":
    main()
