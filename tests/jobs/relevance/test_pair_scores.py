"""Which pairs get a score, and from when."""

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import (
    Impressions,
    ItemRelevanceEmbeddings,
    Queries,
    QueryEmbeddings,
    QueryItemRelevance,
)
from jobs.lake import Lake
from jobs.relevance.fitted_students import FittedStudent
from jobs.relevance.pair_scores import score_pairs
from jobs.relevance.pairs import shown_pairs
from jobs.relevance.vectors import midnight_after

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
THROUGH = START + 20 * DAY
STUDENT = Fingerprint("mkd_representation", "w", "t", "relevance_v1", "mean", 4, "l2", "float32", THROUGH.isoformat())


@pytest.fixture
def student(search_lake: Lake, tmp_path: Path) -> FittedStudent:
    """Its vectors are in `search_lake`, drawn at random."""
    rng = np.random.default_rng(0)
    for schema, entity, ids in (
        (QueryEmbeddings, "query", [f"q{n:03}" for n in range(119)]),
        (ItemRelevanceEmbeddings, "item", [f"i{n:02}" for n in range(35)]),
    ):
        drawn = rng.normal(size=(len(ids), 4))
        unit = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        rows = pl.DataFrame(
            {
                f"{entity}_id": ids,
                "event_timestamp": [THROUGH] * len(ids),
                "created_timestamp": [THROUGH] * len(ids),
                f"{entity}_relevance_vector_id": range(len(ids)),
                f"{entity}_relevance_embedding": pl.Series(unit.tolist(), dtype=pl.List(pl.Float32)),
                f"{entity}_relevance_hash": ids,
                **({"query_relevance_scale": 4.0, "query_relevance_bias": -1.0} if entity == "query" else {}),
            }
        )
        search_lake.write(schema, rows, fingerprint=STUDENT.as_tags())
    return FittedStudent("representation", STUDENT, THROUGH, tmp_path, "", scale=4.0, bias=-1.0)


def with_texts(lake: Lake, pairs: pl.DataFrame) -> pl.DataFrame:
    blank = (pl.col("item_id") == "i35") | (pl.col("query_id") == "q119")
    return pairs.filter(~blank).select("query_id", "item_id")


def test_the_pairs_that_were_shown_most_are_scored(search_lake: Lake, student: FittedStudent):
    score_pairs(search_lake, student, most=50, requested=None)
    scored = search_lake.read(QueryItemRelevance).select("query_id", "item_id")
    assert scored.sort(scored.columns).equals(
        with_texts(search_lake, shown_pairs(search_lake, before=THROUGH).head(50)).sort("query_id", "item_id")
    )


def test_a_pair_that_becomes_popular_after_the_labels_is_not_scored_for_it(search_lake: Lake, student: FittedStudent):
    log = search_lake.read(Impressions)
    popular = log.filter(pl.col("impression_id") == "q039-0")
    later = [popular.with_columns(impression_id=pl.lit(f"later {n}")) for n in range(20)]
    search_lake.write(Impressions, pl.concat([log, *later]))
    score_pairs(search_lake, student, most=50, requested=None)
    assert search_lake.read(QueryItemRelevance).filter(query_id="q039").is_empty()


def test_more_pairs_are_added_and_the_others_left_as_they_are(search_lake: Lake, student: FittedStudent):
    score_pairs(search_lake, student, most=50, requested=None)
    before = search_lake.read(QueryItemRelevance)
    score_pairs(search_lake, student, most=60, requested=None)
    after = search_lake.read(QueryItemRelevance)
    assert len(after) == len(with_texts(search_lake, shown_pairs(search_lake, before=THROUGH).head(60)))
    assert after.head(len(before)).equals(before)
    manifest = search_lake.manifest(QueryItemRelevance)
    score_pairs(search_lake, student, most=60, requested=None)
    assert search_lake.manifest(QueryItemRelevance) == manifest


def test_a_requested_pair_counts_from_the_labels_on_where_it_was_never_shown(
    search_lake: Lake, student: FittedStudent, tmp_path: Path
):
    shown = shown_pairs(search_lake, before=THROUGH).filter(query_id="q033").row(0, named=True)
    never = set(shown_pairs(search_lake, before=THROUGH).filter(query_id="q001").get_column("item_id"))
    item = next(f"i{n:02}" for n in range(27) if f"i{n:02}" not in never)
    pairs = [("q033", shown["item_id"]), ("q001", item), ("q001", item), ("q001", "i28"), ("unknown", "i00")]
    pl.DataFrame(pairs, schema=["query_id", "item_id"], orient="row").write_parquet(tmp_path / "pairs.parquet")
    score_pairs(search_lake, student, most=0, requested=tmp_path / "pairs.parquet")
    dated = {(q, i): at for q, i, at in search_lake.read(QueryItemRelevance)[:, :3].rows()}
    midnight = START + 34 * DAY
    assert dated == {("q033", shown["item_id"]): midnight, ("q001", item): THROUGH, ("q001", "i28"): START + 30 * DAY}


def test_a_changed_query_is_scored_again_from_now_on(search_lake: Lake, student: FittedStudent, now: dt.datetime):
    score_pairs(search_lake, student, most=1000, requested=None)
    before = search_lake.read(QueryItemRelevance)
    text = pl.when(pl.col("query_id") == "q007").then(pl.lit("maker0")).otherwise("query_text")
    search_lake.write(Queries, search_lake.read(Queries).with_columns(query_text=text))
    score_pairs(search_lake, student, most=1000, requested=None)
    new = search_lake.read(QueryItemRelevance)[len(before) :]
    assert set(new.get_column("query_id")) == {"q007"}
    assert set(new.get_column("event_timestamp")) == {now}


def test_a_score_is_the_calibrated_probability_of_the_cosine(search_lake: Lake, student: FittedStudent):
    score_pairs(search_lake, student, most=1000, requested=None)
    vector = {
        **dict(search_lake.read(QueryEmbeddings).select("query_id", "query_relevance_embedding").rows()),
        **dict(search_lake.read(ItemRelevanceEmbeddings).select("item_id", "item_relevance_embedding").rows()),
    }
    for query, item, score in (
        search_lake.read(QueryItemRelevance).select("query_id", "item_id", "query_item_relevance").rows()
    ):
        assert score == pytest.approx(1 / (1 + np.exp(1.0 - 4.0 * np.dot(vector[query], vector[item]))), abs=1e-6)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(None, "there is no file"), (["query", "item_id"], "has the columns query, item_id; expected query_id")],
)
def test_requested_pairs_that_cannot_be_read_stop_it(
    search_lake: Lake, student: FittedStudent, tmp_path: Path, columns: list[str] | None, expected: str
):
    if columns is not None:
        pl.DataFrame({name: ["a"] for name in columns}).write_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=expected):
        score_pairs(search_lake, student, most=10, requested=tmp_path / "pairs.parquet")


def test_the_midnight_after_a_time_is_the_end_of_its_day():
    times = pl.DataFrame({"at": [START, START + DAY / 2, START - dt.timedelta(microseconds=1)]})
    found = times.select(midnight_after(pl.col("at"))).to_series().to_list()
    assert found == [START + DAY, START + DAY, START]
