"""Does a teacher's reasoning follow the item? One attribute of it is changed, and the step about it should say so.

    python tests/benches/bench_relevance_faithfulness.py smollm2 --per-step 60
    python tests/benches/bench_relevance_faithfulness.py rules
    make bench                                  (a small run, by rules)

Pairs are test pairs (Home Depot) in which the query asks for something and the title states it: a category, a brand, a
model or an attribute. The stated value is replaced by one of the same kind that another pair states
(`embedders.counterfactuals`), and both items are judged. By step:

    match before    share of pairs whose step says match, as it should
    flipped         of those, the share whose step says mismatch after the change: the rate that counts
    others kept     share of the other three steps that say the same before and after
    score           mean change of the score over all pairs; it should fall

Intervals draw queries (1,000 bootstrap draws). Facts are read by rules in the decoding `scored`, so the question is
whether the comparison follows the facts, not whether a model reads them.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from embedders.built_chains import built_chain
from embedders.counterfactuals import Changed, changed_pairs
from embedders.ellm_rele import RelevanceTeacher, load_teacher
from embedders.query_split import sides_of
from embedders.relevance_prompts import STEPS, QueryItem
from embedders.title_facts import TitleReader

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "homedepot_relevance" / "train.parquet"
HEADINGS = ("match before", "flipped", "others kept", "score")


class Judged(NamedTuple):
    """What is said of a pair: a match a step, and a score (nan: rules know none)."""

    matches: tuple[str, ...]
    score: float


def one_a_query(changes: Iterable[Changed], most: int) -> list[Changed]:
    """The first change of each query, until there are enough."""
    chosen: dict[str, Changed] = {}
    for one in changes:
        if len(chosen) == most:
            break
        chosen.setdefault(one.before.query, one)
    return list(chosen.values())


def by_rules(pairs: Sequence[QueryItem], reader: TitleReader) -> list[Judged]:
    """What the rules say that the training chains are built by: the upper end, as the pairs are chosen by them."""
    return [Judged(built_chain(pair, reader=reader).matches(), np.nan) for pair in pairs]


def by_teacher(teacher: RelevanceTeacher, pairs: Sequence[QueryItem], num_chains: int) -> list[Judged]:
    """What a language model says."""
    answers = teacher.score(pairs, decoding="scored", num_chains=num_chains)
    return [
        Judged(one.reasoning.matches() if one.reasoning else (), np.nan if one.score is None else one.score)
        for one in answers
    ]


def rates(step: str, before: Sequence[Judged], after: Sequence[Judged], seed: int = 0) -> list[tuple[float, ...]]:
    """Each figure of `HEADINGS` with its interval."""
    at = STEPS.index(step)
    matched_N = np.array([one.matches[at] == "match" for one in before])
    flipped_N = np.array([one.matches[at] == "mismatch" for one in after])
    kept_N = np.array(
        [
            np.mean([a == b for k, (a, b) in enumerate(zip(one.matches, other.matches, strict=True)) if k != at])
            for one, other in zip(before, after, strict=True)
        ]
    )
    change_N = np.array([other.score - one.score for one, other in zip(before, after, strict=True)])

    def figures(rows: NDArray[np.int64]) -> list[float]:
        matched = matched_N[rows]
        among = flipped_N[rows][matched]
        return [
            float(matched.mean()),
            float(among.mean()) if len(among) else np.nan,
            float(kept_N[rows].mean()),
            float(change_N[rows].mean()),
        ]

    rng = np.random.default_rng(seed)
    drawn = np.array([figures(rng.integers(len(before), size=len(before))) for _ in range(1000)])
    here = figures(np.arange(len(before)))
    return [
        (value, np.nan, np.nan) if np.isnan(value) else (value, *np.nanquantile(drawn[:, k], (0.025, 0.975)))
        for k, value in enumerate(here)
    ]


def report(name: str, per_step: int, num_chains: int, seed: int, steps: Sequence[str] = STEPS) -> None:
    """A table, one row a step."""
    frame = pl.read_parquet(DATA)
    side_N = pl.Series(sides_of(frame["search_term"].to_list()))
    reader = TitleReader.of_titles(frame.filter(side_N == "train")["product_title"])
    of_test = frame.filter(side_N == "test").select("search_term", "product_title")
    pairs = [QueryItem(query, title) for query, title in of_test.iter_rows()]
    teacher = None
    if name != "rules":
        teacher = load_teacher(name, dtype="bfloat16")
        teacher = RelevanceTeacher(teacher.lm, reader)
    print(f"{name}, {num_chains} chains, seed {seed}\n\n| step | pairs | {' | '.join(HEADINGS)} |\n{'|---' * 6}|")
    for step in steps:
        both = one_a_query(changed_pairs(pairs, step, reader=reader, seed=seed), per_step)
        if not both:
            print(f"| {step} | 0 | | | | |")
            continue
        texts = [one.before for one in both] + [one.after for one in both]
        said = by_rules(texts, reader) if teacher is None else by_teacher(teacher, texts, num_chains)
        cells = [
            "–"
            if np.isnan(value)
            else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
            if k == 3
            else f"{value:.2f} [{low:.2f}, {high:.2f}]"
            for k, (value, low, high) in enumerate(rates(step, said[: len(both)], said[len(both) :]))
        ]
        print(f"| {step} | {len(both)} | {' | '.join(cells)} |", flush=True)


@pytest.mark.bench
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.exists(), reason="the real data sets are not beside the project")
def test_rules_follow_the_item(capsys: pytest.CaptureFixture[str]) -> None:
    report("rules", per_step=50, num_chains=1, seed=0)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[1].strip() for row in rows] == list(STEPS)
    assert all(float(row[4].split()[0]) > 0.8 for row in rows)  # rules are what the values were chosen by


def main(words: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a packaged language model, the folder of one or of a teacher; or `rules`")
    parser.add_argument("--per-step", type=int, default=60)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    report(arguments.teacher, arguments.per_step, arguments.chains, arguments.seed, arguments.steps)


if __name__ == "__main__":
    main()
