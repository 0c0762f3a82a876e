"""Images to pixels and pan-and-scan crops: literals, properties, and transformers' processor bit for bit."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from t5g2ref.notes import Note, noted
from t5g2ref.processor.crops import Box, pan_and_scan
from t5g2ref.processor.image import levels, preprocess, preprocess_all

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

ORIENTATION = 0x0112  # the EXIF tag


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def processor(peer_installed: None) -> Any:
    """transformers' PIL processor, as Gemma 3's preprocessor_config.json makes it, but for a smaller size."""
    module = pytest.importorskip(
        "transformers.models.gemma3.image_processing_pil_gemma3", reason="this release has no Pillow processor"
    )
    return module.Gemma3ImageProcessorPil(
        size={"height": 56, "width": 56},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_convert_rgb=True,
        pan_and_scan_min_crop_size=256,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )


def peer_pixels(processor: Any, images: list[Any], pan: bool = False) -> tuple[NDArray[np.float32], list[int]]:
    out = processor(images, do_pan_and_scan=pan)
    return np.stack(out["pixel_values"]), list(out["num_crops"])


def assert_same_bits(ours: NDArray[np.float32], peer: NDArray[np.float32]) -> None:
    assert ours.shape == peer.shape
    assert ours.dtype == peer.dtype == np.float32
    np.testing.assert_array_equal(ours, peer)  # the same rounding at each step: no tolerance to choose


# Values


def test_levels_literals() -> None:
    # Worked in exact rationals: k / 255 rounded to a float32, less 1/2, rounded, times 2.
    # 51 / 255 = 0.2 and 204 / 255 = 0.8 as float32 are 13421773 / 2^26 and 13421773 / 2^24.
    values = levels()
    assert values.shape == (256,)
    assert values.dtype == np.float32
    assert values[0] == -1
    assert values[255] == 1
    assert values[51] == np.float32((13421773 / 2**26 - 0.5) * 2)
    assert values[204] == np.float32((13421773 / 2**24 - 0.5) * 2)
    assert np.all(np.diff(values) > 0)


def test_preprocess_keeps_an_image_of_the_right_size() -> None:
    array = noise(5, 5)
    pixels = preprocess(array, 5)
    assert pixels.shape == (3, 5, 5)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, levels()[array].transpose(2, 0, 1))


def test_preprocess_resize_literals() -> None:
    # Bilinear 2 -> 4 with pixel centres weighs the left pixel 1, 3/4, 1/4, 0: 0 and 200 give 0, 50, 150, 200.
    row = np.array([[[0] * 3, [200] * 3]] * 2, dtype=np.uint8)
    expected = levels()[np.array([0, 50, 150, 200])]
    np.testing.assert_array_equal(preprocess(row, 4), np.broadcast_to(expected, (3, 4, 4)))
    # Going down, the triangle widens with the scale: 4 -> 2 weighs the first three pixels 3, 3, 1, and a port
    # that samples without widening gives 0 and 255 here. 255 · 1 / 7 = 36.4; mirrored, 255 · 6 / 7 = 218.6.
    step = np.repeat(np.array([0, 0, 255, 255], dtype=np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    np.testing.assert_array_equal(preprocess(step, 2), np.broadcast_to(levels()[np.array([36, 219])], (3, 2, 2)))


@pytest.mark.parametrize("period", [2, 4])
def test_a_fine_pattern_is_averaged(period: int) -> None:
    """What points alone would make of a shrunk picture is stripes or one colour (defect D77); here it is grey."""
    stripes = np.where(np.arange(64) % period < period // 2, 255, 0).astype(np.uint8)
    pixels = preprocess(np.broadcast_to(stripes[None, :, None], (64, 64, 3)), 8)
    assert np.abs(pixels).max() < 0.1, "at the edges the average is one-sided"
    assert np.abs(levels()[stripes[::8]]).min() == 1, "each eighth column is black or white"


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(0, 255))
def test_a_plain_image_stays_plain(width: int, height: int, size: int, level: int) -> None:
    image = np.full((height, width, 3), level, dtype=np.uint8)
    np.testing.assert_array_equal(preprocess(image, size), np.full((3, size, size), levels()[level], dtype=np.float32))


def test_one_image_from_every_kind_of_source(tmp_path: Path) -> None:
    array = noise(31, 17)
    array.flags.writeable = False  # an input is not ours to write
    image = Image.fromarray(array)
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(image))
    expected = preprocess(array, 14)
    for source in (path, str(path), path.read_bytes(), image, array[::-1][::-1]):
        np.testing.assert_array_equal(preprocess(source, 14), expected)


@pytest.mark.filterwarnings("ignore:.*all above come out white:t5g2ref.notes.Note")
@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_modes_are_those_of_pillow_convert(mode: str) -> None:
    image = in_mode(mode, 20, 12)
    np.testing.assert_array_equal(preprocess(image, 7), preprocess(np.asarray(image.convert("RGB")), 7))


def test_alpha_of_a_file_is_dropped_and_of_a_pillow_image_laid_on_white() -> None:
    clear_red = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert preprocess(encoded(clear_red), 2)[:, 0, 0].tolist() == [1, -1, -1]
    assert preprocess(clear_red, 2)[:, 0, 0].tolist() == [1, 1, 1]
    palette = Image.new("RGB", (2, 2), (255, 0, 0)).convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert preprocess(palette, 2)[:, 0, 0].tolist() == [1, 1, 1]


def test_deep_grey_is_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 255], [256, 65535]], dtype=np.uint16))
    with pytest.warns(
        Note, match="Pillow image: values to 65535, expected at most 255: all above come out white; scale"
    ):
        assert preprocess(deep, 2)[0].tolist() == [[-1, 1], [1, 1]]


def test_exif_turns_files_and_not_pillow_images() -> None:
    upright = noise(24, 16)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # stored a quarter turn counter-clockwise of upright
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    data = encoded(lying, exif=exif)
    np.testing.assert_array_equal(preprocess(data, 8), preprocess(upright, 8))
    np.testing.assert_array_equal(preprocess(Image.open(io.BytesIO(data)), 8), preprocess(lying, 8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_upright(orientation: int, tmp_path: Path) -> None:
    """Not compressed: Pillow maps such a file into memory where it knows its path, and then tears its rows."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(noise(31, 7))
    for compression in ("raw", "tiff_lzw"):
        path = tmp_path / f"{compression}.tiff"
        for mode in ("L", "RGB", "CMYK"):
            image.convert(mode).save(path, exif=exif, compression=compression)
            turn = Image.Transpose
            ways = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE]
            ways += [turn.ROTATE_270, turn.TRANSVERSE, turn.ROTATE_90]
            way = ways[orientation - 1]
            upright = image.convert(mode) if way is None else image.convert(mode).transpose(way)
            np.testing.assert_array_equal(preprocess(path, 14), preprocess(upright, 14))


def test_preprocess_all_orders_crops_after_their_image() -> None:
    wide, square, tall = noise(512, 256, 1), noise(300, 300, 2), noise(256, 780, 3)
    pixels, crops = preprocess_all([wide, square, tall], 8, pan_and_scan=True)
    assert crops == [2, 0, 3]
    views = [wide, wide[:, :256], wide[:, 256:], square, tall, tall[:260], tall[260:520], tall[520:]]
    np.testing.assert_array_equal(pixels, np.stack([preprocess(view, 8) for view in views]))
    whole, none = preprocess_all([wide, square, tall], 8)
    assert none == [0, 0, 0]
    np.testing.assert_array_equal(whole, pixels[[0, 3, 4]])
    empty, nothing = preprocess_all([], 8)
    assert empty.shape == (0, 3, 8, 8)
    assert empty.dtype == np.float32
    assert nothing == []


# Pan-and-scan


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), []),
        ((1199, 1000), []),  # ratio 1.199
        ((1200, 1000), [(0, 0, 600, 1000), (600, 0, 1200, 1000)]),  # 1.2 is enough; 1 part is raised to 2
        ((1000, 1200), [(0, 0, 1000, 600), (0, 600, 1000, 1200)]),
        (
            (1250, 500),
            [(0, 0, 417, 500), (417, 0, 834, 500), (834, 0, 1250, 500)],
        ),  # 2.5 goes up to 3, odd last
        ((3000, 300), [(0, 0, 750, 300), (750, 0, 1500, 300), (1500, 0, 2250, 300), (2250, 0, 3000, 300)]),
        (
            (767, 256),
            [(0, 0, 384, 256), (384, 0, 767, 256)],
        ),  # 3 by the ratio, 767 // 256 = 2 by the least size
        ((511, 300), [(0, 0, 256, 300), (256, 0, 511, 300)]),  # a part rounds up to exactly the least size
        ((510, 300), []),  # parts of 255
        ((2000, 255), []),  # the short side is below the least size, whatever the long one
    ],
)
def test_pan_and_scan_literals(size: tuple[int, int], expected: list[Box]) -> None:
    # Worked by hand from the rules in pan_and_scan's docstring; transformers agrees with each, below.
    assert pan_and_scan(size) == expected


def test_a_square_image_is_cut_upright() -> None:
    assert pan_and_scan((20, 20), min_crop=8, min_ratio=1.0) == [(0, 0, 10, 20), (10, 0, 20, 20)]


@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(1, 6), st.integers(6, 300))
def test_pan_and_scan_tiles_the_image(width: int, height: int, max_crops: int, min_crop: int) -> None:
    boxes = pan_and_scan((width, height), min_crop=min_crop, max_crops=max_crops)
    assert len(boxes) <= max_crops
    turned = pan_and_scan((height, width), min_crop=min_crop, max_crops=max_crops)
    assert width == height or turned == [(top, left, bottom, right) for left, top, right, bottom in boxes]
    if boxes:
        assert sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) == width * height
        assert boxes[0][:2] == (0, 0)
        assert boxes[-1][2:] == (width, height)
        assert boxes == sorted(boxes)
        assert all(left < right and top < bottom for left, top, right, bottom in boxes)


def peer_boxes(processor: Any, width: int, height: int, *limits: float) -> list[Box]:
    """The peer's crops of an image that holds its own coordinates: no box arithmetic of ours in between."""
    y, x = np.broadcast_arrays(np.arange(height)[:, None], np.arange(width)[None, :])
    crops = processor.pan_and_scan(np.stack([y, x]), *limits)
    return [(int(c[1, 0, 0]), int(c[0, 0, 0]), int(c[1, -1, -1]) + 1, int(c[0, -1, -1]) + 1) for c in crops]


def test_pan_and_scan_equals_transformers_on_a_grid(processor: Any) -> None:
    sides = [1, 2, 3, 5, 8, 9, 10, 11, 12, 15, 16, 17, 19, 20, 21, 24, 25, 30, 31, 32, 33, 36, 40, 45, 70]
    limits = [(8, 4, 1.2), (8, 8, 1.5), (5, 3, 1.0), (4, 1, 2.0), (10, 2, 1.25)]
    sizes = [(width, height) for width in sides for height in sides]
    for width, height in sizes:
        for min_crop, max_crops, min_ratio in limits:
            ours = pan_and_scan((width, height), min_crop=min_crop, max_crops=max_crops, min_ratio=min_ratio)
            peer = peer_boxes(processor, width, height, min_crop, max_crops, min_ratio)
            assert ours == peer, (width, height, min_crop, max_crops, min_ratio)


@pytest.mark.parametrize(
    "size",
    [(1199, 1000), (1200, 1000), (1000, 1200), (1250, 500), (3000, 300), (767, 256), (511, 300), (510, 300)],
)
def test_pan_and_scan_equals_transformers_with_released_limits(size: tuple[int, int], processor: Any) -> None:
    assert pan_and_scan(size) == peer_boxes(processor, *size, 256, 4, 1.2)


@pytest.mark.usefixtures("peer_installed")
def test_defaults_are_those_of_the_released_processor() -> None:
    from transformers.models.gemma3 import processing_gemma3 as module

    kwargs = getattr(module.Gemma3Processor, "images_kwargs", None)
    if kwargs is None:  # before 5.18 or so
        kwargs = module.Gemma3ProcessorKwargs._defaults["images_kwargs"]
    assert pan_and_scan.__kwdefaults__ == {
        "min_crop": kwargs["pan_and_scan_min_crop_size"],
        "max_crops": kwargs["pan_and_scan_max_num_crops"],
        "min_ratio": kwargs["pan_and_scan_min_ratio_to_activate"],
    }
    assert kwargs["do_pan_and_scan"] is False


# Against transformers


def in_mode(mode: str, width: int, height: int) -> Any:
    if mode == "I;16":
        return Image.fromarray(noise(width, height)[..., 0].astype(np.uint16) * 3)
    image = Image.fromarray(noise(width, height))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(noise(width, height, 1)[..., 0]))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "I", "F", "I;16"])
@pytest.mark.parametrize("size", [(56, 56), (97, 41), (23, 180), (300, 5), (1, 1)])
def test_pillow_images_equal_transformers(mode: str, size: tuple[int, int], processor: Any) -> None:
    image = in_mode(mode, *size)
    with noted([]):  # deep grey is clipped there too
        ours = preprocess(image, 56)
    assert_same_bits(ours[None], peer_pixels(processor, [image])[0])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("orientation", [None, 3, 6, 8])
def test_files_equal_transformers(mode: str, orientation: int | None, processor: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    path = tmp_path / "image.png"
    path.write_bytes(encoded(in_mode(mode, 90, 61), exif=exif))
    assert_same_bits(preprocess(path, 56)[None], peer_pixels(processor, [str(path)])[0])


def test_jpeg_and_arrays_equal_transformers(processor: Any, tmp_path: Path) -> None:
    array = noise(130, 77)
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(Image.fromarray(array), "JPEG"))
    assert_same_bits(preprocess(path, 56)[None], peer_pixels(processor, [str(path)])[0])
    assert_same_bits(preprocess(array, 56)[None], peer_pixels(processor, [array])[0])


def test_crops_equal_transformers(processor: Any) -> None:
    images = [Image.fromarray(noise(*size)) for size in [(1025, 400), (300, 300), (257, 801), (600, 256)]]
    pixels, crops = preprocess_all(images, 56, pan_and_scan=True)
    peer, peer_crops = peer_pixels(processor, images, pan=True)
    assert crops == peer_crops == [3, 0, 3, 2]
    assert_same_bits(pixels, peer)


# Errors


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(noise(64, 64)))
    for name, data in [("text.png", b"no image"), ("empty.png", b""), ("cut.png", whole[: len(whole) // 2])]:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ValueError, match=name):
            preprocess(path, 8)
        with pytest.raises(ValueError, match=f"image of {len(data)} bytes"):
            preprocess(data, 8)
    with Image.open(tmp_path / "cut.png") as lazy, pytest.raises(ValueError, match=r"cut\.png"):
        preprocess(lazy, 8)
    with pytest.raises(FileNotFoundError, match="missing"):
        preprocess(tmp_path / "missing.png", 8)


@pytest.mark.parametrize(
    ("form", "mode", "each", "options"),
    [
        ("PNG", "RGB", 4, {}),
        ("PNG", "L", 1, {}),
        ("GIF", "P", 1, {}),
        ("JPEG", "RGB", 4, {}),
        ("JPEG", "RGB", 6, {"progressive": True}),
        ("JPEG", "CMYK", 8, {"progressive": True}),
        ("TIFF", "RGB", 8, {"compression": "tiff_adobe_deflate"}),
        ("WEBP", "RGB", 8, {"lossless": True}),
    ],
)
def test_a_file_that_claims_more_than_its_size_bears_out(
    form: str, mode: str, each: int, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes a pixel that a decoder was seen to take before it found the file broken; here there is no room beside."""
    plain = encoded(Image.new(mode, (400, 300)), form, **options)
    assert preprocess(plain, 8).shape == (3, 8, 8)
    monkeypatch.setattr("t5g2ref.processor.picture_files.ROOM", 0)
    most = 2 * len(plain) // each
    with pytest.raises(
        ValueError, match=f"400 × 300 pixels, expected at most {most} of a file of {len(plain)} bytes; "
    ):
        preprocess(plain, 8)
    assert preprocess(plain, 8, max_pixels=400 * 300).shape == (3, 8, 8)


def test_a_cut_file_costs_no_more_than_its_size(tmp_path: Path) -> None:
    """A small PNG that claims 81 million pixels: refused unread, and decoded where that is asked for."""
    data = bytearray(encoded(Image.fromarray(noise(40, 30))))
    data[16:24] = struct.pack(">II", 9000, 9000)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match=r"9000 × 9000 pixels, expected at most .* shrink the picture, or give max_"):
        preprocess(bytes(data), 8)
    with pytest.raises(ValueError, match="broken image"):
        preprocess(bytes(data), 8, max_pixels=81_000_000)


def test_large_images_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(noise(40, 30))
    data = encoded(image)
    broken = data[:60]  # the header and nothing to decode: the size is judged first
    for source in (image, np.asarray(image), data, broken):
        with pytest.raises(ValueError, match="40 × 30 pixels are more than max_pixels=1199"):
            preprocess(source, 8, max_pixels=1199)
    assert preprocess(data, 8, max_pixels=1200).shape == (3, 8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow's own limit, in force as well
    with pytest.raises(ValueError, match=r"image of .* decompression bomb"):
        preprocess(data, 8)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((3, 4, 4), dtype=np.uint8),
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((4, 4, 4), dtype=np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(height, width, 3\); found " + str(array.dtype)):
        preprocess(array, 8)


def test_other_bad_arguments() -> None:
    with pytest.raises(ValueError, match="empty image, 4 × 0 pixels"):
        preprocess(np.zeros((0, 4, 3), dtype=np.uint8), 8)
    with pytest.raises(TypeError, match="found list"):
        preprocess([[0]], 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image_size"):
        preprocess(noise(4, 4), 0)
    with pytest.raises(ValueError, match=r"both at least 1; found \(0, 5\)"):
        pan_and_scan((0, 5))
    with pytest.raises(ValueError, match="max_crops=5, min_crop=4"):
        pan_and_scan((100, 5), min_crop=4, max_crops=5)


def test_without_pillow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"t5g2ref\[image\]"):
        preprocess(noise(4, 4), 8)
