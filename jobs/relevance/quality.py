"""How well each scorer follows people's judgements of test queries: words, the untrained encoder, teacher, students.

All are judged on the same pairs. Where the teacher was asked about enough of them, those are the pairs that it answered
about; otherwise it is left out. Intervals draw queries (`embedders.query_bootstrap`).
"""

import hashlib
import logging
import math
import tempfile
from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedders.query_bootstrap import interval, resampled_metrics
from embedders.query_split import sides_of
from embedders.query_tiers import TIERS, rarest_word_frequency, tiers_of, words_of
from embedders.ranking_metrics import Judgements, ranking_metrics
from feature_repo.table_schemas import RelevanceMetrics
from jobs.lake import Lake
from jobs.relevance.distilled_pairs import PROMPT, texts_of_queries
from jobs.relevance.fitted_students import FittedStudent, Kind
from jobs.relevance.vectors import StoredVectors

logger = logging.getLogger(__name__)

METRICS = ("spearman", "roc_auc", "pr_auc_irrelevant", "ndcg_at_10")
"""In the order of `RankingMetrics`."""

NUM_DRAWS = 200
"""The ends of a 95% interval of so many draws are known to within a tenth of its width."""


def judge(
    lake: Lake,
    pairs: pl.DataFrame,
    students: Mapping[Kind, FittedStudent],
    *,
    backbone: str,
    max_tokens: int,
    seed: int,
) -> None:
    """Write `relevance_metrics`, unless it is of the same judgements and the same scorers already.

    Edited texts alone are no reason to judge again: when so many are edited that it matters, students are new, too.

    Args:
        lake: with the vectors of the representation student, where there is one.
        pairs: as `jobs.relevance.distilled_pairs.judged_test_pairs` gives them.
        students: to be judged.
        backbone: what students began as, judged as it is, too.
        max_tokens: read of a text.
        seed: of the bootstrap.
    """
    if pairs.is_empty():
        lake.write(RelevanceMetrics, RelevanceMetrics.create_empty(), metadata={"of": "nothing"})
        logger.warning("distill_relevance: no judged pair is of a test query, so no scorer is judged")
        return
    tiers = tiers_of(rarest_word_frequency(pairs.get_column("query_text").to_list(), _training_queries(lake)))
    prints = [student.fingerprint.digest() for student in students.values()]
    told = f"{PROMPT.version} {backbone} {max_tokens} {seed} {NUM_DRAWS} {prints} {''.join(tiers)}\n"
    digest = hashlib.sha256((told + pairs.drop("query_text", "item_text").write_csv()).encode()).hexdigest()
    if lake.exists(RelevanceMetrics) and lake.manifest(RelevanceMetrics).metadata.get("of") == digest:
        logger.info("distill_relevance: the scorers are judged already, on the same %s pairs", f"{len(pairs):_}")
        return
    scores = _scores(lake, pairs, students, backbone, max_tokens)
    lake.write(RelevanceMetrics, metrics_of(pairs, scores, tiers, seed=seed), metadata={"of": digest})
    _log(lake.read(RelevanceMetrics))


def metrics_of(
    pairs: pl.DataFrame, scores: Mapping[str, NDArray[np.floating]], tiers: NDArray[np.str_], *, seed: int
) -> pl.DataFrame:
    """Rows of `RelevanceMetrics`.

    Args:
        pairs: query_id, grade and human_label of N pairs.
        scores: of each scorer, N each.
        tiers: N, of each pair's query.
        seed: of the bootstrap.
    """
    grade_N = pairs.get_column("grade").to_numpy()
    judged = Judgements(
        query_N=np.unique(pairs.get_column("query_id").to_numpy(), return_inverse=True)[1],
        grade_N=grade_N,
        gain_N=np.exp2(grade_N) - 1,  # grades begin at 0
        relevant_N=(pairs.get_column("human_label") == "good").to_numpy(),
    )
    rows = []
    for part in ("all", *TIERS):
        is_of_part = np.ones(len(pairs), np.bool_) if part == "all" else tiers == part
        some = judged.of(is_of_part)
        num_pairs, num_queries = int(is_of_part.sum()), len(np.unique(some.query_N))
        if not num_pairs:
            continue
        of_part = [score_N[is_of_part] for score_N in scores.values()]
        draws = resampled_metrics(of_part, some, num_draws=NUM_DRAWS, seed=seed)
        for scorer, score_N, draws_MD in zip(scores, of_part, draws, strict=True):
            for metric, value, draws_D in zip(METRICS, ranking_metrics(score_N, some), draws_MD, strict=True):
                low, high = interval(draws_D)
                numbers = (_null(number) for number in (value, low, high))
                rows.append((scorer, part, metric, *numbers, num_pairs, num_queries))
    return pl.DataFrame(rows, schema=dict(RelevanceMetrics.create_empty().schema), orient="row")


def word_overlap(pairs: pl.DataFrame) -> NDArray[np.float64]:
    """Share of the query's distinct words that the item's text has. [N]"""
    found = []
    for query, item in pairs.select("query_text", "item_text").iter_rows():
        words = set(words_of(query))
        found.append(len(words & set(words_of(item))) / max(1, len(words)))
    return np.array(found)


def _scores(
    lake: Lake, pairs: pl.DataFrame, students: Mapping[Kind, FittedStudent], backbone: str, max_tokens: int
) -> dict[str, NDArray[np.floating]]:
    from embedders.mkd import RepresentationStudent  # here: torch takes seconds to import
    from embedders.mkd_model import MkdModel

    texts = pairs.select("query_text", "item_text").rows()
    dtype = next(iter(students.values())).fingerprint.dtype
    frozen = MkdModel(
        RepresentationStudent.pretrained(backbone, max_tokens=max_tokens),
        precision="bfloat16" if dtype == "bfloat16" else "float32",
    )
    scores: dict[str, NDArray[np.floating]] = {
        "word overlap": word_overlap(pairs),
        "frozen encoder": frozen.log_odds(texts),
    }
    if not pairs.get_column("teacher").has_nulls():
        scores["teacher"] = pairs.get_column("teacher").to_numpy()
    if (interaction := students.get("interaction")) is not None:
        scores["interaction"] = interaction.load("distill_relevance").log_odds(texts)
    if "representation" in students:
        scratch = lake.folder("scratch")
        with tempfile.TemporaryFile(dir=scratch) as of_queries, tempfile.TemporaryFile(dir=scratch) as of_items:
            vectors = StoredVectors(lake, "distill_relevance", (of_queries, of_items))
            scores["representation"] = vectors.cosines(pairs)
    return scores


def _training_queries(lake: Lake) -> list[str]:
    """Texts of all queries of the training side, drawn to train on or not: so tiers do not depend on a setting."""
    texts = texts_of_queries(lake).collect().get_column("query_text").to_list()
    return [text for text, side in zip(texts, sides_of(texts), strict=True) if side == "train"]


def _log(metrics: pl.DataFrame) -> None:
    """ROC-AUC of all parts, with the interval of all, as a small table."""
    parts = ("all", *TIERS)
    of_all = metrics.filter(part="all", metric="roc_auc").row(0, named=True)
    lines = [f"{'ROC-AUC':<16}{'all':>22}" + "".join(f"{part:>8}" for part in TIERS) + f"{'NDCG@10':>10}"]
    for scorer in metrics.get_column("scorer").unique(maintain_order=True):
        of = {
            (row["part"], row["metric"]): row
            for row in metrics.filter(pl.col("scorer") == scorer).iter_rows(named=True)
        }
        auc = [of.get((part, "roc_auc"), {}).get("value") for part in parts]
        all_of_it = of["all", "roc_auc"]
        spread = f" [{_short(all_of_it['low'])}, {_short(all_of_it['high'])}]"
        lines.append(
            f"{scorer:<16}{_short(auc[0]) + spread:>22}"
            + "".join(f"{_short(value):>8}" for value in auc[1:])
            + f"{_short(of['all', 'ndcg_at_10']['value']):>10}"
        )
    logger.info(
        "distill_relevance: %s judged pairs of %s test queries\n  %s",
        f"{of_all['num_pairs']:_}",
        f"{of_all['num_queries']:_}",
        "\n  ".join(lines),
    )


def _null(number: float) -> float | None:
    return None if math.isnan(number) else float(number)


def _short(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"
