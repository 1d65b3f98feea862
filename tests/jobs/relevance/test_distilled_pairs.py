"""What students learn from: drawn alike every time, a few pairs of each query first, texts as they are served."""

import datetime as dt

import polars as pl
import pytest

from embedders.query_split import side_of
from feature_repo.table_schemas import Queries, RelevanceAnswers, RelevanceGrades
from jobs.lake import Lake
from jobs.relevance.distilled_pairs import PAIRS_AT_ONCE_OF_A_QUERY, LearntPairs, judged_test_pairs, learnt_pairs

THROUGH = dt.datetime(2025, 6, 21, tzinfo=dt.timezone.utc)


def drawn(lake: Lake, most: int = 10_000, seed: int = 0, through: dt.datetime | None = THROUGH) -> LearntPairs:
    return learnt_pairs(
        lake, good_from=2.0, labels_through=through, max_train_pairs=most, max_validation_pairs=most, seed=seed
    )


def test_each_side_has_its_own_queries_and_its_texts(search_lake: Lake):
    pairs = drawn(search_lake)
    for side, frame in (("train", pairs.train), ("validation", pairs.validation)):
        assert {side_of(query) for query in frame.get_column("query_text")} == {side}
    row = pairs.train.filter(item_id="i00").row(0, named=True)
    assert row["item_text"] == "maker0 kind0 word0"
    assert "i35" not in pairs.train.get_column("item_id")
    assert pairs.validation.get_column("human_label").null_count() == 0


def test_a_draw_takes_a_few_pairs_of_many_queries_before_more_of_one(search_lake: Lake):
    everything = drawn(search_lake).train
    num_queries = everything.get_column("query_id").n_unique()
    some = drawn(search_lake, most=PAIRS_AT_ONCE_OF_A_QUERY * num_queries).train
    assert some.get_column("query_id").n_unique() == num_queries
    assert some.group_by("query_id").len().get_column("len").max() <= PAIRS_AT_ONCE_OF_A_QUERY + 1
    few = drawn(search_lake, most=20).train
    assert len(few) == 20
    assert few.join(everything, on=["query_id", "item_id"], how="anti").is_empty()


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_tables(search_lake: Lake):
    before = drawn(search_lake, most=30).hashes()
    grades = search_lake.read(RelevanceGrades)
    search_lake.write(RelevanceGrades, grades.sample(fraction=1.0, shuffle=True, seed=3))
    assert drawn(search_lake, most=30).hashes() == before
    assert drawn(search_lake, most=30, seed=1).hashes() != before


def test_a_hash_tells_of_text_label_score_and_reasons(search_lake: Lake):
    before = set(drawn(search_lake).hashes())
    answers, manifest = search_lake.read(RelevanceAnswers), search_lake.manifest(RelevanceAnswers)
    pair = drawn(search_lake).train.row(0, named=True)
    is_pair = (pl.col("query_id") == pair["query_id"]) & (pl.col("item_id") == pair["item_id"])
    score = pl.when(is_pair).then(0.5).otherwise("score")
    search_lake.write(RelevanceAnswers, answers.with_columns(score=score), metadata=manifest.metadata)
    assert len(before - set(drawn(search_lake).hashes())) == 1


def test_test_pairs_are_those_that_the_teacher_answered_or_all_without_it(search_lake: Lake):
    manifest, answers = search_lake.manifest(RelevanceAnswers), search_lake.read(RelevanceAnswers)
    found = judged_test_pairs(search_lake, good_from=2.0, most=40, seed=0)
    assert len(found) == 40
    assert found.get_column("teacher").null_count() == 0
    assert {side_of(query) for query in found.get_column("query_text")} == {"test"}
    of_test = answers.join(found, on=["query_id", "item_id"], how="semi").head(10)
    search_lake.write(RelevanceAnswers, of_test, metadata=manifest.metadata)
    found = judged_test_pairs(search_lake, good_from=2.0, most=40, seed=0)
    assert len(found) == 40
    assert found.get_column("teacher").null_count() == 40


def test_where_nothing_is_of_a_training_query_it_says_what_to_do(search_lake: Lake):
    grades, queries = search_lake.read(RelevanceGrades), search_lake.read(Queries)
    test = [one for one, text in queries.rows() if side_of(text) == "test"]
    search_lake.write(RelevanceGrades, grades.filter(pl.col("query_id").is_in(test)))
    metadata = search_lake.manifest(RelevanceAnswers).metadata
    search_lake.write(RelevanceAnswers, RelevanceAnswers.create_empty(), metadata=metadata)
    with pytest.raises(ValueError, match=r"none of them is of a training query(.|\n)*ingest grades of more queries"):
        drawn(search_lake)
