"""The demo's model card: `card.md` with the figures put in, as the README.md of the checkpoint's folder."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from string import Template

from t5g2ref.config import Config
from t5g2ref.params import shapes


def write(folder: Path, figures: str) -> None:
    """Write the folder's README.md.

    Args:
        figures: the table of what is right on held-out inputs.
    """
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    template = Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    parameters = sum(prod(shape) for shape in shapes(Config.load(folder)).values())
    sizes = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir()) if path.name != "README.md"]
    text = template.substitute(
        {
            **training,
            "figures": figures,
            "parameters": f"{parameters:,}",
            "weights": f"{dict(sizes)['model.safetensors']:,}",
            "minutes": f"{training['seconds'] / 60:.1f}",
        }
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
