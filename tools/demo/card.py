"""The demo's model card: `card.md` with what training.json and measured.json say, the README.md of its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from string import Template
from typing import Any

from t5g2ref.config import Config
from t5g2ref.params import shapes

FIELDS = ("task", "inputs", "right", "transformers", "same_ids")


def table(measured: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of the table of figures, in Markdown. Two of them are None where transformers was not asked."""
    yield "| task | held-out inputs | right, t5g2ref | right, transformers | same ids |"
    yield "|---|---|---|---|---|"
    for one in measured:
        yield f"| {' | '.join('–' if one[field] is None else str(one[field]) for field in FIELDS)} |"


def text(folder: Path) -> str:
    """The card of the checkpoint in a folder."""
    training, measured = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("training.json", "measured.json")
    )
    template = Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    parameters = sum(prod(shape) for shape in shapes(Config.load(folder)).values())
    return template.substitute(
        {
            **training,
            "figures": "\n".join(table(measured)),
            "parameters": f"{parameters:,}",
            "weights": f"{(folder / 'model.safetensors').stat().st_size:,}",
            "minutes": f"{training['seconds'] / 60:.0f}",
        }
    )
