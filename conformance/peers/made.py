"""Makes a peer by a function of others, and checks that it has a peer's members."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from conformance.errors import PeerBroken, PeerUnavailable
from conformance.peers.guard import MOST, PeerError, said
from conformance.peers.protocol import Peer, lacks, scheme_of
from t5g2ref.backend import Backend
from t5g2ref.dtypes import RUN_IN

METHODS = ("versions", "open", "run", "close")


def made(what: str, create: Callable[[str, Backend], Any], argument: str, backend: Backend) -> Peer:
    """The peer that `create` gives. Raises PeerUnavailable, which names `what`, where it gives none."""
    try:
        peer = create(argument, backend)
    except (PeerUnavailable, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever a foreign package raises, SystemExit too
        raise PeerBroken(f"{what} is broken: {said(error)}") from error
    return _plainly_named(_checked(peer, what))


def _plainly_named(peer: Peer) -> Peer:
    """The peer, whose name and type are texts and nothing more: other processes do not know a class of its own."""
    for name in ("name", "dtype"):
        value = getattr(peer, name)
        if type(value) is not str:
            with suppress(AttributeError):  # a property stays
                setattr(peer, name, str.__str__(value))
    return peer


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
    try:
        lacks(cast(Peer, peer))
        scheme_of(cast(Peer, peer))
    except PeerError as error:
        raise PeerUnavailable(f"{what} gave a {type(peer).__name__}: {error}") from error
    return cast(Peer, peer)
