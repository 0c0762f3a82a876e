"""Checkpoints: opened as untrusted input, checked whole against the configuration, then read.

A checkpoint is a folder with `config.json` and either `model.safetensors` or `model.safetensors.index.json`
and its shards, in the Hub's older names or transformers 5.23's, with or without `model.`. No tensor is kept
before all names, shapes and ties are known to be right, and every error names the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from t5g2ref.backend import NUMPY, Backend
from t5g2ref.checkpoint.file import SafetensorsFile, short
from t5g2ref.checkpoint.tensor import WeightsError, convert, element
from t5g2ref.checkpoint.write import INDEX, SINGLE, save
from t5g2ref.config import Config
from t5g2ref.config.fields import from_json
from t5g2ref.files import opened
from t5g2ref.params import TIED, Head, Shape, canonical, shapes, tree
from t5g2ref.weights import Weights

__all__ = ["Checkpoint", "WeightsError", "check", "head_of", "load", "save"]

Progress = Callable[[str, int, int], None]
_MAX_INDEX = 1 << 26  # bytes
_MAX_LINES = 12


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder by canonical name; holds headers only, and opens a file for each read."""

    folder: Path
    tensors: Mapping[str, tuple[SafetensorsFile, str]]

    @staticmethod
    def open(folder: str | Path) -> Checkpoint:
        """Read and check the headers of a checkpoint; WeightsError says what is wrong and what to do."""
        root = Path(folder)
        if (root / SINGLE).exists():
            file = SafetensorsFile.open(_inside(root, SINGLE))
            return Checkpoint(root, _by_canonical((file, key) for key in file.entries))
        if (root / INDEX).exists():
            return Checkpoint(root, _by_canonical(_sharded(root)))
        raise WeightsError(_nothing(root))

    def keys(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> Shape:
        file, key = self._find(name)
        return file.entries[key].shape

    def dtype(self, name: str) -> str:
        """The stored dtype: "bfloat16", "float16", "float32" or "float64"."""
        file, key = self._find(name)
        return file.entries[key].dtype.name

    def read(self, name: str, dtype: str = "float32", backend: Backend = NUMPY) -> Any:
        """Return one tensor as an array of the backend, on NumPy read-only; narrowing rounds to nearest even.

        WeightsError for a name that is not there, NaN or Inf, or a value beyond float16; BackendError where the
        device has no room.
        """
        file, key = self._find(name)
        return file.read(key, dtype, backend)

    def same(self, name: str, other: str) -> bool:
        """True where the two tensors hold the same values to the bit once decoded, compared in chunks."""
        (file, key), (file2, key2) = self._find(name), self._find(other)
        if file.entries[key].shape != file2.entries[key2].shape:
            return False
        # Chunks count elements, so those of two dtypes pair up; every dtype is exact in float64.
        pairs = zip(file.chunks(key), file2.chunks(key2), strict=True)
        if file.entries[key].dtype == file2.entries[key2].dtype:
            return all(a.tobytes() == b.tobytes() for a, b in pairs)
        return all(convert(a, "float64").tobytes() == convert(b, "float64").tobytes() for a, b in pairs)

    def _find(self, name: str) -> tuple[SafetensorsFile, str]:
        if name not in self.tensors:
            raise WeightsError(f"{name} is not in {self.folder}; it has {len(self.tensors)} others, see keys()")
        return self.tensors[name]


def _by_canonical(found: Iterable[tuple[SafetensorsFile, str]]) -> dict[str, tuple[SafetensorsFile, str]]:
    out: dict[str, tuple[SafetensorsFile, str]] = {}
    for file, key in found:
        name = canonical(key)
        if name in out:
            first, spelled = out[name]
            places = f"{short(spelled)} in {first.path.name} and {short(key)} in {file.path.name}"
            raise WeightsError(f"{short(name)} is there twice: {places}; keep one of them")
        out[name] = file, key
    return out


def _sharded(root: Path) -> list[tuple[SafetensorsFile, str]]:
    """The tensors of all shards, each in exactly the one that the index names."""
    index = _read_index(_inside(root, INDEX))
    shards = {shard: SafetensorsFile.open(_inside(root, shard)) for shard in sorted(set(index.values()))}
    for key, shard in index.items():
        if key not in shards[shard].entries:
            raise WeightsError(f"{short(key)} is not in {shard}, where {INDEX} says; download both again")
    for shard, file in shards.items():
        for key in file.entries:
            if index.get(key) != shard:
                said = f"in {index[key]}" if key in index else "nowhere"
                raise WeightsError(f"{short(key)} is in {shard}, {INDEX} says {said}; download both again")
    return [(shards[shard], key) for key, shard in index.items()]


def _read_index(path: Path) -> dict[str, str]:
    with opened(path) as handle:
        data = handle.read(_MAX_INDEX + 1)
    if len(data) > _MAX_INDEX:
        raise WeightsError(f"{path}: larger than {_MAX_INDEX} bytes; download it again")
    try:
        raw = from_json(data)
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON: {error}; download it again") from error
    names = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(names, dict) or not names:
        raise WeightsError(f"{path}: weight_map is {short(names)}, expected a non-empty object; download it again")
    for key, shard in names.items():
        if not _plain(shard):
            expected = "the plain name of a .safetensors file in the same folder"
            raise WeightsError(f"{path}: {short(key)} is in {short(shard)}, expected {expected}")
    return names


def _plain(name: object) -> bool:
    """A name that is a file's on every system and cannot leave the folder."""
    if not (isinstance(name, str) and name.isascii() and name.isprintable() and len(name) <= 255):
        return False
    return name.endswith(".safetensors") and not set(name) & set("/\\:")


def _inside(root: Path, name: str) -> Path:
    """Return root / name, refusing what is no file and a link out of the folder.

    The Hub's cache keeps `snapshots/<commit>/<file>` as links into `blobs` beside `snapshots`: these pass.
    """
    path = root / name
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; download the checkpoint again")
    target, home = path.resolve(), root.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise WeightsError(f"{path}: a link to {target}, outside the folder; copy the file or open its own folder")
    return path


def _nothing(root: Path) -> str:
    expected = f"expected {SINGLE} or {INDEX}"
    if not root.is_dir():
        return f"{root}: no such folder; {expected} in a checkpoint's folder"
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in root.glob(pattern))
    if pickles:
        why = "loading a pickle runs code from the file, so it is refused"
        return f"{root}: has only {short(pickles)}, {expected}; {why}: convert it to safetensors"
    return f"{root}: has no weights, {expected}; download the checkpoint"


def head_of(checkpoint: Checkpoint) -> Head:
    """Return "classification" where the checkpoint has a score head, else "lm"."""
    return "classification" if any(key.startswith("score.") for key in checkpoint.tensors) else "lm"


def check(checkpoint: Checkpoint, config: Config) -> dict[str, Shape]:
    """Return the shapes to read, or raise one WeightsError that lists all gaps, leftovers and mismatches."""
    expected = shapes(config, head_of(checkpoint))
    known = expected | {alias: expected[source] for alias, source in TIED.items()}
    found = checkpoint.keys()
    gaps = [f"{name}: expected {shape}, found nothing" for name, shape in expected.items() if name not in found]
    extra = [f"{short(name)}: expected nothing, found {checkpoint.shape(name)}" for name in found if name not in known]
    wrong = [
        f"{name}: expected {known[name]}, found {checkpoint.shape(name)}"
        for name in found
        if name in known and known[name] != checkpoint.shape(name)
    ]
    lines = [
        *_listed("missing", gaps, "download the checkpoint again, or correct config.json"),
        *_listed("unexpected", extra, "is this a T5Gemma 2, and config.json its own?"),
        *_listed("of another shape", wrong, "config.json is of another size than the weights"),
    ]
    if lines:
        raise WeightsError("\n".join([f"{checkpoint.folder}: the tensors do not fit config.json", *lines]))
    for alias, source in TIED.items():
        if alias in found and not checkpoint.same(alias, source):
            expectation = f"the values of {source} (tied), found others"
            raise WeightsError(f"{alias}: expected {expectation}; untied embeddings are not implemented")
    return expected


def _listed(kind: str, lines: list[str], remedy: str) -> list[str]:
    if not lines:
        return []
    more = [f"  ... and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
    return [f"{len(lines)} {kind} ({remedy})", *(f"  {line}" for line in lines[:_MAX_LINES]), *more]


def load(
    folder: str | Path,
    dtype: str = "float32",
    *,
    config: Config | None = None,
    progress: Progress | None = None,
    backend: Backend = NUMPY,
) -> tuple[Config, Weights]:
    """Return a checkpoint's configuration and its parameters as a tree of arrays of the backend in `dtype`.

    On NumPy they are read-only. On a device float64 is kept as float32 for every tensor that is stored as float32 or
    narrower: the same values in half the memory, widened by `Numerics.weight` where they are used. Nothing but a few
    MiB of a tensor is in host memory on its way to a device.

    `config` replaces the folder's config.json. `progress(name, done, total)` is called after each tensor.
    The score head is read where it is there. Tied names are checked and left out: read their source.
    Raises ConfigError; WeightsError, for names, shapes and ties before any tensor is kept; and BackendError before
    any is read where the device has no room for all.
    """
    element(dtype)
    config = Config.load(folder) if config is None else config
    checkpoint = Checkpoint.open(folder)
    names = check(checkpoint, config)
    kept = {name: backend.kept(checkpoint.dtype(name), dtype) for name in names}
    size = sum(prod(shape) * element(kept[name]).itemsize for name, shape in names.items())
    backend.require(size, f"the weights of {checkpoint.folder}")
    flat: dict[str, Any] = {}
    for name in names:
        flat[name] = checkpoint.read(name, kept[name], backend)
        if progress is not None:
            progress(name, len(flat), len(names))
    return config, tree(flat)
