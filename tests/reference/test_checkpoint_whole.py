"""A checkpoint is written whole and by one writer, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5g2ref import bundled
from t5g2ref.checkpoint.folder import WeightsError, load, save
from t5g2ref.config import Config
from t5g2ref.weights import arrays

Flat = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.load(bundled("tiny"))


@pytest.fixture(scope="module")
def weights() -> Flat:
    return dict(arrays(load(bundled("tiny"))[1]))


@pytest.mark.parametrize("shard_bytes", [None, 20_000])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, config: Config, weights: Flat, shard_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it shows when the last file gets its name."""
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name in ("model.safetensors", "model.safetensors.index.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, config, weights.items(), shard_bytes=shard_bytes)
    assert os.listdir(tmp_path) == ["config.json"]  # which makes no checkpoint


def test_a_folder_that_was_made_goes_with_what_failed(tmp_path: Path, config: Config) -> None:
    with pytest.raises(WeightsError, match="tensors were not given"):
        save(tmp_path / "new", config, [])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("shard_bytes", [None, 20_000])
def test_two_writers_do_not_mix(tmp_path: Path, config: Config, weights: Flat, shard_bytes: int | None) -> None:
    """The second is refused at once, and what the first writes is its own."""

    def meanwhile() -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        with pytest.raises(WeightsError, match="another process is writing into this folder; wait for it"):
            save(tmp_path, config, ((name, array + 1) for name, array in weights.items()), shard_bytes=shard_bytes)
        yield from weights.items()

    save(tmp_path, config, meanwhile(), dtype="float32", shard_bytes=shard_bytes)
    for name, array in arrays(load(tmp_path)[1]):
        np.testing.assert_array_equal(array, weights[name])


def test_shards_of_an_earlier_writer_are_not_overwritten(tmp_path: Path, config: Config, weights: Flat) -> None:
    save(tmp_path, config, weights.items(), shard_bytes=20_000)
    (tmp_path / "model.safetensors.index.json").unlink()  # as a copy that was cut short
    before = sorted(tmp_path.iterdir())
    with pytest.raises(WeightsError, match=r"model-00001-of-\d+.safetensors: already there"):
        save(tmp_path, config, weights.items(), shard_bytes=20_000)
    assert sorted(tmp_path.iterdir()) == before
