"""A log's clicks as arrays, against a walk through the rows."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import Impressions
from jobs import interaction_sequences
from jobs.interaction_sequences import InteractionLog, microseconds, open_log
from jobs.lake import Lake

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)
CUT, END = START + 30 * HOUR, START + 50 * HOUR
KNOWN = [f"i{n}" for n in range(9)]
"""Items with a content vector; i9 to i11 have none."""


def random_log(seed: int, count: int = 400) -> pl.DataFrame:
    """Ties are common: 30 users, 60 hours, every time a whole hour."""
    rng = np.random.default_rng(seed)
    clicked = rng.random(count) < 0.8
    rows = pl.DataFrame(
        {
            "impression_id": [f"{n:04}" for n in rng.permutation(count)],
            "user_id": [f"u{n}" for n in rng.geometric(0.1, count)],
            "item_id": [f"i{n}" for n in rng.integers(0, 12, count)],
            "event_timestamp": [START + int(hour) * HOUR for hour in rng.integers(0, 60, count)],
            "clicked": clicked,
            "converted": [False] * count,
            "is_sampled": ~clicked & (rng.random(count) < 0.5),
        }
    )
    return pl.concat([Impressions.create_empty(), rows], how="diagonal_relaxed")


@pytest.fixture
def rows() -> pl.DataFrame:
    return random_log(seed=0)


@pytest.fixture
def log(lake: Lake, rows: pl.DataFrame, tmp_path: Path) -> Iterator[InteractionLog]:
    with lake.writer(Impressions) as writer:
        for shard in rows.iter_slices(90):
            writer.write_shard(shard)
    with open_log(lake, tmp_path / "spill", "1GB") as opened:
        opened.use_catalogue(pl.Series(KNOWN))
        yield opened


def by_hand(rows: pl.DataFrame, start: dt.datetime, end: dt.datetime) -> dict[str, list[tuple[str, dt.datetime]]]:
    """Each user's clicks on known items, oldest first."""
    clicks = rows.filter("clicked", pl.col("item_id").is_in(KNOWN)).sort("user_id", "event_timestamp", "impression_id")
    found: dict[str, list[tuple[str, dt.datetime]]] = {}
    for user, item, at in clicks.select("user_id", "item_id", "event_timestamp").rows():
        if start <= at < end:
            found.setdefault(user, []).append((item, at))
    return found


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_sequences_are_every_users_clicks_before_the_time_in_order(
    log: InteractionLog, rows: pl.DataFrame, tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(interaction_sequences, "INTERACTIONS_AT_ONCE", batch)
    expected = [clicks for _, clicks in sorted(by_hand(rows, START, CUT).items()) if len(clicks) >= 2]
    sequences = log.write_sequences(tmp_path / "arrays", CUT, log.counts(CUT))
    assert [[KNOWN[row] for row in sequences.of(user)] for user in range(len(sequences))] == [
        [item for item, _ in clicks] for clicks in expected
    ]
    assert sequences.times_E is not None
    assert sequences.times_E.tolist() == [microseconds(at) for clicks in expected for _, at in clicks]
    assert isinstance(sequences.items_E, np.memmap)


def test_every_click_is_counted_once(log: InteractionLog, rows: pl.DataFrame):
    counts = log.counts(CUT)
    assert counts.interactions == len(rows.filter("clicked", pl.col("event_timestamp") < CUT))
    assert counts.interactions == counts.without_vector + counts.alone + counts.learnt_from
    by_user = [len(clicks) for clicks in by_hand(rows, START, CUT).values()]
    assert counts.alone == by_user.count(1) > 0
    assert counts.users == sum(size >= 2 for size in by_user)


def test_held_out_users_have_clicks_on_both_sides(log: InteractionLog, rows: pl.DataFrame):
    held_out = log.held_out(CUT, END, most_users=1000, most_history=3, seed=0)
    before, after = by_hand(rows, START, CUT), by_hand(rows, CUT, END)
    users = sorted(before.keys() & after.keys())
    histories = np.split(held_out.history_rows_T, np.cumsum(held_out.history_lengths_U)[:-1])
    assert [[KNOWN[row] for row in one] for one in histories] == [[item for item, _ in before[u][-3:]] for u in users]
    assert [[KNOWN[row] for row in held_out.targets.of(at)] for at in range(len(users))] == [
        [item for item, _ in after[user]] for user in users
    ]


def test_a_sample_of_held_out_users_is_drawn_by_the_seed(log: InteractionLog):
    def sample(seed: int) -> list[int]:
        return log.held_out(CUT, END, most_users=5, most_history=50, seed=seed).history_rows_T.tolist()

    assert len(log.held_out(CUT, END, most_users=5, most_history=50, seed=0).targets) == 5
    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


def test_nobody_held_out_gives_empty_arrays(log: InteractionLog):
    held_out = log.held_out(END, END, most_users=5, most_history=5, seed=0)
    assert len(held_out.targets) == len(held_out.history_lengths_U) == len(held_out.history_rows_T) == 0


def test_the_digest_tells_clicks_apart_but_not_their_order_in_the_files(
    log: InteractionLog, lake: Lake, rows: pl.DataFrame, tmp_path: Path
):
    def digest(changed: pl.DataFrame) -> str:
        lake.write(Impressions, changed)
        with open_log(lake, tmp_path, "1GB") as opened:
            return opened.digest(CUT)

    before = log.digest(CUT)
    assert digest(rows.reverse()) == before
    later = pl.col("event_timestamp") >= CUT
    assert digest(rows.filter(~later)) == before
    (one,) = rows.filter("clicked", ~later).head(1).get_column("impression_id")
    is_it = pl.col("impression_id") == one
    assert digest(rows.filter(~is_it)) != before
    assert digest(rows.with_columns(item_id=pl.when(is_it).then(pl.lit("i0x")).otherwise("item_id"))) != before
    moved = pl.col("event_timestamp") - pl.duration(microseconds=1)
    assert digest(rows.with_columns(event_timestamp=pl.when(is_it).then(moved).otherwise("event_timestamp"))) != before


def test_microseconds_are_exact():
    assert microseconds(dt.datetime(2025, 6, 1, 0, 0, 0, 1, tzinfo=dt.timezone.utc)) == 1_748_736_000_000_001


def test_an_empty_log_has_no_span(lake: Lake, tmp_path: Path):
    lake.write(Impressions, Impressions.create_empty())
    with open_log(lake, tmp_path, "1GB") as opened:
        assert opened.span() is None
