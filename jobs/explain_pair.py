"""Why an item does, or does not, answer a query: the teacher's steps, and its students' scores beside its own.

`tailrank explain --query "merino socks" --item ITEM`. The query is any text; the item must be in the lake. What the
teacher said is looked up where it was asked, else it is asked (`jobs.relevance.pair_answer`); the students score the
pair as it is worded now.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedders.built_chains import label_of_grade
from embedders.prompts import PROMPTS, QUERY_TEXT
from embedders.relevance_prompts import STEPS, Label, QueryItem, Reasoning
from feature_repo.table_schemas import (
    Items,
    Queries,
    QueryItemRelevance,
    RelevanceGrades,
    StudentCurves,
)
from jobs import label_relevance
from jobs.lake import Lake, TableError, table_name
from jobs.relevance.fitted_students import fitted_students
from jobs.relevance.pair_answer import PairAnswer, answer_of_pair, check_has_answers, labelling_of
from jobs.relevance.pairs import query_items

GOOD_FROM_SCORE = 0.5
"""A student's score is a calibrated probability."""

MOST_NEAR_IDS_COMPARED = 50_000


class Opinion(NamedTuple):
    """What one of them says.

    Attributes:
        who: people, teacher, interaction or representation (the students), or feature (what rankers read).
        score: in [0, 1]; None where there is none, and of people, whose grade is in `says`.
        says: good, bad, or a grade.
        comes_from: where the score is from.
        dated: since when it is known, or what it knows of.
    """

    who: str
    score: float | None
    says: str
    comes_from: str
    dated: str


@dataclass(frozen=True)
class Explanation:
    """What is printed.

    Attributes:
        pair: the texts.
        query_ids: of the log's queries of this text; none where nobody asked it.
        verdict: the teacher's label; a student's where the teacher was not asked.
        judge: whose verdict it is.
        teacher: what the teacher says.
        opinions: of everybody who has one, people first.
        notes: what else must be known.
    """

    pair: QueryItem
    query_ids: tuple[str, ...]
    verdict: Label | None
    judge: str
    teacher: PairAnswer
    opinions: tuple[Opinion, ...]
    notes: tuple[str, ...]


def run(
    lake: Lake,
    query: str,
    item_id: str,
    *,
    labelling: label_relevance.Config | None = None,
    may_spend: bool = False,
    console: Console | None = None,
) -> Explanation:
    """Find and print what teacher and students say of a query and an item.

    Args:
        lake: after `label_relevance`; without `distill_relevance` there are no students to show.
        query: any text.
        item_id: of an item of the lake.
        labelling: settings of now; the lake knows what its teacher was asked with, but not where a server is by now and
            what it may be told.
        may_spend: ask an endpoint where no answer is kept.
        console: where to print.

    Raises:
        TableError: the lake does without relevance, or has no such item.
        ValueError: the query is empty, or a model that is named is gone.
    """
    explanation = explain(lake, query, item_id, labelling=labelling_of(lake, labelling), may_spend=may_spend)
    _print(console or Console(), item_id, explanation)
    return explanation


def explain(lake: Lake, query: str, item_id: str, *, labelling: label_relevance.Config, may_spend: bool) -> Explanation:
    """The explanation of one pair; see `run`."""
    if not query.strip():
        raise ValueError('explain: the query is empty; name one, such as --query "merino socks"')
    check_has_answers(lake)
    item = lake.scan(Items).filter(pl.col("item_id") == item_id).collect()
    if item.is_empty():
        raise _unknown_item(lake, item_id)
    query, query_ids = _as_in_the_log(lake, query)
    (pair,) = query_items(lake, pl.DataFrame({"query_text": [query], "item_id": [item_id]}))
    found = answer_of_pair(lake, pair, query_ids=query_ids, item_id=item_id, labelling=labelling, may_spend=may_spend)
    students, notes = _students(lake, query, item)
    opinions = [*_people(lake, query_ids, item_id, labelling.good_from)]
    if found.answer is not None:
        opinions.append(_of_teacher(found))
    opinions += [*students, *_served(lake, query_ids, item_id)]
    verdict, judge = (found.answer.label, f"teacher ({found.teacher})") if found.answer is not None else (None, "")
    if verdict is None and students:
        verdict, judge = ("good" if students[0].says == "good" else "bad"), f"{students[0].who} student"
    return Explanation(pair, tuple(query_ids), verdict, judge, found, tuple(opinions), (*_teacher_notes(found), *notes))


def _as_in_the_log(lake: Lake, query: str) -> tuple[str, list[str]]:
    """The query as the log writes it (case and blanks aside), with its ids; the text itself and none where it does not.

    Of several spellings the one asked for wins.
    """
    query = " ".join(query.split())
    if not lake.exists(Queries):
        return query, []
    squeezed = pl.col("query_text").str.replace_all(r"\s+", " ").str.strip_chars()
    same = squeezed.str.to_lowercase() == query.lower()
    rows = lake.scan(Queries).select("query_id", "query_text", squeezed=squeezed).filter(same).collect()
    if rows.is_empty():
        return query, []
    rows = rows.sort(pl.col("squeezed") != query, "query_id")
    text: str = rows.item(0, "query_text")
    return text, rows.filter(pl.col("query_text") == text).get_column("query_id").to_list()


def _students(lake: Lake, query: str, item: pl.DataFrame) -> tuple[list[Opinion], list[str]]:
    """What the students say now, the one that reads both texts together first; and why there are none."""
    if not lake.exists(StudentCurves):
        return [], ["no student is trained yet: tailrank run distill_relevance"]
    fitted = fitted_students(lake)
    if not fitted:
        return [], ["no student was trained in this lake: tailrank run distill_relevance"]
    item_text = item.select(PROMPTS["relevance"].text).item()
    query_text = pl.DataFrame({"query_text": [query]}).select(QUERY_TEXT).item()
    if item_text is None or query_text is None:
        return [], ["the students have nothing to read: the query or the item has no text"]
    told = lake.manifest(StudentCurves).metadata["students"]
    opinions, notes = [], []
    for kind in ("interaction", "representation"):
        if (student := fitted.get(kind)) is None:
            continue
        score = float(student.load("explain").score([(query_text, item_text)])[0])
        through = student.labels_through
        knows = "all labels" if through is None else f"labels through {through:%Y-%m-%d}"
        says = "good" if score >= GOOD_FROM_SCORE else "bad"
        how = "scored now, calibrated"
        if not told[kind].get("calibration"):
            how = "scored now, raw"
            notes.append(f"{kind} has an order, but is no probability: too few held-out judgements to calibrate it")
        opinions.append(Opinion(kind, score, says, how, knows))
    return opinions, notes


def _people(lake: Lake, query_ids: Sequence[str], item_id: str, good_from: float) -> list[Opinion]:
    if not lake.exists(RelevanceGrades):
        return []
    is_pair = pl.col("query_id").is_in(list(query_ids)) & (pl.col("item_id") == item_id)
    grade = lake.scan(RelevanceGrades).filter(is_pair).select(pl.col("grade").mean()).collect().item()
    if grade is None:
        return []
    return [Opinion("people", None, f"{label_of_grade(grade, good_from)}: {grade:.2f} of 3", "judgements", "")]


def _of_teacher(found: PairAnswer) -> Opinion:
    assert found.answer is not None
    says = found.answer.label or "could not be read"
    dated = "" if found.dated is None else f"{found.dated:%Y-%m-%d %H:%M} UTC"
    return Opinion("teacher", found.answer.score, says, found.source, dated)


def _served(lake: Lake, query_ids: Sequence[str], item_id: str) -> list[Opinion]:
    """The newest score of the pair that Feast serves."""
    if not lake.exists(QueryItemRelevance):
        return []
    is_pair = pl.col("query_id").is_in(list(query_ids)) & (pl.col("item_id") == item_id)
    rows = lake.scan(QueryItemRelevance).filter(is_pair).sort("event_timestamp").tail(1).collect()
    if rows.is_empty():
        return []
    row = rows.row(0, named=True)
    score = row["query_item_relevance"]
    says = "good" if score >= GOOD_FROM_SCORE else "bad"
    return [Opinion("feature", score, says, "stored score", f"from {row['event_timestamp']:%Y-%m-%d %H:%M} UTC on")]


def _unknown_item(lake: Lake, item_id: str) -> TableError:
    ids = lake.scan(Items).select("item_id").collect().get_column("item_id")
    if len(ids) > MOST_NEAR_IDS_COMPARED:  # comparing all of a large catalogue takes minutes
        alike = ids.filter(ids.str.starts_with(item_id[:4]))
        ids = (alike if len(alike) else ids).head(MOST_NEAR_IDS_COMPARED)
    near = difflib.get_close_matches(item_id, ids.to_list(), n=3, cutoff=0.5) or ids.head(3).to_list()
    return TableError(
        table_name(Items),
        f"there is no item {item_id!r}",
        f"name one that is there, such as {', '.join(near)}" if near else "ingest a log first",
    )


def _teacher_notes(found: PairAnswer) -> list[str]:
    notes = {
        "not asked": [
            "the teacher is an endpoint, and was not asked about this pair: --ask asks it, which costs tokens"
        ],
        "stored, of other texts": ["the texts or the teacher have changed since it answered: --ask asks it anew"],
        "no tokens left": ["the teacher was not asked: [label_relevance] max_tokens is too small for one pair"],
    }.get(found.source, [])
    if not found.is_of_lake:
        notes.append("not the teacher whose answers this lake holds: its settings, model or brands have changed since")
    if found.answer is None:
        return notes
    if found.answer.failed:
        notes.append("the teacher's answer could not be read: " + "; ".join(found.answer.problems[:2]))
    elif found.answer.reasoning is None:
        notes.append("the teacher was asked for the label alone, so there are no steps")
    elif found.answer.score is None:
        notes.append("rules read the texts and know no certainty: a label and steps, no score")
    return notes


def _print(console: Console, item_id: str, explanation: Explanation) -> None:
    pair, answer = explanation.pair, explanation.teacher.answer
    for name, value in (
        ("query", pair.query),
        ("item", " · ".join(filter(None, (item_id, pair.title or "(no title)", pair.category, pair.brand)))),
    ):
        console.print(Text.assemble((f"{name:<8}", "bold"), value))
    style = "bold green" if explanation.verdict == "good" else "bold red"
    verdict = Text.assemble(("verdict ", "bold"), (explanation.verdict or "none", style))
    if explanation.verdict is not None:
        verdict.append(f", says the {explanation.judge}")
    if answer is not None and answer.agreement is not None and answer.num_parsed > 1:
        verdict.append(f"; {answer.agreement:.0%} of its {answer.num_parsed} chains agree")
    console.print(verdict)
    if answer is not None and answer.reasoning is not None:
        console.print(_steps(answer.reasoning, console.width))
    if explanation.opinions:
        console.print(_opinions(explanation.opinions))
    if not explanation.query_ids:
        console.print(Text("nobody has asked this query in the log: nothing is stored for it", "dim"))
    for note in explanation.notes:
        console.print(Text(note, "dim"))


def _steps(reasoning: Reasoning, width: int) -> Table:
    table = Table(title="steps", title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
    widest = max(16, (width - 30) // 2)
    for name, columns in (("step", 10), ("query says", widest), ("item says", widest), ("match", 8)):
        table.add_column(name, overflow="fold", max_width=columns)
    styles = {"match": "green", "mismatch": "red", "na": "dim"}
    for step, asked, said, match in zip(
        STEPS, reasoning.query.values(), reasoning.item.values(), reasoning.matches(), strict=True
    ):
        table.add_row(step, Text(asked or "-"), Text(said or "-"), Text(match, styles[match]))
    return table


def _opinions(opinions: Sequence[Opinion]) -> Table:
    table = Table(title="scores", title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (
        ("who", "left"),
        ("score", "right"),
        ("says", "left"),
        ("comes from", "left"),
        ("dated", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for one in opinions:
        score = "" if one.score is None else f"{one.score:.3f}"
        table.add_row(*(Text(part) for part in (one.who, score, one.says, one.comes_from, one.dated)))
    return table
