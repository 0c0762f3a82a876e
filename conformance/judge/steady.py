"""Whether a peer repeats itself: the case once more, after inputs of other lengths, compared bit for bit.

A race, memory that nobody wrote, and a table kept from another length change between runs. One run shows none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from conformance.activations import Array, Dump
from conformance.cases.case import Case, Run
from conformance.cases.ingredients import Kit
from conformance.cases.least import LOGITS, PAIR
from conformance.cases.plan import Shown, plan_of, valid_tokens
from conformance.judge.judgement import Judgement
from conformance.peers.guard import PeerError, call
from conformance.peers.protocol import Peer, Skip
from conformance.target import Target
from t5g2ref.backend import Backend
from t5g2ref.taps import Tap

SEED = 20260611  # of the inputs between two runs of a case
SHORT, MORE = 2, 7  # tokens of the short input, and by how many the long one is longer than the case's
BETWEEN = "between"
"""The name of the case that a peer is asked between two runs; what it shows there is not looked at."""


def steadied(
    first: Judgement,
    peer: Peer,
    target: Target,
    case: Case,
    dump: Dump,
    shown: Shown,
    compared: Callable[[Dump], Judgement],
) -> Judgement:
    """The judgement after the case was repeated: of the run that deviates, where one of two does.

    Args:
        first, dump: of the first run.
        compared: judges another run.
    """
    refused = [why for other in between(target, case) if (why := _refused(peer, target, other))]
    first = replace(first, unmixed=refused[0] if refused else "")
    with Dump(target.backend, first=dump) as again:
        try:
            call("", peer.run, case.copied(), again, passing=(Skip,))
        except (Skip, PeerError) as fault:
            raised = f"asked for the same case once more, it raised: {fault}"
            return replace(first, error="; ".join(filter(None, (first.error, raised))))
        seen = [(n, tap.name) for n, tap in plan_of(target.config, case) if shown(tap.name)]
        unlike = first_unlike(target, case, dump, again, shown)
        if not unlike:
            return replace(first, repeated=len(seen))
        second = compared(again)
        return _of_two(first, second, unlike, len(seen))


def _refused(peer: Peer, target: Target, other: Case) -> str:
    """Why the peer does not run an input between; "" where it does. It need not do what the case does not ask."""
    with Dump(target.backend, unseen=True) as unseen:
        try:
            call("", peer.run, other.copied(), unseen, passing=(Skip,))
        except (Skip, PeerError) as refusal:
            return str(refusal) or "it does not say why"
    return ""


def _of_two(first: Judgement, second: Judgement, unlike: str, taps: int) -> Judgement:
    failing = [j for j in (first, second) if not j.passed]
    how = ("both runs conform", "one of the two runs is wrong", "both runs are wrong")[len(failing)]
    told = replace(failing[0] if failing else first, unmixed=first.unmixed)
    return replace(told, repeated=taps, unsteady=f"{unlike}; {how}")


def between(target: Target, case: Case) -> list[Case]:
    """Inputs of other lengths for the model of this case: a short one, then one longer than any of the case's."""
    kit = Kit(target.config, np.random.default_rng(SEED))
    source = max(run.input_ids.shape[1] for run in case.runs) + MORE
    answer = max(run.decoder_input_ids.shape[1] for run in case.runs) + MORE
    decoding = case.task != "encoder"

    def of(source: int, answer: int) -> Case:
        run = Run(kit.ids(1, source), kit.ids(1, answer) if decoding else np.zeros((1, 0), np.int64))
        if case.task == "lm":
            run = replace(run, logits_to_keep=1)
        return Case(BETWEEN, "between two runs of a case", (run,), case.task, case.num_labels)

    return [of(SHORT, SHORT), of(source, answer)]


def first_unlike(target: Target, case: Case, first: Dump, again: Dump, shown: Shown) -> str:
    """Where the bits of the two runs first differ at a token that counts, in words; "" where they never do."""
    for n, tap, name in _shown_at(target, case, first):
        if not shown(tap.name) or again.repeats(n, name):
            continue
        a, b = (_host(dump.get(n, name), target.backend) for dump in (first, again))
        where = f"{name} (call {n})"
        if a is None or b is None:
            if a is not b:
                return f"only one of two runs shows {where}"
            continue
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"two runs give {a.dtype} {a.shape} and {b.dtype} {b.shape} at {where}"
        a, b = (valid_tokens(x, tap, case, n) for x in (a, b))
        count = int(np.count_nonzero(_words(a) != _words(b)))
        if count:
            return f"two runs of the same call differ first at {where}, in {count} of {a.size} values"
    return ""


def _shown_at(target: Target, case: Case, dump: Dump) -> Iterator[tuple[int, Tap, str]]:
    """(call, tap, name of what is shown there): log-probabilities and their ids may stand for logits."""
    for n, tap in plan_of(target.config, case):
        for name in PAIR if tap.name == LOGITS and dump.get(n, PAIR[0]) is not None else (tap.name,):
            yield n, tap, name


def _host(value: Array | None, backend: Backend) -> Array | None:
    return None if value is None else backend.host(value)


def _words(value: Array) -> Array:
    return np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")


def steadiness(found: list[tuple[str, Judgement]], once: set[str]) -> list[str]:
    """What repeating the cases showed, in lines: who is unsteady, and how rare a race may still be.

    Args:
        found: (checkpoint, judgement).
        once: names of the peers that cannot be asked again.
    """
    lines = [f"{j.peer} is unsteady in case {j.case} of {t}: {j.unsteady}" for t, j in found if j.unsteady]
    steady = [j for _, j in found if j.repeated and not j.unsteady]
    if taps := sum(j.repeated for j in steady):
        rare = f"what strikes a tap less often than once in {2 * taps // 3} runs may not have shown"
        lines.append(f"{len(steady)} comparisons were run twice, with the same bits at {taps} taps: {rare}")
    for peer, why in dict.fromkeys((j.peer, j.unmixed) for j in steady if j.unmixed):
        lines.append(f"{peer} refuses an input of another length between two runs ({why}): a stale table may not show")
    if shown := sorted(once & {j.peer for _, j in found if j.local}):
        lines.append(
            f"{', '.join(shown)} shows one run: a race, or a table kept from another input, was not looked for"
        )
    return lines
