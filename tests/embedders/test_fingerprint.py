import dataclasses
import hashlib
from pathlib import Path

import pytest

from embedders.fingerprint import Fingerprint, check_same, sha256_of_files

ONE = Fingerprint(
    model_id="minilm",
    weights_sha256="aa",
    tokenizer_sha256="bb",
    prompt="learn_v1",
    pooling="masked mean",
    dimension=384,
    normalisation="l2",
    dtype="float32",
)


def test_tags_are_strings_and_give_the_fingerprint_back():
    for fingerprint in (ONE, dataclasses.replace(ONE, trained_through="2025-06-01T00:00:00Z")):
        tags = fingerprint.as_tags()
        assert all(isinstance(value, str) for value in tags.values())
        assert Fingerprint.from_tags({**tags, "owner": "search team"}) == fingerprint


def test_tags_without_a_part_name_the_part():
    tags = ONE.as_tags()
    del tags["dtype"]
    with pytest.raises(KeyError, match="fingerprint without dtype"):
        Fingerprint.from_tags(tags)


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(Fingerprint)])
def test_every_part_counts(part: str):
    other = dataclasses.replace(ONE, **{part: 768 if part == "dimension" else "other"})
    assert other.digest() != ONE.digest()
    with pytest.raises(ValueError, match=part):
        check_same(ONE, other, "train_ranker")


def test_equal_fingerprints_pass_as_objects_and_as_tags():
    check_same(ONE, dataclasses.replace(ONE), "here")
    check_same(ONE, ONE.as_tags(), "here")


def test_a_mismatch_names_the_place_and_both_sides():
    with pytest.raises(
        ValueError,
        match=r"(?s)train_ranker, item_content: .*prompt: expected learn_v1, found amazon_v1.*what to do",
    ):
        check_same(ONE, dataclasses.replace(ONE, prompt="amazon_v1"), "train_ranker, item_content")


def test_a_table_without_a_fingerprint_is_a_mismatch():
    with pytest.raises(ValueError, match="model_id: expected minilm, found nothing"):
        check_same(ONE, {}, "here")


def test_the_mean_of_a_history_is_not_an_item_vector():
    assert ONE.of_mean_of_history() != ONE
    assert ONE.of_mean_of_history().weights_sha256 == ONE.weights_sha256


def test_learns_vectors_are_those_of_one_network_over_one_content_encoder():
    model = ONE.of_learn(weights_sha256="cc", dimension=64, trained_through="2025-06-01T00:00:00+00:00")
    assert (model.model_id, model.dimension, model.trained_through) == ("learn", 64, "2025-06-01T00:00:00+00:00")
    assert Fingerprint.from_tags(model.as_tags()) == model
    for part in [field.name for field in dataclasses.fields(Fingerprint)]:
        other = dataclasses.replace(ONE, **{part: 768 if part == "dimension" else "other"})
        assert other.of_learn(weights_sha256="cc", dimension=64, trained_through="2025-06-01T00:00:00+00:00") != model
    for part, value in {
        "weights_sha256": "dd",
        "dimension": 32,
        "trained_through": "2025-07-01T00:00:00+00:00",
    }.items():
        assert dataclasses.replace(model, **{part: value}) != model


def test_karmas_vectors_are_those_of_one_network_over_one_pair_of_frozen_encoders():
    through = "2025-06-01T00:00:00+00:00"
    images = dataclasses.replace(ONE, model_id="pictures", weights_sha256="dd")
    model = ONE.of_karma(images, weights_sha256="cc", dimension=64, trained_through=through)
    assert (model.model_id, model.weights_sha256, model.dimension, model.trained_through) == (
        "karma",
        "cc",
        64,
        through,
    )
    others = [
        ONE.of_karma(None, weights_sha256="cc", dimension=64, trained_through=through),
        ONE.of_karma(
            dataclasses.replace(images, dtype="bfloat16"), weights_sha256="cc", dimension=64, trained_through=through
        ),
        dataclasses.replace(ONE, weights_sha256="ee").of_karma(
            images, weights_sha256="cc", dimension=64, trained_through=through
        ),
        ONE.of_karma(images, weights_sha256="ff", dimension=64, trained_through=through),
        ONE.of_karma(images, weights_sha256="cc", dimension=64, trained_through=through, dtype="bfloat16"),
        ONE.of_learn(weights_sha256="cc", dimension=64, trained_through=through),
    ]
    assert len({model, *others}) == 1 + len(others)


def test_a_hash_over_files_sees_content_and_name_but_not_folder_or_order(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "x").write_bytes(b"weights")
        (tmp_path / folder / "y").write_bytes(b"config")
    one = sha256_of_files({"x": tmp_path / "a/x", "y": tmp_path / "a/y"})
    assert one == sha256_of_files({"y": tmp_path / "b/y", "x": tmp_path / "b/x"})
    assert one != sha256_of_files({"x": tmp_path / "a/y", "y": tmp_path / "a/x"})
    expected = hashlib.sha256(f"x {hashlib.sha256(b'weights').hexdigest()}\n".encode()).hexdigest()
    assert sha256_of_files({"x": tmp_path / "a/x"}) == expected


def test_a_replaced_file_is_hashed_again(tmp_path: Path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    before = sha256_of_files({"weights": path})
    path.write_bytes(b"three")
    assert sha256_of_files({"weights": path}) != before
