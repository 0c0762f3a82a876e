"""Writes a checkpoint tensor by tensor, in constant memory; a half-written one is never taken for one.

Shapes are declared before the values exist (`params.shapes`), so the headers are written first and each
tensor goes straight to its place, in whatever order they come. Files get their names only when all are
complete, and the one that makes a folder a checkpoint (`model.safetensors`, or the index) gets it last.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from t5g2ref.checkpoint.file import CHUNK, Array, Entry, WeightsError, element, encode_header, finite
from t5g2ref.config import Config
from t5g2ref.files import alone, replacing
from t5g2ref.params import TIED, Layout, Shape, hub_name
from t5g2ref.params import shapes as declared

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
Key = Callable[[str], str]


@dataclass(frozen=True)
class _Plan:
    """Which file and span every name has; `files` maps a final file name to its first bytes, `keys` a name to its
    key in a file."""

    files: Mapping[str, bytes]
    places: Mapping[str, tuple[str, Entry]]
    size: int
    keys: Mapping[str, str]

    def index(self) -> dict[str, Any]:
        names = {self.keys[name]: file for name, (file, _) in self.places.items()}
        return {"metadata": {"total_size": self.size}, "weight_map": names}


def save(
    folder: str | Path,
    config: Config,
    tensors: Iterable[tuple[str, Array]],
    *,
    dtype: str = "bfloat16",
    layout: Layout = "hub",
    shard_bytes: int | None = None,
    shapes: Mapping[str, Shape] | None = None,
    write_tied: bool = False,
) -> None:
    """Write config.json and the weights of `(canonical name, array)` pairs, each rounded once to `dtype`.

    `shapes` are the parameters to write, by default `params.shapes(config)`; give the classification head's
    to write it too. `shard_bytes` starts a new file before one would pass it. `write_tied` repeats the
    embedding under its tied names. Raises WeightsError for a name that is unknown, repeated or missing, a
    wrong shape, a value that is not finite in `dtype`, and a folder that already holds weights. So it does
    where another process is writing into the folder. Then no file is left behind.
    """
    root = Path(folder)
    wanted = dict(declared(config) if shapes is None else shapes)
    key = partial(hub_name, layout=layout, alone=not config.has_decoder)
    plan = _plan(wanted, dtype, key, shard_bytes, write_tied)
    last = SINGLE if len(plan.files) == 1 else INDEX
    with _folder(root), ExitStack() as stack:
        for path in (weights := [root / name for name in sorted({SINGLE, INDEX, *plan.files})]):
            if path.exists():
                raise WeightsError(f"{path}: already there, expected a folder without weights; give another")
        stack.enter_context(_all_or_none(weights))
        names = [last, *(file for file in plan.files if file != last), "config.json"]
        paths = {name: stack.enter_context(replacing(root / name)) for name in names}  # renamed from the end
        _write_tensors(paths, plan, wanted, tensors)
        _write_json(paths["config.json"], _config_json(config, wanted, dtype))
        if last == INDEX:
            _write_json(paths[INDEX], plan.index())


@contextmanager
def _all_or_none(paths: Iterable[Path]) -> Iterator[None]:
    """Files that were not there before are gone after an error."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


@contextmanager
def _folder(root: Path) -> Iterator[None]:
    """The folder, made where there is none and kept for this one writer; after an error one that was made is gone."""
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with alone(root):
            yield
    except BlockingIOError as error:
        raise WeightsError(f"{root}: {error.strerror}; wait for it, or give another") from error
    except BaseException:
        if made and not any(root.iterdir()):
            root.rmdir()
        raise


def _config_json(config: Config, wanted: Mapping[str, Shape], dtype: str) -> dict[str, Any]:
    out = replace(config, dtype=dtype).to_dict()
    if any(name.startswith("score.") for name in wanted):
        out["architectures"] = ["T5Gemma2ForSequenceClassification"]
    return out


def _plan(wanted: Mapping[str, Shape], dtype: str, key: Key, limit: int | None, tied: bool) -> _Plan:
    if limit is not None and limit < 1:
        raise WeightsError(f"shard_bytes is {limit}, expected at least 1, or None for one file")
    names = dict(wanted)
    if tied:
        names |= {alias: wanted[source] for alias, source in TIED.items() if source in wanted}
    sizes = {name: math.prod(shape) * element(dtype).itemsize for name, shape in names.items()}
    parts = _shards(sizes, limit)
    many = len(parts)
    files: dict[str, bytes] = {}
    places: dict[str, tuple[str, Entry]] = {}
    for i, part in enumerate(parts, 1):
        file = SINGLE if many == 1 else f"model-{i:05d}-of-{many:05d}.safetensors"
        files[file], placed = encode_header({key(name): (element(dtype), names[name]) for name in part})
        places |= {name: (file, placed[key(name)]) for name in part}
    return _Plan(files, places, sum(sizes.values()), {name: key(name) for name in names})


def _shards(sizes: Mapping[str, int], limit: int | None) -> list[list[str]]:
    """Names in order, cut before a shard would pass the limit; a tensor above it has a shard of its own."""
    parts: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if limit is not None and parts[-1] and filled + size > limit:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    return parts


def _write_tensors(
    paths: Mapping[str, Path], plan: _Plan, wanted: Mapping[str, Shape], tensors: Iterable[tuple[str, Array]]
) -> None:
    missing = dict(wanted)
    with ExitStack() as stack:
        handles = {file: stack.enter_context(paths[file].open("wb")) for file in plan.files}
        for file, header in plan.files.items():
            handles[file].write(header)
        for name, array in tensors:
            if name not in missing:
                state = "was given already" if name in wanted else "is no parameter of this config"
                raise WeightsError(f"{name} {state}; give each of params.shapes(config) once")
            if array.shape != missing.pop(name):
                raise WeightsError(f"{name} has shape {array.shape}, expected {wanted[name]}; transpose or reshape it")
            aliases = [alias for alias, source in TIED.items() if source == name and alias in plan.places]
            for target in (name, *aliases):
                file, entry = plan.places[target]
                _write_array(handles[file], entry, array, name)
    if missing:
        some = ", ".join(list(missing)[:12])
        raise WeightsError(f"{len(missing)} tensors were not given, expected all; the first are {some}")


def _write_array(handle: BinaryIO, entry: Entry, array: Array, name: str) -> None:
    handle.seek(entry.begin)
    flat = array.reshape(-1)
    for at in range(0, flat.size, CHUNK):
        handle.write(finite(flat[at : at + CHUNK], entry.dtype.name, name).tobytes())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
