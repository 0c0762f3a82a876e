"""A checkpoint's folder, opened as untrusted input: `model.safetensors`, or `model.safetensors.index.json` and shards.

Names are the Hub's older ones or transformers 5.23's, with or without `model.`. Only headers are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5g2ref.backend import NUMPY, Backend
from t5g2ref.checkpoint.file import SafetensorsFile
from t5g2ref.checkpoint.names import canonical_places
from t5g2ref.checkpoint.tensor import WeightsError, convert
from t5g2ref.checkpoint.write import INDEX, SINGLE
from t5g2ref.config.fields import json_file, short
from t5g2ref.notes import note
from t5g2ref.params import Shape

_MAX_INDEX = 1 << 22  # bytes


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder by canonical name; holds headers only, and opens a file for each read."""

    folder: Path
    tensors: Mapping[str, tuple[SafetensorsFile, str]]

    @staticmethod
    def open(folder: str | Path) -> Checkpoint:
        """Read and check the headers of a folder, or of one file; WeightsError says what is wrong and what to do."""
        root = Path(folder)
        if root.suffix == ".safetensors" and root.is_file():
            file = SafetensorsFile.open(_inside(root.parent, root.name))
            return Checkpoint(root.parent, canonical_places((file, key) for key in file.entries))
        if (root / SINGLE).exists():
            file = SafetensorsFile.open(_inside(root, SINGLE))
            if (root / INDEX).exists():
                note(f"{root}: {INDEX} lies beside {SINGLE} and is not read; remove the one that is stale")
            return Checkpoint(root, canonical_places((file, key) for key in file.entries))
        if (root / INDEX).exists():
            return Checkpoint(root, canonical_places(_sharded(root)))
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


def _sharded(root: Path) -> list[tuple[SafetensorsFile, str]]:
    """The tensors of all shards, each in exactly the one that the index names."""
    index = read_index(_inside(root, INDEX))
    shards: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(index.values())):
        shards[shard] = file = SafetensorsFile.open(_inside(root, shard))
        for key in file.entries:  # before the next is opened: what is in hand is never more than the index names
            if index.get(key) != shard:
                said = f"in {index[key]}" if key in index else "nowhere"
                raise WeightsError(f"{short(key)} is in {shard}, {INDEX} says {said}; download both again")
    for key, shard in index.items():
        if key not in shards[shard].entries:
            raise WeightsError(f"{short(key)} is not in {shard}, where {INDEX} says; download both again")
    return [(shards[shard], key) for key, shard in index.items()]


def read_index(path: Path) -> dict[str, str]:
    """{tensor: shard}, each shard a plain name; WeightsError for anything else."""
    try:
        raw = json_file(path, _MAX_INDEX)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; download it again") from error
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
    if (root / "adapter_model.safetensors").exists():
        remedy = "merge it into its base (PEFT: merge_and_unload()) and save that"
        return f"{root}: LoRA not merged: has adapter_model.safetensors alone, {expected}; {remedy}"
    if any(root.glob("*.gguf")):
        return f"{root}: has a GGUF file alone, {expected}; give the checkpoint that it was made from"
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in root.glob(pattern))
    if pickles:
        why = "loading a pickle runs code from the file, so it is refused"
        return f"{root}: has only {short(pickles)}, {expected}; {why}: convert it to safetensors"
    return f"{root}: has no weights, {expected}; download the checkpoint"
