"""LEARN's retrieval tables on real sequences: inputs, alignment, item towers, pair sampling, and a SASRec of ids.

    python tests/benches/bench_learn_retrieval.py run industrial --seeds 0 1 2 --vectors VECTORS --out RUNS
    python tests/benches/bench_learn_retrieval.py table RUNS industrial --baseline id
    make bench                                  (a small run of it, to see that it works)

Protocols
    next      a user's last item is the test target, the one before it the validation target, the rest trains; at the
              test the history is everything before the target (RecFormer's split, as the official code has it)
    multi     of a user with at least 8 items the last quarter are targets; 5 % of these users are there for validation
              only, the others are tested, and everybody's first three quarters train
Full ranking over the catalogue, history not filtered, optimistic ties. Each (variant, seed) is one file in RUNS and is
not run again. The learning rate is chosen per input and objective among three by the recall of
validation targets (seed 0, `--tuning-epochs`; 0: the first of them for all).

VECTORS holds <data>_<input>.npy, one row per item in the order of the data set's items.parquet.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amazon_sequences import DATA, MAX_HISTORY, Split, sequences_of, split_multi, split_next
from numpy.typing import NDArray

from embedders.fit_learn import LearnSettings, Objective, Watch, fit_learn
from embedders.histories import Cut, Sequences, padded_rows
from embedders.interests import mean_of_history
from embedders.learn import FrozenContent, IdTable, ItemTower, LearnNetwork, LearnShape
from embedders.retrieval import RetrievalMetrics, retrieval_metrics

LEARNING_RATES = (1e-3, 3e-4, 3e-3)
CUTOFFS = (10, 50, 100, 200)


@dataclass(frozen=True)
class Variant:
    """One row of a table."""

    input: str
    """`id`, or the name of a matrix of content vectors."""
    objective: Objective | None
    """None: no alignment, the mean of the history's content vectors."""
    tower: ItemTower = "single"
    positions: bool = False
    pair_sampling: str = "recency"
    hidden: int = 128
    output_dim: int = 64
    residual: bool = False
    num_negatives: int | None = None
    """Of next_item; None: the whole catalogue."""
    max_targets: int = 40


SAMPLED_NEGATIVES = 2048
"""Of next-item training on Games: against all 16,859 titles an epoch takes ten times as long."""


def variants_of(protocol: str, llm: str) -> dict[str, Variant]:
    """The rows of a protocol's table."""
    found = {"no alignment, minilm": Variant("minilm", None), f"no alignment, {llm}": Variant(llm, None)}
    if protocol == "next":
        # SASRec: a learnt table on both sides, positions, every position against the whole catalogue
        found["SASRec (id)"] = Variant("id", "next_item", "content", positions=True, hidden=64)
        for name in ("id", "minilm", llm):
            found[f"{name}, in-batch"] = Variant(name, "single")
            found[f"{name}, full softmax"] = Variant(name, "next_item")
        for name in ("minilm", llm):
            found[f"{name}, full softmax, residual"] = Variant(name, "next_item", residual=True)
        return found
    found["minilm, tower (c)"] = Variant("minilm", "dense", "content", output_dim=384)
    found["minilm, tower (b)"] = Variant("minilm", "dense", "single")
    found["minilm, tower (a)"] = Variant("minilm", "dense", "sequence")
    found["minilm, tower (a), uniform pairs"] = Variant("minilm", "dense", "sequence", pair_sampling="uniform")
    found["SASRec (id)"] = Variant(
        "id", "next_item", "content", positions=True, hidden=64, num_negatives=SAMPLED_NEGATIVES
    )
    found["minilm, next item"] = Variant("minilm", "next_item", num_negatives=SAMPLED_NEGATIVES)
    # does (a) lean on the targets before the one it is asked for?
    for letter, tower in (("a", "sequence"), ("b", "single")):
        found[f"minilm, tower ({letter}), two targets"] = Variant("minilm", "dense", tower, max_targets=2)
    found["id, tower (a)"] = Variant("id", "dense", "sequence")
    found[f"{llm}, tower (a)"] = Variant(llm, "dense", "sequence")
    found["minilm, tower (a), residual"] = Variant("minilm", "dense", "sequence", residual=True)
    return found


def user_vectors(network: LearnNetwork, histories: Sequences) -> NDArray[np.float32]:
    """The vector at the last position of each history's newest MAX_HISTORY items."""
    found = np.empty((len(histories), network.shape.output_dim), np.float32)
    order = np.argsort(histories.lengths, kind="stable")
    with torch.inference_mode():
        for chosen in np.array_split(order, max(1, len(order) // 512)):
            rows = padded_rows([histories.of(user)[-MAX_HISTORY:] for user in chosen])
            found[chosen] = network.last_users(torch.from_numpy(rows)).numpy()
    return found


def judge(network: LearnNetwork, split: Split, histories: Sequences, targets: Sequences) -> RetrievalMetrics:
    """Metrics of the network as it is."""
    with torch.inference_mode():
        items = network.items(torch.arange(split.num_items)).numpy()
    return retrieval_metrics(user_vectors(network, histories), items, targets, cutoffs=CUTOFFS)


def train(
    variant: Variant, split: Split, vectors: Path, data: str, *, seed: int, rate: float, epochs: int
) -> tuple[LearnNetwork, dict[str, Any]]:
    """One run; settings are the same for all variants but the learning rate."""
    torch.manual_seed(seed)
    shape = LearnShape(
        num_layers=2,
        num_heads=4 if variant.hidden == 128 else 2,
        hidden=variant.hidden,
        feedforward=4 * variant.hidden,
        output_dim=variant.output_dim,
        dropout=0.2,
        max_history=MAX_HISTORY,
        positions=variant.positions,
        item_tower=variant.tower,
        residual=variant.residual,
    )
    if variant.input == "id":
        network = LearnNetwork(IdTable(split.num_items, variant.output_dim), shape)
    else:
        content = np.load(vectors / f"{data}_{variant.input}.npy")
        network = LearnNetwork(FrozenContent(content), shape)
        network.standardise(content)
    assert variant.objective is not None
    settings = LearnSettings(
        objective=variant.objective,
        num_negatives=variant.num_negatives,
        cut=Cut(earliest=0.5, max_history=MAX_HISTORY, max_targets=variant.max_targets),
        pair_sampling="uniform" if variant.pair_sampling == "uniform" else "recency",
        epochs=epochs,
        patience=4,
        learning_rate=rate,
        batch_size=128,
        weight_decay=1e-2,
        precision="bfloat16",
        seed=seed,
    )

    def validate() -> float:
        recall = judge(network, split, split.validation_history, split.validation_targets).at(100).recall
        assert recall is not None
        return recall

    started = time.perf_counter()
    curve = fit_learn(
        network,
        split.train,
        settings,
        num_items=split.num_items,
        validate=validate,
        watch=Watch(on_epoch=lambda row: print(f"    {row}", flush=True)),
    )
    best = next(row for row in curve if row.is_best)
    return network, {
        "learning_rate": rate,
        "epochs": len(curve),
        "best_epoch": best.epoch,
        "validation_recall_at_100": best.validation_recall,
        "train_seconds": time.perf_counter() - started,
    }


def run(arguments: argparse.Namespace) -> None:
    """Every variant from every seed."""
    users, num_items = sequences_of(arguments.data)
    split = (split_next if arguments.protocol == "next" else split_multi)(users, num_items)
    folder = arguments.out / f"{arguments.data}_{arguments.protocol}"
    folder.mkdir(parents=True, exist_ok=True)
    print(
        f"{arguments.data}: {len(users):,} users, {num_items:,} items, {len(split.test_targets):,} tested", flush=True
    )
    for name, variant in variants_of(arguments.protocol, arguments.llm).items():
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        if arguments.exactly and name not in arguments.exactly:
            continue
        for seed in arguments.seeds if variant.objective else [0]:
            path = folder / f"{name.replace(' ', '_').replace(',', '')}_{seed}.npz"
            if path.exists():
                continue
            print(f"  {name}, seed {seed}", flush=True)
            if variant.objective is None:
                metrics, made = judge_means(variant, split, arguments), {}
            else:
                rate = rate_of(folder, variant) or tuned(variant, split, arguments, folder)
                network, made = train(
                    variant, split, arguments.vectors, arguments.data, seed=seed, rate=rate, epochs=arguments.epochs
                )
                metrics = judge(network, split, split.test_history, split.test_targets)
            save(path, name, seed, metrics, made)


def judge_means(variant: Variant, split: Split, arguments: argparse.Namespace) -> RetrievalMetrics:
    """LEARN's baseline without alignment."""
    content = np.load(arguments.vectors / f"{arguments.data}_{variant.input}.npy")
    history = split.test_history
    means = mean_of_history(content, history.items_E.astype(np.int64), history.lengths)
    assert len(means.vectors) == len(history)
    return retrieval_metrics(means.vectors, content, split.test_targets, cutoffs=CUTOFFS)


def tuned(variant: Variant, split: Split, arguments: argparse.Namespace, folder: Path) -> float:
    """The learning rate with the best validation recall, from seed 0: for each input and objective, not each tower."""
    if arguments.tuning_epochs == 0:
        return LEARNING_RATES[0]
    found = {}
    for rate in LEARNING_RATES:
        print(f"    learning rate {rate}", flush=True)
        _, made = train(
            variant, split, arguments.vectors, arguments.data, seed=0, rate=rate, epochs=arguments.tuning_epochs
        )
        found[rate] = made["validation_recall_at_100"]
    best = max(found, key=lambda rate: found[rate])
    rate_path(folder, variant).write_text(
        json.dumps({"rate": best, "recall_at_100": {str(rate): recall for rate, recall in found.items()}})
    )
    return best


def rate_of(folder: Path, variant: Variant) -> float | None:
    """The rate chosen before."""
    path = rate_path(folder, variant)
    return json.loads(path.read_text())["rate"] if path.exists() else None


def rate_path(folder: Path, variant: Variant) -> Path:
    """Where the choice is kept."""
    return folder / f"rate_{variant.input}_{variant.objective}_{variant.hidden}.json"


def save(path: Path, name: str, seed: int, metrics: RetrievalMetrics, made: dict[str, Any]) -> None:
    """Figures, and what each user contributes to them."""
    overall = {
        f"{metric}@{one.k}": getattr(one, field)
        for one in metrics.cutoffs
        for metric, field in (("H", "hit_rate"), ("R", "recall"), ("N", "ndcg"))
    }
    described = {"variant": name, "seed": seed, "mrr": metrics.mrr, **overall, **made}
    arrays = {f"recall_{one.k}": one.recall_V.astype(np.float32) for one in metrics.cutoffs}
    arrays |= {f"ndcg_{one.k}": one.ndcg_V.astype(np.float32) for one in metrics.cutoffs}
    np.savez_compressed(path, described=json.dumps(described), **arrays)
    print(f"    {described}", flush=True)


def table(arguments: argparse.Namespace) -> None:
    """Mean over seeds of each figure, and the paired difference of recall from the baseline, by user bootstrap."""
    runs: dict[str, list[Any]] = {}
    for path in sorted((arguments.runs / arguments.experiment).glob("*.npz")):
        one = np.load(path)
        runs.setdefault(json.loads(str(one["described"]))["variant"], []).append(one)
    columns = [f"{metric}@{k}" for metric in "RN" for k in CUTOFFS]
    print(f"| | seeds | {' | '.join(columns)} | R@{arguments.k} - {arguments.baseline} |")
    print("|---" * (len(columns) + 3) + "|")
    rng = np.random.default_rng(0)

    def per_user(name: str) -> NDArray[np.float64]:
        recalls: NDArray[np.float64] = np.mean([one[f"recall_{arguments.k}"] for one in runs[name]], axis=0)
        return recalls

    for name, of_seeds in runs.items():
        described = [json.loads(str(one["described"])) for one in of_seeds]
        cells = [f"{np.mean([one[column] for one in described]):.4f}" for column in columns]
        difference = per_user(name) - per_user(arguments.baseline)
        means = [difference[rng.integers(0, len(difference), len(difference))].mean() for _ in range(2000)]
        low, high = np.percentile(means, [2.5, 97.5])
        paired = "" if name == arguments.baseline else f"{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"| {name} | {len(of_seeds)} | {' | '.join(cells)} | {paired} |")


@pytest.mark.bench
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.exists(), reason="the real data sets are not beside the project")
def test_a_small_run(tmp_path: Path) -> None:
    np.save(tmp_path / "industrial_minilm.npy", np.random.default_rng(0).standard_normal((3686, 32), dtype=np.float32))
    users, num_items = sequences_of("industrial")
    split = split_next(users[:300], num_items)
    variant = replace(Variant("minilm", "next_item"), hidden=64)
    network, made = train(variant, split, tmp_path, "industrial", seed=0, rate=1e-3, epochs=2)
    print(made, judge(network, split, split.test_history, split.test_targets).at(100).recall)


def main() -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("data", choices=["industrial", "office", "games"])
    runs.add_argument("--protocol", choices=["next", "multi"], default="next")
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--epochs", type=int, default=40)
    runs.add_argument("--tuning-epochs", type=int, default=40)
    runs.add_argument("--llm", default="smollm2_L08_nofirst", help="matrix of the decoder's vectors")
    runs.add_argument("--only", nargs="+", help="variants whose name contains one of these")
    runs.add_argument("--exactly", nargs="+", help="variants of these names")
    runs.add_argument("--vectors", type=Path, required=True)
    runs.add_argument("--out", type=Path, required=True)
    runs.set_defaults(do=run)
    tables = commands.add_parser("table")
    tables.add_argument("runs", type=Path)
    tables.add_argument("experiment", help="such as industrial_next")
    tables.add_argument("--baseline", default="SASRec (id)")
    tables.add_argument("--k", type=int, default=100)
    tables.set_defaults(do=table)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
