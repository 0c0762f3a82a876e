"""Sorts the failing taps of one peer into causes: which kind of operation, in which layers.

Under the local anchor a failing tap had the peer's own inputs, so it fails by itself. Taps of one kind that fail in the
same layers are one mistake: the norms of every layer, RoPE of the full layers only. What a wrong mask lets through is
no mistake of its attention. A value of the wrong shape, or a NaN, is not gone on with: what is wrong in the same way
behind it follows. What a peer that raised did not come to is no mistake at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from t5g2ref.config import Config

Row = tuple[str, int, str]
"""Of a finding under the local anchor: tap, call, status."""

LayerTypes = Mapping[str, Sequence[str]]
"""Stack → the type of each of its layers."""

KINDS = {  # of operation: the last parts of its taps' names
    "embedding": "embed_tokens inputs_embeds embeddings patch_embedding",
    "norm": "norm q_norm k_norm cross_k_norm mm_soft_emb_norm layer_norm1 layer_norm2 post_layernorm "
    "pre_self_attn_layernorm post_self_attn_layernorm pre_feedforward_layernorm post_feedforward_layernorm",
    "RoPE table": "cos sin",
    "RoPE": "q_rope k_rope",
    "projection": "q_proj k_proj v_proj o_proj out_proj cross_k_proj cross_v_proj",
    "cache": "keys values cross_keys cross_values",
    "feed-forward": "gate_proj up_proj product down_proj fc1 fc2",
    "activation": "act_fn activation_fn",
    "residual": "attn_residual output",
}
WHOLE = {"missing": "not shown", "dtype": "number type"}  # statuses that are one cause at all kinds of tap
SPREADING = ("shape", "nan")  # statuses that what comes behind has too
_OF = {last: kind for kind, lasts in KINDS.items() for last in lasts.split()}
_LAYER = re.compile(r"(.+?)(?:\.encoder)?\.layers\.(\d+)(?:\.(.+))?")
ALIKE = 0.5  # of the layers that two kinds of tap fail in, the share that both have: rounding hides some


def layer_types(config: Config) -> LayerTypes:
    """Of a model's text stacks."""
    stacks = {"encoder.text_model": config.encoder.layer_types}
    return stacks | ({"decoder": config.decoder.layer_types} if config.has_decoder else {})


@dataclass(frozen=True)
class Cause:
    """One mistake, as far as the taps tell.

    Args:
        kind: of operation, in words.
        stacks: the stacks that it is in; none outside of them.
        where: its layers, in words; "" where it has none.
        taps: the last parts of the failing taps' names.
        rows: the failing findings, in the order of the computation.
    """

    kind: str
    stacks: tuple[str, ...]
    where: str
    taps: tuple[str, ...]
    rows: tuple[Row, ...] = field(compare=False)

    @property
    def title(self) -> str:
        """All of it in words, without the taps."""
        stacks = " and ".join(_short(stack) for stack in self.stacks)
        return ", ".join(filter(None, (f"{self.kind} of {stacks}" if stacks else self.kind, self.where)))


@dataclass
class _Part:
    """What fails of one kind in one stack, in layers that overlap."""

    kind: str
    stack: str
    layers: frozenset[int]
    rows: list[Row]


def causes(found: Iterable[Row], types: LayerTypes) -> list[Cause]:
    """The causes of the failing findings of one comparison, in the order in which the computation meets them."""
    return of_rows(own(list(found)), types)


def of_rows(rows: Sequence[Row], types: LayerTypes) -> list[Cause]:
    """The same of failing findings that stand for themselves, be they of one comparison or of several."""
    order = {row: place for place, row in enumerate(rows)}
    made = _over_stacks(_joined(_parts(rows)), types)
    return sorted(made, key=lambda cause: min(order[row] for row in cause.rows))


def own(rows: Sequence[Row]) -> list[Row]:
    """The failing findings that are nobody else's consequence."""
    masks = {
        (tap.removesuffix("mask"), call) for tap, call, status in rows if _last(tap) == "mask" and status != "pass"
    }
    first = next((tap for tap, _, status in rows if status in SPREADING), "")

    def follows(tap: str, call: int, status: str) -> bool:
        if status in SPREADING:
            return _place(tap)[2] != _place(first)[2]
        return _last(tap) == "attention" and (tap.removesuffix("attention"), call) in masks

    return [row for row in rows if row[2] != "pass" and not follows(*row)]


def _parts(rows: Iterable[Row]) -> list[_Part]:
    """By stack and kind of operation; kinds of tap whose layers do not overlap enough are apart."""
    kinds: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        stack, _, last = _place(row[0])
        kind = WHOLE.get(row[2]) or _OF.get(last, last)
        kinds.setdefault((stack, kind, "" if row[2] in WHOLE else last), []).append(row)
    parts: list[_Part] = []
    for (stack, kind, _), members in kinds.items():
        layers = frozenset(n for tap, _, _ in members if (n := _place(tap)[1]) is not None)
        like = next((p for p in parts if (p.stack, p.kind) == (stack, kind) and _alike(p.layers, layers)), None)
        if like is None:
            parts.append(_Part(kind, stack, layers, members))
        else:
            like.layers, like.rows = like.layers | layers, [*like.rows, *members]
    return parts


def _joined(parts: list[_Part]) -> list[_Part]:
    """With what fails outside the layers (the last norm) in the part of its kind that fails in most of them."""
    kept = []
    for part in parts:
        like = [p for p in parts if (p.stack, p.kind) == (part.stack, part.kind) and len(p.layers) > 1]
        if part.layers or not part.stack or not like:
            kept.append(part)
        else:
            max(like, key=lambda p: len(p.layers)).rows.extend(part.rows)
    return kept


def _alike(one: frozenset[int], other: frozenset[int]) -> bool:
    return one == other or len(one & other) >= ALIKE * len(one | other) > 0


def _over_stacks(parts: Iterable[_Part], types: LayerTypes) -> list[Cause]:
    """One cause of what is the same in both stacks, in words."""
    groups: dict[tuple[str, str], list[_Part]] = {}
    for part in parts:
        where = _where(part, types)
        apart = "" if not where or where.startswith(("all", "sliding", "full")) else part.stack
        groups.setdefault((part.kind, f"{where}|{apart}"), []).append(part)
    return [_cause(kind, key.split("|")[0], members) for (kind, key), members in groups.items()]


def _cause(kind: str, where: str, members: Sequence[_Part]) -> Cause:
    rows = [row for part in members for row in part.rows]
    lasts = dict.fromkeys(_place(tap)[2] for tap, _, _ in rows)
    stacks = tuple(dict.fromkeys(part.stack for part in members if part.stack))
    return Cause(kind, stacks, where, tuple(lasts), tuple(rows))


def _where(part: _Part, types: LayerTypes) -> str:
    """Its layers in words: all, all of one type, or their numbers."""
    of_stack = types.get(part.stack, ())
    tables = {tap.split(".")[-2] for tap, _, _ in part.rows if _last(tap) in ("cos", "sin")}
    if tables:
        both = len(tables) == len(set(of_stack) or {0, 1})
        return "all layers" if both else f"{sorted(tables)[0].split('_')[0]} layers only"
    if not part.layers:
        return ""
    if part.layers == set(range(len(of_stack))) and len(of_stack) > 1:
        return "all layers"
    for kind in dict.fromkeys(of_stack):
        if part.layers == {i for i, name in enumerate(of_stack) if name == kind} and len(part.layers) > 1:
            return f"{kind.split('_')[0]} layers only"
    return f"layer{'s' * (len(part.layers) > 1)} {', '.join(map(str, sorted(part.layers)))}"


def _place(tap: str) -> tuple[str, int | None, str]:
    """Stack, layer and the last part of a tap's name; a layer's output is "output", its stack's own name is none."""
    at = _LAYER.fullmatch(tap)
    if at is not None:
        return at[1], int(at[2]), at[3].rsplit(".", 1)[-1] if at[3] else "output"
    stack = next((s for s in ("encoder.text_model", "encoder.vision_tower", "decoder") if tap.startswith(f"{s}.")), "")
    return stack, None, _last(tap)


def _last(tap: str) -> str:
    return tap.rsplit(".", 1)[-1]


def _short(stack: str) -> str:
    return {"encoder.text_model": "the encoder", "encoder.vision_tower": "the tower"}.get(stack, f"the {stack}")
