"""A model as a tree: modules, their parameters, bytes, and FLOPs a token. Layers that are alike are one node."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from t5g2ref import params
from t5g2ref.config import Config, TextConfig

TOKENS = {
    "patch": "a patch",
    "picture": "a picture's token",
    "source": "a source token",
    "output": "an output token",
}
"""Whose FLOPs are counted, by stage."""

COUNTED = (
    "2 for each weight of a matrix that the token meets, and 4 x head_dim for each query head and key; norms, RoPE, "
    "softmax, activations and the look-up in the table are left out"
)
Flops = Counter[str]


@dataclass(frozen=True)
class Node:
    """A module, a parameter, or layers that are alike.

    Args:
        name: its own part of the path.
        count: how many are alike; sizes are those of all together, children those of one.
        flops: {stage of `TOKENS`: FLOPs a token}.
        layers, kind: of a group of layers, its numbers and layer type.
        shape, dtype: of a parameter.
    """

    name: str
    parameters: int
    bytes: int
    flops: Flops
    children: tuple[Node, ...] = ()
    count: int = 1
    layers: tuple[int, ...] = ()
    kind: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = ""

    def as_json(self) -> dict[str, Any]:
        """The node and all below it as JSON has them; what it has not is left out."""
        found = {"name": self.name, "kind": self.kind, "layers": list(self.layers), "dtype": self.dtype}
        sizes = {"parameters": self.parameters, "bytes": self.bytes, "flops": dict(self.flops)}
        shape = {} if self.shape is None else {"shape": list(self.shape)}
        inner = {"children": [child.as_json() for child in self.children]} if self.children else {}
        return {name: value for name, value in found.items() if value} | sizes | shape | inner


@dataclass(frozen=True)
class Anatomy:
    """What the tree is made of.

    Args:
        config: the geometry.
        dtypes: {parameter: stored dtype}.
        length: tokens of the source, and of the output so far, in whose attention FLOPs are counted.
    """

    config: Config
    dtypes: Mapping[str, str]
    length: int
    shapes: Mapping[str, params.Shape] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", params.shapes(self.config))

    def tree(self) -> Node:
        """The whole model."""
        nested: dict[str, Any] = {}
        for name in self.shapes:
            at = nested
            *path, last = name.split(".")
            for part in path:
                at = at.setdefault(part, {})
            at[last] = name
        parts = [self._node(name, inner, name) for name, inner in nested.items()]
        return _joined("model", [*parts, *self._head()])

    def _head(self) -> list[Node]:
        """The tied head, which has no parameters of its own."""
        stack = self.config.decoder
        each = Counter(output=2 * stack.vocab_size * stack.hidden_size)
        return [Node("lm_head (tied to embed_tokens)", 0, 0, each)] if self.config.has_decoder else []

    def _node(self, name: str, inner: Any, path: str) -> Node:
        if isinstance(inner, str):
            return self._parameter(name, inner)
        if name == "layers":
            return _joined(name, self._layers(inner, path))
        parts = [self._node(part, below, f"{path}.{part}") for part, below in inner.items()]
        return _joined(name, [*parts, *self._attention(name, path)])

    def _parameter(self, name: str, full: str) -> Node:
        shape, dtype = self.shapes[full], self.dtypes[full]
        size = math.prod(shape)
        return Node(name, size, size * width(dtype), _met(full, size, len(shape)), shape=shape, dtype=dtype)

    def _layers(self, inner: dict[str, Any], path: str) -> Iterator[Node]:
        """Layers of one type and of the same dtypes as one node each, in the order of their first."""
        kinds = () if path.startswith("encoder.vision") else self._stack(path).layer_types
        groups: dict[tuple[str, ...], list[int]] = {}
        for number in map(int, inner):
            stored = [self.dtypes[name] for name in _leaves(inner[str(number)])]
            groups.setdefault((kinds[number] if kinds else "", *stored), []).append(number)
        for (kind, *_), numbers in groups.items():
            one = self._node(ranges(numbers), inner[str(numbers[0])], f"{path}.{numbers[0]}")
            yield _times(one, tuple(numbers), kind)

    def _stack(self, path: str) -> TextConfig:
        return self.config.decoder if path.startswith("decoder") else self.config.encoder

    def _attention(self, name: str, path: str) -> list[Node]:
        """What scores and weighted sums of values cost in the layer that this `self_attn` is of."""
        if name != "self_attn":
            return []
        if path.startswith("encoder.vision"):
            vision = self.config.vision
            return [_scored(vision.patches_per_side**2, vision.hidden_size, "patch")]
        stack = self._stack(path)
        own = min(self.length, stack.window(stack.layer_types[int(path.split(".")[-2])]) or self.length)
        keys = own + self.length * path.startswith("decoder")
        stage = "output" if path.startswith("decoder") else "source"
        return [_scored(keys, stack.num_attention_heads * stack.head_dim, stage)]


def _leaves(inner: Any) -> Iterator[str]:
    """The names of all parameters below."""
    if isinstance(inner, str):
        yield inner
        return
    for below in inner.values():
        yield from _leaves(below)


def _scored(keys: int, width: int, stage: str) -> Node:
    return Node(f"(attention over {keys} keys)", 0, 0, Counter({stage: 4 * width * keys}))


def _met(name: str, size: int, axes: int) -> Flops:
    """FLOPs of the tokens that meet this parameter: none, unless it is a matrix that multiplies."""
    if axes < 2 or "embed_tokens" in name or "position_embedding" in name:
        return Counter()
    stages = ["source"]
    if name.startswith("encoder.vision"):
        stages = ["patch"]
    elif name.startswith("encoder.multi"):
        stages = ["picture"]
    elif name.startswith("decoder."):  # its keys and values are also made of the encoder's output, once
        stages = ["output", "source"] if ".k_proj." in name or ".v_proj." in name else ["output"]
    return Counter(dict.fromkeys(stages, 2 * size))


def _joined(name: str, parts: Any) -> Node:
    """A node of these children."""
    inner = tuple(parts)
    flops: Flops = sum((part.flops for part in inner), Counter())
    return Node(name, sum(part.parameters for part in inner), sum(part.bytes for part in inner), flops, inner)


def _times(one: Node, numbers: tuple[int, ...], kind: str) -> Node:
    """A group of layers like this one."""
    many = len(numbers)
    flops = Counter({stage: many * each for stage, each in one.flops.items()})
    return Node(one.name, many * one.parameters, many * one.bytes, flops, one.children, many, numbers, kind)


def ranges(numbers: list[int]) -> str:
    """Rising numbers in words: "0-4, 6"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def width(dtype: str) -> int:
    """Bytes of a number of the dtype."""
    return {"float64": 8, "float32": 4}.get(dtype, 2)
