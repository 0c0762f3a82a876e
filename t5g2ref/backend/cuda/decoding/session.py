"""The kernel at work: its memory, and tokens asked of it.

The array library is given, and so is what launches the kernel: CuPy's on a card; the tests have one without.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from t5g2ref.backend.cuda.decoding.plan import BINS, SPLITS, Plan
from t5g2ref.backend.cuda.decoding.weights import Head, Weights
from t5g2ref.backend.whole import Narrowing

Array = Any
Launch = Callable[["Arguments", Plan, bool], None]
_POINTERS = (
    *(
        "weights",
        "head",
        "shares",
        "slots",
        "parts",
        "norms",
        "table",
        "eoi",
        "cosines",
        "sines",
        "own_keys",
        "own_values",
    ),
    *("cross_keys", "cross_values", "own_valid", "cross_valid", "windows", "kinds", "embedded", "ids", "running"),
    *("ends", "active", "sums", "attended", "best", "logits", "hidden", "shown", "met"),
)
_DRAWING = ("uniform", "tally", "log_probs", "drawn")
_STRIDES = ("kind_stride", "token_stride", "row_stride")
_COUNTS = ("length", "room", "source", "tokens", "end_count", "pad", "eoi_id", "with_head")
_NUMBERS = ("embed_scale", "scale", "cap", "final_cap", "eps")
EVERYTHING = 1 << 30  # a window that reaches all


class Arguments(ctypes.Structure):
    """`Arguments` of layout.cuh, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_longlong) for name in _STRIDES),
        *((name, ctypes.c_int) for name in _COUNTS),
        *((name, ctypes.c_float) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in _DRAWING),
        *(
            ("top_p", ctypes.c_double),
            ("top_k", ctypes.c_int),
            ("temperature", ctypes.c_float),
            ("min_p", ctypes.c_float),
        ),
    )


@dataclass(frozen=True)
class Settings:
    """What of the configuration the kernel reads as numbers.

    Args:
        windows: per layer, the keys that a query sees behind it and itself; None for all.
        kinds: per layer, which of the RoPE tables.
        embed_scale, scale, cap, final_cap, eps: as in the model; a cap of 0 is none.
        eoi_id: the id with a row of its own.
    """

    windows: tuple[int | None, ...]
    kinds: tuple[int, ...]
    embed_scale: float
    scale: float
    cap: float
    final_cap: float
    eps: float
    eoi_id: int


@dataclass(frozen=True)
class Ropes:
    """cos and sin, (kinds, tokens, rows or 1, head_dim): of each token to come, for all rows or for each."""

    cosines: Array
    sines: Array


class Session:
    """Rows in the middle of their answers: caches with room for more, and the next ids.

    Args:
        cross: per layer keys and values (B, K, S, H), dense.
        own: per layer (keys, values, position of the first).
        own_valid: bool (B, length); cross_valid: bool (B, S).
        new_valid: bool (B, 1) of the next position; None for no padding.
        head: what logits and ids are made with; None where none are asked for.
        room: own positions that there is room for.
        sampling: how ids are drawn; given where the plan is `sampled`.
    """

    def __init__(
        self,
        xp: Any,
        plan: Plan,
        weights: Weights,
        head: Head | None,
        settings: Settings,
        launch: Launch,
        *,
        cross: Sequence[tuple[Array, Array]],
        own: Sequence[tuple[Array, Array, int]],
        own_valid: Array,
        cross_valid: Array,
        room: int,
        new_valid: Array | None = None,
        sampling: Narrowing | None = None,
    ) -> None:
        self.xp, self.plan, self.launch = xp, plan, launch
        self.length, self.dtype = int(own_valid.shape[1]), weights.norms.dtype
        shape = (2, plan.layers, plan.batch, plan.kv_heads, room, plan.head_dim)
        self.own = xp.zeros(shape, self.dtype)
        for layer, (keys, values, start) in enumerate(own):
            self.own[0, layer, :, :, start : start + keys.shape[2]] = keys
            self.own[1, layer, :, :, start : start + keys.shape[2]] = values
        valid = xp.ones((plan.batch, room), xp.uint8)
        valid[:, : self.length] = own_valid
        if new_valid is not None:
            valid[:, self.length : self.length + 1] = new_valid
        self._held = self._arrays(weights, head, settings)
        self._held |= {
            "own_valid": valid,
            "cross_valid": xp.ascontiguousarray(cross_valid).astype(xp.uint8),
            "cross_keys": self._addresses([xp.ascontiguousarray(keys) for keys, _ in cross], "keys"),
            "cross_values": self._addresses([xp.ascontiguousarray(values) for _, values in cross], "values"),
        }
        self._numbers = {
            "room": room,
            "source": int(cross_valid.shape[1]),
            "eoi_id": settings.eoi_id,
            "embed_scale": settings.embed_scale,
            "scale": settings.scale,
            "cap": settings.cap,
            "final_cap": settings.final_cap,
            "eps": settings.eps,
            **({} if sampling is None else narrowing(sampling, plan.vocabulary)),
        }

    def _arrays(self, weights: Weights, head: Head | None, settings: Settings) -> dict[str, Array]:
        """What the kernel reads and writes that does not depend on the rows, by its name."""
        xp, plan = self.xp, self.plan
        rows = sum(plan.shapes[matrix][0] for matrix in ("qkv", "out", "down"))
        return {
            "weights": weights.blocks,
            "norms": weights.norms,
            "head": None if head is None else head.blocks,
            "table": None if head is None else head.table,
            "eoi": None if head is None else head.eoi,
            "shares": xp.asarray(plan.shares),
            "slots": xp.asarray(plan.owners[0]),
            "parts": xp.asarray(plan.owners[1]),
            "own_keys": self.own[0],
            "own_values": self.own[1],
            "windows": self._ints([EVERYTHING if w is None else w for w in settings.windows]),
            "kinds": self._ints(settings.kinds),
            "active": xp.zeros((plan.batch, plan.blocks("down")[1] * plan.block_columns), self.dtype),
            "sums": xp.zeros(max(plan.slots) * plan.batch * rows, "float32"),
            "attended": xp.zeros(plan.batch * plan.heads * SPLITS * (plan.head_dim + 7), "float32"),
            "best": xp.zeros(plan.batch * plan.processors * 2, "float32"),
            "tally": xp.zeros(2 * plan.batch * plan.processors * BINS, "float64") if plan.sampled else None,
            "drawn": xp.zeros(plan.batch, xp.int32) if plan.sampled else None,
        }

    def _addresses(self, arrays: list[Array], kept: str) -> Array:
        setattr(self, f"_{kept}", arrays)  # the kernel has their addresses alone
        return self.xp.asarray([address(x) for x in arrays], dtype=self.xp.uint64)

    def _numbers_for(self, tokens: int, uniform: Array | None) -> Array | None:
        """What the kernel reads of `uniform`; None where the likeliest ids are taken."""
        if not self.plan.sampled:
            return None
        wanted, found = (tokens, self.plan.batch), None if uniform is None else tuple(uniform.shape)
        if found != wanted:
            raise ValueError(f"uniform: expected {wanted} numbers, one a token and row, found {found}; give them all")
        return self.xp.ascontiguousarray(uniform, dtype="float64")

    def _ints(self, values: Sequence[int]) -> Array:
        return self.xp.asarray(list(values) or [0], dtype=self.xp.int32)

    def run(
        self,
        tokens: int,
        ropes: Ropes,
        *,
        ids: Array | None = None,
        running: Array | None = None,
        ends: Sequence[int] = (),
        pad: int = 0,
        embedded: Array | None = None,
        uniform: Array | None = None,
        with_head: bool = True,
        show: bool = False,
    ) -> Made:
        """The next tokens of every row, at most so many; fewer where all rows have ended, which is the last run then.

        Args:
            ids: (B,) the last ids so far; or `embedded` (B, D), the first token's own row.
            running: bool (B,): rows that have not ended.
            uniform: (tokens, B) float64 in [0, 1), which ids are drawn by; given where the plan is `sampled`.
            with_head: logits and the next ids; without them one token's hidden states are all.
            show: what each layer computes, of one token.

        Raises:
            ValueError: no numbers to draw by, or not one a token and row.
        """
        xp, uniform = self.xp, self._numbers_for(tokens, uniform)
        made = self._room_for(tokens, running, with_head, show)
        if ids is not None:
            made.ids[0] = ids
        cosines, sines = xp.ascontiguousarray(ropes.cosines), xp.ascontiguousarray(ropes.sines)
        ended = self._ints(ends)
        held = {**self._held, **vars(made), "cosines": cosines, "sines": sines, "embedded": embedded, "ends": ended}
        held["uniform"] = uniform
        _, there, rows, width = cosines.shape
        strides = {"kind_stride": there * rows * width, "token_stride": rows * width if there > 1 else 0}
        strides |= {"row_stride": width if rows > 1 else 0}
        counts = {"length": self.length, "tokens": tokens, "end_count": len(ends), "pad": pad, "with_head": with_head}
        arguments = Arguments(**strides, **counts, **self._numbers)
        for name in (*_POINTERS, *_DRAWING):
            setattr(arguments, name, None if held[name] is None else address(held[name]))
        self.launch(arguments, self.plan, show)
        self.length += tokens
        return made

    def _room_for(self, tokens: int, running: Array | None, with_head: bool, show: bool) -> Made:
        """Arrays for what a launch makes."""
        xp, plan = self.xp, self.plan
        return Made(
            ids=xp.zeros((tokens + 1, plan.batch), xp.int32),
            running=xp.ones(plan.batch, xp.int32) if running is None else running.astype(xp.int32),
            hidden=xp.empty((tokens, plan.batch, plan.width), self.dtype),
            logits=xp.empty((tokens, plan.batch, plan.vocabulary), self.dtype) if with_head else None,
            shown=xp.empty((plan.layers, plan.batch * sum(plan.shown.values())), self.dtype) if show else None,
            met=xp.zeros(4, xp.uint32),
            log_probs=xp.empty((tokens, plan.batch), "float64") if plan.sampled else None,
        )


@dataclass(frozen=True)
class Made:
    """What a launch made, on the device.

    Args:
        ids: (tokens + 1, B): what was given, then each next id.
        running: (B,): rows that still have not ended.
        hidden: (tokens, B, D) behind the last norm.
        logits: (tokens, B, V), or None.
        shown: (layers, …), or None; `views` names its parts.
        met: [1] is not 0 where a logit is no finite number, [2] counts the tokens.
        log_probs: (tokens, B) float64 of the ids that were drawn, or None.
    """

    ids: Array
    running: Array
    hidden: Array
    logits: Array | None
    shown: Array | None
    met: Array
    log_probs: Array | None

    def views(self, plan: Plan, layer: int) -> dict[str, Array]:
        """What the layer shows: name → (B, 1, width)."""
        assert self.shown is not None, "asked for with show=True"
        found, at, row = {}, 0, self.shown[layer]
        for name, width in plan.shown.items():
            found[name] = row[at : at + plan.batch * width].reshape(plan.batch, 1, width)
            at += plan.batch * width
        return found


def narrowing(sampling: Narrowing, vocabulary: int) -> dict[str, Any]:
    """What the kernel reads of a sampling; top_k is 0 where all ids stay."""
    top_k = sampling.top_k if sampling.top_k < vocabulary else 0
    return {
        "temperature": float(sampling.temperature),
        "top_k": int(top_k),
        "top_p": float(sampling.top_p),
        "min_p": float(sampling.min_p),
    }


def address(x: Array) -> int:
    """Where an array's elements begin, in the memory that it lives in."""
    return int(x.ctypes.data) if hasattr(x, "ctypes") else int(x.data.ptr)
