"""Whether another machine has what a run is of: the same weights, peers' files and device. Its versions come first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from conformance.errors import UsageError
from conformance.peers.python_file import checksum
from conformance.report.result import environment
from conformance.report.terms import Terms
from conformance.sweep.header import marked
from conformance.target import Target
from t5g2ref.backend import Backend

SAME = "give a bundled name, a path on a disk that all machines see, or --synthetic"


def refuse_other_weights(targets: Sequence[Target], marks: Mapping[str, str]) -> None:
    """Raises UsageError where a checkpoint has another fingerprint than its name's. It reads all weights."""
    for target in targets:
        if marked(target) != marks.get(target.name):
            raise UsageError(f"has other weights of checkpoint {target.name}: {SAME}")


def refuse_other_peers(terms: Terms) -> None:
    """Raises UsageError where a peer's Python file is not there, or is another one."""
    for peer in terms.peers:
        if peer.mark and (found := checksum(peer.given or "")) != peer.mark:
            what = "another content of" if found else "no file"
            raise UsageError(f"has {what} {peer.given} in {Path.cwd()}: put it on a disk that all machines see")


def refuse_other_device(terms: Terms, backend: Backend) -> None:
    """Raises UsageError where the backend, or what it runs on, is another one."""
    here = environment(backend)
    for name, expected in terms.environment.items():
        if here.get(name) != expected:
            raise UsageError(f"has {name} {here.get(name, 'none')}, not {expected}")
