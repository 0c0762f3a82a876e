"""The released geometries by name."""

from __future__ import annotations

from t5g2ref.config.fields import ConfigError
from t5g2ref.config.geometry import SIGLIP, Config, TextConfig
from t5g2ref.config.read_ropes import LAYER_TYPES
from t5g2ref.config.ropes import Rope, Ropes


def _preset(hidden: int, layers: int, heads: int, kv: int, ffn: int, window: int, longest: int) -> Config:
    text = TextConfig(
        vocab_size=262_144,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=256,
        max_position_embeddings=longest,
        rms_norm_eps=1e-6,
        query_pre_attn_scalar=256.0,
        sliding_window=window,
        layer_types=tuple(LAYER_TYPES[(i + 1) % 6 == 0] for i in range(layers)),
        rope_parameters=Ropes(Rope(10_000.0), Rope(1_000_000.0, 8.0)),
    )
    return Config(text, text, SIGLIP, dtype="bfloat16")


# The 270m row is the released config; window and positions of the others follow Gemma 3 of the same size,
# their parameter counts agree with KerasHub's. A checkpoint's own config.json always wins over these.
PRESETS: dict[str, Config] = {
    "270m": _preset(640, 18, 4, 1, 2048, 512, 32_768),
    "1b": _preset(1152, 26, 4, 1, 6912, 512, 32_768),
    "4b": _preset(2560, 34, 8, 4, 10_240, 1024, 131_072),
}


def preset(name: str) -> Config:
    """Return a released geometry by name; ConfigError lists the names there are."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}: name one, or load a config.json")
    return PRESETS[name]
