"""weights: what is read, what is refused and how it says so, and what is written.

Expected values come from the safetensors library and from PyTorch, or stand here as bit patterns.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from t5g2ref.checkpoint.file import CHUNK, SafetensorsFile, convert
from t5g2ref.checkpoint.folder import Checkpoint, WeightsError, load, save
from t5g2ref.checkpoint.header import FLOATS, HeaderError, parse_header
from t5g2ref.checkpoint.tensor import STORED
from t5g2ref.config import Config, ConfigError, Rope, Ropes, TextConfig, VisionConfig
from t5g2ref.params import TIED, canonical, hub_name, shapes
from t5g2ref.weights import arrays

EMBED = "encoder.text_model.embed_tokens.weight"
NORM = "decoder.norm.weight"
Flat = dict[str, np.ndarray[Any, Any]]


def tiny() -> Config:
    text = TextConfig(
        vocab_size=61,
        hidden_size=12,
        intermediate_size=14,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=10,
        max_position_embeddings=128,
        rms_norm_eps=1e-6,
        query_pre_attn_scalar=14,
        sliding_window=5,
        layer_types=("sliding_attention", "full_attention"),
        rope_parameters=Ropes(Rope(1e4), Rope(1e6, 8.0)),
    )
    return Config(text, text, VisionConfig(20, 28, 2, 5, 32, 8), 4, 50, 51, 52, num_labels=3)


def values(config: Config, head: Any = "lm") -> Flat:
    """Seeded float32 weights that bfloat16 has exactly, so that every dtype stores the same."""
    rng = np.random.default_rng(17)
    grid = {name: rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in shapes(config, head).items()}
    return {name: array.astype(np.float32) for name, array in grid.items()}


def write(path: Path, tensors: Flat) -> None:
    """Write a file of any names with the safetensors library."""
    safetensors.numpy.save_file(tensors, path)


def plain(folder: Path, change: Callable[[Flat], None] = lambda flat: None, config: Config | None = None) -> Path:
    """Write a float32 checkpoint in the Hub's layout, after `change` to its canonical tensors."""
    config = config or tiny()
    flat = values(config)
    change(flat)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    write(folder / "model.safetensors", {hub_name(name, "hub"): array for name, array in flat.items()})
    return folder


# ---- reading what is right -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize("shard_bytes", [None, 5000])
@pytest.mark.parametrize("tied", [False, True])
def test_saved_is_loaded(tmp_path: Path, stored: str, layout: Any, shard_bytes: int | None, tied: bool) -> None:
    config, flat = tiny(), values(tiny())
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
    flat = values(tiny())
    names = {name: prefix + hub_name(name, layout).removeprefix("model.") for name in flat}
    write(tmp_path / "model.safetensors", {names[name]: array for name, array in flat.items()})
    loaded = dict(arrays(load(tmp_path)[1]))
    assert all(np.array_equal(loaded[name], flat[name]) for name in flat)


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32", "float64"])
def test_the_safetensors_library_reads_what_is_written(tmp_path: Path, stored: str) -> None:
    flat = values(tiny())
    save(tmp_path, tiny(), flat.items(), dtype=stored)
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
    config = tiny()
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
    assert load(snapshot)[0] == tiny()


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

    flat = values(tiny())
    save(tmp_path, tiny(), flat.items(), layout=layout, shard_bytes=9000)
    cls = transformers.T5Gemma2ForConditionalGeneration
    if layout == "transformers" and any("vision_model" in key for key in peer_names(tiny())):
        pytest.skip("this release of transformers knows the Hub's layout alone")
    model, info = cls.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = {canonical(key): value for key, value in model.state_dict().items()}
    for name, array in flat.items():
        assert np.array_equal(state[name].numpy(), array), name
    model.save_pretrained(tmp_path / "theirs")
    config, root = load(tmp_path / "theirs")
    assert config == replace(tiny(), dtype="float32")
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
    assert load(tmp_path)[0] == tiny()


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
    assert load(tmp_path, config=tiny())[0] == tiny()


# ---- folders and shards --------------------------------------------------------------------------------------


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


ONE = np.ones(2, np.float32)
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


# ---- headers -------------------------------------------------------------------------------------------------


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


E8 = b"\0" * 8
HEADERS = [
    (b"", "has 0 bytes, expected at least 8"),
    (b"1234567", "has 7 bytes, expected at least 8"),
    (file_of({}, length=3), "said to have 3 bytes, expected at most 2"),
    (b"\xff" * 16, "said to have 18446744073709551615 bytes, expected at most 8"),
    (file_of(b""), "the header is not JSON"),
    (file_of(b"{"), "the header is not JSON"),
    (file_of(b'{"\xff": 1}'), "the header is not JSON"),
    (file_of(b"[" * 100_000), "the header is not JSON"),
    (file_of(b'{"x": ' + b"9" * 5000 + b"}"), "the header is not JSON"),
    (file_of([]), "the header is a JSON list, expected an object"),
    (file_of({"__metadata__": 3}), "__metadata__ is no object"),
    (file_of(b'{"x": {}, "x": {}}'), "the key 'x' appears twice"),
    (file_of({"x": 3}), "'x' is 3, expected an object of dtype"),
    (file_of({"x": {"dtype": "F32", "shape": []}}), "expected an object of dtype, shape and data_offsets"),
    (file_of({"x": entry() | {"more": 1}}, E8), "expected an object of dtype"),
    (file_of({"x": entry("I64", [1])}, E8), "'x' has dtype 'I64', expected one of F64, F32, F16, BF16"),
    (file_of({"x": entry(["F32"])}, E8), r"'x' has dtype \['F32'\]"),
    (file_of({"x": entry(shape=[-1])}, E8), r"'x' has shape \[-1\], expected a list of non-negative integers"),
    (file_of({"x": entry(shape=[2.0])}, E8), "'x' has shape"),
    (file_of({"x": entry(shape=[True])}, E8), "'x' has shape"),
    (file_of({"x": entry(shape="2")}, E8), "'x' has shape '2'"),
    (file_of({"x": entry(shape=[1] * 17)}, E8), "'x' has shape"),
    (file_of({"x": entry(shape=[1 << 49])}, E8), "'x' has shape"),
    (file_of({"x": entry(shape=[1 << 48] * 16)}, E8), "'x' has data_offsets .* expected a span of"),
    (file_of({"x": entry(offsets=[0])}, E8), r"'x' has data_offsets \[0\], expected two"),
    (file_of({"x": entry(offsets=[8, 0])}, E8), "expected a span of 8 bytes for F32"),
    (file_of({"x": entry(offsets=[-8, 0])}, E8), "expected two non-negative"),
    (file_of({"x": entry(offsets=[0, 4])}, E8), "expected a span of 8 bytes"),
    (file_of({"x": entry(offsets=[4, 12])}, E8 + E8), "leaves a hole before it"),
    (file_of({"x": entry(), "y": entry()}, E8), "'y' begins at byte .* overlaps the tensor before it"),
    (file_of({"x": entry(), "y": entry(offsets=[4, 12])}, E8 + E8), "overlaps the tensor before it"),
    (file_of({"x": entry(), "y": entry(offsets=[12, 20])}, E8 * 3), "leaves a hole before it"),
    (file_of({"x": entry()}), "the tensors end at byte .*, the file has"),
    (file_of({"x": entry()}, E8 + b"\0"), "the tensors end at byte .*, the file has"),
    (file_of({"n" * 2000: entry()}, E8), "a name has 2000 characters, expected at most 1024"),
]


@pytest.mark.parametrize(("content", "words"), HEADERS, ids=itertools.count())
def test_headers_out_of_order(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=words) as error:
        Checkpoint.open(tmp_path)
    assert "model.safetensors" in str(error.value)
    assert len(str(error.value)) < 600


def test_headers_in_order(tmp_path: Path) -> None:
    header = {"e": entry(shape=[3, 0], offsets=[0, 0]), "x": entry(), "s": entry("F16", [], [8, 10])}
    path = tmp_path / "f"
    path.write_bytes(file_of(header | {"__metadata__": {}}, struct.pack("<ffe", 1.5, -2.0, 0.25)))
    file = SafetensorsFile.open(path)
    assert file.read("x", "float32").tolist() == [1.5, -2.0]
    assert file.read("s", "float64").tolist() == 0.25  # also at an odd place, and of no dimension
    assert file.read("e", "float32").shape == (3, 0)


def test_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = (plain(tmp_path) / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in {*range(20), *range(header - 3, header + 3), *range(20, len(whole), 997), len(whole) - 1}:
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            Checkpoint.open(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "BF16", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list("xyz")), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8"]) | JSON,
        "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 40), max_size=3) | JSON,
    }
)


@settings(max_examples=200)
@given(
    st.binary(max_size=80)
    | st.dictionaries(st.text(max_size=3), ENTRY | JSON, max_size=3).map(lambda header: json.dumps(header).encode()),
    st.integers(0, 60),
)
def test_any_header_is_an_order_or_a_header_error(data: bytes, more: int) -> None:
    try:
        entries = parse_header(data, 8 + len(data) + more, FLOATS)
    except HeaderError:
        return
    assert sum(item.end - item.begin for item in entries.values()) == more


# ---- writing -------------------------------------------------------------------------------------------------


def test_writing_narrows_once(tmp_path: Path) -> None:
    flat = values(tiny())
    flat[NORM] = np.full(12, 1 + 2.0**-8 + 2.0**-40)
    save(tmp_path, tiny(), flat.items())
    assert load(tmp_path)[1].decoder.norm.weight[0] == 1 + 2.0**-7


def cases() -> Iterator[tuple[str, Callable[[Flat], Any], str]]:
    yield "missing", lambda flat: flat.pop(NORM), f"1 tensors were not given, expected all; the first are {NORM}"
    yield "unknown", lambda flat: flat.update(x=ONE), "x is no parameter of this config"
    yield "shape", lambda flat: flat.update({NORM: ONE}), rf"{NORM} has shape \(2,\), expected \(12,\)"
    yield "nan", lambda flat: flat[NORM].fill(np.nan), f"{NORM} has NaN or Inf"


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in cases()], ids=[case[0] for case in cases()])
@pytest.mark.parametrize("shard_bytes", [None, 3000])
def test_a_refused_write_leaves_nothing(tmp_path: Path, change: Any, words: str, shard_bytes: int | None) -> None:
    flat = values(tiny())
    change(flat)
    with pytest.raises(WeightsError, match=words):
        save(tmp_path, tiny(), flat.items(), shard_bytes=shard_bytes)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def some() -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        yield from list(values(tiny()).items())[:5]
        assert all("writing" in path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, tiny(), some())
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses_what_it_would_spoil(tmp_path: Path) -> None:
    flat = values(tiny())
    twice = itertools.chain(flat.items(), [(NORM, flat[NORM])])
    with pytest.raises(WeightsError, match=f"{NORM} was given already"):
        save(tmp_path, tiny(), twice)
    with pytest.raises(WeightsError, match="shard_bytes is 0"):
        save(tmp_path, tiny(), flat.items(), shard_bytes=0)
    with pytest.raises(WeightsError, match="dtype is 'int4'"):
        save(tmp_path, tiny(), flat.items(), dtype="int4")
    save(tmp_path, tiny(), flat.items())
    with pytest.raises(WeightsError, match="already there, expected a folder without weights"):
        save(tmp_path, tiny(), flat.items())


def test_no_shard_passes_its_limit(tmp_path: Path) -> None:
    save(tmp_path, tiny(), values(tiny()).items(), shard_bytes=4000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(array.size for array in values(tiny()).values())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    for name in files:
        entries = SafetensorsFile.open(tmp_path / name).entries
        assert sum(item.end - item.begin for item in entries.values()) <= 4000 or len(entries) == 1
