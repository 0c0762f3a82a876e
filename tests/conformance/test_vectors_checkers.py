"""The checkers in C, JavaScript and Rust: right outputs pass, ten faults are found where they are, nothing slips by.

Each is built without a warning; the one in C watches its own memory. A compiler that is missing skips its language.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dumping import Array, tiny
from processes import ROOT
from safetensors.numpy import load_file, save_file
from vectoring import Shown, shown, written

pytest.importorskip("rich", reason="needs rich: the progress bar is made with it")

from conformance import __main__ as command
from conformance.defects.all import find
from conformance.peers.reference import ReferencePeer
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref.backend import NUMPY
from t5g2ref.dtypes import DType

SOURCES = ROOT / "conformance" / "examples" / "vectors"
CASES = ("short", "window", "padded-left", "padded-left-cached", "eoi", "second-source")
TAP = "short/0/decoder.layers.3"

# Ten faults of the catalogue: the case, and the first thing that is then wrong in it, by hand from what each one is.
FAULTS = {
    "D05 missing": ("eoi", "eoi/0/encoder.text_model.inputs_embeds: token (0, 3) is"),
    "D09": ("short", "short/0/encoder.text_model.layers.0: token (0, 0) is"),
    "D16": ("short", "short/0/decoder.layers.0: token (0, 0) is"),
    "D31 right long": ("window", "window/0/encoder.text_model.layers.0: token (0, 0) is"),
    "D39 cached": ("padded-left-cached", "padded-left-cached/1/decoder.layers.0: token (1, 0) is"),
    "D41": ("padded-left", "padded-left/0/encoder.text_model.layers.0: it has a NaN or an infinity"),
    "D50 missing": ("short", "short/0/logits: token (0, 0) is"),
    "D52": ("short", "short/0/encoder.text_model.layers.0: token (0, 0) is"),
    "D55": ("second-source", "second-source/2/decoder.layers.0: token (0, 0) is"),
    "D81 few": ("second-source", "second-source/0/logits: its shape is"),
}

BUILD: dict[str, Callable[[Path], list[str]]] = {
    "c": lambda made: [
        *("gcc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-fsanitize=address,undefined"),
        *("-fno-sanitize-recover=all", str(SOURCES / "check.c"), "-lm", "-o", str(made)),
    ],
    "js": lambda made: [],
    "rs": lambda made: [
        *("rustc", "--edition", "2021", "-D", "warnings", "-C", "overflow-checks=on", "-O"),
        *(str(SOURCES / "check.rs"), "-o", str(made)),
    ],
}
NEEDS = {"c": "gcc", "js": "node", "rs": "rustc"}

Checker = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", params=["c", "js", "rs"])
def checker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checker:
    """`checker(vectors, output, …)` → exit status, stdout, stderr."""
    language = request.param
    if shutil.which(NEEDS[language]) is None:
        pytest.skip(f"needs {NEEDS[language]}: check.{language} is run with it")
    made = tmp_path_factory.mktemp("built") / "check"
    if build := BUILD[language](made):
        done = subprocess.run(build, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    start = [str(made)] if build else ["node", str(SOURCES / "check.js")]

    def run(*arguments: object) -> tuple[int, str, str]:
        given = [*start, *map(str, arguments)]
        ended = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)
        assert "Sanitizer" not in ended.stderr, ended.stderr
        assert "panicked" not in ended.stderr, ended.stderr
        return ended.returncode, ended.stdout, ended.stderr

    return run


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny("tiny")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    chosen = [word for name in CASES for word in ("--case", name)]
    assert command.main(["export", "--vectors", str(folder), "--ckpt", "tiny", "--no-progress", *chosen]) == 0
    return folder


@pytest.fixture(scope="module")
def right(target: Target) -> dict[DType, Shown]:
    types: tuple[DType, ...] = ("float32", "bfloat16", "float16")
    return {dtype: shown(ReferencePeer(NUMPY, dtype), target, CASES) for dtype in types}


@pytest.fixture(scope="module")
def wrong(target: Target, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Fault → a file of what a port with it shows."""
    folder, found = tmp_path_factory.mktemp("wrong"), {}
    for key, (case, _) in FAULTS.items():
        (fault,) = (fault for fault in find([key]) if fault.key == key)
        found[key] = written(folder / f"{key}.safetensors", shown(FaultyPeer(fault.inject), target, [case]))
    return found


def judged(vectors: Path, dtype: str) -> int:
    return sum(name.endswith("@compared") for name in load_file(vectors / f"{dtype}.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_right_output_passes(
    checker: Checker, vectors: Path, right: dict[DType, Shown], dtype: DType, tmp_path: Path
) -> None:
    """A half type's values are stored as float32, which holds them all; the file of vectors says what type it was."""
    output = written(tmp_path / "mine.safetensors", right[dtype])
    file = vectors / f"{dtype}.safetensors"
    assert checker(file, output) == (0, f"PASS {judged(vectors, dtype)} taps\n", "")
    assert checker(file, output, "short") == (0, "PASS 16 taps\n", "")


def test_bfloat16_is_no_float32(checker: Checker, vectors: Path, right: dict[DType, Shown], tmp_path: Path) -> None:
    output = written(tmp_path / "mine.safetensors", right["bfloat16"])
    status, out, _ = checker(vectors / "float32.safetensors", output)
    assert (status, out.split(":")[0]) == (1, "FAIL short/0/encoder.text_model.inputs_embeds")


@pytest.mark.parametrize("key", FAULTS)
def test_a_fault_is_found_where_it_is(checker: Checker, vectors: Path, wrong: dict[str, Path], key: str) -> None:
    case, first = FAULTS[key]
    status, out, err = checker(vectors / "float32.safetensors", wrong[key], case)
    assert (status, err) == (1, "")
    assert out.startswith(f"FAIL {first}")
    assert out.count("\n") == 1


def test_it_says_the_token_how_far_and_how_far_is_allowed(
    checker: Checker, vectors: Path, right: dict[DType, Shown], tmp_path: Path
) -> None:
    stored = load_file(vectors / "float32.safetensors")
    case = "padded-left-cached/0/decoder.layers.3"
    value, allowed, compared = (stored[f"{case}{of}"] for of in ("", "@allowed", "@compared"))
    row, column = (int(i) for i in np.argwhere(compared)[-1])
    mine = np.zeros((*compared.shape, value.shape[1]), np.float32)
    mine[compared == 1] = value
    mine[row, column, 0] += 0.5
    output = written(tmp_path / "mine.safetensors", right["float32"] | {case: mine})
    status, out, _ = checker(vectors / "float32.safetensors", output, "padded-left-cached")
    assert status == 1
    words = out.split()
    assert words[1:5] == [f"{case}:", "token", f"({row},", f"{column})"]
    assert float(words[6]) == pytest.approx(0.5, rel=1e-2)
    assert float(words[9]) == pytest.approx(float(allowed[-1]), rel=1e-2)
    for part, wanted in ((0.98, 0), (1.02, 1)):  # the addition itself is rounded
        mine[row, column, 0] = value[-1, 0] + allowed[-1] * np.float32(part)
        output = written(tmp_path / "near.safetensors", right["float32"] | {case: mine})
        assert checker(vectors / "float32.safetensors", output, "padded-left-cached")[0] == wanted


def spoilt(change: Callable[[Array], Array | None]) -> Callable[[Shown], Shown]:
    """The output with one tap changed, or without it where that gives None."""

    def spoil(found: Shown) -> Shown:
        value = change(found[TAP].copy())
        return {name: array for name, array in (found | {TAP: value}).items() if array is not None}  # type: ignore[operator]

    return spoil


def put(index: tuple[int, ...], number: float) -> Callable[[Array], Array]:
    def change(value: Array) -> Array:
        value[index] = number
        return value

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda value: None, "it is missing"),
        (lambda value: value.astype(np.float64), "its dtype is not F32"),
        (lambda value: value.astype(np.float16), "its dtype is not F32"),
        (lambda value: value[0], "its shape is"),
        (lambda value: value.transpose(0, 2, 1).copy(), "its shape is"),
        (lambda value: value[:, :-1].copy(), "its shape is"),
        (lambda value: value[..., None].copy(), "its shape is"),
        (lambda value: value[..., :-1].copy(), "its shape is"),
        (put((0, 3, 47), np.nan), "it has a NaN or an infinity"),
        (put((0, 0, 0), -np.inf), "it has a NaN or an infinity"),
        (put((0, 2, 5), 3e38), "token (0, 2) is"),
    ],
)
def test_what_cannot_be_compared_fails(
    checker: Checker,
    vectors: Path,
    right: dict[DType, Shown],
    change: Callable[[Array], Array | None],
    what: str,
    tmp_path: Path,
) -> None:
    save_file(spoilt(change)(right["float32"]), tmp_path / "mine.safetensors")
    status, out, _ = checker(vectors / "float32.safetensors", tmp_path / "mine.safetensors", "short")
    assert status == 1
    assert out.startswith(f"FAIL {TAP}: {what}")


def test_padding_does_not_count_unless_it_is_no_number(
    checker: Checker, vectors: Path, right: dict[DType, Shown], tmp_path: Path
) -> None:
    tap = "padded-left/0/encoder.text_model.layers.1"
    padding = load_file(vectors / "float32.safetensors")[f"{tap}@compared"] == 0
    assert padding.any()
    mine = right["float32"][tap].copy()
    mine[padding] = 1e6
    output = written(tmp_path / "mine.safetensors", right["float32"] | {tap: mine})
    assert checker(vectors / "float32.safetensors", output)[0] == 0
    mine[padding] = np.nan
    output = written(tmp_path / "mine.safetensors", right["float32"] | {tap: mine})
    status, out, _ = checker(vectors / "float32.safetensors", output)
    assert (status, out) == (1, f"FAIL {tap}: it has a NaN or an infinity\n")


def test_more_taps_than_asked_for_are_no_mistake(
    checker: Checker, vectors: Path, right: dict[DType, Shown], tmp_path: Path
) -> None:
    more = {"short/0/decoder.layers.0.mlp.act_fn": np.zeros((1, 4, 88)), "mine": np.full(3, np.nan)}
    save_file(right["float32"] | more, tmp_path / "mine.safetensors", metadata={"by": 'a "port" {of} mine'})
    assert checker(vectors / "float32.safetensors", tmp_path / "mine.safetensors")[0] == 0


def test_keys_in_another_order_and_spaces_are_read(
    checker: Checker, vectors: Path, right: dict[DType, Shown], tmp_path: Path
) -> None:
    data = written(tmp_path / "mine.safetensors", right["float32"]).read_bytes()
    header, rest = split(data)
    turned = {name: dict(reversed(entry.items())) for name, entry in header.items()}
    (tmp_path / "mine.safetensors").write_bytes(joined(json.dumps(turned, indent=1), rest))
    assert checker(vectors / "float32.safetensors", tmp_path / "mine.safetensors")[0] == 0


# No verdict


def split(data: bytes) -> tuple[dict[str, dict[str, object]], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: str, rest: bytes) -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + rest


def entry(**fields: object) -> str:
    plain: dict[str, object] = {"dtype": "F32", "shape": [1, 5, 48], "data_offsets": [0, 960]}
    return json.dumps({"short/0/encoder.text_model.inputs_embeds": plain | fields}, separators=(",", ":"))


HOSTILE = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "a header without end": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header longer than the file": struct.pack("<Q", 3) + b"{}",
    "data behind the file": joined(entry(data_offsets=[0, 960]), b"\0" * 959),
    "data from the end": joined(entry(data_offsets=[960, 0]), b"\0" * 960),
    "a negative begin": joined(entry(data_offsets=[-960, 0]), b"\0" * 960),
    "a shape of another size": joined(entry(shape=[1, 5, 49]), b"\0" * 960),
    "a shape that overflows": joined(entry(shape=[2**32, 2**32, 48], data_offsets=[0, 0]), b"\0" * 960),
    "a negative length": joined(entry(shape=[-1, -5, 48]), b"\0" * 960),
    "a number of many digits": joined(entry().replace("960", "9" * 400), b"\0" * 960),
    "no numbers": joined(entry().replace("[0,960]", "[]"), b"\0" * 960),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_broken_file_gives_no_verdict(checker: Checker, vectors: Path, what: str, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(HOSTILE[what])
    status, out, err = checker(vectors / "float32.safetensors", tmp_path / "mine.safetensors", "short")
    assert (status, out) == (2, "")
    assert err


def test_a_header_with_a_wrong_byte_never_passes_for_another(
    checker: Checker, vectors: Path, right: dict[DType, Shown], tmp_path: Path
) -> None:
    """Of the output's first tap, one byte after the other: it fails or gives no verdict, and no memory is touched."""
    name = "short/0/encoder.text_model.inputs_embeds"
    data = written(tmp_path / "mine.safetensors", {name: right["float32"][name]}).read_bytes()
    begin = data.index(b'"short') + 1
    end, rng = data.index(b"}", begin), np.random.default_rng(20251212)
    for at in rng.choice(np.arange(begin, end), 24, replace=False):
        changed = bytearray(data)
        changed[at] = rng.choice([b for b in (*b'0189{}[]",-x', 0, 255) if b != changed[at]])
        (tmp_path / "changed.safetensors").write_bytes(changed)
        assert checker(vectors / "float32.safetensors", tmp_path / "changed.safetensors", "short")[0] in (1, 2)


def test_what_gives_no_verdict(checker: Checker, vectors: Path, right: dict[DType, Shown], tmp_path: Path) -> None:
    file, output = vectors / "float32.safetensors", written(tmp_path / "mine.safetensors", right["float32"])
    for arguments in (
        [file],
        [],
        [file, output, "short", "more"],
        [tmp_path / "none", output],
        [file, tmp_path / "none"],
    ):
        assert checker(*arguments)[:2] == (2, ""), arguments
    assert checker(file, output, "shor")[:2] == (2, ""), "no case is called so"
    assert checker(output, output)[:2] == (2, ""), "what a port wrote is no vectors"
    later = file.read_bytes().replace(b'"version":"1"', b'"version":"2"', 1)
    (tmp_path / "later.safetensors").write_bytes(later)
    assert checker(tmp_path / "later.safetensors", output)[:2] == (2, ""), "vectors of a version to come"


@pytest.mark.parametrize("of", ["@allowed", "@compared", ""])
def test_vectors_that_lack_something_give_no_verdict(
    checker: Checker, vectors: Path, right: dict[DType, Shown], of: str, tmp_path: Path
) -> None:
    """A token less in one of a tap's three tensors: what is left must not pass for all of it."""
    header, rest = split((vectors / "float32.safetensors").read_bytes())
    kept = {name: value for name, value in header.items() if name == "__metadata__" or name.startswith(TAP)}
    begin, end = kept[f"{TAP}{of}"]["data_offsets"]  # type: ignore[misc]
    shape = kept[f"{TAP}{of}"]["shape"]
    assert isinstance(shape, list)
    shape[shape.index(4)] = 3
    kept[f"{TAP}{of}"]["data_offsets"] = [begin, begin + (end - begin) * 3 // 4]  # type: ignore[has-type]
    (tmp_path / "less.safetensors").write_bytes(joined(json.dumps(kept, separators=(",", ":")), rest))
    output = written(tmp_path / "mine.safetensors", right["float32"])
    assert checker(tmp_path / "less.safetensors", output)[:2] == (2, "")


def test_they_are_short() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in SOURCES.iterdir() if path.is_file()}
    assert set(lines) >= {"check.c", "check.js", "check.rs"}
    assert max(lines.values()) <= 115
    assert all(
        len(line) <= 120 for path in SOURCES.iterdir() if path.is_file() for line in path.read_text().splitlines()
    )
