"""What was asked of a run: with the judgements, all that its verdict follows from. A file can hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from conformance.cases import catalogue, generating, long, pictured
from conformance.cases.abilities import Required
from conformance.cases.case import Case
from conformance.cases.each_kind import ALL
from conformance.judge.comparisons import EXACT, Comparison, Plan, asks, comparisons
from conformance.target import Target
from t5g2ref.config import Config


@dataclass(frozen=True)
class Asked:
    """A peer as it was asked for: what a report needs to know of it, without having it.

    Args:
        given: what to give to `--peer` for it; None for what no name has.
        mark: a checksum of the Python file that it is in; "" for none.
        preallocated, probed: see `peers.protocol.OptionalMembers`.
        generates, prepares: whether it has a `generate`, and a processor of its own.
    """

    name: str
    dtype: str
    given: str | None = None
    mark: str = ""
    preallocated: bool = False
    probed: bool = True
    generates: bool = False
    prepares: bool = False


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What was chosen to be judged, and what its verdict follows from.

    Args:
        ckpt, synthetic, calm, stream, layers: see `checkpoints.resolve`.
        cases: globs of case names; none for all.
        exact: whether the exact lane is wanted.
        asked: whether the exact lane was named; a peer that cannot have it then makes the verdict INCOMPLETE.
        values: whether any lane of values is wanted, and so the cases.
        generate: whether the generation lane is wanted.
        generating: whether it was named. It then has the cases that take a while, and a peer that cannot have it makes
            the verdict INCOMPLETE.
        repeat: whether every case is run twice.
        required: what the verdict has to cover; None for every case.
        rows: whether batches are given a row at a time.
        notes: warnings that arose while the peers were made.
    """

    ckpt: str
    synthetic: bool = False
    calm: bool = False
    stream: bool | None = None
    layers: str = ALL
    cases: tuple[str, ...] = ()
    exact: bool = True
    asked: bool = False
    values: bool = True
    generate: bool = False
    generating: bool = False
    repeat: bool = True
    required: Required | None = None
    rows: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Terms(Chosen):
    """What was asked.

    Args:
        peers: in order.
        environment: the judge's versions, see `result.environment`.
        known: what the file of known deviations says, as a checksum; "" for none.
    """

    peers: tuple[Asked, ...]
    environment: Mapping[str, str]
    known: str = ""


@dataclass(frozen=True)
class Work:
    """What there is to judge.

    Args:
        targets: the checkpoints, in order; a report needs no weights of them.
        built: every case of every checkpoint, the costly ones of the first alone.
        plan: those of them that were asked for.
        own: whether the cases are the suite's own, so that what they reach is known.
    """

    terms: Terms
    targets: tuple[Target, ...]
    built: Plan
    plan: Plan
    own: bool = True

    @property
    def judged_on(self) -> list[Target]:
        """The checkpoints that cases were asked for on."""
        return list({id(target): target for target, _ in self.plan}.values())

    @cached_property
    def judged(self) -> Plan:
        """The cases that a lane which is wanted has: none where that is the exact lane alone."""
        wants = self.terms
        return [(t, case) for t, case in self.plan if (wants.generate if case.prompts else wants.values)]

    @cached_property
    def every(self) -> list[Comparison]:
        """All comparisons, in the order of a report."""
        peers = {peer.name: partial(self.asks, peer) for peer in self.terms.peers}
        return comparisons([t.name for t in self.judged_on], peers, self.judged, exact=self.terms.exact)

    @cached_property
    def places(self) -> dict[Comparison, int]:
        """Comparison → its place in the order of a report."""
        return {comparison: i for i, comparison in enumerate(self.every)}

    @cached_property
    def _cases(self) -> dict[tuple[str, str], tuple[Target, Case]]:
        return {(target.name, case.name): (target, case) for target, case in self.judged}

    def of(self, comparison: Comparison) -> tuple[Target, Case | None]:
        """The checkpoint and the case of a comparison; None for the exact lane."""
        if comparison.case == EXACT:
            return next(target for target in self.targets if target.name == comparison.target), None
        return self._cases[comparison.target, comparison.case]

    def asks(self, peer: Asked, case: Case) -> bool:
        """Whether a peer is judged on a case."""
        generates = peer.generates or self.terms.generating
        return asks(peer.dtype, case, generates=generates, prepares=peer.prepares)


def cases(terms: Terms, config: Config) -> list[Case]:
    """Every case for a geometry that a lane which is wanted has, and that of picture files where a peer can read them.
    Long context, and prompts that take a while, are asked for by name."""
    made = (catalogue.build_rows if terms.rows else catalogue.build)(config)
    made += pictured.build(config) if any(peer.prepares for peer in terms.peers) else []
    prompts = generating.build(config) if terms.generate else []
    named = (
        [case for case in long.build(config) if case.name in terms.cases] if set(long.NAMES) & {*terms.cases} else []
    )
    return made + named + [c for c in prompts if not c.costly or terms.generating or c.name in terms.cases]


def work(terms: Terms, targets: Iterable[Target], cases_of: Callable[[Config], list[Case]] | None = None) -> Work:
    """The cases that were asked for, on these checkpoints.

    Args:
        cases_of: makes the cases for a geometry; None for those of the catalogue.
    """
    made, build = tuple(targets), cases_of or partial(cases, terms)
    built = [(t, case) for t in made for case in build(t.config) if t is made[0] or not case.costly]
    plan = [(t, case) for t, case in built if catalogue.select([case], list(terms.cases))]
    return Work(terms, made, built, plan, cases_of is None)
