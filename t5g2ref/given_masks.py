"""Masks at the model's door: of padding, (B, S), or made by the caller, 4-D.

A mask that was made stands in the place of the model's own rules, in all layers or by layer kind. transformers takes
such ones, too, and hands them to its attention unread. Two things that pass there are refused here. Numbers that
neither show nor hide a key are a bias. A row that sees nothing is zeros there, NaN or the mean of all keys, by the
mask's type and the attention that runs; it may not be seen here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from t5g2ref import inputs
from t5g2ref.cache import Cache
from t5g2ref.dtypes import HALF
from t5g2ref.masks import NONE_GIVEN, Given
from t5g2ref.numerics import Array, Numerics

FULL = "full_attention"
UNSEEN = -65504.0  # float16's least number; other types have lower ones, which stand for −∞ as well
Masks = Mapping[str, Given]  # by layer kind; empty where the rules hold


def source_masks(nx: Numerics, value: Any, shape: tuple[int, int], kinds: Sequence[str]) -> tuple[Masks, Array]:
    """Masks of the encoder's layer kinds, if they are given, and bool (B, S): False where a source is padding.

    Shapes: value (B, S) of 1 and 0, or (B or 1, 1, S or 1, S), or a mapping of such; shape is the ids' (B, S). 4-D ones
    are bool, or float of 0 (seen) and −65504 or less (not seen).

    Raises:
        ValueError: a kind without a mask, a wrong shape or type, NaN, a number in between, a row that sees nothing and
            is seen.
    """
    name = "attention_mask"
    given = _by_kind(nx, name, value, (*shape, shape[1]), kinds)
    return given, _seen(nx, name, given, shape) if given else inputs.keep_mask(nx, name, value, shape)


def answer_masks(
    nx: Numerics, own: Any, cross: Any, shape: tuple[int, int], cache: Cache, kinds: Sequence[str]
) -> tuple[Masks, Given | None, Array]:
    """Masks over a call's own keys by layer kind, the one over the encoder's keys, and bool (B, T): False where a new
    position is padding.

    Shapes: own (B, T) of 1 and 0, or (B or 1, 1, T or 1, past + T), or a mapping of such; cross (B or 1, 1, T or 1,
    S_enc); shape is the new ids' (B, T). Of a mapping over the encoder's keys, transformers takes "full_attention" for
    all layers, and so is it here.

    Raises:
        ValueError: as `source_masks`, where a row sees nothing, and where `own` sees a key that a sliding layer has
            dropped.
    """
    name, past = "decoder_attention_mask", cache.length
    given = _by_kind(nx, name, own, (shape[0], shape[1], past + shape[1]), kinds, past)
    crossed = _by_kind(nx, "cross_attention_mask", cross, (*shape, cache.cross_valid.shape[1]), [FULL], past).get(FULL)
    if cross is not None and crossed is None:
        raise ValueError("cross_attention_mask: expected 4 axes; the source's padding is attention_mask's to tell")
    if not given:
        return given, crossed, inputs.keep_mask(nx, name, own, shape)
    _refuse_dropped(given, cache, kinds)
    others = cache.cross_valid[:, None] if crossed is None else crossed.mask
    return given, crossed, _seen(nx, name, given, shape, others)


def refuse_alone(nx: Numerics, own: Any, cross: Any) -> None:
    """ValueError for a 4-D mask of the encoder's without one of the decoder's view of it.

    transformers takes the same one for both, which fits where there are as many decoder positions as encoder ones.
    """
    if cross is None and own is not None and is_made(nx, "attention_mask", own):
        view = "what each decoder position sees of the encoder"
        raise ValueError(f"attention_mask: a 4-D one needs a cross_attention_mask beside it, {view}; found none")


def is_made(nx: Numerics, name: str, value: Any) -> bool:
    """Whether it is in the place of the rules."""
    return isinstance(value, Mapping) or bool(inputs.array(nx, name, value).ndim == 4)


def _by_kind(
    nx: Numerics, name: str, value: Any, shape: tuple[int, int, int], kinds: Sequence[str], first: int = 0
) -> Masks:
    """Layer kind → its mask of `shape` (B, T, S); `first` is the absolute position of the first query."""
    if value is None or not is_made(nx, name, value):
        return NONE_GIVEN
    if not isinstance(value, Mapping):
        return dict.fromkeys(kinds, Given(mask=_checked(nx, name, value, shape), first=first))
    if missing := sorted(set(kinds) - set(value)):
        raise ValueError(
            f"{name}: expected a mask for {', '.join(missing)}, found {', '.join(map(str, value)) or 'none'}"
        )
    checked = {kind: _checked(nx, f"{name}[{kind!r}]", value[kind], shape) for kind in dict.fromkeys(kinds)}
    return {kind: Given(mask=mask, first=first) for kind, mask in checked.items()}


def _checked(nx: Numerics, name: str, value: Any, shape: tuple[int, int, int]) -> Array:
    """bool (B or 1, T, S)."""
    mask, (batch, queries, keys) = inputs.array(nx, name, value), shape
    found = tuple(mask.shape)
    fits = len(found) == 4 and found[0] in (1, batch) and found[1] == 1 and found[2] in (1, queries)
    if not fits or found[3] != keys:
        expected = f"({batch} or 1, 1, {queries} or 1, {keys}): batch, one for all heads, queries, all keys so far"
        raise ValueError(f"{name}: expected shape {expected}; found {found}")
    return nx.xp.broadcast_to(_truth(name, mask)[:, 0], (found[0], queries, keys))


def _truth(name: str, mask: Array) -> Array:
    """bool of the same shape, from bool or from what is added to scores."""
    expected = f"bool, or floats of 0 (seen) and {UNSEEN:.0f} or less (not seen)"
    if mask.dtype == bool:
        return mask
    if mask.dtype in HALF.values():
        mask = mask.astype("float32")  # which every library compares
    if mask.dtype.kind != "f":
        raise ValueError(f"{name}: expected {expected}, found dtype {mask.dtype}")
    wrong = ~((mask == 0) | (mask <= UNSEEN))
    if bool(wrong.any()):
        raise ValueError(f"{name}: expected {expected}, found {float(mask[wrong][0]):g}")
    return mask == 0


def _refuse_dropped(given: Masks, cache: Cache, kinds: Sequence[str]) -> None:
    for kind, start in {(kind, kept.start) for kind, kept in zip(kinds, cache.own, strict=True) if kept.start}:
        if bool(given[kind].mask[:, :, :start].any()):
            raise ValueError(
                f"decoder_attention_mask: it sees keys before position {start} in {kind} layers, whose cache begins "
                "there; give these layers a mask of their own that hides them"
            )


def _seen(nx: Numerics, name: str, given: Masks, shape: tuple[int, int], others: Array | None = None) -> Array:
    """bool (B, T): whether a query of the call sees the call's own position, in some layer kind. What nobody sees is
    padding to whoever comes after.

    Args:
        given: over own keys, of which the call's T are the last.
        others: bool (B or 1, T or 1, S), which keys are seen beside them, in the decoder.

    Raises:
        ValueError: a query sees nothing in some layer kind, so that it has no defined output. The encoder may have such
            ones where nobody sees their position; of the decoder every output is read.
    """
    xp, masks = nx.xp, {id(rule): rule.mask for rule in given.values()}.values()
    has, seen = xp.ones(shape, dtype=bool), xp.zeros(shape, dtype=bool)
    for mask in masks:
        has = has & (mask.any(axis=-1) if others is None else mask.any(axis=-1) | others.any(axis=-1))
    for mask in masks:
        seen = seen | (mask[:, :, -shape[1] :] & has[:, :, None]).any(axis=1)
    blank = nx.backend.host(seen & ~has if others is None else ~has)
    if blank.any():
        row, query = (int(at[0]) for at in blank.nonzero())
        found, remedy = ("", "") if others is not None else (", and others see it", ", or hide it from all")
        raise ValueError(f"{name}: query {query} of row {row} sees no key{found}; let it see one{remedy}")
    return seen
