"""A verdict as an assertion, for a port's own tests under pytest or anything else.

    from conformance.testing import assert_conforms

    def test_conforms():
        assert_conforms(MyPeer())

`conformance/examples/forty_lines.py` is such a peer. A port of which only logits are at hand gives a function:

    def test_logits():
        assert_conforms(my_logits, ckpt=bundled("tiny"))
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from conformance.cases.abilities import TEXT, Required
from conformance.cases.prompt import GENERATE
from conformance.checkpoints import BUNDLED
from conformance.commands.options import LANES
from conformance.commands.request import Request, generates
from conformance.commands.required import required_of
from conformance.commands.run import result_of
from conformance.errors import UsageError
from conformance.judge.judgement import Judgement
from conformance.judge.together import TOGETHER
from conformance.peers.function import FunctionPeer, Logits
from conformance.peers.made import METHODS, made
from conformance.peers.protocol import Peer
from conformance.report.known import Known
from conformance.report.known import load as load_known
from conformance.report.result import Result
from conformance.report.text import show_failures
from t5g2ref.backend import NUMPY

WIDTH = 110
EXACT = "exact"


def assert_conforms(
    peer: Peer | Logits,
    *,
    ckpt: str | Path | None = None,
    synthetic: bool = False,
    lane: str | None = None,
    cases: Sequence[str] = (),
    require: str | Path | Sequence[str] | None = None,
    known: str | Path | None = None,
) -> None:
    """Raise AssertionError unless the verdict on the peer is CONFORMS. Its message has the verdict's line, each cause
    with its first bad tap, and the call that judges that case alone.

    What is missing, skipped or incomplete raises too: nothing that was not judged is a pass.

    Args:
        peer: an object with the members of `peers.protocol.Peer`; or a function that returns logits, see
            `peers.function.FunctionPeer`, which is judged on the text cases that it can do.
        ckpt: as of `--ckpt`; None for "tiny", which is two checkpoints. A function has its weights, so it needs the
            name of its own: `ckpt=bundled("tiny")`.
        synthetic: seeded weights at the geometry that `ckpt` names.
        lane: "exact", "fp32", "bf16", "fp16" or "generate"; None for the exact lane, that of the peer's type, and what
            its `generate` does where it has one. For a function it says which type it runs in, by default float32.
        cases: patterns of case names; all when there is none.
        require: as of `--require`, or the names of cases: what the verdict has to cover.
        known: a file of known deviations.

    Raises:
        UsageError, Unavailable: what was asked for cannot be judged, or makes no sense.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    result = result_of(_request(peer, ckpt, synthetic, lane, tuple(cases), require, known))
    if result.interrupted:
        raise KeyboardInterrupt
    if result.status:
        raise AssertionError(_told(result, ckpt, lane))


def _request(
    given: Peer | Logits,
    ckpt: str | Path | None,
    synthetic: bool,
    lane: str | None,
    cases: tuple[str, ...],
    require: str | Path | Sequence[str] | None,
    known: str | Path | None,
) -> Request:
    if lane not in (None, EXACT, *LANES, GENERATE):
        raise UsageError(f"lane={lane!r}: expected one of {', '.join((EXACT, *LANES, GENERATE))}, or None")
    if cases and require is not None:
        raise UsageError("require= says which cases are run, and so does cases=: give one of them")
    peer = _peer(given, ckpt, lane)
    black_box = isinstance(peer, FunctionPeer)
    if lane in LANES and LANES[lane] != peer.dtype:
        raise UsageError(f"lane={lane!r}: {peer.name} runs in {peer.dtype}")
    return Request(
        peers=(peer,),
        backend=NUMPY,
        ckpt=str(ckpt or "tiny"),
        synthetic=synthetic,
        cases=cases,
        exact=lane in (None, EXACT) and not black_box,
        asked=lane == EXACT,
        values=lane not in (EXACT, GENERATE),
        generate=lane == GENERATE or (lane is None and generates(peer)),
        generating=lane == GENERATE,
        progress=False,
        known=load_known(Path(known)) if known else Known(),
        jobs=1,
        required=_required(TEXT if black_box and require is None and not cases else require),
    )


def _peer(given: Any, ckpt: str | Path | None, lane: str | None) -> Peer:
    """The peer, or the function as one. Raises PeerUnavailable for an object that is neither."""
    if not callable(given) or any(hasattr(given, method) for method in METHODS):
        return made("assert_conforms", lambda *_: given, "", NUMPY)
    if lane in (EXACT, GENERATE):
        raise UsageError(f"lane={lane!r}: a function shows no weights and no bits, and has no generate(); give a peer")
    if ckpt is None or len(BUNDLED.get(str(ckpt), ())) > 1:
        raise UsageError(f"ckpt={ckpt!r}: a function has one checkpoint's weights: name it, as ckpt=bundled('tiny')")
    return FunctionPeer(given, LANES[lane or "fp32"])


def _required(require: str | Path | Sequence[str] | None) -> Required | None:
    if require is None:
        return None
    if isinstance(require, str | Path):
        return required_of(str(require))
    if not require:
        raise UsageError("require=(): names no case; give names, 'text', or a file")
    return Required(tuple(dict.fromkeys(require)), ", ".join(require))


def _told(result: Result, ckpt: str | Path | None, lane: str | None) -> str:
    """The assertion's message."""
    page = io.StringIO()
    show_failures(result, Console(file=page, width=WIDTH, color_system=None))
    failed = [(target, j) for target, j in result.judgements if not j.passed and not j.known]
    failed.sort(key=lambda one: not one[1].deviates or one[1].culprit is None)  # as the verdict's line has it
    again = [_again(str(ckpt or target), judgement, lane) for target, judgement in failed[:1]]
    return "\n".join([result.last_line(), page.getvalue().rstrip(), *again])


def _again(ckpt: str, judgement: Judgement, lane: str | None) -> str:
    """The call that judges one case alone."""
    case = judgement.case
    given = f", lane={(EXACT if case == EXACT else lane)!r}" if lane or case == EXACT else ""
    given += f", cases=[{case!r}]" if case not in (EXACT, TOGETHER) else ""
    return f"  reproduce       assert_conforms(peer, ckpt={ckpt!r}{given})"
