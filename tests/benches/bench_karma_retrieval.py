"""KARMA's retrieval table on real sequences: what each decoder adds to action alone, and what becomes of the vectors.

    python tests/benches/bench_karma_retrieval.py run industrial --vectors VECTORS --out RUNS
    python tests/benches/bench_karma_retrieval.py run fashion --lake LAKE --vectors VECTORS --out RUNS
    python tests/benches/bench_karma_retrieval.py table RUNS/industrial --k 200
    python tests/benches/bench_karma_retrieval.py curves RUNS/industrial --out collapse.png
    make bench                                  (a small run of it, to see that it works)

Protocol `next` of `amazon_sequences`: a user's last item is the target, full ranking over the catalogue, history not
filtered, optimistic ties. All variants train on the same users (a sample by --train-users) for the same epochs, and are
tested on the same (--test-users). Settings are the same for all but the terms. What comes before the joint stage is
trained once a seed and gone on from by all variants that share it (their `seconds` are without it). Each (variant,
seed) is a file in RUNS and is not run again. Fidelity is JS@50 (`embedders.health.title_similarity`).

`fashion` is a lake with simulated behaviour on real titles and pictures (`tailrank ingest fashion_traffic`), with
queries and with slates whose other items are hard negatives.

VECTORS holds <data>_minilm.npy, one row per item in the order of the data set's items.parquet.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from amazon_sequences import DATA, MAX_HISTORY, Split, items_of, sequences_of, split_next
from numpy.typing import NDArray

from embedders.causal_lm import CausalLM, load_causal_lm
from embedders.fit_karma import KarmaLog, KarmaSettings, KarmaWatch, fit_karma, stages_of
from embedders.fit_learn import LearnSettings, fit_learn
from embedders.health import title_similarity, vector_health
from embedders.histories import Cut, Sequences
from embedders.karma import KarmaNetwork
from embedders.karma_features import FrozenFeatures
from embedders.karma_model import KarmaModel
from embedders.karma_towers import KarmaShape
from embedders.learn import FrozenContent, LearnNetwork, LearnShape
from embedders.learn_model import LearnModel
from embedders.retrieval import retrieval_metrics
from feature_repo import table_schemas as tables
from jobs.interaction_sequences import HeldOut
from jobs.karma_validation import HeldOutKarma
from jobs.lake import Lake

CUTOFFS = (50, 200, 1000)
MOST_TITLE_TOKENS = 16
VALIDATION_USERS = 300
DECAY = 0.8
"""Of a decayed residual: best or next to it on the validation users of all four data sets, untrained."""


@dataclass(frozen=True)
class World:
    """A data set, ready to train on. Queries and what was shown beside a click are known of a search log only.

    Attributes:
        name: of the data set.
        titles: of the catalogue.
        content_NC: text vectors.
        image_NV: image vectors, zeros where there is no picture; None: no item has one.
        split: rows of the catalogue.
        queries: distinct texts.
        query_E: row of `queries` of each interaction that trains, -1 for none.
        exposed_EM: catalogue rows shown beside it and not clicked, -1 on the right.
        asked: the row of `queries` of each user's validation target and test target.
    """

    name: str
    titles: list[str]
    content_NC: NDArray[np.float32]
    split: Split
    image_NV: NDArray[np.float32] | None = None
    queries: tuple[str, ...] = ()
    query_E: NDArray[np.int32] | None = None
    exposed_EM: NDArray[np.int32] | None = None
    asked: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None

    def texts(self, query_U: NDArray[np.int32]) -> list[str | None]:
        """What users ask for; None where that is nothing."""
        return [self.queries[at] if at >= 0 else None for at in query_U]


@dataclass(frozen=True)
class Variant:
    """A row of the table: which terms, and what the language model may learn."""

    settings: KarmaSettings | None
    """None: LEARN, on the same users."""
    residual: bool = False
    residual_decay: float = 1.0
    pictures: bool = False
    """Item tokens and item vectors are made of text and picture."""


def variants() -> dict[str, Variant]:
    """The rows."""
    both = KarmaSettings(precision="bfloat16")
    action = replace(both, generation=False, reconstruction=False)
    return {
        "action only": Variant(action),
        "action + gen": Variant(replace(both, reconstruction=False)),
        "action + recon": Variant(replace(both, generation=False)),
        "action + gen + recon": Variant(both),
        "action only, InfoNCE": Variant(replace(action, action="infonce")),
        "action + gen + recon, InfoNCE": Variant(replace(both, action="infonce")),
        "frozen language model, action only": Variant(replace(action, frozen_language_model=True)),
        "action only, residual": Variant(action, residual=True),
        "action + gen, residual": Variant(replace(both, reconstruction=False), residual=True),
        "action + recon, residual": Variant(replace(both, generation=False), residual=True),
        "action + gen + recon, residual": Variant(both, residual=True),
        "action only, decayed residual": Variant(action, residual=True, residual_decay=DECAY),
        "action only, residual, InfoNCE": Variant(replace(action, action="infonce"), residual=True),
        "action + gen + recon, residual, InfoNCE": Variant(replace(both, action="infonce"), residual=True),
        "frozen language model, action only, residual": Variant(
            replace(action, frozen_language_model=True), residual=True
        ),
        "action only, pictures": Variant(action, pictures=True),
        "action + gen + recon, pictures": Variant(both, pictures=True),
        "action + gen + recon + img, pictures": Variant(replace(both, image="vector"), pictures=True),
        "action only, pictures, residual": Variant(action, residual=True, pictures=True),
        "action + gen + recon, pictures, residual": Variant(both, residual=True, pictures=True),
        "action + gen + recon + img, pictures, residual": Variant(
            replace(both, image="vector"), residual=True, pictures=True
        ),
        "LEARN, next item": Variant(None),
        "LEARN, next item, residual": Variant(None, residual=True),
    }


def world_of(arguments: argparse.Namespace) -> World:
    """Everything of one data set."""
    if arguments.data == "fashion":
        return fashion_world(Lake(arguments.lake))
    users, num_items = sequences_of(arguments.data)
    titles = [title or "" for title in items_of(arguments.data)["title"].to_list()]
    content_NC = np.load(arguments.vectors / f"{arguments.data}_minilm.npy")
    return World(arguments.data, titles, content_NC, split_next(users, num_items))


def fashion_world(lake: Lake) -> World:
    """Simulated searches on real products: the clicks of users who have at least four of them."""
    items = newest(lake, tables.ItemContentEmbeddings, "item_content_embedding").join(
        newest(lake, tables.ItemImageEmbeddings, "item_image_embedding"),
        on="item_id",
        how="left",
        maintain_order="left",
    )
    items = items.join(lake.read(tables.Items).select("item_id", "title"), on="item_id", maintain_order="left")
    width = items["item_image_embedding"].drop_nulls().list.len().max()
    assert isinstance(width, int), "the lake has no image vectors: run embed_images"
    image_NV = np.array(
        [[0.0] * width if one is None else one for one in items["item_image_embedding"].to_list()], np.float32
    )
    rows = pl.DataFrame({"item_id": items["item_id"], "row": np.arange(len(items), dtype=np.int32)})
    shown = lake.read(tables.Impressions).filter(~pl.col("is_sampled")).join(rows, on="item_id", maintain_order="left")
    queries = lake.read(tables.Queries).with_row_index("query").with_columns(pl.col("query").cast(pl.Int32))
    passed_over = (
        shown.filter(~pl.col("clicked")).group_by("request_id", maintain_order=True).agg(exposed=pl.col("row").head(4))
    )
    clicks = (
        shown.filter("clicked")
        .join(queries.select("query_id", "query"), on="query_id", how="left", maintain_order="left")
        .join(passed_over, on="request_id", how="left", maintain_order="left")
        .sort("user_id", "event_timestamp", "impression_id")
        .group_by("user_id", maintain_order=True)
        .agg("row", pl.col("query").fill_null(-1), "exposed")
        .filter(pl.col("row").list.len() >= 4)
    )
    query_E = np.array([query for of_user in clicks["query"].to_list() for query in of_user[:-2]], np.int32)
    exposed = [one for of_user in clicks["exposed"].to_list() for one in of_user[:-2]]
    exposed_EM = np.array([[*(one or []), *[-1] * (4 - len(one or []))] for one in exposed], np.int32)
    return World(
        "fashion",
        [title or "" for title in items["title"].to_list()],
        np.array(items["item_content_embedding"].to_list(), np.float32),
        split_next(clicks["row"].to_list(), len(items)),
        image_NV,
        tuple(queries["query_text"].to_list()),
        query_E,
        exposed_EM,
        (
            np.array([of_user[-2] for of_user in clicks["query"].to_list()], np.int32),
            np.array([of_user[-1] for of_user in clicks["query"].to_list()], np.int32),
        ),
    )


def newest(lake: Lake, schema: Any, column: str) -> pl.DataFrame:
    """`item_id` and its newest vector."""
    table: pl.DataFrame = lake.read(schema)
    return (
        table.sort("item_id", "event_timestamp")
        .unique("item_id", keep="last", maintain_order=True)
        .select("item_id", column)
    )


def sampled(sequences: Sequences, users: NDArray[np.int64]) -> Sequences:
    """The sequences of some users, the newest of each."""
    return Sequences.of_lists([sequences.items_E[places].tolist() for places in places_of(sequences, users)])


def places_of(sequences: Sequences, users: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Where the newest interactions of each user are."""
    ends = sequences.offsets_U[users + 1]
    starts = np.maximum(sequences.offsets_U[users], ends - MAX_HISTORY - 1)
    return [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]


def some(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Numbers of a sample, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


class KarmaRun:
    """One variant from one seed: the network, and what it is judged by."""

    def __init__(self, world: World, variant: Variant, arguments: argparse.Namespace, seed: int) -> None:
        self.world, self.variant, self.arguments, self.seed = world, variant, arguments, seed
        self.lm: CausalLM = load_causal_lm(arguments.language_model)
        torch.manual_seed(seed)
        shape = KarmaShape(
            num_layers=arguments.layers,
            residual=variant.residual,
            residual_decay=variant.residual_decay,
            low_rank=arguments.low_rank,
        )
        self.image_NV = world.image_NV if variant.pictures else None
        self.network = KarmaNetwork(self.lm, FrozenFeatures(world.content_NC, self.image_NV), shape)
        self.network.towers.standardise(world.content_NC, self.image_NV)
        self.tokens = [self.lm.tokens(" " + title)[:MOST_TITLE_TOKENS] for title in world.titles]

    def user_vectors(self, histories: Sequences, asked: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Of every history, with what was asked for where it is known."""
        model = KarmaModel.of_network(self.network, "bfloat16")
        queries = None if asked is None else self.world.texts(asked)
        return model.user_vectors(
            self.world.content_NC,
            histories.items_E.astype(np.int64),
            histories.lengths,
            image_NV=self.image_NV,
            queries=queries,
        ).vectors

    def item_vectors(self) -> NDArray[np.float32]:
        """Of the catalogue."""
        return KarmaModel.of_network(self.network).item_vectors(self.world.content_NC, self.image_NV)

    def held_out(self) -> HeldOutKarma:
        """A sample of the users, at their validation target."""
        world, split = self.world, self.world.split
        chosen = some(len(split.validation_targets), VALIDATION_USERS, 0)
        histories, targets = sampled(split.validation_history, chosen), sampled(split.validation_targets, chosen)
        return HeldOutKarma(
            network=self.network,
            content_NC=world.content_NC,
            image_NV=self.image_NV,
            titles=world.titles,
            title_tokens=self.tokens,
            users=HeldOut(histories.items_E.astype(np.int64), histories.lengths, targets),
            recall_at=200,
            precision="bfloat16",
            seed=0,
            queries=None if world.asked is None else world.texts(world.asked[0][chosen]),
        )

    def train(self, begun: dict[Any, dict[str, Any]]) -> list[dict[str, Any]]:
        """In place; the curve. `begun` has what other variants of this seed were before the joint stage, by what of
        them matters until then, and is given what this one was."""
        assert self.variant.settings is not None
        split, arguments = self.world.split, self.arguments
        world = self.world
        users = some(len(split.train), arguments.train_users, self.seed)
        places_E = np.concatenate(places_of(split.train, users))
        log = KarmaLog(
            sequences=sampled(split.train, users),
            titles=self.tokens,
            queries=[self.lm.tokens(query) for query in world.queries],
            query_E=None if world.query_E is None else world.query_E[places_E],
            exposed_EM=None if world.exposed_EM is None else world.exposed_EM[places_E],
        )
        settings = replace(
            self.variant.settings,
            epochs=arguments.epochs,
            patience=arguments.epochs,
            seed=self.seed,
            batch_size=arguments.batch_size,
            query_share=1.0,
            scale=arguments.scale,
            catalogue_negatives=arguments.catalogue_negatives,
            in_batch_weight=arguments.in_batch_weight,
            head_epochs=arguments.head_epochs,
            title_epochs=arguments.title_epochs,
            title_rate=arguments.title_rate,
            read_outs=arguments.read_outs,
            decodability=self.variant.settings.decodability and arguments.decodability,
            learning_rate=arguments.learning_rate,
            language_model_rate=arguments.language_model_rate,
        )
        variant = self.variant
        until_then = (
            (variant.residual, variant.residual_decay, variant.pictures),
            (settings.action, settings.frozen_language_model),
        )
        has_flow = settings.image != "off"  # among its weights, from the start
        first_joint = stages_of(settings).index("joint")

        def keep(checkpoint: dict[str, Any]) -> None:
            if checkpoint["state"]["epoch"] == first_joint and not has_flow:
                begun[until_then] = checkpoint

        watch = KarmaWatch(
            on_epoch=lambda row: print(f"    {row}", flush=True),
            on_checkpoint=keep,
            resume_from=None if has_flow else begun.get(until_then),
        )
        return [row._asdict() for row in fit_karma(self.network, log, settings, validate=self.held_out(), watch=watch)]


def train_learn(world: World, variant: Variant, arguments: argparse.Namespace, seed: int) -> LearnModel:
    """LEARN's network on the same users, as the other bench trains it."""
    split = world.split
    torch.manual_seed(seed)
    shape = LearnShape(output_dim=128, dropout=0.2, max_history=MAX_HISTORY, residual=variant.residual)
    network = LearnNetwork(FrozenContent(world.content_NC), replace(shape, item_tower="single"))
    network.standardise(world.content_NC)
    chosen = some(len(split.validation_targets), VALIDATION_USERS, 0)
    histories, targets = sampled(split.validation_history, chosen), sampled(split.validation_targets, chosen)

    def validate() -> float:
        model = LearnModel(network)
        users = model.user_vectors(world.content_NC, histories.items_E.astype(np.int64), histories.lengths)
        items_ND = model.item_vectors(world.content_NC)
        recall = retrieval_metrics(users.vectors, items_ND, targets, cutoffs=(200,), ties="mid").at(200).recall
        assert recall is not None
        return recall

    fit_learn(
        network,
        sampled(split.train, some(len(split.train), arguments.train_users, seed)),
        LearnSettings(
            objective="next_item",
            cut=Cut(earliest=0.5, max_history=MAX_HISTORY),
            epochs=40,
            patience=4,
            batch_size=128,
            weight_decay=1e-2,
            precision="bfloat16",
            seed=seed,
        ),
        num_items=split.num_items,
        validate=validate,
    )
    return LearnModel(network)


def run(arguments: argparse.Namespace) -> None:
    """Every variant from every seed; a seed of all of them before the next."""
    world = world_of(arguments)
    folder = arguments.out / arguments.data
    folder.mkdir(parents=True, exist_ok=True)
    tested = some(len(world.split.test_targets), arguments.test_users, 0)
    histories, targets = sampled(world.split.test_history, tested), sampled(world.split.test_targets, tested)
    print(f"{world.name}: {len(world.titles):,} items, {len(tested):,} users tested", flush=True)
    for seed in arguments.seeds:
        begun: dict[Any, dict[str, Any]] = {}
        for name, variant in variants().items():
            if (arguments.exactly and name not in arguments.exactly) or (variant.pictures and world.image_NV is None):
                continue
            path = folder / f"{name.replace(' ', '_').replace(',', '').replace('+', 'and')}_{seed}.npz"
            if path.exists():
                continue
            print(f"  {name}, seed {seed}", flush=True)
            started, curve = time.perf_counter(), []
            if variant.settings is None:
                learn = train_learn(world, variant, arguments, seed)
                users_UD = learn.user_vectors(
                    world.content_NC, histories.items_E.astype(np.int64), histories.lengths
                ).vectors
                items_ND = learn.item_vectors(world.content_NC)
            else:
                one = KarmaRun(world, variant, arguments, seed)
                curve = one.train(begun)
                users_UD = one.user_vectors(histories, None if world.asked is None else world.asked[1][tested])
                items_ND = one.item_vectors()
            metrics = retrieval_metrics(users_UD, items_ND, targets, cutoffs=CUTOFFS)
            described = {
                "variant": name,
                "seed": seed,
                "seconds": time.perf_counter() - started,
                **{f"HR@{k}": metrics.at(k).hit_rate for k in CUTOFFS},
                "JS@50": title_similarity(users_UD, items_ND, targets, world.titles),
                **vector_health(users_UD, items_ND[targets.items_E])._asdict(),
                "curve": curve,
                "settings": {key: str(value) for key, value in vars(arguments).items()},
            }
            np.savez_compressed(
                path,
                described=json.dumps(described),
                **{f"recall_{k}": metrics.at(k).recall_V.astype(np.float32) for k in CUTOFFS},
            )
            print(f"    { ({key: value for key, value in described.items() if key != 'curve'}) }", flush=True)


def opened(folder: Path) -> dict[str, list[Any]]:
    """The runs by variant."""
    runs: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.npz")):
        one = np.load(path)
        runs.setdefault(json.loads(str(one["described"]))["variant"], []).append(one)
    return {name: runs[name] for name in variants() if name in runs}


def table(arguments: argparse.Namespace) -> None:
    """Mean and deviation over seeds, and the paired difference from action alone, by user bootstrap."""
    runs = opened(arguments.runs)
    columns = [*(f"HR@{k}" for k in CUTOFFS), "JS@50", "effective_rank"]
    print(f"| | seeds | {' | '.join(columns)} | HR@{arguments.k} - {arguments.baseline} |")
    print("|---" * (len(columns) + 3) + "|")
    rng = np.random.default_rng(0)

    def per_user(name: str) -> NDArray[np.float64]:
        hits: NDArray[np.float64] = np.mean([one[f"recall_{arguments.k}"] for one in runs[name]], axis=0)
        return hits

    for name, of_seeds in runs.items():
        described = [json.loads(str(one["described"])) for one in of_seeds]
        cells = []
        for column in columns:
            values = [one[column] for one in described]
            cells.append(f"{np.mean(values):.4f} ± {np.std(values):.4f}")
        difference = per_user(name) - per_user(arguments.baseline)
        means = [difference[rng.integers(0, len(difference), len(difference))].mean() for _ in range(2000)]
        low, high = np.percentile(means, [2.5, 97.5])
        paired = "" if name == arguments.baseline else f"{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"| {name} | {len(of_seeds)} | {' | '.join(cells)} | {paired} |")


MEASURES = {
    "validation_recall": "R@200, held out",
    "title_similarity": "JS@50: words shared with the title wanted",
    "effective_rank": "directions of user vectors (effective rank)",
    "top1_mass": "attention on the heaviest position",
    "share_of_sink_heads": "share of heads with a sink",
    "title_perplexity": "perplexity of titles",
}


def curves(arguments: argparse.Namespace) -> None:
    """Each measure through training, a line a variant: mean over seeds, each seed a faint line beside it."""
    from matplotlib import pyplot

    curves_of = {
        name: [json.loads(str(one["described"]))["curve"] for one in of_seeds]
        for name, of_seeds in opened(arguments.runs).items()
    }
    trained = {name: of_seeds for name, of_seeds in curves_of.items() if of_seeds[0]}  # LEARN has no such curve
    stages = {tuple(row["stage"] for row in of_seeds[0]) for of_seeds in trained.values()}
    assert len(stages) == 1, f"these runs went through different stages: {stages}"
    (one,) = stages
    joint = np.cumsum([stage == "joint" for stage in one])
    names = [f"joint {n}" if stage == "joint" else stage for stage, n in zip(one, joint, strict=True)]
    places = np.arange(len(names))
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for axis, (measure, title) in zip(axes.flat, MEASURES.items(), strict=True):
        for colour, (name, of_seeds) in enumerate(trained.items()):
            lines = np.array([[row[measure] for row in curve] for curve in of_seeds], np.float64)
            axis.plot(places, lines.T, color=f"C{colour}", alpha=0.25, linewidth=0.8)
            axis.plot(places, lines.mean(axis=0), color=f"C{colour}", marker="o", markersize=4, label=name)
        axis.set_xticks(places, names)
        axis.set_title(title, fontsize=10)
        if measure == "title_perplexity":
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0.0)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(arguments.out, dpi=100)


@pytest.mark.bench
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.exists(), reason="the real data sets are not beside the project")
def test_a_small_run(tmp_path: Path) -> None:
    num_items = sequences_of("industrial")[1]
    vectors = np.random.default_rng(0).standard_normal((num_items, 32), dtype=np.float32)
    np.save(tmp_path / "industrial_minilm.npy", vectors)
    words = ["run", "industrial", "--vectors", str(tmp_path), "--out", str(tmp_path), "--seeds", "0", "--epochs", "1"]
    words += ["--layers", "1", "--train-users", "64", "--test-users", "50"]
    main([*words, "--exactly", "action only", "action + gen + recon", "LEARN, next item"])
    main(["table", str(tmp_path / "industrial")])
    main(["curves", str(tmp_path / "industrial"), "--out", str(tmp_path / "collapse.png")])
    assert (tmp_path / "collapse.png").stat().st_size > 10_000


def main(words: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("data", choices=["industrial", "office", "games", "fashion"])
    runs.add_argument("--lake", type=Path, help="of fashion")
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--language-model", default="smollm2")
    runs.add_argument("--layers", type=int, help="the first so many blocks of the language model")
    runs.add_argument("--train-users", type=int, default=2000)
    runs.add_argument("--test-users", type=int, default=3000)
    runs.add_argument("--epochs", type=int, default=4)
    runs.add_argument("--head-epochs", type=int, default=20, help="over states of the language model at rest")
    runs.add_argument("--title-epochs", type=int, default=0, help="of saying items' titles first, for all variants")
    runs.add_argument("--title-rate", type=float, default=5e-4)
    runs.add_argument("--catalogue-negatives", type=int, default=1024, help="that all read-outs of a step share")
    runs.add_argument("--in-batch-weight", type=float, default=0.0, help="of the batch's negatives")
    runs.add_argument("--decodability", type=float, default=0.5, help="lambda, where anything is decoded")
    runs.add_argument("--read-outs", type=int, default=8, help="of a user and epoch, at most")
    runs.add_argument("--scale", type=float, default=5.0, help="of the cosines in L_act")
    runs.add_argument("--batch-size", type=int, default=16)
    runs.add_argument("--low-rank", type=int, help="LoRA in place of training the whole language model")
    runs.add_argument("--learning-rate", type=float, default=3e-4)
    runs.add_argument("--language-model-rate", type=float, default=2e-4)
    runs.add_argument("--exactly", nargs="+", help="variants of these names")
    runs.add_argument("--vectors", type=Path)
    runs.add_argument("--out", type=Path, required=True)
    runs.set_defaults(do=run)
    tables = commands.add_parser("table")
    tables.add_argument("runs", type=Path)
    tables.add_argument("--baseline", default="action only")
    tables.add_argument("--k", type=int, default=200)
    tables.set_defaults(do=table)
    drawn = commands.add_parser("curves")
    drawn.add_argument("runs", type=Path)
    drawn.add_argument("--out", type=Path, required=True)
    drawn.set_defaults(do=curves)
    arguments = parser.parse_args(words)
    arguments.do(arguments)


if __name__ == "__main__":
    main()
