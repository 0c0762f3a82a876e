"""What the comparisons of a file are of: its first line, which says what was asked, of which share and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from conformance.cases.abilities import Required
from conformance.checkpoints import judgeable
from conformance.errors import CheckpointError, UsageError
from conformance.exchange.case_words import fingerprint, fingerprints
from conformance.exchange.plain import PlainError, decoded, encoded
from conformance.report.terms import Asked, Terms, Work, work
from conformance.sweep.share import MOST, Share
from conformance.target import Target
from t5g2ref.config import Config, ConfigError
from t5g2ref.config.fields import short

FORMAT, VERSION = "t5g2ref-comparisons", 1
MOST_CHECKPOINTS, MOST_PEERS, MOST_PATTERNS = 16, 1000, 1000
OPTIONS = {  # what a field of the terms is called where it was asked for
    **{name: f"--{name}" for name in ("ckpt", "synthetic", "calm", "stream", "layers", "rows", "known")},
    "cases": "--case",
    "exact": "--lane exact",
    "asked": "--lane exact by name",
    "values": "--lane fp32, bf16 or fp16",
    "generate": "--lane generate",
    "generating": "--lane generate by name",
    "repeat": "each case run twice",
    "required": "--require",
    "peers": "--peer",
}
ALIKE = ("notes", "environment")  # fields of the terms that are no options


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was judged on.

    Args:
        config: its config.json's object; mark: the fingerprint of its weights, as `export` writes it.
    """

    name: str
    config: dict[str, Any]
    notes: tuple[str, ...]
    mark: str


@dataclass(frozen=True)
class Header:
    """What the comparisons of a file are of."""

    share: Share
    terms: Terms
    checkpoints: tuple[Checkpoint, ...]

    def work(self, where: str) -> Work:
        """The work, made from what the file says. Raises UsageError for a geometry that is refused."""
        try:
            return self._work()
        except (CheckpointError, ConfigError) as error:
            raise UsageError(f"{where}: its checkpoint is refused: {error}") from error

    def _work(self) -> Work:
        targets = [Target(c.name, Config.from_dict(c.config), {}, notes=c.notes) for c in self.checkpoints]
        for target in targets:
            judgeable(target.name, target.config)
        return work(self.terms, targets)


def header_of(work: Work, share: Share) -> Header:
    """The header of a run's file. It reads all weights."""
    checkpoints = [
        Checkpoint(
            target.name,
            target.config.to_dict(),
            tuple(target.notes),
            marked(target),
        )
        for target in work.targets
    ]
    return Header(share, work.terms, tuple(checkpoints))


def marked(target: Target) -> str:
    """A checkpoint's fingerprint, as `export` writes it. It reads all weights."""
    return fingerprint(fingerprints(target.weights, target.backend))


def written(header: Header) -> dict[str, Any]:
    """The header as plain JSON."""
    checkpoints = [
        {"name": c.name, "config": c.config, "notes": list(c.notes), "mark": c.mark} for c in header.checkpoints
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "share": [header.share.number, header.share.of],
        "terms": dict(zip(_TERMS, encoded(header.terms), strict=True)),
        "checkpoints": checkpoints,
    }


_TERMS = tuple(field.name for field in fields(Terms))


def read(raw: dict[str, Any], where: str) -> Header:
    """The header. Raises UsageError, which says what is wrong with it."""
    if raw.get("format") != FORMAT:
        raise UsageError(f"{where}: is of another format")
    if raw.get("version") != VERSION:
        raise UsageError(f"{where}: has version {short(raw.get('version'), 40)}, expected {VERSION}: judge it again")
    try:
        number, of = decoded(tuple[int, int], raw.get("share"), "share")
        terms = raw.get("terms")
        if not isinstance(terms, dict) or set(terms) != set(_TERMS):
            raise PlainError(f"terms: expected {', '.join(_TERMS)}")
        made: Terms = decoded(Terms, [terms[name] for name in _TERMS], "terms")
        if len(made.cases) > MOST_PATTERNS or any("\n" in note for note in made.notes):
            raise PlainError(f"terms: expected at most {MOST_PATTERNS} patterns of cases, and notes of one line")
        if not 1 <= number <= of <= MOST or not 1 <= len(made.peers) <= MOST_PEERS:
            raise PlainError(f"share {number}/{of} of {len(made.peers)} peers is none")
        if len({peer.name for peer in made.peers}) < len(made.peers):
            raise PlainError("terms.peers: two have one name")
        return Header(Share(number, of), made, _checkpoints(raw.get("checkpoints")))
    except PlainError as error:
        raise UsageError(f"{where}: {error}") from error


def _checkpoints(raw: Any) -> tuple[Checkpoint, ...]:
    if not isinstance(raw, list) or not 1 <= len(raw) <= MOST_CHECKPOINTS:
        raise PlainError(f"checkpoints: expected a list of 1 to {MOST_CHECKPOINTS}")
    found = []
    for i, one in enumerate(raw):
        where = f"checkpoints[{i}]"
        if not isinstance(one, dict) or set(one) != {"name", "config", "notes", "mark"}:
            raise PlainError(f"{where}: expected name, config, notes and mark")
        if not isinstance(one["config"], dict):
            raise PlainError(f"{where}.config: expected the object of a config.json")
        name, mark = (decoded(str, one[key], f"{where}.{key}") for key in ("name", "mark"))
        found.append(Checkpoint(name, one["config"], decoded(tuple[str, ...], one["notes"], where), mark))
    if len({one.name for one in found}) < len(found):
        raise PlainError("checkpoints: two have one name")
    return tuple(found)


def differs(one: Header, other: Header) -> str:
    """The first thing in which two runs differ, in words: "numpy 2.4.6, not 2.3.0"; "" where they are alike.

    Their shares may differ, and warnings that arose.
    """
    here, there = one.terms.environment, other.terms.environment
    for name in (*here, *there):
        if here.get(name) != there.get(name):
            return f"{name} {here.get(name, 'none')}, not {there.get(name, 'none')}"
    for name in _TERMS:
        found, expected = (getattr(header.terms, name) for header in (one, other))
        if name == "peers" and (changed := _changed(found, expected)):
            return f"another content of {changed}"
        if name not in ALIKE and found != expected:
            return f"{OPTIONS[name]} {_said(found)}, not {_said(expected)}"
    return _other_checkpoint(one, other)


def _changed(peers: Sequence[Asked], others: Sequence[Asked]) -> str:
    """The first peer's file that is another one under the same name; "" for none."""
    pairs = zip(peers, others, strict=False)
    return next((a.given or a.name for a, b in pairs if a.given == b.given and a.mark != b.mark), "")


def _said(value: Any) -> str:
    """What was asked for, in a few words."""
    if isinstance(value, tuple) and value and isinstance(value[0], Asked):
        return short(", ".join(peer.given or peer.name for peer in value))[1:-1]
    return short(value.given if isinstance(value, Required) else value, 80)


def _other_checkpoint(one: Header, other: Header) -> str:
    for here, there in zip(one.checkpoints, other.checkpoints, strict=False):
        if here.name != there.name:
            return f"checkpoint {short(here.name)[1:-1]}, not {short(there.name)[1:-1]}"
        if here.config != there.config:
            return f"another config.json of checkpoint {short(here.name)[1:-1]}"
        if here.mark != there.mark:
            return f"other weights of checkpoint {short(here.name)[1:-1]}"
    fewer = len(one.checkpoints) != len(other.checkpoints)
    return f"{len(one.checkpoints)} checkpoints, not {len(other.checkpoints)}" if fewer else ""
