"""Every parameter of the model, declared once: its canonical name, its shape, and its names in checkpoints.

Canonical names are transformers 5.23's module paths without the `model.` prefix, so that a weight, a tap and
a peer's module share one name. Loading is a walk over `shapes`; a checkpoint's key is first made `canonical`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from t5g2ref.config import Config, TextConfig, VisionConfig

__all__ = ["TIED", "Head", "Layout", "Node", "Shape", "canonical", "count", "hub_name", "shapes", "tree"]

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

_HUB = {  # newer prefix: the Hub's older one
    "encoder.text_model.": "encoder.",
    "encoder.vision_tower.": "encoder.vision_tower.vision_model.",
}
_OUTSIDE = ("lm_head.", "score.")  # beside the inner model, so never under `model.`


def shapes(config: Config, head: Head = "lm") -> dict[str, Shape]:
    """Return {canonical name: shape} of every unique parameter, in the order of the computation.

    head "classification" adds `score`; the language model's head is the tied embedding and adds nothing.
    """
    vocab, width, labels = config.encoder.vocab_size, config.encoder.hidden_size, config.num_labels
    out: dict[str, Shape] = {f"{_EMBED}.weight": (vocab, width), f"{_EMBED}.eoi_embedding": (width,)}
    out |= _vision(config.vision, "encoder.vision_tower")
    out["encoder.multi_modal_projector.mm_soft_emb_norm.weight"] = (config.vision.hidden_size,)
    # stored (vision, text): the one matrix that is not transposed
    out["encoder.multi_modal_projector.mm_input_projection_weight"] = (config.vision.hidden_size, width)
    out |= _text(config.encoder, "encoder.text_model") | _text(config.decoder, "decoder")
    if head == "classification":
        out |= {"score.out_proj.weight": (labels, width), "score.out_proj.bias": (labels,)}
    return out


def count(config: Config) -> int:
    """Return the number of unique scalars of the language model; tied tensors count once."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def _text(text: TextConfig, where: str) -> dict[str, Shape]:
    layer = _text_layer(text)
    layers = {f"{where}.layers.{i}.{k}": s for i in range(text.num_hidden_layers) for k, s in layer.items()}
    return layers | {f"{where}.norm.weight": (text.hidden_size,)}


def _text_layer(text: TextConfig) -> dict[str, Shape]:
    """One layer; the decoder's attends to itself and to the encoder with one set of projections."""
    width, ffn, head = text.hidden_size, text.intermediate_size, text.head_dim
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    return {
        "pre_self_attn_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
        "self_attn.o_proj.weight": (width, queries),
        "post_self_attn_layernorm.weight": (width,),
        "pre_feedforward_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (ffn, width),
        "mlp.up_proj.weight": (ffn, width),
        "mlp.down_proj.weight": (width, ffn),
        "post_feedforward_layernorm.weight": (width,),
    }


def _vision(vision: VisionConfig, where: str) -> dict[str, Shape]:
    width, patch = vision.hidden_size, vision.patch_size
    out: dict[str, Shape] = {
        f"{where}.embeddings.patch_embedding.weight": (width, vision.num_channels, patch, patch),
        f"{where}.embeddings.patch_embedding.bias": (width,),
        f"{where}.embeddings.position_embedding.weight": (vision.patches_per_side**2, width),
    }
    layer = _vision_layer(width, vision.intermediate_size)
    for i in range(vision.num_hidden_layers):
        out |= {f"{where}.encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    return out | _pair(f"{where}.post_layernorm", (width,))


def _vision_layer(width: int, ffn: int) -> dict[str, Shape]:
    out = _pair("layer_norm1", (width,))
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        out |= _pair(f"self_attn.{name}", (width, width))
    return out | _pair("layer_norm2", (width,)) | _pair("mlp.fc1", (ffn, width)) | _pair("mlp.fc2", (width, ffn))


def _pair(name: str, weight: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def canonical(key: str) -> str:
    """Return the canonical name of a checkpoint's key in either layout, with or without `model.`.

    Idempotent; a key that belongs to no parameter comes back without its prefix, for the loader to refuse.
    """
    name = key
    while name.startswith("model."):
        name = name.removeprefix("model.")
    while name.startswith("encoder.vision_tower.vision_model."):
        name = name.replace("vision_tower.vision_model.", "vision_tower.", 1)
    if name.startswith(("encoder.embed_tokens.", "encoder.layers.", "encoder.norm.")):
        return name.replace("encoder.", "encoder.text_model.", 1)
    return name


def hub_name(name: str, layout: Layout) -> str:
    """Return the key of a canonical name in a file: "hub" as released, "transformers" as 5.23 writes it."""
    if layout not in ("hub", "transformers"):
        raise ValueError(f"layout is {layout!r}, expected 'hub' or 'transformers'")
    if name.startswith(_OUTSIDE):
        return name
    if layout == "hub":
        for new, old in _HUB.items():
            if name.startswith(new):
                name = old + name.removeprefix(new)
                break
    return f"model.{name}"


class Node:
    """A read-only tree of parameters: `node.encoder.text_model.layers[3].self_attn.q_proj.weight`."""

    __slots__ = ("_children", "_path")
    _children: dict[str, Any]
    _path: str

    def __init__(self, children: Mapping[str, Any], path: str = "") -> None:
        object.__setattr__(self, "_children", dict(children))
        object.__setattr__(self, "_path", path)

    def __getattr__(self, name: str) -> Any:
        # Names with two underscores are Python's own probes (copy, pickle), which must not recurse here.
        children = {} if name.startswith("__") else object.__getattribute__(self, "_children")
        if name in children:
            return children[name]
        full = f"{self._path}.{name}".removeprefix(".")
        raise AttributeError(f"no parameter {full!r}; {self._path or 'the root'} has {', '.join(self._children)}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self._path or 'the root'}.{name} cannot be set: a parameter tree is read-only")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{self._path or 'the root'}.{name} cannot be deleted: a parameter tree is read-only")

    def __dir__(self) -> list[str]:
        return [*self._children]

    def __iter__(self) -> Iterator[str]:
        """The names of the children, in order."""
        return iter(self._children)

    def __repr__(self) -> str:
        return f"Node({self._path or 'root'}: {', '.join(self._children)})"

    def __reduce__(self) -> tuple[type[Node], tuple[dict[str, Any], str]]:
        return Node, (self._children, self._path)  # copy and pickle cannot set attributes here


def tree(flat: Mapping[str, Any]) -> Node:
    """Return the attribute tree of {dotted name: value}; children named 0, 1, ... n - 1 become a tuple.

    ValueError where a name is both a value and a prefix of another, or where numbered children leave a gap.
    """
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        at = nested
        for part in parents:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise ValueError(f"{name!r} lies under {part!r}, which is itself a value")
        if leaf in at:
            raise ValueError(f"{name!r} is both a value and a prefix of other names")
        at[leaf] = value
    return Node({name: _grow(child, name) for name, child in nested.items()})


def _grow(value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        return value
    children = {name: _grow(child, f"{path}.{name}") for name, child in value.items()}
    if not any(name.isdigit() for name in children):
        return Node(children, path)
    order = [str(i) for i in range(len(children))]
    if set(order) != set(children):
        raise ValueError(f"{path} has children {', '.join(children)}; numbered children must be 0 to n - 1")
    return tuple(children[name] for name in order)
