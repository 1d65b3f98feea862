from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedders.backbone import load_backbone
from embedders.mkd import InteractionStudent, RepresentationStudent, Student
from embedders.mkd_model import MkdModel

WORDS = ["red", "blue", "drill", "saw", "makita", "cordless"]
PAIRS = [
    ("red drill", "makita drill red"),
    ("saw", "blue saw"),
    ("red drill", "blue cordless saw"),
    ("saw", "blue saw"),
]


@pytest.fixture(scope="module")
def folder(save_word_encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_encoder(tmp_path_factory.mktemp("encoder"), WORDS)


def model(kind: str, folder: Path, num_labels: int = 2) -> MkdModel:
    student: Student
    if kind == "interaction":
        student = InteractionStudent.pretrained(str(folder), num_labels=num_labels, max_tokens=16)
    else:
        student = RepresentationStudent.pretrained(str(folder), num_classes=(3, 2), max_tokens=16)
        with torch.no_grad():
            student.bias.fill_(-7.3)
    return MkdModel(student)


BOTH = pytest.mark.parametrize("kind", ["interaction", "representation"])


@BOTH
def test_saved_and_loaded_it_is_the_same_model_to_the_bit(kind: str, folder: Path, tmp_path: Path) -> None:
    one = model(kind, folder)
    one.save(tmp_path / "saved")
    loaded = MkdModel.load(tmp_path / "saved", device="cpu")
    assert loaded.kind == kind
    assert np.array_equal(loaded.score(PAIRS), one.score(PAIRS))
    assert loaded.weights_sha256() == one.weights_sha256()
    loaded.save(tmp_path / "again")
    assert MkdModel.load(tmp_path / "again", device="cpu").weights_sha256() == one.weights_sha256()
    with torch.no_grad():
        next(loaded.student.encoder.parameters())[4, 0] += 1e-3
    assert loaded.weights_sha256() != one.weights_sha256()


@pytest.mark.parametrize("pooling", ["alignment", "first", "mean"])
def test_a_cross_encoder_keeps_what_stands_for_a_pair(pooling: Any, folder: Path, tmp_path: Path) -> None:
    student = InteractionStudent.pretrained(str(folder), pooling=pooling, max_tokens=16)
    with torch.no_grad():
        student.label_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    MkdModel(student).save(tmp_path)
    loaded = MkdModel.load(tmp_path, device="cpu")
    assert loaded.student.pooling == pooling  # type: ignore[union-attr]
    assert np.array_equal(loaded.score(PAIRS), MkdModel(student).score(PAIRS))


@BOTH
def test_scores_are_in_the_order_of_the_pairs_and_equal_for_equal_ones(kind: str, folder: Path) -> None:
    one = model(kind, folder)
    scores = one.score(PAIRS)
    assert scores.shape == (4,)
    assert scores.dtype == np.float32
    assert (scores >= 0).all()
    assert (scores <= 1).all()
    assert scores[1] == scores[3]
    assert np.allclose(one.score(PAIRS[::-1]), scores[::-1], atol=1e-6)
    assert np.allclose(1 / (1 + np.exp(-one.log_odds(PAIRS).astype(np.float64))), scores, atol=1e-6)
    assert one.score([]).shape == (0,)


def test_any_pair_is_scored_by_its_vectors_alone(folder: Path) -> None:
    one = model("representation", folder)
    queries, items = one.embed_queries([q for q, _ in PAIRS]), one.embed_items([i for _, i in PAIRS])
    assert queries.dtype == items.dtype == np.float32
    assert np.allclose(np.linalg.norm(items, axis=1), 1.0, atol=1e-5)
    assert np.array_equal(one.log_odds_of_vectors(queries, items), one.log_odds(PAIRS))
    by_hand = one.kappa * (queries.astype(np.float64) * items).sum(axis=1) + one.bias
    assert np.allclose(one.log_odds(PAIRS), by_hand, atol=1e-4)
    assert one.kappa == pytest.approx(10.0)
    assert one.bias == pytest.approx(-7.3)
    assert one.embed_queries([]).shape == (0, 32)


def test_the_saved_bi_encoder_is_a_backbone_with_the_same_vectors(folder: Path, tmp_path: Path) -> None:
    one = model("representation", folder)
    one.save(tmp_path / "saved")
    texts = [item for _, item in PAIRS]
    backbone = load_backbone(str(tmp_path / "saved" / "encoder"), max_tokens=16, device="cpu")
    assert np.allclose(backbone.encode(texts), one.embed_items(texts), atol=1e-6)


def test_scores_of_more_labels_are_the_expected_label(folder: Path) -> None:
    one = model("interaction", folder, num_labels=3)
    probability = one.probabilities(PAIRS)
    assert probability.shape == (4, 3)
    assert np.allclose(probability.sum(axis=1), 1.0, atol=1e-6)
    assert np.allclose(one.score(PAIRS), probability @ [0.0, 0.5, 1.0], atol=1e-6)


def test_what_only_the_other_kind_has_is_refused(folder: Path) -> None:
    interaction, representation = model("interaction", folder), model("representation", folder)
    with pytest.raises(TypeError, match="embed_queries: an interaction student reads pairs"):
        interaction.embed_items(["saw"])
    with pytest.raises(TypeError, match="kappa: an interaction student"):
        _ = interaction.kappa
    with pytest.raises(TypeError, match="no distribution over labels"):
        representation.probabilities(PAIRS)


@BOTH
def test_bfloat16_stays_near_and_is_another_fingerprint(kind: str, folder: Path, tmp_path: Path) -> None:
    one = model(kind, folder)
    one.save(tmp_path)
    half = MkdModel(one.student, precision="bfloat16")
    assert np.abs(half.score(PAIRS) - one.score(PAIRS)).max() < 0.05
    prints = [each.fingerprint(folder=tmp_path, prompt="p1", trained_through=None) for each in (one, half)]
    assert prints[0] != prints[1]
    assert (prints[0].dtype, prints[1].dtype) == ("float32", "bfloat16")
    assert prints[0] == MkdModel.load(tmp_path, device="cpu").fingerprint(
        folder=tmp_path, prompt="p1", trained_through=None
    )
    assert prints[0].dimension == (1 if kind == "interaction" else 32)


@BOTH
def test_progress_counts_every_pair(kind: str, folder: Path) -> None:
    told: list[int] = []
    model(kind, folder).score(PAIRS, on_progress=told.append)
    assert sum(told) == 4


def test_progress_of_texts_counts_repeated_ones(folder: Path) -> None:
    told: list[int] = []
    model("representation", folder).embed_items(["saw", "drill", "saw"], on_progress=told.append)
    assert sum(told) == 3


def test_a_folder_without_a_student_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no student"):
        MkdModel.load(folder)
    model("interaction", folder).save(tmp_path)
    told = (tmp_path / "mkd.json").read_text()
    (tmp_path / "mkd.json").write_text(told.replace('"format": 1', '"format": 0'))
    with pytest.raises(ValueError, match="format 0, expected 1"):
        MkdModel.load(tmp_path)
