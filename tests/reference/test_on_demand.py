"""Weights on demand: the same model, with two layers in memory at a time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geometry import seeded_weights, small_config

import t5g2ref
from t5g2ref import numerics
from t5g2ref.checkpoint.folder import save
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import FLASH, RUNNING, SDPA, Numerics
from t5g2ref.on_demand import OnDemand, extended, layer_of, mapped
from t5g2ref.params import tree
from t5g2ref.trace import Trace
from t5g2ref.weights import arrays

SOURCE, ANSWER = [[5, 17, 42, 9]], [[5, 8, 13]]


def flat(name: str = "tiny") -> dict[str, Any]:
    return dict(arrays(t5g2ref.load(t5g2ref.bundled(name), "float32").weights))


class Counted:
    """What is read, and how many layers' arrays there were at most."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.weights, self.times = weights, Counter[str]()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Any:
        with self._lock:
            self.times[name] += 1
        return self.weights[name]


def test_layers_are_in_the_names() -> None:
    assert layer_of("decoder.layers.12.mlp.up_proj.weight") == "decoder.layers.12"
    assert layer_of("encoder.vision_tower.encoder.layers.0.layer_norm1.bias") == "encoder.vision_tower.encoder.layers.0"
    assert layer_of("decoder.norm.weight") == layer_of("encoder.text_model.embed_tokens.weight") == ""


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["tiny", "tiny-even", "demo"])
def test_a_streamed_file_gives_the_same_bits(name: str, dtype: Any) -> None:
    folder = t5g2ref.bundled(name)
    whole, streamed = (t5g2ref.load(folder, dtype, stream=stream) for stream in (False, True))
    one, other = (model(SOURCE, ANSWER) for model in (whole, streamed))
    assert np.array_equal(one.logits, other.logits)
    assert np.array_equal(one.encoded.hidden, other.encoded.hidden)


def test_pictures_too() -> None:
    folder = t5g2ref.bundled("tiny")
    whole, streamed = (t5g2ref.load(folder, stream=stream) for stream in (False, True))
    config, side = whole.config, whole.config.vision.image_size
    pixels = np.random.default_rng(3).uniform(-1, 1, (1, config.vision.num_channels, side, side))
    ids = [[5] + [config.image_token_index] * config.mm_tokens_per_image]
    one, other = (model(ids, ANSWER, pixel_values=pixels).logits for model in (whole, streamed))
    assert np.array_equal(one, other)


def test_two_layers_are_held_at_a_time() -> None:
    """Encoder layers are read once, decoder layers twice: for the keys of the encoder's output, then for themselves."""
    weights = flat()
    counted = Counted(weights)
    held = OnDemand(weights, counted)
    largest, layers = 0, Counter[str]()
    for name, value in weights.items():
        layers[layer_of(name)] += value.nbytes
    outside = layers.pop("")

    def look(_: str, value: Any) -> Any:
        nonlocal largest
        largest = max(largest, held.held_bytes)
        return value

    model = T5Gemma2(t5g2ref.load(t5g2ref.bundled("tiny")).config, tree(held), Numerics())
    model(SOURCE, ANSWER, trace=Trace(look))
    assert outside < largest <= outside + 2 * max(layers.values())
    for name, times in counted.times.items():
        assert times == (2 if name.startswith("decoder.layers.") else 1), name
    assert not any("vision" in name and layer_of(name) for name in counted.times)


def test_runs_side_by_side_read_a_layer_once() -> None:
    weights = flat()
    counted = Counted(weights)
    held = OnDemand(weights, counted)
    name = "decoder.layers.0.mlp.up_proj.weight"
    threads = [threading.Thread(target=held.__getitem__, args=(name,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted.times[name] == 1


def test_what_is_mapped_or_extended_stays_on_demand() -> None:
    weights = flat()
    counted = Counted(weights)
    more = {"score.out_proj.weight": np.ones((3, 4)), "score.out_proj.bias": np.zeros(3)}
    made = extended(mapped(OnDemand(weights, counted), lambda name, value: value + ("up_proj" in name)), more)
    assert isinstance(made, OnDemand)
    assert not counted.times
    assert list(made) == [*weights, *more]
    assert np.array_equal(made["score.out_proj.weight"], np.ones((3, 4)))
    name = "decoder.layers.1.mlp.up_proj.weight"
    assert np.array_equal(made[name], weights[name] + 1)
    assert np.array_equal(made["decoder.norm.weight"], weights["decoder.norm.weight"])
    plain = extended(mapped(weights, lambda _, value: value * 2), more)
    assert type(plain) is dict
    assert np.array_equal(plain[name], weights[name] * 2)


def test_what_is_settled_is_read_again() -> None:
    """A peer that wrote into a layer's array has not written into what the judge reads next."""
    weights = flat()
    held = OnDemand(weights, lambda name: weights[name].copy())
    name = "decoder.layers.0.mlp.up_proj.weight"
    made = mapped(held, lambda _, value: value)
    made[name][:] = 7.0
    assert (made[name] == 7.0).all()
    stays = made.settled() if isinstance(made, OnDemand) else {}
    assert set(stays) == {n for n in weights if not layer_of(n)}
    assert np.array_equal(made[name], weights[name])


def test_names_are_checked_before_anything_is_read() -> None:
    weights = flat()
    counted = Counted(weights)
    with pytest.raises(ValueError, match=r"'decoder\.norm\.weight' is missing"):
        tree(OnDemand([name for name in weights if name != "decoder.norm.weight"], counted))
    with pytest.raises(ValueError, match=r"'decoder\.layers\.0\.strange' is no parameter"):
        tree(OnDemand([*weights, "decoder.layers.0.strange"], counted))
    assert not counted.times
    with pytest.raises(KeyError, match="strange"):
        OnDemand(weights, counted)["strange"]


def test_a_file_that_changes_is_refused_where_it_is_read(tmp_path: Path) -> None:
    config = small_config()
    save(tmp_path, config, ((n, w) for n, w in seeded_weights(config).items() if not n.startswith("score")))
    model = t5g2ref.load(tmp_path, stream=True)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(t5g2ref.WeightsError, match=str(path)):
        model([[5, 7]], [[5]])


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights are widened a few rows at a time."""
    monkeypatch.setattr(numerics, "AT_ONCE", 1)
    monkeypatch.setattr(numerics, "TILE", 8)
    return


KINDS = [
    Numerics(),
    *(Numerics("float32", p) for p in (SDPA, RUNNING)),
    *(Numerics("bfloat16", p) for p in (SDPA, FLASH)),
]


@pytest.mark.parametrize("nx", KINDS, ids=lambda nx: f"{nx.dtype}-{nx.profile.name}")
@pytest.mark.parametrize("bias", [False, True])
def test_parts_of_a_wide_table_are_the_whole(nx: Numerics, bias: bool, parts: None) -> None:
    """Integers of few bits have exact sums in any order, so both are equal to the last bit."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-4, 5, (29, 6)).astype(np.float16)
    x = rng.integers(-4, 5, (2, 3, 6)).astype(np.float64)
    b = rng.integers(-4, 5, 29).astype(np.float32) if bias else None
    expected = x @ weight.T.astype(np.float64) + (0 if b is None else b)
    found = nx.linear(nx.array(x), weight, b)
    assert found.shape == (2, 3, 29)
    assert np.array_equal(found.astype(np.float64), expected)
