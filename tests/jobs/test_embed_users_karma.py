"""User vectors of KARMA: of what was clicked before, never earlier than the model, and each only once."""

import datetime as dt
import logging
import re

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import (
    ItemContentEmbeddings,
    ItemImageEmbeddings,
    KarmaCurves,
    UserHistories,
    UserKarmaInterests,
)
from jobs import embed_users_karma
from jobs.embed_users_karma import CHUNKS_PER_COMMIT, Config
from jobs.fitted_karma import fitted_karma
from jobs.lake import Lake
from jobs.user_interests import histories_from

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
THROUGH = START + 19 * DAY
"""What the model of `karma_lake` counts as trained through."""
KEY = ["user_id", "event_timestamp"]


def embed(lake: Lake, chunk_size: int = 500) -> pl.DataFrame:
    embed_users_karma.run(lake, Config(chunk_size=chunk_size))
    return lake.read(UserKarmaInterests).sort(KEY)


@pytest.fixture
def few_lake(karma_lake: Lake) -> Lake:
    """`karma_lake` with the histories of its first dozen users, and of u80, who clicked once on day 2."""
    few = [f"u{n:02}" for n in range(12)] + ["u80"]
    karma_lake.write(UserHistories, karma_lake.read(UserHistories).filter(pl.col("user_id").is_in(few)))
    return karma_lake


def change_history(lake: Lake, user: str, day: int, items: list[str]) -> None:
    """Replace a history, or add one."""
    at = START + day * DAY
    histories = lake.read(UserHistories)
    changed = pl.DataFrame(
        {
            "user_id": [user],
            "event_timestamp": [at],
            "created_timestamp": [at],
            "history_item_ids": [items],
            "history_timestamps": [[at - DAY / 2] * len(items)],
        },
        schema=histories.schema,
    )
    rest = histories.filter((pl.col("user_id") != user) | (pl.col("event_timestamp") != at))
    lake.write(UserHistories, pl.concat([rest, changed]))


def change_vector(lake: Lake, kind: str, item: str) -> None:
    """Another `content` or `image` vector of an item, known from day 5 on."""
    schema, width = (ItemContentEmbeddings, 8) if kind == "content" else (ItemImageEmbeddings, 4)
    with lake.writer(schema, append=True) as writer:
        writer.write_shard(
            pl.DataFrame(
                {
                    "item_id": [item],
                    "event_timestamp": [START + 5 * DAY],
                    "created_timestamp": [START + 5 * DAY],
                    f"item_{kind}_vector_id": [300],
                    f"item_{kind}_embedding": [[0.0] * (width - 1) + [1.0]],
                    f"item_{kind}_hash": ["300"],
                },
                schema_overrides={f"item_{kind}_embedding": pl.List(pl.Float32)},
            )
        )


def newest(lake: Lake, kind: str, at: dt.datetime) -> dict[str, list[float]]:
    schema = ItemContentEmbeddings if kind == "content" else ItemImageEmbeddings
    known = lake.read(schema).filter(pl.col("event_timestamp") <= at).sort("event_timestamp")
    return dict(known.select("item_id", f"item_{kind}_embedding").rows())


def test_every_vector_is_the_models_of_the_history_texts_and_pictures_known_then(few_lake: Lake):
    table = embed(few_lake, chunk_size=7)
    fitted = fitted_karma(few_lake)
    assert fitted is not None
    model = fitted.load("test")
    keys, expected, num_items = [], [], []
    for user, at, items in histories_from(few_lake, THROUGH).sort(KEY).collect().rows():
        content, image = newest(few_lake, "content", at), newest(few_lake, "image", at)
        known = [item for item in items if item in content]
        if known:
            means = model.user_vectors(
                np.array([content[item] for item in known], np.float32),
                np.arange(len(known)),
                np.array([len(known)]),
                image_NV=np.array([image.get(item, [0.0] * 4) for item in known], np.float32),
            )
            keys.append((user, at))
            expected.append(means.vectors[0])
            num_items.append(len(known))
    assert table.select(KEY).sort(KEY).rows() == keys
    table = table.sort(KEY)
    assert ("u80", THROUGH) in keys
    assert table.get_column("created_timestamp").equals(table.get_column("event_timestamp"))
    assert table.get_column("user_karma_num_items").to_list() == num_items
    found = np.array(table.get_column("user_karma_interest").to_list())
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.linalg.matrix_rank(found, tol=1e-3) > 1, "the vectors differ"
    assert few_lake.manifest(UserKarmaInterests).fingerprint == few_lake.manifest(KarmaCurves).fingerprint


def test_what_is_clicked_or_embedded_later_does_not_change_earlier_vectors(few_lake: Lake):
    cut = START + 24 * DAY
    before = embed(few_lake).filter(pl.col("event_timestamp") < cut)
    for schema in (UserHistories, ItemContentEmbeddings, ItemImageEmbeddings):
        rows = few_lake.read(schema).filter(pl.col("event_timestamp") < cut)
        few_lake.write(schema, rows, fingerprint=few_lake.manifest(schema).fingerprint)
    after = embed(few_lake)
    made = ("user_karma_vector_id", "user_karma_interest")
    assert after.drop(made).equals(before.drop(made))
    np.testing.assert_allclose(
        *(np.array(table.get_column("user_karma_interest").to_list()) for table in (after, before)), atol=1e-4
    )


def test_a_second_run_embeds_nothing_and_a_new_history_one(few_lake: Lake, caplog: pytest.LogCaptureFixture):
    before = embed(few_lake)
    manifest = few_lake.manifest(UserKarmaInterests)
    with caplog.at_level(logging.INFO):
        embed(few_lake)
        assert few_lake.manifest(UserKarmaInterests) == manifest
        assert f"0 embedded, {len(before)} left as they are" in caplog.text
        change_history(few_lake, "u80", 35, ["i02", "i04"])
        after = embed(few_lake)
    assert f"1 embedded, {len(before)} left as they are" in caplog.text
    assert after.filter(pl.col("user_karma_vector_id") < len(before)).equals(before)
    (new,) = after.filter(pl.col("user_karma_vector_id") >= len(before)).rows(named=True)
    assert (new["user_id"], new["event_timestamp"]) == ("u80", START + 35 * DAY)


@pytest.mark.parametrize("kind", ["content", "image"])
def test_another_text_or_another_picture_of_an_item_changes_the_hash_and_the_vector(
    few_lake: Lake, kind: str, caplog: pytest.LogCaptureFixture
):
    change_history(few_lake, "u80", 3, ["i02"])
    change_history(few_lake, "u81", 3, ["i04"])
    before = embed(few_lake)
    change_vector(few_lake, kind, "i02")
    with caplog.at_level(logging.INFO):
        after = embed(few_lake)
    assert "histories have changed" in caplog.text
    for user, is_touched in (("u80", True), ("u81", False)):
        then, now = (
            table.filter(pl.col("user_id") == user).select("user_karma_hash", "user_karma_interest").row(0)
            for table in (before, after)
        )
        assert (then[0] != now[0]) == is_touched
        assert np.allclose(then[1], now[1], atol=1e-4) != is_touched


def test_a_change_known_only_after_a_row_leaves_it_alone(few_lake: Lake, caplog: pytest.LogCaptureFixture):
    embed(few_lake)
    manifest = few_lake.manifest(UserKarmaInterests)
    with few_lake.writer(ItemImageEmbeddings, append=True) as writer:
        newest_row = few_lake.read(ItemImageEmbeddings).filter(pl.col("item_id") == "i02")
        later = pl.lit(START + 50 * DAY)
        writer.write_shard(
            newest_row.with_columns(
                event_timestamp=later, created_timestamp=later, item_image_vector_id=pl.lit(301, pl.Int64)
            )
        )
    embed(few_lake)
    assert few_lake.manifest(UserKarmaInterests) == manifest


class PowerCut(BaseException):
    pass


def test_a_killed_run_goes_on_from_its_last_commit(few_lake: Lake, caplog: pytest.LogCaptureFixture):
    commits = 0

    def clock() -> dt.datetime:
        nonlocal commits
        commits += 1
        if commits == 3:  # the clock stamps each commit
            raise PowerCut
        return few_lake.now()

    whole = len(histories_from(few_lake, THROUGH).collect())
    with pytest.raises(PowerCut):
        embed(Lake(few_lake.root, now=clock), chunk_size=5)
    kept = len(few_lake.read(UserKarmaInterests))
    assert kept == 2 * 5 * CHUNKS_PER_COMMIT
    with caplog.at_level(logging.INFO):
        table = embed(few_lake)
    assert f"{whole} histories from 2025-06-20 on: {whole - kept} embedded, {kept} left as they are" in caplog.text
    assert sorted(table.get_column("user_karma_vector_id")) == list(range(whole))


def test_the_progress_moves_while_the_language_model_works(
    few_lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Within a chunk of 40 histories, which the model reads a few at a time, and never past what is done."""
    change_history(few_lake, "nobody", 30, ["i40"])
    monkeypatch.setattr("embedders.karma_model.TOKENS_AT_ONCE", 120)
    monkeypatch.setattr("jobs.progress.SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        embed(few_lake, chunk_size=40)
    total = len(histories_from(few_lake, THROUGH).collect())
    done = [int(one) for one in re.findall(rf"histories: (\d+) of {total} histories", caplog.text)]
    assert len(done) > 5
    assert 40 in done
    assert max(np.diff([0, *done, total])) < 20


def test_a_users_histories_come_one_after_the_other(few_lake: Lake):
    """Those dated `trained_through` and those after it: what they begin with is then read once."""
    batches = histories_from(few_lake, THROUGH).collect_batches(chunk_size=5)
    keys = pl.concat(list(batches)).select(KEY)
    users = keys.get_column("user_id").to_list()
    assert users == sorted(users)
    both = keys.group_by("user_id").agg(min=pl.col("event_timestamp").min() == THROUGH, n=pl.len())
    assert both.filter(pl.col("min") & (pl.col("n") > 1)).height > 5


def test_a_history_without_any_vector_gets_no_row_and_is_counted(few_lake: Lake, caplog: pytest.LogCaptureFixture):
    change_history(few_lake, "nobody", 30, ["i40"])
    with caplog.at_level(logging.INFO):
        assert "nobody" not in embed(few_lake).get_column("user_id")
    assert "1 without any item vector" in caplog.text


def test_vectors_of_another_encoder_are_refused(few_lake: Lake):
    other = {**few_lake.manifest(ItemContentEmbeddings).fingerprint, "prompt": "amazon_v1"}
    few_lake.write(ItemContentEmbeddings, few_lake.read(ItemContentEmbeddings), fingerprint=other)
    with pytest.raises(ValueError, match=r"(?s)run fit_embedder_karma first.*prompt: expected learn_v1"):
        embed(few_lake)


def test_without_karma_the_table_is_empty(few_lake: Lake):
    embed(few_lake)
    few_lake.write(KarmaCurves, KarmaCurves.create_empty())
    assert embed(few_lake).is_empty()
    assert few_lake.manifest(UserKarmaInterests).fingerprint == {}
