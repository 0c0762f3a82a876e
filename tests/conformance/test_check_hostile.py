"""`check`: no dump, however broken or hostile, passes or makes the judge fall over."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumping import TINY, Calls, edit, write

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from command_line import Check
from dumping import LAYER

from conformance import __main__ as command
from conformance.exchange import writing
from conformance.exchange.reading import DumpError, Tensors, confined
from t5g2ref.checkpoint.header import ANY


def garbage(name: str, data: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return spoil


def field(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda document: document.update(values))


def of_config(fields: Any) -> Callable[[Path], None]:
    return field(checkpoint={"name": TINY, "config": fields})


def call(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda document: document["cases"]["short"][0].update(values))


def linked(to: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "link.safetensors").symlink_to(to)
        call(file="link.safetensors")(folder)

    return spoil


def replaced(how: Callable[[Path], object]) -> Callable[[Path], None]:
    """The manifest is taken away, and something else put in its place."""

    def spoil(folder: Path) -> None:
        (folder / "manifest.json").unlink()
        how(folder / "manifest.json")

    return spoil


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.safetensors")
    call(file="pipe.safetensors")(folder)


def cut(size: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "short" / "0.safetensors"
        path.write_bytes(path.read_bytes()[:size])

    return spoil


def headed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FILE = "short/0.safetensors"
EIGHT = b"\0" * 8
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (replaced(lambda path: None), "manifest.json': no such file"),
    "manifest is a folder": (replaced(Path.mkdir), "manifest.json': no such file"),
    "manifest is a link out": (replaced(lambda path: path.symlink_to("/etc/hostname")), "a link out of the folder"),
    "not JSON": (garbage("manifest.json", b'{\n "format": \n}'), "not JSON: Expecting value: line 3 column 1"),
    "not text": (garbage("manifest.json", b"\xff\xfe\x00"), "not JSON"),
    "empty": (garbage("manifest.json", b""), "not JSON: Expecting value: line 1"),
    "deep": (garbage("manifest.json", b"[" * 100_000), "not JSON"),
    "as deep as JSON goes": (
        garbage("manifest.json", b"[" * 900 + b"]" * 900),
        "manifest.json is [[[[[...]]]]], expected",
    ),
    "a long name": (
        lambda folder: edit(folder, lambda raw: raw["cases"].update({"n" * 7_000_000: []})),
        "expected a line of printable text",
    ),
    "many patterns": (
        field(layouts={f"*.{i}": "B T D" for i in range(9_000)}),
        "layouts has 9000 patterns, expected at most 500 beside names of taps",
    ),
    "very many patterns": (
        field(layouts={f"*.{i}": "B T D" for i in range(100_000)}),
        "layouts has 100000 entries, expected at most 10000",
    ),
    "a pattern like no tap": (
        field(layouts={"decoder." * 120: "B T D"}),
        "is no tap, nor a pattern of any, in layouts; see `list`",
    ),
    "very many taps": (
        call(taps=["logits"] * 20_000),
        "cases.short[0].taps has 20000 entries, expected at most 10000",
    ),
    "a list": (garbage("manifest.json", b"[]"), "manifest.json is [], expected an object"),
    "a key twice": (garbage("manifest.json", b'{"format": 1, "format": 2}'), "appears twice"),
    "a huge number": (garbage("manifest.json", b'{"version": ' + b"9" * 5000 + b"}"), "not JSON"),
    "another format": (field(format="dump"), "format is 'dump', expected 't5g2ref-dump'"),
    "an export": (field(format="t5g2ref-export"), "this is what `export` wrote, not a dump"),
    "another version": (field(version=2), "version is 2, expected 1"),
    "version true": (field(version=True), "version is True, expected 1"),
    "unknown field": (field(layout={}), "has a field 'layout', expected only cases, checkpoint"),
    "no peer": (field(peer=None), "peer is None, expected an object"),
    "peer dtype": (field(peer={"name": "x", "dtype": "float64"}), "peer.dtype is 'float64', expected one of float32"),
    "escape codes": (field(peer={"name": "x\x1b[2J", "dtype": "float32"}), "peer.name is 'x\\x1b[2J'"),
    "a blank name": (field(peer={"name": "  ", "dtype": "float32"}), "peer.name is '  ', expected a name that can be"),
    "long peer name": (field(peer={"name": "x" * 65, "dtype": "float32"}), "at most 64 characters"),
    "no checkpoint": (field(checkpoint=None), "checkpoint is None, expected a line"),
    "another checkpoint": (field(checkpoint="270m"), "it is of checkpoint '270m' (fingerprint none), not of"),
    "another fingerprint": (field(checkpoint={"name": TINY, "fingerprint": "0" * 64}), "(fingerprint 000000000000)"),
    "config a list": (of_config([]), "checkpoint.config is [], expected an object"),
    "config of objects": (of_config({"x": {}}), "checkpoint.config.x is {}, expected a number, a line of text"),
    "escape codes in config": (of_config({"x": "\x1b[2J"}), "checkpoint.config.x is '\\x1b[2J', expected a line"),
    "very large config": (of_config({str(i): 1 for i in range(20_000)}), "has 20000 entries, expected at most 10000"),
    "another config": (of_config({"x": 1e4}), "made without encoder.text_config.vocab_size, the checkpoint"),
    "no cases": (field(cases={}), "cases is {}, expected at least one case"),
    "skipped a list": (field(skipped=["window"]), "skipped is ['window'], expected an object"),
    "skipped without a reason": (field(skipped={"window": ""}), "skipped.window is '', expected a line of printable"),
    "skipped by a number": (field(skipped={"window": 3}), "skipped.window is 3, expected a line of printable text"),
    "escape codes in skipped": (field(skipped={"window": "\x1b[2J"}), "skipped.window is '\\x1b[2J', expected a line"),
    "a long reason": (field(skipped={"window": "x" * 2000}), "skipped.window is 'xxx"),
    "skipped and there": (field(skipped={"short": "no"}), "skipped has case 'short', which cases has too"),
    "unknown case skipped": (field(skipped={"windo": "no"}), "'windo' is no case; close: window"),
    "very many skipped": (field(skipped={str(i): "no" for i in range(20_000)}), "skipped has 20000 entries, expected"),
    "unknown case": (field(cases={"shorty": [{"file": FILE}]}), "'shorty' is no case; close: short"),
    "no calls": (field(cases={"short": []}), "cases.short is [], expected a list"),
    "calls as object": (field(cases={"short": {"file": FILE}}), "cases.short is {'file'"),
    "too many calls": (field(cases={"short": [{"file": FILE}] * 2}), "case short: expected 1 calls, found 2"),
    "call is a number": (field(cases={"short": [7]}), "cases.short[0] is 7, expected an object"),
    "file is a number": (call(file=7), "cases.short[0].file is 7"),
    "taps is a number": (call(taps=7), "cases.short[0].taps is 7"),
    "a tap twice": (call(taps=["logits", "logits"]), "expected each tap once"),
    "unknown tap": (call(taps=["decoder.layer.3"]), "'decoder.layer.3' is no tap of call 0; close: decoder.layers.3"),
    "no such tensor": (call(taps={LAYER: "nowhere"}), f"no tensor 'nowhere' in it, which should be {LAYER}"),
    "layout of nothing": (field(layouts={"decoder.layer.*": "B T D"}), "nor a pattern of any, in layouts"),
    "layout of other letters": (field(layouts={LAYER: "B T F"}), "is declared as 'B T F', expected each of B T D once"),
    "layout is a list": (field(layouts=["B T D"]), "layouts is ['B T D'], expected an object"),
    "stored as text": (field(stored={"*": "text"}), "stored.* is 'text', expected one of uint8, float32"),
    "parent": (call(file="../short/0.safetensors"), "without .. in it"),
    "parent inside": (call(file="short/../short/0.safetensors"), "without .. in it"),
    "absolute": (call(file="/etc/passwd"), "expected a path inside the folder"),
    "backslash": (call(file="..\\0.safetensors"), "expected a path inside the folder"),
    "nul": (call(file="a\0b"), "expected a line of printable text"),
    "link out": (linked("/etc/hostname"), "a link out of the folder"),
    "link up": (linked("../elsewhere.safetensors"), "a link out of the folder"),
    "link to itself": (linked("link.safetensors"), "link.safetensors'"),
    "device": (linked("/dev/zero"), "a link out of the folder"),
    "a pipe": (pipe, "no such file in the folder"),
    "missing file": (call(file="short/1.safetensors"), "'short/1.safetensors': no such file in the folder"),
    "long name": (call(file="a" * 600), "cannot be read"),
    "a folder": (call(file="short"), "no such file in the folder"),
    "empty file": (cut(0), "has 0 bytes, expected at least 8"),
    "cut header": (cut(40), "it is cut short"),
    "cut data": (cut(-7), "the tensors end at byte"),
    "10 GB header": (garbage(FILE, struct.pack("<Q", 10 << 30) + EIGHT), "said to have 10737418240 bytes"),
    "largest header": (garbage(FILE, b"\xff" * 16), "said to have 18446744073709551615 bytes"),
    "empty and endless": (
        garbage(FILE, headed({"a": tensor(shape=(1 << 40, 1 << 40, 0), offsets=(0, 0))})),
        "has shape",
    ),
    "header of 11 MB": (garbage(FILE, headed({"a" * 11_000_000: tensor()}, EIGHT)), "expected at most 4194304"),
    "header no JSON": (garbage(FILE, headed(b"{]")), "the header is not JSON"),
    "header a list": (garbage(FILE, headed([])), "the header is a JSON list"),
    "deep header": (garbage(FILE, headed(b"[" * 100_000)), "the header is not JSON"),
    "tensor twice": (garbage(FILE, headed(b'{"a": 1, "a": 2}')), "appears twice"),
    "tensor a number": (garbage(FILE, headed({"a": 1})), "'a' is 1, expected an object"),
    "type": (garbage(FILE, headed({"a": tensor("F8_E4M3")}, EIGHT)), "has dtype 'F8_E4M3', expected one of"),
    "type a list": (garbage(FILE, headed({"a": tensor([])}, EIGHT)), "has dtype [], expected one of"),
    "negative shape": (garbage(FILE, headed({"a": tensor(shape=(-2,))}, EIGHT)), "non-negative integers"),
    "huge shape": (garbage(FILE, headed({"a": tensor(shape=(1 << 40,))}, EIGHT)), "expected a span of 4398046511104"),
    "many axes": (garbage(FILE, headed({"a": tensor(shape=(1,) * 99)}, EIGHT)), "list of non-negative integers"),
    "offsets back": (garbage(FILE, headed({"a": tensor(offsets=(8, 0))}, EIGHT)), "expected a span of 8 bytes"),
    "offsets beyond": (garbage(FILE, headed({"a": tensor(offsets=(8, 16))}, EIGHT)), "leaves a hole before it"),
    "overlap": (garbage(FILE, headed({"a": tensor(), "b": tensor()}, EIGHT)), "'b' begins at byte"),
    "unlisted bytes": (garbage(FILE, headed({"a": tensor()}, EIGHT * 2)), "the tensors end at byte"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_dump_is_an_error_with_a_reason(tmp_path: Path, name: str, check: Check) -> None:
    spoil, message = HOSTILE[name]
    folder = write(tmp_path / "dump")
    (tmp_path / "elsewhere.safetensors").write_bytes((folder / FILE).read_bytes())
    spoil(folder)
    status, _, err = check(folder)
    assert status == 2
    assert err.startswith(f"conformance: dump {folder}: ")
    assert message in err
    assert len(err) < 1000


def test_more_numbers_than_a_tap_has_are_not_read(tmp_path: Path, check: Check) -> None:
    """A header that claims a terabyte, and a (sparse) file that bears it out."""
    folder = write(tmp_path, full=True)
    path = folder / FILE
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    header["more"] = tensor("F32", (1 << 38,), (len(whole) - start, len(whole) - start + (1 << 40)))
    path.write_bytes(headed(header, whole[start:]))
    os.truncate(path, path.stat().st_size + (1 << 40))
    taps = {name: name for name in header if name not in ("__metadata__", "more")} | {"logits": "more"}
    edit(folder, lambda document: document["cases"]["short"][0].update(taps=taps))
    status, lines, _ = check(folder)
    assert status == 1
    assert lines[-1].startswith("VERDICT: DEVIATES (on 1 of 25 cases) at logits (shape;")
    assert "found (274877906944,)" in "\n".join(lines)


def test_a_dump_cannot_be_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Check) -> None:
    folder = write(tmp_path)
    assert any("neither its weights nor masks by probing were judged" in text for text in check(folder)[1])
    start = ["--peer", f"dir:{folder}", "--ckpt", TINY, "--case", "short", "--no-progress", "--lane", "exact"]
    assert command.main(start) == 3
    assert command.main([*start, "--lane", "fp32"]) == 3


def test_few_taps_are_said(tmp_path: Path, check: Check) -> None:
    status, lines, _ = check(write(tmp_path, dtype="bfloat16"))
    text = "\n".join(lines)
    assert status == 0
    assert "note: stranger shows 16 of 317 taps (case short): a mistake can only be placed between two of them" in text
    assert "a peer in half precision does not show what this operation reads and gives" in text
    assert "of the worst case that legal rounding can do" in text, "of the operations between two taps that it shows"


def test_a_tap_of_another_call(tmp_path: Path, check: Check) -> None:
    def encoder_again(calls: Calls) -> None:
        calls[1]["encoder.text_model.norm"] = calls[0]["encoder.text_model.norm"]

    status, _, err = check(write(tmp_path, "eoi-cached", change=encoder_again), case="eoi-cached")
    assert status == 2
    assert "case eoi-cached, call 1: 'encoder.text_model.norm' is made in the first call of a run only" in err


def test_a_manifest_without_end(tmp_path: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.exchange.manifest.MAX_BYTES", 100)
    assert "larger than 100 bytes" in check(write(tmp_path))[2]


def test_no_folder(tmp_path: Path, check: Check) -> None:
    assert "no such folder" in check(tmp_path / "nowhere")[2]


def test_a_mask_of_twos(tmp_path: Path, check: Check) -> None:
    def twos(calls: Calls) -> None:
        name = "decoder.layers.0.self_attn.mask"
        calls[0][name] = np.full(calls[0][name].shape, 2, np.uint8)

    folder = write(tmp_path, full=True, change=twos, stored={"*.mask": "uint8"})
    status, lines, _ = check(folder)
    assert status == 3
    assert "expected 0 and 1 for a bool, found 2" in "\n".join(lines)


def test_a_bool_of_two(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(headed({"m": tensor("BOOL", (2,), (0, 2))}, b"\1\2"))
    with pytest.raises(DumpError, match="expected 0 and 1 for a bool, found 2"):
        Tensors.open(tmp_path, "a").read("m")


def test_a_file_changed_on_the_way(tmp_path: Path) -> None:
    writing.tensors(tmp_path / "a", {"x": np.zeros(4)})
    file = Tensors.open(tmp_path, "a")
    writing.tensors(tmp_path / "a", {"x": np.ones(4)})
    with pytest.raises(DumpError, match="changed while x was being read"):
        file.read("x")


@pytest.mark.parametrize("value", [1e30, 3e38, float("nan")])
def test_a_number_that_overflows_what_follows_is_found_without_a_warning(
    tmp_path: Path, check: Check, value: float
) -> None:
    """Warnings are errors here: our own runs go on with that number, and their squares are infinite."""

    def huge(calls: Calls) -> None:
        for name in ("decoder.layers.1", "encoder.text_model.layers.2"):
            calls[0][name][..., 3] = value

    status, lines, err = check(write(tmp_path, change=huge))
    assert status == 1
    assert lines[-1].startswith("VERDICT: DEVIATES")
    assert err == ""


def test_links_inside_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "b").symlink_to("a")
    assert confined(tmp_path, "b") == (tmp_path / "a").resolve()


@pytest.mark.parametrize("code", ["I8", "U16", "I32", "U64", "F16", "BF16", "F64", "BOOL"])
def test_every_type_is_read(tmp_path: Path, code: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(ANY[code])
    writing.tensors(tmp_path / "a", {"x": array, "empty": array[:0], "scalar": array[0, 1]})
    file = Tensors.open(tmp_path, "a")
    for name, expected in (("x", array), ("empty", array[:0]), ("scalar", array[0, 1])):
        found = file.read(name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
