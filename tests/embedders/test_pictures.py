import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedders.pictures import Preprocessing, as_input, decoded, preprocessing_of

PLAIN = Preprocessing(4, 4, None, resample=0, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
RED, GREEN, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (255, 255, 255), (0, 0, 0)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colour(content: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = decoded(content)
    assert image is not None
    assert image.mode == "RGB"
    pixel = image.getpixel(at)
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_of_many_kinds_are_read(kind: str):
    assert np.abs(np.array(colour(saved(Image.new("RGB", (8, 8), RED), kind))) - RED).max() <= 3


def test_what_is_transparent_becomes_white():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    assert [colour(saved(clear), at) for at in ((0, 0), (1, 0))] == [WHITE, RED]
    assert colour(saved(Image.new("LA", (2, 2), (0, 0)))) == WHITE


def test_a_palette_with_a_transparent_colour_becomes_white_there():
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    content = saved(palette, "PNG", transparency=0)
    assert [colour(content, at) for at in ((0, 0), (1, 0))] == [WHITE, GREEN]


def test_half_transparent_is_half_white():
    assert np.abs(np.array(colour(saved(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))) - 127).max() <= 1


@pytest.mark.parametrize("grey", [0, 100, 255])
def test_grey_of_eight_and_of_sixteen_bits_are_the_same_grey(grey: int):
    deep = Image.fromarray(np.full((2, 2), grey * 257, np.uint16))
    assert colour(saved(Image.new("L", (2, 2), grey))) == colour(saved(deep)) == (grey,) * 3


def test_one_bit_is_black_or_white():
    assert colour(saved(Image.new("1", (2, 2), 1))) == WHITE
    assert colour(saved(Image.new("1", (2, 2), 0))) == BLACK


def test_colours_of_print_become_colours_of_the_screen():
    red, green, blue = colour(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phone_held_otherwise_still_gives_an_upright_picture(orientation: int):
    upright = Image.new("RGB", (8, 16), WHITE)
    upright.paste(RED, (0, 0, 8, 8))  # the upper half
    upright.paste(GREEN, (0, 0, 4, 8))  # and its left
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    as_taken = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(as_taken, "PNG", exif=exif)
    image = decoded(content)
    assert image is not None
    assert image.size == (8, 16)
    assert [image.getpixel(at) for at in ((1, 1), (6, 1), (1, 14))] == [GREEN, RED, WHITE]


def test_of_moving_pictures_the_first_is_read():
    frames = [Image.new("RGB", (4, 4), shade) for shade in (RED, GREEN)]
    assert colour(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])) == RED


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels that says so and is a few bytes long."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0", saved(NOISE, "JPEG")[:500], saved(NOISE)[:500], bomb()],
    ids=["nothing", "a page", "a start", "a cut JPEG", "a cut PNG", "a bomb"],
)
def test_what_is_no_whole_picture_is_none(content: bytes):
    assert decoded(content) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_broken_bytes_never_raise(kind: str, data: st.DataObject):
    content = bytearray(saved(NOISE.resize((16, 16)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    image = decoded(bytes(content))
    assert image is None or image.mode == "RGB"


def test_a_picture_becomes_colours_by_rows_scaled_and_normalised():
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    how = Preprocessing(4, 4, None, resample=0, scale=0.1, mean=(1.0, 1.0, 1.0), std=(2.0, 1.0, 0.5))
    seen = as_input(image, how)
    assert seen.shape == (3, 4, 4)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen[:, 0, 0], [0.0, 1.0, 4.0], atol=1e-6)


def test_all_of_a_picture_is_squeezed_in_or_its_middle_is_cut_out():
    wide = Image.new("RGB", (12, 4), BLACK)
    wide.paste(WHITE, (4, 0, 8, 4))
    assert {0.0, 255.0} == set(np.unique(as_input(wide, PLAIN)))
    cropped = Preprocessing(4, 4, 4, resample=0, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert (as_input(wide, cropped) == 255).all()


def test_a_strip_of_one_pixel_costs_no_memory():
    how = Preprocessing(224, 224, 256, resample=2, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert as_input(Image.new("RGB", (1, 50_000)), how).shape == (3, 224, 224)


NORMAL = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    ("given_settings", "height", "shortest_edge"),
    [
        ({"size": {"height": 224, "width": 224}}, 224, None),
        ({"size": 224}, 224, None),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            224,
            256,
        ),
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, 224, 256),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 224, 256),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, 384, 384),
    ],
    ids=str,
)
def test_the_settings_of_common_models_are_understood(given_settings: dict, height: int, shortest_edge: float | None):
    how = preprocessing_of({**given_settings, **NORMAL}, "here")
    assert (how.height, how.shortest_edge, how.scale) == (height, shortest_edge, pytest.approx(1 / 255))


@pytest.mark.parametrize(
    "given_settings",
    [
        {"size": {"longest_edge": 224}},
        {"do_resize": False},
        {"size": {"shortest_edge": 200}, "do_center_crop": True, "crop_size": 224},
        {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224},
    ],
    ids=str,
)
def test_settings_that_are_not_known_are_refused_and_not_guessed(given_settings: dict):
    with pytest.raises(ValueError, match="here: "):
        preprocessing_of({**given_settings, **NORMAL}, "here")


def test_the_identity_of_preprocessing_sees_every_part():
    other = [
        Preprocessing(5, 4, None, 0, 1.0, (0.0,) * 3, (1.0,) * 3),
        Preprocessing(4, 4, 4, 0, 1.0, (0.0,) * 3, (1.0,) * 3),
        Preprocessing(4, 4, None, 2, 1.0, (0.0,) * 3, (1.0,) * 3),
        Preprocessing(4, 4, None, 0, 1.0, (0.1,) * 3, (1.0,) * 3),
    ]
    assert len({PLAIN.sha256(), *(how.sha256() for how in other)}) == 5
