"""Files that are made to hurt: bounded work, one line that says which, what was expected, found, and what to do.

Every file here goes through `python -m t5g2ref describe` in a process of its own, whose memory is measured.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t5g2ref import bundled

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read where Linux shows it")

MIB = 1 << 20
OWN = 60 * MIB  # what the interpreter and NumPy take
ROOM = 100 * MIB  # beside twice the files
HUGE = 2**31 - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled tiny checkpoint that may be spoiled."""
    return Path(shutil.copytree(bundled("tiny"), tmp_path / "c"))


MEASURED = """
import sys
from t5g2ref.command_line import main
status = main(sys.argv[2:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
open(sys.argv[1], "w").write(peak.split()[1])
sys.exit(status)
"""


def refusal(folder: Path, *options: str) -> str:
    """What a user sees: one line, exit status 2, and no more memory than twice the files and a hundred MiB."""
    peak = folder.parent / "peak"
    command = [sys.executable, "-c", MEASURED, str(peak), *(options or ("describe", str(folder)))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    text = done.stdout + done.stderr
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert done.returncode == 2, text[-1000:]
    assert int(peak.read_text()) * 1024 <= OWN + ROOM + 2 * size
    assert text.count("\n") == 1
    assert text.startswith("t5g2ref: ")
    assert len(text) < 1000
    return text


def put(folder: Path, path: str, value: object) -> None:
    """Set a field of config.json by its dotted path."""
    raw = json.loads((folder / "config.json").read_text())
    *parents, name = path.split(".")
    node = raw
    for parent in parents:
        node = node[parent]
    node[name] = value
    (folder / "config.json").write_text(json.dumps(raw))


def safetensors(folder: Path, header: bytes, data: bytes = b"") -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)


def entries(count: int, name: Callable[[int], str] = str) -> bytes:
    """A header of so many empty tensors."""
    empty: dict[str, Any] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({name(i): empty for i in range(count)}, separators=(",", ":")).encode()


# Counts and sizes that no tensor bears out

T, V = "encoder.text_config", "encoder.vision_config"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (f"{V}.num_hidden_layers", HUGE, "encoder.vision_config.num_hidden_layers is 2147483647, expected 1 to 1000; "),
        (f"{T}.num_hidden_layers", HUGE, "encoder.text_config.num_hidden_layers is 2147483647, expected 1 to 1000; "),
        (f"{V}.num_hidden_layers", 999, "num_hidden_layers is 999, the tensors have 4 layers under "),
        (
            "decoder.vocab_size",
            HUGE,
            "decoder.vocab_size is 2147483647, expected 311, as encoder.text_config.vocab_size",
        ),
        (f"{V}.hidden_size", HUGE, "expected a multiple of num_attention_heads (11)"),
    ],
)
def test_a_count_that_no_tensor_bears_out(folder: Path, path: str, value: int, words: str) -> None:
    put(folder, path, value)
    assert words in refusal(folder)


def test_as_many_layers_as_a_config_may_name(folder: Path) -> None:
    """A megabyte of layer types: not a name is made of them."""
    put(folder, "decoder.num_hidden_layers", 45_000)
    put(folder, "decoder.layer_types", ["full_attention"] * 45_000)
    assert "decoder.num_hidden_layers is 45000, expected 1 to 1000" in refusal(folder)


@pytest.mark.parametrize(
    ("count", "name", "words"),
    [
        (30_000, str, "encoder.text_config.num_hidden_layers is 5, the tensors have 0 layers under "),
        (
            30_000,
            lambda i: f"decoder.layers.{i}.norm.weight",
            "encoder.text_config.num_hidden_layers is 5, the tensors",
        ),
        (500_000, str, "the header is said to have 28888891 bytes, expected at most 4194304: "),
    ],
)
def test_a_header_of_very_many_tensors(folder: Path, count: int, name: Callable[[int], str], words: str) -> None:
    safetensors(folder, entries(count, name))
    assert words in refusal(folder)


# What parses, and is too deep or too long to be shown


@pytest.mark.parametrize("path", ["model_type", "encoder.text_config.layer_types", "decoder.eos_token_id", "dtype"])
@pytest.mark.parametrize("depth", [100, 900])
def test_a_value_as_deep_as_json_goes(folder: Path, path: str, depth: int) -> None:
    put(folder, path, "DEEP")
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"DEEP"', "[" * depth + "]" * depth))
    said = refusal(folder)
    assert (
        said.startswith(f"t5g2ref: {path} is [[[[[...]]]]], expected ") or "not JSON: maximum recursion depth" in said
    )


def test_a_long_name_in_a_config(folder: Path) -> None:
    put(folder, "decoder.rope_parameters", {"x" * 900_000: 1})
    assert "decoder.rope_parameters.xxxx" in refusal(folder)


def test_an_index_of_very_many_names(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {f"x{i}": "a.safetensors" for i in range(200_000)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json: larger than 4194304 bytes" in refusal(folder)
