"""The class `config`: a config.json in each spelling, and whether what is read is what stands there."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import lawful, raw, tree
from fuzzing.tries import Kind
from t5g2ref import bundled
from t5g2ref.config import Config, ConfigError, preset
from t5g2ref.notes import noted

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)


def base(folder: Path) -> None:
    plain = Config.load(bundled("tiny"))
    (folder / "tiny.json").write_bytes((bundled("tiny") / "config.json").read_bytes())
    (folder / "released.json").write_text(json.dumps(preset("270m").to_dict()))
    (folder / "old.json").write_text(json.dumps(preset("1b").to_dict("old")))
    alone = plain.to_dict()["encoder"] | {"model_type": "t5gemma2_encoder"}
    (folder / "alone.json").write_text(json.dumps(alone))


def spoilt(rng: Random, data: bytes) -> bytes:
    """A JSON document, spoilt by structure, by bytes, or by both."""
    how = rng.random()
    if how < 0.85:
        data = tree.spoilt(rng, data)
    return raw.spoilt(rng, data) if how > 0.75 else data


def spoil(rng: Random, base: Path, folder: Path) -> None:
    data = rng.choice(sorted(base.iterdir())).read_bytes()
    (folder / "config.json").write_bytes(spoilt(rng, data))


def read(folder: Path, base: Path) -> Config:
    said: list[str] = []
    with noted(said):
        config = Config.load(folder)
    lawful.notes(said)
    return config


def verify(config: Config, folder: Path, base: Path) -> None:
    """Every size is the one that the file names, and the file that we would write says the same."""
    said = json.loads((folder / "config.json").read_bytes())
    alone = said["model_type"] == "t5gemma2_encoder"
    encoder = said if alone else said["encoder"]
    pairs: list[tuple[Any, Any]] = [(config.encoder, encoder["text_config"])]
    pairs += [] if alone else [(config.decoder, said["decoder"])]
    for read_as, stands in pairs:
        for name in SIZES:
            if getattr(read_as, name) != stands[name]:
                raise lawful.FalsePass(f"{name} was read as {getattr(read_as, name)!r}, the file has {stands[name]!r}")
    again = Config.from_dict(config.to_dict())
    if again != config:
        raise lawful.FalsePass(f"written and read again it differs: {config!r}, then {again!r}"[:2000])


KIND = Kind("config", 4, base, spoil, read, (ConfigError,), verify)
