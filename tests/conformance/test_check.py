"""`check`: a stranger's dump is judged, and no dump, however broken or hostile, passes or makes the judge fall over."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumping import TINY, Array, Calls, case_of, edit, tiny, write

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from conformance import __main__ as command
from conformance.activations import Dump
from conformance.errors import PeerUnavailable
from conformance.exchange import writing
from conformance.exchange.reading import DumpError, Tensors, confined
from conformance.peers.folder import create
from conformance.peers.protocol import Skip
from t5g2ref import bundled
from t5g2ref.checkpoint.header import ANY

ROOT = Path(__file__).resolve().parents[2]
Result = tuple[int, list[str], str]
Check = Callable[..., Result]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """`check(folder, *arguments)` → exit status, lines on stdout, stderr; never a stack trace."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(folder: Path, *arguments: str, ckpt: str = TINY, case: str = "short") -> Result:
        capsys.readouterr()
        wanted = ["--case", case] if case else []
        status = command.main(["check", str(folder), "--ckpt", ckpt, *wanted, "--no-progress", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert out.splitlines()[-1].startswith("VERDICT: ") if status != 2 else not out
        return status, out.splitlines(), err

    return call


def at(name: str, change: Callable[[Array], Array], call: int = 0) -> Callable[[Calls], None]:
    """Replace one array of a dump."""

    def spoil(calls: Calls) -> None:
        calls[call][name] = np.ascontiguousarray(change(calls[call][name]))

    return spoil


def without(*names: str, call: int = 0) -> Callable[[Calls], None]:
    def spoil(calls: Calls) -> None:
        for name in names:
            del calls[call][name]

    return spoil


LAYER = "decoder.layers.3"


# What conforms


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("case", ["short", "padded-left-cached", "image", "sequence-multi", "loss", "second-source"])
def test_an_honest_dump_conforms(tmp_path: Path, case: str, full: bool, check: Check) -> None:
    status, lines, _ = check(write(tmp_path, case, full=full), case=case)
    assert (status, lines[-1]) == (0, "VERDICT: CONFORMS (on 1 of 21 cases)")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types(tmp_path: Path, dtype: Any, check: Check) -> None:
    assert check(write(tmp_path, "short", dtype=dtype))[0] == 0


def test_half_types_stored_wide(tmp_path: Path, check: Check) -> None:
    def widened(calls: Calls) -> None:
        for call in calls:
            call |= {n: v if v.dtype.kind == "i" else v.astype(np.float32) for n, v in call.items()}

    folder = write(tmp_path, "short", dtype="bfloat16", change=widened)
    status, lines, _ = check(folder)
    assert status == 1
    assert "expected bfloat16, found float32" in "\n".join(lines)
    edit(folder, lambda document: document.update(stored={"*": "float32"}))
    assert check(folder)[0] == 0


def test_wide_values_of_no_half_type(tmp_path: Path, check: Check) -> None:
    def wide(calls: Calls) -> None:
        calls[0][LAYER] = calls[0][LAYER].astype(np.float32) * np.float32(1.0001)

    status, lines, _ = check(write(tmp_path, "short", dtype="bfloat16", change=wide, stored={"*": "float32"}))
    assert status == 1
    assert lines[-1].startswith(f"VERDICT: DEVIATES (on 1 of 21 cases) at {LAYER} (dtype;")


def test_masks_as_bytes(tmp_path: Path, check: Check) -> None:
    def bytewise(calls: Calls) -> None:
        for call in calls:
            call |= {n: v.astype(np.uint8) for n, v in call.items() if v.dtype == bool}

    folder = write(tmp_path, full=True, change=bytewise)
    status, lines, _ = check(folder)
    assert status == 1
    assert "expected bool, found uint8" in "\n".join(lines)
    edit(folder, lambda document: document.update(stored={"*.mask": "uint8"}))
    assert check(folder)[0] == 0


def test_declared_layouts_and_names(tmp_path: Path, check: Check) -> None:
    def laid(calls: Calls) -> None:
        for call in calls:
            rows = call.pop(LAYER)
            call["residual/3"] = np.ascontiguousarray(rows.transpose(2, 1, 0))

    def named(document: dict[str, Any]) -> None:
        for entry in document["cases"]["short"]:
            names = Tensors.open(tmp_path, entry["file"]).entries
            entry["taps"] = {LAYER if name == "residual/3" else name: name for name in names}
        document["layouts"] = {"decoder.layers.?": "B T D", LAYER: "D T B"}  # the very name goes before a pattern

    folder = write(tmp_path, change=laid)
    edit(folder, named)
    assert check(folder)[0] == 0


def test_packed_rows(tmp_path: Path, check: Check) -> None:
    keep = case_of(tiny(), "padded-right").runs[0]
    pairs = {"encoder.": keep.encoder_valid, "decoder.": keep.decoder_valid, "logits": keep.decoder_valid}

    def packed(calls: Calls) -> None:
        for name, value in calls[0].items():
            if not name.endswith("ids"):
                calls[0][name] = value[next(mask for start, mask in pairs.items() if name.startswith(start))]

    folder = write(tmp_path, "padded-right", change=packed, layouts={"logits": "valid V", "*": "valid D"})
    assert check(folder, case="padded-right")[0] == 0


def test_what_padded_rows_hold_does_not_matter(tmp_path: Path, check: Check) -> None:
    keep = case_of(tiny(), "padded-left").runs[0].encoder_valid

    def noise(calls: Calls) -> None:
        for name, value in calls[0].items():
            if name.startswith("encoder."):
                calls[0][name] = np.where(keep[..., None], value, np.float32(7))

    assert check(write(tmp_path, "padded-left", change=noise), case="padded-left")[0] == 0


def test_one_of_two_bundled_checkpoints(tmp_path: Path, check: Check) -> None:
    status, lines, _ = check(write(tmp_path, checkpoint="tiny"), ckpt="tiny")
    assert (status, lines[-1]) == (0, "VERDICT: CONFORMS (on 1 of 21 cases)")


def test_reports_are_written(tmp_path: Path, check: Check) -> None:
    check(write(tmp_path / "dump"), "--json", str(tmp_path / "found.json"))
    document = json.loads((tmp_path / "found.json").read_text())
    assert document["verdict"] == "CONFORMS"
    assert document["environment"]["stranger"] == "1.0"
    assert [j["peer"] for j in document["judgements"]] == ["stranger"]


# What deviates


@pytest.mark.parametrize(
    ("spoil", "tap", "status", "detail"),
    [
        (at(LAYER, lambda x: x * np.float32(1.001)), LAYER, "values", "times the control's error"),
        (at("logits", lambda x: x[..., ::-1]), "logits", "values", "times the control's error"),
        (at(LAYER, lambda x: np.where(x == x.max(), np.float32("nan"), x)), LAYER, "nan", "found nan at"),
        (at(LAYER, lambda x: x * np.float32("inf")), LAYER, "nan", "expected finite numbers"),
        (at(LAYER, lambda x: x[:, :3]), LAYER, "shape", "expected B T D = (1, 4, 48), found (1, 3, 48)"),
        (at(LAYER, lambda x: x.transpose(1, 0, 2)), LAYER, "shape", "expected B T D = (1, 4, 48), found (4, 1, 48)"),
        (at(LAYER, lambda x: x[None]), LAYER, "shape", "found (1, 1, 4, 48)"),
        (at(LAYER, lambda x: x[:, :0]), LAYER, "shape", "found (1, 0, 48)"),
        (at(LAYER, lambda x: x.astype(np.float64)), LAYER, "dtype", "expected float32, found float64"),
        (at(LAYER, lambda x: x.astype(np.int64)), LAYER, "dtype", "expected float32, found int64"),
        (at("input_ids", lambda x: x + (x == x.max())), "input_ids", "exact", "1 of 5 ids differ"),
        (at("decoder_input_ids", lambda x: x.T), "decoder_input_ids", "shape", "= (1, 4), found (4, 1)"),
        (at("input_ids", lambda x: x.astype(np.float32)), "input_ids", "dtype", "integers, found float32"),
    ],
)
def test_wrong_numbers_are_red(
    tmp_path: Path, spoil: Callable[[Calls], None], tap: str, status: str, detail: str, check: Check
) -> None:
    with np.errstate(invalid="ignore"):
        folder = write(tmp_path, change=spoil)
    code, lines, _ = check(folder)
    assert code == 1
    assert lines[-1].startswith(f"VERDICT: DEVIATES (on 1 of 21 cases) at {tap} ({status};")
    assert detail in "\n".join(lines)


def test_batch_and_tokens_exchanged_undeclared(tmp_path: Path, check: Check) -> None:
    def swapped(calls: Calls) -> None:
        for name, value in calls[0].items():
            if not name.endswith("ids"):
                calls[0][name] = np.ascontiguousarray(value.swapaxes(0, 1))

    folder = write(tmp_path, change=swapped)
    code, lines, _ = check(folder)
    assert code == 1
    assert "expected B T D = (1, 5, 48), found (5, 1, 48)" in "\n".join(lines)
    edit(folder, lambda document: document.update(layouts={"logits": "T B V", "*": "T B D"}))
    assert check(folder)[0] == 0


def test_equal_lengths_exchanged_are_seen_by_their_values(tmp_path: Path, check: Check) -> None:
    def swapped(calls: Calls) -> None:  # N and H would be (8, 10) or (10, 8); of one length each, here the width
        calls[0][LAYER] = np.ascontiguousarray(calls[0][LAYER].reshape(1, 4, 8, 6).swapaxes(2, 3)).reshape(1, 4, 48)

    assert check(write(tmp_path, change=swapped))[0] == 1


def test_an_array_without_its_declared_layout(tmp_path: Path, check: Check) -> None:
    code, lines, _ = check(write(tmp_path, layouts={LAYER: "T B D"}))
    assert code == 1
    assert "declared as T B D = (4, 1, 48), found (1, 4, 48)" in "\n".join(lines)
    assert f"at {LAYER} (shape;" in lines[-1]


def test_a_tap_left_out_of_one_call(tmp_path: Path, check: Check) -> None:
    tap = "decoder.layers.0.self_attn.q_proj"
    folder = write(tmp_path, "eoi-cached", full=True, change=without(tap, call=2))
    code, lines, _ = check(folder, case="eoi-cached")
    assert code == 1
    assert f"at {tap} (missing;" in lines[-1]


# What is incomplete


@pytest.mark.parametrize("tap", ["input_ids", "decoder_input_ids", "encoder.text_model.inputs_embeds", LAYER, "logits"])
def test_less_than_the_least(tmp_path: Path, tap: str, check: Check) -> None:
    code, lines, _ = check(write(tmp_path, change=without(tap)))
    assert code == 3
    assert lines[-1].startswith("VERDICT: INCOMPLETE")
    assert tap in "\n".join(lines)


def test_nothing_at_all(tmp_path: Path, check: Check) -> None:
    code, lines, _ = check(write(tmp_path, change=lambda calls: calls[0].clear()))
    assert code == 3
    assert "encoder.text_model.inputs_embeds" in "\n".join(lines)


def test_less_than_the_least_and_wrong(tmp_path: Path, check: Check) -> None:
    def both(calls: Calls) -> None:
        without("logits")(calls)
        at(LAYER, lambda x: x * np.float32(1.01))(calls)

    code, lines, _ = check(write(tmp_path, change=both))
    assert code == 1
    assert f"at {LAYER} (values;" in lines[-1]


def test_cases_that_are_not_there(tmp_path: Path, check: Check) -> None:
    code, lines, _ = check(write(tmp_path), case="")
    assert code == 3
    text = "\n".join(lines)
    assert text.count("the dump does not hold this case") >= 20
    assert "window" in text


# What is no dump


def garbage(name: str, data: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return spoil


def field(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda document: document.update(values))


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
    "not JSON": (garbage("manifest.json", b'{\n "format": \n}'), "not JSON: 'Expecting value: line 3 column 1"),
    "not text": (garbage("manifest.json", b"\xff\xfe\x00"), "not JSON"),
    "empty": (garbage("manifest.json", b""), "not JSON: 'Expecting value: line 1"),
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
    "long peer name": (field(peer={"name": "x" * 65, "dtype": "float32"}), "at most 64 characters"),
    "no checkpoint": (field(checkpoint=None), "checkpoint is None, expected a line"),
    "another checkpoint": (field(checkpoint="270m"), "it is of checkpoint '270m' (fingerprint none), not of"),
    "another fingerprint": (field(checkpoint={"name": TINY, "fingerprint": "0" * 64}), "(fingerprint 000000000000)"),
    "no cases": (field(cases={}), "cases is {}, expected at least one case"),
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
    assert lines[-1].startswith("VERDICT: DEVIATES (on 1 of 21 cases) at logits (shape;")
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
    assert "note: stranger shows 16 of 317 taps (case short): a fault is placed between two of them" in text
    assert "a peer in half precision shows few taps" in text
    assert "of the worst case that legal rounding can do" not in text


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


# The peer by itself


def test_a_dump_as_a_peer(tmp_path: Path) -> None:
    target = tiny()
    peer = create(write(tmp_path))
    peer.open(target)
    with Dump() as dump:
        peer.run(case_of(target, "short"), dump)
        assert LAYER in peer.taps
        assert "decoder.norm" not in peer.taps
        assert dump.get(0, LAYER) is not None
        with pytest.raises(Skip, match="does not hold this case"):
            peer.run(case_of(target, "window"), dump)
    assert peer.versions() == {"stranger": "1.0"}
    peer.close()
    with pytest.raises(PeerUnavailable, match="no such folder"):
        create(tmp_path / "nowhere")


def test_the_other_bundled_checkpoint_is_another(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable, match="give the --ckpt that was exported"):
        create(write(tmp_path, checkpoint="tiny")).open(tiny(str(bundled("tiny-even"))))


def test_a_process_of_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path, change=at(LAYER, lambda x: x + 1))
    arguments = ["check", str(folder), "--ckpt", TINY, "--case", "short"]
    done = subprocess.run(
        [sys.executable, "-m", "conformance", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(f"VERDICT: DEVIATES (on 1 of 21 cases) at {LAYER}")
    assert "Traceback" not in done.stdout + done.stderr
