"""The classes `safetensors`, `index` and `checkpoint`: files of weights, and what is loaded held against the library's
own reading of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np

from conformance.cases import catalogue
from conformance.checkpoints import resolve
from conformance.errors import CheckpointError
from conformance.exchange import writing
from conformance.exchange.reading import DumpError, Tensors
from fuzzing import configs, headers, independent, lawful
from fuzzing.tries import Kind
from t5g2ref import bundled
from t5g2ref.checkpoint.file import SafetensorsFile
from t5g2ref.checkpoint.folder import Checkpoint, check, fitted, save
from t5g2ref.checkpoint.tensor import WeightsError
from t5g2ref.checkpoint.write import INDEX, SINGLE
from t5g2ref.config import Config, ConfigError
from t5g2ref.notes import noted
from t5g2ref.params import canonical

Array = np.ndarray[Any, Any]
TYPES = ("float64", "float32", "float16", ml_dtypes.bfloat16, "int64", "int32", "uint8", "bool")


def file_base(folder: Path) -> None:
    """A tensor of each type, an empty one and a scalar."""
    rng = np.random.default_rng(3)
    tensors = {f"t{n}": np.asarray(rng.integers(0, 2, (n + 1, 5))).astype(dtype) for n, dtype in enumerate(TYPES)}
    more = {"empty": np.zeros((0, 3), np.float32), "scalar": np.float32(1.5).reshape(()), "flat": np.ones(300, "f4")}
    writing.tensors(folder / SINGLE, tensors | more)


def spoil_file(rng: Random, base: Path, folder: Path) -> None:
    (folder / SINGLE).write_bytes(headers.spoilt(rng, (base / SINGLE).read_bytes()))


def read_file(folder: Path, base: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """What the reader of weights has, and what the reader of dumps has; the first to refuse is heard."""
    dump = Tensors.open(folder, SINGLE)
    shown = {name: dump.read(name) for name in dump.entries}
    file = SafetensorsFile.open(folder / SINGLE)
    kept = [name for name, entry in file.entries.items() if entry.dtype.name in ("float32", "bfloat16", "float16")]
    return {name: file.read(name, "float32") for name in kept}, shown


def verify_file(value: tuple[dict[str, Array], dict[str, Array]], folder: Path, base: Path) -> None:
    theirs = independent.arrays(folder / SINGLE)
    if theirs is None:
        return
    read, shown = value
    if set(shown) != set(theirs):
        raise lawful.FalsePass(f"other tensors than the library's: {sorted(set(shown) ^ set(theirs))[:5]}")
    for name, array in [*read.items(), *shown.items()]:
        _same(name, array, theirs[name])


def _same(name: str, ours: Array, theirs: Array) -> None:
    if ours.shape != theirs.shape or not np.array_equal(ours, theirs.astype(ours.dtype), equal_nan=ours.dtype != bool):
        raise lawful.FalsePass(f"{name[:200]} differs from the library's reading of it")


def folder_base(folder: Path) -> None:
    shutil.copytree(bundled("tiny"), folder / "plain")
    _sharded(folder / "sharded")


def index_base(folder: Path) -> None:
    _sharded(folder / "sharded")


def _sharded(folder: Path) -> None:
    source = Checkpoint.open(bundled("tiny"))
    config = Config.load(bundled("tiny"))
    tensors = ((name, source.read(name)) for name in check(source, config))
    save(folder, config, tensors, shard_bytes=200_000)


def spoil_index(rng: Random, base: Path, folder: Path) -> None:
    shutil.copytree(base / "sharded", folder / "c")
    if rng.random() < 0.75:
        path = folder / "c" / INDEX
        path.write_bytes(configs.spoilt(rng, path.read_bytes()))
    if rng.random() < 0.35:
        misplace(rng, folder / "c", folder)


def spoil_folder(rng: Random, base: Path, folder: Path) -> None:
    """One or two files of a checkpoint."""
    shutil.copytree(rng.choice(sorted(base.iterdir())), folder / "c")
    files = sorted((folder / "c").iterdir())
    for path in rng.sample(files, rng.randint(1, 2)):
        if path.suffix == ".json":
            path.write_bytes(configs.spoilt(rng, path.read_bytes()))
        else:
            path.write_bytes(headers.spoilt(rng, path.read_bytes()))
    if rng.random() < 0.2:
        misplace(rng, folder / "c", folder)


def misplace(rng: Random, folder: Path, outside: Path) -> None:
    """A file goes, is cut to nothing, becomes a folder, a pipe or a link, or trades places with another."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not files:
        return
    path, other, how = rng.choice(files), rng.choice(files), rng.randrange(8)
    if how == 0 and path != other:
        path.rename(folder / "between")
        other.rename(path)
        (folder / "between").rename(other)
        return
    shutil.copyfile(path, outside / "outside")
    path.unlink()
    if how == 1:
        path.write_bytes(b"")
    elif how == 2:
        path.mkdir()
    elif how == 3:
        os.mkfifo(path)
    elif how == 4:
        target = rng.choice((outside / "outside", "/etc/passwd", "/dev/zero", path.name, "nowhere", "..", folder))
        path.symlink_to(target)
    elif how == 5:
        (folder / rng.choice(("x.bin", "x.gguf", "adapter_model.safetensors", INDEX, SINGLE))).write_bytes(b"{}")


def read_folder(folder: Path, base: Path) -> tuple[Config, dict[str, Array]]:
    said: list[str] = []
    with noted(said):
        config = Config.load(folder / "c")
        checkpoint = Checkpoint.open(folder / "c")
        names = check(checkpoint, fitted(checkpoint, config))
        values = {name: checkpoint.read(name, "float32") for name in names}
    lawful.notes(said)
    return config, values


def read_target(folder: Path, base: Path) -> tuple[Config, dict[str, Array]]:
    """As the judge takes a checkpoint: with the cases that are made for it."""
    target = resolve(str(folder / "c"), synthetic=False)[0]
    lawful.notes(target.notes)
    catalogue.build(target.config)
    return target.config, dict(target.weights)


def verify_folder(value: tuple[Config, dict[str, Array]], folder: Path, base: Path) -> None:
    """Every tensor is the one that some file of the folder has under its name."""
    theirs: dict[str, list[Array]] = {}
    names = [SINGLE] if (folder / "c" / SINGLE).exists() else sorted(os.listdir(folder / "c"))
    for path in (folder / "c" / name for name in names if name.endswith(".safetensors")):
        for name, array in (independent.arrays(path) or {}).items():
            theirs.setdefault(canonical(name), []).append(array)
    for name, array in value[1].items():
        if theirs and name in theirs and not any(_alike(array, other) for other in theirs[name]):
            raise lawful.FalsePass(f"{name[:200]} differs from the library's reading of it")


def _alike(ours: Array, theirs: Array) -> bool:
    return ours.shape == theirs.shape and bool(np.array_equal(ours, theirs.astype(ours.dtype)))


FILE = Kind("safetensors", 4, file_base, spoil_file, read_file, (WeightsError, DumpError), verify_file)
INDEXED = Kind("index", 3, index_base, spoil_index, read_folder, (WeightsError, ConfigError), verify_folder)
FOLDER = Kind("checkpoint", 3, folder_base, spoil_folder, read_target, (CheckpointError,), verify_folder)
