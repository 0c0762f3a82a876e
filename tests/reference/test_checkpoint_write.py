"""Writing a checkpoint: rounded once, whole or not at all, in shards that keep their limit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import NORM, ONE, Flat, values
from geometry import smallest_config

from t5g2ref.checkpoint.file import SafetensorsFile
from t5g2ref.checkpoint.folder import WeightsError, load, save


def test_writing_narrows_once(tmp_path: Path) -> None:
    flat = values(smallest_config())
    flat[NORM] = np.full(12, 1 + 2.0**-8 + 2.0**-40)
    save(tmp_path, smallest_config(), flat.items())
    assert load(tmp_path)[1].decoder.norm.weight[0] == 1 + 2.0**-7


def cases() -> Iterator[tuple[str, Callable[[Flat], Any], str]]:
    yield "missing", lambda flat: flat.pop(NORM), f"1 tensors were not given, expected all; the first are {NORM}"
    yield "unknown", lambda flat: flat.update(x=ONE), "x is no parameter of this config"
    yield "shape", lambda flat: flat.update({NORM: ONE}), rf"{NORM} has shape \(2,\), expected \(12,\)"
    yield "nan", lambda flat: flat[NORM].fill(np.nan), f"{NORM} has NaN or Inf"


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in cases()], ids=[case[0] for case in cases()])
@pytest.mark.parametrize("shard_bytes", [None, 3000])
def test_a_refused_write_leaves_nothing(tmp_path: Path, change: Any, words: str, shard_bytes: int | None) -> None:
    flat = values(smallest_config())
    change(flat)
    with pytest.raises(WeightsError, match=words):
        save(tmp_path, smallest_config(), flat.items(), shard_bytes=shard_bytes)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def some() -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        yield from list(values(smallest_config()).items())[:5]
        assert all("writing" in path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, smallest_config(), some())
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses_what_it_would_spoil(tmp_path: Path) -> None:
    flat = values(smallest_config())
    twice = itertools.chain(flat.items(), [(NORM, flat[NORM])])
    with pytest.raises(WeightsError, match=f"{NORM} was given already"):
        save(tmp_path, smallest_config(), twice)
    with pytest.raises(WeightsError, match="shard_bytes is 0"):
        save(tmp_path, smallest_config(), flat.items(), shard_bytes=0)
    with pytest.raises(WeightsError, match="dtype is 'int4'"):
        save(tmp_path, smallest_config(), flat.items(), dtype="int4")
    save(tmp_path, smallest_config(), flat.items())
    with pytest.raises(WeightsError, match="already there, expected a folder without weights"):
        save(tmp_path, smallest_config(), flat.items())


def test_no_shard_passes_its_limit(tmp_path: Path) -> None:
    save(tmp_path, smallest_config(), values(smallest_config()).items(), shard_bytes=4000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(array.size for array in values(smallest_config()).values())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    for name in files:
        entries = SafetensorsFile.open(tmp_path / name).entries
        assert sum(item.end - item.begin for item in entries.values()) <= 4000 or len(entries) == 1
