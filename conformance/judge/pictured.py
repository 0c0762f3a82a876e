"""Judges what a peer's own processor makes of picture files: its pixel values against ours, before any tower.

A legal processor may form a value in another order of float32 operations, and resample with another library. So a value
may differ by roundings, and where a picture is resampled by one level more. That level is derived. Ours are rounded to
whole levels behind each direction, by half a level at most, and the second direction averages: they are within one
level of the exact average. So whoever keeps that average is within one level of ours. Whoever rounds to whole levels,
in one step or two, is a whole number of levels off, and less than two.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from conformance.arrays import on_device, to_host
from conformance.cases.case import Case
from conformance.cases.picture import PIXELS, Picture
from conformance.defects.pictures import FAULTS
from conformance.judge.judgement import Judgement
from conformance.measure.finding import Finding
from conformance.measure.match import Signature
from conformance.peers.guard import PeerError, call
from conformance.peers.protocol import Peer, Skip, optional
from conformance.target import Target
from t5g2ref.dtypes import unit_roundoff
from t5g2ref.notes import noted
from t5g2ref.processor.image import preprocess
from t5g2ref.processor.rule import RELEASED, Rule
from t5g2ref.processor.settings import read_pictures

Array = np.ndarray[Any, Any]
Progress = Callable[[str], None]
NO_PROCESSOR = "it has no processor of its own (`preprocess`)"
EXACT_TYPE = np.dtype("float32")


@dataclass(frozen=True)
class Shown:
    """A picture file, and what was made of it.

    Args:
        truth: ours, float32 (3, side, side).
        slack: (3, 1, 1), by how much a legal value may differ from it, a channel.
        peer: the peer's, on the host.
    """

    picture: Picture
    file: Path
    truth: Array
    slack: Array
    peer: Any


def judge_pictures(
    peer: Peer, target: Target, case: Case, progress: Progress = lambda _: None, *, repeat: bool = True
) -> Judgement:
    """Ask an opened peer's processor for each of the case's files, and judge the values that it gives.

    Args:
        repeat: whether it is asked twice, and the values compared bit for bit.
    """
    progress(f"{case.name}: {peer.name}")
    none = Judgement(peer.name, case.name, dtype=peer.dtype)
    prepare = optional(peer, "preprocess")
    if prepare is None:
        return replace(none, skipped=NO_PROCESSOR)
    try:
        with written(case) as files:
            return _judged(none, prepare, files, rule_of(target), target.config.vision.image_size, repeat)
    except Skip as skip:
        return replace(none, skipped=str(skip) or "it does not say why")
    except (ImportError, ValueError) as error:  # Pillow is not here, or the checkpoint's own files are refused
        return replace(none, skipped=f"ours cannot read pictures here: {error}")


def _judged(
    none: Judgement, prepare: Any, files: list[tuple[Picture, Path]], rule: Rule, side: int, repeat: bool
) -> Judgement:
    began, shown, error, unsteady, ours = time.perf_counter(), list[Shown](), "", "", 0.0
    for picture, file in files:
        at = time.perf_counter()
        truth, slack = preprocess(file, side, rule=rule), _slack(rule, (picture.width, picture.height) != (side, side))
        ours += time.perf_counter() - at
        try:
            values = [_host(call("preprocess()", prepare, file, passing=(Skip,))) for _ in range(1 + repeat)]
        except PeerError as raised:
            error = f"{picture.name}: {raised}"
            break
        shown.append(Shown(picture, file, truth, slack, values[0]))
        if not unsteady and not _same_bits(values[0], values[-1]):
            unsteady = f"two calls of preprocess() for {picture.name} give other values"
    findings = [_finding(n, one) for n, one in enumerate(shown)]
    failing = next((n for n, f in enumerate(findings) if not f.passed), None)
    named, what = ([], "") if failing is None else _named(shown, rule, side)
    if failing is not None and what:
        findings[failing] = replace(findings[failing], detail=f"{findings[failing].detail}; just as where {what}")
    seconds = {"peer": time.perf_counter() - began - ours, "reference": ours}
    repeated = len(findings) if repeat else 0
    return replace(
        none, exact=findings, error=error, named=named, seconds=seconds, repeated=repeated, unsteady=unsteady
    )


def legal_note(found: Judgement) -> str:
    """What to say of values that pass and are not ours; "" where all are."""
    near = [f for f in found.exact if f.tap == PIXELS and f.passed and f.judged > 0]
    if not near:
        return ""
    return (
        f"{found.peer}: pixel values of {len(near)} of {len(found.exact)} pictures are not ours to the bit: within the "
        "roundings of another order or, where a picture is resampled, of another library"
    )


@contextmanager
def written(case: Case) -> Iterator[list[tuple[Picture, Path]]]:
    """The case's pictures as files, for as long as the block lasts. What ours has to say of them is no news there."""
    with tempfile.TemporaryDirectory(prefix="conformance-pictures-") as folder, noted([]):
        files = [(picture, Path(folder) / picture.name) for picture in case.pictures]
        for picture, file in files:
            file.write_bytes(picture.data)
        yield files


def rule_of(target: Target) -> Rule:
    """What the checkpoint's files say of pictures. ValueError for what cannot be followed here."""
    rule = RELEASED if target.folder is None else read_pictures(target.folder)[0]
    if rule.crops:
        raise ValueError("its files ask for pan-and-scan, of which these pictures say nothing")
    return rule


def _host(value: Any) -> Any:
    """The peer's value as an array of NumPy; what is none stays."""
    if value is None or isinstance(value, np.ndarray):
        return value
    return np.asarray(to_host(value)) if on_device(value) else np.asarray(value)


def _slack(rule: Rule, resampled: bool) -> Array:
    """(3, 1, 1): roundings of two float32 chains (product, difference, quotient), and one level where it is resampled.
    Without rescaling levels are whole numbers, as are products."""
    u, mean, std = unit_roundoff("float32"), np.zeros(3), np.ones(3)
    unit = rule.factor if rule.rescale else 1.0
    if rule.normalize:
        mean, std = np.array(rule.mean), np.abs(np.array(rule.std))
    largest = 255 * unit
    far = np.maximum(np.abs(mean), np.abs(largest - mean))
    rounding = 2 * u * (largest + far + far) / std
    made: Array = rounding + resampled * unit / std
    return made[:, None, None]


def _finding(n: int, one: Shown) -> Finding:
    """Present → shape → dtype → finite → values."""

    def failed(status: str, detail: str, judged: float = math.nan, limit: float = math.nan) -> Finding:
        return Finding(PIXELS, n, status, detail=f"{one.picture.name}: {detail}", judged=judged, limit=limit)

    peer, truth = one.peer, one.truth
    if peer is None:
        return failed("missing", "preprocess() gave None, expected an array")
    if peer.shape != truth.shape:
        return failed("shape", f"expected {truth.shape}, found {peer.shape}")
    if peer.dtype != EXACT_TYPE:
        return failed("dtype", f"expected float32, found {peer.dtype}")
    if not np.isfinite(peer).all():
        return failed("nan", f"{int((~np.isfinite(peer)).sum())} of {peer.size} values are not finite")
    error = np.abs(peer.astype(np.float64) - truth) / one.slack
    worst = float(error.max())
    if worst <= 1.0:
        return Finding(PIXELS, n, "pass", judged=worst, limit=1.0)
    at = np.unravel_index(int(error.argmax()), error.shape)
    count = f"{int((error > 1).sum())} of {error.size} values are off"
    values = f"expected {truth[at]:.6g} in channel {at[0]}, row {at[1]}, column {at[2]}, found {peer[at]:.6g}"
    return failed("exact", f"{count}; {values}", judged=worst, limit=1.0)


def _same_bits(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


def _named(shown: Sequence[Shown], rule: Rule, side: int) -> tuple[list[Signature], str]:
    """The defects that give what the peer gave in every picture, those whose values are the nearest; and the first in
    words."""
    off: dict[str, tuple[float, str]] = {}
    for fault in FAULTS:
        assert fault.prepared is not None
        pairs = [(one, fault.prepared(one.file, rule, side)) for one in shown]
        if all(_near(one, faulty) for one, faulty in pairs):
            apart = sum(_apart(one.peer, faulty) for one, faulty in pairs)
            off[fault.id] = min(off.get(fault.id, (apart, fault.title)), (apart, fault.title))
    least = min(off.values(), default=(0.0, ""))
    named = [defect for defect, (apart, _) in off.items() if apart == least[0]]
    return [Signature(defect, PIXELS, 1.0, 0.0, 0.0, "named") for defect in named], least[1]


def _near(one: Shown, faulty: Array) -> bool:
    if one.peer is None or one.peer.shape != faulty.shape or not np.isfinite(one.peer).all():
        return False
    slack = one.slack if faulty.shape == one.truth.shape else one.slack.max()
    return bool((np.abs(one.peer.astype(np.float64) - faulty) <= slack).all())


def _apart(peer: Array, faulty: Array) -> float:
    return float(np.abs(peer.astype(np.float64) - faulty).sum())
