"""The exact lane: compares bit for bit what has no rounding error.

That is weights after the peer's own loader, embedding rows and, by probing, masks, causality and positions. A probe
changes one thing in the input and shows which of the peer's outputs then have other bits (`probes.py`, `moves.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from conformance.arrays import on_device, to_host, words
from conformance.cases.abilities import unmet
from conformance.cases.plan import Shown
from conformance.judge.exact.moves import Moves, examine_probe
from conformance.judge.exact.probes import Array, Probe, probes
from conformance.judge.typed_lane import weights_of
from conformance.measure.finding import Finding
from conformance.peers.guard import said
from conformance.peers.protocol import Peer, Skip, lacks, optional, scheme_of, shows, wide
from conformance.target import Target
from t5g2ref.backend import BackendError
from t5g2ref.dtypes import HALF, DType
from t5g2ref.params import TIED

TABLES = {"encoder": "encoder.text_model.embed_tokens", "decoder": "decoder.embed_tokens"}


def examine_exact(
    peer: Peer,
    target: Target,
    dtype: DType,
    progress: Callable[[str], None] = lambda _: None,
    without: Collection[str] = (),
) -> list[Finding]:
    """The exact findings of an opened peer. A probe that it skips or lacks, or on which it raises, is "missing".

    Args:
        without: names of the probes that are not run.
    """
    found = []
    if (weights := optional(peer, "weights")) is not None and scheme_of(peer) is None:
        progress(f"weights of {peer.name}, bit for bit")
        found += weight_findings(weights(), target, dtype, wide(peer))
    shown = shows(peer)
    for probe in (probe for probe in probes(target.config) if probe.case.name not in without):
        progress(f"{probe.case.name}: {peer.name}")
        try:
            if why := unmet(probe.case, lacks(peer)):
                raise Skip(why)
            findings, moves = examine_probe(peer, target, dtype, probe, shown)
        except Skip as skip:
            found.append(Finding(probe.case.name, 0, "missing", detail=f"skipped by the peer: {skip}"))
            continue
        except (KeyboardInterrupt, BackendError):
            raise
        except BaseException as error:  # whatever a foreign program raises is a finding, not our crash
            detail = f"the peer raised {said(error)}"
            found.append(Finding(probe.case.name, 0, "missing", detail=detail))
            continue
        if probe.case.name == "probe-positions":  # it has the end-of-image id, in both stacks
            found += _rows_of(probe, moves, target, dtype, shown)
        found += findings
    return found


# Weights


def weight_findings(
    weights: Iterable[tuple[str, Any]], target: Target, dtype: DType, in_single: Shown | None = None
) -> list[Finding]:
    """Compare the peer's tensors with the checkpoint's, rounded once to `dtype`.

    If all bits are equal, there is one finding "weights". Else there is one for each tensor that differs, named
    `weights.<canonical name>`.

    Args:
        weights: canonical names and arrays as the peer holds them; tied tables once, or under each of their names.
        in_single: says of which modules a peer in a half type has them in float32; None for none.
    """
    seen, wrong = set[str](), []
    expected = target.rounded(dtype) if in_single is None else weights_of(target, dtype, in_single)
    for name, value in weights:
        tap = f"weights.{name}"
        if name in seen:
            wrong.append(Finding(tap, 0, "exact", detail="the peer gives it twice, expected once"))
        elif TIED.get(name, name) not in expected:
            wrong.append(Finding(tap, 0, "missing", detail="the peer gives it, and the checkpoint has no such tensor"))
        else:
            kind = "float32" if in_single is not None and in_single(name.rpartition(".")[0]) else dtype
            finding = _weight(tap, value, target.backend.host(expected[TIED.get(name, name)]), kind)
            wrong += [] if finding.passed else [finding]
        seen.add(name)
    wrong += [
        Finding(f"weights.{name}", 0, "missing", detail=f"expected {tuple(value.shape)}, the peer has no such tensor")
        for name, value in expected.items()
        if name not in seen
    ]
    detail = f"{len(expected)} tensors are the checkpoint's in {dtype}, bit for bit"
    return wrong or [Finding("weights", 0, "pass", tokens=len(expected), detail=detail)]


def _weight(tap: str, value: Any, expected: Array, dtype: DType) -> Finding:
    value = to_host(value) if on_device(value) else np.asarray(value)
    return _equal(tap, value, expected.astype(HALF.get(dtype, dtype), copy=False))


def _equal(tap: str, found: Array, expected: Array) -> Finding:
    """Compare arrays to the bit: shape, then dtype, then every element, NaN included."""
    if found.shape != expected.shape:
        return Finding(tap, 0, "shape", detail=f"expected {expected.shape}, found {found.shape}")
    if found.dtype != expected.dtype:
        return Finding(tap, 0, "dtype", detail=f"expected {expected.dtype}, found {found.dtype}")
    differs = _bits(found) != _bits(expected)
    if not differs.any():
        return Finding(tap, 0, "pass", tokens=found.size)
    at = tuple(int(i) for i in np.unravel_index(int(differs.argmax()), differs.shape))
    detail = (
        f"{int(differs.sum())} of {found.size} elements differ, first {at}: expected {_exactly(expected[at])}, "
        f"found {_exactly(found[at])}"
    )
    return Finding(tap, 0, "exact", token=at, tokens=found.size, detail=detail)


def _bits(x: Array) -> Array:
    """Each element as an unsigned integer."""
    return words(np.ascontiguousarray(x)).view(f"u{x.dtype.itemsize}").reshape(x.shape)


def _exactly(value: Any) -> str:
    return f"{float(value)!r} ({_bits(np.asarray(value)).item():#0{2 + 2 * value.dtype.itemsize}x})"


# Embedding rows


def exact_rows(
    rows: Array | None,
    target: Target,
    ids: Array,
    dtype: DType,
    *,
    tap: str = TABLES["encoder"],
    valid: Array | None = None,
) -> Finding:
    """Compare the embedded tokens, which have one right value: a row of the table times one number, rounded once.

    Shapes: rows (B, T, D) in the peer's type, None where it shows none; ids, valid (B, T), False on padding.
    The number is √D rounded to the table's type; the row of the end-of-image id is not multiplied.
    """
    if rows is None:
        return Finding(tap, 0, "missing", detail="the peer shows no embedded tokens")
    kind, table = HALF.get(dtype, dtype), target.rounded(dtype)
    weight, special = (_taken(target, table[f"{TABLES['encoder']}.{part}"]) for part in ("weight", "eoi_embedding"))
    width = special(...).shape[-1]
    scale = np.asarray(math.sqrt(width)).astype(kind).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = (weight(ids).astype(np.float32) * scale).astype(kind)
    expected[ids == target.config.eoi_token_index] = special(...).astype(kind)
    if rows.shape == expected.shape and valid is not None:
        expected = np.where(valid[..., None], expected, rows.astype(kind))  # padding is not compared
    return _equal(tap, rows, expected)


def _taken(target: Target, array: Any) -> Callable[[Any], Array]:
    """A function that gives rows of a backend's array, on the host."""

    def take(index: Any) -> Array:
        with target.backend.scope():
            return target.backend.host(array[index if index is ... else target.backend.xp.asarray(index)])

    return take


def _rows_of(probe: Probe, moves: Moves, target: Target, dtype: DType, shown: Shown) -> list[Finding]:
    base = probe.case.runs[0]
    parts = (
        (TABLES["encoder"], base.input_ids, base.encoder_valid, 1),
        (TABLES["decoder"], base.decoder_input_ids, base.decoder_valid, len(base.bounds)),
    )
    return [
        exact_rows(moves.base(tap, calls), target, ids, dtype, tap=tap, valid=valid)
        for tap, ids, valid, calls in parts[: 1 + target.config.has_decoder]
        if shown(tap)
    ]
