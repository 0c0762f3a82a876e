"""Prompts with pictures in rows, as a folder's own files say: literals, settings, and every refusal in one line."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import python

import t5g2ref
from t5g2ref import command_line as command
from t5g2ref.config import Config
from t5g2ref.processor.image import preprocess_all
from t5g2ref.processor.prepare import Processor, padded, shared
from t5g2ref.processor.rule import RELEASED, Rule
from t5g2ref.processor.settings import read_pictures

pytest.importorskip("tokenizers", reason="needs the tokenizers library")
Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

DEMO = Path(str(t5g2ref.bundled("demo")))
SEVEN = DEMO / "pictures" / "seven.png"
BOI, NAME = "<start_of_image>", "name <start_of_image>"
PLAIN = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """A function that copies the demo's files and changes some: the folder. Names are without .json; None is away."""

    def write(**files: Any) -> Path:
        place = tmp_path / "folder"
        shutil.copytree(DEMO, place, ignore=shutil.ignore_patterns("pictures", "*.md", "training*", "measured*"))
        for name, change in files.items():
            path = place / f"{name}.json"
            if change is None:
                path.unlink()
            elif isinstance(change, bytes):
                path.write_bytes(change)
            else:
                path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
        return place

    return write


# Rows


def test_rows_with_unlike_numbers_of_pictures() -> None:
    processor = Processor.from_folder(DEMO)
    add, plain = f"add {BOI} {BOI}", "say one"
    pictures = [DEMO / "pictures" / f"{name}.png" for name in ("three", "five", "seven")]
    found = processor([add, plain, NAME], [pictures[:2], [], pictures[2:]])
    alone = [processor([add], [pictures[:2]]), processor([plain]), processor([NAME], [pictures[2:]])]
    assert found.pixels is not None
    assert found.pixels.shape == (3, 3, 32, 32)
    assert found.crops == [0, 0, 0]
    for row, mask, one in zip(found.ids, found.mask, alone, strict=True):
        count = one.ids.shape[1]
        assert row[:count].tolist() == one.ids[0].tolist(), "the demo's file says padding_side right"
        assert row[count:].tolist() == [0] * (len(row) - count)
        assert mask.tolist() == [1] * count + [0] * (len(row) - count)
    block = [4, 6, 6, 6, 6, 5]
    assert "".join(map(chr, found.ids[0])).count("".join(map(chr, block))) == 2
    assert found.ids[:, 0].tolist() == [2, 2, 2]


def test_no_pictures_no_pixels() -> None:
    found = Processor.from_folder(DEMO)(["say one", "x"])
    assert found.pixels is None
    assert found.mask.sum(axis=1).tolist() == [found.ids.shape[1], 2]


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"padding_side": "left"}, [0, 0, 2]),
        ({"padding_side": "right"}, [2, 103, 0]),
        ({"padding_side": "right", "pad_token": "<eos>"}, [2, 103, 1]),
    ],
)
def test_padding_is_as_the_file_says(folder: Write, change: dict[str, Any], row: list[int]) -> None:
    found = Processor.from_folder(folder(tokenizer_config=change))(["name plus one", "x"])
    assert found.ids.shape == (2, 4)
    assert found.ids[1, :3].tolist() == row


@pytest.mark.parametrize(("kind", "side"), [("GemmaTokenizer", "left"), ("PreTrainedTokenizerFast", "right")])
def test_padding_where_the_file_does_not_say(folder: Write, kind: str, side: str) -> None:
    """As transformers' classes pad."""
    raw = json.loads((DEMO / "tokenizer_config.json").read_text()) | {"tokenizer_class": kind}
    del raw["padding_side"]
    made = Processor.from_folder(folder(tokenizer_config=json.dumps(raw).encode()))
    assert made.tokenizer is not None
    assert made.tokenizer.side == side


def test_further_tokens(folder: Write) -> None:
    """Tokens of tokenizer_config.json alone get the next ids, as in transformers."""
    more = {"513": {"content": "qq", **PLAIN}, "512": {"content": "zz", **PLAIN}}
    found = Processor.from_folder(folder(tokenizer_config={"added_tokens_decoder": more}))(["name qq zz"])
    assert found.ids[0].tolist() == [2, 262, 115, 513, 115, 512]


def test_a_flag_of_tokenizer_config_counts(folder: Write) -> None:
    bos = {"2": {"content": "<bos>", **PLAIN, "lstrip": True, "rstrip": True}}
    found = Processor.from_folder(folder(tokenizer_config={"added_tokens_decoder": bos}))(["a <bos> b"])
    assert found.ids[0].tolist() == [2, 80, 2, 81]


def test_special_tokens_by_another_name(folder: Write) -> None:
    """The placeholder is what the file calls boi_token."""
    names = {"boi_token": "<mask0>", "extra_special_tokens": {}}
    processor = Processor.from_folder(folder(tokenizer_config=names))
    assert processor(["name <mask0>"], [[SEVEN]]).ids[0].tolist().count(6) == 4


def test_pictures_are_shared_in_order() -> None:
    assert shared([f"{BOI}a{BOI}", "b", BOI], ["x", "y", "z"], BOI) == [["x", "y"], [], ["z"]]
    assert shared(["a"], ["x"], BOI) == [["x"]], "one prompt's are counted later"


def test_padded_literals() -> None:
    ids, mask = padded([[5], [6, 7]], 9)
    assert (ids.tolist(), mask.tolist()) == ([[9, 5], [6, 7]], [[0, 1], [1, 1]])
    ids, mask = padded([[5], [6, 7]], 9, "right")
    assert (ids.tolist(), mask.tolist()) == ([[5, 9], [6, 7]], [[1, 0], [1, 1]])
    assert ids.dtype == mask.dtype == np.int64


# Settings


def test_the_demo_has_the_released_rule() -> None:
    assert read_pictures(DEMO) == (RELEASED, 32, 4)
    assert read_pictures(Path("nowhere")) == (RELEASED, None, None)


def test_every_setting_is_read(folder: Write) -> None:
    change = {"image_mean": 0.25, "image_std": [0.1, 0.2, 0.3], "rescale_factor": 0.5, "resample": 3, "size": 32}
    limits = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 9, "pan_and_scan_max_num_crops": 3}
    limits["pan_and_scan_min_ratio_to_activate"] = 2
    flags = {"do_rescale": False, "do_normalize": False}
    found, side, _ = read_pictures(folder(preprocessor_config=change | limits | flags))
    assert side == 32
    assert found == Rule((0.25,) * 3, (0.1, 0.2, 0.3), 0.5, False, False, 3, True, 9, 3, 2.0)


def test_a_whole_processor_config_counts(folder: Write) -> None:
    """transformers 5 writes one file; preprocessor_config.json is then not looked at."""
    place = folder(processor_config={"image_processor": {"resample": 0}}, preprocessor_config={"resample": 9})
    assert read_pictures(place)[0].resample == 0


def test_crops_as_the_file_says(folder: Write) -> None:
    place = folder(preprocessor_config={"do_pan_and_scan": True})
    long = np.random.default_rng(0).integers(0, 256, (300, 700, 3), dtype=np.uint8)
    found = Processor.from_folder(place)([NAME], [[long]])
    assert found.crops == [2]
    assert found.pixels is not None
    np.testing.assert_array_equal(found.pixels, preprocess_all([long], 32, pan_and_scan=True)[0])
    assert found.ids[0].tolist().count(6) == 3 * 4


def test_levels_of_another_rule(folder: Write) -> None:
    """By hand: (byte × factor − mean) / std, a channel each; neither step gives the byte."""
    place = folder(preprocessor_config={"image_mean": [0, 0.5, 1], "image_std": [1, 2, 4], "rescale_factor": 0.5})
    white = np.full((2, 2, 3), 10, dtype=np.uint8)
    pixels = Processor.from_folder(place).pixels([white])[0]
    assert pixels is not None
    assert pixels[0, :, 0, 0].tolist() == [5.0, 2.25, 1.0]
    bare = Rule(rescale=False, normalize=False)
    assert preprocess_all([white], 1, rule=bare)[0].ravel().tolist() == [10, 10, 10]


# Refusals


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says of it on stderr: one line, with nothing on stdout and status 2."""
    status = command.main(["generate", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("t5g2ref: ")
    assert err.count("\n") == 1
    assert len(err) < 600
    return err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", NAME], "the prompt has 1 × '<start_of_image>' for 0 images"),
        (["--prompt", "name", "--image", SEVEN], "the prompt has 0 × '<start_of_image>' for 1 images"),
        (["--prompt", ""], "the prompt is empty or no text"),
        (["--prompt", "name <image_soft_token>"], "the prompt holds '<image_soft_token>' already"),
        (["--prompt", "a\udcff"], "the prompt holds half of a surrogate pair"),
        (["--prompt", "one two " * 3000], "the prompt has 6002 ids, expected at most 4096; shorten it"),
    ],
    ids=range(6),
)
def test_prompts_that_are_refused(arguments: list[Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in answer(capsys, DEMO, *arguments)


def test_a_batch_names_its_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text(f"{NAME}\nname\n{BOI}{BOI}\n")
    assert "the prompts have 3 × '<start_of_image>' for 1 images" in answer(
        capsys, DEMO, "--batch", lines, "--image", SEVEN
    )
    processor = Processor.from_folder(DEMO)
    for texts, own, words in [
        ([NAME, NAME], [[], [SEVEN, SEVEN]], "prompt 1 has 1 × "),
        (["a", ""], None, "prompt 2 is empty"),
        (["a"], [[], []], "2 rows of pictures for 1 prompts"),
        ([], None, "expected a list of at least one prompt"),
        ("name", None, "expected a list of at least one prompt"),
        (["a", 5], None, "prompt 2 is empty or no text"),
        (["a", "b" * (1 << 22) + "b"], None, "prompt 2 has 4194305 characters, expected at most 4194304"),
    ]:
        with pytest.raises(ValueError, match=words):
            processor(texts, own)  # type: ignore[arg-type]


def png(width: int, height: int) -> bytes:
    """A file of a few bytes that claims a size."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99))]
    chunks = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 99, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a readable image"),
    "text": (b"hello", "not a readable image"),
    "cut PNG": (SEVEN.read_bytes()[:200], "broken image"),
    "cut JPEG": (jpeg()[:2000], "broken image: image file is truncated"),
    "bomb": (png(60_000, 60_000), "exceeds limit"),
    "large claim": (png(9000, 9000), "9000 × 9000 pixels, expected at most"),
    "between Pillow's limits": (png(10_000, 10_000), "10000 × 10000 pixels are more than max_pixels=89478485"),
    "no height": (png(9, 0), "not a readable image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a readable image"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is named, also behind a sound one."""
    data, words = PICTURES[name]
    path = tmp_path / "picture"
    path.write_bytes(data)
    said = answer(capsys, DEMO, "--prompt", NAME + BOI, "--image", SEVEN, "--image", path)
    assert words in said
    assert str(path) in said


def test_pictures_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in answer(capsys, DEMO, "--prompt", NAME, "--image", tmp_path / "none.png")
    assert "Is a directory" in answer(capsys, DEMO, "--prompt", NAME, "--image", tmp_path)


def test_nothing_but_the_line_is_said(tmp_path: Path) -> None:
    """As a process: Pillow warns of a palette that is half see-through, and of a large claim."""
    palette = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert("P")
    palette.save(tmp_path / "half.png", transparency=bytes(range(256)))
    (tmp_path / "large.png").write_bytes(png(10_000, 10_000))
    images = [part for name in ("half.png", "large.png") for part in ("--image", str(tmp_path / name))]
    ended = python("-m", "t5g2ref", "generate", "--prompt", NAME + BOI, *images)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "10000 × 10000 pixels are more than" in ended.stderr


SETTINGS: list[tuple[str, Any, str]] = [
    ("preprocessor_config", {"size": {"height": 64, "width": 64}}, "size is 64, expected 32, the tower's"),
    ("preprocessor_config", {"size": {"shortest_edge": 32}}, "expected equal height and width from 1 to 16384"),
    ("preprocessor_config", {"image_mean": [float("nan")] * 3}, "expected three numbers below 1e30"),
    ("preprocessor_config", {"image_mean": [1, 2]}, "expected three numbers below 1e30"),
    ("preprocessor_config", {"image_std": [0.5, 0, 0.5]}, "expected no zero"),
    ("preprocessor_config", {"resample": 9}, "resample is 9, expected from 0 to 5"),
    ("preprocessor_config", {"do_resize": False}, "do_resize is False, expected true"),
    ("preprocessor_config", {"do_convert_rgb": False}, "do_convert_rgb is False, expected true"),
    ("preprocessor_config", {"do_normalize": "no"}, "expected true, false or null"),
    ("preprocessor_config", {"rescale_factor": 0}, "expected a number above 0"),
    ("preprocessor_config", {"image_processor_type": "SiglipImageProcessor"}, "expected null or one of Gemma3Image"),
    ("preprocessor_config", {"pan_and_scan_max_num_crops": 999}, "expected from 1 to 256"),
    ("preprocessor_config", b"{", "preprocessor_config.json: not JSON"),
    ("preprocessor_config", b"[" * 100_000, "preprocessor_config.json: not JSON"),
    ("preprocessor_config", b"[]", "preprocessor_config.json is [], expected a JSON object"),
    ("processor_config", {"image_seq_length": 9}, "image_seq_length is 9, expected 4"),
    ("processor_config", {"image_seq_length": -9}, "image_seq_length is -9, expected at least 1"),
    ("processor_config", {"image_processor": []}, "image_processor is [], expected a JSON object"),
    ("tokenizer_config", {"padding_side": "middle"}, "padding_side is 'middle', expected 'left' or 'right'"),
    ("tokenizer_config", {"eoi_token": "<eos>"}, "expected '<end_of_image>', as in extra_special_tokens"),
    ("tokenizer_config", {"boi_token": 5}, "boi_token is 5, expected a token of 1 to 200 characters"),
    ("tokenizer_config", {"image_token": "<eos>", "extra_special_tokens": {}}, "<eos> is 1, expected 6, as config"),
    ("tokenizer_config", {"model_max_length": 5}, "the prompt has 11 ids, expected at most 5"),
    ("tokenizer_config", {"model_max_length": "x"}, "expected an integer of at least 1"),
    ("tokenizer_config", {"added_tokens_decoder": {"600": {"content": "plus", **PLAIN}}}, "'plus' has 264"),
    ("tokenizer_config", {"added_tokens_decoder": [1]}, "expected an object of at most 100000 tokens"),
    ("tokenizer_config", {"extra_special_tokens": 5}, "expected a list or object"),
    ("tokenizer_config", b"\xff", "tokenizer_config.json: not JSON"),
    ("tokenizer", b'{"a":', "tokenizer.json: not a tokenizer of Gemma's make"),
    ("tokenizer", None, "there is no tokenizer.json, which --prompt needs"),
]


@pytest.mark.parametrize(("name", "change", "words"), SETTINGS, ids=range(len(SETTINGS)))
def test_settings_that_are_refused(
    folder: Write, name: str, change: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(**{name: change})
    assert words in answer(capsys, place, "--prompt", NAME, "--image", SEVEN)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    (name, field)
    for name in ("preprocessor_config", "processor_config", "tokenizer_config")
    for field in [*json.loads((DEMO / f"{name}.json").read_text()), "added_tokens_decoder", "image_processor"]
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(place=st.sampled_from(FIELDS), value=JSON)
def test_any_value_is_followed_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str, str], value: Any
) -> None:
    """Whatever stands in a field: inputs of the right shape, or a ValueError of one line."""
    name, field = place
    folder = tmp_path_factory.mktemp("any")
    for kind in ("preprocessor_config", "processor_config", "tokenizer_config"):
        raw = json.loads((DEMO / f"{kind}.json").read_text()) | ({field: value} if kind == name else {})
        (folder / f"{kind}.json").write_text(json.dumps(raw), encoding="utf-8")
    (folder / "tokenizer.json").symlink_to(DEMO / "tokenizer.json")
    said = ""
    try:
        found = Processor.from_folder(folder, Config.load(DEMO))([NAME, "x"], [[SEVEN], []])
    except ValueError as error:
        said = str(error)
    else:
        assert found.pixels is not None
        assert found.pixels.shape == (1, 3, 32, 32)
        assert np.isfinite(found.pixels).all()
    assert "\n" not in said
