"""Probes: inputs in which one thing is changed, and what may move then by the rules of attention.

A model's masks can be seen from outside: change one token and see which positions' outputs have other bits. Every input
of a probe has the shapes of its base. So an output that depends on nothing that was changed keeps its bits. An output
that moved and must not is proof of a leak. One that stayed and had to move is blind.

The rules are written here a second time, as plain matrices and from the description of the model. If the reference's
own masks were used, both could be wrong together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.cases import catalogue as cases
from conformance.cases.case import Case, Run
from conformance.cases.ingredients import Kit
from t5g2ref.config import Config, TextConfig

Array = np.ndarray[Any, Any]

ALL_POSITIONS = 64  # up to so many, every position is changed; beyond, a few
BATCH_TOKENS = 4096  # up to so many, all changes are rows of one batch; beyond, each is a run of its own
LONG = 1300  # positions at most, to show every sliding layer before the first full one
SMALL_IMAGE = 224  # pixels a side; larger pictures cost too much for a probe


# The rules. Row: query, column: key.


def encoder_sees(window: int | None, length: int) -> Array:
    """bool (S, S): W keys in all; if W is even, there is one more to the right. A full layer has no window: None."""
    back = np.arange(length)[:, None] - np.arange(length)[None, :]
    if window is None:
        return np.ones((length, length), bool)
    return ((back >= 0) & (back < (window + 1) // 2)) | ((back < 0) & (-back < window // 2 + 1))


def decoder_sees(window: int | None, length: int) -> Array:
    """bool (T, T), the own half: causal, and the last W keys in a sliding layer. The cross half has no window."""
    back = np.arange(length)[:, None] - np.arange(length)[None, :]
    return (back >= 0) & (back < (length if window is None else window))


def windows(config: TextConfig) -> list[int | None]:
    """Each layer's window; None for a full layer."""
    return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]


@dataclass(frozen=True)
class Stage:
    """One place of a stack that can be shown, and how a change gets there from the place before.

    Args:
        tap: its name.
        stack: "encoder" or "decoder".
        width: how many numbers a position has here.
        sees: bool (T, S) of a layer's attention over its own stack; None where each position stands for itself.
        images: whether a changed picture comes in here.
        keep: how many of the last positions are shown; None for all.
    """

    tap: str
    stack: str
    width: int
    sees: Array | None = None
    images: bool = False
    keep: int | None = None

    def after(self, before: Array, valid: Array, crossed: Array) -> Array:
        """bool (B, T): what moves here.

        Shapes: before bool (B, T), what moved at the place before; valid bool (B, T), which positions are keys;
        crossed bool (B,), whether anything moved that the cross half sees.
        """
        if self.sees is None:
            return before
        reached = (before & valid).astype(np.float32) @ self.sees.T.astype(np.float32) > 0
        return before | reached | crossed[:, None]  # a position keeps its own change: the residual


def stages(config: Config, run: Run) -> Iterator[Stage]:
    """The places that a probe looks at, in the order of the computation."""
    for stack, module, part, rule, ids in (
        ("encoder", "encoder.text_model", config.encoder, encoder_sees, run.input_ids),
        ("decoder", "decoder", config.decoder, decoder_sees, run.decoder_input_ids),
    ):
        width, length = part.hidden_size, ids.shape[1]
        drawn = {window: rule(window, length) for window in set(windows(part))}
        yield Stage(f"{module}.embed_tokens", stack, width)
        yield Stage(f"{module}.inputs_embeds", stack, width, images=stack == "encoder")
        for i, window in enumerate(windows(part)):
            yield Stage(f"{module}.layers.{i}", stack, width, drawn[window])
        yield Stage(f"{module}.norm", stack, width)
        if not config.has_decoder:
            return
    yield Stage("logits", "decoder", config.decoder.vocab_size, keep=run.logits_to_keep)


# The probes


@dataclass(frozen=True)
class Change:
    """What one run changes in its base.

    Args:
        encoder, decoder: bool (B, S) and (B, T): the ids that are changed.
        images: bool (B, S): the positions of a changed picture.
        rows: for each row, what was changed there, in words; "" for nothing.
    """

    encoder: Array
    decoder: Array
    images: Array
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """A base input (the case's first run), and the same with one thing changed (each later run).

    Args:
        changes: one for each run after the first.
        what: what was done, in words, for the report.
        status: of an output that moves without a cause: "mask", or "exact" where the change means nothing.
    """

    case: Case
    changes: tuple[Change, ...]
    what: str
    status: str = "mask"


def probes(config: Config) -> list[Probe]:
    """Every probe for this geometry."""
    kit = Kit(config, np.random.default_rng([20251212, 1 << 16]))
    seeing = [_pictures(kit)] if config.has_vision and config.vision.image_size <= SMALL_IMAGE else []
    if config.has_decoder:
        made = [_tokens(kit, "encoder"), _tokens(kit, "decoder"), _padding(kit), _cross(kit), _positions(kit)]
        return [*made, *seeing]
    return [_of_encoder(p) for p in (_tokens(kit, "encoder"), _padding(kit), _positions(kit), *seeing)]


def _of_encoder(probe: Probe) -> Probe:
    changes = tuple(replace(change, decoder=change.decoder[:, :0]) for change in probe.changes)
    return replace(probe, case=probe.case.of_encoder(), changes=changes)


def _length(part: TextConfig, reach: int) -> int:
    """How many positions show every window before the first full layer. Behind that, all reach all."""
    kinds = windows(part)
    depth = kinds.index(None) if None in kinds else len(kinds)
    return max(part.sliding_window, min(depth * reach, LONG)) + 3


def chosen(length: int, back: int) -> list[int]:
    """The positions to change: all of a short row, five of a long one.

    The five are both ends, the middle, the farthest key that the last query sees, and the one beyond it. That key is
    `back` positions behind the query. Every position's output is looked at.
    """
    if length <= ALL_POSITIONS:
        return list(range(length))
    last = length - 1
    return sorted({0, length // 2, last - back - 1, last - back, last} & set(range(length)))


def _tokens(k: Kit, stack: str) -> Probe:
    """One token changed at a time. A small probe is one batch, in which each row is compared with itself."""
    part = k.config.encoder if stack == "encoder" else k.config.decoder
    w = part.sliding_window
    back, ahead = ((w + 1) // 2 - 1, w // 2) if stack == "encoder" else (w - 1, 0)
    length = _length(part, max(back, ahead))
    at = chosen(length, back)
    rows = len(at) + 1 if (len(at) + 1) * length <= BATCH_TOKENS else 1  # one more: a row without a change
    ids, fixed = k.ordinary(1, length), k.ordinary(1, 6).repeat(rows, 0)
    others, base = k.others(ids)[0], ids.repeat(rows, 0)
    keep = k.keep(rows * (length if stack == "decoder" else fixed.shape[1]))
    changed = (
        [np.zeros((rows, length), bool)] if stack == "encoder" else []
    )  # without a change: is the peer steady at all?
    for first in range(0, len(at), rows):
        change = np.zeros((rows, length), bool)
        for row, position in enumerate(at[first : first + rows]):
            change[row, position] = True
        changed.append(change)
    made = [base, *(np.where(change, others, base) for change in changed)]
    runs = [
        Run(x, fixed, logits_to_keep=keep) if stack == "encoder" else Run(fixed, x, logits_to_keep=keep) for x in made
    ]
    none = np.zeros(fixed.shape, bool)
    changes = []
    for change in changed:
        words = tuple(f"{stack} token {int(row.argmax())}" if row.any() else "" for row in change)
        encoder, decoder = (change, none) if stack == "encoder" else (none, change)
        changes.append(Change(encoder, decoder, np.zeros_like(encoder), words))
    share = "every one" if len(at) == length else f"{len(at)} ({', '.join(map(str, at))})"
    what = f"{share} of {length} {stack} tokens changed, one at a time"
    return Probe(Case(f"probe-{stack}", what, tuple(runs)), tuple(changes), what)


def _ragged(k: Kit, length: int, valid: int) -> tuple[Array, Array]:
    """Two rows of `valid` tokens each, padded right and left: ids and mask (2, length)."""
    mask = np.zeros((2, length), np.int64)
    mask[0, :valid] = mask[1, length - valid :] = 1
    return np.where(mask == 1, k.ordinary(2, length), k.config.decoder.pad_token_id), mask


_SIDES = ("right", "left")


def _padding(k: Kit) -> Probe:
    """The ids under the padding of both stacks changed, with a cache: nothing that is valid may move."""
    ids, mask = _ragged(k, 12, 5)
    decoder_ids, decoder_mask = _ragged(k, 8, 3)
    base = Run(ids, decoder_ids, mask, decoder_attention_mask=decoder_mask, splits=(5, 1, 2))
    change = Change(mask == 0, decoder_mask == 0, np.zeros(ids.shape, bool), tuple(f"the {s} padding" for s in _SIDES))
    other = replace(
        base,
        input_ids=np.where(mask == 0, k.others(ids), ids),
        decoder_input_ids=np.where(decoder_mask == 0, k.others(decoder_ids), decoder_ids),
    )
    what = "ids under the padding changed, right and left, cached decoding"
    return Probe(Case("probe-padding", what, (base, other)), (change,), what)


def _cross(k: Kit) -> Probe:
    """The only valid token of a long source changed, far from everything: the decoder sees it and nothing else.

    A window, or a cut, over the cross half hides it. If there were more tokens, near ones would pass its change on.
    """
    length = 2 * max(k.config.encoder.sliding_window, k.config.decoder.sliding_window) + 3
    ids, mask = _ragged(k, length, 1)
    base = Run(ids, k.ordinary(2, 4), mask, splits=(2, 1, 1))
    change = Change(
        mask == 1, np.zeros((2, 4), bool), np.zeros(ids.shape, bool), ("encoder token 0", f"encoder token {length - 1}")
    )
    other = replace(base, input_ids=np.where(mask == 1, k.others(ids), ids))
    what = f"the only valid one of {length} encoder tokens changed, first and last, cached decoding"
    return Probe(Case("probe-cross", what, (base, other)), (change,), what)


def _positions(k: Kit) -> Probe:
    """Positions given just as a model counts them, with padding, a cache and end-of-image ids."""
    ids, mask = _ragged(k, 12, 7)
    decoder_ids, decoder_mask = _ragged(k, 8, 5)
    ids[:, 6] = decoder_ids[:, 4] = k.config.eoi_token_index  # valid in both rows, and alone in a cached step
    base = Run(ids, decoder_ids, mask, decoder_attention_mask=decoder_mask, splits=(4, 1, 3))
    counted = [np.arange(n)[None].repeat(2, 0) for n in (12, 8)]
    other = replace(base, position_ids=counted[0], decoder_position_ids=counted[1])
    none = np.zeros(ids.shape, bool)
    words = tuple(f"how positions are given ({side} padding)" for side in _SIDES)
    change = Change(none, np.zeros(decoder_ids.shape, bool), none, words)
    what = "positions 0, 1, … given in place of none, padded right and left, cached decoding"
    return Probe(Case("probe-positions", what, (base, other)), (change,), what, "exact")


def _pictures(k: Kit) -> Probe:
    """The second picture of a row of two changed."""
    (case,) = cases.select(cases.build(replace(k.config, has_decoder=True)), ["images"])
    base, count = case.runs[0], k.config.mm_tokens_per_image
    assert base.pixel_values is not None
    pixels = base.pixel_values.copy()
    pixels[1] = -pixels[1, :, ::-1]
    images = np.zeros(base.input_ids.shape, bool)
    images[0, np.flatnonzero(base.input_ids[0] == k.config.image_token_index)[count : 2 * count]] = True
    none = np.zeros_like(images)
    change = Change(none, np.zeros(base.decoder_input_ids.shape, bool), images, ("picture 1", ""))
    what = "the second picture of a row of two changed"
    return Probe(Case("probe-images", what, (base, replace(base, pixel_values=pixels))), (change,), what)
