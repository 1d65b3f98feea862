"""Clicks with their queries and what was shown beside them, against a walk through the rows in plain Python."""

import datetime as dt
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedders.histories import PADDING
from feature_repo.table_schemas import Impressions, Queries
from jobs import karma_log
from jobs.interaction_sequences import InteractionLog, open_log
from jobs.karma_log import NO_QUERY, SearchLog, search_digest, use_queries, write_search_log
from jobs.lake import Lake

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)
CUT = START + 40 * HOUR
KNOWN = [f"i{n}" for n in range(9)]
"""Items with a content vector; i9 to i11 have none."""
TEXTS = {"q0": "red chair", "q1": " Red&nbsp;chair ", "q2": "blue <b>lamp</b>", "q3": "  ", "q4": "never clicked"}


def random_log(seed: int, requests: int = 150) -> pl.DataFrame:
    """Pages of up to 12 impressions, some cut in two by the time of the cut; some without request_id, some sampled."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(requests):
        user = f"u{rng.geometric(0.1)}"
        at = START + int(rng.integers(0, 60)) * HOUR
        query = None if number % 4 == 0 else f"q{rng.integers(0, 4)}"
        for _ in range(int(rng.integers(1, 13))):
            clicked = bool(rng.random() < 0.35)
            rows.append(
                {
                    "impression_id": f"{rng.integers(0, 2**60):x}",
                    "request_id": None if number % 10 == 0 else f"r{number // 2}",  # two pages share one, as faults do
                    "user_id": user,
                    "item_id": f"i{rng.integers(0, 12)}",
                    "query_id": query,
                    "event_timestamp": at + int(rng.integers(0, 2)) * HOUR,
                    "clicked": clicked,
                    "converted": False,
                    "is_sampled": not clicked and bool(rng.random() < 0.3),
                }
            )
    return pl.concat([Impressions.create_empty(), pl.DataFrame(rows)], how="diagonal_relaxed")


def opened(lake: Lake, rows: pl.DataFrame, spill: Path) -> Iterator[InteractionLog]:
    with lake.writer(Impressions) as writer:
        for shard in rows.iter_slices(90):
            writer.write_shard(shard)
    lake.write(Queries, pl.DataFrame({"query_id": list(TEXTS), "query_text": list(TEXTS.values())}))
    with open_log(lake, spill, "1GB") as log:
        log.use_catalogue(pl.Series(KNOWN))
        use_queries(lake, log)
        yield log


@pytest.fixture
def rows() -> pl.DataFrame:
    return random_log(seed=0)


@pytest.fixture
def log(lake: Lake, rows: pl.DataFrame, tmp_path: Path) -> Iterator[InteractionLog]:
    yield from opened(lake, rows, tmp_path / "spill")


def written(log: InteractionLog, folder: Path, most_exposed: int = 5, **sample: Any) -> SearchLog:
    return write_search_log(log, folder, CUT, log.counts(CUT, **sample), most_exposed=most_exposed)


def clicks_by_hand(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Clicks on known items before the cut of users with two of them, in order."""
    clicks = [
        row
        for row in rows.rows(named=True)
        if row["clicked"] and row["item_id"] in KNOWN and row["event_timestamp"] < CUT
    ]
    counts = {row["user_id"]: sum(one["user_id"] == row["user_id"] for one in clicks) for row in clicks}
    learnt = [row for row in clicks if counts[row["user_id"]] >= 2]
    return sorted(learnt, key=lambda row: (row["user_id"], row["event_timestamp"], row["impression_id"]))


def exposed_by_hand(rows: pl.DataFrame, click: dict[str, Any], most: int) -> list[str]:
    """Items of the click's page that the user passed over."""
    if click["request_id"] is None:
        return []
    page = [
        row
        for row in rows.rows(named=True)
        if (row["request_id"], row["user_id"]) == (click["request_id"], click["user_id"])
        and not row["is_sampled"]
        and row["event_timestamp"] < CUT
        and row["item_id"] in KNOWN
    ]
    clicked = {row["item_id"] for row in page if row["clicked"]}
    passed = sorted(
        (hashlib.md5(row["impression_id"].encode()).hexdigest(), row["item_id"])
        for row in page
        if row["item_id"] not in clicked
    )
    return list(dict.fromkeys(item for _, item in passed))[:most]


@pytest.mark.parametrize(("most", "batch"), [(1, 500_000), (5, 500_000), (20, 7)])
def test_what_was_shown_in_vain_is_that_of_the_same_page(
    log: InteractionLog, rows: pl.DataFrame, tmp_path: Path, most: int, batch: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(karma_log, "ROWS_AT_ONCE", batch)
    found = written(log, tmp_path / "arrays", most)
    expected = clicks_by_hand(rows)
    assert [KNOWN[row] for row in found.sequences.items_E] == [click["item_id"] for click in expected]
    of_each = [[KNOWN[row] for row in one if row != PADDING] for one in found.exposed_EM.tolist()]
    assert of_each == [exposed_by_hand(rows, click, most) for click in expected]
    assert max(map(len, of_each)) == min(most, 6), "there are pages on which six known items were passed over"
    is_padding = found.exposed_EM == PADDING
    assert (is_padding[:, :-1] <= is_padding[:, 1:]).all(), "padding stands on the right"


def test_each_click_has_its_query_and_equal_texts_are_one(log: InteractionLog, rows: pl.DataFrame, tmp_path: Path):
    found = written(log, tmp_path / "arrays")
    cleaned = {"q0": "red chair", "q1": "Red chair", "q2": "blue lamp", "q3": None, None: None}
    asked = [None if row == NO_QUERY else found.query_texts[row] for row in found.query_E.tolist()]
    assert asked == [cleaned[click["query_id"]] for click in clicks_by_hand(rows)]
    assert found.query_texts == ("Red chair", "blue lamp", "red chair")


def one_page(**changes: Any) -> pl.DataFrame:
    """A page of u1: i0 and i1 clicked, i2 passed over, and one more impression of i3 with `changes`."""
    page = {"request_id": "r", "user_id": "u1", "query_id": "q0", "event_timestamp": START}
    outcome = {"clicked": False, "converted": False, "is_sampled": False}
    rows = [{"impression_id": f"p{n}", "item_id": f"i{n}", **page, **outcome, "clicked": n < 2} for n in range(3)]
    rows.append({"impression_id": "p3", "item_id": "i3", **page, **outcome, **changes})
    return pl.concat([Impressions.create_empty(), pl.DataFrame(rows)], how="diagonal_relaxed")


@pytest.mark.parametrize(
    ("changes", "passed_over"),
    [
        ({}, ["i2", "i3"]),
        ({"is_sampled": True}, ["i2"]),
        ({"user_id": "u2"}, ["i2"]),
        ({"request_id": "r2"}, ["i2"]),
        ({"request_id": None}, ["i2"]),
        ({"event_timestamp": CUT}, ["i2"]),
        ({"event_timestamp": CUT - dt.timedelta(microseconds=1)}, ["i2", "i3"]),
        ({"item_id": "i9"}, ["i2"]),
        ({"item_id": "i1"}, ["i2"]),  # shown twice, clicked once
        ({"item_id": "i2"}, ["i2"]),
        ({"item_id": "i2", "clicked": True}, []),
        ({"clicked": True, "event_timestamp": CUT}, ["i2"]),
    ],
)
def test_planted_rows_are_negatives_only_where_they_were_seen_and_passed_over(
    lake: Lake, tmp_path: Path, changes: dict[str, Any], passed_over: list[str]
):
    for log in opened(lake, one_page(**changes), tmp_path):
        found = written(log, tmp_path / "arrays")
        first = {KNOWN[row] for row in found.exposed_EM[0] if row != PADDING}
        assert first == set(passed_over)
        assert (found.exposed_EM == found.exposed_EM[0]).all(), "clicks of one page have the same"


def test_a_sample_of_users_is_learnt_from_and_the_others_are_counted(
    log: InteractionLog, rows: pl.DataFrame, tmp_path: Path
):
    everyone, few = log.counts(CUT), log.counts(CUT, most_users=5, seed=1)
    assert (everyone.left_out, few.users) == (0, 5)
    assert few.learnt_from + few.left_out == everyone.learnt_from
    found = written(log, tmp_path / "few", most_users=5, seed=1)
    users = sorted({click["user_id"] for click in clicks_by_hand(rows)}, key=lambda user: md5(f"1{user}"))[:5]
    expected = [click for click in clicks_by_hand(rows) if click["user_id"] in users]
    assert [KNOWN[row] for row in found.sequences.items_E] == [click["item_id"] for click in expected]
    assert [[KNOWN[row] for row in one if row != PADDING] for one in found.exposed_EM.tolist()] == [
        exposed_by_hand(rows, click, 5) for click in expected
    ]


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def test_a_log_without_queries_has_none(lake: Lake, tmp_path: Path):
    lake.write(Impressions, one_page().with_columns(query_id=pl.lit(None, pl.String)))
    lake.write(Queries, Queries.create_empty())
    with open_log(lake, tmp_path, "1GB") as log:
        log.use_catalogue(pl.Series(KNOWN))
        use_queries(lake, log)
        found = written(log, tmp_path / "arrays")
    assert found.query_texts == ()
    assert found.query_E.tolist() == [NO_QUERY, NO_QUERY]


def test_the_digest_tells_every_field_apart_but_not_the_order_nor_what_is_later(lake: Lake, tmp_path: Path):
    def digest(rows: pl.DataFrame, texts: dict[str, str] = TEXTS) -> str:
        lake.write(Impressions, rows)
        lake.write(Queries, pl.DataFrame({"query_id": list(texts), "query_text": list(texts.values())}))
        with open_log(lake, tmp_path, "1GB") as log:
            use_queries(lake, log)
            return search_digest(log, CUT)

    before = digest(one_page())
    assert digest(one_page().reverse()) == before
    assert digest(one_page(), {**TEXTS, "q1": "another"}) == before
    assert digest(one_page(event_timestamp=CUT)) == digest(one_page().head(3)) != before
    assert digest(one_page(is_sampled=True)) == digest(one_page().head(3))
    changed = [
        digest(one_page(**change))
        for change in (
            {"request_id": "r2"},
            {"request_id": None},
            {"user_id": "u2"},
            {"item_id": "i4"},
            {"query_id": None},
            {"query_id": "q1"},
            {"clicked": True},
            {"event_timestamp": START + HOUR},
            {"impression_id": "p4"},
        )
    ]
    changed.append(digest(one_page(), {**TEXTS, "q0": "green chair"}))
    assert len({before, *changed}) == len(changed) + 1
