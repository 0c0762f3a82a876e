"""The class `dump`: what `conformance check` judges; its manifest, its files, and the values in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from conformance.commands import command_line, request, run
from conformance.exchange import writing
from fuzzing import commands, configs, headers, independent, lawful, recorded, tree, verdicts, weights
from fuzzing.tries import Kind

READY = (request, run)  # which the command imports when it is used: here, before a process is split off
Array = np.ndarray[Any, Any]
BASES = ("least", "least", "least", "two", "half", "full")
PATHS = ("short/0.safetensors", "/etc/passwd", "../short/0.safetensors", "short", "short/./0.safetensors", "a" * 300)
TAPS = ("logits", "decoder.layers.0", "decoder.layers.*", "*", "*.mask", "input_ids", "loss", "decoder.layers.99", "?[")
LAYOUTS = ("B T D", "T B D", "D T B", "B D T", "valid D", "B T", "", "B T N*H", "B*T D", "*", "B  T D", "B T D E")


def base(folder: Path) -> None:
    recorded.write(folder / "least", ("short",))
    recorded.write(folder / "two", ("short", "eoi-cached"))
    recorded.write(folder / "half", ("short",), "bfloat16")
    recorded.write(folder / "full", ("short",), full=True)


def spoil(rng: Random, base: Path, folder: Path) -> None:
    name = rng.choice(BASES)
    shutil.copytree(base / name, folder / name)
    how = rng.random()
    if how < 0.4:
        values(rng, folder / name)
    elif how < 0.8:
        manifest(rng, folder / name / recorded.MANIFEST)
    if 0.35 < how < 0.42 or 0.78 < how < 0.95:
        path = rng.choice(sorted((folder / name).rglob("*.safetensors")))
        path.write_bytes(headers.spoilt(rng, path.read_bytes()))
    if how > 0.95:
        weights.misplace(rng, folder / name, folder)


def manifest(rng: Random, path: Path) -> None:
    """The manifest, by its structure or by what its fields mean."""
    if rng.random() < 0.5:
        path.write_bytes(configs.spoilt(rng, path.read_bytes()))
        return
    raw = tree.parsed(path.read_bytes())
    for _ in range(rng.randint(1, 2)):
        pairs = [holder[at] for holder, at in tree.spots(raw) if isinstance(holder, tree.Pairs)]
        name, value = _meaning(rng)
        if found := [pair for pair in pairs if pair[0] == name]:
            rng.choice(found)[1] = value
    path.write_bytes(tree.text(raw).encode())


def _meaning(rng: Random) -> tuple[str, Any]:
    """A field and what it might hold."""
    taps = (None, [], [rng.choice(TAPS)] * 2, _object(rng, TAPS))
    choices: tuple[tuple[str, Any], ...] = (
        ("file", rng.choice(PATHS)),
        ("dtype", rng.choice(("float32", "bfloat16", "float16"))),
        ("taps", rng.choice(taps)),
        ("layouts", _object(rng, LAYOUTS)),
        ("stored", _object(rng, ("uint8", "float32"))),
        ("versions", _object(rng, tree.TEXTS)),
        ("name", rng.choice(tree.TEXTS)),
    )
    return rng.choice(choices)


def _object(rng: Random, values: tuple[str, ...]) -> tree.Pairs:
    return tree.Pairs([rng.choice(TAPS), rng.choice(values)] for _ in range(rng.randint(1, 3)))


def values(rng: Random, folder: Path) -> None:
    """One or two arrays of a dump, by as much as matters: `verdicts` finds out by how much."""
    path = rng.choice(sorted(folder.rglob("*.safetensors")))
    arrays = independent.arrays(path)
    assert arrays is not None
    for _ in range(rng.randint(1, 2)):
        name = rng.choice(sorted(arrays))
        arrays[name] = np.ascontiguousarray(rng.choice(CHANGES)(rng, arrays[name].copy()))
    writing.tensors(path, arrays)


def _element(rng: Random, array: Array) -> tuple[int, ...]:
    return tuple(rng.randrange(length) for length in array.shape)


def _sign(rng: Random, array: Array) -> Array:
    """Of a row, or of all."""
    at = _element(rng, array)[: rng.randint(0, max(0, array.ndim - 1))]
    array[at] = ~array[at] if array.dtype.kind == "b" else -array[at]
    return array


def _one(rng: Random, array: Array) -> Array:
    """A single number: its sign, nothing, or a value of no sense."""
    if array.size:
        at = _element(rng, array)
        new = rng.choice((0, 1, 1e30, float("nan"), float("inf"), -1, 1e-30))
        with np.errstate(all="ignore"):
            array[at] = new if array.dtype.kind not in "iub" else int(not array[at])
    return array


def _rows(rng: Random, array: Array) -> Array:
    """Two rows, columns or heads change places."""
    if array.ndim:
        axis = rng.randrange(array.ndim)
        order = list(range(array.shape[axis]))
        rng.shuffle(order)
        array = np.take(array, order, axis)
    return array


def _scaled(rng: Random, array: Array) -> Array:
    with np.errstate(all="ignore"):
        return (array * rng.choice((0, 2, 0.5, 1.01, 1e20))).astype(array.dtype)


def _typed(rng: Random, array: Array) -> Array:
    """The same bits as another type, or the values in one."""
    if rng.random() < 0.5 and array.ndim and array.dtype.itemsize == 4:
        return array.view(rng.choice(("<i4", "<u4")))
    with np.errstate(all="ignore"):
        return array.astype(rng.choice(("<f8", "<f4", "<f2", "<i4", "bool")))


def _shaped(rng: Random, array: Array) -> Array:
    return rng.choice(
        (array[None], array.reshape(-1), array[..., :-1] if array.ndim else array, np.swapaxes(array[None], 0, -1))
    )


Change = Callable[[Random, Array], Array]
CHANGES: tuple[Change, ...] = (_sign, _sign, _one, _one, _one, _rows, _rows, _scaled, _typed, _shaped)


def read(folder: Path, base: Path) -> None:
    """As a user has it judged, with every case of the sound dump asked for."""
    (dump,) = (path for path in folder.iterdir() if path.is_dir())
    cases = [f"--case={case}" for case in json.loads((base / dump.name / recorded.MANIFEST).read_bytes())["cases"]]
    commands.judged(
        *commands.ran(command_line.main, ["check", str(dump), "--ckpt", recorded.TINY, "--no-progress", *cases])
    )


def verify(value: None, folder: Path, base: Path) -> None:
    (dump,) = (path for path in folder.iterdir() if path.is_dir())
    if why := verdicts.wrong(dump, base / dump.name):
        raise lawful.FalsePass(f"CONFORMS, and {why}")


KIND = Kind("dump", 2, base, spoil, read, (), verify)
