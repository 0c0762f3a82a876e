"""Synthetic weights: the same for a name whatever was made before, and with the extremes that trained ones have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import Array, on_grid, same_bits

from t5g2ref import bundled, params
from t5g2ref.checkpoint.synthetic import BOS_LAYERS, Synthetic
from t5g2ref.config import PRESETS, Config, VisionConfig
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import EXACT, SDPA, Numerics
from t5g2ref.trace import recorder

FP16_MAX = 65504.0
ENCODER, DECODER = "encoder.text_model", "decoder"


@pytest.fixture(scope="module")
def tiny() -> Config:
    return Config.load(bundled("tiny"))


@pytest.fixture(scope="module")
def middle() -> Config:
    """Deep and wide enough for the statistics to be those of a released size: 270m's, made narrow.

    What a norm can write into one channel is √width times its weight, so 3 · 1.7e3 · √192 is barely past float16.
    """
    text = replace(
        PRESETS["270m"].encoder,
        vocab_size=2000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        head_dim=32,
        query_pre_attn_scalar=32.0,
        sliding_window=16,
        layer_types=PRESETS["270m"].encoder.layer_types[:8],
    )
    ids = {"boi_token_index": 1997, "eoi_token_index": 1998, "image_token_index": 1999}
    return Config(text, text, VisionConfig(48, 64, 2, 4, 32, 8), mm_tokens_per_image=4, **ids)


# The mapping


def test_it_is_the_geometry_s_table(tiny: Config) -> None:
    made = Synthetic(tiny)
    assert list(made) == list(params.shapes(tiny))
    assert len(made) == len(params.shapes(tiny))
    for name, shape in params.shapes(tiny).items():
        assert made[name].shape == shape, name
    with pytest.raises(KeyError):
        made["decoder.layers.99.mlp.up_proj.weight"]


def test_a_tensor_hangs_on_seed_and_name_alone(tiny: Config) -> None:
    made = Synthetic(tiny)
    forward = {name: made[name] for name in made}
    for name in reversed(list(forward)):
        same_bits(made[name], forward[name])
        same_bits(Synthetic(tiny)[name], forward[name])
    other = Synthetic(tiny, seed=1)
    assert all(not np.array_equal(other[name], value) for name, value in forward.items())


def test_no_two_tensors_are_alike(tiny: Config) -> None:
    """Layers with the same numbers would hide that they were exchanged."""
    values = [value.ravel()[:64].tobytes() for value in Synthetic(tiny).values()]
    assert len(set(values)) == len(values)


def test_values_are_exact_in_bfloat16_and_read_only(tiny: Config) -> None:
    for name, value in Synthetic(tiny).items():
        assert value.dtype == np.float32, name
        assert on_grid(value, "bfloat16"), name
        assert not value.flags.writeable, name
        with pytest.raises(ValueError, match="read-only"):
            value[...] = 0


def test_geometry_of_another_size_keeps_what_has_the_same_shape(tiny: Config) -> None:
    """Seeded by name and not by place: one layer more does not exchange the others."""
    layers = tiny.decoder.num_hidden_layers
    longer = replace(
        tiny,
        decoder=replace(
            tiny.decoder, num_hidden_layers=layers + 1, layer_types=(*tiny.decoder.layer_types, "full_attention")
        ),
    )
    more = Synthetic(longer)
    for name, value in Synthetic(tiny).items():
        same_bits(more[name], value)


# The statistics


def ordinary(config: Config, name: str, length: int) -> Array:
    """(2, length) ids behind bos, none of them special."""
    ids = np.random.default_rng(len(name)).integers(3, 1990, (2, length))
    ids[:, 0] = config.decoder.bos_token_id
    return ids


@pytest.fixture(scope="module")
def walked(middle: Config) -> dict[str, dict[str, Array]]:
    """dtype → every tap of one call past both windows; the weights of the float64 model are those of the float32 one,
    and so is its √hidden."""
    flat = dict(Synthetic(middle))
    found: dict[str, dict[str, Array]] = {}
    for nx in (Numerics("float64", EXACT, embed_dtype="float32"), Numerics("float32", SDPA)):
        found[nx.dtype] = {}
        model = T5Gemma2(middle, params.tree(flat), nx)
        model(ordinary(middle, "encoder", 40), ordinary(middle, "decoder", 24), trace=recorder(into=found[nx.dtype]))
    return found


@pytest.mark.parametrize("stack", [ENCODER, DECODER])
def test_bos_has_a_residual_beyond_fp16(stack: str, middle: Config, walked: dict[str, dict[str, Array]]) -> None:
    taps, channel = walked["float64"], middle.decoder.hidden_size // 3
    peak = {i: np.abs(taps[f"{stack}.layers.{i}"][:, 0]).max() for i in range(8)}
    assert peak[BOS_LAYERS[0] - 1] < 100, "before it is planted"
    for i in range(BOS_LAYERS[-1], 8):
        assert peak[i] > FP16_MAX, peak
        assert (np.abs(taps[f"{stack}.layers.{i}"][:, 0]).argmax(axis=-1) == channel).all()
    assert max(peak.values()) < 1e6, "large, and not past all measure"


@pytest.mark.parametrize("stack", [ENCODER, DECODER])
def test_other_tokens_stay_small(stack: str, middle: Config, walked: dict[str, dict[str, Array]]) -> None:
    for i in range(8):
        residual = walked["float64"][f"{stack}.layers.{i}"][:, 1:]
        rms = np.sqrt(np.mean(residual**2, axis=-1))
        assert rms.max() < 100, (i, rms.max())
        assert rms.min() > 0.1, (i, rms.min())


def test_norm_weights_reach_what_trained_ones_do(middle: Config) -> None:
    made = Synthetic(middle)
    largest = {n: float(np.abs(made[n]).max()) for n in made if n.endswith("norm.weight")}
    for stack in (ENCODER, DECODER):
        for layer in BOS_LAYERS:
            assert largest[f"{stack}.layers.{layer}.post_feedforward_layernorm.weight"] >= 1.6e3
    assert sum(value >= 1.6e3 for value in largest.values()) == 2 * len(BOS_LAYERS)


def test_everything_is_finite_in_both_precisions(walked: dict[str, dict[str, Array]]) -> None:
    for taps in walked.values():
        assert all(np.isfinite(value).all() for value in taps.values())


def test_float32_follows_float64(walked: dict[str, dict[str, Array]]) -> None:
    """A chaotic model would tell nothing about an implementation: 1e-4 is 1700 roundoffs over 16 layers."""
    truth, control = (walked[dtype]["logits"].astype(np.float64)[:, 1:] for dtype in ("float64", "float32"))
    distance = np.linalg.norm(control - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
    print(f"\nfloat32 against float64 logits: worst {distance.max():.2e}, median {np.median(distance):.2e}")
    assert distance.max() < 1e-4
    assert distance.min() > 0, "the two runs are the same run"


def test_attention_is_neither_flat_nor_one_hot(walked: dict[str, dict[str, Array]]) -> None:
    """Logits differ between tokens and rows: nothing has collapsed."""
    logits = walked["float64"]["logits"]
    spread = logits.std(axis=-1)
    assert spread.min() > 0.5
    assert spread.max() < 200
    tops = logits.argmax(axis=-1)
    assert len(np.unique(tops)) > tops.size // 4


def test_calm_weights_plant_nothing() -> None:
    # The same tensors but for the channel that belongs to bos: nothing beyond what was drawn.
    config = Config.load(bundled("tiny"))
    planted, calm = Synthetic(config), Synthetic(config, massive=False)
    channel = config.decoder.hidden_size // 3
    for name in planted:
        a, b = planted[name], calm[name]
        if name.endswith("post_feedforward_layernorm.weight") and ".layers.1." in name and "vision" not in name:
            assert a[channel] > 1e3
            assert abs(b[channel]) < 10
        assert a.shape == b.shape
        assert np.abs(b).max() < 30
