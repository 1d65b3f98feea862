"""Data-parallel training on the CPU: both processes end with one model, whatever each finds in a validation."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedders.causal_lm import CausalLM
from embedders.fit_karma import KarmaLog, KarmaSettings
from embedders.histories import Sequences
from embedders.karma import KarmaNetwork
from embedders.karma_features import FrozenFeatures
from embedders.karma_towers import KarmaShape

ROOT = Path(__file__).resolve().parents[2]

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")

ONE_PROCESS = """
import os, pickle, sys
from pathlib import Path
from embedders.fit_karma import KarmaValidation, fit_karma

folder, process = Path(sys.argv[1]), int(os.environ["RANK"])
network, log, settings = pickle.loads((folder / "given").read_bytes())
recalls = iter([0.1, 0.1, 0.1, 0.2, 0.5, 0.4 + 0.2 * process, 0.3, 0.3])  # the second would go on for an epoch more
curve = fit_karma(network, log, settings, validate=lambda: KarmaValidation(recall=next(recalls)))
weights = {name: weight.detach().numpy() for name, weight in network.named_parameters()}
rows = [row._replace(seconds=0.0) for row in curve]
(folder / f"found_{process}").write_bytes(pickle.dumps((rows, weights)))
"""


@pytest.mark.slow
def test_both_end_with_one_model_and_stop_when_the_first_one_says(
    make_lm: Callable[..., CausalLM], tmp_path: Path
) -> None:
    """With every stage; without pictures: not every weight always has a gradient."""
    rng = np.random.default_rng(0)
    content_NC = rng.standard_normal((20, 8)).astype(np.float32)
    lists = [rng.integers(0, 20, rng.integers(3, 7)).tolist() for _ in range(13)]
    log = KarmaLog(Sequences.of_lists(lists), [[110 + item] for item in range(20)])
    network = KarmaNetwork(make_lm(), FrozenFeatures(content_NC), KarmaShape(output_dim=8, item_hidden=16))
    network.towers.instruction = network.towers.instruction[:2]
    stages = {"title_epochs": 1, "warm_up_epochs": 1}
    settings = KarmaSettings(epochs=4, patience=1, batch_size=6, read_outs=2, precision="float32", **stages)
    (tmp_path / "given").write_bytes(pickle.dumps((network, log, settings)))
    (tmp_path / "one_process.py").write_text(ONE_PROCESS)
    launched = subprocess.run(
        [*LAUNCH, str(tmp_path / "one_process.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert launched.returncode == 0, launched.stderr
    (curve, weights), (other_curve, other_weights) = (
        pickle.loads((tmp_path / f"found_{process}").read_bytes()) for process in (0, 1)
    )
    assert curve == other_curve
    assert [row.validation_recall for row in curve] == [0.1, 0.1, 0.1, 0.2, 0.5, 0.4]
    assert [row.stage for row in curve] == ["untouched", "titles", "warm_up", "heads", "joint", "joint"]
    assert [row.epoch for row in curve if row.is_best] == [3]
    before = dict(network.named_parameters())
    assert weights.keys() == other_weights.keys() == before.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, other_weights[name], err_msg=name)
    assert any(not np.array_equal(weight, before[name].detach().numpy()) for name, weight in weights.items())
