"""What students learn from and are judged on: pairs with their texts, people's labels and the teacher's answers.

Only pairs first shown before `labels_through` teach, stop early or calibrate. What test queries are judged on teaches
nobody, so it is of the whole log.
"""

import hashlib
import logging
from datetime import datetime
from typing import Any, NamedTuple

import polars as pl

from embedders.prompts import PROMPTS, QUERY_TEXT
from feature_repo.table_schemas import Items, Queries, RelevanceAnswers
from jobs.lake import Lake
from jobs.relevance.pairs import PAIR, drawn_by_query, judged_pairs, pool_pairs

logger = logging.getLogger(__name__)

PROMPT = PROMPTS["relevance"]

PAIRS_AT_ONCE_OF_A_QUERY = 4
"""A query gives so many pairs before another is asked for more [NF->P]: few pairs teach more where they are of many
queries, and lists and contrasts need several of one."""

LEARNT_FROM = ("query_text", "item_text", "human_label", "score", "chain")
"""All that a student is told of a pair."""

ANSWERED_SHARE = 0.5
"""With answers to fewer of the test pairs the teacher is not judged, so that the others are judged on more."""


class LearntPairs(NamedTuple):
    """Pairs with `LEARNT_FROM`, query_id and item_id.

    Attributes:
        train: of training queries.
        validation: of validation queries, with labels.
        labels_through: both were first shown before it (or never).
    """

    train: pl.DataFrame
    validation: pl.DataFrame
    labels_through: datetime | None

    def hashes(self) -> list[str]:
        """Of each pair, with all that is told of it, and on which side it is."""
        told = [*PAIR, *LEARNT_FROM]
        return [
            hashlib.blake2b(repr((side, *row)).encode(), digest_size=16).hexdigest()
            for side, frame in (("train", self.train), ("validation", self.validation))
            for row in frame.select(told).iter_rows()
        ]


def texts_of_queries(lake: Lake) -> pl.LazyFrame:
    """query_id and query_text as students read it; queries without a text are left out."""
    queries = lake.scan(Queries) if lake.exists(Queries) else Queries.create_empty(lazy=True)
    return queries.select("query_id", QUERY_TEXT).filter(pl.col("query_text").is_not_null())


def texts_of_items(lake: Lake) -> pl.LazyFrame:
    """item_id, event_timestamp and item_text as students read it; items without a text are left out."""
    texts = lake.scan(Items).select("item_id", "event_timestamp", item_text=PROMPT.text)
    return texts.filter(pl.col("item_text").is_not_null())


def learnt_pairs(
    lake: Lake,
    *,
    good_from: float,
    labels_through: datetime | None,
    max_train_pairs: int,
    max_validation_pairs: int,
    seed: int,
) -> LearntPairs:
    """Draw what is learnt from: judged and answered pairs of training queries, judged pairs of validation queries.

    Raises:
        ValueError: nobody has judged a pair of before `labels_through`.
    """
    judged = judged_pairs(lake, good_from=good_from, before=labels_through)
    if judged.is_empty():
        when = "" if labels_through is None else f" that was first shown before {labels_through:%Y-%m-%d %H:%M} UTC"
        raise ValueError(
            f"distill_relevance: people have judged no pair{when}, so students could be neither trained nor "
            "calibrated.\n  what to do: ingest relevance_grades, raise trained_share (or trained_through) of "
            "[label_relevance], or do without relevance: [label_relevance] enabled = false"
        )
    columns = [*PAIR, "query_text", "human_label", "side"]
    answers = lake.scan(RelevanceAnswers).select(*PAIR, "score", "chain").collect()
    most = lake.manifest(RelevanceAnswers).rows + len(judged)  # as many as could have been answered
    pool = pool_pairs(lake, before=labels_through, most=most).join(answers, on=PAIR, how="semi")
    candidates = pl.concat([judged.select(columns), pool.select(columns)]).join(answers, on=PAIR, how="left")
    candidates = _with_texts(lake, candidates)
    is_train = pl.col("side") == "train"
    is_validation = (pl.col("side") == "validation") & pl.col("human_label").is_not_null()
    train = _drawn(candidates.filter(is_train), max_train_pairs, seed)
    validation = _drawn(candidates.filter(is_validation), max_validation_pairs, seed)
    if train.is_empty():
        raise ValueError(
            f"distill_relevance: {len(judged):_} pairs are judged, but none of them is of a training query and the "
            "teacher has answered about none.\n  what to do: ingest grades of more queries (7 of 10 are trained on), "
            "or run label_relevance with a pool (max_pool_pairs)"
        )
    logger.info(
        "distill_relevance: learns from %s of %s pairs of training queries (%s judged by people, %s scored by the "
        "teacher, %s with its reasoning; %s queries); %s of %s judged pairs of validation queries held out",
        f"{len(train):_}",
        f"{candidates.filter(is_train).height:_}",
        *(f"{train.get_column(name).count():_}" for name in ("human_label", "score", "chain")),
        f"{train.get_column('query_id').n_unique():_}",
        f"{len(validation):_}",
        f"{candidates.filter(is_validation).height:_}",
    )
    return LearntPairs(train, validation, labels_through)


def judged_test_pairs(lake: Lake, *, good_from: float, most: int, seed: int) -> pl.DataFrame:
    """Pairs that students are judged on: query_id, item_id, both texts, grade, human_label, teacher.

    `teacher` is its score, or 1 and 0 for good and bad where it gives none. Where it has answered about enough of the
    pairs, they are those that it answered about, so that all are judged on the same; otherwise all of it is null.
    """
    judged = judged_pairs(lake, good_from=good_from, before=None).filter(pl.col("side") == "test")
    said = pl.coalesce("score", (pl.col("label").cast(pl.String) == "good").cast(pl.Float64))
    answers = lake.scan(RelevanceAnswers).select(*PAIR, teacher=said).collect()
    pairs = _with_texts(lake, judged.join(answers, on=PAIR, how="left"))
    answered = pairs.filter(pl.col("teacher").is_not_null())
    if answered.height >= ANSWERED_SHARE * min(most, pairs.height):
        pairs = answered
    else:
        pairs = pairs.with_columns(teacher=pl.lit(None, pl.Float64))
    return drawn_by_query(pairs, most, seed=seed).drop("side", "first_shown", "num_shown")


def _with_texts(lake: Lake, pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs of which both sides have a text that students can read."""
    found = (
        pairs.lazy()
        .drop("query_text")
        .join(texts_of_queries(lake), on="query_id", maintain_order="left")
        .join(texts_of_items(lake).drop("event_timestamp"), on="item_id", maintain_order="left")
        .collect()
    )
    if len(found) < len(pairs):
        logger.info("distill_relevance: %s pairs dropped, without a text to read", f"{len(pairs) - len(found):_}")
    return found


def _drawn(pairs: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """A few pairs of each query, in an order that depends on ids and the seed alone, then a few more of each."""

    def order_of(column: str) -> pl.DataFrame:
        ids = pairs.get_column(column).unique()
        digests = [hashlib.blake2b(f"{seed}\n{one}".encode(), digest_size=16).digest() for one in ids]
        return pl.DataFrame({column: ids, f"order_{column}": pl.Series(digests, dtype=pl.Binary)})

    placed = pairs.join(order_of("query_id"), on="query_id").join(order_of("item_id"), on="item_id")
    ordered = placed.sort("order_query_id", "order_item_id")
    turn = pl.int_range(pl.len()).over("query_id") // PAIRS_AT_ONCE_OF_A_QUERY
    ordered = ordered.with_columns(turn=turn).sort("turn", maintain_order=True).head(most)
    return ordered.sort("order_query_id", "order_item_id").drop("turn", "order_query_id", "order_item_id")


def described(pairs: LearntPairs) -> dict[str, Any]:
    """Counts for a manifest."""
    return {"num_pairs": len(pairs.train), "num_validation_pairs": len(pairs.validation)}
