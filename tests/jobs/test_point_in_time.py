"""The join against a brute-force search, on random times dense with ties, backfills and unknown keys."""

import datetime as dt

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.point_in_time import FeatureRows, as_known_then

START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
TIME_TYPE = pl.Datetime("us", "UTC")


def at(hours: int | None) -> dt.datetime | None:
    return None if hours is None else START + dt.timedelta(hours=hours)


def feature_frame(rows: list[tuple[str | None, int, int | None]]) -> pl.DataFrame:
    """(key, event hour, created hour) -> one row each, whose value is its place in the list."""
    return pl.DataFrame(
        {
            "key": [key for key, _, _ in rows],
            "event": [at(event) for _, event, _ in rows],
            "created": [at(created) for _, _, created in rows],
            "value": list(range(len(rows))),
        },
        schema={"key": pl.String, "event": TIME_TYPE, "created": TIME_TYPE, "value": pl.Int64},
    )


def entity_frame(rows: list[tuple[str | None, int]]) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": [key for key, _ in rows], "t": [at(hour) for _, hour in rows]},
        schema={"id": pl.String, "t": TIME_TYPE},
    )


def join(features: pl.DataFrame, entities: pl.DataFrame, ttl_hours: int | None = None) -> list[int | None]:
    rows = FeatureRows(
        features.lazy(),
        {"key": "id"},
        ("value",),
        "event",
        "created",
        dt.timedelta(hours=ttl_hours) if ttl_hours else None,
    )
    return as_known_then(entities, "t", rows).get_column("value").to_list()


def searched(
    features: list[tuple[str | None, int, int | None]], entity: tuple[str | None, int], ttl: int | None
) -> tuple[int, int] | None:
    """(event, created) of the row that the entity row must see, by looking at every row."""
    key, t = entity
    known = [
        (event, created)
        for k, event, created in features
        if key is not None and k == key and event <= t and created is not None and created <= t
    ]
    newest = max(known, default=None)
    return None if newest is None or (ttl and newest[0] + ttl < t) else newest


keys = st.sampled_from(["a", "b", None])
hours = st.integers(0, 12)


@settings(max_examples=300, deadline=None)
@given(
    features=st.lists(st.tuples(keys, hours, st.one_of(st.none(), hours)), max_size=25),
    entities=st.lists(st.tuples(st.sampled_from(["a", "b", "unknown", None]), hours), max_size=25),
    ttl=st.sampled_from([None, 1, 3]),
)
def test_every_row_sees_the_newest_value_known_at_its_time(
    features: list[tuple[str | None, int, int | None]], entities: list[tuple[str | None, int]], ttl: int | None
) -> None:
    values = join(feature_frame(features), entity_frame(entities), ttl)
    seen = [None if value is None else features[value][1:] for value in values]
    assert seen == [searched(features, entity, ttl) for entity in entities]


def test_a_backfill_is_not_seen_before_it_was_written() -> None:
    features = feature_frame([("a", 1, 1), ("a", 2, 9)])  # the second row is of hour 2 but was written at hour 9
    assert join(features, entity_frame([("a", 3), ("a", 8), ("a", 9)])) == [0, 0, 1]


def test_a_late_correction_of_the_past_does_not_hide_what_is_newer() -> None:
    features = feature_frame([("a", 5, 5), ("a", 2, 7)])  # hour 2 corrected at hour 7, when hour 5 was known already
    assert join(features, entity_frame([("a", 8)])) == [0]


def test_ttl_includes_both_ends() -> None:
    features = feature_frame([("a", 2, 2)])
    assert join(features, entity_frame([("a", 1), ("a", 2), ("a", 5), ("a", 6)]), ttl_hours=3) == [None, 0, 0, None]


def test_of_equal_times_the_later_row_wins() -> None:
    features = feature_frame([("a", 2, 2), ("a", 2, 2)])
    assert join(features, entity_frame([("a", 2)])) == [1]


def test_a_slate_of_20_at_one_time_keeps_its_20_rows_and_their_order() -> None:
    features = feature_frame([("a", 1, 1), ("b", 1, 1)])
    slate = [("a" if i % 3 else "b", 2) for i in range(20)]
    assert join(features, entity_frame(slate)) == [0 if i % 3 else 1 for i in range(20)]


def test_without_created_timestamp_the_event_alone_decides() -> None:
    features = feature_frame([("a", 1, None), ("a", 4, None)])
    rows = FeatureRows(features.lazy(), {"key": "id"}, ("value",), "event")
    assert as_known_then(entity_frame([("a", 3), ("a", 4)]), "t", rows).get_column("value").to_list() == [0, 1]


def test_two_keys_must_both_match() -> None:
    features = pl.DataFrame(
        {"q": ["x", "x", "y"], "i": ["1", "2", "1"], "event": [at(1)] * 3, "value": [0, 1, 2]}
    ).lazy()
    entities = pl.DataFrame({"query": ["x", "y", "y"], "item": ["2", "1", "2"], "t": [at(2)] * 3})
    rows = FeatureRows(features, {"q": "query", "i": "item"}, ("value",), "event")
    assert as_known_then(entities, "t", rows).get_column("value").to_list() == [1, 2, None]


pairs = st.tuples(st.sampled_from(["x", "y", ""]), st.sampled_from(["1", "2", ""]), hours, hours)
asked = st.tuples(st.sampled_from(["x", "y", "", None]), st.sampled_from(["1", "2", "", None]), hours)


@settings(max_examples=200, deadline=None)
@given(features=st.lists(pairs, max_size=25), entities=st.lists(asked, max_size=25))
def test_by_two_keys_every_row_sees_its_own_pair_and_a_null_key_nothing(
    features: list[tuple[str, str, int, int]], entities: list[tuple[str | None, str | None, int]]
) -> None:
    kinds = {"q": pl.String, "i": pl.String, "event": TIME_TYPE, "created": TIME_TYPE, "value": pl.Int64}
    table = [(q, i, at(event), at(created), n) for n, (q, i, event, created) in enumerate(features)]
    frame = pl.DataFrame(table, schema=kinds, orient="row")
    of_rows = {"query": pl.String, "item": pl.String, "t": TIME_TYPE}
    wanted = pl.DataFrame([(q, i, at(hour)) for q, i, hour in entities], schema=of_rows, orient="row")
    rows = FeatureRows(frame.lazy(), {"q": "query", "i": "item"}, ("value",), "event", "created")
    values = as_known_then(wanted, "t", rows).get_column("value").to_list()
    as_one_key = [(None if q is None or i is None else f"{q}-{i}", hour) for q, i, hour in entities]
    of_one_key = [(f"{q}-{i}", event, created) for q, i, event, created in features]
    seen = [None if value is None else of_one_key[value][1:] for value in values]
    assert seen == [searched(of_one_key, entity, None) for entity in as_one_key]


def test_without_keys_the_newest_row_holds_for_everybody() -> None:
    features = feature_frame([("a", 1, 1), ("b", 3, 3)])
    rows = FeatureRows(features.lazy(), {}, ("value",), "event", "created")
    assert as_known_then(entity_frame([("z", 2), (None, 4)]), "t", rows).get_column("value").to_list() == [0, 1]


@pytest.mark.parametrize("features", [[], [("b", 1, 1)]])
def test_with_nothing_to_find_the_columns_are_null_and_typed(
    features: list[tuple[str | None, int, int | None]],
) -> None:
    rows = FeatureRows(feature_frame(features).lazy(), {"key": "id"}, ("value",), "event", "created")
    result = as_known_then(entity_frame([("a", 2), ("a", 3)]), "t", rows)
    assert result.get_column("value").to_list() == [None, None]
    assert result.schema == {"value": pl.Int64}
