"""Makes the result of judgements. Whoever made them, in how many processes and on which machines, it is the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from conformance.cases.case import Case
from conformance.cases.plan import plan_of
from conformance.defects.catalogue import DEFECTS
from conformance.defects.exposure import hidden, reach
from conformance.judge.comparisons import EXACT, Found, Plan, in_order
from conformance.judge.pooled import pooled
from conformance.judge.sitting import Beside
from conformance.judge.steady import steadiness
from conformance.judge.together import TOGETHER, together
from conformance.measure.causes import layer_types
from conformance.report.called import labels, renamed
from conformance.report.coverage import coverage, inside
from conformance.report.known import Known
from conformance.report.log_probs import farthest
from conformance.report.result import Result
from conformance.report.terms import Asked, Work
from t5g2ref.dtypes import HALF

NOT_OURS = "what these prompts reach is not known: they are no cases of the suite's own"


def concluded(work: Work, found: Found, beside: Beside, known: Known, command: str = "") -> Result:
    """The judgements in the order of the checkpoints, with everything else that a report says.

    Args:
        found: in any order.
        known: known deviations; the call notes which of them were seen.
    """
    terms, plan = work.terms, work.plan
    single = in_order(found, work.every)
    together_too = _with_together(work, single)
    applied = [(t, known.applied(j, beside.versions.get(j.peer, {}))) for t, j in together_too]
    called = labels([peer.name for peer in terms.peers], beside.called)
    found = [(target, replace(j, peer=called[j.peer])) for target, j in applied]
    few = _few(plan, found)
    return Result(
        judgements=found,
        exposes={case.name: case.exposes for _, case in plan},
        titles={case.name: case.title for _, case in plan},
        hidden=_hidden(work, found, {d for d, *_ in few}),
        versions={k: v for peer in terms.peers for k, v in beside.versions.get(peer.name, {}).items()},
        selected=len(work.judged),
        available=len(work.built),
        environment=dict(terms.environment),
        peers={called[peer.name]: peer.given for peer in terms.peers if peer.given is not None},
        known=known.states(),
        notes=[
            *terms.notes,
            *(note for target in work.targets for note in target.notes),
            *_notes(terms.peers, found, terms.environment),
            *dict.fromkeys(note for _, note in few),
            *_wider(found),
            *reach(_judged_on(plan, found)),
            *_picked(plan, found),
            *farthest(found),
            *steadiness(found, {called[p.name] for p in terms.peers if not (terms.repeat and p.probed)}),
            *(renamed(note, called) for note in _ordered(beside.notes, terms.peers)),
        ],
        command=command,
        covers=coverage(terms.required, plan, found, terms.layers),
        layers={t.name: layer_types(t.config) for t in work.targets},
    )


def _with_together(work: Work, single: Found) -> Found:
    """What all cases say together stands behind each peer's cases."""
    peers = [peer.name for peer in work.terms.peers]
    order = [(target.name, peer) for target in work.targets for peer in peers]
    every = [*single, *together(single), *pooled(single)]
    return sorted(every, key=lambda item: (order.index((item[0], item[1].peer)), item[1].case == TOGETHER))


def _ordered(notes: Sequence[str], peers: Sequence[Asked]) -> list[str]:
    """Notes peer by peer. Which of a peer's comes first depends on who judged what, so they go by the alphabet."""
    names = [peer.name for peer in peers]

    def place(note: str) -> tuple[int, str]:
        about = [i for i, name in enumerate(names) if note.startswith(name)]
        return max(about, key=lambda i: len(names[i]), default=len(names)), note

    return sorted(dict.fromkeys(notes), key=place)


def _hidden(work: Work, found: Found, few: set[str]) -> dict[str, str]:
    """Defect → why this run could not have seen it."""
    if not work.own:
        return dict.fromkeys(DEFECTS, NOT_OURS)
    return hidden(
        [t.config for t in work.targets],
        _compared(work.plan, found, work.terms.peers),
        _powers(found),
        few,
        outside={j.dtype for _, j in inside(found) if j.outside},
        quantised={j.dtype for _, j in found if j.scheme},
        single=_in_single(found),
        repeated=all(j.repeated and not j.unmixed for _, j in found if j.local),
        preallocated=all(peer.preallocated for peer in work.terms.peers),
    )


def _notes(peers: Sequence[Asked], found: Found, environment: Mapping[str, str]) -> list[str]:
    """Caveats printed beside the verdict."""
    as_good = "CONFORMS says as good as this quantisation allows, beside legal runs whose linear layers are rounded so"
    yet = dict.fromkeys(f"{j.peer} declares {j.scheme}: {as_good}" for _, j in found if j.scheme)
    here = f"t5g2ref:{environment.get('backend', 'numpy')}:"
    own = [p.name for p in peers if p.name.startswith(here) and not p.name.endswith(":fast")]
    same = "is the judge's own code on the judge's own backend: this shows its rounding, and nothing of its correctness"
    return [*yet, *(f"{name} {same}" for name in own)]


def _compared(plan: Plan, found: Found, peers: Sequence[Asked]) -> list[Case]:
    """The cases that every peer was judged on that they ask for; the others exposed nothing."""
    judged = [
        (target, j.case) for target, j in found if not j.error and not j.skipped and j.case not in (EXACT, TOGETHER)
    ]
    asked = {id(case): sum(case.asks(peer.dtype) for peer in peers) for _, case in plan}
    return [case for t, case in plan if judged.count((t.name, case.name)) == asked[id(case)] > 0]


def _judged_on(plan: Plan, found: Found) -> list[tuple[str, Case]]:
    """(type, case) of every peer that was judged on a case."""
    cases = {(target.name, case.name): case for target, case in plan}
    return [(j.dtype, j.made or cases[target, j.case]) for target, j in found if j.local]


def _few(plan: Plan, found: Found) -> list[tuple[str, str]]:
    """(type, note) of each peer that did not show every tap of a case."""
    cases = {(target.name, case.name): (target, case) for target, case in plan}
    few = dict[str, tuple[str, str]]()
    for target_name, j in inside(found):
        if j.local and j.peer not in few:
            target, case = cases[target_name, j.case]
            if j.outside:
                few[j.peer] = j.dtype, f"{j.peer} shows {j.outside}: where a mistake is inside cannot be seen"
            elif len(j.local) < (declared := len(plan_of(target.config, case))):
                shown = f"{j.peer} shows {len(j.local)} of {declared} taps (case {case.name})"
                few[j.peer] = j.dtype, f"{shown}: a mistake can only be placed between two of them"
    return list(few.values())


def _wider(found: Found) -> list[str]:
    """A note for each peer with values of more bits than it declares."""
    taps = dict[tuple[str, str], dict[str, str]]()
    for _, j in found:
        if j.wider:
            taps.setdefault((j.peer, j.dtype), {}).update(j.wider)
    return [
        f"{peer} declares {dtype} and shows {', '.join(sorted(set(wide.values())))} at {len(wide)} taps, first "
        f"{next(iter(wide))}: judged as shown; more bits are no mistake"
        for (peer, dtype), wide in taps.items()
    ]


def _in_single(found: Found) -> bool:
    """Whether all peers were judged in float32; of one that was not, what is below a half type's rounding is open."""
    types: dict[str, set[str]] = {}
    for _, j in found:
        if j.local:
            types.setdefault(re.sub(r":(bfloat16|float16|float32)\b.*", "", j.peer), set()).add(j.dtype)
    return all("float32" in seen for seen in types.values())


def _picked(plan: Plan, found: Found) -> list[str]:
    """A note for each case of which picked tokens alone were judged."""
    judged = {(target, j.case) for target, j in found if j.local}
    cases = [case for target, case in plan if case.picks and (target.name, case.name) in judged]
    alone = "tokens were judged, under the local anchor alone; of the others keys and values are read"
    return list(dict.fromkeys(f"case {case.name}: {_counted(case)} {alone}" for case in cases))


def _counted(case: Case) -> str:
    """How many tokens of each row were picked: "46 of 8192, 31 of 520"; nothing of a row that is judged whole."""
    rows = [(p.source, run.input_ids) for run in case.runs if (p := run.picked)]
    rows += [(p.answer, run.decoder_input_ids) for run in case.runs if (p := run.picked)]
    return ", ".join(f"{len(at)} of {ids.shape[1]}" for at, ids in rows if len(at) < ids.shape[1])


def _powers(found: Found) -> dict[str, bool]:
    """Defect id → whether every peer in half precision had an input that would have shown its pattern."""
    peers = {(t, j.peer) for t, j in found if j.dtype in HALF and j.local}
    able = {(j.peer, s.defect) for _, j in found for s in j.named if s.verdict in ("named", "absent")}
    defects = {s.defect for _, j in found for s in j.named}
    return {d: bool(peers) and all((peer, d) in able for _, peer in peers) for d in defects}
