"""Takes values where an MLX encoder calls its parts: each is put behind an object that looks at what goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

Array = Any
STEM = "encoder.text_model"
NORMS = [f"{when}_{what}_layernorm" for what in ("self_attn", "feedforward") for when in ("pre", "post")]
PARTS = {  # of a layer: the tap of its result, then that of its input
    **{name: (name, "attn_residual" if name == "pre_feedforward_layernorm" else "") for name in NORMS},
    "self_attn.q_proj": ("self_attn.q_proj", ""),
    "self_attn.k_proj": ("self_attn.k_proj", ""),
    "self_attn.v_proj": ("self_attn.v_proj", ""),
    "self_attn.q_norm": ("self_attn.q_norm", ""),
    "self_attn.k_norm": ("self_attn.k_norm", ""),
    "self_attn.o_proj": ("self_attn.o_proj", "self_attn.attention"),
    "mlp.gate_proj": ("mlp.gate_proj", ""),
    "mlp.up_proj": ("mlp.up_proj", ""),
    "mlp.down_proj": ("mlp.down_proj", "mlp.product"),
}


class Seen:
    """A module whose calls are looked at; otherwise it is that module."""

    def __init__(self, inner: Any, look: Callable[[tuple[Any, ...], Any], None]) -> None:
        self._inner, self._look = inner, look

    def __call__(self, *given: Any) -> Any:
        out = self._inner(*given)
        self._look(given, out)
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Watch:
    """Looks at the calls of an encoder's parts.

    Args:
        port: "irodori", which gives its layers tables of RoPE, and norms heads that stand before the tokens; or
            "breeze", which has neither.
        layer_types: of each layer.

    Attributes:
        names: every tap that it can take.
    """

    def __init__(self, model: Any, port: str, layer_types: list[str]) -> None:
        self._port, self._taken = port, dict[str, Array]()
        self.names = [f"{STEM}.embed_tokens", f"{STEM}.inputs_embeds", f"{STEM}.norm"]
        if port == "irodori":
            self.names += [
                f"{STEM}.rotary_emb.{kind}.{part}" for kind in dict.fromkeys(layer_types) for part in ("cos", "sin")
            ]
        model.embed_tokens = Seen(model.embed_tokens, self._plain(f"{STEM}.embed_tokens", ""))
        model.norm = Seen(model.norm, self._plain(f"{STEM}.norm", ""))
        model.layers = [self._layer(i, layer, layer_types[i]) for i, layer in enumerate(model.layers)]

    @contextmanager
    def watching(self) -> Iterator[dict[str, Array]]:
        """Take what is called in this block into the dict that it is given."""
        self._taken = {}
        yield self._taken

    def _keep(self, name: str, value: Any) -> None:
        self._taken[name] = _host(value)

    def _plain(self, out: str, given: str) -> Callable[[tuple[Any, ...], Any], None]:
        def look(arguments: tuple[Any, ...], result: Any) -> None:
            self._keep(out, result)
            if given:
                self._keep(given, arguments[0])

        return look

    def _heads(self, out: str) -> Callable[[tuple[Any, ...], Any], None]:
        """Breeze's norms see (B, T, N, H)."""
        return lambda _, result: self._keep(out, result.transpose(0, 2, 1, 3))

    def _layer(self, number: int, layer: Any, kind: str) -> Seen:
        at = f"{STEM}.layers.{number}"
        for path, (out, given) in PARTS.items():
            parent, _, name = path.rpartition(".")
            holder = getattr(layer, parent) if parent else layer
            turned = self._port == "breeze" and name in ("q_norm", "k_norm")
            look = self._heads(f"{at}.{out}") if turned else self._plain(f"{at}.{out}", given and f"{at}.{given}")
            setattr(holder, name, Seen(getattr(holder, name), look))
            self.names += [f"{at}.{out}", *[f"{at}.{given}"] * bool(given)]
        if self._port == "breeze":
            layer.self_attn.rope = Seen(
                layer.self_attn.rope, self._in_turn(f"{at}.self_attn.q_rope", f"{at}.self_attn.k_rope")
            )
            self.names += [f"{at}.self_attn.q_rope", f"{at}.self_attn.k_rope"]
        self.names += [at, f"{at}.self_attn.mask"]
        return Seen(layer, self._whole(at, number, kind))

    def _in_turn(self, first: str, second: str) -> Callable[[tuple[Any, ...], Any], None]:
        def look(_: tuple[Any, ...], result: Any) -> None:
            self._keep(second if first in self._taken else first, result)

        return look

    def _whole(self, at: str, number: int, kind: str) -> Callable[[tuple[Any, ...], Any], None]:
        """A layer: its input where it is the first, the tables and the mask that it is given, its result."""

        def look(given: tuple[Any, ...], result: Any) -> None:
            x, *tables, mask = given
            if number == 0:
                self._keep(f"{STEM}.inputs_embeds", x)
            rows, length, _ = x.shape
            for part, table in zip(("cos", "sin"), tables, strict=False):
                self._taken[f"{STEM}.rotary_emb.{kind}.{part}"] = np.broadcast_to(_host(table), (rows, *table.shape))
            self._taken[f"{at}.self_attn.mask"] = _allowed(mask, (rows, length, length))
            self._keep(at, result)

        return look


def _host(value: Any) -> Array:
    """In float32, which holds the half types."""
    import mlx.core as mx

    return np.array(value.astype(mx.float32))


def _allowed(mask: Any, shape: tuple[int, int, int]) -> Array:
    """bool (B, T, S) of a mask that is None, boolean or additive."""
    if mask is None:
        return np.ones(shape, bool)
    import mlx.core as mx

    found = np.array(mask if mask.dtype == mx.bool_ else mask == 0)
    return np.broadcast_to(found[:, 0] if found.ndim == 4 else found, shape)
