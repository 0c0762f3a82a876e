"""One case judged, from a closed peer to a closed peer; and a peer with a fault."""

from __future__ import annotations

from typing import Any

from dumping import case_of

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.peers.protocol import Peer
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref.backend import Backend
from t5g2ref.dtypes import DType


def judged(peer: Peer, target: Target, case: Case | str, *, repeat: bool = False) -> Judgement:
    """The judgement of a case, or of the one of that name. It is run once: test_steady.py is about repeating it."""
    peer.open(target)
    try:
        return judge(peer, target, case_of(target, case) if isinstance(case, str) else case, repeat=repeat)
    finally:
        peer.close()


class Faulty(ReferencePeer):
    """The reference with one value changed, and gone on with."""

    def __init__(self, backend: Backend, dtype: DType, tap: str, factor: float) -> None:
        super().__init__(backend, dtype)
        self._tap, self._factor = tap, factor

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        if name == self._tap:
            value = self._nx.cast(self._nx.wide(value) * self._factor)  # what is shown is what is gone on with
        return super()._shown(dump, name, value)
