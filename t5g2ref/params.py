"""Every parameter by its canonical name: its shape, its names in checkpoints, and the tree that the model reads.

Canonical names are transformers 5.23's module paths without the `model.` prefix, so that a weight, a tap and
a peer's module share one name. Loading is a walk over `shapes`; a checkpoint's key is first made `canonical`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

from t5g2ref.config import Config
from t5g2ref.on_demand import OnDemand
from t5g2ref.weights import Weights, arrays, children, grown, is_array

Head = Literal["lm", "classification"]
Layout = Literal["hub", "transformers"]
Shape = tuple[int, ...]

_EMBED = "encoder.text_model.embed_tokens"
TIED: dict[str, str] = {
    "decoder.embed_tokens.weight": f"{_EMBED}.weight",
    "decoder.embed_tokens.eoi_embedding": f"{_EMBED}.eoi_embedding",
    "lm_head.out_proj.weight": f"{_EMBED}.weight",
}
"""Names that may be in a checkpoint and must then equal their source, which the model reads instead."""

EYES = ("encoder.vision_tower.", "encoder.multi_modal_projector.")
"""What a model has that can be given pictures."""

_HUB = {  # newer prefix: the Hub's older one
    "encoder.text_model.": "encoder.",
    "encoder.vision_tower.": "encoder.vision_tower.vision_model.",
}
_ENCODER = ("embed_tokens.", "layers.", "norm.", "text_model.", "vision_tower.", "multi_modal_projector.")
"""How the names of an encoder that was saved by itself begin (transformers 5.24 `T5Gemma2Encoder`)."""
_OUTSIDE = ("lm_head.", "score.")  # beside the inner model, so never under `model.`


def shapes(config: Config, head: Head = "lm") -> dict[str, Shape]:
    """Return {canonical name: shape} of every unique parameter of the model's parts, in the order of computation.

    head "classification" adds `score`; the language model's head is the tied embedding and adds nothing.
    """
    found = dict(_walk(Weights, config))
    kept = {"score.": head == "classification", "decoder.": config.has_decoder} | dict.fromkeys(EYES, config.has_vision)
    absent = tuple(start for start, there in kept.items() if not there)
    chosen = {name: shape for name, shape in found.items() if not name.startswith(absent) and _has_it(config, name)}
    return dict(sorted(chosen.items(), key=lambda item: _turn(item[0])))  # a stable sort: by classes, then as declared


def _has_it(config: Config, name: str) -> bool:
    """False for the bias of a text stack's projection where `attention_bias` is false; the tower's always have one."""
    if not name.startswith(("encoder.text_model.layers.", "decoder.layers.")) or not name.endswith(".bias"):
        return True
    return (config.decoder if name.startswith("decoder.") else config.encoder).attention_bias


def _turn(name: str) -> int:
    """The table comes first, then the eyes, then the stacks."""
    return 0 if name.startswith(_EMBED) else 1 if name.startswith(("encoder.vision", "encoder.multi")) else 2


def _walk(kind: Any, config: Config, at: str = "", given: str = "") -> Iterator[tuple[str, Shape]]:
    """Every parameter of a class of weights; `given` is the shape that its holder says of its weight."""
    for name, (inner, numbered, letters) in children(kind).items():
        path = f"{at}.{name}".removeprefix(".")
        if is_array(inner):
            own = {"*": given, "1": given.split(" ")[0]}.get(letters, letters)
            lengths = _lengths(config, path)
            yield path, tuple(math.prod(lengths[letter] for letter in axis.split("*")) for axis in own.split())
        elif numbered:
            for i in range(_layers(config, path)):
                yield from _walk(inner, config, f"{path}.{i}", letters)
        else:
            yield from _walk(inner, config, path, letters)


def _lengths(config: Config, path: str) -> dict[str, int]:
    """Letter of `weights.py` → length, where this parameter is."""
    text, vision = config.decoder if path.startswith("decoder.") else config.encoder, config.vision
    eyes = {"E": vision.hidden_size, "G": vision.intermediate_size, "P": vision.patches_per_side**2}
    heads = {"N": text.num_attention_heads, "K": text.num_key_value_heads, "H": text.head_dim}
    sizes = {"D": text.hidden_size, "F": text.intermediate_size, "V": text.vocab_size, "C": config.num_labels}
    return eyes | heads | sizes | {"c": vision.num_channels, "p": vision.patch_size}


def _layers(config: Config, path: str) -> int:
    """How many layers the stack has whose `layers` this is."""
    stack = {"decoder.layers": config.decoder, "encoder.text_model.layers": config.encoder}.get(path, config.vision)
    return stack.num_hidden_layers


def count(config: Config) -> int:
    """Return the number of unique scalars of the language model; tied tensors count once."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def canonical(key: str) -> str:
    """Return the canonical name of a checkpoint's key in either layout, with or without `model.`; an encoder's own too.

    Idempotent; a key that belongs to no parameter comes back without its prefix, for the loader to refuse.
    """
    name = key
    while name.startswith("model."):
        name = name.removeprefix("model.")
    if name.startswith(_ENCODER):
        name = f"encoder.{name}"
    while name.startswith("encoder.vision_tower.vision_model."):
        name = name.replace("vision_tower.vision_model.", "vision_tower.", 1)
    if name.startswith(("encoder.embed_tokens.", "encoder.layers.", "encoder.norm.")):
        return name.replace("encoder.", "encoder.text_model.", 1)
    return "lm_head.out_proj.weight" if name == "lm_head.weight" else name


def hub_name(name: str, layout: Layout, *, alone: bool = False) -> str:
    """Return the key of a canonical name in a file: "hub" as released, "transformers" as 5.23 writes it.

    alone: the file has an encoder by itself. transformers 5.1 and 5.24 read it as "hub" alone, without the whole
    model's prefix.
    """
    if layout not in ("hub", "transformers"):
        raise ValueError(f"layout is {layout!r}, expected 'hub' or 'transformers'")
    if name.startswith(_OUTSIDE):
        return name
    if layout == "hub" or alone:
        for new, old in _HUB.items():
            if name.startswith(new):
                name = old + name.removeprefix(new)
                break
    return name.removeprefix("encoder.") if alone else f"model.{name}"


def tree(flat: Mapping[str, Any]) -> Weights:
    """Return the weights of {canonical name: array}; those of a classifier where the names have a `score`.

    ValueError for a name that no parameter has, for a parameter that is not there, and for a gap between layers.
    Of weights on demand only the names are looked at here.
    """
    if isinstance(flat, OnDemand):
        tree({name: name for name in flat})
        return cast(Weights, grown(Weights, flat))
    try:
        root: Weights = grown(Weights, flat)
    except KeyError as error:
        raise ValueError(f"the parameter {error.args[0]!r} is missing from the {len(flat)} given") from None
    if strange := sorted(set(flat) - {name for name, _ in arrays(root)}):
        raise ValueError(f"{strange[0]!r} is no parameter of the model ({len(strange)} such names)")
    return root
