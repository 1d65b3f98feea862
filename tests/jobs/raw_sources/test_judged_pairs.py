"""Judged pairs of any file become queries, items and grades; what is missing is said with what there is."""

import datetime as dt
import tomllib
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_repo.table_schemas import Items, Queries, RelevanceGrades
from jobs.raw_sources import LeftOut, Shard
from jobs.raw_sources.judged_pairs import Config, label_rule, raw_files, scaled_grades, shards

JUDGED = pl.DataFrame(
    {
        "id": [1, 2, 3, 4],
        "search_term": ["merino socks", "merino  socks ", "oak door", "2020"],
        "product_uid": [11, 12, 11, 13],
        "product_title": ["Wool socks", "Cotton socks", "Wool socks", "Calendar 2020"],
        "relevance": [3.0, 2.0, 1.0, 2.5],
    }
)
SCALE = {"grade_worst": 1, "grade_best": 3}


def pieces(path: Path, **options: Any) -> list[Shard | LeftOut]:
    return list(shards(path, Config.model_validate(options)))


def read(path: Path, **options: Any) -> dict[type[dy.Schema], pl.DataFrame]:
    return {piece.schema: piece.frame for piece in pieces(path, **options) if isinstance(piece, Shard)}


def left_out(path: Path, **options: Any) -> dict[str, int]:
    return {piece.rule: piece.num_rows for piece in pieces(path, **options) if isinstance(piece, LeftOut)}


def by_text(tables: dict[type[dy.Schema], pl.DataFrame]) -> dict[tuple[str, str], float]:
    """Query text and item to grade."""
    joined = tables[RelevanceGrades].join(tables[Queries], on="query_id")
    return {(text, item): grade for text, item, grade in joined.select("query_text", "item_id", "grade").rows()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    JUDGED.write_parquet(tmp_path / "judged.parquet")
    return tmp_path / "judged.parquet"


@pytest.fixture
def three_files(tmp_path: Path) -> Path:
    """As WANDS lays them out: three files, tabs between the columns, labels."""
    label = {"id": [0, 1, 2, 3], "query_id": [0, 0, 1, 1], "product_id": [7, 8, 7, 9]}
    pl.DataFrame({**label, "label": ["Exact", "Irrelevant", "Partial", "Exact"]}).write_csv(
        tmp_path / "label.csv", separator="\t"
    )
    pl.DataFrame({"query_id": [0, 1], "query": ["salon chair", "smart table"], "query_class": ["a", "b"]}).write_csv(
        tmp_path / "query.csv", separator="\t"
    )
    pl.DataFrame(
        {
            "product_id": [7, 8, 10],
            "product_name": ["solid chair", "100", "nobody's table"],
            "product_class": ["Chairs", None, "Tables"],
            "product_description": ["good", "better", "best"],
        }
    ).write_csv(tmp_path / "product.csv", separator="\t")
    return tmp_path


WANDS = {
    "files": "label.csv",
    "separator": "\t",
    "grades": {"Exact": 3, "Partial": 1.5, "Irrelevant": 0},
    "items": {"files": "product.csv"},
    "queries": {"files": "query.csv"},
}


def test_one_file_becomes_queries_items_and_grades_by_usual_names(file: Path):
    tables = read(file, **SCALE)
    assert by_text(tables) == {
        ("merino socks", "11"): 3.0,
        ("merino socks", "12"): 1.5,
        ("oak door", "11"): 0.0,
        ("2020", "13"): 2.25,
    }
    assert tables[Items].rows() == [("11", "Wool socks"), ("12", "Cotton socks"), ("13", "Calendar 2020")]
    assert left_out(file, **SCALE) == {}
    assert raw_files(file, Config()) == raw_files(file.parent, Config()) == [file]


def test_a_query_keeps_its_id_whatever_file_it_comes_in(file: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    JUDGED.reverse().head(2).write_csv(tmp_path / "other" / "judged.csv")
    ids = dict(read(file, **SCALE)[Queries].select("query_text", "query_id").rows())
    others = dict(read(tmp_path / "other", **SCALE)[Queries].select("query_text", "query_id").rows())
    assert len(others) == 2
    assert others.items() <= ids.items()
    assert len(set(ids.values())) == 3


def test_three_files_are_joined_by_id_and_labels_are_worth_what_is_said(three_files: Path):
    tables = read(three_files, **WANDS)
    assert tables[Queries].rows() == [("0", "salon chair"), ("1", "smart table")]
    assert tables[RelevanceGrades].rows() == [("0", "7", 3.0), ("0", "8", 0.0), ("1", "7", 1.5)]
    assert tables[Items].select("item_id", "title", "category", "description").rows() == [
        ("7", "solid chair", "Chairs", "good"),
        ("8", "100", None, "better"),
        ("10", "nobody's table", "Tables", "best"),
    ]
    assert left_out(three_files, **WANDS) == {"judgement of an item that the file of items does not have": 1}


def test_a_field_that_the_file_of_items_lacks_is_taken_from_the_judgements(file: Path, tmp_path: Path):
    pl.DataFrame({"uid": [11, 99], "product_description": ["warm", "judged by nobody"]}).write_csv(
        tmp_path / "more.csv"
    )
    tables = read(file.parent, **SCALE, items={"files": "more.csv", "id": "uid"}, files="judged.parquet")
    assert sorted(tables[Items].select("item_id", "title", "description").rows()) == [
        ("11", "Wool socks", "warm"),
        ("12", "Cotton socks", None),
        ("13", "Calendar 2020", None),
        ("99", None, "judged by nobody"),
    ]
    assert len(tables[RelevanceGrades]) == 4


def test_columns_can_be_named_be_expressions_and_be_left_out(file: Path):
    tables = read(
        file, **SCALE, title="UPPER(product_title)", brand="SPLIT_PART(product_title, ' ', 1)", where="id < 3"
    )
    assert tables[Items].select("item_id", "title", "brand").rows() == [
        ("11", "WOOL SOCKS", "Wool"),
        ("12", "COTTON SOCKS", "Cotton"),
    ]
    assert left_out(file, **SCALE, where="id < 3") == {"[sources.judged_pairs] where: not (id < 3)": 2}
    JUDGED.with_columns(tags=pl.lit("new")).write_parquet(file)
    assert "keywords" in read(file, **SCALE)[Items].columns
    assert "keywords" not in read(file, **SCALE, keywords="")[Items].columns


def test_a_list_of_texts_becomes_one_text(file: Path):
    JUDGED.with_columns(attributes=pl.Series([["soft", None, "warm"]] * 4)).write_parquet(file)
    assert read(file, **SCALE)[Items]["attributes"].unique().to_list() == ["soft; warm"]


@given(
    st.lists(st.integers(-5, 5), min_size=2, max_size=30),
    st.sampled_from([(-5.0, 5.0), (5.0, -5.0)]),
)
def test_numbers_are_mapped_linearly_from_worst_to_best(grades: list[int], scale: tuple[float, float]):
    worst, best = scale
    mapped = scaled_grades(pl.Series("grade", grades), Config(grade_worst=worst, grade_best=best)).to_list()
    assert mapped == pytest.approx([3 * (grade - worst) / (best - worst) for grade in grades])
    assert all(0.0 <= grade <= 3.0 for grade in mapped)
    assert all((a == 3.0) == (b == best) and (a == 0.0) == (b == worst) for a, b in zip(mapped, grades, strict=True))


def test_judgements_of_one_pair_are_averaged_and_counted_or_refused(file: Path):
    pl.concat([JUDGED, JUDGED.with_columns(relevance=pl.col("relevance") - 0.5).head(1)]).write_parquet(file)
    assert by_text(read(file, **SCALE))["merino socks", "11"] == pytest.approx((3.0 + 2.25) / 2)
    assert left_out(file, **SCALE) == {"further judgement of a pair, averaged with the first": 1}
    with pytest.raises(ValueError, match=r"1 of 5 judgements are of a pair that was judged before, such as \(q-"):
        read(file, **SCALE, repeated="refuse")


def test_numbers_may_be_listed_as_labels(file: Path):
    worth = {"1": 0, "2": 1, "2.5": 2, "3": 3}
    assert sorted(by_text(read(file, grades=worth)).values()) == [0.0, 1.0, 2.0, 3.0]


def test_items_are_dated_where_the_settings_say_since_when(file: Path):
    assert "event_timestamp" not in read(file, **SCALE)[Items].columns
    dated = read(file, **SCALE, available_from=dt.date(2015, 6, 1))[Items]
    assert dated["event_timestamp"].unique().to_list() == [dt.datetime(2015, 6, 1, tzinfo=dt.timezone.utc)]


def test_a_judgement_without_a_query_is_left_out_and_one_without_a_grade_is_for_the_lake_to_refuse(file: Path):
    JUDGED.with_columns(
        search_term=pl.when(pl.col("id") == 1).then(pl.lit(" ")).otherwise("search_term"),
        relevance=pl.when(pl.col("id") == 2).then(None).otherwise("relevance"),
        product_uid=pl.when(pl.col("id") == 3).then(None).otherwise("product_uid"),
    ).write_parquet(file)
    tables = read(file, **SCALE)
    assert left_out(file, **SCALE) == {"judgement without a query, or of one without a text": 1}
    assert tables[RelevanceGrades].select("item_id", "grade").rows() == [("13", 2.25), ("12", None), (None, 0.0)]
    assert tables[Items]["item_id"].null_count() == 0


def test_a_grade_beyond_the_scale_is_not_averaged_away(file: Path):
    pl.concat([JUDGED, JUDGED.with_columns(relevance=pl.lit(9.0)).head(1)]).write_parquet(file)
    grades = read(file, **SCALE)[RelevanceGrades]
    assert grades.filter(item_id="11")["grade"].to_list() == [3.0, 0.0, 12.0]


# --- what is wrong is said ------------------------------------------------------------------------------------


def test_a_missing_column_is_named_with_the_columns_there_are(file: Path):
    JUDGED.rename({"product_title": "produit"}).write_parquet(file)
    with pytest.raises(
        ValueError, match=r"(?s)title: which column is it\?.*judged\.parquet has id, .*, produit, .*"
    ) as e:
        read(file, **SCALE)
    assert "--set sources.judged_pairs.title=COLUMN" in str(e.value)
    with pytest.raises(ValueError, match=r"there is no column 'produitt'; is 'produit' meant"):
        read(file, **SCALE, title="produitt")


def test_a_file_of_another_separator_is_recognised(three_files: Path):
    options = {name: value for name, value in WANDS.items() if name != "separator"}
    with pytest.raises(ValueError, match=r"looks like several, separated by '\\t': set separator"):
        read(three_files, **options)
    assert Config(separator="\\t").separator == "\t"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"grade is a number, here from 1\.0 to 3\.0\. Say which means irrelevant.*grade_worst and grade_best"),
        ({"grade_worst": 1}, r"grade_best \(now 1\.0 and None\)"),
        ({"grade_worst": 2, "grade_best": 2}, r"now 2\.0 and 2\.0"),
        ({"grades": {"3": 3}}, r"1 \(1 times\).*not among 3; say what each is worth"),
        ({"grade": "product_title"}, r"grade is text: Wool socks \(2 times\), .*grades = \{ Wool socks = \.\.\. \}"),
        ({**SCALE, "where": "iid = 3"}, r"where = 'iid = 3': there is no column 'iid'; is 'id' meant"),
        ({**SCALE, "items": {"files": "none.csv"}}, r"items\.files: no file matches 'none\.csv'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_there_is(file: Path, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        read(file, **options)


def test_a_folder_of_several_files_needs_a_name(three_files: Path):
    with pytest.raises(
        ValueError, match=r"expected one CSV or parquet file of judgements in .*label\.csv, product\.csv"
    ):
        read(three_files)


@pytest.mark.parametrize(
    "options",
    [
        {"grades": {"a": 4}},
        {"grades": {"a": 3}, **SCALE},
        {"separator": "tab"},
        {"repeated": "sum"},
        {"titel": "x"},
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any]):
    with pytest.raises(ValidationError):
        Config.model_validate(options)


def test_the_settings_in_the_modules_own_words_are_accepted(three_files: Path):
    from jobs.raw_sources import judged_pairs

    sections = (judged_pairs.__doc__ or "").split("    [sources.judged_pairs]")[1:]
    settings = [tomllib.loads(section.split("\n\n")[0].split("\n", 1)[1]) for section in sections]
    assert [Config.model_validate(setting).grade_best for setting in settings] == [3.0, None]
    assert len(read(three_files, **settings[1])[RelevanceGrades]) == 3
    assert "judged by people" in label_rule(Config())


@pytest.mark.realdata
def test_home_depot_is_read_by_its_usual_names(real_data: Path):
    tables = read(real_data / "homedepot_relevance" / "train.parquet", **SCALE)
    assert {schema: len(frame) for schema, frame in tables.items()} == {
        Queries: 9_420,
        Items: 45_703 + 11,  # 11 products with two titles
        RelevanceGrades: 59_048,
    }
    assert (tables[RelevanceGrades]["grade"].min(), tables[RelevanceGrades]["grade"].max()) == (0.0, 3.0)
