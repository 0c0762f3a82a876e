"""A checkpoint's folder: its files, its index and the shards that it names, none of them trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import ONE, Flat, write

from t5g2ref.checkpoint.folder import Checkpoint, WeightsError


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "has no weights, expected model.safetensors or model.safetensors.index.json"),
        (["pytorch_model.bin"], "a pickle runs code"),
        (["model.pt", "pytorch_model-00001-of-00002.bin"], "convert it to safetensors"),
    ],
)
def test_folders_without_safetensors(tmp_path: Path, files: list[str], words: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError) as error:
        Checkpoint.open(tmp_path)
    assert words in str(error.value)
    assert all(name in str(error.value) for name in files)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such folder"):
        Checkpoint.open(tmp_path / "none")


def shards(folder: Path, index: object, **files: Flat) -> Path:
    for name, tensors in files.items():
        write(folder / f"{name}.safetensors", tensors)
    text = index if isinstance(index, str) else json.dumps({"weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


ESCAPES = ["../b.safetensors", "/etc/b.safetensors", "x/b.safetensors", "..\\b.safetensors", "c:b.safetensors"]
ODD = ["", ".", "..", "b", "b.bin", "b\0.safetensors", "b\ud800.safetensors", "b" * 300 + ".safetensors", 3, None, []]


@pytest.mark.parametrize("shard", [*ESCAPES, *ODD], ids=lambda item: repr(item)[:20])
def test_index_entries_are_plain_names(tmp_path: Path, shard: object) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "b.safetensors", {"y": ONE})
    folder = shards(tmp_path / "in", {"x": "a.safetensors", "y": shard}, a={"x": ONE})
    with pytest.raises(WeightsError, match=r"'y' is in .* expected the plain name of a \.safetensors file"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "a.safetensors"])
def test_links_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shards(folder, {"x": "a.safetensors"}, a={"x": ONE})
    if name == "model.safetensors":
        (folder / "model.safetensors.index.json").unlink()
        write(folder / name, {"x": ONE})
    Checkpoint.open(folder)
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(WeightsError, match=f"{name}: a link to .*outside, outside the folder"):
        Checkpoint.open(folder)
    (tmp_path / "outside").rename(folder / "inside")
    (folder / name).unlink()
    (folder / name).symlink_to("inside")
    assert Checkpoint.open(folder).keys() == ["x"]


@pytest.mark.parametrize(
    ("index", "files", "words"),
    [
        ({"x": "a.safetensors", "y": "b.safetensors"}, {"a": ["x"]}, "b.safetensors: no such file"),
        ({"x": "a.safetensors", "y": "a.safetensors"}, {"a": ["x"]}, "'y' is not in a.safetensors, where"),
        ({"x": "a.safetensors"}, {"a": ["x", "y"]}, "'y' is in a.safetensors, .* says nowhere"),
        (
            {"x": "a.safetensors", "y": "b.safetensors"},
            {"a": ["x"], "b": ["x", "y"]},
            "'x' is in b.safetensors, .* says in a.safetensors",
        ),
        (
            {"model.x": "a.safetensors", "x": "b.safetensors"},
            {"a": ["model.x"], "b": ["x"]},
            "'x' is there twice: 'model.x' in a.safetensors and 'x' in b.safetensors",
        ),
        ({}, {}, "weight_map is {}, expected a non-empty object"),
        ([], {}, r"weight_map is \[\], expected"),
        ("[]", {}, "weight_map is None"),
        ("{", {}, "not JSON"),
        ('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', {}, "the key 'x' appears twice"),
    ],
)
def test_shards_that_disagree(tmp_path: Path, index: object, files: dict[str, list[str]], words: str) -> None:
    shards(tmp_path, index, **{name: dict.fromkeys(keys, ONE) for name, keys in files.items()})
    with pytest.raises(WeightsError, match=words):
        Checkpoint.open(tmp_path)


def test_two_spellings_in_one_file(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"model.encoder.norm.weight": ONE, "encoder.text_model.norm.weight": ONE})
    with pytest.raises(WeightsError, match=r"'encoder\.text_model\.norm\.weight' is there twice"):
        Checkpoint.open(tmp_path)


def test_a_file_that_changes_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path, {"x": np.ones(1000, np.float32)})
    checkpoint = Checkpoint.open(tmp_path)
    write(tmp_path / "other", {"x": np.zeros(1000, np.float32)})
    os.replace(tmp_path / "other", path)  # of the same size: a header of one file must not place the other's data
    with pytest.raises(WeightsError, match="changed while x was being read; open it again"):
        checkpoint.read("x")
    checkpoint = Checkpoint.open(tmp_path)
    os.truncate(path, 200)
    with pytest.raises(WeightsError, match="changed while x was being read"):
        checkpoint.read("x")
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        checkpoint.read("x")
