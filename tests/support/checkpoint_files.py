"""Checkpoint folders of the smallest geometry, written by the safetensors library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from geometry import smallest_config

from t5g2ref.config import Config
from t5g2ref.params import hub_name, shapes

EMBED = "encoder.text_model.embed_tokens.weight"
NORM = "decoder.norm.weight"
Flat = dict[str, np.ndarray[Any, Any]]


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
    config = config or smallest_config()
    flat = values(config)
    change(flat)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    write(folder / "model.safetensors", {hub_name(name, "hub"): array for name, array in flat.items()})
    return folder


ONE = np.ones(2, np.float32)
