"""Which pairs there are, when they count from, and on which side they are."""

import datetime as dt
import logging

import polars as pl
import pytest

from embedders.query_split import side_of
from feature_repo import table_schemas as tables
from jobs.lake import Lake
from jobs.relevance.pairs import PAIR_COLUMNS, judged_pairs, labels_through, pool_pairs, query_items, shown_pairs

START = dt.datetime(2025, 6, 1, 12, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)


def text_on(side: str, number: int) -> str:
    """A query on that side."""
    return [text for text in (f"{side} chair {n}" for n in range(1000)) if side_of(text) == side][number]


QUERIES = {
    "q0": text_on("train", 0),
    "q1": text_on("train", 1),
    "q2": text_on("validation", 0),
    "q3": text_on("test", 0),
}
GRADES = [
    ("q0", "i0", 3.0),  # shown on day 0 and day 9
    ("q0", "i1", 1.0),  # never shown
    ("q1", "i0", 2.33),  # first shown on day 8
    ("q2", "i1", 2.0),
    ("q3", "i1", 0.0),
    ("q1", "i9", 3.0),  # its item has no text
    ("q9", "i0", 3.0),  # no such query
]
LOG = [
    ("q0", "i0", 0.0, False),
    ("q0", "i0", 9.0, False),
    ("q1", "i0", 8.0, False),
    *[("q0", "i2", 1.0 + n / 10, False) for n in range(4)],
    *[("q1", "i1", 2.0 + n / 10, n == 2) for n in range(3)],  # one of them drawn by us
    ("q1", "i2", 7.5, False),
    ("q3", "i2", 1.0, False),
    ("q0", "i9", 1.0, False),
    (None, "i0", 1.0, False),
]


@pytest.fixture
def pair_lake(lake: Lake) -> Lake:
    """Three items with texts and one without; ten days of impressions."""
    texts = {"title": "oak chair", "category": None, "brand": "Acme", "attributes": None}
    blank = dict.fromkeys(texts) | {"title": "  "}
    times = dict.fromkeys(("event_timestamp", "created_timestamp"), START)
    items = [{"item_id": f"i{n}", **texts, **times} for n in range(3)] + [{"item_id": "i9", **blank, **times}]
    empty = tables.Items.create_empty()
    lake.write(tables.Items, pl.concat([empty, pl.DataFrame(items, infer_schema_length=None)], how="diagonal_relaxed"))
    lake.write(tables.Queries, pl.DataFrame({"query_id": list(QUERIES), "query_text": list(QUERIES.values())}))
    lake.write(tables.RelevanceGrades, pl.DataFrame(GRADES, schema=["query_id", "item_id", "grade"], orient="row"))
    rows = [
        {
            "impression_id": str(number),
            "user_id": "u",
            "item_id": item,
            "query_id": query,
            "event_timestamp": START + at * DAY,
            "clicked": False,
            "converted": False,
            "is_sampled": sampled,
        }
        for number, (query, item, at, sampled) in enumerate(LOG)
    ]
    log = pl.DataFrame(rows, infer_schema_length=None)
    lake.write(tables.Impressions, pl.concat([tables.Impressions.create_empty(), log], how="diagonal_relaxed"))
    return lake


def keys(pairs: pl.DataFrame) -> list[tuple[str, str]]:
    return list(pairs.select("query_id", "item_id").iter_rows())


def test_labels_go_through_a_midnight_at_a_share_of_the_span(pair_lake: Lake):
    midnight = dt.datetime(2025, 6, 6, tzinfo=dt.timezone.utc)
    assert labels_through(pair_lake, trained_share=0.5, trained_through=None) == midnight
    named = START + 3 * DAY
    assert labels_through(pair_lake, trained_share=0.5, trained_through=named) == named


def test_a_lake_without_impressions_has_no_such_time(lake: Lake):
    assert labels_through(lake, trained_share=0.5, trained_through=None) is None
    lake.write(tables.Impressions, tables.Impressions.create_empty())
    assert labels_through(lake, trained_share=0.5, trained_through=None) is None


def test_a_time_in_the_future_or_before_the_log_is_refused(pair_lake: Lake, now: dt.datetime):
    for through in (now + DAY, START - DAY):
        with pytest.raises(ValueError, match="what to do: name a time after the log begins"):
            labels_through(pair_lake, trained_share=0.5, trained_through=through)
    with pytest.raises(ValueError, match="before the first midnight"):
        labels_through(pair_lake, trained_share=0.01, trained_through=None)


def test_judged_pairs_have_labels_times_and_sides(pair_lake: Lake, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        pairs = judged_pairs(pair_lake, good_from=2.33, before=None)
    assert tuple(pairs.columns) == PAIR_COLUMNS
    assert keys(pairs) == [("q0", "i0"), ("q0", "i1"), ("q1", "i0"), ("q2", "i1"), ("q3", "i1")]
    assert pairs.get_column("human_label").to_list() == ["good", "bad", "good", "bad", "bad"]
    assert pairs.get_column("side").to_list() == ["train", "train", "train", "validation", "test"]
    assert pairs.get_column("num_shown").to_list() == [2, 0, 1, 0, 0]
    assert pairs.get_column("first_shown").to_list() == [START, None, START + 8 * DAY, None, None]
    assert "5 of 7 judged pairs kept" in caplog.text
    assert "2 without a query or an item text" in caplog.text


def test_queries_that_students_read_alike_are_on_one_side(pair_lake: Lake):
    alike = next(
        (plain, f"<b>oak &amp; steel</b> {n}")
        for n in range(100)
        if side_of(plain := f"oak & steel {n}") == "test" and side_of(f"<b>oak &amp; steel</b> {n}") == "train"
    )
    queries = pl.DataFrame({"query_id": ["q0", "q1"], "query_text": alike})
    pair_lake.write(tables.Queries, queries)
    assert judged_pairs(pair_lake, good_from=2.0, before=None).get_column("side").to_list() == ["test"] * 3
    assert pool_pairs(pair_lake, before=None, most=10).is_empty()


def test_a_pair_first_shown_later_is_left_out_and_one_never_shown_is_not(pair_lake: Lake):
    before = judged_pairs(pair_lake, good_from=2.0, before=START + 8 * DAY)
    assert ("q1", "i0") not in keys(before)
    assert ("q0", "i1") in keys(before)
    assert ("q1", "i0") in keys(judged_pairs(pair_lake, good_from=2.0, before=START + 9 * DAY))
    assert before.row(0, named=True)["num_shown"] == 1  # the other impression of q0 with i0 is later


def test_the_pool_is_what_was_shown_most_and_not_judged_on_the_train_side(pair_lake: Lake):
    pool = pool_pairs(pair_lake, before=None, most=10)
    assert keys(pool) == [("q0", "i2"), ("q1", "i1"), ("q1", "i2")]  # not q3: a test query; not i9: no text
    assert pool.get_column("num_shown").to_list() == [4, 3, 1]
    assert pool.get_column("grade").null_count() == pool.get_column("human_label").null_count() == 3
    assert tuple(pool.columns) == PAIR_COLUMNS
    assert pool.schema == judged_pairs(pair_lake, good_from=2, before=None).schema
    assert keys(pool_pairs(pair_lake, before=None, most=1)) == [("q0", "i2")]
    assert keys(pool_pairs(pair_lake, before=START + 7 * DAY, most=10)) == [("q0", "i2"), ("q1", "i1")]
    at = START + 7.5 * DAY  # of the only impression of q1 with i2
    assert [len(pool_pairs(pair_lake, before=at + more, most=10)) for more in (0 * DAY, DAY / 86_400)] == [2, 3]
    assert pool_pairs(pair_lake, before=None, most=0).schema == pool.schema


def test_every_pair_of_the_log_was_shown_negatives_drawn_by_us_too(pair_lake: Lake):
    shown = shown_pairs(pair_lake, before=None)
    assert len(shown) == len({(query, item) for query, item, *_ in LOG if query})
    assert shown.row(0) == ("q0", "i2", START + DAY, 4)
    assert dict(zip(keys(shown), shown.get_column("num_shown"), strict=True))["q1", "i1"] == 3


def test_impressions_of_after_the_cut_move_no_pair_and_later_pairs_follow_as_they_came(pair_lake: Lake):
    cut = START + 6 * DAY
    before = shown_pairs(pair_lake, before=cut)
    assert keys(before)[:2] == [("q0", "i2"), ("q1", "i1")]
    assert keys(before)[-2:] == [("q1", "i2"), ("q1", "i0")]  # first shown on day 7.5 and day 8
    assert before.get_column("num_shown").to_list() == [4, 3, 1, 1, 1, 0, 0]
    log = pair_lake.read(tables.Impressions)
    repeated = log.filter(pl.col("query_id") == "q1", pl.col("item_id") == "i0")
    later = [
        repeated.with_columns(
            impression_id=pl.lit(f"later {n}"), event_timestamp=pl.col("event_timestamp") + pl.duration(minutes=n)
        )
        for n in range(1, 9)
    ]
    pair_lake.write(tables.Impressions, pl.concat([log, *later]))
    assert shown_pairs(pair_lake, before=cut).equals(before)
    assert keys(shown_pairs(pair_lake, before=None))[0] == ("q1", "i0")


def test_a_lake_without_queries_or_grades_has_no_pairs(lake: Lake):
    lake.write(tables.Items, tables.Items.create_empty())
    lake.write(tables.Impressions, tables.Impressions.create_empty())
    for pairs in (judged_pairs(lake, good_from=2.0, before=None), pool_pairs(lake, before=None, most=5)):
        assert pairs.is_empty()
        assert tuple(pairs.columns) == PAIR_COLUMNS
    assert shown_pairs(lake, before=None).is_empty()


def test_texts_come_in_the_order_of_the_pairs(pair_lake: Lake):
    pairs = pl.DataFrame({"query_text": ["a", "b"], "item_id": ["i9", "i1"]})
    no_title, chair = query_items(pair_lake, pairs)
    assert (no_title.query, no_title.title.strip()) == ("a", "")
    assert (chair.query, chair.title, chair.brand, chair.category) == ("b", "oak chair", "Acme", None)
