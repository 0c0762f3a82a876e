"""What a rotary embedding is made from: base, factor and, where config.json names one, a scaling of frequencies.

A scaling has the field names of config.json. Its formulas are in `t5g2ref/rope_types.py`. `check_ropes` refuses what
has no value there. Source: transformers 5.24 `modeling_rope_utils.py`, for the names and what may be absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from t5g2ref.config.fields import MAX_SIZE, positive, refuse
from t5g2ref.config.read_ropes import LAYER_TYPES


@dataclass(frozen=True)
class Dynamic:
    """A base that grows with the longest sequence of a call, beyond the stack's `max_position_embeddings`."""

    max_position_embeddings: int
    rope_type: str = field(default="dynamic", init=False)


@dataclass(frozen=True)
class Yarn:
    """Fast planes are kept and slow ones divided by the factor; tables are multiplied by an attention factor."""

    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    rope_type: str = field(default="yarn", init=False)


@dataclass(frozen=True)
class LongRope:
    """A divisor for each plane: one list up to the original length, another beyond it."""

    original_max_position_embeddings: int
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    attention_factor: float | None = None
    rope_type: str = field(default="longrope", init=False)


@dataclass(frozen=True)
class Llama3:
    """Short waves are kept, long ones divided by the factor, and those between are mixed."""

    original_max_position_embeddings: int
    low_freq_factor: float
    high_freq_factor: float
    rope_type: str = field(default="llama3", init=False)


@dataclass(frozen=True)
class Proportional:
    """Only the first planes turn; all the others stand still."""

    partial_rotary_factor: float = 1.0
    rope_type: str = field(default="proportional", init=False)


Scaling = Dynamic | Yarn | LongRope | Llama3 | Proportional
_SCALINGS: dict[str, Any] = {
    "dynamic": Dynamic,
    "yarn": Yarn,
    "longrope": LongRope,
    "llama3": Llama3,
    "proportional": Proportional,
}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one layer type: base `theta`, a factor, and a scaling where there is one.

    Without a scaling the inverse frequencies are divided by `factor`: 1.0 is rope_type "default", any other "linear".
    """

    theta: float
    factor: float = 1.0
    scaling: Scaling | None = None

    @staticmethod
    def of(given: Mapping[str, Any]) -> Rope:
        """The Rope of what `read_ropes` returns for one layer type."""
        scaling = dict(given["scaling"] or {})
        made = _SCALINGS[scaling.pop("rope_type")](**scaling) if scaling else None
        return Rope(given["theta"], given["factor"], made)


@dataclass(frozen=True)
class Ropes(Mapping[str, Rope]):
    """Both layer types' `Rope`, read like a mapping: `config.rope_parameters[layer_type]`."""

    sliding_attention: Rope
    full_attention: Rope

    def __getitem__(self, layer_type: str) -> Rope:
        if layer_type not in LAYER_TYPES:
            raise KeyError(layer_type)
        rope: Rope = getattr(self, layer_type)
        return rope

    def __iter__(self) -> Iterator[str]:
        return iter(LAYER_TYPES)

    def __len__(self) -> int:
        return len(LAYER_TYPES)


def check_ropes(ropes: Mapping[str, Rope], where: str, head_dim: int, longest: int) -> None:
    """ConfigError where a Rope of a stack cannot be computed; `where` is the stack's path."""
    for kind, rope in ropes.items():
        at = f"{where}.rope_parameters.{kind}"
        for name, value in (("rope_theta", rope.theta), ("factor", rope.factor)):
            if not positive(value):
                remedy = "the releases have theta 1e4 / 1e6, factor 8"
                raise refuse(f"{at}.{name}", value, "a finite number above 0", remedy)
        if rope.scaling is not None:
            _check_numbers(rope.scaling, at)
        for wrong, name, found, expected, remedy in _odd(rope, head_dim, longest):
            if wrong:
                raise refuse(f"{at}.{name}", found, expected, remedy)


def _check_numbers(scaling: Scaling, at: str) -> None:
    remedy = f"correct the {scaling.rope_type} RoPE"
    for item in fields(scaling):
        value, path = getattr(scaling, item.name), f"{at}.{item.name}"
        if item.type == "int" and not (type(value) is int and 1 <= value <= MAX_SIZE):
            raise refuse(path, value, "an integer from 1 to 2**31 - 1", remedy)
        if item.name == "partial_rotary_factor":
            if not (type(value) in (int, float) and 0 <= value <= 1):
                raise refuse(path, value, "a number from 0 to 1", remedy)
        elif item.type == "float" or (item.type == "float | None" and value is not None):
            if not positive(value):
                raise refuse(path, value, "a finite number above 0", remedy)
        elif item.type == "tuple[float, ...]" and not (isinstance(value, tuple) and all(map(positive, value))):
            raise refuse(path, value, "finite numbers above 0", remedy)


def _odd(rope: Rope, head_dim: int, longest: int) -> Iterator[tuple[bool, str, object, str, str]]:
    """(whether to refuse, field, found, expected, remedy): what numbers must be beside each other, so that no formula
    divides by 0."""
    own = rope.scaling
    if isinstance(own, Dynamic):
        found, expected = own.max_position_embeddings, f"{longest}, as the stack's"
        yield found != longest, "max_position_embeddings", found, expected, "the base grows from there on"
        yield head_dim < 4, "rope_type", "dynamic", "a head_dim above 2", "an exponent is head_dim / (head_dim - 2)"
    if isinstance(own, Yarn):
        yield rope.theta <= 1, "rope_theta", rope.theta, "above 1 for yarn", "its ramp is divided by log(theta)"
        fast, slow = own.beta_fast, own.beta_slow
        yield fast < slow, "beta_fast", fast, f"at least beta_slow ({slow})", "the ramp goes from fast to slow planes"
    if isinstance(own, LongRope):
        for name, given in (("short_factor", own.short_factor), ("long_factor", own.long_factor)):
            expected = f"{head_dim // 2} numbers, found {len(given)}"
            yield len(given) != head_dim // 2, name, given, expected, "give one for each plane of a head"
        length = own.original_max_position_embeddings
        yield length < 2, "original_max_position_embeddings", length, "above 1", "a logarithm of it is a divisor"
    if isinstance(own, Llama3):
        high, expected = own.high_freq_factor, f"above low_freq_factor ({own.low_freq_factor})"
        yield high <= own.low_freq_factor, "high_freq_factor", high, expected, "their difference is a divisor"
