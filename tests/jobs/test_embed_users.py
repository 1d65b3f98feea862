import dataclasses
import datetime as dt
import logging
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import ItemContentEmbeddings, UserContentInterests, UserHistories
from jobs import embed_users
from jobs.lake import Lake, TableError

T = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
UTC = pl.Datetime("us", "UTC")

RIGHT, UP, LEFT, DOWN = (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)
DIAGONAL = (0.5**0.5, 0.5**0.5)
MODEL = Fingerprint("words", "w", "t", "learn_v1", "sum", 2, "l2", "float32")

Item = tuple[str, int, tuple[float, ...]]
"""item_id, day from which the vector is available, vector."""


def write_items(
    lake: Lake, *items: Item, created: dict[int, int] | None = None, model: Fingerprint = MODEL, first_id: int = 0
) -> None:
    """Vectors in the order given; `created` moves the day on which a row (by place) was written."""
    lake.write(
        ItemContentEmbeddings,
        pl.DataFrame(
            {
                "item_id": [item_id for item_id, _, _ in items],
                "event_timestamp": [T + day * DAY for _, day, _ in items],
                "created_timestamp": [T + (created or {}).get(at, item[1]) * DAY for at, item in enumerate(items)],
                "item_content_vector_id": [first_id + at for at in range(len(items))],
                "item_content_embedding": [list(vector) for _, _, vector in items],
                "item_content_hash": ["h"] * len(items),
            },
            schema={
                "item_id": pl.String,
                "event_timestamp": UTC,
                "created_timestamp": UTC,
                "item_content_vector_id": pl.Int64,
                "item_content_embedding": pl.List(pl.Float32),
                "item_content_hash": pl.String,
            },
        ),
        fingerprint=model.as_tags(),
    )


def write_histories(lake: Lake, *histories: tuple[str, int, Sequence[str]]) -> None:
    """user_id, day of the midnight, items."""
    lake.write(
        UserHistories,
        pl.DataFrame(
            {
                "user_id": [user for user, _, _ in histories],
                "event_timestamp": [T + day * DAY for _, day, _ in histories],
                "created_timestamp": [T + day * DAY for _, day, _ in histories],
                "history_item_ids": [list(items) for _, _, items in histories],
                "history_timestamps": [[T + (day - 0.5) * DAY] * len(items) for _, day, items in histories],
            },
            schema={
                "user_id": pl.String,
                "event_timestamp": UTC,
                "created_timestamp": UTC,
                "history_item_ids": pl.List(pl.String),
                "history_timestamps": pl.List(UTC),
            },
        ),
    )


def interests(lake: Lake, chunk_size: int = 20_000) -> pl.DataFrame:
    embed_users.run(lake, embed_users.Config(chunk_size=chunk_size))
    return lake.read(UserContentInterests).sort("user_id", "event_timestamp")


def vectors(table: pl.DataFrame) -> list[list[float]]:
    return np.array(table.get_column("user_content_interest").to_list()).round(6).tolist()


def test_the_interest_is_the_mean_of_what_was_clicked_dated_at_the_histories_midnight(lake: Lake):
    write_items(lake, ("a", 0, RIGHT), ("b", 0, UP))
    write_histories(lake, ("u1", 1, ["a"]), ("u1", 2, ["a", "b"]), ("u2", 2, ["b"]))
    table = interests(lake)
    assert table.select("user_id", "event_timestamp", "user_content_num_items").rows() == [
        ("u1", T + DAY, 1),
        ("u1", T + 2 * DAY, 2),
        ("u2", T + 2 * DAY, 1),
    ]
    np.testing.assert_allclose(vectors(table), [RIGHT, DIAGONAL, UP], atol=1e-6)
    assert table.get_column("created_timestamp").equals(table.get_column("event_timestamp"))


def test_vector_ids_are_dense_and_distinct(lake: Lake):
    write_items(lake, ("a", 0, RIGHT))
    write_histories(lake, *[(f"u{user}", day, ["a"]) for user in range(5) for day in (1, 2)])
    assert sorted(interests(lake, chunk_size=3).get_column("user_content_vector_id")) == list(range(10))


def test_a_history_uses_the_item_vector_known_at_its_midnight(lake: Lake):
    write_items(lake, ("a", 0, RIGHT), ("a", 5, UP))
    write_histories(lake, ("u", 4, ["a"]), ("u", 5, ["a"]), ("u", 6, ["a"]))
    np.testing.assert_allclose(vectors(interests(lake)), [RIGHT, UP, UP], atol=1e-6)


def test_a_vector_that_comes_later_is_not_seen(lake: Lake):
    write_items(lake, ("a", 0, RIGHT), ("b", 5, UP))
    write_histories(lake, ("u", 4, ["a", "b"]))
    table = interests(lake)
    assert table.get_column("user_content_num_items").to_list() == [1]
    np.testing.assert_allclose(vectors(table), [RIGHT], atol=1e-6)


def test_a_backfilled_vector_is_not_seen_before_it_was_written(lake: Lake):
    write_items(lake, ("a", 0, RIGHT), created={0: 5})
    write_histories(lake, ("u", 4, ["a"]), ("v", 5, ["a"]))
    assert interests(lake).get_column("user_id").to_list() == ["v"]


def test_a_backfill_about_an_earlier_time_does_not_push_out_a_newer_vector(lake: Lake):
    write_items(lake, ("a", 3, UP), ("a", 1, RIGHT), created={1: 6})
    write_histories(lake, ("u", 2, ["a"]), ("u", 4, ["a"]), ("u", 7, ["a"]))
    table = interests(lake)
    assert table.get_column("event_timestamp").to_list() == [T + 4 * DAY, T + 7 * DAY]
    np.testing.assert_allclose(vectors(table), [UP, UP], atol=1e-6)


def test_histories_without_any_vector_are_left_out_and_counted(lake: Lake, caplog: pytest.LogCaptureFixture):
    write_items(lake, ("a", 0, RIGHT), ("b", 0, LEFT))
    write_histories(lake, ("no vector", 1, ["x", "y"]), ("cancelled", 1, ["a", "b"]), ("some", 1, ["x", "a"]))
    with caplog.at_level(logging.INFO):
        assert interests(lake).get_column("user_id").to_list() == ["some"]
    assert "3 histories: 1 averaged, 0 left as they are, 1 without any item vector, 1 cancelled out" in caplog.text


def test_without_any_item_vector_the_table_is_empty(lake: Lake):
    write_items(lake)
    write_histories(lake, ("u", 1, ["a"]))
    assert interests(lake).is_empty()


def test_without_any_history_the_table_is_empty(lake: Lake):
    write_items(lake, ("a", 0, RIGHT))
    write_histories(lake)
    assert interests(lake).is_empty()
    assert interests(lake).is_empty()


def test_the_fingerprint_names_the_item_model_and_the_mean(lake: Lake):
    write_items(lake, ("a", 0, RIGHT))
    write_histories(lake, ("u", 1, ["a"]))
    interests(lake)
    tags = lake.manifest(UserContentInterests).fingerprint
    assert tags["weights_sha256"] == MODEL.weights_sha256
    assert tags["pooling"] == "sum, then mean of history"


def test_a_second_run_leaves_the_table_as_it_is(lake: Lake):
    write_items(lake, ("a", 0, RIGHT), ("b", 0, UP))
    write_histories(lake, ("u", 1, ["a"]), ("v", 2, ["a", "b"]))
    interests(lake)
    before = lake.manifest(UserContentInterests)
    interests(lake)
    assert lake.manifest(UserContentInterests) == before


def test_new_histories_are_appended_and_old_rows_stay(lake: Lake, caplog: pytest.LogCaptureFixture):
    write_items(lake, ("a", 0, RIGHT), ("b", 0, UP))
    write_histories(lake, ("u", 1, ["a"]), ("v", 1, ["x"]))
    before = interests(lake)
    write_histories(lake, ("u", 1, ["a"]), ("u", 2, ["a", "b"]), ("v", 1, ["x"]), ("w", 1, ["b"]))
    with caplog.at_level(logging.INFO):
        table = interests(lake)
    assert "4 histories: 2 averaged, 1 left as they are, 1 without any item vector" in caplog.text
    assert table.filter(pl.col("user_content_vector_id") < 1).equals(before)
    assert table.get_column("user_content_vector_id").to_list() in ([0, 1, 2], [0, 2, 1])


@pytest.mark.parametrize("change", ["late click", "history gone", "item vector earlier", "item vector newer"])
def test_a_changed_past_is_averaged_anew(lake: Lake, change: str):
    items: list[Item] = [("a", 0, RIGHT), ("b", 3, UP)]
    histories: list[tuple[str, int, Sequence[str]]] = [("u", 1, ["a"]), ("v", 2, ["a", "b"])]
    write_items(lake, *items)
    write_histories(lake, *histories)
    interests(lake)
    if change == "late click":
        histories[0] = ("u", 1, ["a", "a", "c"])
        items.append(("c", 0, DOWN))
    elif change == "history gone":
        histories = histories[1:]
    elif change == "item vector earlier":
        items.append(("b", 1, DOWN))
    else:
        items.append(("a", 1, DOWN))
    write_items(lake, *items)
    write_histories(lake, *histories)
    changed = interests(lake)

    fresh = Lake(lake.root.parent / "fresh", now=lake.now)
    write_items(fresh, *items)
    write_histories(fresh, *histories)
    assert changed.equals(interests(fresh))


def test_another_item_model_averages_everything_anew_and_says_so(lake: Lake, caplog: pytest.LogCaptureFixture):
    write_items(lake, ("a", 0, RIGHT))
    write_histories(lake, ("u", 1, ["a"]))
    interests(lake)
    write_items(lake, ("a", 0, (0.0, 0.0, 1.0)), model=dataclasses.replace(MODEL, model_id="wide", dimension=3))
    assert vectors(interests(lake)) == [[0, 0, 1]]
    assert lake.manifest(UserContentInterests).fingerprint["model_id"] == "wide"
    assert "the item vectors are now those of wide" in caplog.text


def test_chunks_of_any_size_give_the_same_table(lake: Lake):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(30, 2))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    write_items(
        lake, *[(f"i{n % 25}", int(rng.integers(0, 6)) * 10 + n // 25, tuple(directions[n])) for n in range(30)]
    )
    histories = [
        (f"u{user}", day, [f"i{item}" for item in rng.integers(0, 28, size=rng.integers(1, 9))])
        for user in range(40)
        for day in (5, 20, 45)
    ]
    write_histories(lake, *histories)
    whole = interests(lake)
    other = Lake(lake.root.parent / "other", now=lake.now)
    write_histories(other, *histories)
    other_items = lake.read(ItemContentEmbeddings)
    with other.writer(ItemContentEmbeddings, fingerprint=MODEL.as_tags()) as writer:
        for shard in other_items.iter_slices(7):
            writer.write_shard(shard)
    chunked = interests(other, chunk_size=7)
    columns = ["user_id", "event_timestamp", "user_content_num_items", "user_content_hash"]
    assert chunked.select(columns).equals(whole.select(columns))
    np.testing.assert_allclose(vectors(chunked), vectors(whole), atol=1e-6)

    # the oracle: a loop over histories and item rows
    rows = other_items.rows(named=True)
    expected = {}
    for user, day, items in histories:
        known = [
            max(
                (row for row in rows if row["item_id"] == item and row["event_timestamp"] <= T + day * DAY),
                key=lambda row: row["event_timestamp"],
                default=None,
            )
            for item in items
        ]
        found = np.array([row["item_content_embedding"] for row in known if row is not None])
        if len(found):
            expected[user, T + day * DAY] = found.mean(axis=0) / np.linalg.norm(found.mean(axis=0))
    assert list(zip(*whole.select("user_id", "event_timestamp").get_columns(), strict=True)) == sorted(expected)
    np.testing.assert_allclose(vectors(whole), [expected[key] for key in sorted(expected)], atol=1e-5)


def test_a_missing_table_names_itself(lake: Lake):
    with pytest.raises(TableError, match="item_content_embeddings: there is no such table"):
        embed_users.run(lake, embed_users.Config())


def test_item_vectors_without_a_fingerprint_are_refused(lake: Lake):
    write_items(lake, ("a", 0, RIGHT))
    lake.write(ItemContentEmbeddings, lake.read(ItemContentEmbeddings))
    write_histories(lake, ("u", 1, ["a"]))
    with pytest.raises(KeyError, match="fingerprint without model_id"):
        embed_users.run(lake, embed_users.Config())


def test_no_scratch_file_is_left_in_the_lake(lake: Lake):
    write_items(lake, ("a", 0, RIGHT))
    write_histories(lake, ("u", 1, ["a"]))
    interests(lake)
    assert sorted(path.name for path in lake.root.iterdir()) == [
        "item_content_embeddings",
        "user_content_interests",
        "user_histories",
    ]
