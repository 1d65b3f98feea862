"""Item vectors of LEARN: of what was known, never earlier than the model, and each only once."""

import datetime as dt
import logging

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import EmbedderCurves, ItemContentEmbeddings, ItemLearnEmbeddings
from jobs import embed_items_learn, fit_embedder
from jobs.embed_items_learn import Config
from jobs.fitted_embedder import fitted_learn
from jobs.lake import Lake

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
THROUGH = START + 19 * DAY
"""What `fitted_lake` is trained through."""
DIRECTION = [0.0] * 7 + [1.0]


def embed(lake: Lake, shard_size: int = 50_000) -> pl.DataFrame:
    embed_items_learn.run(lake, Config(shard_size=shard_size))
    return lake.read(ItemLearnEmbeddings).sort("item_id", "event_timestamp")


def add_content(lake: Lake, item: str, event: float, created: float | None = None, vector_id: int = 200) -> None:
    """A content vector about the time `event`, written at `created`, in days."""
    with lake.writer(ItemContentEmbeddings, append=True) as writer:
        writer.write_shard(
            pl.DataFrame(
                {
                    "item_id": [item],
                    "event_timestamp": [START + event * DAY],
                    "created_timestamp": [START + (event if created is None else created) * DAY],
                    "item_content_vector_id": [vector_id],
                    "item_content_embedding": [DIRECTION],
                    "item_content_hash": [str(vector_id)],
                },
                schema_overrides={"item_content_embedding": pl.List(pl.Float32)},
            )
        )


def rows_of(table: pl.DataFrame, item: str) -> list[tuple[float, int]]:
    """Day and content vector of each row."""
    rows = table.filter(pl.col("item_id") == item).sort("event_timestamp")
    return [
        ((at - START) / DAY, vector)
        for at, vector in rows.select("event_timestamp", "item_learn_content_vector_id").rows()
    ]


def test_every_item_has_a_vector_from_when_the_model_and_its_content_were_there(learn_lake: Lake):
    table = embed(learn_lake)
    assert table.get_column("event_timestamp").min() == THROUGH
    assert table.get_column("created_timestamp").equals(table.get_column("event_timestamp"))
    assert rows_of(table, "i07") == [(19, 7)]
    assert rows_of(table, "i00") == [(19, 0), (25, 100)]
    assert rows_of(table, "i41") == [(30, 41)]
    assert len(table) == 42
    assert sorted(table.get_column("item_learn_vector_id")) == list(range(42))
    assert learn_lake.manifest(ItemLearnEmbeddings).fingerprint == learn_lake.manifest(EmbedderCurves).fingerprint


def test_the_vectors_are_the_models(learn_lake: Lake):
    table = embed(learn_lake, shard_size=5)
    content = dict(
        learn_lake.read(ItemContentEmbeddings).select("item_content_vector_id", "item_content_embedding").rows()
    )
    of = np.array([content[number] for number in table.get_column("item_learn_content_vector_id")], np.float32)
    fitted = fitted_learn(learn_lake)
    assert fitted is not None
    expected = fitted.load("test").item_vectors(of)
    np.testing.assert_allclose(np.array(table.get_column("item_learn_embedding").to_list()), expected, atol=1e-5)


def test_content_that_comes_later_does_not_reach_earlier_rows(learn_lake: Lake):
    before = embed(learn_lake)
    add_content(learn_lake, "i07", 28)
    after = embed(learn_lake)
    assert rows_of(after, "i07") == [(19, 7), (28, 200)]
    assert after.filter(pl.col("item_learn_content_vector_id") != 200).equals(before)


def test_content_that_was_known_when_the_model_was_is_the_only_one_before_it(learn_lake: Lake):
    add_content(learn_lake, "i07", 10)
    fit_embedder.run(learn_lake, fit_embedder.Config(shape="tiny", epochs=1))
    assert rows_of(embed(learn_lake), "i07") == [(19, 200)]


def test_a_backfill_counts_from_when_it_was_written(learn_lake: Lake):
    add_content(learn_lake, "i07", event=10, created=33)
    assert rows_of(embed(learn_lake), "i07") == [(19, 7), (33, 200)]


def test_a_backfill_about_an_earlier_time_than_the_newest_known_gives_no_row(learn_lake: Lake):
    add_content(learn_lake, "i00", event=22, created=33)
    assert rows_of(embed(learn_lake), "i00") == [(19, 0), (25, 100)]


def test_a_second_run_embeds_nothing_and_a_new_item_one(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    embed(learn_lake)
    before = learn_lake.manifest(ItemLearnEmbeddings)
    with caplog.at_level(logging.INFO):
        embed(learn_lake)
        assert learn_lake.manifest(ItemLearnEmbeddings) == before
        assert "all 42 vectors are there already" in caplog.text
        add_content(learn_lake, "new", 35)
        assert rows_of(embed(learn_lake), "new") == [(35, 200)]
    assert "1 vectors embedded by learn" in caplog.text
    assert "42 left as they are" in caplog.text


class PowerCut(BaseException):
    pass


def test_a_killed_run_loses_one_shard_at_most(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    commits = 0

    def clock() -> dt.datetime:
        nonlocal commits
        commits += 1
        if commits == 4:  # the clock stamps each commit
            raise PowerCut
        return learn_lake.now()

    with pytest.raises(PowerCut):
        embed(Lake(learn_lake.root, now=clock), shard_size=10)
    assert len(learn_lake.read(ItemLearnEmbeddings)) == 30
    with caplog.at_level(logging.INFO):
        table = embed(learn_lake)
    assert "12 vectors embedded by learn" in caplog.text
    assert table.select("item_id", "event_timestamp").is_unique().all()
    assert sorted(table.get_column("item_learn_vector_id")) == list(range(42))


def test_another_model_writes_the_table_anew(learn_lake: Lake, caplog: pytest.LogCaptureFixture):
    before = embed(learn_lake)
    fit_embedder.run(learn_lake, fit_embedder.Config(shape="tiny", epochs=1, seed=1))
    after = embed(learn_lake)
    assert "the model is now learn" in caplog.text
    keys = ["item_id", "event_timestamp", "item_learn_content_vector_id"]
    assert after.select(keys).equals(before.select(keys))
    assert not after.get_column("item_learn_embedding").equals(before.get_column("item_learn_embedding"))
    assert learn_lake.manifest(ItemLearnEmbeddings).fingerprint == learn_lake.manifest(EmbedderCurves).fingerprint


def test_content_made_again_under_the_same_ids_is_not_taken_for_the_old(
    learn_lake: Lake, caplog: pytest.LogCaptureFixture
):
    before = embed(learn_lake)
    content = learn_lake.read(ItemContentEmbeddings)
    turned = content.with_columns(pl.col("item_content_embedding").list.reverse())
    learn_lake.write(ItemContentEmbeddings, turned, fingerprint=learn_lake.manifest(ItemContentEmbeddings).fingerprint)
    after = embed(learn_lake)
    assert "the content vectors were made again" in caplog.text
    assert not after.get_column("item_learn_embedding").equals(before.get_column("item_learn_embedding"))


def test_content_of_another_encoder_is_refused(learn_lake: Lake):
    other = {**learn_lake.manifest(ItemContentEmbeddings).fingerprint, "prompt": "amazon_v1"}
    learn_lake.write(ItemContentEmbeddings, learn_lake.read(ItemContentEmbeddings), fingerprint=other)
    with pytest.raises(ValueError, match=r"(?s)run fit_embedder first.*prompt: expected learn_v1, found amazon_v1"):
        embed(learn_lake)


def test_a_model_whose_files_are_gone_is_named(learn_lake: Lake):
    fitted = fitted_learn(learn_lake)
    assert fitted is not None
    (fitted.folder / "network.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="its files have changed.\n.*tailrank run fit_embedder --force"):
        embed(learn_lake)


def test_without_learn_the_table_is_empty(learn_lake: Lake):
    embed(learn_lake)
    fit_embedder.run(learn_lake, fit_embedder.Config(enabled=False))
    assert embed(learn_lake).is_empty()
    assert learn_lake.manifest(ItemLearnEmbeddings).fingerprint == {}
