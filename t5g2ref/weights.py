"""The weights as the model holds them: frozen classes whose field names are the checkpoint's own.

A path through them is a parameter's canonical name: `decoder.layers.3.self_attn.q_proj.weight`. Each field says its
shape in letters, once: `params.shapes` walks these classes, and so does whatever builds the tree from a file.

    D width   F feed-forward width   N query heads   K kv heads   H head dimension   V vocabulary   C classes
    of the tower: E width, G feed-forward width, P patches, c colours, p pixels a side of a patch
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeVar, cast, dataclass_transform, get_args, get_type_hints, overload

from t5g2ref.on_demand import OnDemand

Array = Any
T = TypeVar("T")


def of(shape: str = "") -> Any:
    """A field and its shape: of the array itself, or of the weight of the linear layer or norm that it is."""
    return field(metadata={"shape": shape})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(of,))
def part(kind: type[T]) -> type[T]:
    """A class of weights: frozen, equal to itself alone, and shown by its fields' names and not their numbers."""
    kind.__repr__ = _shown  # type: ignore[method-assign]
    return dataclass(frozen=True, eq=False, repr=False)(kind)


def _shown(self: Any) -> str:
    return f"{type(self).__name__}({', '.join(item.name for item in fields(self))})"


@part
class Linear:
    """y = x · weightᵀ, or the factor 1 + weight of an RMSNorm."""

    weight: Array = of("*")


@part
class Biased:
    """The same with a bias, which is as long as the weight's first axis."""

    weight: Array = of("*")
    bias: Array = of("1")


Norm = Linear


@part
class Projection:
    """A linear layer of the attention; only configurations with `attention_bias` give it a bias."""

    weight: Array = of("*")
    bias: Array | None = of("1")


@part
class SelfAttention:
    """One set of projections and norms; the decoder's serves its own keys and the encoder's output alike."""

    q_proj: Projection = of("N*H D")
    k_proj: Projection = of("K*H D")
    v_proj: Projection = of("K*H D")
    q_norm: Norm = of("H")
    k_norm: Norm = of("H")
    o_proj: Projection = of("D N*H")


@part
class Mlp:
    """The gated feed-forward of a text layer."""

    gate_proj: Linear = of("F D")
    up_proj: Linear = of("F D")
    down_proj: Linear = of("D F")


@part
class Layer:
    """A text layer, of the encoder or the decoder: four norms around attention and feed-forward."""

    pre_self_attn_layernorm: Norm = of("D")
    self_attn: SelfAttention = of()
    post_self_attn_layernorm: Norm = of("D")
    pre_feedforward_layernorm: Norm = of("D")
    mlp: Mlp = of()
    post_feedforward_layernorm: Norm = of("D")


@part
class Embedding:
    """The table of both stacks and of the logits, and the end-of-image id's own row."""

    weight: Array = of("V D")
    eoi_embedding: Array = of("D")


@part
class Stack:
    """The decoder."""

    layers: tuple[Layer, ...] = of()
    norm: Norm = of("D")


@part
class TextEncoder:
    """The encoder's text stack, which owns the table."""

    embed_tokens: Embedding = of()
    layers: tuple[Layer, ...] = of()
    norm: Norm = of("D")


@part
class VisionEmbeddings:
    """Patches by a convolution, and a learned position for each."""

    patch_embedding: Biased = of("E c p p")
    position_embedding: Linear = of("P E")


@part
class VisionAttention:
    """Four projections with biases."""

    q_proj: Biased = of("E E")
    k_proj: Biased = of("E E")
    v_proj: Biased = of("E E")
    out_proj: Biased = of("E E")


@part
class VisionMlp:
    """Up and down, with biases."""

    fc1: Biased = of("G E")
    fc2: Biased = of("E G")


@part
class VisionLayer:
    """A pre-norm block of the SigLIP tower."""

    layer_norm1: Biased = of("E")
    self_attn: VisionAttention = of()
    layer_norm2: Biased = of("E")
    mlp: VisionMlp = of()


@part
class VisionEncoder:
    """The tower's blocks."""

    layers: tuple[VisionLayer, ...] = of()


@part
class VisionTower:
    """SigLIP: embeddings, blocks, a last LayerNorm."""

    embeddings: VisionEmbeddings = of()
    encoder: VisionEncoder = of()
    post_layernorm: Biased = of("E")


@part
class Projector:
    """From the tower's width into the text's; its matrix is stored (vision, text), not transposed."""

    mm_soft_emb_norm: Norm = of("E")
    mm_input_projection_weight: Array = of("E D")


@part
class Encoder:
    """Text encoder and eyes, which are None in a model of text alone."""

    text_model: TextEncoder = of()
    vision_tower: VisionTower | None = of()
    multi_modal_projector: Projector | None = of()


@part
class Score:
    """A classifier's head."""

    out_proj: Biased = of("C D")


@part
class Weights:
    """Every parameter of the model. `score` is None in a language model, whose head is the table; `decoder` is None in
    an encoder alone."""

    encoder: Encoder = of()
    decoder: Stack | None = of()
    score: Score | None = of()


@cache
def children(kind: Any) -> dict[str, tuple[Any, bool, str]]:
    """Of a class of weights, by field: the class of what is there, whether it is numbered, its shape in letters."""
    hints, found = get_type_hints(kind), {}
    for item in fields(kind):
        hint, shape = hints[item.name], item.metadata["shape"]
        inner = [arg for arg in get_args(hint) if arg not in (Ellipsis, type(None))]
        found[item.name] = (inner[0] if inner else hint), ... in get_args(hint), shape
    return found


@cache
def optional(kind: Any) -> frozenset[str]:
    """Of a class of weights, the fields that a model may be without."""
    return frozenset(name for name, hint in get_type_hints(kind).items() if type(None) in get_args(hint))


def is_array(kind: type) -> bool:
    """Whether a field of this class is an array and no further class of weights."""
    return kind is Any


def grown(kind: Any, flat: Mapping[str, Array], at: str = "") -> Any:
    """The class's tree of {dotted name: value}, below the name `at`; KeyError for the first name that is not there."""
    made: dict[str, Any] = {}
    for name, (inner, numbered, _) in children(kind).items():
        path = f"{at}.{name}".removeprefix(".")
        if is_array(inner):
            made[name] = flat.get(path) if name in optional(kind) else flat[path]
        elif numbered:
            layers = Layers(inner, flat, path, _count(flat, path))
            made[name] = layers if isinstance(flat, OnDemand) else tuple(layers)
        else:
            there = name not in optional(kind) or _count(flat, path)
            made[name] = grown(inner, flat, path) if there else None
    return kind(**made)


class Layers(Sequence[T]):
    """The layers of a stack, each grown when it is taken: then only the one in use is in memory."""

    def __init__(self, kind: type[T], flat: Mapping[str, Array], path: str, count: int) -> None:
        self._kind, self._flat, self._path, self._count = kind, flat, path, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[T]: ...
    def __getitem__(self, i: int | slice) -> T | Sequence[T]:
        where = range(self._count)[i]
        if isinstance(where, range):
            return [self[place] for place in where]
        return cast(T, grown(self._kind, self._flat, f"{self._path}.{where}"))


def _count(flat: Mapping[str, Array], path: str) -> int:
    """How many children a path has."""
    start = len(path) + 1
    return len({name[start:].partition(".")[0] for name in flat if name.startswith(f"{path}.")})


def arrays(tree: Any, at: str = "") -> Iterator[tuple[str, Array]]:
    """Every (canonical name, array) of a tree of weights."""
    kind: Any = type(tree)
    for name, (inner, numbered, _) in children(kind).items():
        value, path = getattr(tree, name), f"{at}.{name}".removeprefix(".")
        if value is None:
            continue
        if is_array(inner):
            yield path, value
        elif numbered:
            for i, part in enumerate(value):
                yield from arrays(part, f"{path}.{i}")
        else:
            yield from arrays(value, path)
