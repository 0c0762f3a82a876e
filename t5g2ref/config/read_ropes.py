"""Reading RoPE from a text stack of `config.json`: `rope_parameters`, or the older `rope_scaling` and thetas.

The types are those that transformers 5.24 computes for this model (`ROPE_INIT_FUNCTIONS`, and "default"). A field of
another type is refused, and so is one that transformers would ignore to other numbers.
"""

from __future__ import annotations

from typing import Any

from t5g2ref.config.fields import Section, refuse, short

LAYER_TYPES = ("sliding_attention", "full_attention")
THETAS = {"sliding_attention": 10_000.0, "full_attention": 1_000_000.0}
LENGTH = "original_max_position_embeddings"
_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor")
_OWN = {  # of each type, beside the common ones
    "default": (),
    "linear": (),
    "dynamic": (),
    "yarn": (LENGTH, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": (LENGTH, "attention_factor", "short_factor", "long_factor"),
    "llama3": (LENGTH, "low_freq_factor", "high_freq_factor"),
    "proportional": (),
}
TYPES = tuple(_OWN)


def read_ropes(part: Section, longest: int) -> dict[str, dict[str, Any]]:
    """{layer type: {theta, factor, scaling}}; like transformers, `rope_scaling` goes to full layers and overrides."""
    _whole_rotary(part)
    rope = part.section("rope_parameters") if part.has("rope_parameters") else Section({}, part.where)
    for name in rope.raw:
        if name not in LAYER_TYPES:
            raise refuse(rope.path(name), rope.raw[name], "no such field", "key it by " + " and ".join(LAYER_TYPES))
    full = rope.section("full_attention") if rope.has("full_attention") else Section({}, rope.where)
    if part.has("rope_scaling"):
        scaling = part.section("rope_scaling")
        full = Section({**full.raw, **scaling.raw}, scaling.where)
    sliding = rope.section("sliding_attention") if rope.has("sliding_attention") else Section({}, rope.where)
    thetas = {"sliding_attention": "rope_local_base_freq", "full_attention": "rope_theta"}
    return {
        kind: _rope(given, part.number(thetas[kind], THETAS[kind]), longest)
        for kind, given in (("sliding_attention", sliding), ("full_attention", full))
    }


def _rope(part: Section, theta: float, longest: int) -> dict[str, Any]:
    kind = _type(part)
    for name in part.raw:
        if name not in (*_COMMON, *_OWN[kind]):
            raise refuse(part.path(name), part.raw[name], "no such field", f"{kind} RoPE does not read it")
    if kind != "proportional":
        _whole_rotary(part)
    scaling = _scaling(part, kind, longest)
    return {"theta": part.number("rope_theta", theta), "factor": _factor(part, kind, scaling, longest)} | {
        "scaling": scaling and {"rope_type": kind, **scaling}
    }


def _type(part: Section) -> str:
    spelled = "type" if "type" in part.raw and "rope_type" not in part.raw else "rope_type"
    kind = part.raw.get(spelled, "default")
    if "type" in part.raw and part.raw["type"] != kind:
        raise refuse(part.path("type"), part.raw["type"], f"{short(kind)}, as rope_type", "make the two agree")
    if not isinstance(kind, str) or kind not in TYPES:
        remedy = "transformers computes no other for this model"
        raise refuse(part.path(spelled), kind, " or ".join(map(repr, TYPES)), remedy)
    return kind


def _factor(part: Section, kind: str, scaling: dict[str, Any] | None, longest: int) -> float:
    """The factor. yarn may have null and longrope none: it is then how much longer rows may be than they were."""
    if kind == "default":
        return 1.0  # a default's is ignored, as transformers does: noted
    if kind == "proportional":
        return part.number("factor", 1.0)
    free = kind == "longrope" or (kind == "yarn" and "factor" in part.raw)
    if scaling and free and not part.has("factor"):
        return longest / float(max(scaling[LENGTH], 1))  # what is below 1 is refused by its own name
    return part.number("factor")


def _scaling(part: Section, kind: str, longest: int) -> dict[str, Any] | None:
    """The fields of a scaling but its type, None for default and linear. An original length that is absent is the
    stack's `max_position_embeddings`, as transformers fills it in."""
    if kind in ("default", "linear"):
        return None
    if kind == "dynamic":
        return {"max_position_embeddings": longest}
    if kind == "proportional":
        return {"partial_rotary_factor": part.number("partial_rotary_factor", 1.0)}
    found: dict[str, Any] = {LENGTH: part.integer(LENGTH, longest)}
    if kind == "llama3":
        return found | {name: part.number(name) for name in ("low_freq_factor", "high_freq_factor")}
    if kind == "longrope":
        found |= {name: _numbers(part, name) for name in ("short_factor", "long_factor")}
    if part.raw.get("truncate", True) is not True:
        remedy = "transformers 5.24 looks for it outside of the layer type, and rounds all the same"
        raise refuse(part.path("truncate"), part.raw["truncate"], "true", remedy)
    names = ("attention_factor", *(name for name in _OWN["yarn"] if kind == "yarn" and name[0] in "bm"))
    return found | {name: part.number(name) for name in names if part.has(name)}


def _numbers(part: Section, name: str) -> tuple[float, ...]:
    given = part.raw.get(name)
    if not isinstance(given, list | tuple):
        raise refuse(part.path(name), given, "a list of numbers", "give one for each plane of a head")
    return tuple(Section({f"{name}[{i}]": v}, part.where).number(f"{name}[{i}]") for i, v in enumerate(given))


def _whole_rotary(part: Section) -> None:
    factor = part.number("partial_rotary_factor", 1.0)
    if factor != 1.0:
        raise refuse(part.path("partial_rotary_factor"), factor, "1.0", "partial rotary is 'proportional' RoPE's alone")
