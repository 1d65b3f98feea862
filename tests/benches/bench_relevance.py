"""Relevance on human-judged pairs (Home Depot product search): words, a frozen encoder, and the distilled students.

    python tests/benches/bench_relevance.py run --out RUNS --seeds 0 1 2 --train-pairs 8000
    python tests/benches/bench_relevance.py run --out RUNS --teacher chain_sft.parquet --unlabelled 1
    python tests/benches/bench_relevance.py run --out RUNS --labelled-from qwen.parquet --teacher qwen.parquet
    python tests/benches/bench_relevance.py table RUNS --baseline "MiniLM, zero-shot" --metric spearman
    make bench                                  (a small run of it, to see that it works)

Protocol
    queries     70 % train, 10 % validation, 20 % test, by a hash of the query (`embedders.query_split`)
    unseen      the test pairs whose product occurs with no training or validation query
    relevant    a grade of 2.33 or more; grades are means of about three raters, 1 to 3
    tiers       head, torso, tail of test queries by their rarest word (`embedders.query_tiers`)
    training    queries drawn by the seed until there are --train-pairs; a smaller draw is part of a larger one.
                At most 4 epochs, the best by ROC-AUC of --validation-pairs

Rows
    any order   one score for all: what the metrics give for knowing nothing
    overlap     share of the query's distinct words that the title has
    BM25        Lucene's variant, k1 1.5, b 0.75, over the titles of all products; words are runs of letters and digits
                less a final s. "share": divided by what a title with every word of the query could reach at most, which
                makes scores of a long and of a short query alike
    zero-shot   cosine of the frozen encoder's vectors
    untrained   the alignment of the query's tokens with the title's, which a cross-encoder starts from
    labels      a student (cross-encoder or bi-encoder on MiniLM) that learns relevant or not, nothing else. A
                cross-encoder has the alignment of `embedders.mkd`, unless it is one "by its first token"
    grades      the same on the mean grade, (grade - 1) / 2 as the probability of good: it tells more than two labels
    rules       labels, and the steps that `embedders.built_chains` reads off query and title; brands are learnt from
                training titles. The rules are not told the label
    told rules  the same, and told: the category step then says what the label says, in 99 % of the pairs
    score       labels, and the probabilities of a teacher
    reasoning   labels, and the probabilities and the chains of a teacher
    teacher     what the teacher itself says of the test pairs that it was asked

A teacher's answers are a parquet file (bench_relevance_teacher.py writes it): query, title, p_good (null: no answer
could be read), chain (the line of `Reasoning.line`, or null). What it says of validation and test pairs trains nobody.
Its pairs of training queries that are not among the labelled ones are the unlabelled pool, without the products of the
unseen split; `--unlabelled 10` takes up to ten times as many of them as there are labelled pairs. `--labelled-from`
draws the labelled pairs among those that a teacher was asked about, also for the rows without a teacher, so that all
rows learn from the same labels.

Each (variant, seed) is one file in RUNS, with the scores of the test pairs, and is not run again.
Intervals draw queries (`embedders.query_bootstrap`); those of differences are paired.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from embedders.query_bootstrap import interval, resampled_metrics
from embedders.query_split import sides_of
from embedders.query_tiers import TIERS, rarest_word_frequency, tiers_of, words_of
from embedders.ranking_metrics import Judgements, RankingMetrics, ranking_metrics

if TYPE_CHECKING:
    from embedders.fit_mkd import MkdSettings
    from embedders.mkd import Student
    from embedders.relevance_prompts import QueryItem, Reasoning
    from embedders.teacher_signal import TeacherSignal

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "homedepot_relevance"
METRICS = RankingMetrics._fields
HEADINGS = ("Spearman", "ROC-AUC", "PR-AUC irrelevant", "NDCG@10")


@dataclass(frozen=True)
class Pairs:
    """Judged pairs of distinct queries and products; rows are the pairs of the file."""

    queries: list[str]
    titles: list[str]
    query_N: NDArray[np.int64]
    title_N: NDArray[np.int64]
    grade_N: NDArray[np.float64]
    train_N: NDArray[np.bool_]
    validation_N: NDArray[np.bool_]
    test_N: NDArray[np.bool_]
    unseen_N: NDArray[np.bool_]
    tier_N: NDArray[np.str_]

    def query_texts(self, rows: NDArray[np.int64]) -> list[str]:
        """Of each of these pairs."""
        return [self.queries[number] for number in self.query_N[rows]]

    def title_texts(self, rows: NDArray[np.int64]) -> list[str]:
        """Of each of these pairs."""
        return [self.titles[number] for number in self.title_N[rows]]


def pairs_of(frame: pl.DataFrame) -> Pairs:
    """Split by query, with the unseen products and the tiers marked."""
    queries = frame["search_term"].unique().sort().to_list()
    titles = frame["product_title"].unique().sort().to_list()
    number_of_query, number_of_title = ({text: n for n, text in enumerate(of)} for of in (queries, titles))
    query_N = np.array([number_of_query[text] for text in frame["search_term"]])
    side_Q = sides_of(queries)
    train_N, validation_N, test_N = ((side_Q == side)[query_N] for side in ("train", "validation", "test"))
    product_N = frame["product_uid"].to_numpy()
    training_queries = [text for text, side in zip(queries, side_Q, strict=True) if side == "train"]
    frequency_Q = rarest_word_frequency(queries, training_queries)
    return Pairs(
        queries=queries,
        titles=titles,
        query_N=query_N,
        title_N=np.array([number_of_title[text] for text in frame["product_title"]]),
        grade_N=frame["relevance"].to_numpy(),
        train_N=train_N,
        validation_N=validation_N,
        test_N=test_N,
        unseen_N=test_N & ~np.isin(product_N, product_N[~test_N]),
        tier_N=tiers_of(frequency_Q)[query_N],
    )


# ------------------------------------------------------------------------------------------------ without training


def word_overlap(pairs: Pairs, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the query's distinct words that the title has."""
    words_of_title = {number: set(words_of(pairs.titles[number])) for number in np.unique(pairs.title_N[rows])}
    words_of_query = {number: set(words_of(pairs.queries[number])) for number in np.unique(pairs.query_N[rows])}
    both = zip(pairs.query_N[rows], pairs.title_N[rows], strict=True)
    return np.array([len(words_of_query[q] & words_of_title[t]) / max(1, len(words_of_query[q])) for q, t in both])


def stems_of(text: str) -> list[str]:
    """Words without their plural s."""
    return [word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word for word in words_of(text)]


def bm25(pairs: Pairs, rows: NDArray[np.int64], *, share: bool) -> NDArray[np.float64]:
    """BM25 of the title for the query, among the titles of all products."""
    import bm25s

    corpus = [stems_of(title) for title in pairs.titles]
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(corpus, show_progress=False)
    num_titles_of = Counter(word for title in corpus for word in set(title))

    def most(words: list[str]) -> float:
        return sum(np.log1p((len(corpus) - num_titles_of[w] + 0.5) / (num_titles_of[w] + 0.5)) for w in words)

    found = np.zeros(len(rows))
    for query in np.unique(pairs.query_N[rows]):
        words = stems_of(pairs.queries[query])
        of_query = pairs.query_N[rows] == query
        if known := [word for word in words if num_titles_of[word]]:
            found[of_query] = index.get_scores(known)[pairs.title_N[rows[of_query]]]
            found[of_query] /= most(words) if share else 1.0
    return found


def zero_shot(pairs: Pairs, rows: NDArray[np.int64], model: str = "minilm") -> NDArray[np.float64]:
    """Cosine of the frozen encoder's vectors."""
    from embedders.backbone import load_backbone

    encoder = load_backbone(model)
    found_N = np.empty(len(rows))
    queries, query_n = np.unique(pairs.query_N[rows], return_inverse=True)
    titles, title_n = np.unique(pairs.title_N[rows], return_inverse=True)
    queries_D = encoder.encode([pairs.queries[number] for number in queries])
    titles_D = encoder.encode([pairs.titles[number] for number in titles])
    found_N[:] = np.einsum("nd,nd->n", queries_D[query_n], titles_D[title_n])
    return found_N


def untrained_cross_encoder(pairs: Pairs, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """By the alignment alone."""
    from embedders.mkd import InteractionStudent
    from embedders.mkd_model import MkdModel

    both = list(zip(pairs.query_texts(rows), pairs.title_texts(rows), strict=True))
    return MkdModel(InteractionStudent.pretrained("minilm")).log_odds(both).astype(np.float64)


UNTRAINED: dict[str, Callable[[Pairs, NDArray[np.int64]], NDArray[np.float64]]] = {
    "any order": lambda pairs, rows: np.zeros(len(rows)),
    "word overlap": word_overlap,
    "BM25": lambda pairs, rows: bm25(pairs, rows, share=False),
    "BM25, share": lambda pairs, rows: bm25(pairs, rows, share=True),
    "MiniLM, zero-shot": zero_shot,
    "cross-encoder, untrained": untrained_cross_encoder,
}


# ---------------------------------------------------------------------------------------------------------- students

Kind = Literal["cross-encoder", "cross-encoder by its first token", "bi-encoder"]
Source = Literal["labels", "grades", "rules", "told rules", "score", "reasoning"]


class Teacher:
    """The answers of a file, by query and title."""

    def __init__(self, path: Path) -> None:
        from embedders.relevance_prompts import parse

        self.name = path.stem
        frame = pl.read_parquet(path).filter(pl.col("p_good").is_not_null())
        self.queries, self.titles = frame["query"].to_list(), frame["title"].to_list()
        keys = list(zip(self.queries, self.titles, strict=True))
        self.score_of: dict[tuple[str, str], float] = dict(zip(keys, frame["p_good"].to_list(), strict=True))
        self.chain_of: dict[tuple[str, str], Reasoning] = {
            key: parse(line) for key, line in zip(keys, frame["chain"].to_list(), strict=True) if line is not None
        }

    def scores(self, pairs: Pairs, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """nan for what it was not asked, or what could not be read."""
        keys = zip(pairs.query_texts(rows), pairs.title_texts(rows), strict=True)
        return np.array([self.score_of.get(key, np.nan) for key in keys])

    def pool(self, pairs: Pairs, labelled: NDArray[np.int64], num: int, seed: int) -> list[tuple[str, str]]:
        """Pairs of training queries that are not labelled, drawn at random."""
        known = set(zip(pairs.query_texts(labelled), pairs.title_texts(labelled), strict=True))
        training_queries = set(pairs.query_texts(np.flatnonzero(pairs.train_N)))
        unseen = set(pairs.title_texts(np.flatnonzero(pairs.unseen_N)))
        found = [
            key for key in self.score_of if key not in known and key[0] in training_queries and key[1] not in unseen
        ]
        return [found[place] for place in np.random.default_rng(seed).permutation(len(found))[:num]]


def labelled_rows(pairs: Pairs, num: int | None, seed: int, among: Teacher | None = None) -> NDArray[np.int64]:
    """Training pairs (`among`: those that this teacher was asked about): all, or of queries drawn by the seed until
    there are enough."""
    rows = np.flatnonzero(pairs.train_N)
    if among is not None:
        rows = rows[np.isfinite(among.scores(pairs, rows))]
    if num is None:
        return rows
    order = np.random.default_rng(seed).permutation(np.unique(pairs.query_N[rows]))
    place_Q = np.full(len(pairs.queries), len(pairs.queries))
    place_Q[order] = np.arange(len(order))
    return rows[np.argsort(place_Q[pairs.query_N[rows]], kind="stable")][:num]


def signal_for(
    source: Source, pairs: Pairs, rows: NDArray[np.int64], pool: list[tuple[str, str]], teacher: Teacher | None
) -> tuple[list[tuple[str, str]], TeacherSignal, tuple[int, ...]]:
    """The texts of labelled and unlabelled pairs, what is told of them, and the sizes of the classes of facts."""
    from embedders.built_chains import built_chain
    from embedders.reasoning_targets import CLASSED, FactClasses, signal_of
    from embedders.relevance_prompts import LABELS, QueryItem
    from embedders.title_facts import TitleReader

    keys = list(zip(pairs.query_texts(rows), pairs.title_texts(rows), strict=True)) + pool
    texts: list[QueryItem] = [QueryItem(query, title) for query, title in keys]
    number_of = {query: number for number, query in enumerate(pairs.queries)}
    relevant = judgements(pairs, rows).relevant_N.astype(np.int8)
    label_N = np.concatenate([relevant, np.full(len(pool), -1, np.int8)])
    p_good = np.full(len(keys), np.nan)
    chains: list[Reasoning | None] | None = None
    if source == "grades":
        p_good = (pairs.grade_N[rows] - 1) / 2
    elif source in ("rules", "told rules"):
        reader = TitleReader.of_titles(pairs.titles[n] for n in np.unique(pairs.title_N[pairs.train_N]))
        told = [LABELS[label] if source == "told rules" else None for label in label_N]
        chains = [built_chain(one, label, reader=reader) for one, label in zip(texts, told, strict=True)]
    elif teacher is not None and source in ("score", "reasoning"):
        p_good = np.array([teacher.score_of.get(key, np.nan) for key in keys])
        chains = [teacher.chain_of.get(key) for key in keys] if source == "reasoning" else None
    classes = None if chains is None else FactClasses.of_chains(chains)
    signal = signal_of(
        texts,
        np.array([number_of[query] for query, _ in keys]),
        label_N=label_N,
        probabilities_NK=np.stack([1 - p_good, p_good], axis=1).astype(np.float32),
        chains=chains,
        classes=classes,
    )
    return keys, signal, (1,) * len(CLASSED) if classes is None else classes.num_classes


def settings_for(kind: Kind, source: Source, seed: int, arguments: argparse.Namespace) -> MkdSettings:
    """Losses that are not of the row are off; all else is alike."""
    from dataclasses import replace

    from embedders.fit_mkd import INTERACTION, REPRESENTATION

    settings = REPRESENTATION if kind == "bi-encoder" else INTERACTION
    teaches, reasons = source in ("score", "reasoning"), source in ("rules", "told rules", "reasoning")
    weights = replace(
        settings.weights,
        hard=0.0 if source == "grades" else 1.0,
        alpha=1.0 if teaches or source == "grades" else 0.0,
        alpha_list=settings.weights.alpha_list if teaches else 0.0,
        beta=settings.weights.beta if reasons else 0.0,
        gamma=settings.weights.gamma if reasons else 0.0,
        tau=1.0 if source == "grades" else settings.weights.tau,
    )
    rate = arguments.learning_rate or settings.learning_rate
    return replace(
        settings,
        weights=weights,
        learning_rate=rate,
        epochs=arguments.epochs,
        precision=arguments.precision,
        seed=seed,
    )


def student_of(kind: Kind, num_classes: tuple[int, ...], seed: int) -> Student:
    """MiniLM with new heads."""
    import torch

    from embedders.mkd import InteractionStudent, PairPooling, RepresentationStudent

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if kind != "bi-encoder":
        pooling: PairPooling = "alignment" if kind == "cross-encoder" else "first"
        return InteractionStudent.pretrained("minilm", pooling=pooling, seed=seed).to(device)
    return RepresentationStudent.pretrained("minilm", num_classes=num_classes, seed=seed).to(device)


def train(
    kind: Kind,
    source: Source,
    pairs: Pairs,
    rows: NDArray[np.int64],
    pool: list[tuple[str, str]],
    teacher: Teacher | None,
    seed: int,
    arguments: argparse.Namespace,
) -> tuple[Callable[[NDArray[np.int64]], NDArray[np.float64]], dict[str, Any]]:
    """One student: how it scores, and how it was made."""
    from embedders.fit_mkd import Watch, fit_mkd
    from embedders.mkd_model import MkdModel

    texts, signal, num_classes = signal_for(source, pairs, rows, pool, teacher)
    student = student_of(kind, num_classes, seed)

    def score(of: NDArray[np.int64]) -> NDArray[np.float64]:
        both = list(zip(pairs.query_texts(of), pairs.title_texts(of), strict=True))
        return MkdModel(student, precision=arguments.precision).log_odds(both).astype(np.float64)

    validation = np.random.default_rng(0).permutation(np.flatnonzero(pairs.validation_N))[: arguments.validation_pairs]
    judged = judgements(pairs, validation)
    settings = settings_for(kind, source, seed, arguments)
    started = time.perf_counter()
    curve = fit_mkd(
        student,
        texts,
        signal,
        settings,
        validate=lambda: ranking_metrics(score(validation), judged).roc_auc,
        watch=Watch(on_epoch=lambda row: print(f"    {row}", flush=True)),
    )
    return score, {
        "train_pairs": len(rows),
        "unlabelled_pairs": len(pool),
        "train_seconds": time.perf_counter() - started,
        "best_epoch": next(row.epoch for row in curve if row.is_best),
        "validation_roc_auc": [row.validation_metric for row in curve],
        "epochs": arguments.epochs,
        "learning_rate": settings.learning_rate,
        "precision": arguments.precision,
    }


def run_students(pairs: Pairs, arguments: argparse.Namespace) -> None:
    """Both kinds, every source that is at hand, every seed."""
    teacher = Teacher(arguments.teacher) if arguments.teacher else None
    among = Teacher(arguments.labelled_from) if arguments.labelled_from else None
    if arguments.only_asked and among is None:
        raise SystemExit("--only-asked: the pairs that whom was asked about? name the file with --labelled-from")
    if teacher:
        keep(arguments.out, f"teacher {teacher.name}", 0, pairs, lambda rows: teacher.scores(pairs, rows), {})
    judged_N = np.isfinite(among.scores(pairs, np.arange(len(pairs.grade_N)))) if arguments.only_asked else None
    sources: tuple[Source, ...] = ("score", "reasoning") if teacher else ("labels", "grades", "rules", "told rules")
    for kind in get_args(Kind):
        for source in sources:
            name = f"{kind}, {source}" + (f" of {teacher.name}" if teacher else "")
            name += "" if arguments.train_pairs is None else f", {arguments.train_pairs} pairs"
            name += f", unlabelled x{arguments.unlabelled:g}" if teacher and arguments.unlabelled else ""
            for seed in arguments.seeds if is_wanted(name, arguments) else []:
                if path_of(arguments.out, name, seed).exists():
                    continue
                print(f"  {name}, seed {seed}", flush=True)
                rows = labelled_rows(pairs, arguments.train_pairs, seed, among)
                num = round(arguments.unlabelled * len(rows))
                pool = teacher.pool(pairs, rows, num, seed) if teacher else []
                score, made = train(kind, source, pairs, rows, pool, teacher, seed, arguments)
                keep(arguments.out, name, seed, pairs, score, made, judged_N)


# ------------------------------------------------------------------------------------------------------- run, table


def run(arguments: argparse.Namespace) -> None:
    """Every variant from every seed."""
    pairs = pairs_of(pl.read_parquet(DATA / "train.parquet"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    counts = {name: int(getattr(pairs, f"{name}_N").sum()) for name in ("train", "validation", "test", "unseen")}
    print(f"{len(pairs.grade_N):,} pairs: {counts}", flush=True)
    for name, score in UNTRAINED.items():
        if is_wanted(name, arguments):
            keep(arguments.out, name, 0, pairs, lambda rows, score=score: score(pairs, rows), {})
    run_students(pairs, arguments)


def is_wanted(name: str, arguments: argparse.Namespace) -> bool:
    """Named by --only or --exactly, or neither given."""
    return (not arguments.only or any(part in name for part in arguments.only)) and (
        not arguments.exactly or name in arguments.exactly
    )


def path_of(folder: Path, name: str, seed: int) -> Path:
    """The file of a run."""
    return folder / f"{name.replace(' ', '_').replace(',', '')}_{seed}.npz"


def keep(
    folder: Path,
    name: str,
    seed: int,
    pairs: Pairs,
    score: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    made: dict[str, Any],
    only_N: NDArray[np.bool_] | None = None,
) -> None:
    """Score test pairs (`only_N`: these of them, the others are nan) and write them, unless that was done."""
    path = path_of(folder, name, seed)
    if path.exists():
        return
    started = time.perf_counter()
    rows = np.flatnonzero(pairs.test_N)
    wanted = np.ones(len(rows), np.bool_) if only_N is None else only_N[rows]
    scores = {"test": np.full(len(rows), np.nan)}
    scores["test"][wanted] = score(rows[wanted])
    seconds = time.perf_counter() - started
    asked = np.isfinite(scores["test"])
    found = ranking_metrics(scores["test"][asked], judgements(pairs, np.flatnonzero(pairs.test_N)[asked]))
    described = {"variant": name, "seed": seed, "test_pairs": int(asked.sum()), "seconds_to_score": seconds}
    described |= found._asdict() | made
    np.savez_compressed(path, described=json.dumps(described), **scores)
    print(f"  {described}", flush=True)


def judgements(pairs: Pairs, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Judgements:
    """Of these pairs."""
    return Judgements.of_grades(pairs.query_N[chosen], pairs.grade_N[chosen])


def table(arguments: argparse.Namespace) -> None:
    """One table a part of the test pairs: mean over seeds of each metric, and the paired difference of one of them."""
    pairs = pairs_of(pl.read_parquet(DATA / "train.parquet"))
    runs: dict[str, list[NDArray[np.float64]]] = {}
    for path in sorted(arguments.runs.glob("*.npz")):
        one = np.load(path)
        runs.setdefault(json.loads(str(one["described"]))["variant"], []).append(one["test"])
    names = sorted(runs, key=lambda name: (list(UNTRAINED).index(name) if name in UNTRAINED else len(UNTRAINED), name))
    parts = {"test": pairs.test_N, "unseen product": pairs.unseen_N}
    parts |= {tier: pairs.test_N & (pairs.tier_N == tier) for tier in TIERS}
    asked_N = np.ones(len(pairs.grade_N), np.bool_)
    if arguments.where:
        asked_N[pairs.test_N] = np.isfinite(runs[arguments.where]).all(axis=0)
    metric = METRICS.index(arguments.metric)
    gains: dict[str, dict[str, NDArray[np.float64]]] = {}
    for part, whole_N in parts.items():
        mask_N = whole_N & asked_N
        if not mask_N.any():
            continue
        judged = judgements(pairs, mask_N)
        inside = mask_N[pairs.test_N]
        scored = [name for name in names if np.isfinite([scores[inside] for scores in runs[name]]).all()]
        print(
            f"\n### {part}: {int(mask_N.sum()):,} pairs of {len(np.unique(judged.query_N)):,} queries, "
            f"{judged.relevant_N.mean():.1%} relevant\n"
        )
        baseline = f"{HEADINGS[metric]} - {arguments.baseline}"
        print(f"| | seeds | {' | '.join(HEADINGS)} | {baseline} |\n{'|---' * 7}|")
        values, draws = {}, {}
        for name in scored:
            of_seeds = [scores[inside] for scores in runs[name]]
            values[name] = np.mean([ranking_metrics(scores, judged) for scores in of_seeds], axis=0)
            drawn = resampled_metrics(of_seeds, judged, num_draws=arguments.num_draws, seed=0)
            draws[name] = drawn.mean(axis=0)
        for name in scored:
            cells = [
                f"{values[name][row]:.4f} [{low:.4f}, {high:.4f}]"
                for row, (low, high) in enumerate(interval(of_metric) for of_metric in draws[name])
            ]
            paired = ""
            if name != arguments.baseline and arguments.baseline in values:
                gain = draws[name][metric] - draws[arguments.baseline][metric]
                gains.setdefault(name, {})[part] = gain
                paired = signed(values[name][metric] - values[arguments.baseline][metric], gain)
            print(f"| {name} | {len(runs[name])} | {' | '.join(cells)} | {paired} |")
    print(f"\n### {HEADINGS[metric]} - {arguments.baseline}: the gain of the tail less that of the head\n")
    for name, of_parts in gains.items():
        if {"head", "tail"} <= set(of_parts):
            difference = of_parts["tail"] - of_parts["head"]
            print(f"- {name}: {signed(float(np.mean(difference)), difference)}")
    print("\nRows that lack scores of some pairs are left out; --where ROW judges all rows by the pairs that ROW has.")


def signed(value: float, draws_D: NDArray[np.float64]) -> str:
    """A difference with its interval."""
    low, high = interval(draws_D)
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


@pytest.mark.bench
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.exists(), reason="the real data sets are not beside the project")
def test_a_small_run(tmp_path: Path) -> None:
    frame = pl.read_parquet(DATA / "train.parquet").head(1500)
    pairs = pairs_of(frame)
    assert not set(pairs.query_N[pairs.train_N]) & set(pairs.query_N[~pairs.train_N])
    rows = np.flatnonzero(pairs.test_N)
    for name, score in UNTRAINED.items():
        print(name, ranking_metrics(score(pairs, rows), judgements(pairs, rows)))
    # a teacher that knows the grades, asked about all pairs: only those of training queries may teach
    answers = frame.select(
        query="search_term",
        title="product_title",
        p_good=(pl.col("relevance") - 1) / 2,
        chain=pl.lit(None, pl.String),
    )
    answers.write_parquet(tmp_path / "grades.parquet")
    arguments = argparse.Namespace(epochs=1, precision="auto", learning_rate=None, validation_pairs=200)
    labelled = labelled_rows(pairs, 200, seed=0)
    teacher = Teacher(tmp_path / "grades.parquet")
    pool = teacher.pool(pairs, labelled, 100, seed=0)
    assert {query for query, _ in pool} <= set(pairs.query_texts(np.flatnonzero(pairs.train_N)))
    learnt, made = train("bi-encoder", "score", pairs, labelled, pool, teacher, 0, arguments)
    keep(tmp_path, "bi-encoder, score", 0, pairs, learnt, made)
    learnt, made = train("cross-encoder", "rules", pairs, labelled, [], None, 0, arguments)
    keep(tmp_path, "cross-encoder, rules", 0, pairs, learnt, made)


def main(words: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--only", nargs="+", help="variants whose name contains one of these")
    runs.add_argument("--exactly", nargs="+", help="variants of these names")
    runs.add_argument("--train-pairs", type=int, help="labelled pairs; default all")
    runs.add_argument("--teacher", type=Path, help="a file of answers; its stem names the rows")
    runs.add_argument("--labelled-from", type=Path, help="a file of answers: only its pairs are drawn as labelled")
    runs.add_argument("--only-asked", action="store_true", help="score only the test pairs of that file")
    runs.add_argument("--validation-pairs", type=int, default=2000, help="for early stop")
    runs.add_argument("--unlabelled", type=float, default=0.0, help="pairs of the teacher's pool for each labelled one")
    runs.add_argument("--epochs", type=int, default=4)
    runs.add_argument("--learning-rate", type=float, help="default: each kind's own")
    runs.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    runs.set_defaults(do=run)
    tables = commands.add_parser("table")
    tables.add_argument("runs", type=Path)
    tables.add_argument("--baseline", default="MiniLM, zero-shot")
    tables.add_argument("--metric", choices=METRICS, default="roc_auc")
    tables.add_argument("--where", help="judge by the pairs that this row has scores of")
    tables.add_argument("--num-draws", type=int, default=1000)
    tables.set_defaults(do=table)
    arguments = parser.parse_args(words)
    arguments.do(arguments)


if __name__ == "__main__":
    main()
