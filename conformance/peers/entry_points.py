"""Finds peers of other packages by their entry points in the group `conformance.peers`.

A package that has a port declares in its pyproject.toml

    [project.entry-points."conformance.peers"]
    mine = "my_package.conformance:create"

`--peer mine` or `--peer mine:ARGUMENT` then judges it. `create(argument, backend)` returns an object like
`peers.protocol.Peer`. `argument` is "" where none was given; `backend` is where the judge computes.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import cast

from conformance.errors import PeerUnavailable
from conformance.peers.guard import MOST, said
from conformance.peers.protocol import Peer
from t5g2ref.backend import NUMPY, Backend
from t5g2ref.dtypes import RUN_IN

GROUP = "conformance.peers"
METHODS = ("versions", "open", "run", "close")


def names() -> list[str]:
    """The names of all such entry points; none is loaded."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def find(name: str, backend: Backend = NUMPY) -> Peer | None:
    """The peer `ENTRY[:ARGUMENT]`; None where no package has that entry point.

    Raises PeerUnavailable, with the reason, where a package has it and it does not work.
    """
    entry, _, argument = name.partition(":")
    points = list(entry_points(group=GROUP, name=entry))
    if not points:
        return None
    if len({point.value for point in points}) > 1:
        raise PeerUnavailable(f"peer {entry}: two packages have it: {', '.join(map(_place, points))}; uninstall one")
    try:
        peer = points[0].load()(argument, backend)
    except PeerUnavailable:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a foreign package raises, SystemExit too
        raise PeerUnavailable(f"peer {name} ({_place(points[0])}) is broken: {said(error)}") from error
    return _checked(peer, f"peer {name} ({_place(points[0])})")


def _checked(peer: object, what: str) -> Peer:
    """The object, if it has a peer's members. Raises PeerUnavailable for any other."""
    if lacking := [method for method in METHODS if not callable(getattr(peer, method, None))]:
        raise PeerUnavailable(f"{what} gave a {type(peer).__name__} without {', '.join(lacking)}()")
    name = getattr(peer, "name", None)
    if not isinstance(name, str) or not 0 < len(name) <= MOST or not name.isprintable():
        raise PeerUnavailable(f"{what} gave a {type(peer).__name__} whose `name` is no line of text")
    if getattr(peer, "dtype", None) not in RUN_IN:
        found = getattr(peer, "dtype", None)
        raise PeerUnavailable(f"{what} has dtype {found!r}, expected one of {', '.join(RUN_IN)}")
    return cast(Peer, peer)


def _place(point: EntryPoint) -> str:
    owner = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"{point.value}{owner}"
