"""Relevance on human-judged pairs (Home Depot product search): words, a frozen encoder, and the distilled students.

    python tests/benches/bench_relevance.py run --out RUNS                     (words and the frozen encoder)
    python tests/benches/bench_relevance.py table RUNS --baseline "MiniLM, zero-shot" --metric spearman
    make bench                                  (a small run of it, to see that it works)

Protocol
    queries     70 % train, 10 % validation, 20 % test, by a hash of the query: no query is on two sides
    unseen      the test pairs whose product occurs with no training or validation query
    relevant    a grade of 2.33 or more; grades are means of about three raters, 1 to 3
    tiers       head, torso, tail of test queries by their rarest word (`embedders.query_tiers`)
    BM25        Lucene's variant, k1 1.5, b 0.75, over the titles of all products; words are runs of letters and digits
                less a final s. "share": divided by what a title with every word of the query could reach at most, which
                makes scores of a long and of a short query alike
    overlap     share of the query's distinct words that the title has

Each (variant, seed) is one file in RUNS, with the scores of validation and test pairs, and is not run again.
Intervals draw queries (`embedders.query_bootstrap`); those of differences are paired.
"""

import argparse
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from embedders.query_bootstrap import interval, resampled_metrics
from embedders.query_tiers import TIERS, rarest_word_frequency, tiers_of, words_of
from embedders.ranking_metrics import Judgements, RankingMetrics, ranking_metrics

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
    bucket_Q = np.array([bucket_of(text) for text in queries])
    train_N, test_N = (bucket_Q < 70)[query_N], (bucket_Q >= 80)[query_N]
    product_N = frame["product_uid"].to_numpy()
    frequency_Q = rarest_word_frequency(
        queries, [text for text, low in zip(queries, bucket_Q < 70, strict=True) if low]
    )
    return Pairs(
        queries=queries,
        titles=titles,
        query_N=query_N,
        title_N=np.array([number_of_title[text] for text in frame["product_title"]]),
        grade_N=frame["relevance"].to_numpy(),
        train_N=train_N,
        validation_N=~train_N & ~test_N,
        test_N=test_N,
        unseen_N=test_N & ~np.isin(product_N, product_N[~test_N]),
        tier_N=tiers_of(frequency_Q)[query_N],
    )


def bucket_of(query: str) -> int:
    """0 to 99; queries that differ in case or blanks only are on one side."""
    text = " ".join(query.lower().split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 100


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


UNTRAINED: dict[str, Callable[[Pairs, NDArray[np.int64]], NDArray[np.float64]]] = {
    "word overlap": word_overlap,
    "BM25": lambda pairs, rows: bm25(pairs, rows, share=False),
    "BM25, share": lambda pairs, rows: bm25(pairs, rows, share=True),
    "MiniLM, zero-shot": zero_shot,
}


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
) -> None:
    """Score validation and test pairs and write them, unless that was done."""
    path = path_of(folder, name, seed)
    if path.exists():
        return
    started = time.perf_counter()
    scores = {side: score(np.flatnonzero(getattr(pairs, f"{side}_N"))) for side in ("validation", "test")}
    found = ranking_metrics(scores["test"], judgements(pairs, pairs.test_N))
    described = {
        "variant": name,
        "seed": seed,
        "seconds_to_score": time.perf_counter() - started,
        **found._asdict(),
        **made,
    }
    np.savez_compressed(path, described=json.dumps(described), **scores)
    print(f"  {described}", flush=True)


def judgements(pairs: Pairs, mask_N: NDArray[np.bool_]) -> Judgements:
    """Of these pairs."""
    return Judgements.of_grades(pairs.query_N[mask_N], pairs.grade_N[mask_N])


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
    metric = METRICS.index(arguments.metric)
    gains: dict[str, dict[str, NDArray[np.float64]]] = {}
    for part, mask_N in parts.items():
        judged = judgements(pairs, mask_N)
        inside = mask_N[pairs.test_N]
        print(
            f"\n### {part}: {int(mask_N.sum()):,} pairs of {len(np.unique(judged.query_N)):,} queries, "
            f"{judged.relevant_N.mean():.1%} relevant\n"
        )
        baseline = f"{HEADINGS[metric]} - {arguments.baseline}"
        print(f"| | seeds | {' | '.join(HEADINGS)} | {baseline} |\n{'|---' * 7}|")
        values, draws = {}, {}
        for name in names:
            of_seeds = [scores[inside] for scores in runs[name]]
            values[name] = np.mean([ranking_metrics(scores, judged) for scores in of_seeds], axis=0)
            drawn = resampled_metrics(of_seeds, judged, num_draws=arguments.num_draws, seed=0)
            draws[name] = drawn.mean(axis=0)
        for name in names:
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
        difference = of_parts["tail"] - of_parts["head"]
        print(f"- {name}: {signed(float(np.mean(difference)), difference)}")


def signed(value: float, draws_D: NDArray[np.float64]) -> str:
    """A difference with its interval."""
    low, high = interval(draws_D)
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


@pytest.mark.bench
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.exists(), reason="the real data sets are not beside the project")
def test_a_small_run(tmp_path: Path) -> None:
    pairs = pairs_of(pl.read_parquet(DATA / "train.parquet").head(1500))
    assert not set(pairs.query_N[pairs.train_N]) & set(pairs.query_N[pairs.test_N])
    rows = np.flatnonzero(pairs.test_N)
    for name, score in UNTRAINED.items():
        print(name, ranking_metrics(score(pairs, rows), judgements(pairs, pairs.test_N)))


def main(words: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--only", nargs="+", help="variants whose name contains one of these")
    runs.add_argument("--exactly", nargs="+", help="variants of these names")
    runs.set_defaults(do=run)
    tables = commands.add_parser("table")
    tables.add_argument("runs", type=Path)
    tables.add_argument("--baseline", default="MiniLM, zero-shot")
    tables.add_argument("--metric", choices=METRICS, default="roc_auc")
    tables.add_argument("--num-draws", type=int, default=1000)
    tables.set_defaults(do=table)
    arguments = parser.parse_args(words)
    arguments.do(arguments)


if __name__ == "__main__":
    main()
