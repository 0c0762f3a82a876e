"""One case judged, from a closed peer to a closed peer."""

from __future__ import annotations

from dumping import case_of

from conformance.cases.case import Case
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.peers.protocol import Peer
from conformance.target import Target


def judged(peer: Peer, target: Target, case: Case | str) -> Judgement:
    """The judgement of a case, or of the one of that name."""
    peer.open(target)
    try:
        return judge(peer, target, case_of(target, case) if isinstance(case, str) else case)
    finally:
        peer.close()
