"""Item vectors of KARMA: of the text and the picture known then, never earlier than the model, and each only once."""

import datetime as dt
import logging

import numpy as np
import polars as pl
import pytest

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import ItemContentEmbeddings, ItemImageEmbeddings, ItemKarmaEmbeddings, KarmaCurves
from jobs import embed_items_karma
from jobs.embed_items_karma import Config
from jobs.fitted_karma import fitted_karma
from jobs.lake import Lake

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
THROUGH = START + 19 * DAY
"""What the model of `karma_lake` counts as trained through."""


def embed(lake: Lake, shard_size: int = 50_000) -> pl.DataFrame:
    embed_items_karma.run(lake, Config(shard_size=shard_size))
    return lake.read(ItemKarmaEmbeddings).sort("item_id", "event_timestamp")


def add(lake: Lake, kind: str, item: str, event: float, created: float | None = None, vector_id: int = 200) -> None:
    """A `content` or `image` vector about the time `event`, written at `created`, in days."""
    schema, width = (ItemContentEmbeddings, 8) if kind == "content" else (ItemImageEmbeddings, 4)
    with lake.writer(schema, append=True) as writer:
        writer.write_shard(
            pl.DataFrame(
                {
                    "item_id": [item],
                    "event_timestamp": [START + event * DAY],
                    "created_timestamp": [START + (event if created is None else created) * DAY],
                    f"item_{kind}_vector_id": [vector_id],
                    f"item_{kind}_embedding": [[0.0] * (width - 1) + [1.0]],
                    f"item_{kind}_hash": [str(vector_id)],
                },
                schema_overrides={f"item_{kind}_embedding": pl.List(pl.Float32)},
            )
        )


def rows_of(table: pl.DataFrame, item: str) -> list[tuple[float, int, int | None]]:
    """Day, content vector and image vector of each row."""
    rows = table.filter(pl.col("item_id") == item).sort("event_timestamp")
    columns = ("event_timestamp", "item_karma_content_vector_id", "item_karma_image_vector_id")
    return [((at - START) / DAY, content, image) for at, content, image in rows.select(columns).rows()]


def by_definition(lake: Lake) -> dict[tuple[str, dt.datetime], tuple[int, int | None]]:
    """(item, time) -> (content, image): row by row, from the rule itself."""
    tables = {
        kind: lake.read(schema).select("item_id", "event_timestamp", "created_timestamp", f"item_{kind}_vector_id")
        for kind, schema in (("content", ItemContentEmbeddings), ("image", ItemImageEmbeddings))
    }

    def newest(kind: str, item: str, as_of: dt.datetime) -> int | None:
        known = [row[1:] for row in tables[kind].rows() if row[0] == item and max(row[1], row[2]) <= as_of]
        return max(known)[2] if known else None

    times: dict[str, set[dt.datetime]] = {}
    for table in tables.values():
        for item, event, created, _ in table.rows():
            times.setdefault(item, {THROUGH}).add(max(event, created, THROUGH))
    wanted: dict[tuple[str, dt.datetime], tuple[int, int | None]] = {}
    for item, moments in times.items():
        before: tuple[int, int | None] | None = None
        for at in sorted(moments):
            content = newest("content", item, at)
            if content is not None and before != (now := (content, newest("image", item, at))):
                wanted[item, at] = before = now
    return wanted


def test_every_row_is_of_the_text_and_the_picture_known_then(karma_lake: Lake):
    table = embed(karma_lake)
    assert rows_of(table, "i07") == [(19, 7, 7)]
    assert rows_of(table, "i25") == [(19, 25, None)]
    assert rows_of(table, "i00") == [(19, 0, 0), (25, 100, 0)]
    assert rows_of(table, "i05") == [(19, 5, 5), (27, 5, 100)]
    assert rows_of(table, "i30") == [(19, 30, None), (33, 30, 30)]
    assert rows_of(table, "i41") == [(30, 41, None)]
    assert "i43" not in table.get_column("item_id"), "a picture without a text"
    keys = table.select("item_id", "event_timestamp").rows()
    made_of = table.select("item_karma_content_vector_id", "item_karma_image_vector_id").rows()
    assert dict(zip(keys, made_of, strict=True)) == by_definition(karma_lake)
    assert table.get_column("created_timestamp").equals(table.get_column("event_timestamp"))
    assert sorted(table.get_column("item_karma_vector_id")) == list(range(len(table)))
    assert karma_lake.manifest(ItemKarmaEmbeddings).fingerprint == karma_lake.manifest(KarmaCurves).fingerprint


def test_late_writes_and_coincidences_follow_the_rule(karma_lake: Lake):
    add(karma_lake, "image", "i07", event=5, created=33, vector_id=201)  # about an earlier time, still the newest
    add(karma_lake, "image", "i05", event=26, created=34, vector_id=202)  # about an earlier time than the newest known
    add(karma_lake, "content", "i08", event=30, vector_id=203)
    add(karma_lake, "image", "i08", event=30, vector_id=204)  # at once with the text: one row
    add(karma_lake, "image", "i41", event=10, vector_id=205)  # before the text is there
    add(karma_lake, "content", "i43", event=36, vector_id=206)  # long after the picture
    table = embed(karma_lake)
    assert rows_of(table, "i07") == [(19, 7, 7), (33, 7, 201)]
    assert rows_of(table, "i05") == [(19, 5, 5), (27, 5, 100)]
    assert rows_of(table, "i08") == [(19, 8, 8), (30, 203, 204)]
    assert rows_of(table, "i41") == [(30, 41, 205)]
    assert rows_of(table, "i43") == [(36, 206, 43)]
    keys = table.select("item_id", "event_timestamp").rows()
    made_of = table.select("item_karma_content_vector_id", "item_karma_image_vector_id").rows()
    assert dict(zip(keys, made_of, strict=True)) == by_definition(karma_lake)


def test_the_vectors_are_the_models(karma_lake: Lake):
    table = embed(karma_lake, shard_size=5)

    def gather(schema: type, kind: str) -> np.ndarray:
        by_id = dict(karma_lake.read(schema).select(f"item_{kind}_vector_id", f"item_{kind}_embedding").rows())
        width = len(next(iter(by_id.values())))
        ids = table.get_column(f"item_karma_{kind}_vector_id")
        return np.array([[0.0] * width if one is None else by_id[one] for one in ids], np.float32)

    fitted = fitted_karma(karma_lake)
    assert fitted is not None
    expected = fitted.load("test").item_vectors(
        gather(ItemContentEmbeddings, "content"), gather(ItemImageEmbeddings, "image")
    )
    found = np.array(table.get_column("item_karma_embedding").to_list())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found[:, None] - found[None]).max(axis=2).min(initial=1, where=~np.eye(len(found), dtype=bool)) > 1e-4


@pytest.mark.parametrize("kind", ["content", "image"])
def test_what_comes_later_does_not_reach_earlier_rows_and_is_all_that_is_embedded(
    karma_lake: Lake, kind: str, caplog: pytest.LogCaptureFixture
):
    before = embed(karma_lake)
    manifest = karma_lake.manifest(ItemKarmaEmbeddings)
    with caplog.at_level(logging.INFO):
        embed(karma_lake)
        assert karma_lake.manifest(ItemKarmaEmbeddings) == manifest
        assert f"all {len(before)} vectors are there already" in caplog.text
        add(karma_lake, kind, "i07", 28)
        after = embed(karma_lake)
    assert rows_of(after, "i07") == [(19, 7, 7), (28, 200, 7) if kind == "content" else (28, 7, 200)]
    assert after.filter(pl.col("item_karma_vector_id") < len(before)).equals(before)
    assert "1 vectors embedded by karma" in caplog.text
    assert f"{len(before)} left as they are" in caplog.text


class PowerCut(BaseException):
    pass


def test_a_killed_run_loses_one_shard_at_most(karma_lake: Lake, caplog: pytest.LogCaptureFixture):
    commits = 0

    def clock() -> dt.datetime:
        nonlocal commits
        commits += 1
        if commits == 4:  # the clock stamps each commit
            raise PowerCut
        return karma_lake.now()

    with pytest.raises(PowerCut):
        embed(Lake(karma_lake.root, now=clock), shard_size=10)
    assert len(karma_lake.read(ItemKarmaEmbeddings)) == 30
    with caplog.at_level(logging.INFO):
        table = embed(karma_lake)
    assert "30 left as they are" in caplog.text
    assert table.select("item_id", "event_timestamp").is_unique().all()
    assert sorted(table.get_column("item_karma_vector_id")) == list(range(len(table)))


@pytest.mark.parametrize(("schema", "kind"), [(ItemContentEmbeddings, "content"), (ItemImageEmbeddings, "image")])
def test_vectors_made_again_under_the_same_ids_are_not_taken_for_the_old(
    karma_lake: Lake, schema: type, kind: str, caplog: pytest.LogCaptureFixture
):
    before = embed(karma_lake)
    turned = karma_lake.read(schema).with_columns(pl.col(f"item_{kind}_embedding").list.reverse())
    karma_lake.write(schema, turned, fingerprint=karma_lake.manifest(schema).fingerprint)
    after = embed(karma_lake)
    assert "the content or image vectors were made again" in caplog.text
    assert not after.get_column("item_karma_embedding").equals(before.get_column("item_karma_embedding"))


def test_vectors_of_another_encoder_and_a_lost_model_are_refused(karma_lake: Lake):
    images = karma_lake.read(ItemImageEmbeddings)
    tags = karma_lake.manifest(ItemImageEmbeddings).fingerprint
    karma_lake.write(ItemImageEmbeddings, images, fingerprint={**tags, "weights_sha256": "another"})
    with pytest.raises(ValueError, match=r"(?s)embed_items_karma.*run fit_embedder_karma first.*pooling: expected"):
        embed(karma_lake)
    karma_lake.write(ItemImageEmbeddings, images, fingerprint=tags)
    fitted = fitted_karma(karma_lake)
    assert fitted is not None
    (fitted.serving.path / "karma.json").write_text("{}")
    with pytest.raises(ValueError, match="its files have changed.\n.*tailrank run fit_embedder_karma --force"):
        embed(karma_lake)


def test_without_karma_the_table_is_empty(karma_lake: Lake):
    embed(karma_lake)
    karma_lake.write(KarmaCurves, KarmaCurves.create_empty())
    assert embed(karma_lake).is_empty()
    assert karma_lake.manifest(ItemKarmaEmbeddings).fingerprint == {}


def test_a_model_that_reads_no_pictures_makes_rows_of_texts_alone(karma_lake: Lake):
    """Its manifest says so; pictures that are there, or come, make no rows."""
    manifest = karma_lake.manifest(KarmaCurves)
    content, model = (
        Fingerprint.from_tags(karma_lake.manifest(schema).fingerprint)
        for schema in (ItemContentEmbeddings, KarmaCurves)
    )
    assert model.trained_through is not None
    without = content.of_karma(
        None, weights_sha256=model.weights_sha256, dimension=12, trained_through=model.trained_through
    )
    karma_lake.write(
        KarmaCurves,
        KarmaCurves.create_empty(),
        fingerprint=without.as_tags(),
        metadata={**manifest.metadata, "uses_images": False},
    )
    before = embed(karma_lake)
    assert before.get_column("item_karma_image_vector_id").null_count() == len(before) == 42
    add(karma_lake, "image", "i07", 28)
    assert embed(karma_lake).equals(before)
    add(karma_lake, "content", "i07", 29, vector_id=201)
    assert rows_of(embed(karma_lake), "i07") == [(19, 7, None), (29, 201, None)]
