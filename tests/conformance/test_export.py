"""`export`: what is written is what the cases are, whole or not at all, and the shapes are those of a run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumping import TINY, Array, case_of, recorded, tiny
from safetensors.numpy import load_file

pytest.importorskip("rich", reason="needs rich: the progress bar is made with it")

from conformance import __main__ as command
from conformance.cases import catalogue as cases
from conformance.cases.plan import IDS, minimum, shape_of, sizes, validity
from conformance.commands import export
from conformance.exchange import case_words as describe
from conformance.exchange import writing
from conformance.exchange.layouts import LayoutError, arranged, check
from conformance.oracle.run_case import models, program
from conformance.target import Target
from t5g2ref import bundled, taps
from t5g2ref.checkpoint.file import SafetensorsFile, convert
from t5g2ref.files import alone
from t5g2ref.trace import recorder


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny()


def run(*arguments: object) -> int:
    return command.main(["export", *map(str, arguments), "--no-progress"])


def manifest(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return document


# Shapes before anything is computed


@pytest.mark.parametrize("name", ["tiny", "tiny-even"])
def test_every_shape_is_that_of_a_run(name: str) -> None:
    target = tiny(str(bundled(name)))
    for case in cases.build(target.config):
        calls = recorded(target, case)
        declared = describe.tap_shapes(target.config, case)
        for call, wanted in zip(calls, declared, strict=True):
            found = {tap: list(value.shape) for tap, value in call.items() if tap not in IDS}
            assert found == {tap: shape for tap, (_, shape) in wanted.items()}, case.name


def test_the_least_is_what_the_issue_names(target: Target) -> None:
    case = case_of(target, "image")
    first, second, _ = minimum(target.config, case)
    layers = [f"encoder.text_model.layers.{i}" for i in range(target.config.encoder.num_hidden_layers)]
    more = [f"decoder.layers.{i}" for i in range(target.config.decoder.num_hidden_layers)]
    own = ["decoder.embed_tokens", *more, "logits", "decoder_input_ids"]
    assert first == ["input_ids", "encoder.text_model.inputs_embeds", *layers, "encoder.text_model.norm", *own]
    assert second == own


# Layouts


def tap_named(target: Target, name: str) -> taps.Tap:
    return next(tap for tap in taps.table(target.config, loss=True) if tap.name == name)


def packed(x: Array, keep: Array) -> Array:
    """(B, T, …) → (valid tokens, …)."""
    return x[keep]


@pytest.mark.parametrize(
    ("name", "declared", "laid"),
    [
        ("layers.0", "D B T", lambda x, _: x.transpose(2, 0, 1)),
        ("layers.0", "T B*D", lambda x, _: x.transpose(1, 0, 2).reshape(x.shape[1], -1)),
        ("layers.0.self_attn.q_proj", "B T N H", lambda x, _: x.reshape(*x.shape[:2], 8, 10)),
        ("layers.0.self_attn.q_proj", "N B T H", lambda x, _: x.reshape(*x.shape[:2], 8, 10).transpose(2, 0, 1, 3)),
        ("layers.0.self_attn.q_norm", "B T N*H", lambda x, _: x.transpose(0, 2, 1, 3).reshape(3, x.shape[2], -1)),
        ("layers.0", "valid D", packed),
        ("layers.0", "D valid", lambda x, keep: packed(x, keep).T),
        ("layers.0.self_attn.q_norm", "N valid H", lambda x, keep: x.transpose(1, 0, 2, 3)[:, keep]),
    ],
)
def test_a_declared_layout_is_undone(target: Target, name: str, declared: str, laid: Any) -> None:
    case, tap = case_of(target, "padded-right"), tap_named(target, f"decoder.{name}")
    lengths = sizes(target.config, case, 0, tap)
    shape = shape_of(tap, lengths)
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    keep = validity(case, 0, tap, shape)
    assert keep is not None
    assert not keep.all()
    others = [axis for axis in range(whole.ndim) if axis not in tap.token_axes]
    expected = whole * np.expand_dims(keep, others) if "valid" in declared else whole
    assert np.array_equal(arranged(laid(whole, keep), declared, tap, lengths, keep), expected)


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("decoder.layers.0", "B T"),
        ("decoder.layers.0", "B T D D"),
        ("decoder.layers.0", "B T F"),
        ("decoder.layers.0", "valid T D"),
        ("decoder.layers.0", "valid B T D"),
        ("loss", "B"),
        ("loss", "valid"),
        ("encoder.vision_tower.post_layernorm", "valid D"),
    ],
)
def test_a_layout_that_is_none_of_the_tap(target: Target, name: str, declared: str) -> None:
    with pytest.raises(LayoutError, match=name):
        check(declared, tap_named(target, name))


def test_another_shape_than_declared(target: Target) -> None:
    case, tap = case_of(target, "short"), tap_named(target, "decoder.layers.0")
    with pytest.raises(LayoutError, match=r"declared as T B D = \(4, 1, 48\), found \(1, 4, 48\)"):
        arranged(np.zeros((1, 4, 48)), "T B D", tap, sizes(target.config, case, 0, tap), None)


# The folder


def test_what_is_written(tmp_path: Path, target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "cases"
    assert run(folder, "--ckpt", "tiny", "--case", "padded-left-cached", "--case", "sequence-multi") == 0
    assert "2 cases of tiny" in capsys.readouterr().out
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    inputs = ["padded-left-cached/inputs.safetensors", "sequence-multi/inputs.safetensors"]
    assert files == ["README.txt", "manifest.json", *inputs]
    assert sorted(os.listdir(folder.parent)) == ["cases"]
    document = manifest(folder)
    assert (document["format"], document["version"], document["dtype"]) == ("t5g2ref-export", 1, "float32")
    assert document["checkpoint"]["name"] == "tiny"
    case = case_of(target, "padded-left-cached")
    entry = document["cases"]["padded-left-cached"]
    assert [call["decoder"] for call in entry["calls"]] == [[0, 4], [4, 5], [5, 7]]
    assert entry["calls"][0]["taps"]["decoder.layers.3"] == ["B T D", [3, 4, 48]]
    assert "encoder.text_model.norm" not in entry["calls"][1]["taps"]
    given = load_file(folder / entry["inputs"])
    for field, name in entry["runs"][0]["inputs"].items():
        value = getattr(case.runs[0], field)
        assert given[name].dtype == np.int64
        assert np.array_equal(given[name], value)
    head = load_file(folder / "sequence-multi" / "inputs.safetensors")
    assert document["cases"]["sequence-multi"]["head"] == ["head.score.out_proj.bias", "head.score.out_proj.weight"]
    assert head["head.score.out_proj.weight"].shape == (4, 48)
    lines = (folder / "README.txt").read_text().splitlines()
    assert 10 <= len(lines) <= 150
    assert any(line.startswith("  embed_tokens ") and "√D" in line for line in lines), "every kind of tap is explained"
    assert max(map(len, lines)) <= 120


def test_the_fingerprint_is_of_the_bytes(tmp_path: Path) -> None:
    run(tmp_path, "--ckpt", TINY, "--case", "short")
    document = manifest(tmp_path)
    stored = SafetensorsFile.open(Path(TINY, "model.safetensors"))
    data = b"".join(convert(chunk, "float32").tobytes() for chunk in stored.chunks("model.encoder.norm.weight"))
    expected = {"shape": [48], "sha256": hashlib.sha256(data).hexdigest()}
    assert document["weights"]["encoder.text_model.norm.weight"] == expected
    lines = "".join(f"{n} {w['sha256']}\n" for n, w in sorted(document["weights"].items()))
    assert document["checkpoint"]["fingerprint"] == hashlib.sha256(lines.encode()).hexdigest()
    assert document["checkpoint"]["config"]["decoder.rope_parameters.full_attention.rope_theta"] == 52000.0
    assert not {"dtype", "num_labels"} & set(document["checkpoint"]["config"])


@pytest.mark.parametrize("every", [False, True])
def test_the_truth(tmp_path: Path, target: Target, every: bool) -> None:
    case = case_of(target, "second-source")
    run(tmp_path, "--ckpt", TINY, "--case", case.name, "--expected", *["--all-taps"] * every)
    truth: list[dict[str, Any]] = [{} for _ in case.calls]
    traces = [recorder(call) for call in truth]
    program(case)(models(target.config, target.weights, case, "float32")[0], traces.__getitem__)
    for number, entry in enumerate(manifest(tmp_path)["cases"][case.name]["calls"]):
        found = load_file(tmp_path / entry["expected"])
        names = set(entry["taps"]) if every else set(entry["minimum"]) - set(IDS)
        assert set(found) == names
        for name, value in found.items():
            assert value.dtype == (np.bool_ if name.endswith(".mask") else np.float64)
            assert np.array_equal(value, truth[number][name]), name


def test_pictures_are_of_the_type(tmp_path: Path) -> None:
    import ml_dtypes

    run(tmp_path, "--ckpt", TINY, "--case", "image", "--dtype", "bfloat16")
    pixels = load_file(tmp_path / "image" / "inputs.safetensors")["run0.pixel_values"]
    assert pixels.dtype == np.float32
    assert np.array_equal(pixels, pixels.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    run(tmp_path, "--ckpt", TINY, "--case", "short", "--case", "eoi", "--expected")
    (tmp_path / "eoi" / "mine.txt").write_text("kept")
    assert run(tmp_path, "--ckpt", TINY, "--case", "window") == 0
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["README.txt", "eoi/mine.txt", "manifest.json", "window/inputs.safetensors"]


def test_a_folder_with_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    assert run(tmp_path, "--ckpt", TINY, "--case", "short") == 2
    assert "holds something else than an export; name another folder, or give --force" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.txt"]
    assert run(tmp_path, "--ckpt", TINY, "--case", "short", "--force") == 0
    assert (tmp_path / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("manifest", ["[", "[]", '{"format": "other"}'])
def test_a_manifest_of_another_kind_is_something_else(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    assert run(tmp_path, "--ckpt", TINY, "--case", "short") == 2
    assert (tmp_path / "manifest.json").read_text() == manifest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "nothing*"], "no case matches; there are: short"),
        (["--all-taps"], "give --expected too"),
        (["--ckpt", "weather"], "no such folder"),
        (["--calm"], "give --synthetic too"),
    ],
)
def test_bad_usage(tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "new", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cases").write_text("")
    assert run(tmp_path / "cases") == 2
    assert "this is a file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["inputs.safetensors", "expected-0.safetensors", "../manifest.json"])
def test_a_folder_in_a_file_s_place(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It stays, and where it is in the way nothing of the earlier export has gone."""
    assert run(tmp_path, "--case", "short") == 0
    (there := tmp_path / "short" / name).unlink(missing_ok=True)
    (there / "mine").mkdir(parents=True)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    status = run(tmp_path, "--case", "short")
    assert (there / "mine").is_dir()
    if name.startswith("expected"):
        assert status == 0
    else:
        assert status == 2
        assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "cases", "--ckpt", TINY, "--case", "short")
    before = (tmp_path / "cases" / "manifest.json").read_bytes()
    steps = iter([None, KeyboardInterrupt])

    def interrupted(*_: object) -> None:
        if (error := next(steps)) is not None:
            raise error

    monkeypatch.setattr(export, "write_truth", interrupted)
    with pytest.raises(KeyboardInterrupt):  # exit status 130, see test_streams.py
        run(tmp_path / "cases", "--ckpt", TINY, "--expected")
    assert (tmp_path / "cases" / "manifest.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["cases"]


def test_a_full_disk_leaves_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--ckpt", TINY, "--case", "short")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export, "write_truth", full)
    assert run(tmp_path, "--ckpt", TINY, "--expected") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert sorted(os.listdir(tmp_path)) == ["README.txt", "manifest.json", "short"]


def test_a_folder_that_is_a_disk_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount point: nothing can be renamed into it from beside it."""
    folder, replace = tmp_path / "mounted", os.replace

    def within(source: Path, target: Path) -> None:
        if not Path(source).is_relative_to(folder):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(source, target)

    monkeypatch.setattr(os, "replace", within)
    folder.mkdir()
    assert run(folder, "--ckpt", TINY, "--case", "short") == 0
    assert sorted(os.listdir(folder)) == ["README.txt", "manifest.json", "short"]


def test_nothing_is_deleted_or_written_behind_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = tmp_path / "cases", tmp_path / "other"
    assert run(folder, "--ckpt", TINY, "--case", "short") == 0
    shutil.move(folder / "short", other)
    (folder / "short").symlink_to(other)
    kept = (other / "inputs.safetensors").read_bytes()
    assert run(folder, "--ckpt", TINY, "--case", "short") == 2
    assert f"{folder / 'short'}: this is a link or a file, expected a folder" in capsys.readouterr().err
    assert run(folder, "--ckpt", TINY, "--case", "window") == 0
    assert (other / "inputs.safetensors").read_bytes() == kept
    assert sorted(os.listdir(folder)) == ["README.txt", "manifest.json", "short", "window"]


def test_two_exports_into_one_folder_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone(tmp_path):
        assert run(tmp_path, "--ckpt", TINY, "--case", "short") == 2
    assert "another process is writing into this folder; wait for it, or name another" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_what_a_killed_export_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".writing-0123" / "short").mkdir(parents=True)
    assert run(tmp_path, "--ckpt", TINY, "--case", "short") == 0
    assert sorted(os.listdir(tmp_path)) == ["README.txt", "manifest.json", "short"]


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    assert run(tmp_path, "--ckpt", TINY, "--case", "short") == 2
    assert "holds something else than an export" in capsys.readouterr().err


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    kind = {"x": (np.dtype(np.float32), (2,)), "y": (np.dtype(np.bool_), (3,))}
    with pytest.raises(RuntimeError, match="1 tensors never came, first y"), writing.streaming(path, kind) as put:
        put("x", np.zeros(2, np.float32))
    with (
        pytest.raises(RuntimeError, match=r"declared as float32 \(2,\), given float64"),
        writing.streaming(path, kind) as put,
    ):
        put("x", np.zeros(2))
    assert not os.listdir(tmp_path)
    with writing.streaming(path, kind) as put:
        put("y", np.array([True, False, True]))
        put("x", np.arange(2, dtype=np.float32))
    found = load_file(path)
    assert found["x"].tolist() == [0, 1]
    assert found["y"].tolist() == [True, False, True]
