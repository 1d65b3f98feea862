import datetime as dt
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import dataframely as dy
import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from feature_repo.table_schemas import Impressions, Items, Queries, RelevanceGrades, TrueProbabilities, Users
from jobs.raw_sources.marketplace_world import shards_of_day
from jobs.raw_sources.simulate import MAX_ROWS_PER_SHARD, SIZES, Config, label_rule, shards, world_of

TABLES = (Items, Users, Queries, Impressions, RelevanceGrades, TrueProbabilities)
TOY = Config(size="toy")


def simulated(config: Config) -> dict[type[dy.Schema], pl.DataFrame]:
    frames: dict[type[dy.Schema], list[pl.DataFrame]] = {}
    for shard in shards(None, config):
        frames.setdefault(shard.schema, []).append(shard.frame)
    return {schema: pl.concat(parts) for schema, parts in frames.items()}


def ipc_bytes(tables: dict[type[dy.Schema], pl.DataFrame]) -> bytes:
    buffer = BytesIO()
    for frame in tables.values():
        frame.write_ipc(buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def toy() -> dict[type[dy.Schema], pl.DataFrame]:
    return simulated(TOY)


@pytest.mark.parametrize("schema", TABLES, ids=lambda schema: schema.__name__)
def test_every_row_of_every_table_keeps_the_contract(toy, schema):
    frame = toy[schema]
    if "created_timestamp" in schema.column_names():
        frame = frame.with_columns(created_timestamp=pl.lit(dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)))
    good, failures = schema.filter(frame, cast=True)
    assert failures.counts() == {}
    assert good.height == toy[schema].height > 0


def test_ids_of_impressions_lead_to_rows_of_the_other_tables(toy):
    impressions = toy[Impressions]
    assert set(impressions["user_id"]) <= set(toy[Users]["user_id"])
    assert set(impressions["item_id"]) <= set(toy[Items]["item_id"])
    assert set(impressions["query_id"].drop_nulls()) <= set(toy[Queries]["query_id"])
    assert impressions["impression_id"].to_list() == toy[TrueProbabilities]["impression_id"].to_list()
    assert toy[Queries]["query_text"].is_unique().all()


def test_a_slate_is_one_page_of_distinct_items_for_one_user_at_one_time(toy):
    slates = (
        toy[Impressions]
        .group_by("request_id")
        .agg(
            pl.len().alias("size"),
            pl.n_unique("user_id", "event_timestamp", "item_id"),
            queries=pl.n_unique("query_id"),
            positions=pl.col("position").sort(),
        )
    )
    assert (slates["user_id"] == 1).all()
    assert (slates["event_timestamp"] == 1).all()
    assert (slates["queries"] == 1).all()
    assert (slates["item_id"] == slates["size"]).all()
    assert all(positions == list(range(len(positions))) for positions in slates["positions"].to_list())
    assert slates["size"].max() == 10


def test_nothing_is_shown_before_it_is_listed_and_to_nobody_before_they_arrive(toy):
    joined = (
        toy[Impressions]
        .join(toy[Users].rename({"event_timestamp": "arrived"}), on="user_id")
        .join(toy[Items].select("item_id", listed="event_timestamp"), on="item_id")
    )
    assert joined.height == toy[Impressions].height
    assert (joined["arrived"] <= joined["event_timestamp"]).all()
    assert (joined["listed"] < joined["event_timestamp"]).all()


def test_a_new_user_arrives_with_the_first_page_shown_to_them(toy):
    first_seen = toy[Impressions].group_by("user_id").agg(pl.col("event_timestamp").min().alias("seen"))
    new = (
        toy[Users].filter(pl.col("event_timestamp") >= TOY.first_midnight()).join(first_seen, on="user_id", how="left")
    )
    assert new.height > 100
    assert (new["seen"] == new["event_timestamp"]).all()


def test_users_and_items_keep_arriving_until_the_last_week():
    world = world_of(Config())
    for arrival_day in (world.population.arrival_day, world.catalogue.arrival_day):
        assert (np.bincount(arrival_day[arrival_day >= 0], minlength=60) > 0).all()
        assert 0.3 < (arrival_day >= 0).mean() < 0.6


def test_conversions_follow_clicks_by_minutes_to_two_weeks(toy):
    impressions = toy[Impressions]
    converted = impressions.filter("converted")
    assert converted["clicked"].all()
    assert converted.height > 100
    delay = converted["conversion_timestamp"] - converted["event_timestamp"]
    assert delay.min() >= dt.timedelta(minutes=1)
    assert delay.max() <= dt.timedelta(days=14)
    assert dt.timedelta(hours=4) < delay.median() < dt.timedelta(hours=20)
    assert impressions.filter(~pl.col("converted"))["conversion_timestamp"].is_null().all()


def test_traffic_follows_the_hours_and_the_week():
    times = simulated(Config(num_days=56, num_impressions=200_000))[Impressions]["event_timestamp"]
    by_hour = np.bincount(times.dt.hour(), minlength=24)
    assert by_hour[20] > 5 * by_hour[3]
    by_weekday = np.bincount(times.dt.weekday(), minlength=8)[1:]
    assert by_weekday[5:].mean() > 1.15 * by_weekday[:5].mean()


@pytest.mark.parametrize(
    "config",
    [TOY, Config(), Config(num_users=1_000, num_items=500, num_days=7, num_impressions=50_000)],
    ids=["toy", "demo", "explicit"],
)
def test_the_world_is_about_as_large_as_asked_for(config):
    tables, asked = simulated(config), config.dimensions()
    assert tables[Users].height == asked.num_users
    assert tables[Items].height == asked.num_items
    assert tables[Impressions].height == pytest.approx(asked.num_impressions, rel=0.1)
    days = tables[Impressions]["event_timestamp"].dt.date()
    assert (days.min(), days.max()) == (config.first_midnight().date(), config.last_day)
    assert days.n_unique() == asked.num_days


def test_dimensions_may_be_given_one_by_one():
    assert Config(size="toy", num_items=123).dimensions() == SIZES["toy"]._replace(num_items=123)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(toy):
    assert ipc_bytes(simulated(TOY)) == ipc_bytes(toy)
    other = simulated(Config(size="toy", seed=8))
    for schema in (Items, Users, Impressions, TrueProbabilities):
        assert not other[schema].equals(toy[schema])


def test_a_day_does_not_depend_on_the_days_before_it(toy):
    day = 20
    (log,) = shards_of_day(world_of(TOY), day)
    begin = TOY.first_midnight() + dt.timedelta(days=day)
    on_day = toy[Impressions].filter(pl.col("event_timestamp").is_between(begin, begin + dt.timedelta(days=1), "left"))
    assert on_day["clicked"].to_list() == log.clicked.tolist()
    assert on_day["item_id"].to_list() == [f"item-{item:06d}" for item in log.item]


def test_cold_and_long_tail_cells_of_the_demo_are_well_filled():
    impressions = simulated(Config())[Impressions]
    begin = dt.datetime(2025, 6, 24, tzinfo=dt.timezone.utc)
    test = impressions.filter(pl.col("event_timestamp") >= begin)
    before = impressions.filter(pl.col("event_timestamp") < begin)
    conversions = before.filter(pl.col("conversion_timestamp") < begin).group_by("item_id").len("conversions")
    clicks = before.group_by("user_id").agg(clicks=pl.col("clicked").sum())
    cells = test.join(conversions, on="item_id", how="left").join(clicks, on="user_id", how="left").fill_null(0)
    assert 0.15 < (cells["conversions"] == 0).mean() < 0.25
    assert 0.5 < cells["conversions"].is_between(1, 29).mean() < 0.8
    assert (cells["conversions"] >= 30).mean() > 0.05
    assert 0.1 < (cells["clicks"] == 0).mean() < 0.25
    assert (cells["clicks"] > 35).mean() > 0.1
    assert 0.08 < impressions["clicked"].mean() < 0.15
    assert 0.15 < impressions.filter("clicked")["converted"].mean() < 0.25


def test_a_large_day_is_cut_into_shards_in_order_of_time():
    config = Config(size="toy", num_days=2, num_impressions=1_300_000)
    heights = [shard.frame.height for shard in shards(None, config) if shard.schema is Impressions]
    assert sum(heights) > 1_000_000
    assert max(heights) <= MAX_ROWS_PER_SHARD
    logs = list(shards_of_day(world_of(config), 1))
    assert len(logs) == 2
    assert np.median(logs[0].microseconds) < np.median(logs[1].microseconds)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_impressions():
    def peak_megabytes(num_days: int) -> float:
        code = (
            "import resource\n"
            "from jobs.raw_sources.simulate import Config, shards\n"
            f"config = Config(size='toy', num_days={num_days}, num_impressions={num_days} * 200_000)\n"
            "for shard in shards(None, config): pass\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        root = Path(__file__).resolve().parents[3]
        return float(subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True).stdout)

    # Eight more days are 1.6 million impressions, 250 MB as tables.
    assert peak_megabytes(10) - peak_megabytes(2) < 80


@pytest.mark.parametrize(
    "given",
    [
        {"size": "huge"},
        {"num_users": 0},
        {"num_items": 5},
        {"num_days": 1},
        {"num_impressions": -1},
        {"seed": -1},
        {"last_day": "1970-01-01"},
        {"colour": "red"},
    ],
    ids=str,
)
def test_impossible_worlds_are_refused(given):
    with pytest.raises(ValidationError, match=next(iter(given))):
        Config(**given)


def test_more_users_than_the_log_has_room_for_are_refused():
    config = Config(size="toy", num_users=5_000)
    with pytest.raises(ValueError, match=re.escape("raise num_impressions or lower num_users")):
        shards(None, config)


def test_a_path_is_refused_since_there_is_nothing_to_read():
    with pytest.raises(ValueError, match="makes its own data"):
        shards(Path("log.csv"), TOY)


def test_the_label_rule_says_that_nobody_clicked():
    assert "simulated" in label_rule(TOY)
    assert "seed 7" in label_rule(TOY)
