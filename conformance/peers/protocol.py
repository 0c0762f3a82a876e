"""What a peer has to have and may have, and how it says that it skips a case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from conformance.activations import Dump
from conformance.cases.abilities import ABILITIES
from conformance.cases.case import Case
from conformance.cases.plan import Shown
from conformance.cases.prompt import Answer, Prompt
from conformance.measure.finding import Finding
from conformance.oracle.quantised import Scheme, SchemeError, parse
from conformance.peers.guard import PeerError, line
from conformance.target import Target
from t5g2ref.dtypes import HALF


class Skip(Exception):
    """Raised by a peer's `run` for a case that it does not do. A skip is shown, counted, and never a pass.

    Args:
        reason: why.
        link: the page or issue that says so; "" for none.
    """

    def __init__(self, reason: str, link: str = "") -> None:
        self.reason, self.link = line(reason), line(link)
        super().__init__(f"{self.reason} ({self.link})" if self.link else self.reason)


GLOB = frozenset("*?[")
MOST_GLOBS, LONGEST = 500, 1024  # of a peer's patterns, each of which may be held against every tap
TIMEOUT = 600.0  # seconds for each answer of a peer that is asked from outside


class Peer(Protocol):
    """What every implementation under judgement has to have. `OptionalMembers` are what it may have."""

    name: str
    dtype: str

    def versions(self) -> dict[str, str]:
        """Names and versions of what runs, for the report."""

    def open(self, target: Target) -> None:
        """Load the checkpoint, with the peer's own loader where it has one."""

    def run(self, case: Case, dump: Dump) -> None:
        """Make the case's calls in order, putting every tap into `dump`."""

    def close(self) -> None:
        """Free the model."""


class OptionalMembers:
    """What a peer may have beside the protocol, each with its default. Peers may use it as a base class."""

    taps: tuple[str, ...] | None = None
    """Patterns of the tap names that it shows; None for all."""

    called: str = ""
    """What it calls itself, known once it is open. Reports call it so; `name` stays what was asked for."""

    findings: Sequence[Finding] = ()
    """What was found wrong while the files of the last case were read."""

    lacks: tuple[str, ...] = ()
    """Words of `cases.abilities.ABILITIES`: what it cannot do. Cases that need it are skipped by name."""

    checkpoint: str = "tiny"
    """The bundled checkpoint that it is judged on where none is named."""

    quantised: str = ""
    """How its linear layers are rounded, as `oracle.quantised.FORM` has it; "" for not at all. It is then judged beside
    legal runs that are rounded so too, and its weights are not compared bit for bit."""

    types: Mapping[str, str] | None = None
    """Tap or pattern → "float32", where a peer in a half type is wider on purpose. It has to be so there, is judged in
    float32, and its modules' weights count as the checkpoint has them."""

    picks: bool = False
    """Whether it can be asked for a row that is too long to show. Of a run that has `picked` it then shows, of each
    tap, what `cases.picked.shown` leaves: the picked tokens, but keys and values at every token. For every other peer
    such cases are skipped by name."""

    preallocated: bool = False
    """Whether its cache has its slots before they are filled: only there can one be read too early."""

    probed: bool = True
    """Whether it can be asked; a dump can only be read, so it has no exact lane."""

    notes: Sequence[str] = ()
    """Caveats to print beside the verdict, a line each."""

    weights: Callable[[], Iterable[tuple[str, Any]]] | None = None
    """Gives the canonical name and the array of every tensor, as the peer holds it after loading."""

    generate: Callable[[Prompt], Answer] | None = None
    """Its own generation for one prompt, without sampling; see `explain generation`. A peer without it is not asked."""

    preprocess: Callable[[Path], Any] | None = None
    """Its own processor: the path of a picture file → values (3, side, side) in float32, without crops; see `explain
    pictures`. A peer without it is given pixel values alone."""

    timeout: float | None = None
    """Seconds that it may take for each answer; --timeout sets them. None where there is nothing to wait for."""

    give_back: Callable[[], None] | None = None
    """Gives back what its library keeps of a device's freed memory. It is called after each case where several judges
    may share a device: by `--jobs`, and on a cluster."""

    def accepts(self, target: Target) -> bool:
        """Whether it can be judged on this checkpoint."""
        return True


def optional(peer: object, name: str) -> Any:
    """An optional member of a peer, or its default: peers of other packages need no base class."""
    return getattr(peer, name, getattr(OptionalMembers(), name))


def give_time(peer: object, seconds: float) -> None:
    """Set how long a peer may take for each answer; nothing where there is nothing to wait for."""
    if isinstance(optional(peer, "timeout"), float):
        vars(peer)["timeout"] = seconds


def lacks(peer: Peer) -> tuple[str, ...]:
    """What the peer says that it cannot do. Raises PeerError for other words than there are."""
    said: Iterable[str] = optional(peer, "lacks")
    words = () if isinstance(said, str) or not isinstance(said, Iterable) else tuple(said)
    if isinstance(said, str) or not all(isinstance(word, str) and word in ABILITIES for word in words):
        raise PeerError(f"it lacks {line(repr(said))}, expected a tuple of words among {', '.join(ABILITIES)}")
    return words


def scheme_of(peer: Peer) -> Scheme | None:
    """How the peer says that it is quantised; None where it is not. Raises PeerError for what is no scheme."""
    said = optional(peer, "quantised")
    try:
        return parse(said) if said else None
    except SchemeError as error:
        raise PeerError(f"its quantised is {line(repr(said))}, {error}") from error


def shows(peer: Peer) -> Shown:
    """A function that says whether the peer shows a tap, by its patterns; without patterns it shows all."""
    patterns: Iterable[str] | None = optional(peer, "taps")
    if patterns is None:
        return lambda _: True
    chosen = () if isinstance(patterns, str) or not isinstance(patterns, Iterable) else tuple(patterns)
    if not chosen or not all(isinstance(pattern, str) for pattern in chosen):
        raise PeerError(f"its taps are {line(repr(patterns))}, expected a tuple of names or patterns")
    return _matching("taps", chosen)


def wide(peer: Peer) -> Shown | None:
    """A function that says whether the peer declares float32 at a tap; None where it declares no type.

    Raises PeerError for other types, and for a peer that has nothing narrower.
    """
    said = optional(peer, "types")
    if not said:
        return None
    if not isinstance(said, Mapping) or not all(isinstance(tap, str) for tap in said):
        raise PeerError(f"its types are {line(repr(said))}, expected names or patterns of taps, each with its type")
    if other := next((f"{tap}: {kind}" for tap, kind in said.items() if kind != "float32"), None):
        raise PeerError(f"its types have {line(other)}, expected float32, the one that is wider than a half type")
    if peer.dtype not in HALF:
        raise PeerError(f"it declares types and runs in {peer.dtype}; give the narrower type as dtype")
    return _matching("types", tuple(said))


def _matching(member: str, chosen: tuple[str, ...]) -> Shown:
    plain = frozenset(pattern for pattern in chosen if not GLOB & set(pattern))
    globs = [pattern for pattern in chosen if pattern not in plain]
    if (longest := max(map(len, globs), default=0)) > LONGEST:
        raise PeerError(f"a pattern of its {member} has {longest} characters, expected at most {LONGEST}")
    if len(globs) > MOST_GLOBS:
        raise PeerError(f"its {member} have {len(globs)} patterns, expected at most {MOST_GLOBS} beside names of taps")
    return lambda name: name in plain or any(fnmatchcase(name, pattern) for pattern in globs)
