"""User vectors of LEARN: of what was clicked before, never earlier than the model, and each only once."""

import datetime as dt
import logging

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import EmbedderCurves, ItemContentEmbeddings, UserHistories, UserLearnInterests
from jobs import embed_users_learn, fit_embedder
from jobs.embed_users_learn import CHUNKS_PER_COMMIT, Config
from jobs.fitted_embedder import fitted_learn
from jobs.lake import Lake

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
THROUGH = START + 19 * DAY
"""What `fitted_lake` is trained through."""
KEY = ["user_id", "event_timestamp"]


def embed(lake: Lake, chunk_size: int = 20_000) -> pl.DataFrame:
    embed_users_learn.run(lake, Config(chunk_size=chunk_size))
    return lake.read(UserLearnInterests).sort(KEY)


def wanted(lake: Lake) -> list[tuple[str, dt.datetime, list[str]]]:
    """From the definition: user, time of the row, items of the history."""
    rows = []
    histories = lake.read(UserHistories).sort(KEY).select(*KEY, "history_item_ids")
    for (user,), of_user in histories.group_by("user_id", maintain_order=True):
        at_or_before = of_user.filter(pl.col("event_timestamp") <= THROUGH)
        if len(at_or_before):
            rows.append((user, THROUGH, at_or_before["history_item_ids"][-1].to_list()))
        rows += of_user.filter(pl.col("event_timestamp") > THROUGH).rows()
    return sorted(rows)


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


def test_every_user_has_a_vector_from_when_the_model_and_a_history_were_there(learn_lake: Lake):
    table = embed(learn_lake, chunk_size=7)
    content = learn_lake.read(ItemContentEmbeddings)
    fitted = fitted_learn(learn_lake)
    assert fitted is not None
    model = fitted.load("test")
    expected, keys, num_items = [], [], []
    for user, at, items in wanted(learn_lake):
        known = content.filter(pl.col("event_timestamp") <= at).sort("event_timestamp")
        newest = dict(known.select("item_id", "item_content_embedding").rows())
        vectors = np.array([newest[item] for item in items if item in newest], np.float32)
        if len(vectors):
            rows = np.arange(len(vectors))
            expected.append(model.user_vectors(vectors, rows, np.array([len(rows)])).vectors[0])
            keys.append((user, at))
            num_items.append(len(vectors))
    assert table.select(KEY).rows() == keys
    assert table.get_column("created_timestamp").equals(table.get_column("event_timestamp"))
    assert table.get_column("user_learn_num_items").to_list() == num_items
    np.testing.assert_allclose(np.array(table.get_column("user_learn_interest").to_list()), expected, atol=1e-5)
    assert learn_lake.manifest(UserLearnInterests).fingerprint == learn_lake.manifest(EmbedderCurves).fingerprint
    assert ("u80", THROUGH) in keys  # whose only click was on day 2


def test_a_user_with_a_history_of_that_very_midnight_has_one_row_then(learn_lake: Lake):
    change_history(learn_lake, "u80", 19, ["i04", "i06"])
    rows = embed(learn_lake).filter(pl.col("user_id") == "u80")
    assert rows.select("event_timestamp", "user_learn_num_items").rows() == [(THROUGH, 2)]


def test_what_is_clicked_or_edited_later_does_not_change_earlier_vectors(learn_lake: Lake):
    before = embed(learn_lake).filter(pl.col("event_timestamp") < START + 24 * DAY)
    histories, content = learn_lake.read(UserHistories), learn_lake.read(ItemContentEmbeddings)
    learn_lake.write(UserHistories, histories.filter(pl.col("event_timestamp") < START + 24 * DAY))
    learn_lake.write(
        ItemContentEmbeddings,
        content.filter(pl.col("event_timestamp") < START + 24 * DAY),
        fingerprint=learn_lake.manifest(ItemContentEmbeddings).fingerprint,
    )
    after = embed(learn_lake)
    assert after.drop("user_learn_vector_id", "user_learn_interest").equals(
        before.drop("user_learn_vector_id", "user_learn_interest")
    )
    np.testing.assert_allclose(
        np.array(after.get_column("user_learn_interest").to_list()),
        np.array(before.get_column("user_learn_interest").to_list()),
        atol=1e-5,
    )


def test_a_second_run_embeds_nothing_and_a_new_history_one(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    before = embed(learn_lake)
    manifest = learn_lake.manifest(UserLearnInterests)
    with caplog.at_level(logging.INFO):
        embed(learn_lake)
        assert learn_lake.manifest(UserLearnInterests) == manifest
        assert f"0 embedded, {len(before)} left as they are" in caplog.text
        change_history(learn_lake, "u80", 35, ["i02", "i04"])
        after = embed(learn_lake)
    assert f"1 embedded, {len(before)} left as they are" in caplog.text
    assert after.filter(pl.col("user_learn_vector_id") < len(before)).equals(before)
    (new,) = after.filter(pl.col("user_learn_vector_id") >= len(before)).rows(named=True)
    assert (new["user_id"], new["event_timestamp"]) == ("u80", START + 35 * DAY)


def test_a_history_that_was_changed_is_embedded_anew(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    before = embed(learn_lake)
    change_history(learn_lake, "u80", 3, ["i02", "i04"])
    with caplog.at_level(logging.INFO):
        after = embed(learn_lake)
    assert "histories have changed; all are embedded anew" in caplog.text
    others = pl.col("user_id") != "u80"
    assert after.filter(others).select(KEY).equals(before.filter(others).select(KEY))
    changed, was = (
        table.filter(~others).select("user_learn_num_items", "user_learn_interest").row(0) for table in (after, before)
    )
    assert (changed[0], was[0]) == (2, 1)
    assert changed[1] != was[1]


def test_another_model_writes_the_table_anew(learn_lake: Lake):
    before = embed(learn_lake)
    fit_embedder.run(learn_lake, fit_embedder.Config(shape="tiny", epochs=1, seed=1))
    after = embed(learn_lake)
    assert after.select(KEY).equals(before.select(KEY))
    assert not after.get_column("user_learn_interest").equals(before.get_column("user_learn_interest"))
    assert learn_lake.manifest(UserLearnInterests).fingerprint == learn_lake.manifest(EmbedderCurves).fingerprint


class PowerCut(BaseException):
    pass


def test_a_killed_run_goes_on_from_its_last_commit(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    commits = 0

    def clock() -> dt.datetime:
        nonlocal commits
        commits += 1
        if commits == 3:  # the clock stamps each commit
            raise PowerCut
        return learn_lake.now()

    whole = len(wanted(learn_lake))
    with pytest.raises(PowerCut):
        embed(Lake(learn_lake.root, now=clock), chunk_size=10)
    assert len(learn_lake.read(UserLearnInterests)) == 2 * 10 * CHUNKS_PER_COMMIT
    with caplog.at_level(logging.INFO):
        table = embed(learn_lake)
    assert f"{whole} histories from 2025-06-20 on" in caplog.text
    assert f"{2 * 10 * CHUNKS_PER_COMMIT} left as they are" in caplog.text
    assert sorted(table.get_column("user_learn_vector_id")) == list(range(whole))


def test_a_history_without_any_vector_gets_no_row_and_is_counted(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    change_history(learn_lake, "nobody", 30, ["i40"])
    with caplog.at_level(logging.INFO):
        assert "nobody" not in embed(learn_lake).get_column("user_id")
    assert "1 without any item vector" in caplog.text


def test_content_of_another_encoder_is_refused(learn_lake: Lake):
    other = {**learn_lake.manifest(ItemContentEmbeddings).fingerprint, "prompt": "amazon_v1"}
    learn_lake.write(ItemContentEmbeddings, learn_lake.read(ItemContentEmbeddings), fingerprint=other)
    with pytest.raises(ValueError, match=r"(?s)run fit_embedder first.*prompt: expected learn_v1, found amazon_v1"):
        embed(learn_lake)


def test_without_learn_the_table_is_empty(learn_lake: Lake):
    embed(learn_lake)
    fit_embedder.run(learn_lake, fit_embedder.Config(enabled=False))
    assert embed(learn_lake).is_empty()
    assert learn_lake.manifest(UserLearnInterests).fingerprint == {}
