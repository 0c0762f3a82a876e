"""Faults that begin at a length: tiles, sums and counters past 64, 128, 256 and 1024 keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conformance.defects.attention import Sources, attended
from conformance.defects.injection import Fault, Injection, operation, patched
from t5g2ref import attention
from t5g2ref import inputs as door
from t5g2ref.attention import Keys
from t5g2ref.numerics import Array, Numerics

E, D = "encoder.text_model", "decoder"
TILE = 64
OWN, CROSS = 0, 1


def _first(keys: Keys, count: int) -> Keys:
    kv, valid = keys.kv, keys.valid
    kv = replace(kv, keys=kv.keys[:, :, :count], values=kv.values[:, :, :count])
    return replace(keys, kv=kv, valid=None if valid is None else valid[:, :count])


def _dropped(count: int, stack: int, half: int) -> Injection:
    """Keys behind the first so many are not read in full layers; `stack`: how many groups of keys it has."""

    def attend(true: Any, nx: Numerics, q: Array, sources: Sources, start: int, **how: Any) -> Array:
        if len(sources) == stack:
            sources = [
                _first(s, count) if i == half and s.band.back is None and s.kv.length > count else s
                for i, s in enumerate(sources)
            ]
        return true(nx, q, sources, first_query=start, **how)

    return attended(attend)


def _half_sums(true: Any) -> Any:
    """What is behind 256 keys is summed in float16."""

    def weighed(nx: Numerics, weights: Array, v: Array) -> Array:
        if weights.shape[-1] <= 256:
            return true(nx, weights, v)
        head = true(nx, weights[..., :256], v[:, :, :256])
        tail = nx.wide(weights[..., 256:]), nx.wide(v[:, :, 256:])
        return nx.cast(nx.wide(head) + nx.xp.matmul(*tail).astype(np.float16).astype(head.dtype))

    return weighed


def _running_sums(true: Any) -> Any:
    """The sum over values is kept in the run's own type from a tile of keys to the next."""

    def weighed(nx: Numerics, weights: Array, v: Array) -> Array:
        total = true(nx, weights[..., :TILE], v[:, :, :TILE])
        for first in range(TILE, weights.shape[-1], TILE):
            tile = slice(first, first + TILE)
            total = nx.cast(nx.wide(total) + nx.xp.matmul(nx.wide(weights[..., tile]), nx.wide(v[:, :, tile])))
        return total

    return weighed


def _counted(period: int, first: int) -> Injection:
    """Positions that wrap: from `first` up, so many in all."""

    def wrap(true: Any) -> Any:
        def positions(nx: Numerics, *rest: Any) -> Any:
            right = true(nx, *rest)
            wrapped = (np.arange(nx.backend.host(right).max() + 1) - first) % period + first
            return nx.xp.asarray(wrapped)[right]

        return positions

    return patched(door, "positions", wrap)


Unmasked = Callable[[Numerics, Array], Array]


def _allowing(change: Unmasked) -> Injection:
    """Another mask inside the softmax alone: what is shown of it stays right."""

    def twin(
        definition: Any, nx: Numerics, q: Array, k: Array, scale: float, cap: Any, allowed: Any, grouped: Any
    ) -> Array:
        allowed = allowed if allowed is None or k.shape[2] <= TILE else change(nx, allowed)
        return definition(nx, q, k, scale, cap, allowed, grouped)

    return operation(attention_weights=twin)


def _last_tile_open(nx: Numerics, allowed: Array) -> Array:
    """The last tile is not full, and its mask is left out; rows that see nothing stay so."""
    keys = allowed.shape[-1]
    return allowed | (nx.xp.arange(keys) >= keys // TILE * TILE) & allowed.any(axis=-1, keepdims=True)


def _first_tile_hidden(broken: Callable[[Numerics, Array], Array]) -> Injection:
    """A running softmax whose first tile is all hidden: another weight for that tile's keys."""

    def twin(
        definition: Any, nx: Numerics, q: Array, k: Array, scale: float, cap: Any, allowed: Any, grouped: Any
    ) -> Array:
        weights = definition(nx, q, k, scale, cap, allowed, grouped)
        if allowed is None or k.shape[2] <= TILE:
            return weights
        seen = allowed[..., :TILE].any(axis=-1, keepdims=True)
        hidden = (seen == False) & allowed.any(axis=-1, keepdims=True)  # noqa: E712  an array's
        return nx.xp.where(hidden, broken(nx, weights), weights)

    return operation(attention_weights=twin)


def _not_a_number(nx: Numerics, weights: Array) -> Array:
    return nx.xp.full_like(weights, np.nan)


def _uniform(nx: Numerics, weights: Array) -> Array:
    """exp(lowest − lowest) is 1 for each hidden key of the tile, and is never taken back."""
    tile = nx.xp.arange(weights.shape[-1]) < TILE
    return nx.cast((weights + tile) / (1 + TILE)).astype(weights.dtype)


_DROPPED = [
    ("encoder 128", 128, 1, OWN, ("long-rows", f"{E}.layers.1.self_attn.attention", 0)),
    ("encoder 1024", 1024, 1, OWN, ("long-rows", f"{E}.layers.1.self_attn.attention", 0)),
    ("decoder 64", 64, 2, OWN, ("long-rows", f"{D}.layers.2.self_attn.attention", 1)),
    ("decoder 256", 256, 2, OWN, ("long-answer", f"{D}.layers.2.self_attn.attention", 0)),
    ("decoder 1024", 1024, 2, OWN, ("long-answer", f"{D}.layers.2.self_attn.attention", 0)),
    ("cross 128", 128, 2, CROSS, ("long-rows", f"{D}.layers.0.self_attn.attention", 0)),
    ("cross 1024", 1024, 2, CROSS, ("long-rows", f"{D}.layers.0.self_attn.attention", 0)),
]
FAULTS = [
    Fault(
        "D79", f"keys behind {count} are dropped", case, tap, _dropped(count, stack, half), variant=variant, call=call
    )
    for variant, count, stack, half, (case, tap, call) in _DROPPED
]
FAULTS += [
    Fault(
        "D79",
        "values behind 256 keys are summed in float16",
        "long-rows",
        f"{E}.layers.?.self_attn.attention",
        patched(attention, "_weighed", _half_sums),
        variant="float16 sums",
        named=False,  # it hangs on roundings
    ),
    Fault(
        "D79",
        "sums over values are kept in bfloat16 from tile to tile",
        "long-answer",
        f"{D}.layers.0.self_attn.attention",  # the five tiles of the encoder's rows are within what is legal
        patched(attention, "_weighed", _running_sums),
        lane="bfloat16",
        variant="running sums",
        named=False,  # it hangs on roundings
    ),
    Fault(
        "D79",
        "positions are counted in int8",
        "long-rows",
        f"{E}.rotary_emb.full_attention.cos",
        _counted(256, -128),
        variant="signed",
    ),
    Fault(
        "D79",
        "positions are counted in uint8",
        "long-rows",
        f"{E}.rotary_emb.full_attention.cos",
        _counted(256, 0),
        variant="unsigned",
    ),
    Fault(
        "D79",
        "the last tile of a row is left unmasked where it is not full",
        "long-rows",
        f"{E}.layers.0.self_attn.attention",
        _allowing(_last_tile_open),
        variant="open tile",
    ),
    Fault(
        "D73",
        "a row whose first tile is padding is NaN",
        "long-rows",
        f"{E}.layers.0.self_attn.attention",
        _first_tile_hidden(_not_a_number),
        status="nan",
        variant="first tile",
    ),
    Fault(
        "D73",
        "a row whose first tile is padding sees all of it",
        "long-rows",
        f"{E}.layers.0.self_attn.attention",
        _first_tile_hidden(_uniform),
        variant="sees all",
    ),
]
