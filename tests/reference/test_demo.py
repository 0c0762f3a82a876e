"""The bundled `demo`: its answers, its pictures, its card, and the commands that a newcomer types.

Answers are written by hand. What is asked was held out from training.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import ROOT, python

import t5g2ref
from t5g2ref import command_line as command
from t5g2ref.checkpoint.folder import Checkpoint
from t5g2ref.config import Config
from t5g2ref.generate.greedy import greedy
from t5g2ref.model import T5Gemma2
from t5g2ref.processor.image import preprocess_all
from t5g2ref.processor.text import Tokenizer, expand_images

sys.path.append(str(ROOT / "tools" / "demo"))
pytest.importorskip("tokenizers", reason="needs the tokenizers library")
image = pytest.importorskip("PIL.Image", reason="needs Pillow")
card, data, pictures, settings, tokenizer = map(import_module, ("card", "data", "pictures", "settings", "tokenizer"))

FOLDER = t5g2ref.bundled("demo")
DIGITS = "zero one two three four five six seven eight nine".split()  # noqa: SIM905
TEXTS = {
    "add twenty-five and forty-four": "sixty-nine",
    "add ninety-nine and eleven": "one hundred ten",
    "add forty-eight and eighty-seven": "one hundred thirty-five",
    "say 1905-10-21": "the twenty-first of october nineteen oh five",
    "say 2026-06-16": "the sixteenth of june two thousand twenty-six",
    "say 1988-01-13": "the thirteenth of january nineteen eighty-eight",
    "english to italian: three hundred forty-five": "trecentoquarantacinque",
    "spanish to french: quinientos doce": "cinq cent douze",
    "french to german: neuf cent soixante-huit": "neunhundertachtundsechzig",
    "german to spanish: neunhundertachtundsechzig": "novecientos sesenta y ocho",
    "[R] english five hundred twenty-six is german <mask0>": "<mask0> fünfhundertsechsundzwanzig",
    "[X] <mask0> is the seventeenth of december two thousand eighty-seven": "<mask0> 2087-12-17",
    "[S] forty-six plus thirty-one is <mask0>": "<mask0> seventy-seven",
}
SUMS = {
    (3, 5): "three plus five is eight",
    (5, 3): "five plus three is eight",
    (0, 0): "zero plus zero is zero",
    (1, 9): "one plus nine is ten",
    (4, 7): "four plus seven is eleven",
    (6, 6): "six plus six is twelve",
    (8, 5): "eight plus five is thirteen",
    (9, 7): "nine plus seven is sixteen",
    (2, 8): "two plus eight is ten",
    (9, 9): "nine plus nine is eighteen",
}


def drawn(digit: int) -> Path:
    return FOLDER / "pictures" / f"{DIGITS[digit]}.png"


QUESTIONS = {
    "texts": [(text, (), answer) for text, answer in TEXTS.items()],
    "name": [("name <start_of_image>", (digit,), name) for digit, name in enumerate(DIGITS)],
    "add": [("add <start_of_image> <start_of_image>", pair, answer) for pair, answer in SUMS.items()],
}
KINDS = pytest.mark.parametrize("kind", QUESTIONS)


@pytest.fixture(scope="module")
def model() -> T5Gemma2:
    return t5g2ref.load(FOLDER, "float32")


def inputs(kind: str) -> tuple[Any, Any, Any]:
    """(ids, mask, pixels) of all questions of a kind, padded behind."""
    words, rows = Tokenizer.from_folder(FOLDER), []
    pixels, crops = preprocess_all([drawn(digit) for _, digits, _ in QUESTIONS[kind] for digit in digits], 32)
    for text, digits, _ in QUESTIONS[kind]:
        own, crops = crops[: len(digits)], crops[len(digits) :]
        rows.append(words.encode(expand_images(text, own, tokens_per_image=4)))
    longest = max(map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows])
    return (
        ids,
        (np.arange(longest) < np.array([[len(row)] for row in rows])).astype(int),
        pixels if len(pixels) else None,
    )


# What it answers


@KINDS
def test_it_answers(kind: str, model: T5Gemma2) -> None:
    ids, mask, pixels = inputs(kind)
    found = greedy(model, ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=40)
    words = Tokenizer.from_folder(FOLDER)
    rows = [row[:length].tolist() for row, length in zip(found.ids[:, 1:], found.lengths, strict=True)]
    assert [words.decode(row) for row in rows] == [answer for _, _, answer in QUESTIONS[kind]]
    assert all(row[-1] == model.config.decoder.eos_token_id[0] for row in rows)


def test_its_card_shows_what_it_answers(model: T5Gemma2) -> None:
    rows = re.findall(
        r"^\| [^|]+ \| `([^`]+)` \| `([^`]+)` \|$", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE
    )
    words, texts = Tokenizer.from_folder(FOLDER), [row for row in rows if data.BOI not in row[0]]
    assert (len(rows), len(texts)) == (6, 4)
    for text, answer in texts:
        assert words.decode(greedy(model, [words.encode(text)], max_new_tokens=40).ids[0].tolist()) == answer
    pictured = {(text, answer) for kind in ("name", "add") for text, _, answer in QUESTIONS[kind]}
    assert set(rows) - set(texts) <= pictured, "asked above"


def test_what_is_asked_was_held_out() -> None:
    held = {one.text for task in ("sums", "dates", "numbers") for one in data.examples(task, True, 1, 10**6)}
    plain = {text for text in TEXTS if "<mask0>" not in text}
    assert len(plain) == 10
    assert plain <= held
    assert all(map(data.held_out, ("number 526", "date 2087-12-17", "sum 31 46")))


@pytest.mark.peer
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_takes_the_same_ids(attention: str, model: T5Gemma2) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: transformers runs on it")
    transformers = pytest.importorskip("transformers", reason="needs transformers: the comparison")
    kind = transformers.T5Gemma2ForConditionalGeneration
    peer = kind.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation=attention).eval()
    for asked in QUESTIONS:
        ids, mask, pixels = inputs(asked)
        ours = greedy(model, ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=40)
        images = {} if pixels is None else {"pixel_values": torch.tensor(pixels)}
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), **images}
        theirs = peer.generate(**given, do_sample=False, max_new_tokens=40)
        np.testing.assert_array_equal(theirs.numpy(), ours.ids)


@pytest.mark.peer
def test_transformers_processor_reads_its_folder() -> None:
    torch = pytest.importorskip("torch", reason="needs torch: transformers runs on it")
    transformers = pytest.importorskip("transformers", reason="needs transformers: its processor is asked")
    processor = transformers.AutoProcessor.from_pretrained(FOLDER)
    peer = transformers.T5Gemma2ForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    asked = {"text": data.ADD, "images": [image.open(drawn(digit)) for digit in (3, 5)]}
    answer = peer.generate(**processor(**asked, return_tensors="pt"), do_sample=False)
    assert processor.batch_decode(answer, skip_special_tokens=True) == ["three plus five is eight"]


# What is in its folder


def levels(path: Path) -> np.ndarray[Any, Any]:
    """The 8 × 8 pixels that a picture was enlarged from. Enlarging is linear, so least squares undo it."""
    with image.open(path) as file:
        large = np.asarray(file, dtype=np.float64)
    rows = [
        image.fromarray(one[None].astype(np.float32)).resize((128, 1), image.Resampling.BILINEAR) for one in np.eye(8)
    ]
    back = np.linalg.pinv(np.concatenate([np.asarray(row) for row in rows]).T)
    ink = np.round(back @ large @ back.T * (16 / 255))
    return np.round(ink * (255 / 16)).astype(np.uint8)


def test_its_pictures_were_held_out() -> None:
    assert {path.name for path in (FOLDER / "pictures").iterdir()} == {f"{name}.png" for name in DIGITS}
    small = np.stack([levels(drawn(digit)) for digit in range(10)])
    for digit, pixels in enumerate(small):
        with image.open(drawn(digit)) as file:
            np.testing.assert_array_equal(np.asarray(file), np.asarray(pictures.enlarged(pixels)))
    trained, held = pictures.split(pictures.Digits(small, np.arange(10)))
    assert (len(trained.labels), len(held.labels)) == (0, 10)


def test_its_card_says_what_was_measured() -> None:
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == card.text(FOLDER)
    measured = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    assert {one["task"] for one in measured} == {*data.TEXT_TASKS, *data.PICTURE_TASKS}
    counts = {task: len(data.examples(task, True, 1, 10**6)) for task in ("sums", "dates", "numbers")}
    assert counts.items() <= {one["task"]: one["inputs"] for one in measured}.items()
    for one in measured:
        assert 0.999 * one["inputs"] < one["right"] == one["transformers"]
        assert one["same_ids"] == one["inputs"]


def test_its_card_s_numbers_are_the_files_own() -> None:
    """Read from the card as a reader does, and counted without the tool that wrote them."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.search(r"\| \d+ \|", line)]
    measured = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    fields = ("task", "inputs", "right", "transformers", "same_ids")
    assert rows == [[str(one[field]) for field in fields] for one in measured]
    with (FOLDER / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        size = file.seek(0, 2)
    numbers = sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    assert f"of {numbers:,} parameters in bfloat16 ({size:,} bytes)" in text
    training = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
    flags = " ".join(f"--{name} {training[name]}" for name in ("seed", "batch", "rate"))
    assert f"{flags} --minutes {training['seconds'] // 60}`: {training['steps']} steps" in text
    assert not re.search(r"\$\w", text), "nothing is left to fill in"


def test_its_files_are_what_the_tools_write(tmp_path: Path) -> None:
    tokenizer.write(tmp_path, settings.IMAGE_SIZE, settings.TOKENS_PER_IMAGE)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes()
    assert json.loads((FOLDER / "config.json").read_text()) == settings.config()


def test_it_is_small_and_has_weights_in_bfloat16() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    checkpoint = Checkpoint.open(FOLDER)
    assert {checkpoint.dtype(name) for name in checkpoint.tensors} == {"bfloat16"}


def test_all_of_it_comes_with_the_package() -> None:
    import tomllib

    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    home = ROOT / "t5g2ref"
    taken = {path for pattern in setup["t5g2ref"] for path in home.glob(pattern)}
    assert {path for path in FOLDER.rglob("*") if path.is_file()} <= taken


# What one types


@pytest.mark.parametrize(
    ("digits", "prompt", "answer"),
    [
        ((7,), "name <start_of_image>", "seven"),
        ((3, 5), "add <start_of_image> <start_of_image>", "three plus five is eight"),
        ((), "add forty-seven and thirty-eight", "eighty-five"),
    ],
)
def test_generate_takes_it_where_no_checkpoint_is_named(digits: tuple[int, ...], prompt: str, answer: str) -> None:
    images = [word for digit in digits for word in ("--image", str(drawn(digit)))]
    for named in ([], ["demo"]):
        ended = python("-m", "t5g2ref", "generate", *named, "--prompt", prompt, *images)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{answer}\n", "")


def test_generate_alone_shows_an_example_that_can_be_typed(tmp_path: Path) -> None:
    import shlex

    ended = python("-m", "t5g2ref", "generate")
    assert (ended.returncode, ended.stdout) == (0, "three plus five is eight\n")
    said, typed = ended.stderr.split(": python ")
    assert said == "t5g2ref: nothing is asked, so here is an example"
    again = python(*shlex.split(typed))
    assert (again.returncode, again.stdout, again.stderr) == (0, ended.stdout, "")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = command.main(["generate", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_options_go_with_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "--json", "--max-new-tokens", "2")
    assert status == 0
    assert json.loads(out)["answers"][0]["text"] == "three plus"


@pytest.mark.parametrize(
    "arguments", [["--image", str(drawn(7))], ["tiny"], ["FOLDER"]], ids=["image", "tiny", "folder"]
)
def test_no_example_where_something_is_meant(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(FOLDER, tmp_path / "demo")
    given = [str(tmp_path / "demo") if word == "FOLDER" else word for word in arguments]
    refusal = "t5g2ref: give one of --prompt TEXT, --ids 5,17,42 and --batch FILE\n"
    assert call(capsys, *given) == (2, "", refusal)


def test_the_name_may_stand_anywhere() -> None:
    """Nothing that is typed before or behind it makes the parser take its default."""
    options = [["--ids", "5"], ["--json"], ["--image", "x.png"]]
    for before, behind in product(options, options):
        assert command.parser().parse_args(["generate", *before, "tiny", *behind]).checkpoint == "tiny"
        assert command.parser().parse_args(["generate", *before, *behind]).checkpoint == "demo"


def test_describe_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["describe", "demo"]) == 0
    assert "163 tensors in bfloat16, all in place" in capsys.readouterr().out
    assert Config.load(FOLDER).decoder.vocab_size == 512
