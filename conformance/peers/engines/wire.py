"""The engine's end of the process protocol: reads checkpoints and cases, answers lines of JSON, writes arrays.

`conformance/peers/process.py` says which messages there are. NumPy is all that is needed here.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = Any
KINDS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"
}  # fmt: skip
NAMES = {"float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}


class Refused(Exception):
    """The engine cannot run this checkpoint. The message names the setting, what was asked for, and what it has."""


class Skipped(Exception):
    """The engine does not do this case. The message says why."""


class Engine(Protocol):
    """What each engine file defines."""

    def open(self, config: dict[str, Any], weights: dict[str, Array], folder: Path) -> dict[str, Any]:
        """Build the model. Returns the rest of the greeting: name, dtype, versions, taps, …"""

    def run(self, case: Case) -> list[dict[str, Array]]:
        """The arrays of each call of the case, by tap."""

    # generate(prompt: Prompt) -> dict[str, Array], where its greeting says `generates`


class Case:
    """One case as it was asked for.

    Attributes:
        name, task: as in the message.
        runs: for each run its inputs by field, with `cached`, `derived` and `logits_to_keep` beside them.
        calls: (number of the run, first and last + 1 decoder position) of each call.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        tensors = read(Path(asked["inputs"]))
        self.name, self.task = asked["run"], asked["task"]
        self.runs: list[dict[str, Any]] = [
            {field: tensors[name] for field, name in run["inputs"].items()}
            | {word: run[word] for word in ("cached", "derived", "logits_to_keep")}
            for run in asked["runs"]
        ]
        self.calls = [(call["run"], *call["decoder"]) for call in asked["calls"]]


class Prompt:
    """One prompt for the engine's own generation.

    Attributes:
        inputs: input_ids, and where they are given attention_mask, pixel_values, start.
        new, beams, stop: as in the message.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        self.inputs = read(Path(asked["inputs"]))
        self.new, self.beams, self.stop = int(asked["new"]), int(asked["beams"]), [int(i) for i in asked["stop"]]


def read(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file; bfloat16 comes as float32, which holds it exactly."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in entry["data_offsets"])
        array = np.frombuffer(data[begin:end], KINDS[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        found[name] = array
    return found


def write(path: Path, arrays: dict[str, Array]) -> None:
    """Write a safetensors file."""
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    at = 0
    for name, array in arrays.items():
        part = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": NAMES[str(array.dtype)], "shape": list(array.shape), "data_offsets": [at, at + len(part)]
        }  # fmt: skip
        at += len(part)
        parts.append(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def canonical(name: str) -> str:
    """The name of a tensor in the newer layout, without `model.`, whichever layout the file has.

    A file of an encoder by itself has its names without `encoder.`.
    """
    name = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
    if name.startswith(("embed_tokens.", "layers.", "norm.", "text_model.", "vision_tower.", "multi_modal_projector.")):
        name = f"encoder.{name}"
    head, _, rest = name.partition(".")
    if head == "encoder" and rest.startswith(("embed_tokens.", "layers.", "norm.")):
        return f"encoder.text_model.{rest}"
    return name


def checkpoint(folder: Path, own: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The configuration, which the judge wrote whole into its `own` folder, and every tensor by its canonical name."""
    config = json.loads((own / "config.json").read_text(encoding="utf-8"))
    files = sorted(folder.glob("*.safetensors"))
    return config, {canonical(name): array for file in files for name, array in read(file).items()}


def serve(engine: Engine) -> None:
    """Answer every question on standard input; whatever the engine itself prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = _answer(engine, asked)
        except Skipped as skipped:
            answer = {"skip": str(skipped)}
        except (Refused, ImportError) as refused:
            answer = {"error": str(refused)}
        except Exception as error:  # the engine's own, which the report shows
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(engine: Engine, asked: dict[str, Any]) -> dict[str, Any]:
    if "hello" in asked:
        own = Path(asked["folder"])
        return engine.open(*checkpoint(Path(asked["checkpoint"]), own), own)
    if "generate" in asked:
        generate: Any = getattr(engine, "generate")  # noqa: B009 - an engine may have none
        write(Path(asked["out"], "answer.safetensors"), generate(Prompt(asked)))
        return {"done": ["answer.safetensors"]}
    files = []
    for number, arrays in enumerate(engine.run(Case(asked))):
        files.append(f"{number}.safetensors")
        write(Path(asked["out"], files[-1]), arrays)
    return {"done": files}


def kept(array: Array, case: Case, number: int) -> Array:
    """The positions (axis 1) whose logits were asked for in a call of this run."""
    keep = case.runs[number]["logits_to_keep"]
    return array if keep is None else array[:, -keep:]


def refuse(engine: str, settings: list[tuple[str, Any, Any]]) -> None:
    """Raises Refused for (setting, asked for, what the engine has) that differ; one line names them all."""
    wrong = [f"{name}: asked {asked!r}, it has {has!r}" for name, asked, has in settings if not same(asked, has)]
    if wrong:
        raise Refused(f"{engine} cannot set {'; '.join(wrong)}; --ckpt tiny-released has the released settings")


def same(one: Any, other: Any) -> bool:
    """Whether two settings are one: numbers to float32, as engines store them."""
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return bool(np.float32(one) == np.float32(other))
    return bool(one == other)


def rope_type(rope: Mapping[str, Any]) -> str:
    """The type of a RoPE of config.json, with one word for the two that a factor alone tells apart."""
    kind = str(rope.get("rope_type", "default"))
    return "linear" if kind == "default" else kind


def ungraded() -> AbstractContextManager[Any]:
    """Without gradients, where torch computes: they cost memory, and their tensors give no arrays."""
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.no_grad()
