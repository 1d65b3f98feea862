"""Calibrated scores of pairs shown, judged or asked for: by the interaction student, or by dot products of vectors.

A score counts from the midnight after its pair was first shown, never before its item or the labels that taught the
student. A pair that was never shown has no such midnight: no impression could see it too early.
"""

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import QueryItemRelevance, RelevanceGrades
from jobs.lake import Lake
from jobs.progress import progress_bar
from jobs.relevance.dated_rows import TIME, commits, described, due_rows, text_hash, told_of
from jobs.relevance.distilled_pairs import texts_of_items, texts_of_queries
from jobs.relevance.fitted_students import FittedStudent
from jobs.relevance.pairs import PAIR, shown_pairs
from jobs.relevance.vectors import StoredVectors, midnight_after

logger = logging.getLogger(__name__)

PAIRS_PER_COMMIT = {"representation": 100_000, "interaction": 5_000}
"""What a killed job loses at most: some seconds of either student's work."""
PAIRS_AT_ONCE = 25_000
"""Of dot products: their vectors are in memory."""

Score = Callable[[pl.DataFrame], NDArray[np.float64]]


def score_pairs(lake: Lake, student: FittedStudent, *, most: int, requested: Path | None) -> None:
    """Bring `query_item_relevance` up to date.

    Args:
        lake: with the vectors of the representation student, where it is the one that scores.
        student: who scores.
        most: pairs that get a score: those shown most before the student's `labels_through`, then the later ones as
            they came, then those that were judged and never shown.
        requested: parquet file with query_id and item_id of further pairs.

    Raises:
        ValueError: the file is not there or has other columns; the vectors are of two students.
    """
    started = time.monotonic()
    wanted = _wanted(lake, student, most, requested)
    due = due_rows(lake, QueryItemRelevance, student, wanted, key=list(PAIR), hashed="query_item_relevance_hash")
    if due.append and due.rows.is_empty():
        logger.info("distill_relevance: all %s pairs are scored already", f"{due.num_kept:_}")
        return
    if not due.append and lake.exists(QueryItemRelevance) and (tags := lake.manifest(QueryItemRelevance).fingerprint):
        logger.warning(
            "distill_relevance: the scores are by %s; all are made anew by %s", described(tags), student.fingerprint
        )
    rows = due.rows.sort(~(pl.col("is_late") | pl.col("is_edited")), maintain_order=True)
    shards = list(rows.iter_slices(PAIRS_PER_COMMIT[student.kind]))
    append = due.append
    with (
        _scorer(lake, student) as score,
        progress_bar("distill_relevance: score pairs", total=len(rows), unit="pairs") as advance,
    ):
        for commit in commits(shards, append=append):
            with lake.writer(
                QueryItemRelevance, append=append, fingerprint=student.fingerprint.as_tags(), metadata=told_of(student)
            ) as writer:
                for shard in commit:
                    writer.write_shard(_rows(shard, score(shard)))
                    advance(len(shard))
            append = True
    logger.info(
        "distill_relevance: %s pairs scored by the %s student (%s edited), %s left as they are, %.1f s",
        f"{len(rows):_}",
        student.kind,
        f"{due.num_edited:_}",
        f"{due.num_kept:_}",
        time.monotonic() - started,
    )


def _wanted(lake: Lake, student: FittedStudent, most: int, requested: Path | None) -> pl.DataFrame:
    """query_id, item_id, texts, hash and known_from of the pairs that get a score."""
    shown = shown_pairs(lake, before=student.labels_through).select(*PAIR, "first_shown")
    judged = lake.scan(RelevanceGrades).select(PAIR).join(shown.lazy(), on=PAIR, how="anti").sort(PAIR).collect()
    seen = pl.concat([shown, judged], how="diagonal")
    pairs = seen.head(most)
    if len(seen) > most:
        logger.info(
            "distill_relevance: %s of %s shown or judged pairs get a score, the most shown (max_scored_pairs)",
            f"{most:_}",
            f"{len(seen):_}",
        )
    if requested is not None:
        asked = _requested(requested).join(shown, on=PAIR, how="left").join(pairs, on=PAIR, how="anti")
        pairs = pl.concat([pairs, asked])

    def hashed(column: str) -> pl.Expr:
        return pl.col(column).map_elements(text_hash, return_dtype=pl.String)

    queries = texts_of_queries(lake).with_columns(query_hash=hashed("query_text"))
    items = texts_of_items(lake).with_columns(item_hash=hashed("item_text"))
    found = (
        pairs.lazy()
        .join(queries, on="query_id", maintain_order="left")
        .join(items, on="item_id", maintain_order="left")
        .with_columns(
            hash=pl.concat_str("query_hash", "item_hash"),
            known_from=pl.max_horizontal("event_timestamp", midnight_after(pl.col("first_shown"))),
        )
        .drop("query_hash", "item_hash", "event_timestamp", "first_shown")
        .collect()
    )
    if num_left := len(pairs) - len(found):
        logger.info("distill_relevance: %s pairs have no score: no text of the query or the item", f"{num_left:_}")
    return found


def _requested(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise ValueError(
            f"distill_relevance: there is no file {path}.\n  what to do: mend requested_pairs, a parquet file with the "
            "columns query_id and item_id"
        )
    columns = pl.read_parquet_schema(path)
    if not set(PAIR) <= set(columns):
        raise ValueError(
            f"distill_relevance: {path} has the columns {', '.join(columns)}; expected query_id and item_id.\n"
            "  what to do: rename them, as the ids of `queries` and `items`"
        )
    return pl.read_parquet(path, columns=list(PAIR)).cast(pl.String).drop_nulls().unique(maintain_order=True)


@contextlib.contextmanager
def _scorer(lake: Lake, student: FittedStudent) -> Iterator[Score]:
    """How pairs with texts and ids are scored."""
    if student.kind == "interaction":
        model = student.load("distill_relevance")
        yield lambda pairs: _sigmoid(model.log_odds(pairs.select("query_text", "item_text").rows()))
        return
    assert student.scale is not None
    assert student.bias is not None
    scale, bias, scratch = student.scale, student.bias, lake.folder("scratch")
    with tempfile.TemporaryFile(dir=scratch) as of_queries, tempfile.TemporaryFile(dir=scratch) as of_items:
        vectors = StoredVectors(lake, "distill_relevance", (of_queries, of_items))
        yield lambda pairs: np.concatenate(
            [_sigmoid(scale * vectors.cosines(some) + bias) for some in pairs.iter_slices(PAIRS_AT_ONCE)]
            or [np.empty(0)]
        )


def _rows(shard: pl.DataFrame, scores: NDArray[np.float64]) -> pl.DataFrame:
    return shard.select(
        *PAIR,
        event_timestamp=pl.col("available").cast(TIME),
        created_timestamp=pl.col("available").cast(TIME),
        query_item_relevance=pl.Series(scores, dtype=pl.Float64),
        query_item_relevance_hash="hash",
    )


def _sigmoid(log_odds: NDArray[np.floating]) -> NDArray[np.float64]:
    probability: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -log_odds.astype(np.float64)))
    return probability
