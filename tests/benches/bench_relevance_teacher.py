"""Teachers of relevance: train one on chains built by rules, ask one about judged pairs, keep its answers.

    python tests/benches/bench_relevance_teacher.py fit smollm2 --answers chain --pairs 2000 --out chain_sft
    python tests/benches/bench_relevance_teacher.py ask chain_sft --decoding scored --out chain_sft.parquet
    python tests/benches/bench_relevance.py run --teacher chain_sft.parquet --out RUNS

`fit` learns from pairs of training queries (`embedders.query_split`): the chains of `embedders.built_chains` with the
human's label, or the label alone. --contrast-share 1 adds as many chains of other training pairs, as they are and with
one value of the item replaced (`embedders.counterfactuals`); their grades are not used. It stops early by the ROC-AUC
of --validation-pairs. `ask` goes on where its file ends.
An answer: query, title, p_good (null where nothing could be read), chain, agreement, num_parsed, num_tokens, seconds.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest

from embedders.answer_loss import TeacherExample
from embedders.built_chains import built_chain, label_of_grade
from embedders.causal_lm import CausalLM, load_causal_lm
from embedders.counterfactuals import contrasts
from embedders.ellm_rele import Decoding, RelevanceTeacher, load_teacher
from embedders.fit_teacher import TeacherSettings, TeacherWatch, fit_teacher
from embedders.query_split import sides_of
from embedders.ranking_metrics import Judgements, ranking_metrics
from embedders.relevance_prompts import QueryItem
from embedders.title_facts import TitleReader

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "homedepot_relevance" / "train.parquet"
AT_ONCE = 64
SCHEMA = {
    "query": pl.String,
    "title": pl.String,
    "p_good": pl.Float64,
    "chain": pl.String,
    "agreement": pl.Float64,
    "num_parsed": pl.Int64,
    "num_tokens": pl.Int64,
    "seconds": pl.Float64,
}


def some_pairs(frame: pl.DataFrame, side: str, num: int, seed: int) -> pl.DataFrame:
    """Pairs of a side: of queries drawn by the seed, until there are enough."""
    frame = frame.filter(pl.Series(sides_of(frame["search_term"].to_list()) == side))
    queries = frame["search_term"].unique().sort()
    order = queries[np.random.default_rng(seed).permutation(len(queries))]
    places = pl.DataFrame({"search_term": order, "place": np.arange(len(order))})
    return frame.join(places, on="search_term", maintain_order="left").sort("place", maintain_order=True).head(num)


def items_of(frame: pl.DataFrame) -> list[QueryItem]:
    """As the teacher reads them."""
    return [QueryItem(query, title) for query, title in frame.select("search_term", "product_title").iter_rows()]


def roc_auc(teacher: RelevanceTeacher, frame: pl.DataFrame, decoding: Decoding) -> float:
    """Of the pairs that have an answer."""
    scores = np.array([one.score for one in teacher.score(items_of(frame), decoding=decoding)], np.float64)
    asked = np.isfinite(scores)
    query_N = frame["search_term"].rank("dense").to_numpy().astype(np.int64)
    judged = Judgements.of_grades(query_N[asked], frame["relevance"].to_numpy()[asked])
    return ranking_metrics(scores[asked], judged).roc_auc


def fit(arguments: argparse.Namespace) -> None:
    """A teacher in a folder."""
    frame = pl.read_parquet(DATA)
    of_training = frame.filter(pl.Series(sides_of(frame["search_term"].to_list()) == "train"))
    reader = TitleReader.of_titles(of_training["product_title"])
    chosen = some_pairs(frame, "train", arguments.pairs, arguments.seed)
    labels = [label_of_grade(grade) for grade in chosen["relevance"]]
    examples = [
        TeacherExample(item, built_chain(item, label, reader=reader))
        for item, label in zip(items_of(chosen), labels, strict=True)
    ]
    if most := round(arguments.contrast_share * len(examples) / 2):
        judged = {one.pair for one in examples}
        others = [pair for pair in items_of(of_training) if pair not in judged]
        for one in contrasts(others, most, reader=reader, seed=arguments.seed):
            examples += [TeacherExample(*part, is_judged=False) for part in (one.as_it_is, one.changed)]
    validation = some_pairs(frame, "validation", arguments.validation_pairs, 0)
    decoding: Decoding = "scored" if arguments.answers == "chain" else "label_only"
    # weights that adapters leave as they are may be kept in half; weights that are trained may not
    in_half = arguments.low_rank and arguments.precision == "bfloat16"
    weights: Literal["auto", "bfloat16"] = "bfloat16" if in_half else "auto"

    def validate(lm: CausalLM) -> float:
        return roc_auc(RelevanceTeacher(lm, reader), validation, decoding)

    trained, _ = fit_teacher(
        load_causal_lm(arguments.model, dtype=weights),
        examples,
        TeacherSettings(
            answers=arguments.answers,
            low_rank=arguments.low_rank,
            epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            precision=arguments.precision,
            pairs_at_once=arguments.pairs_at_once,
            seed=arguments.seed,
        ),
        validate=validate,
        watch=TeacherWatch(on_epoch=lambda row: print(f"  {row}", flush=True)),
    )
    RelevanceTeacher(trained, reader).save(arguments.out)


def ask(arguments: argparse.Namespace) -> None:
    """Answers about whole queries of each side, test first."""
    frame = pl.read_parquet(DATA)
    wanted = pl.concat(
        some_pairs(frame, side, getattr(arguments, f"{side}_pairs"), arguments.seed)
        for side in ("test", "validation", "train")
    ).unique(["search_term", "product_title"], maintain_order=True)
    done = pl.read_parquet(arguments.out) if arguments.out.exists() else pl.DataFrame(schema=SCHEMA)
    left = wanted.join(
        done, left_on=["search_term", "product_title"], right_on=["query", "title"], how="anti", maintain_order="left"
    )
    print(f"{len(wanted):,} pairs wanted, {len(left):,} to ask", flush=True)
    teacher = load_teacher(arguments.model, dtype=arguments.dtype)
    for start in range(0, len(left), AT_ONCE):
        items = items_of(left[start : start + AT_ONCE])
        started = time.perf_counter()
        answers = teacher.score(items, decoding=arguments.decoding, num_chains=arguments.chains, seed=arguments.seed)
        seconds = (time.perf_counter() - started) / len(items)
        rows = [
            {
                "query": item.query,
                "title": item.title,
                "p_good": answer.score,
                "chain": answer.reasoning.line() if answer.reasoning else None,
                "agreement": answer.agreement,
                "num_parsed": answer.num_parsed,
                "num_tokens": answer.num_tokens,
                "seconds": seconds,
            }
            for item, answer in zip(items, answers, strict=True)
        ]
        done = pl.concat([done, pl.DataFrame(rows, schema=SCHEMA)])
        written = arguments.out.with_suffix(".part")
        done.write_parquet(written)
        written.rename(arguments.out)
        print(f"  {start + len(items):,} of {len(left):,}, {1 / seconds:.2f} pairs/s", flush=True)


@pytest.mark.bench
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.exists(), reason="the real data sets are not beside the project")
def test_a_draw_is_of_one_side_and_part_of_a_larger_draw() -> None:
    frame = pl.read_parquet(DATA)
    few, more = (some_pairs(frame, "train", num, 0) for num in (100, 300))
    assert few.equals(more.head(100))
    assert set(sides_of(more["search_term"].to_list())) == {"train"}


def main(words: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    fits = commands.add_parser("fit")
    fits.add_argument("--answers", choices=["chain", "label_only"], default="chain")
    fits.add_argument("--pairs", type=int, default=2000)
    fits.add_argument("--contrast-share", type=float, default=0.0, help="chains of pairs as they are, and changed")
    fits.add_argument("--validation-pairs", type=int, default=300)
    fits.add_argument("--epochs", type=int, default=3)
    fits.add_argument("--low-rank", type=int)
    fits.add_argument(
        "--pairs-at-once", type=int, default=4, help="of one forward pass; 4 chains took a 1.5B model to 20 GB"
    )
    fits.add_argument("--learning-rate", type=float, default=2e-5)
    fits.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    fits.set_defaults(do=fit)
    asks = commands.add_parser("ask")
    asks.add_argument("--decoding", choices=["free", "constrained", "scored", "label_only"], default="scored")
    asks.add_argument("--chains", type=int, default=5)
    for side, default in (("test", 2000), ("validation", 0), ("train", 0)):
        asks.add_argument(f"--{side}-pairs", type=int, default=default)
    asks.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    asks.set_defaults(do=ask)
    for one in (fits, asks):
        one.add_argument("model", help="a packaged language model, or the folder of a teacher")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(words)
    arguments.do(arguments)


if __name__ == "__main__":
    main()
