"""Known deviations and skips of a peer, from a TOML file: each with a reason and a link, shown, and no failure.

    [[deviation]]
    peer = "transformers:*"             # glob
    case = "window*"                    # glob
    tap = "decoder.layers.*.mlp.act_fn" # globs, one for each part between two dots
    status = "values"                   # optional; without it any but missing, shape, dtype and nan
    reason = "GELU by a table"
    link = "https://github.com/…/issues/1"
    versions = { transformers = ">=5.20,<5.24" }  # optional

With `status = "skipped"` and no tap, an entry excuses that the peer skips the cases; with `status = "raised"`, that it
raises in them. They are not judged for that.

An entry whose deviation is gone is reported, so that the file stays true. An entry excuses only the taps that it
names, so that it cannot hide a new deviation.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from conformance.cases import catalogue as case_list
from conformance.cases import generating, long, pictured
from conformance.cases.picture import PIXELS
from conformance.errors import UsageError
from conformance.judge.judgement import Judgement
from conformance.measure.finding import FAILURES, Finding
from conformance.target import Target
from t5g2ref import taps
from t5g2ref.config.fields import short
from t5g2ref.files import opened

MAX_BYTES = 1 << 20
MAX_DOTS, MAX_ENTRIES, MAX_SPECIFIER = 200, 500, 256  # of a line, a file, a version: what they cost grows faster
REQUIRED = ("peer", "case", "tap", "reason", "link")
SKIPPED, RAISED = "skipped", "raised"
WHOLE = (SKIPPED, RAISED)  # of an entry of a whole case
BY_NAME = ("missing", "shape", "dtype", "nan")  # excused only where an entry says so
NO_TAPS = ("weights", "probe-", "generate.", PIXELS)  # how the names of what is judged begin that is no tap
SEEN, PASSED, NOT_RUN = "seen", "unexpected pass", "not run"


class KnownError(UsageError):
    """The file of known deviations cannot be used. The message names the entry, the key, and what was expected."""


@dataclass(frozen=True)
class Deviation:
    """One entry of the file; the module's docstring explains the keys. All of its `versions` have to hold."""

    peer: str
    case: str
    reason: str
    link: str
    tap: str = ""
    status: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def concerns(self, judgement: Judgement, versions: Mapping[str, str]) -> bool:
        """Whether the entry is about this peer, in these versions, on this case."""
        named = fnmatchcase(judgement.peer, self.peer) and fnmatchcase(judgement.case, self.case)
        return named and all(_fits(versions.get(name), wanted) for name, wanted in self.versions.items())

    def is_at(self, finding: Finding) -> bool:
        """Whether the entry excuses this failing finding."""
        excused = self.status == finding.status if self.status else finding.status not in BY_NAME
        return self.names(finding.tap) and excused

    def names(self, tap: str) -> bool:
        """Whether the entry names a tap. Parts are matched one by one, so `*` alone is not everything."""
        parts, wanted = tap.split("."), self.tap.split(".")
        return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


@dataclass
class Known:
    """The entries of a file, and which of them were seen in the judgements so far."""

    entries: tuple[Deviation, ...] = ()
    _seen: set[int] = field(default_factory=set)
    _passed: set[int] = field(default_factory=set)

    @property
    def mark(self) -> str:
        """A checksum of the entries; "" for none. Whoever has the same one excuses the same."""
        text = json.dumps([asdict(entry) for entry in self.entries], sort_keys=True)
        return sha256(text.encode()).hexdigest() if self.entries else ""

    def match(self, judgement: Judgement, versions: Mapping[str, str]) -> Deviation | None:
        """The entry of the judgement's culprit, if entries cover everything that fails in it; else None.

        Of a skipped case, or one in which the peer raised, it is the entry of that. Cumulative failures behind a
        covered local one follow from it and need no entry. The call also notes which entries were seen, so give it each
        judgement once.
        """
        concerned = [(i, e) for i, e in enumerate(self.entries) if e.concerns(judgement, versions)]
        about = [(i, e) for i, e in concerned if e.status not in WHOLE]
        state = SKIPPED if judgement.skipped else RAISED if judgement.error and not judgement.deviates else ""
        excusing = {i: e for i, e in concerned if state and e.status == state}
        self._seen |= excusing.keys()
        if excusing or judgement.skipped:
            return next(iter(excusing.values()), None)
        self._passed |= {i for i, e in concerned if e.status in WHOLE and not judgement.error}
        whole = not judgement.error and not judgement.unclear and not judgement.partly
        failures = [f for f in _all(judgement) if not f.passed]
        for i, entry in about:
            if any(entry.is_at(f) for f in failures):
                self._seen.add(i)
            elif whole and _passes(entry, judgement):
                self._passed.add(i)
        uncovered = [f for f in _causes(judgement) if not any(entry.is_at(f) for _, entry in about)]
        culprit = judgement.culprit
        if culprit is None or uncovered or not whole:
            return None
        return next(entry for _, entry in about if entry.is_at(culprit))

    def applied(self, judgement: Judgement, versions: Mapping[str, str]) -> Judgement:
        """The judgement, with the entry's reason and link where its deviation is known."""
        entry = self.match(judgement, versions)
        return judgement if entry is None else replace(judgement, known=f"{entry.reason} ({entry.link})")

    def check(self, targets: Sequence[Target]) -> None:
        """Raises KnownError for an entry whose tap, or skipped case, no checkpoint here has: it could never be seen."""
        tables = [taps.table(t.config, task=task, loss=True) for t in targets for task in ("lm", "sequence", "token")]
        names = {tap.name for table in tables for tap in table}
        for i, entry in enumerate(self.entries, 1):
            if entry.status in WHOLE:
                built = (case_list.build, case_list.build_rows, generating.build, long.build, pictured.build)
                cases = ["exact", *(case.name for t in targets for build in built for case in build(t.config))]
                if not any(fnmatchcase(name, entry.case) for name in cases):
                    raise _strange(i, entry.case, "case of this checkpoint", cases)
            elif not entry.tap.startswith(NO_TAPS) and not any(entry.names(name) for name in names):
                raise _strange(i, entry.tap, "tap of this checkpoint", names)

    def states(self) -> list[dict[str, Any]]:
        """Every entry for the JSON document, with its state: "seen", "unexpected pass" or "not run".

        An unexpected pass: the entry's taps were judged, on a peer and versions that it names, and all passed; or the
        case that it says is skipped was run.
        """
        return [
            {
                **{name: getattr(entry, name) for name in ("peer", "case", "tap", "status", "reason", "link")},
                "versions": dict(entry.versions),
                "state": SEEN if i in self._seen else PASSED if i in self._passed else NOT_RUN,
            }
            for i, entry in enumerate(self.entries)
        ]


def _strange(number: int, name: str, what: str, names: Iterable[str]) -> KnownError:
    near = get_close_matches(name, list(names), 3)
    hint = f"close: {', '.join(dict.fromkeys(near))}" if near else f"see `list {what.split()[0]}s`"
    return KnownError(f"--known: deviation {number}: {name!r} is no {what}; {hint}")


def _all(judgement: Judgement) -> list[Finding]:
    return [*judgement.exact, *judgement.local, *judgement.cumulative]


def _passes(entry: Deviation, judgement: Judgement) -> bool:
    """Whether the entry's taps were judged here and all passed."""
    at = [f for f in _all(judgement) if entry.names(f.tap)]
    return bool(at) and all(f.passed for f in at)


def _causes(judgement: Judgement) -> list[Finding]:
    """The failures that need an entry: all but the cumulative ones at or behind the first local failure."""
    order = {(f.call, f.tap): i for i, f in enumerate(judgement.local)}
    local = [f for f in judgement.local if not f.passed]
    first = order[local[0].call, local[0].tap] if local else len(order)
    early = [f for f in judgement.cumulative if not f.passed and order.get((f.call, f.tap), -1) < first]
    return [*(f for f in judgement.exact if not f.passed), *local, *early]


def _fits(version: str | None, specifier: str) -> bool:
    try:
        return version is not None and SpecifierSet(specifier).contains(version, prereleases=True)
    except ValueError:  # InvalidVersion, and a number of more digits than Python reads
        return False


def load(path: Path) -> Known:
    """The file's entries. Raises KnownError for anything that the module's docstring does not allow."""
    try:
        with opened(path) as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise KnownError(f"--known {path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise KnownError(f"--known {path}: larger than {MAX_BYTES} bytes")
    if (dots := max(line.count(b".") for line in data.split(b"\n"))) > MAX_DOTS:
        raise KnownError(
            f"--known {path}: a line has {dots} dots, expected at most {MAX_DOTS}"
        )  # a key of so many parts
    try:
        raw = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise KnownError(f"--known {path}: not TOML: {short(str(error))[1:-1]}") from error
    entries = raw.pop("deviation", [])
    if raw:
        raise KnownError(f"--known {path}: has {short(next(iter(raw)))}, expected nothing but [[deviation]]")
    if not isinstance(entries, list) or not entries:
        raise KnownError(f"--known {path}: expected at least one [[deviation]]")
    if len(entries) > MAX_ENTRIES:
        raise KnownError(f"--known {path}: has {len(entries)} deviations, expected at most {MAX_ENTRIES}")
    return Known(tuple(_entry(entry, f"--known {path}: deviation {i}") for i, entry in enumerate(entries, 1)))


def _entry(raw: object, where: str) -> Deviation:
    if not isinstance(raw, dict):
        raise KnownError(f"{where} is {short(raw)}, expected a table under [[deviation]]")
    _names(raw, (*REQUIRED, "status", "versions"), where)
    whole = raw.get("status") in WHOLE
    if whole and "tap" in raw:
        raise KnownError(f"{where}: tap is {short(raw['tap'])}, expected none: a case is {raw['status']} as a whole")
    required = [name for name in REQUIRED if name != "tap" or not whole]
    for name in required:
        if name not in raw:
            raise KnownError(f"{where}: {name} is missing, expected each of {', '.join(required)}")
    for name in (*required, "status"):
        if name in raw and not _is_line(raw[name]):
            raise KnownError(f"{where}: {name} is {short(raw[name])}, expected a line of text")
    if not raw["link"].startswith(("https://", "http://")):
        raise KnownError(
            f"{where}: link is {short(raw['link'])}, expected an address that begins with https:// or http://"
        )
    allowed = (*FAILURES, *WHOLE)
    if raw.get("status", SKIPPED) not in allowed:
        raise KnownError(f"{where}: status is {short(raw['status'])}, expected one of {', '.join(allowed)}")
    _versions(raw.get("versions", {}), f"{where}: versions")
    return Deviation(**raw)


def _versions(raw: object, where: str) -> None:
    if not isinstance(raw, dict):
        raise KnownError(f'{where} is {short(raw)}, expected a table: {{ package = ">=1.0" }}')
    for name, specifier in raw.items():
        try:
            SpecifierSet(specifier if isinstance(specifier, str) and len(specifier) <= MAX_SPECIFIER else "?")
        except InvalidSpecifier:
            raise KnownError(
                f"{where}.{name} is {short(specifier)}, expected a specifier such as '>=5.20,<5.24'"
            ) from None


def _names(raw: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    for name in raw:
        if name not in allowed:
            raise KnownError(f"{where}: has {short(name)}, expected only {', '.join(allowed)}")


def _is_line(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1024 and value.isprintable()
