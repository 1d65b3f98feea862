import dataclasses
import datetime as dt
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from embedders.fingerprint import Fingerprint
from embedders.prompts import PROMPTS
from feature_repo.table_schemas import ItemContentEmbeddings, Items
from jobs import embed_items
from jobs.dated_vectors import NUM_CANARIES
from jobs.lake import Lake, TableError

T = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)

WORDS = Fingerprint("words", "w", "t", "", "sum", 8, "l2", "float32")


class WordBackbone:
    """Adds up one fixed random vector per word; remembers what it was asked to encode."""

    def __init__(self, fingerprint: Fingerprint = WORDS, seed: int = 0, fail_after: int | None = None) -> None:
        self._fingerprint, self.seed, self.fail_after = fingerprint, seed, fail_after
        self.dimension = fingerprint.dimension
        self.encoded: list[str] = []

    def fingerprint(self, prompt: str) -> Fingerprint:
        return dataclasses.replace(self._fingerprint, prompt=prompt)

    def encode(
        self, texts: Sequence[str], batch_size: int = 64, on_progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        if self.fail_after is not None and len(self.encoded) >= self.fail_after:
            raise KeyboardInterrupt
        self.encoded.extend(texts)
        vectors = np.stack([sum(map(self._of_word, text.split())) for text in texts])
        if on_progress:
            on_progress(len(texts))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def _of_word(self, word: str) -> NDArray[np.float64]:
        digest = hashlib.sha256(f"{self.seed} {word}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little")).normal(size=self.dimension)


def write_items(lake: Lake, titles: Sequence[str | None]) -> None:
    """Items i000, i001, ... of one day each."""
    count = len(titles)
    nothing = pl.lit(None, pl.String)
    lake.write(
        Items,
        pl.DataFrame(
            {
                "item_id": [f"i{number:03}" for number in range(count)],
                "title": pl.Series(titles, dtype=pl.String),
                "price_cents": pl.Series([100] * count, dtype=pl.Int64),
                "event_timestamp": pl.Series(
                    [T + number * DAY for number in range(count)], dtype=pl.Datetime("us", "UTC")
                ),
                "created_timestamp": pl.Series([T] * count, dtype=pl.Datetime("us", "UTC")),
            }
        ).with_columns(category=nothing, brand=nothing, keywords=nothing, attributes=nothing, description=nothing),
    )


def embed(lake: Lake, backbone: WordBackbone, prompt: str = "learn", shard_size: int = 1024) -> WordBackbone:
    embed_items.embed_catalogue(lake, backbone, PROMPTS[prompt], batch_size=4, shard_size=shard_size)
    return backbone


def rows(lake: Lake) -> pl.DataFrame:
    return lake.read(ItemContentEmbeddings).sort("item_id", "event_timestamp")


def test_a_first_vector_is_dated_with_its_item(lake: Lake):
    write_items(lake, ["tent", "bag", "stove"])
    embed(lake, WordBackbone())
    table = rows(lake)
    assert table.get_column("event_timestamp").to_list() == [T, T + DAY, T + 2 * DAY]
    assert table.get_column("created_timestamp").equals(table.get_column("event_timestamp"))


def test_each_item_gets_the_vector_of_its_own_text(lake: Lake):
    titles = [f"thing {'of ' * (number % 3)}kind {number % 7}" for number in range(40)]
    write_items(lake, titles)
    embed(lake, WordBackbone(), shard_size=3)
    expected = WordBackbone().encode([f'Product record. Title is "{title}". It costs "1.00".' for title in titles])
    stored = np.array(rows(lake).get_column("item_content_embedding").to_list(), np.float32)
    np.testing.assert_allclose(stored, expected, atol=1e-6)


def test_vector_ids_are_dense_distinct_and_stay(lake: Lake):
    write_items(lake, ["tent"])
    embed(lake, WordBackbone())
    write_items(lake, ["tent", "bag", "stove", None, "bag"])
    before = rows(lake)
    embed(lake, WordBackbone(), shard_size=1)
    ids = rows(lake).get_column("item_content_vector_id")
    assert sorted(ids) == [0, 1, 2, 3]
    assert rows(lake).filter(pl.col("item_id") == "i000").equals(before)


def test_a_second_run_encodes_nothing_and_leaves_the_table_as_it_is(lake: Lake):
    write_items(lake, [f"thing {number}" for number in range(20)])
    embed(lake, WordBackbone())
    before = lake.manifest(ItemContentEmbeddings)
    assert embed(lake, WordBackbone()).encoded == []
    assert lake.manifest(ItemContentEmbeddings) == before


def test_one_edited_text_in_a_hundred_is_encoded_alone(lake: Lake):
    titles: list[str | None] = [f"thing {number}" for number in range(200)]
    write_items(lake, titles)
    embed(lake, WordBackbone())
    titles[7], titles[150] = "another seven", "another hundred and fifty"
    write_items(lake, titles)
    backbone = embed(lake, WordBackbone())
    assert lake.manifest(ItemContentEmbeddings).rows == 202
    assert len(backbone.encoded) == NUM_CANARIES + 2
    assert [text for text in backbone.encoded if "another" in text] == backbone.encoded[-2:]


def test_an_edited_text_is_dated_now_and_the_old_row_stays(lake: Lake, now: dt.datetime):
    write_items(lake, ["tent", "bag"])
    embed(lake, WordBackbone())
    before = rows(lake)
    write_items(lake, ["two-man tent", "bag"])
    embed(lake, WordBackbone())
    table = rows(lake)
    assert table.filter(pl.col("event_timestamp") < now).equals(before)
    edited = table.filter(pl.col("event_timestamp") >= now)
    assert edited.select("item_id", "event_timestamp", "created_timestamp").rows() == [("i000", now, now)]


def test_two_edits_at_one_moment_are_still_one_after_the_other(lake: Lake, now: dt.datetime):
    for title in ("tent", "red tent", "blue tent", "red tent"):
        write_items(lake, [title])
        embed(lake, WordBackbone())
    times = rows(lake).get_column("event_timestamp").to_list()
    assert times == [T, now, now + dt.timedelta(microseconds=1), now + dt.timedelta(microseconds=2)]


def test_only_new_items_are_encoded(lake: Lake):
    write_items(lake, ["tent", "bag"])
    embed(lake, WordBackbone())
    write_items(lake, ["tent", "bag", "stove"])
    assert "stove" in embed(lake, WordBackbone()).encoded[-1]
    assert rows(lake).get_column("event_timestamp").to_list() == [T, T + DAY, T + 2 * DAY]


def test_equal_texts_are_encoded_once_and_shared(lake: Lake):
    write_items(lake, ["tent", "bag", "tent", "tent"])
    assert len(embed(lake, WordBackbone(), shard_size=1).encoded) == 2
    table = rows(lake)
    assert table.get_column("item_content_vector_id").n_unique() == 4
    vectors = table.get_column("item_content_embedding").to_list()
    assert vectors[0] == vectors[2] == vectors[3] != vectors[1]


def test_items_without_text_get_no_vector_and_are_counted(lake: Lake, caplog: pytest.LogCaptureFixture):
    write_items(lake, ["tent", None, "  "])
    with caplog.at_level(logging.INFO):
        embed(lake, WordBackbone())
    assert rows(lake).get_column("item_id").to_list() == ["i000"]
    assert "1 items encoded (1 new, 0 edited" in caplog.text
    assert "2 without text" in caplog.text


@pytest.mark.parametrize("titles", [[], [None]])
def test_a_catalogue_without_texts_makes_an_empty_table(lake: Lake, titles: list[str | None]):
    write_items(lake, titles)
    embed(lake, WordBackbone())
    assert lake.read(ItemContentEmbeddings).is_empty()
    assert lake.manifest(ItemContentEmbeddings).fingerprint["model_id"] == "words"
    write_items(lake, ["tent"])
    embed(lake, WordBackbone())
    assert rows(lake).get_column("item_content_vector_id").to_list() == [0]


def test_the_manifest_says_which_model_made_the_table(lake: Lake):
    write_items(lake, ["tent"])
    embed(lake, WordBackbone())
    expected = dataclasses.replace(WORDS, prompt="learn_v1").as_tags()
    assert lake.manifest(ItemContentEmbeddings).fingerprint == expected
    assert lake.manifest(ItemContentEmbeddings).metadata["made_with"]["torch"] == torch.__version__


def test_another_encoder_writes_the_table_anew_and_says_so(lake: Lake, caplog: pytest.LogCaptureFixture):
    write_items(lake, ["tent", "bag"])
    embed(lake, WordBackbone())
    other = dataclasses.replace(WORDS, model_id="other words", dimension=12)
    embed(lake, WordBackbone(other, seed=1))
    table = rows(lake)
    assert table.get_column("item_content_embedding").list.len().to_list() == [12, 12]
    assert table.get_column("item_content_vector_id").to_list() == [2, 3], "an id never means two vectors"
    assert lake.manifest(ItemContentEmbeddings).fingerprint["model_id"] == "other words"
    assert "made by words (learn_v1, 8 wide" in caplog.text
    assert "written anew by other words (learn_v1, 12 wide" in caplog.text


@pytest.mark.parametrize("prompt", ["learn", "amazon"])
def test_a_table_written_anew_keeps_the_dates_of_its_texts(lake: Lake, now: dt.datetime, prompt: str):
    write_items(lake, ["tent", "bag", "stove"])
    embed(lake, WordBackbone())
    write_items(lake, ["two-man tent", "bag", "stove"])
    embed(lake, WordBackbone())
    write_items(lake, ["two-man tent", "bag", "gas stove"])  # edited together with the change of encoder
    embed(lake, WordBackbone(seed=1, fingerprint=dataclasses.replace(WORDS, weights_sha256="x")), prompt)
    assert rows(lake).get_column("event_timestamp").to_list() == [now, T + DAY, now]


def test_a_job_killed_while_writing_anew_dates_no_edit_back(lake: Lake, now: dt.datetime):
    titles: list[str | None] = ["a", "b", "c", "d", "e"]
    write_items(lake, titles)
    embed(lake, WordBackbone())
    titles[3:] = ["edited d", "edited e"]
    write_items(lake, titles)
    embed(lake, WordBackbone())
    before = lake.manifest(ItemContentEmbeddings)
    other = dataclasses.replace(WORDS, weights_sha256="x")

    with pytest.raises(KeyboardInterrupt):  # while it encodes the edited texts: the old table is still there
        embed(lake, WordBackbone(other, fail_after=1), shard_size=1)
    assert lake.manifest(ItemContentEmbeddings) == before
    with pytest.raises(KeyboardInterrupt):  # after one more shard: the edited texts are in the new table
        embed(lake, WordBackbone(other, fail_after=3), shard_size=1)
    assert lake.manifest(ItemContentEmbeddings).fingerprint["weights_sha256"] == "x"
    assert rows(lake).get_column("item_id").to_list() == ["i000", "i003", "i004"]
    embed(lake, WordBackbone(other), shard_size=1)
    assert rows(lake).get_column("event_timestamp").to_list() == [T, T + DAY, T + 2 * DAY, now, now]


def test_an_encoder_that_drifted_under_its_old_name_is_stopped_before_it_writes(lake: Lake):
    write_items(lake, ["tent", "bag"])
    embed(lake, WordBackbone())
    before = lake.manifest(ItemContentEmbeddings)
    write_items(lake, ["tent", "bag", "stove"])
    with pytest.raises(
        ValueError, match=r"(?s)2 of 2 canary items no longer give.*stored: words.*now:    words.*what to do: install"
    ):
        embed(lake, WordBackbone(seed=1))
    assert lake.manifest(ItemContentEmbeddings) == before


class NanBackbone(WordBackbone):
    def encode(
        self, texts: Sequence[str], batch_size: int = 64, on_progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        vectors = super().encode(texts, batch_size, on_progress)
        vectors[["stove" in text for text in texts], 3] = np.nan
        return vectors


class NarrowBackbone(WordBackbone):
    def encode(
        self, texts: Sequence[str], batch_size: int = 64, on_progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        vectors = super().encode(texts, batch_size, on_progress)
        if any("stove" in text for text in texts):
            vectors = vectors[:, :5] / np.linalg.norm(vectors[:, :5], axis=1, keepdims=True)
        return vectors


@pytest.mark.parametrize(
    ("broken", "rule"), [(NanBackbone, "finite_and_unit_norm"), (NarrowBackbone, "vector_is_8_wide")]
)
def test_bad_vectors_are_refused_and_nothing_is_half_written(lake: Lake, broken: type[WordBackbone], rule: str):
    write_items(lake, ["tent", "bag"])
    embed(lake, WordBackbone())
    before = lake.manifest(ItemContentEmbeddings)
    write_items(lake, ["tent", "bag", "stove", "gas stove"])
    with pytest.raises(TableError, match=rf"item_content_embeddings: .*{rule}"):
        embed(lake, broken())
    assert lake.manifest(ItemContentEmbeddings) == before


def save_tiny_bert(folder: Path) -> None:
    vocabulary = {name: number for number, name in enumerate(["[UNK]", "[PAD]", *map(str, range(10))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(vocabulary), pad_token_id=1, **size)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def test_other_weights_under_the_same_path_make_the_step_stale(tmp_path: Path):
    save_tiny_bert(tmp_path / "bert")
    config = embed_items.Config(backbone=str(tmp_path / "bert"))
    before = embed_items.outside_inputs(config)
    assert embed_items.outside_inputs(config) == before
    with (tmp_path / "bert" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert embed_items.outside_inputs(config) != before


def test_killed_at_any_moment_it_loses_one_shard_at_most(tmp_path: Path, now: dt.datetime):
    """A real process, a real encoder, SIGKILL: what was committed stays, and the next run does only the rest."""
    save_tiny_bert(tmp_path / "bert")
    lake = Lake(tmp_path / "lake", now=lambda: now)
    write_items(lake, [f"thing {number}" for number in range(240)])
    config = embed_items.Config(backbone=str(tmp_path / "bert"), shard_size=4)
    program = (
        "from pathlib import Path\nfrom jobs import embed_items\nfrom jobs.lake import Lake\n"
        f"config = embed_items.Config.model_validate_json({config.model_dump_json()!r})\n"
        f"embed_items.run(Lake(Path({str(lake.root)!r})), config)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while not lake.exists(ItemContentEmbeddings) or lake.manifest(ItemContentEmbeddings).rows < 40:
        assert child.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL

    survived = rows(lake)
    assert 40 <= len(survived) < 240
    assert len(survived) % 4 == 0, "whole shards only"
    embed_items.run(lake, config)
    resumed = rows(lake)
    assert resumed.filter(pl.col("item_content_vector_id") < len(survived)).equals(survived)
    assert sorted(resumed.get_column("item_content_vector_id")) == list(range(240))

    unharmed = Lake(tmp_path / "unharmed", now=lambda: now)
    unharmed.write(Items, lake.read(Items))
    embed_items.run(unharmed, config)
    np.testing.assert_allclose(
        np.array(resumed.get_column("item_content_embedding").to_list()),
        np.array(rows(unharmed).get_column("item_content_embedding").to_list()),
        atol=1e-5,
    )
    assert resumed.drop("item_content_embedding").equals(rows(unharmed).drop("item_content_embedding"))


def test_the_default_configuration_knows_a_tent_from_a_lipstick(lake: Lake):
    write_items(lake, ["Two-man dome tent", "Three-season sleeping bag", "Matte red lipstick"])
    embed_items.run(lake, embed_items.Config())
    tent, bag, lipstick = np.array(rows(lake).get_column("item_content_embedding").to_list())
    assert tent @ bag > tent @ lipstick
    assert lake.manifest(ItemContentEmbeddings).fingerprint["dimension"] == "384"


def test_the_layer_and_the_pooling_that_were_asked_for_make_the_table(lake: Lake):
    write_items(lake, ["Two-man dome tent", "Matte red lipstick"])
    embed_items.run(lake, embed_items.Config(layer=3, pooling="mean_without_first"))
    expected = "masked mean of layer 3 of 6 without the first token, 500 tokens"
    assert lake.manifest(ItemContentEmbeddings).fingerprint["pooling"] == expected


def test_planning_the_step_does_not_import_torch():
    program = "import sys, jobs.embed_items, jobs.embed_users; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0
