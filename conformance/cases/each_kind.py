"""A model cut to one layer of each kind: what can be judged at real sizes where the whole stack would take hours.

Of each text stack the first sliding and the first full layer are kept, of the tower its first one. They keep their own
weights, and every layer of a kind is the same code; what the layers left out hold is not judged.
"""

from __future__ import annotations

import re
from dataclasses import replace

from t5g2ref.config import Config, TextConfig
from t5g2ref.params import shapes

ALL, EACH_KIND = "all", "each-kind"
"""What `--layers` may be."""
CUT = ", one layer of each kind"
"""Behind the name of a checkpoint that was cut."""
_LAYER = re.compile(r"(?P<stack>.+)\.layers\.(?P<number>\d+)\.(?P<rest>.+)")


def cut(config: Config) -> tuple[Config, dict[str, str]]:
    """The geometry with one layer of each kind, and each of its tensors' names → the name in the whole model."""
    kept = layers(config)
    made = replace(config, encoder=_text(config.encoder), decoder=_text(config.decoder))
    if config.has_vision:
        made = replace(made, vision=replace(config.vision, num_hidden_layers=1))

    def source(name: str) -> str:
        if (found := _LAYER.fullmatch(name)) is None:
            return name
        return f"{found['stack']}.layers.{kept[found['stack']][int(found['number'])]}.{found['rest']}"

    return made, {name: source(name) for name in shapes(made)}


def layers(config: Config) -> dict[str, tuple[int, ...]]:
    """Stack → the numbers of its layers that are kept."""
    found = {"encoder.text_model": _first_of_each(config.encoder), "decoder": _first_of_each(config.decoder)}
    return found | {"encoder.vision_tower.encoder": (0,)}


def told(config: Config) -> str:
    """What was kept of the whole model, in words."""
    whole = {"encoder.text_model": config.encoder.num_hidden_layers}
    whole |= {"decoder": config.decoder.num_hidden_layers} if config.has_decoder else {}
    whole |= {"encoder.vision_tower.encoder": config.vision.num_hidden_layers} if config.has_vision else {}
    parts = [f"{', '.join(map(str, layers(config)[stack]))} of {count} of {stack}" for stack, count in whole.items()]
    return f"cut to one layer of each kind: layers {'; '.join(parts)}"


def _text(stack: TextConfig) -> TextConfig:
    kinds = tuple(stack.layer_types[i] for i in _first_of_each(stack))
    return replace(stack, num_hidden_layers=len(kinds), layer_types=kinds)


def _first_of_each(stack: TextConfig) -> tuple[int, ...]:
    return tuple(sorted(stack.layer_types.index(kind) for kind in set(stack.layer_types)))
