"""Students learn from what was known, once; their tables are brought up to date, and dated when each row was known."""

import datetime as dt
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedders.query_split import side_of
from feature_repo.table_schemas import (
    ItemRelevanceEmbeddings,
    Items,
    Queries,
    QueryEmbeddings,
    QueryItemRelevance,
    RelevanceAnswers,
    RelevanceGrades,
    RelevanceMetrics,
    StudentCurves,
)
from jobs import distill_relevance
from jobs.distill_relevance import Config
from jobs.lake import Lake
from jobs.relevance.fitted_students import fitted_students
from jobs.relevance.kept_students import told_of_students
from jobs.relevance.student_settings import InteractionSettings, RepresentationSettings

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
THROUGH = START + 20 * DAY
"""`labels_through` of `search_lake`."""
FAST = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 32}
SMALL = {"max_train_pairs": 40, "max_validation_pairs": 40}
"""For tests in which it does not matter what the student is worth."""
DATED = (QueryEmbeddings, ItemRelevanceEmbeddings, QueryItemRelevance)


def distil(lake: Lake, encoder: Path, **changes: object) -> None:
    settings = {
        "backbone": str(encoder),
        "interaction": InteractionSettings(**FAST),  # type: ignore[arg-type]
        "representation": RepresentationSettings(**FAST),  # type: ignore[arg-type]
    }
    distill_relevance.run(lake, Config(**{**settings, **changes}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def distilled_once(tmp_path_factory: pytest.TempPathFactory, word_encoder: Path) -> dict[str, Path]:
    """Where the first test that wants it leaves its lake, distilled."""
    return {"root": tmp_path_factory.mktemp("distilled") / "lake", "encoder": word_encoder}


@pytest.fixture
def distilled(search_lake: Lake, distilled_once: dict[str, Path], now: dt.datetime) -> Lake:
    """`search_lake` after the step; a copy, to be changed."""
    if not distilled_once["root"].exists():
        distil(search_lake, distilled_once["encoder"])
        shutil.copytree(search_lake.root, distilled_once["root"], symlinks=True)
        return search_lake
    shutil.rmtree(search_lake.root)
    shutil.copytree(distilled_once["root"], search_lake.root, symlinks=True)
    return search_lake


def manifests(lake: Lake) -> dict[str, str]:
    return {schema.__name__: lake.manifest(schema).digest for schema in distill_relevance.WRITES}


def change_grades(lake: Lake, side: str, days: range) -> None:
    """Turn round what people said of the queries of a side that were first shown on some days."""
    queries = queries_of(side, days)
    turned = pl.when(pl.col("query_id").is_in(queries)).then(3.0 - pl.col("grade")).otherwise("grade")
    lake.write(RelevanceGrades, lake.read(RelevanceGrades).with_columns(grade=turned))


def queries_of(side: str, days: range) -> list[str]:
    """Queries of a side that were first shown on some days."""
    texts = [f"maker{n % 3} kind{n // 3 % 3} word{n % 9} x{n}" for n in range(119)]
    return [f"q{n:03}" for n, text in enumerate(texts) if side_of(text) == side and n % 40 in days]


class PowerCut(BaseException):
    pass


class CutsPower(logging.Handler):
    """Ends the run as a kill would: at a line of the log."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line

    def emit(self, record: logging.LogRecord) -> None:
        if self.line in record.getMessage():
            raise PowerCut


def killed_at(line: str, lake: Lake, encoder: Path, **changes: object) -> None:
    handler, logger = CutsPower(line), logging.getLogger("jobs")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with pytest.raises(PowerCut):
            distil(lake, encoder, **changes)
    finally:
        logger.removeHandler(handler)


def test_every_table_is_written_by_the_student(distilled: Lake):
    student = fitted_students(distilled)["representation"]
    assert student.is_whole()
    assert student.labels_through == THROUGH
    for schema in DATED:
        assert distilled.manifest(schema).fingerprint == student.fingerprint.as_tags()
    assert distilled.manifest(QueryEmbeddings).rows == 119
    assert distilled.manifest(ItemRelevanceEmbeddings).rows == 35
    curve = distilled.read(StudentCurves)
    assert curve.select("student", "epoch").rows() == [("representation", 0), ("representation", 1)]
    assert curve.get_column("is_best").sum() == 1
    assert curve.get_column("validation_roc_auc").max() > 0.8


def test_a_score_is_the_probability_that_the_vectors_of_the_pair_give(distilled: Lake):
    scores, times = distilled.read(QueryItemRelevance), ["event_timestamp", "created_timestamp"]
    pairs = scores.join(distilled.read(QueryEmbeddings).drop(times), on="query_id")
    pairs = pairs.join(distilled.read(ItemRelevanceEmbeddings).drop(times), on="item_id")
    assert len(pairs) == len(scores)
    queries, items = (
        np.array(pairs.get_column(name).to_list()) for name in ("query_relevance_embedding", "item_relevance_embedding")
    )
    log_odds = pairs.get_column("query_relevance_scale") * (queries * items).sum(axis=1)
    expected = 1 / (1 + np.exp(-(log_odds + pairs.get_column("query_relevance_bias")).to_numpy()))
    np.testing.assert_allclose(pairs.get_column("query_item_relevance").to_numpy(), expected, atol=1e-6)
    texts = pairs.join(distilled.read(Queries), on="query_id").join(distilled.read(Items).drop(times), on="item_id")
    by_model = (
        fitted_students(distilled)["representation"].load("test").score(texts.select("query_text", "title").rows())
    )
    np.testing.assert_allclose(texts.get_column("query_item_relevance").to_numpy(), by_model, atol=1e-4)


def test_scores_are_calibrated_and_know_relevance(distilled: Lake):
    pairs = distilled.read(QueryItemRelevance).join(distilled.read(RelevanceGrades), on=["query_id", "item_id"])
    good = pairs.get_column("grade") >= 2.0
    assert abs(pairs.get_column("query_item_relevance").mean() - good.mean()) < 0.1
    assert pairs.filter(good).get_column("query_item_relevance").mean() > 0.5
    assert pairs.filter(~good).get_column("query_item_relevance").mean() < 0.25


def test_no_row_is_dated_before_the_labels_or_before_it_was_known(distilled: Lake):
    for schema in DATED:
        table = distilled.read(schema)
        assert table.get_column("event_timestamp").min() == THROUGH
        assert table.get_column("created_timestamp").equals(table.get_column("event_timestamp"))
    queries = dict(distilled.read(QueryEmbeddings).select("query_id", "event_timestamp").rows())
    assert (queries["q005"], queries["q019"], queries["q020"], queries["q033"]) == (
        THROUGH,
        THROUGH,
        START + 21 * DAY,
        START + 34 * DAY,
    )
    items = dict(distilled.read(ItemRelevanceEmbeddings).select("item_id", "event_timestamp").rows())
    assert (items["i00"], items["i30"]) == (THROUGH, START + 30 * DAY)
    scores = distilled.read(QueryItemRelevance)
    for query, item, at in scores.select("query_id", "item_id", "event_timestamp").rows():
        midnight = START + (int(query[1:]) % 40 + 1) * DAY
        assert at == max(THROUGH, midnight, items[item] if int(item[1:]) >= 27 else START)


def test_what_has_no_text_has_no_row(distilled: Lake):
    assert "i35" not in distilled.read(ItemRelevanceEmbeddings).get_column("item_id")
    assert "q119" not in distilled.read(QueryEmbeddings).get_column("query_id")
    scores = distilled.read(QueryItemRelevance)
    assert scores.filter((pl.col("item_id") == "i35") | (pl.col("query_id") == "q119")).is_empty()


def test_a_second_run_trains_embeds_and_scores_nothing(
    distilled: Lake, word_encoder: Path, caplog: pytest.LogCaptureFixture
):
    before = manifests(distilled)
    with caplog.at_level(logging.INFO):
        distil(distilled, word_encoder)
    assert manifests(distilled) == before
    assert "kept: the representation student" in caplog.text
    assert "all 119 query vectors are there already" in caplog.text


def test_a_label_of_after_labels_through_teaches_nothing(distilled: Lake, word_encoder: Path):
    before = distilled.manifest(StudentCurves)
    change_grades(distilled, "train", range(20, 40))
    change_grades(distilled, "validation", range(20, 40))
    distil(distilled, word_encoder, refit_share=0.0)
    assert distilled.manifest(StudentCurves) == before


def test_a_label_of_before_teaches(distilled: Lake, word_encoder: Path):
    before = distilled.manifest(StudentCurves)
    change_grades(distilled, "train", range(20))
    distil(distilled, word_encoder)
    assert (
        fitted_students(distilled)["representation"].fingerprint.as_tags()
        != before.metadata["students"]["representation"]["fingerprint"]
    )


def test_an_answer_about_a_pair_shown_later_teaches_nothing(distilled: Lake, word_encoder: Path):
    before = distilled.manifest(StudentCurves)
    later = queries_of("train", range(20, 40))
    grades, answers = distilled.read(RelevanceGrades), distilled.read(RelevanceAnswers)
    pool = grades.filter(pl.col("query_id").is_in(later)).select("query_id", "item_id")
    distilled.write(RelevanceGrades, grades.join(pool, on=["query_id", "item_id"], how="anti"))
    planted = answers.drop("query_id", "item_id").head(1).join(pool, how="cross").select(answers.columns)
    rewrite_answers(distilled, pl.concat([answers, planted]))
    distil(distilled, word_encoder, refit_share=0.0)
    assert distilled.manifest(StudentCurves) == before


def rewrite_answers(lake: Lake, answers: pl.DataFrame, **metadata: object) -> None:
    manifest = lake.manifest(RelevanceAnswers)
    lake.write(RelevanceAnswers, answers, fingerprint=manifest.fingerprint, metadata={**manifest.metadata, **metadata})


def test_answers_about_pairs_that_nobody_judged_teach(distilled: Lake, word_encoder: Path):
    num_before = distilled.manifest(StudentCurves).metadata["students"]["representation"]["num_pairs"]
    early = queries_of("train", range(20))
    distilled.write(RelevanceGrades, distilled.read(RelevanceGrades).filter(~pl.col("query_id").is_in(early[:5])))
    distil(distilled, word_encoder)
    assert distilled.manifest(StudentCurves).metadata["students"]["representation"]["num_pairs"] == num_before


def test_test_queries_teach_nothing_and_are_judged(distilled: Lake, word_encoder: Path):
    before = distilled.manifest(StudentCurves), distilled.manifest(RelevanceMetrics)
    change_grades(distilled, "test", range(40))
    distil(distilled, word_encoder, refit_share=0.0)
    assert distilled.manifest(StudentCurves) == before[0]
    assert distilled.manifest(RelevanceMetrics).digest != before[1].digest


def test_all_scorers_are_judged_on_the_pairs_that_the_teacher_answered(distilled: Lake):
    metrics = distilled.read(RelevanceMetrics)
    scorers = ["word overlap", "frozen encoder", "teacher", "representation"]
    assert metrics.get_column("scorer").unique(maintain_order=True).to_list() == scorers
    of_all = metrics.filter(part="all", metric="roc_auc")
    assert of_all.get_column("num_pairs").n_unique() == 1
    value = dict(of_all.select("scorer", "value").rows())
    assert value["teacher"] == 1.0
    assert value["representation"] > value["frozen encoder"]
    assert (of_all.get_column("low") <= of_all.get_column("value")).all()


def edit(lake: Lake, item: str, title: str) -> None:
    new = pl.when(pl.col("item_id") == item).then(pl.lit(title)).otherwise("title")
    lake.write(Items, lake.read(Items).with_columns(title=new))


def test_an_edited_title_alone_is_embedded_and_scored_again_dated_now(
    distilled: Lake, word_encoder: Path, caplog: pytest.LogCaptureFixture, now: dt.datetime
):
    before = {schema: distilled.read(schema) for schema in DATED}
    edit(distilled, "i30", "maker1 kind2")
    with caplog.at_level(logging.INFO):
        distil(distilled, word_encoder)
    assert "1 item texts embedded (1 edited), 34 left as they are" in caplog.text
    for schema in DATED:
        after = distilled.read(schema)
        new = after.filter(pl.col("event_timestamp") == now)
        assert after.filter(pl.col("event_timestamp") != now).equals(before[schema])
        rows = 0 if schema is QueryEmbeddings else before[schema].filter(item_id="i30").height
        assert new.height == rows
    assert distilled.read(ItemRelevanceEmbeddings).get_column("item_relevance_vector_id").is_unique().all()


def test_an_edit_of_the_same_moment_is_later_than_the_row_it_replaces(
    distilled: Lake, word_encoder: Path, now: dt.datetime
):
    for title in ("maker1 kind2", "maker2 kind1"):
        edit(distilled, "i30", title)
        distil(distilled, word_encoder)
    times = distilled.read(ItemRelevanceEmbeddings).filter(item_id="i30").get_column("event_timestamp").sort()
    assert times.to_list() == [START + 30 * DAY, now, now + dt.timedelta(microseconds=1)]


def test_another_student_makes_every_row_anew_and_edits_keep_their_time(
    distilled: Lake, word_encoder: Path, now: dt.datetime
):
    edit(distilled, "i30", "maker1 kind2")
    distil(distilled, word_encoder)
    distilled.now = lambda: now + DAY
    distil(distilled, word_encoder, seed=1, **SMALL)
    student = fitted_students(distilled)["representation"]
    for schema in DATED:
        assert distilled.manifest(schema).fingerprint == student.fingerprint.as_tags()
    items = distilled.read(ItemRelevanceEmbeddings)
    assert len(items) == 35
    assert items.filter(item_id="i30").get_column("event_timestamp").to_list() == [now]
    assert items.filter(item_id="i00").get_column("event_timestamp").to_list() == [THROUGH]
    scores = distilled.read(QueryItemRelevance).filter(item_id="i30")
    assert set(scores.get_column("event_timestamp")) == {now}
    (folder,) = (distilled.root / "embedders" / "mkd").iterdir()
    assert [path.name for path in folder.iterdir()] == ["representation"]


def test_a_run_killed_while_a_table_is_written_anew_dates_no_edit_back(
    distilled: Lake, word_encoder: Path, now: dt.datetime
):
    edited = ["i29", "i30", "i31"]
    for n, item in enumerate(edited):
        edit(distilled, item, f"maker1 kind2 x{n}")
    distil(distilled, word_encoder)
    distilled.now = lambda: now + DAY
    killed_at("item_relevance_embeddings: ", distilled, word_encoder, seed=1, shard_size=1, **SMALL)
    assert distilled.read(ItemRelevanceEmbeddings).get_column("item_id").sort().to_list() == edited  # one commit
    distil(distilled, word_encoder, seed=1, **SMALL)
    items = distilled.read(ItemRelevanceEmbeddings)
    assert len(items) == 35
    times = items.filter(pl.col("item_id").is_in(edited)).get_column("event_timestamp")
    assert times.to_list() == [now] * 3


def test_a_killed_training_goes_on_from_its_last_epoch_to_the_same_student(
    distilled: Lake, word_encoder: Path, caplog: pytest.LogCaptureFixture
):
    student = fitted_students(distilled)["representation"]
    shutil.rmtree(student.folder)
    killed_at("epoch 2 of", distilled, word_encoder)
    with caplog.at_level(logging.INFO):
        distil(distilled, word_encoder)
    assert "goes on after epoch 1" in caplog.text
    assert fitted_students(distilled)["representation"].fingerprint == student.fingerprint
    assert [path.name for path in (distilled.root / "embedders" / "mkd").iterdir()] == [student.folder.parent.name]


def test_a_student_that_was_trained_before_the_kill_is_not_trained_again(
    search_lake: Lake, word_encoder: Path, caplog: pytest.LogCaptureFixture
):
    both = {"students": ("representation", "interaction"), **SMALL}
    killed_at("interaction, epoch 1 of", search_lake, word_encoder, **both)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        distil(search_lake, word_encoder, **both)
    assert "representation goes on after epoch 2" in caplog.text
    assert "representation, epoch" not in caplog.text
    assert "interaction, epoch 1 of" in caplog.text
    assert set(fitted_students(search_lake)) == {"representation", "interaction"}
    assert not list((search_lake.root / "embedders" / "mkd").glob("unfinished*"))


def test_students_are_kept_until_the_labels_have_moved_by_some_days(distilled: Lake, word_encoder: Path):
    before = distilled.manifest(StudentCurves)
    rewrite_answers(distilled, distilled.read(RelevanceAnswers), labels_through=(THROUGH + 9 * DAY).isoformat())
    distil(distilled, word_encoder, refit_after_days=10)
    assert distilled.manifest(StudentCurves) == before
    distil(distilled, word_encoder, refit_after_days=9)
    assert fitted_students(distilled)["representation"].labels_through == THROUGH + 9 * DAY
    assert all(distilled.read(schema).get_column("event_timestamp").min() == THROUGH + 9 * DAY for schema in DATED)


def test_students_that_have_seen_labels_of_after_the_cut_do_not_stay(
    distilled: Lake, word_encoder: Path, caplog: pytest.LogCaptureFixture
):
    moved = THROUGH - DAY
    rewrite_answers(distilled, distilled.read(RelevanceAnswers), labels_through=moved.isoformat())
    with caplog.at_level(logging.INFO):
        distil(distilled, word_encoder, refit_share=1.0)
    assert "it has seen labels up to 2025-06-21 00:00, later than 2025-06-20 00:00 now" in caplog.text
    assert fitted_students(distilled)["representation"].labels_through == moved


@pytest.mark.parametrize(("folder", "through"), [(None, THROUGH), ("teachers/trained", THROUGH + 9 * DAY)])
def test_a_student_that_is_added_learns_as_of_the_other_unless_its_teacher_has_seen_more(
    distilled: Lake, word_encoder: Path, folder: str | None, through: dt.datetime
):
    moved = (THROUGH + 9 * DAY).isoformat()
    rewrite_answers(distilled, distilled.read(RelevanceAnswers), labels_through=moved, folder=folder)
    distil(distilled, word_encoder, students=("representation", "interaction"), refit_share=1.0)
    assert {kind: one.labels_through for kind, one in fitted_students(distilled).items()} == {
        "representation": through,
        "interaction": through,
    }


def test_an_interaction_student_scores_the_pairs_and_leaves_the_other_as_it_is(
    distilled: Lake, word_encoder: Path, caplog: pytest.LogCaptureFixture
):
    before = fitted_students(distilled)["representation"]
    distil(distilled, word_encoder, students=("representation", "interaction"))
    students = fitted_students(distilled)
    assert students["representation"] == before
    assert distilled.manifest(QueryItemRelevance).fingerprint == students["interaction"].fingerprint.as_tags()
    assert distilled.manifest(QueryEmbeddings).fingerprint == before.fingerprint.as_tags()
    pairs = distilled.read(QueryItemRelevance).join(distilled.read(Queries), on="query_id")
    pairs = pairs.join(distilled.read(Items), on="item_id").head(50)
    by_model = students["interaction"].load("test").score(pairs.select("query_text", "title").rows())
    np.testing.assert_allclose(pairs.get_column("query_item_relevance").to_numpy(), by_model, atol=1e-5)
    assert set(distilled.read(StudentCurves).get_column("student")) == {"interaction", "representation"}
    assert "interaction" in set(distilled.read(RelevanceMetrics).get_column("scorer"))
    auc = {kind: told["validation_roc_auc"] for kind, told in told_of_students(distilled).items()}
    worse = "orders held-out pairs worse than the representation student" in caplog.text
    assert worse == (auc["interaction"] < auc["representation"])


def test_without_a_representation_student_there_are_no_vectors(search_lake: Lake, word_encoder: Path):
    distil(search_lake, word_encoder, students=("interaction",), **SMALL)
    assert search_lake.manifest(QueryEmbeddings).rows == search_lake.manifest(ItemRelevanceEmbeddings).rows == 0
    assert search_lake.manifest(QueryItemRelevance).rows > 0


def test_a_teacher_without_scores_teaches_its_reasons(search_lake: Lake, word_encoder: Path):
    rewrite_answers(search_lake, search_lake.read(RelevanceAnswers).with_columns(score=pl.lit(None, pl.Float64)))
    distil(search_lake, word_encoder, **SMALL)
    metrics = search_lake.read(RelevanceMetrics).filter(scorer="teacher", part="all", metric="roc_auc")
    assert metrics.get_column("value").to_list() == [1.0]  # by its labels


def test_a_lake_without_impressions_is_dated_now(search_lake: Lake, word_encoder: Path, now: dt.datetime):
    shutil.rmtree(search_lake.root / "impressions")
    rewrite_answers(search_lake, search_lake.read(RelevanceAnswers), labels_through=None)
    distil(search_lake, word_encoder, **SMALL)
    scores = search_lake.read(QueryItemRelevance)  # of judged pairs: nothing was shown
    judged = search_lake.read(RelevanceGrades)
    for key, vectors in (("query_id", QueryEmbeddings), ("item_id", ItemRelevanceEmbeddings)):  # those with a text
        judged = judged.join(search_lake.read(vectors), on=key, how="semi")
    assert 600 < judged.height < search_lake.manifest(RelevanceGrades).rows
    pair = ("query_id", "item_id")
    assert set(scores.select(pair).iter_rows()) == set(judged.select(pair).iter_rows())
    assert set(scores.get_column("event_timestamp")) == {now}
    assert set(search_lake.read(QueryEmbeddings).get_column("event_timestamp")) == {now}
    assert set(search_lake.read(ItemRelevanceEmbeddings).get_column("event_timestamp")) == {now}


def test_people_must_have_judged_something(search_lake: Lake, word_encoder: Path):
    search_lake.write(RelevanceGrades, RelevanceGrades.create_empty())
    with pytest.raises(ValueError, match=r"judged no pair that was first shown before 2025-06-21(.|\n)*ingest"):
        distil(search_lake, word_encoder)


def test_where_relevance_is_switched_off_all_tables_are_empty_and_torch_is_not_loaded(search_lake: Lake):
    search_lake.write(RelevanceAnswers, RelevanceAnswers.create_empty(), metadata={"enabled": False})
    code = """
import sys
from pathlib import Path
from jobs import distill_relevance
from jobs.lake import Lake
distill_relevance.run(Lake(Path(sys.argv[1])), distill_relevance.Config())
assert not {'torch', 'transformers', 'sklearn'} & set(sys.modules)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(search_lake.root)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(search_lake.manifest(schema).rows == 0 for schema in distill_relevance.WRITES)
    assert fitted_students(search_lake) == {}
