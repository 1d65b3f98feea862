"""Why an item answers a query: the stored answer where there is one, else one asked now; students as they score."""

import datetime as dt
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from embedders.built_chains import built_chain
from embedders.causal_lm import CausalLM
from embedders.ellm_rele import RelevanceTeacher
from embedders.query_split import side_of
from embedders.relevance_prompts import STEPS, QueryItem
from feature_repo import table_schemas as tables
from jobs import distill_relevance, explain_pair, flow, label_relevance
from jobs.admission import TableError
from jobs.cli import app
from jobs.explain_pair import Explanation
from jobs.lake import Lake
from jobs.relevance.answer_cache import AnswerCache
from jobs.relevance.disclosed_text import Disclosure
from jobs.relevance.fitted_students import fitted_students
from jobs.relevance.teachers import TeacherConfig

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
ITEMS = {f"i{n}": (f"maker{n % 2} kind{n // 2} , 3 in", f"maker{n % 2}", f"kind{n // 2}") for n in range(8)}
QUERIES = {f"q{n:02}": f"maker{n % 2} kind{n // 2 % 4} {n} in" for n in range(60)}


def write_items(lake: Lake, **edited: str) -> None:
    rows = [
        {"item_id": item, "title": edited.get(item, title), "brand": brand, "category": category}
        for item, (title, brand, category) in ITEMS.items()
    ]
    times = {"event_timestamp": pl.lit(NOW), "created_timestamp": pl.lit(NOW)}
    frame = pl.concat([tables.Items.create_empty(), pl.DataFrame(rows)], how="diagonal_relaxed").with_columns(**times)
    lake.write(tables.Items, frame)


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """60 queries, each judged with four items: good where thing and brand are those asked for. Nothing was shown."""
    lake = Lake(tmp_path_factory.mktemp("judged") / "lake", now=lambda: NOW)
    write_items(lake)
    lake.write(tables.Queries, pl.DataFrame(list(QUERIES.items()), schema=["query_id", "query_text"], orient="row"))
    grades = [(f"q{n:02}", f"i{(n + k) % 8}", 0.0 if k else 3.0) for n in range(60) for k in range(4)]
    lake.write(tables.RelevanceGrades, pl.DataFrame(grades, schema=["query_id", "item_id", "grade"], orient="row"))
    lake.write(tables.Impressions, tables.Impressions.create_empty())
    return lake


@pytest.fixture(scope="session")
def distilled(judged: Lake, word_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The same, judged by rules, with students of both kinds. Read only: copy to change."""
    root = tmp_path_factory.mktemp("distilled")
    shutil.copytree(judged.root, root / "lake", symlinks=True)
    lake = Lake(root / "lake", now=lambda: NOW)
    label_relevance.run(lake, label_relevance.Config(enabled=True))
    students = ("representation", "interaction")
    distill_relevance.run(lake, distill_relevance.Config(backbone=str(word_encoder), students=students, max_tokens=30))
    return lake


def copied(lake: Lake, folder: Path) -> Lake:
    shutil.copytree(lake.root, folder / "copy", symlinks=True)
    return Lake(folder / "copy", now=lambda: NOW)


@pytest.fixture
def answered(distilled: Lake, tmp_path: Path) -> Lake:
    """A copy of `distilled`, to be changed."""
    return copied(distilled, tmp_path)


def explain(lake: Lake, query: str, item: str, width: int = 100, **more: Any) -> tuple[Explanation, str]:
    page = io.StringIO()
    found = explain_pair.run(
        lake, query, item, labelling=more.pop("labelling", label_relevance.Config(enabled=True)),
        console=Console(file=page, width=width), **more,
    )  # fmt: skip
    return found, page.getvalue()


def num_kept(lake: Lake) -> int:
    with AnswerCache.open(lake.root / label_relevance.CACHE) as cache:
        return len(cache)


def test_a_stored_answer_is_shown_with_its_steps_and_nobody_is_asked(answered: Lake):
    before = num_kept(answered)
    stored = answered.read(tables.RelevanceAnswers)
    assert len(stored) > 100
    for row in stored.head(6).iter_rows(named=True):
        found, page = explain(answered, QUERIES[row["query_id"]], row["item_id"])
        assert (found.teacher.source, found.teacher.dated, found.verdict) == ("stored answer", NOW, row["label"])
        assert found.teacher.answer is not None
        assert found.teacher.answer.reasoning is not None
        assert list(found.teacher.answer.reasoning.matches()) == [row[f"{step}_match"] for step in STEPS]
        assert found.teacher.answer.agreement == row["agreement"]
        assert f"verdict {row['label']}, says the teacher (rules)" in page
        assert "stored answer" in page
        assert "2026-01-01 00:00 UTC" in page
    assert num_kept(answered) == before


def test_a_query_that_nobody_asked_is_asked_now_and_kept(answered: Lake):
    before = num_kept(answered)
    found, page = explain(answered, "blue  maker1 kind2", "i5")
    pair = QueryItem("blue maker1 kind2", ITEMS["i5"][0], "kind2", "maker1", None)
    assert found.pair == pair
    assert (found.teacher.source, found.teacher.is_of_lake, found.query_ids) == ("asked now", True, ())
    assert found.teacher.answer is not None
    assert found.verdict == built_chain(pair).label == "good"
    assert "nobody has asked this query" in page
    assert num_kept(answered) == before + 1
    again, _ = explain(answered, "blue maker1 kind2", "i5")
    assert (again.teacher.source, again.teacher.answer) == ("asked before", found.teacher.answer)
    assert num_kept(answered) == before + 1


def test_an_edited_item_is_asked_about_anew(answered: Lake):
    write_items(answered, i0="maker0 kind3")
    found, _ = explain(answered, QUERIES["q00"], "i0")
    assert found.teacher.source == "asked now"
    assert found.pair.title == "maker0 kind3"


def test_case_and_blanks_do_not_make_another_query_and_the_spelling_asked_for_wins(answered: Lake):
    found, _ = explain(answered, f"  {QUERIES['q00'].upper()} ", "i0")
    assert (found.pair.query, found.query_ids, found.teacher.source) == (QUERIES["q00"], ("q00",), "stored answer")
    twice = pl.DataFrame({"query_id": ["q60", "q61"], "query_text": ["MAKER0 Kind0 0 in", QUERIES["q00"]]})
    answered.write(tables.Queries, pl.concat([answered.read(tables.Queries), twice]))
    assert explain(answered, "MAKER0 Kind0 0 in", "i0")[0].query_ids == ("q60",)
    assert explain(answered, QUERIES["q00"], "i0")[0].query_ids == ("q00", "q61")


def test_students_people_and_the_feature_stand_beside_the_teacher(answered: Lake):
    found, page = explain(answered, QUERIES["q01"], "i1")
    says = {one.who: one for one in found.opinions}
    assert list(says) == ["people", "teacher", "interaction", "representation", "feature"]
    text = f"{ITEMS['i1'][0]}. kind0"
    for kind, student in fitted_students(answered).items():
        (score,) = student.load("test").score([(QUERIES["q01"], text)])
        one = says[kind]
        assert one.score == pytest.approx(float(score), abs=1e-6)
        assert one.says == ("good" if score >= 0.5 else "bad")
        assert f"{one.score:.3f}" in page
    assert says["people"].says == "good: 3.00 of 3"
    assert says["teacher"].score is None
    assert "rules read the texts and know no certainty" in page
    rows = [("q01", "i1", NOW + dt.timedelta(days=n), NOW, 0.25 * (n + 1), str(n)) for n in range(2)]
    answered.write(
        tables.QueryItemRelevance, pl.DataFrame(rows, schema=tables.QueryItemRelevance.column_names(), orient="row")
    )
    feature = explain(answered, QUERIES["q01"], "i1")[0].opinions[-1]
    assert feature == ("feature", 0.5, "good", "stored score", "from 2026-01-02 00:00 UTC on")


def test_without_students_the_teacher_is_shown_and_what_is_missing_is_said(judged: Lake, tmp_path: Path):
    lake = copied(judged, tmp_path)
    label_relevance.run(lake, label_relevance.Config(enabled=True))
    found, page = explain(lake, QUERIES["q00"], "i0")
    assert [one.who for one in found.opinions] == ["people", "teacher"]
    assert "no student is trained yet: tailrank run distill_relevance" in page


def test_an_endpoint_is_asked_only_where_that_is_said(answered: Lake, completion_server: Any):
    teacher = TeacherConfig(kind="endpoint", url=completion_server.url, model="judge", num_chains=2)
    endpoint = label_relevance.Config(enabled=True, teacher=teacher)
    found, page = explain(answered, "maker0 kind1", "i2", labelling=endpoint)
    assert completion_server.requests == []
    assert (found.teacher.source, found.teacher.answer) == ("not asked", None)
    assert (found.verdict, found.judge) == (found.opinions[0].says, "interaction student")
    assert "--ask asks it, which costs tokens" in page
    asked, page = explain(answered, "maker0 kind1", "i2", labelling=endpoint, may_spend=True)
    assert len(completion_server.requests) == 2
    assert (asked.teacher.source, asked.teacher.teacher) == ("asked now", "endpoint: judge")
    assert asked.teacher.answer is not None
    assert 0.0 < (asked.teacher.answer.score or 0.0) < 1.0
    assert not asked.teacher.is_of_lake
    assert "not the teacher whose answers this lake holds" in page
    again, _ = explain(answered, "maker0 kind1", "i2", labelling=endpoint, may_spend=True)
    assert (again.teacher.source, len(completion_server.requests)) == ("asked before", 2)


def test_a_stored_answer_of_an_endpoint_to_other_texts_is_shown_as_such(
    judged: Lake, tmp_path: Path, completion_server: Any
):
    lake = copied(judged, tmp_path)
    teacher = TeacherConfig(kind="endpoint", url=completion_server.url, model="judge", num_chains=1)
    endpoint = label_relevance.Config(enabled=True, teacher=teacher, max_judged_pairs=20, max_test_pairs=0)
    label_relevance.run(lake, endpoint)
    num_requests = len(completion_server.requests)
    query, item = lake.read(tables.RelevanceAnswers).select("query_id", "item_id").row(0)
    assert explain(lake, QUERIES[query], item, labelling=endpoint)[0].teacher.source == "stored answer"
    write_items(lake, **{item: "maker0 kind7"})
    found, page = explain(lake, QUERIES[query], item, labelling=endpoint)
    assert found.teacher.source == "stored, of other texts"
    assert "the texts or the teacher have changed since it answered" in page
    assert len(completion_server.requests) == num_requests


def test_a_server_is_asked_where_it_is_now_and_told_what_both_settings_disclose(
    judged: Lake, tmp_path: Path, completion_server: Any
):
    lake = copied(judged, tmp_path)
    teacher = TeacherConfig(kind="endpoint", url="http://127.0.0.1:9/v1", model="judge", num_chains=1, retries=0)
    then = Disclosure(fields=("query", "title", "category"))
    before = label_relevance.Config(enabled=True, teacher=teacher, disclosure=then)
    lake.write(tables.RelevanceChains, tables.RelevanceChains.create_empty())
    lake.write(tables.RelevanceAnswers, tables.RelevanceAnswers.create_empty(), fingerprint={"kind": "endpoint"})
    entry = flow.LedgerEntry(
        config=before.model_dump(mode="json"), outside_inputs=None, reads={}, writes={}, finished=NOW, seconds=0.0
    )
    (lake.folder("ledger") / "label_relevance.json").write_text(entry.model_dump_json())
    now = before.model_copy(
        update={
            "teacher": teacher.model_copy(update={"url": completion_server.url, "num_chains": 3}),
            "disclosure": Disclosure(fields=("query", "category", "brand")),
        }
    )
    found, _ = explain(lake, "maker0 kind1", "i2", labelling=now, may_spend=True)
    assert found.teacher.source == "asked now"
    assert len(completion_server.requests) == 1  # what decides an answer is the lake's
    words = completion_server.requests[0]["messages"][0]["content"]
    assert "Category: kind1" in words
    assert "maker0 kind1 , 3 in" not in words
    assert "Brand:" not in words


def test_a_local_model_is_asked_now_wherever_its_folder_lies_in_the_lake(
    judged: Lake, make_lm: Callable[..., CausalLM], tmp_path: Path
):
    lake = copied(judged, tmp_path)
    RelevanceTeacher(make_lm()).save(lake.root / "teachers" / "tuned")
    teacher = TeacherConfig(kind="local", model=str(lake.root / "teachers" / "tuned"), num_chains=2)
    local = label_relevance.Config(enabled=True, teacher=teacher, max_judged_pairs=4, max_test_pairs=0)
    label_relevance.run(lake, local)
    manifest = lake.manifest(tables.RelevanceAnswers)
    lake.write(
        tables.RelevanceAnswers,
        lake.read(tables.RelevanceAnswers),
        fingerprint=manifest.fingerprint,
        metadata={**manifest.metadata, "folder": "teachers/tuned"},
    )
    before = local.model_copy(update={"teacher": teacher.model_copy(update={"model": "as it was before fine-tuning"})})
    found, page = explain(lake, "maker0 kind1", "i2", labelling=before)
    assert (found.teacher.source, found.teacher.teacher, found.teacher.is_of_lake) == (
        "asked now",
        "local: tuned",
        True,
    )
    assert found.teacher.answer is not None
    assert found.teacher.answer.num_chains == 2
    assert f"{found.teacher.answer.score:.3f}" in page
    assert f"{found.teacher.answer.agreement:.0%} of its 2 chains agree" in page


def test_what_cannot_be_explained_is_said_with_what_to_do(answered: Lake, judged: Lake, lake: Lake):
    with pytest.raises(TableError, match=r"there is no item 'i9'(.|\n)*such as i\d, i\d, i\d"):
        explain(answered, "maker0 kind1", "i9")
    with pytest.raises(ValueError, match="the query is empty"):
        explain(answered, " ", "i1")
    with pytest.raises(TableError, match=r"does without relevance(.|\n)*enabled = true"):
        explain(judged, "maker0 kind1", "i1")
    label_relevance.run(lake, label_relevance.Config(enabled=False))
    with pytest.raises(TableError, match="does without relevance"):
        explain(lake, "maker0 kind1", "i1")


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_page_fits_the_terminal_and_shows_texts_as_they_are(answered: Lake, width: int):
    write_items(answered, i3="maker1 [red]kind1[/red] " + "very " * 30 + "long")
    _, page = explain(answered, "maker1 kind1 [bold]3 in", "i3", width=width)
    assert max(map(len, page.splitlines())) <= width
    joined = " ".join(page.split())
    for said in ("[bold]3 in", "[red]kind1[/red]", "query says", "item says", "match", "asked now"):
        assert said in joined
    for step in STEPS:
        assert step in page


def test_the_command_explains_a_pair_by_the_teacher_that_the_lake_remembers(answered: Lake):
    command = ["--quiet", "explain", "--query", QUERIES["q00"], "--item", "i0", "--lake", str(answered.root)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "100"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "verdict good, says the teacher (rules)" in result.output
    assert "representation" in result.output


def test_the_judged_queries_are_on_all_sides():
    assert {side_of(text) for text in QUERIES.values()} == {"train", "validation", "test"}
