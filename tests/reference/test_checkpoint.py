"""Checkpoints: what is read, and what does not fit the configuration and how it says so.

Expected values come from the safetensors library and from PyTorch, or stand here as bit patterns.
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from checkpoint_files import EMBED, NORM, Flat, plain, values, write
from geometry import smallest_config

from t5g2ref.checkpoint.file import CHUNK, convert
from t5g2ref.checkpoint.folder import Checkpoint, WeightsError, load, save
from t5g2ref.checkpoint.tensor import STORED
from t5g2ref.config import Config, ConfigError
from t5g2ref.params import TIED, canonical, hub_name, shapes
from t5g2ref.weights import arrays


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize("shard_bytes", [None, 5000])
@pytest.mark.parametrize("tied", [False, True])
def test_saved_is_loaded(tmp_path: Path, stored: str, layout: Any, shard_bytes: int | None, tied: bool) -> None:
    config, flat = smallest_config(), values(smallest_config())
    backwards = reversed(flat.items())  # any order will do
    save(tmp_path, config, backwards, dtype=stored, layout=layout, shard_bytes=shard_bytes, write_tied=tied)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == (shard_bytes is None)
    calls: list[tuple[str, int, int]] = []
    read, root = load(tmp_path, progress=lambda *call: calls.append(call))
    assert read == replace(config, dtype=stored)
    assert calls == [(name, i + 1, len(flat)) for i, name in enumerate(flat)]
    loaded = dict(arrays(root))
    assert set(loaded) == set(flat)
    for name, array in flat.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)
    checkpoint = Checkpoint.open(tmp_path)
    assert set(checkpoint.keys()) == set(flat) | (set(TIED) if tied else set())
    assert (checkpoint.shape(EMBED), checkpoint.dtype(EMBED)) == ((61, 12), stored)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("layout", ["hub", "transformers"])
def test_prefix_is_optional(tmp_path: Path, prefix: str, layout: Any) -> None:
    plain(tmp_path)
    flat = values(smallest_config())
    names = {name: prefix + hub_name(name, layout).removeprefix("model.") for name in flat}
    write(tmp_path / "model.safetensors", {names[name]: array for name, array in flat.items()})
    loaded = dict(arrays(load(tmp_path)[1]))
    assert all(np.array_equal(loaded[name], flat[name]) for name in flat)


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32", "float64"])
def test_the_safetensors_library_reads_what_is_written(tmp_path: Path, stored: str) -> None:
    flat = values(smallest_config())
    save(tmp_path, smallest_config(), flat.items(), dtype=stored)
    header = json.loads((tmp_path / "model.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert header["__metadata__"] == {"format": "pt"}
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert set(file.keys()) == {hub_name(name, "hub") for name in flat}
        for name, array in flat.items():
            raw = file.get_slice(hub_name(name, "hub"))
            assert tuple(raw.get_shape()) == array.shape
            if stored != "bfloat16":  # its NumPy reader has no such type
                found = file.get_tensor(hub_name(name, "hub"))
                np.testing.assert_array_equal(found, array.astype(stored), strict=True)


def test_all_bfloat16_patterns_are_decoded_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = np.frombuffer(b"".join(struct.pack("<HH", 0, int(b)) for b in bits), "<u4")
    assert np.array_equal(convert(bits.view(STORED["bfloat16"]), "float32").view(np.uint32), expected)


@pytest.mark.parametrize(
    ("value", "dtype", "bits"),
    [
        (1 + 2.0**-8, "bfloat16", 0x3F80),  # tie, to even: down
        (1 + 3 * 2.0**-8, "bfloat16", 0x3F82),  # tie, to even: up
        (1 + 2.0**-8 + 2.0**-40, "bfloat16", 0x3F81),  # a tie only if float32 came between
        (-1 - 2.0**-8 + 2.0**-40, "bfloat16", 0xBF80),
        (1 + 3 * 2.0**-8 - 2.0**-40, "bfloat16", 0x3F81),
        (1 + 2.0**-11, "float16", 0x3C00),
        (1 + 3 * 2.0**-11, "float16", 0x3C02),
        (1 + 2.0**-11 + 2.0**-40, "float16", 0x3C01),
    ],
)
def test_narrowing_rounds_once_to_nearest_even(value: float, dtype: str, bits: int) -> None:
    assert convert(np.array([value]), dtype).view(np.uint16)[0] == bits


@pytest.mark.usefixtures("peer_installed")
def test_float32_narrows_as_pytorch_does() -> None:
    import torch

    x = np.random.default_rng(3).integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    x = x[np.isfinite(x)]
    for name in ("bfloat16", "float16"):
        theirs = torch.from_numpy(x).to(getattr(torch, name)).view(torch.int16).numpy().view(np.uint16)
        assert np.array_equal(convert(x, name).view(np.uint16), theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_results_are_read_only_and_of_the_dtype(tmp_path: Path, dtype: str) -> None:
    _, root = load(plain(tmp_path), dtype)
    for _, array in arrays(root):
        assert array.dtype == STORED[dtype]
        assert array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_more_than_one_chunk(tmp_path: Path) -> None:
    x = np.arange(2 * CHUNK + 5, dtype=np.float32)
    write(tmp_path / "model.safetensors", {"a": x, "b": x.astype(np.float64), "c": np.flip(x).copy()})
    checkpoint = Checkpoint.open(tmp_path)
    assert np.array_equal(checkpoint.read("a"), x)
    assert checkpoint.same("a", "b")
    assert not checkpoint.same("a", "c")


def test_classification_head_is_found(tmp_path: Path) -> None:
    config = smallest_config()
    flat = values(config, "classification")
    save(tmp_path, config, flat.items(), shapes=shapes(config, "classification"))
    _, root = load(tmp_path)
    assert root.score.out_proj.bias.shape == (3,)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["T5Gemma2ForSequenceClassification"]
    with pytest.raises(WeightsError, match=r"score\.out_proj\.weight: expected \(4, 12\), found \(3, 12\)"):
        load(tmp_path, config=replace(config, num_labels=4))


def test_the_hub_cache_layout_is_read(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    plain(snapshot)
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).rename(blobs / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert load(snapshot)[0] == smallest_config()


def peer_names(config: Config) -> list[str]:
    """What this release of transformers calls its parameters."""
    import transformers

    return [
        *transformers.T5Gemma2ForConditionalGeneration(transformers.T5Gemma2Config(**config.to_dict())).state_dict()
    ]


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("layout", ["hub", "transformers"])
def test_transformers_loads_what_is_written(tmp_path: Path, layout: Any) -> None:
    import torch
    import transformers

    flat = values(smallest_config())
    save(tmp_path, smallest_config(), flat.items(), layout=layout, shard_bytes=9000)
    cls = transformers.T5Gemma2ForConditionalGeneration
    if layout == "transformers" and any("vision_model" in key for key in peer_names(smallest_config())):
        pytest.skip("this release of transformers knows the Hub's layout alone")
    model, info = cls.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = {canonical(key): value for key, value in model.state_dict().items()}
    for name, array in flat.items():
        assert np.array_equal(state[name].numpy(), array), name
    model.save_pretrained(tmp_path / "theirs")
    config, root = load(tmp_path / "theirs")
    assert config == replace(smallest_config(), dtype="float32")
    assert all(np.array_equal(array, flat[name]) for name, array in arrays(root))


# ---- what does not fit the configuration ---------------------------------------------------------------------


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(WeightsError) as error:
        load(folder)
    for word in words:
        assert word in str(error.value)


def test_all_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    def change(flat: Flat) -> None:
        del flat[NORM]
        flat["decoder.norm.bias"] = np.zeros(12, np.float32)
        flat["decoder.layers.0.mlp.up_proj.weight"] = np.zeros((12, 14), np.float32)

    plain(tmp_path, change)
    refused(
        tmp_path,
        "1 missing (download the checkpoint again",
        f"{NORM}: expected (12,), found nothing",
        "1 unexpected (",
        "'decoder.norm.bias': expected nothing, found (12,)",
        "1 of another shape (",
        "decoder.layers.0.mlp.up_proj.weight: expected (14, 12), found (12, 14)",
    )


def test_long_lists_are_cut(tmp_path: Path) -> None:
    def change(flat: Flat) -> None:
        for name in [name for name in flat if "decoder.layers" in name and "mlp.up_proj" not in name]:
            del flat[name]

    plain(tmp_path, change)
    refused(tmp_path, "24 missing", "... and 12 more")


@pytest.mark.parametrize("alias", TIED)
def test_tied_names_must_equal_their_source(tmp_path: Path, alias: str) -> None:
    def change(flat: Flat) -> None:
        flat[alias] = flat[TIED[alias]].copy()
        flat[alias].flat[-1] = np.nextafter(flat[alias].flat[-1], np.float32(9))

    plain(tmp_path, change)
    refused(tmp_path, f"{alias}: expected the values of {TIED[alias]}", "untied")


def test_a_tied_name_may_have_another_dtype(tmp_path: Path) -> None:
    plain(tmp_path, lambda flat: flat.update({"lm_head.out_proj.weight": flat[EMBED].astype(np.float64)}))
    assert load(tmp_path)[0] == smallest_config()


def test_a_negative_zero_is_no_zero(tmp_path: Path) -> None:
    def change(flat: Flat) -> None:
        flat[EMBED][0, 0] = 0.0
        flat["lm_head.out_proj.weight"] = flat[EMBED].astype(np.float64)
        flat["lm_head.out_proj.weight"][0, 0] = -0.0

    plain(tmp_path, change)
    refused(tmp_path, "lm_head.out_proj.weight: expected the values")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    plain(tmp_path, lambda flat: flat[NORM].__setitem__(3, bad))
    refused(tmp_path, "model.decoder.norm.weight has NaN or Inf, expected finite")


def test_float16_overflow_is_no_infinity(tmp_path: Path) -> None:
    plain(tmp_path, lambda flat: flat[NORM].__setitem__(3, 70000.0))
    with pytest.raises(WeightsError, match=r"model\.decoder\.norm\.weight has values beyond float16's range"):
        load(tmp_path, "float16")
    assert load(tmp_path, "bfloat16")[1].decoder.norm.weight[3] == 70144  # the nearest multiple of 512


def test_unknown_dtype_and_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="dtype is 'int8', expected one of float64"):
        load(plain(tmp_path), "int8")
    with pytest.raises(WeightsError, match=r"lm_head\.bias is not in"):
        Checkpoint.open(tmp_path).read("lm_head.bias")


def test_a_config_may_be_given(tmp_path: Path) -> None:
    plain(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path)
    assert load(tmp_path, config=smallest_config())[0] == smallest_config()
