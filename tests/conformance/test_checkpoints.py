"""Which checkpoint is meant: found where it was said to be, or refused with every remedy; never another instead."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import same_bits

from conformance import checkpoints
from conformance.checkpoints import HUB, resolve
from conformance.errors import CheckpointError, UsageError
from t5g2ref import bundled, params
from t5g2ref.checkpoint.find import variable
from t5g2ref.checkpoint.folder import Checkpoint, WeightsError, check, save
from t5g2ref.checkpoint.synthetic import Synthetic
from t5g2ref.config import PRESETS, Config


@pytest.fixture(autouse=True)
def nothing_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache, no environment variable: what is found is what the test put there."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for size in HUB:
        monkeypatch.delenv(variable(size), raising=False)
    if importlib.util.find_spec("huggingface_hub"):  # it may have read its environment already
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the bundled tiny checkpoint that may be damaged."""
    return Path(shutil.copytree(bundled("tiny"), tmp_path / "copy"))


def refused(name: str, *, synthetic: bool = False) -> str:
    with pytest.raises(UsageError if synthetic else CheckpointError) as caught:
        resolve(name, synthetic=synthetic)
    return str(caught.value)


# What is there


def test_tiny_stands_for_both_bundled_ones() -> None:
    """One window is odd and one is even."""
    tiny, even = resolve("tiny", synthetic=False)
    assert (tiny.name, even.name) == ("tiny", "tiny-even")
    assert [t.name for t in resolve("tiny-even", synthetic=False)] == ["tiny-even"]
    for name in ("tiny-released", "demo"):
        assert [t.name for t in resolve(name, synthetic=False)] == [name]
    assert (tiny.folder, even.folder) == (bundled("tiny"), bundled("tiny-even"))
    assert tiny.config.encoder.sliding_window % 2 != even.config.encoder.sliding_window % 2


def test_weights_are_the_files_in_float32() -> None:
    (target,) = resolve("tiny-even", synthetic=False)
    assert target.folder is not None
    checkpoint = Checkpoint.open(target.folder)
    assert list(target.weights) == list(params.shapes(target.config))
    for name, value in target.weights.items():
        same_bits(value, checkpoint.read(name, "float32"))
        assert not value.flags.writeable


def test_a_folder_by_its_path(copy: Path) -> None:
    (target,) = resolve(str(copy), synthetic=False)
    assert (target.name, target.folder) == (str(copy), copy)


def test_folder_named_like_a_size_is_a_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in front of the user comes first."""
    monkeypatch.chdir(copy.parent)
    copy.rename(copy.parent / "1b")
    (target,) = resolve("1b", synthetic=False)
    assert target.folder == Path("1b")


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T5G2REF_270M", str(bundled("tiny")))
    (target,) = resolve("270m", synthetic=False)
    assert (target.name, target.folder) == ("270m", bundled("tiny"))
    assert target.config == Config.load(bundled("tiny")), "the folder's own geometry, not the preset's"


@pytest.mark.parametrize("size", HUB)
def test_environment_variable_to_nowhere(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = str(tmp_path / "missing")
    monkeypatch.setenv(f"T5G2REF_{size.upper()}", given)
    message = refused(size)
    expected = f"--ckpt {size}: T5G2REF_{size.upper()} is {given!r}, where there is no config.json; set it to a folder"
    assert message.splitlines()[0] == expected


def test_progress_counts_every_tensor() -> None:
    seen: list[tuple[str, int, int]] = []
    (target,) = resolve("tiny-even", synthetic=False, progress=lambda *step: seen.append(step))
    assert seen == [(name, i, len(target.weights)) for i, name in enumerate(target.weights)]


# What is not


@pytest.mark.parametrize("name", ["27b", "Tiny", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_unknown_name(name: str) -> None:
    message = refused(name)
    assert message.startswith(
        f"--ckpt {name}: no such folder, and not a name I know; give tiny, 270m, 1b, 4b, a folder"
    )


@pytest.mark.parametrize("size", HUB)
def test_size_without_weights_explains_every_remedy(size: str) -> None:
    message = refused(size)
    repo = f"google/t5gemma-2-{size}-{size}"
    for part in (
        f"--ckpt {size}: the weights of {repo} are not here (",
        f"set T5G2REF_{size.upper()} to a folder with config.json and model.safetensors",
        "give a folder that has it: /path/to/folder",
        f"https://huggingface.co/{repo}",
        f"hf download {repo}",
        f"--ckpt {size} --synthetic",
    ):
        assert part in message
    assert "Traceback" not in message


def test_foreign_repository_is_not_offered_synthetic_weights() -> None:
    """Nobody knows its geometry."""
    message = refused("somebody/some-model")
    assert "hf download somebody/some-model" in message
    assert "--synthetic" not in message
    assert "T5G2REF" not in message


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    message = refused("1b")
    assert "(huggingface_hub is not installed)" in message
    assert "--ckpt 1b --synthetic" in message


# What is there but unusable


def test_classifier_is_refused(tmp_path: Path) -> None:
    config = Config.load(bundled("tiny"))
    shapes = params.shapes(config, "classification")
    values = ((name, np.full(shape, 0.5, np.float32)) for name, shape in shapes.items())
    save(tmp_path / "c", config, values, shapes=shapes)
    assert refused(str(tmp_path / "c")).endswith("this is a classifier's checkpoint; give the language model's")


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def other_geometry(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"intermediate_size": 88', '"intermediate_size": 96'))


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


@pytest.mark.parametrize("damage", [truncated, no_weights, other_geometry, garbage])
def test_damage_is_told_in_the_loader_s_words(damage: Any, copy: Path) -> None:
    damage(copy)
    with pytest.raises(WeightsError) as ours:
        check(Checkpoint.open(copy), Config.load(copy))
    assert refused(str(copy)) == str(ours.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"model_type": "gemma3"}', "model_type"),
    ],
)
def test_bad_configuration(text: str, message: str, copy: Path) -> None:
    (copy / "config.json").write_text(text)
    found = refused(str(copy))
    assert re.search(message, found)
    assert "\n" not in found


def test_folder_without_a_configuration(tmp_path: Path) -> None:
    assert "config.json: no such file" in refused(str(tmp_path))


# Numbers that no tensor bears out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"sliding_window": 9,', '"sliding_window": 2147483647,', "encoder.text_config.sliding_window is 2147483647, "),
        (
            '"sliding_window": 18,',
            '"sliding_window": 99999,',
            "decoder.sliding_window is 99999, expected at most 16384;",
        ),
    ],
)
def test_a_window_that_makes_the_cases_endless(old: str, new: str, words: str, copy: Path) -> None:
    file = copy / "config.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert words in refused(str(copy))


def test_synthetic_weights_beyond_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "free_bytes", lambda backend: 1 << 30)
    with pytest.raises(CheckpointError, match=r"--ckpt 1b: needs .* even layer by layer, found 1\.0; give a smaller"):
        resolve("1b", synthetic=True)


# Synthetic weights


def test_synthetic_at_a_folder_s_geometry(tmp_path: Path) -> None:
    """The weights are not needed, and not read."""
    shutil.copy(bundled("tiny") / "config.json", tmp_path)
    seen: list[Any] = []
    (target,) = resolve(str(tmp_path), synthetic=True, progress=lambda *step: seen.append(step))
    assert (target.name, target.folder) == (f"{tmp_path} (synthetic weights)", None)
    assert target.config == Config.load(bundled("tiny"))
    expected = Synthetic(target.config)
    assert list(target.weights) == list(params.shapes(target.config))
    for name, value in target.weights.items():
        same_bits(value, expected[name])
    assert sorted(name for name, *_ in seen) == sorted(target.weights)
    assert [step[1:] for step in seen] == [(i, len(target.weights)) for i in range(len(target.weights))]


def test_synthetic_of_a_size_has_the_preset_s_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never the folder's that a variable names; and not one tensor of the 270m parameters is made for this test."""
    monkeypatch.setattr(checkpoints, "Synthetic", lambda config, **_: {"only": config})
    monkeypatch.setenv("T5G2REF_270M", str(bundled("tiny")))
    (target,) = resolve("270m", synthetic=True)
    assert (target.name, target.folder) == ("270m (synthetic weights)", None)
    assert target.config is target.weights["only"] is PRESETS["270m"]


@pytest.mark.parametrize("name", ["tiny", "tiny-even", "nowhere", "google/t5gemma-2-1b-1b"])
def test_synthetic_needs_a_geometry(name: str) -> None:
    message = refused(name, synthetic=True)
    assert message == "--synthetic needs a geometry: one of 270m, 1b, 4b or a folder with config.json"


def test_calm_weights_are_those_of_a_calm_generator() -> None:
    folder = str(bundled("tiny"))
    (target,) = resolve(folder, synthetic=True, calm=True)
    assert target.name == f"{folder} (calm synthetic weights)"
    expected = Synthetic(target.config, massive=False)
    for name, value in target.weights.items():
        same_bits(value, expected[name])


def test_calm_says_how_synthetic_weights_are_made() -> None:
    with pytest.raises(UsageError, match="give --synthetic too"):
        resolve("tiny", synthetic=False, calm=True)
