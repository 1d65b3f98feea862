"""What LEARN costs at 1x and 10x: seconds, memory and bytes of training and of embedding.

    pytest -m bench -s tests/benches/bench_learn.py

1x is 5,000 users and 5,000 items of 384-wide content, about 20 interactions a user; 10x has ten times of both. Arrays
are memory-mapped files, as the steps have them, and each size is measured in a process of its own.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from embedders.fit_learn import LearnSettings, fit_learn
from embedders.histories import Sequences
from embedders.learn import SHAPES, FrozenContent, LearnNetwork
from embedders.learn_model import LearnModel

USERS, ITEMS, WIDTH, MEAN_LENGTH = 5_000, 5_000, 384, 20


def measure(times: int, folder: Path) -> dict[str, float]:
    """Figures of one size, in this process."""
    rng = np.random.default_rng(0)
    num_users, num_items = times * USERS, times * ITEMS
    content = np.lib.format.open_memmap(folder / "content.npy", "w+", np.float32, (num_items, WIDTH))
    for start in range(0, num_items, 10_000):
        part = rng.standard_normal((min(10_000, num_items - start), WIDTH), dtype=np.float32)
        content[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    lengths = np.minimum(2 + rng.geometric(1 / (MEAN_LENGTH - 2), num_users), 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    Sequences(rng.integers(0, num_items, offsets[-1]).astype(np.int32), None, offsets).save(folder)
    sequences = Sequences.open(folder)

    torch.manual_seed(0)
    network = LearnNetwork(FrozenContent(content), SHAPES["small"])
    network.standardise(content[: min(num_items, 20_000)])
    started = time.perf_counter()
    fit_learn(network, sequences, LearnSettings(epochs=1, batch_size=64), num_items=num_items)
    training = time.perf_counter() - started

    model = LearnModel(network)
    started = time.perf_counter()
    items = model.item_vectors(content)
    embedding_items = time.perf_counter() - started
    num_histories = min(num_users, 20_000)
    rows = np.asarray(sequences.items_E[: offsets[num_histories]], np.int64)
    started = time.perf_counter()
    users = model.user_vectors(content, rows, np.asarray(lengths[:num_histories], np.int64))
    embedding_users = time.perf_counter() - started
    return {
        "interactions": int(offsets[-1]),
        "sequences_mb": sum(path.stat().st_size for path in folder.glob("[io]*.npy")) / 1e6,
        "content_mb": content.nbytes / 1e6,
        "train_seconds_an_epoch": training,
        "train_users_per_second": num_users / training,
        "items_per_second": num_items / embedding_items,
        "histories_per_second": len(users.vectors) / embedding_users,
        "vector_bytes": items.shape[1] * 4,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


@pytest.mark.bench
@pytest.mark.parametrize("times", [1, 10])
def test_cost(times: int) -> None:
    told = subprocess.run([sys.executable, __file__, str(times)], capture_output=True, text=True, check=True).stdout
    print(f"\n{times}x: " + ", ".join(f"{name} {value:,.4g}" for name, value in json.loads(told).items()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(int(sys.argv[1]), Path(scratch))))
