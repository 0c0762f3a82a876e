"""The option `--require`: what the verdict has to cover, and what it says that it covers."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.cases.abilities import TEXT, Required
from conformance.errors import UsageError
from conformance.judge.judgement import Judgement
from t5g2ref.config.fields import short
from t5g2ref.files import opened

if TYPE_CHECKING:  # the session needs rich, and `list` does not
    from conformance.judge.session import Found, Plan

MAX_BYTES = 1 << 16
HELP = """\
what the verdict has to cover: text (every case of text alone that the peer can do), or a TOML file with
cases = ["short", "window"]; other cases are not run, and the verdict says so. Not beside --case"""


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--require", metavar="WHAT", help=HELP)


def required(given: argparse.Namespace) -> Required | None:
    """What was asked for; None for everything. Raises UsageError for a file that cannot be used, or beside --case."""
    what: str | None = getattr(given, "require", None)
    if what is None:
        return None
    if given.case:
        raise UsageError("--require says which cases are run, and so does --case: give one of them")
    return required_of(what)


def required_of(what: str) -> Required:
    """What "text", or a TOML file, asks for. Raises UsageError for a file that cannot be used."""
    return Required(None, TEXT) if what == TEXT else Required(_names(what), what)


def _names(path: str) -> tuple[str, ...]:
    """The names in the file, each once."""
    where = f"--require {path}"
    try:
        with opened(Path(path)) as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror}; give text, or a TOML file") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{where}: larger than {MAX_BYTES} bytes")
    try:
        raw = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not TOML: {short(str(error))[1:-1]}") from error
    names = raw.get("cases")
    if set(raw) != {"cases"} or not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UsageError(f'{where}: has {short(raw)}, expected cases = ["short", "window"] and nothing else')
    return tuple(dict.fromkeys(names))


def coverage(asked: Required | None, plan: Plan, found: Found) -> str:
    """What the verdict covers, for its line: "logits alone, text cases alone: short, window; not covered: image".

    "" where every peer shows its inside, and no cases were required.
    """
    judged = [j for _, j in inside(found) if j.local]
    parts = [_outside(judged)]
    if asked is not None:
        parts += [_cases(asked, plan, judged)]
    return ", ".join(filter(None, parts))


def inside(found: Found) -> Found:
    """The judgements without those of a peer's own generation, where it was judged on other cases too: there it shows
    less than it does elsewhere."""
    others = {j.peer for _, j in found if j.local and j.made is None}
    return [(target, j) for target, j in found if j.made is None or j.peer not in others]


def _outside(judged: Sequence[Judgement]) -> str:
    """What black boxes show; with their names, where other peers show more or others less."""
    seen = {j.peer: j.outside for j in judged}
    words = set(seen.values())
    if len(words) == 1:
        return next(iter(words))
    return ", ".join(f"{what} of {peer}" for peer, what in seen.items() if what)


def _cases(asked: Required, plan: Plan, judged: Sequence[Judgement]) -> str:
    """Which cases every peer was judged on, and which some peer was not."""
    every = {j.peer for j in judged}
    each = {peer: {j.case for j in judged if j.peer == peer} for peer in every}
    names = list(dict.fromkeys(case.name for _, case in plan))
    covered = [name for name in names if every and all(name in cases for cases in each.values())]
    left = [name for name in names if name not in covered]
    kind = "text cases alone" if asked.names is None else "required cases alone"
    return f"{kind}: {_listed(covered)}; not covered: {_listed(left)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
