"""The bundled checkpoint changed: its tensors under other names, or a part of it alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.numpy

import t5g2ref

Flat = dict[str, Any]
Change = Callable[[Flat, Flat], None]


def changed(folder: Path, change: Change) -> Path:
    """The bundled tiny checkpoint after `change` to its {name in the file: tensor} and its config.json."""
    shutil.copytree(t5g2ref.bundled("tiny"), folder)
    flat, raw = (
        dict(safetensors.numpy.load_file(folder / "model.safetensors")),
        json.loads((folder / "config.json").read_text()),
    )
    change(flat, raw)
    safetensors.numpy.save_file(flat, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def renamed(flat: Flat, rule: Callable[[str], str]) -> None:
    for name in list(flat):
        flat[rule(name)] = flat.pop(name)


def encoder_alone(flat: Flat, raw: Flat) -> None:
    """As transformers 5.24 saves a `T5Gemma2Encoder`."""
    for name in [name for name in flat if not name.startswith("model.encoder.")]:
        del flat[name]
    renamed(flat, lambda name: name.removeprefix("model.encoder.").replace("vision_model.", ""))
    encoder = dict(raw["encoder"])
    raw.clear()
    raw |= encoder


def text_alone(flat: Flat, raw: Flat) -> None:
    for name in [name for name in flat if "vision_tower" in name or "multi_modal_projector" in name]:
        del flat[name]


def text_alone_and_said(flat: Flat, raw: Flat) -> None:
    text_alone(flat, raw)
    raw["encoder"]["vision_config"] = None
