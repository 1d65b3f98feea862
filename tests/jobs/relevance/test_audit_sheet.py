"""The audit sheet: which answers are on it, and that a spreadsheet shows it as it is."""

import csv
from pathlib import Path

import polars as pl
import pytest

from embedders.built_chains import built_chain
from embedders.relevance_prompts import STEPS, QueryItem
from jobs.relevance.audit_sheet import HEADER, cells_of_text, drawn, write_audit_sheet


def answers(num: int, num_disagreeing: int) -> pl.DataFrame:
    """Every third is unjudged; the teacher disagrees with people on the first ones."""
    human = ["good" if n < num_disagreeing else None if n % 3 == 0 else "bad" for n in range(num)]
    return pl.DataFrame(
        {
            "query_id": [f"q{n // 7}" for n in range(num)],
            "item_id": [f"i{n}" for n in range(num)],
            "label": pl.Series(["bad"] * num, dtype=pl.Enum(["bad", "good"])),
            "human_label": human,
        }
    )


def num_disagreeing(rows: pl.DataFrame) -> int:
    return len(rows.filter(pl.col("human_label") == "good"))


def test_half_of_the_rows_are_disagreements_where_there_are_enough():
    rows = drawn(answers(3000, 900), seed=0, num_rows=200)
    assert len(rows) == 200
    assert num_disagreeing(rows.head(100)) == 100
    # the rest is drawn from all others: about 800 of 2900 disagree
    assert 12 <= num_disagreeing(rows.tail(100)) <= 45
    assert rows.select("query_id", "item_id").is_unique().all()


def test_few_disagreements_are_all_there_and_others_fill_the_sheet():
    rows = drawn(answers(3000, 9), seed=0, num_rows=200)
    assert (len(rows), num_disagreeing(rows.head(9))) == (200, 9)
    assert len(drawn(answers(50, 9), seed=0, num_rows=200)) == 50
    assert drawn(answers(0, 0), seed=0).is_empty()


def test_the_draw_depends_on_the_seed_and_not_on_the_order():
    some = answers(1000, 100)
    rows = drawn(some, seed=0)
    assert rows.equals(drawn(some.reverse(), seed=0))
    assert not rows.equals(drawn(some, seed=1))


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+44 20", "'+44 20"),
        ("-5 degree thermometer", "'-5 degree thermometer"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("two\r\nlines", "two lines"),
        ("1 = 1", "1 = 1"),
        (None, ""),
    ],
)
def test_no_cell_begins_a_formula(text: str | None, cell: str):
    assert cells_of_text([text]) == [cell]


def test_a_spreadsheet_reads_back_what_was_said(tmp_path: Path):
    pairs = [QueryItem('3" red, chair', "=HYPERLINK(1)"), QueryItem("größe", "Oak\nTable, 2 ft")]
    chains = [None, built_chain(pairs[1], "good")]
    rows = pl.DataFrame(
        {
            "query_id": ["q", "q"],
            "item_id": ["i0", "i1"],
            "human_label": ["bad", None],
            "label": ["good", "good"],
            "score": [None, 0.25],
            "agreement": [1.0, 2 / 3],
            **{f"{step}_match": [None, getattr(chains[1], step)] for step in STEPS},
            "chain": [None, chains[1].line()],
        }
    )
    write_audit_sheet(tmp_path / "audit.csv", rows, pairs)
    raw = (tmp_path / "audit.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    header, first, second = csv.reader(raw.decode("utf-8-sig").splitlines())
    assert tuple(header) == HEADER
    assert first == ['3" red, chair', "'=HYPERLINK(1)", "bad", "good", "", "1.000", "", "", "", "", "", "q", "i0"]
    told = dict(zip(header, second, strict=True))
    assert (told["query"], told["title"], told["score"], told["agreement"]) == (
        "größe",
        "Oak Table, 2 ft",
        "0.250",
        "0.667",
    )
    assert told["chain"] == chains[1].line()
    assert told["category"] == f"{chains[1].category} ({chains[1].query.category} / {chains[1].item.category})"
    assert told["brand"] == "na (? / ?)"
