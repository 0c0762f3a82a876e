"""The header of a safetensors file: no order of bytes is more than a header or a HeaderError."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import pytest
from checkpoint_files import plain
from hypothesis import given, settings
from hypothesis import strategies as st

from t5g2ref.checkpoint.file import SafetensorsFile
from t5g2ref.checkpoint.folder import Checkpoint, WeightsError
from t5g2ref.checkpoint.header import FLOATS, HeaderError, parse_header


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


E8 = b"\0" * 8
HEADERS = [
    (b"", "has 0 bytes, expected at least 8"),
    (b"1234567", "has 7 bytes, expected at least 8"),
    (file_of({}, length=3), "said to have 3 bytes, expected at most 2"),
    (b"\xff" * 16, "said to have 18446744073709551615 bytes, expected at most 8"),
    (file_of(b""), "the header is not JSON"),
    (file_of(b"{"), "the header is not JSON"),
    (file_of(b'{"\xff": 1}'), "the header is not JSON"),
    (file_of(b"[" * 100_000), "the header is not JSON"),
    (file_of(b'{"x": ' + b"9" * 5000 + b"}"), "the header is not JSON"),
    (file_of([]), "the header is a JSON list, expected an object"),
    (file_of({"__metadata__": 3}), "__metadata__ is no object"),
    (file_of(b'{"x": {}, "x": {}}'), "the key 'x' appears twice"),
    (file_of({"x": 3}), "'x' is 3, expected an object of dtype"),
    (file_of({"x": {"dtype": "F32", "shape": []}}), "expected an object of dtype, shape and data_offsets"),
    (file_of({"x": entry() | {"more": 1}}, E8), "expected an object of dtype"),
    (file_of({"x": entry("I64", [1])}, E8), "'x' has dtype 'I64', expected one of F64, F32, F16, BF16"),
    (file_of({"x": entry(["F32"])}, E8), r"'x' has dtype \['F32'\]"),
    (file_of({"x": entry(shape=[-1])}, E8), r"'x' has shape \[-1\], expected a list of non-negative integers"),
    (file_of({"x": entry(shape=[2.0])}, E8), "'x' has shape"),
    (file_of({"x": entry(shape=[True])}, E8), "'x' has shape"),
    (file_of({"x": entry(shape="2")}, E8), "'x' has shape '2'"),
    (file_of({"x": entry(shape=[1] * 17)}, E8), "'x' has shape"),
    (file_of({"x": entry(shape=[1 << 49])}, E8), "'x' has shape"),
    (file_of({"x": entry(shape=[1 << 48] * 16)}, E8), "'x' has data_offsets .* expected a span of"),
    (file_of({"x": entry(offsets=[0])}, E8), r"'x' has data_offsets \[0\], expected two"),
    (file_of({"x": entry(offsets=[8, 0])}, E8), "expected a span of 8 bytes for F32"),
    (file_of({"x": entry(offsets=[-8, 0])}, E8), "expected two non-negative"),
    (file_of({"x": entry(offsets=[0, 4])}, E8), "expected a span of 8 bytes"),
    (file_of({"x": entry(offsets=[4, 12])}, E8 + E8), "leaves a hole before it"),
    (file_of({"x": entry(), "y": entry()}, E8), "'y' begins at byte .* overlaps the tensor before it"),
    (file_of({"x": entry(), "y": entry(offsets=[4, 12])}, E8 + E8), "overlaps the tensor before it"),
    (file_of({"x": entry(), "y": entry(offsets=[12, 20])}, E8 * 3), "leaves a hole before it"),
    (file_of({"x": entry()}), "the tensors end at byte .*, the file has"),
    (file_of({"x": entry()}, E8 + b"\0"), "the tensors end at byte .*, the file has"),
    (file_of({"n" * 2000: entry()}, E8), "a name has 2000 characters, expected at most 1024"),
]


@pytest.mark.parametrize(("content", "words"), HEADERS, ids=itertools.count())
def test_headers_out_of_order(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=words) as error:
        Checkpoint.open(tmp_path)
    assert "model.safetensors" in str(error.value)
    assert len(str(error.value)) < 600


def test_headers_in_order(tmp_path: Path) -> None:
    header = {"e": entry(shape=[3, 0], offsets=[0, 0]), "x": entry(), "s": entry("F16", [], [8, 10])}
    path = tmp_path / "f"
    path.write_bytes(file_of(header | {"__metadata__": {}}, struct.pack("<ffe", 1.5, -2.0, 0.25)))
    file = SafetensorsFile.open(path)
    assert file.read("x", "float32").tolist() == [1.5, -2.0]
    assert file.read("s", "float64").tolist() == 0.25  # also at an odd place, and of no dimension
    assert file.read("e", "float32").shape == (3, 0)


def test_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = (plain(tmp_path) / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in {*range(20), *range(header - 3, header + 3), *range(20, len(whole), 997), len(whole) - 1}:
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            Checkpoint.open(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "BF16", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list("xyz")), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8"]) | JSON,
        "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 40), max_size=3) | JSON,
    }
)


@settings(max_examples=200)
@given(
    st.binary(max_size=80)
    | st.dictionaries(st.text(max_size=3), ENTRY | JSON, max_size=3).map(lambda header: json.dumps(header).encode()),
    st.integers(0, 60),
)
def test_any_header_is_an_order_or_a_header_error(data: bytes, more: int) -> None:
    try:
        entries = parse_header(data, 8 + len(data) + more, FLOATS)
    except HeaderError:
        return
    assert sum(item.end - item.begin for item in entries.values()) == more
