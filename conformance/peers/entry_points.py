"""Finds peers of other packages by their entry points in the group `conformance.peers`.

A package that has a port declares in its pyproject.toml

    [project.entry-points."conformance.peers"]
    mine = "my_package.conformance:create"

`--peer mine` or `--peer mine:ARGUMENT` then judges it. `create(argument, backend)` returns an object like
`peers.protocol.Peer`. `argument` is "" where none was given; `backend` is where the judge computes.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from conformance.errors import PeerUnavailable
from conformance.peers.made import made
from conformance.peers.protocol import Peer
from t5g2ref.backend import NUMPY, Backend

GROUP = "conformance.peers"


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
    return made(f"peer {name} ({_place(points[0])})", lambda *given: points[0].load()(*given), argument, backend)


def _place(point: EntryPoint) -> str:
    owner = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"{point.value}{owner}"
