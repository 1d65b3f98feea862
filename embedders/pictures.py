"""From the bytes of a picture to the numbers that a vision model was trained on. Pillow decodes; nothing here learns.

Shops send what they have: turned by a phone (EXIF), cut out on a transparent ground, grey, sixteen bits deep, in the
colours of print (CMYK), animated, cut off, or an error page called .jpg. It becomes RGB, upright, on white; or nothing.
"""

import hashlib
import io
import json
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

PREPROCESSING_VERSION = "picture_v1"
"""Of the code below: what it does to a picture besides the numbers of `Preprocessing`."""

MOST_PIXELS = 100_000_000
"""A larger picture is refused before it is unpacked: a file of a few kilobytes can fill all memory."""

NOT_A_PICTURE = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError)
"""What Pillow's decoders raise on bytes that are broken; `struct.error` and `zlib.error` beside them."""


@dataclass(frozen=True)
class Preprocessing:
    """Size and scale of what a model sees.

    Attributes:
        height, width: of its input, in pixels.
        shortest_edge: the picture is scaled until its shorter side is so long, and the middle cut out; None: all of the
            picture is squeezed to height and width.
        resample: Pillow's number of the filter (2 bilinear, 3 bicubic).
        scale: what pixel values 0 to 255 are multiplied with.
        mean, std: of each colour, after that.
    """

    height: int
    width: int
    shortest_edge: float | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def sha256(self) -> str:
        """Identity: equal for two that make the same numbers of a picture."""
        content = {"version": PREPROCESSING_VERSION, **asdict(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def preprocessing_of(settings: Mapping[str, Any], where: str) -> Preprocessing:
    """Read the settings of a Hugging Face image processor (`preprocessor_config.json`).

    Raises:
        ValueError: they ask for something that is not known here.
    """
    if not settings.get("do_resize", True):
        raise ValueError(f"{where}: do_resize is false, but pictures come in any size; name a size")
    size, crop = settings.get("size"), settings.get("crop_size")
    cropped = bool(settings.get("do_center_crop", False))
    if isinstance(size, int):
        size = {"shortest_edge": size} if cropped else {"height": size, "width": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        seen, shortest = (size["height"], size["width"]), None
        if cropped and crop and (crop["height"], crop["width"]) != seen:
            raise ValueError(
                f"{where}: a picture squeezed to {dict(size)} and then cropped to {crop} is not known here"
            )
    elif isinstance(size, Mapping) and "shortest_edge" in size:
        edge = size["shortest_edge"]
        shortest = edge / settings.get("crop_pct", 1.0) if "crop_pct" in settings and edge < 384 else edge
        seen = (crop["height"], crop["width"]) if cropped and crop else (edge, edge)
        if max(seen) > shortest:
            raise ValueError(f"{where}: the crop {crop} is larger than the shortest edge {shortest}")
    else:
        raise ValueError(f"{where}: size is {size}, expected height and width, or shortest_edge")
    normalised = settings.get("do_normalize", True)
    return Preprocessing(
        height=int(seen[0]),
        width=int(seen[1]),
        shortest_edge=shortest,
        resample=int(settings.get("resample", Image.Resampling.BILINEAR)),
        scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
        mean=tuple(settings["image_mean"]) if normalised else (0.0, 0.0, 0.0),
        std=tuple(settings["image_std"]) if normalised else (1.0, 1.0, 1.0),
    )


def decoded(content: bytes) -> Image.Image | None:
    """The picture, upright, RGB, on white; None where the bytes are no picture that can be read to its end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and of broken EXIF: neither is news here
            image: Image.Image = Image.open(io.BytesIO(content))
            if image.width * image.height > MOST_PIXELS:
                return None
            image.load()
            return _on_white(ImageOps.exif_transpose(image))
    except (*NOT_A_PICTURE, struct.error, zlib.error, Image.DecompressionBombError):
        return None


def as_input(image: Image.Image, how: Preprocessing) -> NDArray[np.float32]:
    """[3, height, width] float32, scaled and normalised."""
    box: tuple[float, float, float, float] | None = None
    if how.shortest_edge is not None:
        # the middle of the picture, cut out before it is scaled: a strip of 1 x 50,000 would fill memory otherwise
        pixels = min(image.width, image.height) / how.shortest_edge
        left, top = (image.width - how.width * pixels) / 2, (image.height - how.height * pixels) / 2
        box = (left, top, left + how.width * pixels, top + how.height * pixels)
    resized = image.resize((how.width, how.height), Image.Resampling(how.resample), box=box)
    pixels_HW3 = np.asarray(resized, np.float32) * np.float32(how.scale)
    scaled_HW3 = (pixels_HW3 - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(scaled_HW3.transpose(2, 0, 1), np.float32)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut off at 255
        grey = np.clip(np.asarray(image, np.float32) / 257, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    transparent = image.convert("RGBA")
    ground = Image.new("RGBA", transparent.size, "white")
    return Image.alpha_composite(ground, transparent).convert("RGB")
