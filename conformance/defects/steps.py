"""Faults of what one decoder call is given and gives: D74, D76, D81."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from conformance.cases.case import Run
from conformance.defects.injection import Fault, Injection, Setting, Spot, inputs, patched, tapped
from conformance.defects.masks import sources
from conformance.oracle import run_case
from t5g2ref import embedding
from t5g2ref.attention import Keys
from t5g2ref.config import TextConfig
from t5g2ref.masks import Band
from t5g2ref.numerics import Array, Numerics

E, D = "encoder.text_model", "decoder"
MASK = f"{D}.layers.0.self_attn.mask"
TABLE = f"{E}.embed_tokens.weight"


@dataclass(frozen=True)
class _OneRow(Band):
    """Every query of a call has the row of this one."""

    by_distance: ClassVar[bool] = False
    query: int = 0

    def allows(self, queries: Array, keys: Array) -> Array:
        return super().allows(0 * queries + queries[self.query], keys)


def _lengths(query: int) -> Injection:
    """Behind a cache, a mask of one row: so many keys may be seen, by all queries alike."""

    def change(_: Numerics, __: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
        cached = own.kv.start + own.kv.length > 0
        return (replace(own, band=_OneRow(own.band.back, own.band.ahead, query)) if cached else own), cross

    return sources(change)


def _single(change: Callable[[Spot, Array, Array], Array]) -> Callable[[Spot, Array], Array]:
    """Another embedding in calls of one token; the change is also told which rows are the end-of-image id's."""

    def changed(spot: Spot, x: Array) -> Array:
        end = (spot.ids == spot.setting.config.eoi_token_index)[..., None]
        return change(spot, x, end) if x.shape[1] == 1 else x

    return changed


def _unscaled(spot: Spot, x: Array, end: Array) -> Array:
    s, nx = spot.setting, spot.setting.nx
    return nx.xp.where(end, x, nx.array(s.weights[TABLE][spot.ids]))


def _ordinary(spot: Spot, x: Array, end: Array) -> Array:
    s, nx = spot.setting, spot.setting.nx
    rows = nx.mul(nx.array(s.weights[TABLE][spot.ids]), embedding.embed_scale(nx, x.shape[-1]))
    return nx.xp.where(end, rows, x)


def _kept(change: Callable[[int], int | None]) -> Injection:
    """Another number of logits than was asked for."""

    def changed(run: Run, _: Setting) -> Run:
        count = run.logits_to_keep
        return run if count is None else replace(run, logits_to_keep=change(count))

    return inputs(changed)


def _first(_: Any) -> Any:
    return lambda hidden, count: hidden if count is None else hidden[:, :count]


FAULTS = [
    Fault(
        "D74",
        "several tokens behind a cache all have the last one's mask",
        "decoder-split",
        MASK,
        _lengths(-1),
        status="mask",
        call=1,
        variant="last",
    ),
    Fault(
        "D74",
        "several tokens behind a cache all have the first one's mask",
        "decoder-split",
        MASK,
        _lengths(0),
        status="mask",
        call=1,
        variant="first",
    ),
    Fault(
        "D76",
        "the embedding of a call of one token is not scaled",
        "eoi-cached",
        f"{D}.embed_tokens",
        tapped(f"{D}.embed_tokens", _single(_unscaled)),
        call=1,
        variant="scale",
    ),
    Fault(
        "D76",
        "the end-of-image id has an ordinary row in calls of one token",
        "eoi-cached",
        f"{D}.embed_tokens",
        tapped(f"{D}.embed_tokens", _single(_ordinary)),
        call=1,
        variant="eoi",
    ),
    Fault(
        "D81",
        "logits of the first n positions, not of the last",
        "second-source",
        "lm_head",
        patched(run_case, "kept", _first),
        variant="first",
    ),
    *(
        Fault("D81", f"logits of {title}", "second-source", "lm_head", _kept(change), status="shape", variant=variant)
        for variant, title, change in (
            ("few", "one position too few", lambda n: n - 1),
            ("many", "one position too many", lambda n: n + 1),
            ("ignored", "every position", lambda _: None),
        )
    ),
]
