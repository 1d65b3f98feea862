import dataclasses
import datetime as dt
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from embedders.fingerprint import Fingerprint
from embedders.vision import ImageVectors
from feature_repo.table_schemas import ItemImageEmbeddings, ItemImages
from jobs import embed_images
from jobs.dated_vectors import NUM_CANARIES
from jobs.lake import Lake, TableError

T = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
EYE = Fingerprint("eye", "w", "p", "picture_v1", "mean", 8, "l2", "float32")


class Eye:
    """A vector drawn from the hash of the bytes; remembers what it saw. Bytes that begin with "bad" are no picture."""

    def __init__(self, fingerprint: Fingerprint = EYE, seed: int = 0, fail_after: int | None = None) -> None:
        self._fingerprint, self.seed, self.fail_after = fingerprint, seed, fail_after
        self.dimension = fingerprint.dimension
        self.seen: list[bytes] = []

    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def encode(
        self, images: Sequence[bytes], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> ImageVectors:
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise KeyboardInterrupt
        self.seen.extend(images)
        is_read = np.array([not image.startswith(b"bad") for image in images], np.bool_)
        vectors = np.stack([self._of(image) for image in images]) * is_read[:, None]
        if on_progress:
            on_progress(len(images))
        return ImageVectors(vectors.astype(np.float32), is_read)

    def _of(self, image: bytes) -> np.ndarray:
        digest = hashlib.sha256(b"%d " % self.seed + image).digest()
        vector = np.random.default_rng(int.from_bytes(digest[:8], "little")).normal(size=self.dimension)
        return vector / np.linalg.norm(vector)


def write_pictures(lake: Lake, pictures: Mapping[str, bytes], rows_per_file: int = 3) -> None:
    """Item i0 can be shown from the first day on, i1 from the second, ..."""
    frame = pl.DataFrame(
        {
            "item_id": list(pictures),
            "image": list(pictures.values()),
            "event_timestamp": [T + int(item[1:]) * DAY for item in pictures],
        },
        schema={"item_id": pl.String, "image": pl.Binary, "event_timestamp": pl.Datetime("us", "UTC")},
    )
    with lake.writer(ItemImages) as writer:
        for part in frame.iter_slices(rows_per_file):
            writer.write_shard(part)


def numbered(count: int) -> dict[str, bytes]:
    return {f"i{number}": b"picture %d" % number for number in range(count)}


def embed(lake: Lake, encoder: Eye, shard_size: int = 512) -> Eye:
    embed_images.embed_pictures(lake, encoder, batch_size=4, shard_size=shard_size)
    return encoder


def rows(lake: Lake) -> pl.DataFrame:
    return lake.read(ItemImageEmbeddings).sort("item_id", "event_timestamp")


@pytest.mark.parametrize("shard_size", [1, 4, 512])
def test_each_item_gets_the_vector_of_its_own_picture_dated_with_it(lake: Lake, shard_size: int):
    write_pictures(lake, numbered(9))
    embed(lake, Eye(), shard_size)
    table = rows(lake)
    expected = Eye().encode([b"picture %d" % number for number in range(9)]).vectors
    np.testing.assert_allclose(np.array(table.get_column("item_image_embedding").to_list()), expected, atol=1e-6)
    assert table.get_column("event_timestamp").to_list() == [T + number * DAY for number in range(9)]
    assert table.get_column("created_timestamp").equals(table.get_column("event_timestamp"))
    assert table.get_column("item_image_hash")[0] == hashlib.sha256(b"picture 0").hexdigest()
    assert sorted(table.get_column("item_image_vector_id")) == list(range(9))


def test_a_second_run_encodes_nothing_and_leaves_the_table_as_it_is(lake: Lake):
    write_pictures(lake, numbered(5))
    embed(lake, Eye())
    before = lake.manifest(ItemImageEmbeddings)
    assert embed(lake, Eye()).seen == []
    assert lake.manifest(ItemImageEmbeddings) == before


def test_a_changed_picture_is_encoded_alone_dated_now_and_the_old_row_stays(lake: Lake, now: dt.datetime):
    write_pictures(lake, numbered(30))
    embed(lake, Eye())
    before = rows(lake)
    write_pictures(lake, {**numbered(31), "i7": b"another"})
    seen = embed(lake, Eye()).seen
    assert len(seen) == NUM_CANARIES + 2
    assert sorted(seen[-2:]) == [b"another", b"picture 30"]
    table = rows(lake)
    changed = table.filter(pl.col("event_timestamp") == now)
    assert changed.get_column("item_id").to_list() == ["i7"]
    assert table.filter(pl.col("event_timestamp") < now, pl.col("item_id") != "i30").equals(before)
    assert table.filter(pl.col("item_id") == "i30").get_column("event_timestamp").to_list() == [T + 30 * DAY]


def test_equal_pictures_are_encoded_once_and_shared(lake: Lake):
    write_pictures(lake, {"i0": b"a", "i1": b"b", "i5": b"a", "i9": b"a"})
    assert sorted(embed(lake, Eye(), shard_size=1).seen) == [b"a", b"b"]
    vectors = rows(lake).get_column("item_image_embedding").to_list()
    assert vectors[0] == vectors[2] == vectors[3] != vectors[1]


def test_what_is_no_picture_has_no_vector_is_counted_named_and_tried_again(
    lake: Lake, caplog: pytest.LogCaptureFixture
):
    write_pictures(lake, {"i0": b"a", "i1": b"bad", "i2": b"b", "i3": b"bad", "i4": b"bad too"})
    embed(lake, Eye(), shard_size=1)
    assert rows(lake).get_column("item_id").to_list() == ["i0", "i2"]
    assert rows(lake).get_column("item_image_vector_id").to_list() == [0, 1]
    metadata = lake.manifest(ItemImageEmbeddings).metadata
    assert (metadata["num_unreadable"], metadata["unreadable_sample"]) == (3, ["i1", "i3", "i4"])
    assert "pictures of 3 items of 5 cannot be read and get no vector (items i1, i3, i4)" in caplog.text
    before = lake.manifest(ItemImageEmbeddings)
    assert embed(lake, Eye()).seen[-2:] == [b"bad", b"bad too"]
    assert lake.manifest(ItemImageEmbeddings).digest == before.digest
    write_pictures(lake, {"i0": b"a", "i1": b"mended", "i2": b"b", "i3": b"bad", "i4": b"bad too"})
    embed(lake, Eye())
    assert rows(lake).get_column("item_id").to_list() == ["i0", "i1", "i2"]
    assert lake.manifest(ItemImageEmbeddings).metadata["num_unreadable"] == 2


def test_nothing_but_broken_pictures_makes_an_empty_table(lake: Lake):
    write_pictures(lake, {"i0": b"bad"})
    embed(lake, Eye())
    assert rows(lake).is_empty()
    assert lake.manifest(ItemImageEmbeddings).fingerprint["model_id"] == "eye"


def test_another_encoder_writes_the_table_anew_keeps_the_dates_and_says_so(
    lake: Lake, now: dt.datetime, caplog: pytest.LogCaptureFixture
):
    write_pictures(lake, numbered(3))
    embed(lake, Eye())
    write_pictures(lake, {**numbered(3), "i1": b"another"})
    embed(lake, Eye())
    other = dataclasses.replace(EYE, model_id="other eye", dimension=12)
    embed(lake, Eye(other, seed=1))
    table = rows(lake)
    assert table.get_column("event_timestamp").to_list() == [T, now, T + 2 * DAY]
    assert table.get_column("item_image_embedding").list.len().to_list() == [12] * 3
    assert min(table.get_column("item_image_vector_id")) == 4, "an id never means two vectors"
    assert "made by eye (picture_v1, 8 wide" in caplog.text


def test_a_job_killed_while_writing_anew_dates_no_change_back(lake: Lake, now: dt.datetime):
    write_pictures(lake, numbered(5))
    embed(lake, Eye())
    write_pictures(lake, {**numbered(5), "i3": b"another"})
    embed(lake, Eye())
    other = dataclasses.replace(EYE, weights_sha256="x")
    with pytest.raises(KeyboardInterrupt):
        embed(lake, Eye(other, fail_after=2), shard_size=1)
    assert lake.manifest(ItemImageEmbeddings).fingerprint["weights_sha256"] == "x"
    assert now in rows(lake).filter(pl.col("item_id") == "i3").get_column("event_timestamp").to_list()
    embed(lake, Eye(other), shard_size=1)
    assert rows(lake).get_column("event_timestamp").to_list() == [T, T + DAY, T + 2 * DAY, now, T + 4 * DAY]


def test_an_encoder_that_drifted_under_its_old_name_is_stopped_before_it_writes(lake: Lake):
    write_pictures(lake, numbered(2))
    embed(lake, Eye())
    before = lake.manifest(ItemImageEmbeddings)
    write_pictures(lake, numbered(3))
    with pytest.raises(ValueError, match=r"(?s)embed_images: 2 of 2 canary items no longer give.*what to do: install"):
        embed(lake, Eye(seed=1))
    assert lake.manifest(ItemImageEmbeddings) == before


class Dazzled(Eye):
    def _of(self, image: bytes) -> np.ndarray:
        return np.full(self.dimension, np.nan) if b"2" in image else super()._of(image)


def test_bad_vectors_are_refused_and_nothing_is_half_written(lake: Lake):
    write_pictures(lake, numbered(2))
    embed(lake, Eye())
    before = lake.manifest(ItemImageEmbeddings)
    write_pictures(lake, numbered(4))
    with pytest.raises(TableError, match="finite_and_unit_norm"):
        embed(lake, Dazzled())
    assert lake.manifest(ItemImageEmbeddings) == before


# --- the step ---------------------------------------------------------------------------------------------------


def test_off_by_default_it_writes_an_empty_table_and_needs_no_model(lake: Lake):
    config = embed_images.Config(backbone="no such model")
    write_pictures(lake, numbered(2))
    embed_images.run(lake, config)
    assert lake.read(ItemImageEmbeddings).is_empty()
    assert lake.manifest(ItemImageEmbeddings).metadata == {"enabled": False}
    assert embed_images.outside_inputs(config) is None


def test_off_or_only_imported_it_does_not_load_torch(tmp_path: Path):
    program = (
        "import sys\nfrom pathlib import Path\nfrom jobs import embed_images\nfrom jobs.lake import Lake\n"
        f"embed_images.run(Lake(Path({str(tmp_path / 'lake')!r})), embed_images.Config())\n"
        "sys.exit(bool({'torch', 'PIL', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_switched_on_after_it_was_off_it_encodes_everything_without_a_warning(
    lake: Lake, caplog: pytest.LogCaptureFixture
):
    write_pictures(lake, numbered(2))
    embed_images.run(lake, embed_images.Config())
    embed(lake, Eye())
    assert rows(lake).get_column("event_timestamp").to_list() == [T, T + DAY]
    assert "written anew" not in caplog.text


def test_a_lake_of_a_version_without_pictures_still_runs(lake: Lake, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    embed_images.run(lake, embed_images.Config(enabled=True))
    assert lake.read(ItemImageEmbeddings).is_empty()
    assert "took in no pictures; run ingest again (--force) for them" in caplog.text


def save_tiny_resnet(folder: Path) -> Path:
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")).save_pretrained(
        folder
    )
    settings = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((24, 24), Image.Resampling.NEAREST).save(buffer, "JPEG")
    return buffer.getvalue()


def test_other_weights_under_the_same_path_make_the_step_stale(tmp_path: Path):
    folder = save_tiny_resnet(tmp_path / "resnet")
    config = embed_images.Config(enabled=True, backbone=str(folder))
    before = embed_images.outside_inputs(config)
    assert embed_images.outside_inputs(config) == before
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert embed_images.outside_inputs(config) != before


def test_killed_at_any_moment_it_loses_one_shard_at_most(tmp_path: Path, now: dt.datetime):
    """A real process, a real encoder, SIGKILL: what was committed stays, and the next run does only the rest."""
    config = embed_images.Config(
        enabled=True, backbone=str(save_tiny_resnet(tmp_path / "resnet")), dtype="float32", shard_size=2
    )
    lake = Lake(tmp_path / "lake", now=lambda: now)
    write_pictures(lake, {f"i{number}": jpeg(number) for number in range(60)}, rows_per_file=10)
    program = (
        "from pathlib import Path\nfrom jobs import embed_images\nfrom jobs.lake import Lake\n"
        f"config = embed_images.Config.model_validate_json({config.model_dump_json()!r})\n"
        f"embed_images.run(Lake(Path({str(lake.root)!r})), config)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while not lake.exists(ItemImageEmbeddings) or lake.manifest(ItemImageEmbeddings).rows < 12:
        assert child.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL

    survived = rows(lake)
    assert 12 <= len(survived) < 60
    assert len(survived) % 2 == 0, "whole shards only"
    embed_images.run(lake, config)
    resumed = rows(lake)
    assert resumed.filter(pl.col("item_image_vector_id") < len(survived)).equals(survived)
    assert sorted(resumed.get_column("item_image_vector_id")) == list(range(60))
