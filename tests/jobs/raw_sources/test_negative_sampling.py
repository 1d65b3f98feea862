import datetime as dt
from collections import Counter

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from jobs.raw_sources import negative_sampling
from jobs.raw_sources.negative_sampling import Config, label_rule, sample_negatives

MONDAY = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)


def taken(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    """Rows (request, item, day after the Monday); the user is named after the request."""
    return pl.DataFrame(
        {
            "request_id": [request for request, _, _ in rows],
            "user_id": [f"user of {request}" for request, _, _ in rows],
            "item_id": [item for _, item, _ in rows],
            "event_timestamp": [MONDAY + dt.timedelta(days=day) for _, _, day in rows],
        }
    )


def drawn(positives: pl.DataFrame, **options: object) -> pl.DataFrame:
    return pl.concat(sample_negatives(positives, Config.model_validate(options)))


def a_busy_week(num_requests: int = 300, num_items: int = 50) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    popularity = np.arange(1, num_items + 1) / np.arange(1, num_items + 1).sum()
    return taken(
        [
            (f"r{request}", f"i{item}", int(rng.integers(7)))
            for request in range(num_requests)
            for item in rng.choice(num_items, size=3, replace=False, p=popularity)
        ]
    ).with_columns(pl.col("event_timestamp").min().over("request_id"))


def test_every_positive_gets_its_negatives_in_the_same_request_at_the_same_time():
    positives = a_busy_week()
    negatives = drawn(positives, negatives_per_positive=4)
    assert len(negatives) == 4 * len(positives)
    keys = ["request_id", "user_id", "event_timestamp"]
    per_request = negatives.group_by(keys).len().sort(keys)
    assert per_request.equals(positives.group_by(keys).agg(pl.len() * 4).sort(keys))


def test_a_negative_is_marked_and_is_neither_clicked_nor_converted():
    negatives = drawn(a_busy_week())
    assert negatives.get_column("is_sampled").all()
    assert not negatives.get_column("clicked").any()
    assert not negatives.get_column("converted").any()


def test_no_request_gets_an_item_twice_or_one_that_it_took():
    positives = a_busy_week()
    both = pl.concat([positives.select("request_id", "item_id"), drawn(positives).select("request_id", "item_id")])
    assert both.is_unique().all()


def test_impression_ids_are_unique():
    assert drawn(a_busy_week()).get_column("impression_id").is_unique().all()


def test_negatives_come_from_the_items_of_the_same_calendar_week():
    positives = taken([("monday", "a", 0), ("sunday", "b", 6), ("next monday", "c", 7), ("next tuesday", "d", 8)])
    negatives = drawn(positives, negatives_per_positive=1)
    pairs = dict(negatives.select("request_id", "item_id").iter_rows())
    assert pairs == {"monday": "b", "sunday": "a", "next monday": "d", "next tuesday": "c"}


def test_an_item_without_a_past_can_be_a_negative_before_its_first_positive():
    positives = taken([("before", "old", 0), ("first", "new", 3)])
    negatives = drawn(positives, negatives_per_positive=1)
    assert ("before", "new") in set(negatives.select("request_id", "item_id").iter_rows())


def test_a_request_that_took_all_items_of_the_week_gets_fewer():
    positives = taken([("all", item, 0) for item in "abc"] + [("one", "a", 1)])
    negatives = drawn(positives, negatives_per_positive=4)
    assert Counter(negatives.get_column("request_id")) == {"one": 2}


def test_items_that_rejection_would_hardly_ever_find_are_still_drawn():
    """One item is taken a million times as often as the other nine; a request that took it needs all of the nine."""
    positives = pl.concat(
        [taken([("big", "head", 0)] * 1_000_000), taken([(f"r{item}", f"tail{item}", 1) for item in range(9)])]
    )
    negatives = drawn(positives, negatives_per_positive=9, popularity_power=1.0).filter(pl.col("request_id") == "r0")
    assert set(negatives.get_column("item_id")) == {"head", *(f"tail{item}" for item in range(1, 9))}


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_items_are_drawn_in_proportion_to_sales_to_the_power(power: float):
    sales = {"a": 1, "b": 10, "c": 100}
    rows = [(f"{item}{i}", item, 0) for item, num in sales.items() for i in range(num)]
    rows += [(f"other{i}", "z", 0) for i in range(20_000)]
    negatives = drawn(taken(rows), negatives_per_positive=1, popularity_power=power)
    counts = Counter(negatives.filter(pl.col("request_id").str.starts_with("other")).get_column("item_id"))
    weights = {item: num**power for item, num in sales.items()}
    for item, weight in weights.items():
        share = weight / sum(weights.values())
        assert counts[item] / 20_000 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 20_000))


def test_two_draws_follow_the_law_of_sampling_without_replacement():
    """P(first x, then y) = w_x / W * w_y / (W - w_x), summed over both orders, for each pair of three items."""
    rows = [(f"{item}{i}", item, 0) for item, num in {"a": 1, "b": 2, "c": 5}.items() for i in range(num)]
    rows += [(f"other{i}", "z", 0) for i in range(20_000)]
    negatives = drawn(taken(rows), negatives_per_positive=2, popularity_power=1.0)
    others = negatives.filter(pl.col("request_id").str.starts_with("other"))
    pairs = Counter(
        "".join(sorted(items)) for items in others.group_by("request_id").agg("item_id").get_column("item_id")
    )
    weight = {"a": 1, "b": 2, "c": 5}
    for x, y in ("ab", "ac", "bc"):
        share = weight[x] / 8 * weight[y] / (8 - weight[x]) + weight[y] / 8 * weight[x] / (8 - weight[y])
        assert pairs[x + y] / 20_000 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 20_000))


def test_the_same_seed_gives_the_same_negatives_whatever_the_order_of_the_rows():
    positives = a_busy_week()
    again = drawn(positives.sample(fraction=1.0, shuffle=True, seed=3), seed=5)
    assert drawn(positives, seed=5).equals(again)
    assert not drawn(positives, seed=6).equals(again)


def test_a_week_of_many_requests_comes_in_chunks_of_bounded_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(negative_sampling, "DRAWS_PER_CHUNK", 1_000)
    positives = a_busy_week()
    chunks = list(sample_negatives(positives, Config(negatives_per_positive=4)))
    assert len(chunks) == 4
    assert max(map(len, chunks)) <= 1_000
    both = pl.concat([frame.select("request_id", "item_id") for frame in (positives, *chunks)])
    assert len(both) == 5 * len(positives)
    assert both.is_unique().all()


def test_no_positives_give_no_negatives():
    assert list(sample_negatives(taken([("r", "a", 0)]).clear(), Config())) == []


def test_the_label_rule_says_how_many_and_that_nobody_saw_them():
    sentence = label_rule(Config(negatives_per_positive=7, popularity_power=0.5))
    assert "7 items" in sentence
    assert "^0.5" in sentence
    assert "nobody is known to have seen them" in sentence


def test_a_negative_per_positive_is_the_least():
    with pytest.raises(ValidationError, match="negatives_per_positive"):
        Config(negatives_per_positive=0)
