"""What was asked of a run: with the judgements, all that its verdict follows from. A file can hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from conformance.cases import catalogue
from conformance.cases.abilities import Required
from conformance.cases.case import Case
from conformance.judge.comparisons import Comparison, Plan, comparisons
from conformance.target import Target
from t5g2ref.config import Config


@dataclass(frozen=True)
class Asked:
    """A peer as it was asked for: what a report needs to know of it, without having it.

    Args:
        given: what to give to `--peer` for it; None for what no name has.
        preallocated, probed: see `peers.protocol.OptionalMembers`.
    """

    name: str
    dtype: str
    given: str | None = None
    preallocated: bool = False
    probed: bool = True


@dataclass(frozen=True)
class Terms:
    """What was asked.

    Args:
        peers: in order.
        environment: the judge's versions, see `result.environment`.
        ckpt, synthetic, calm, cases, exact, asked, values, repeat, required, rows: see `commands.request.Request`.
        notes: warnings that arose while the peers were made.
        known: what the file of known deviations says, as a checksum; "" for none.
    """

    peers: tuple[Asked, ...]
    environment: Mapping[str, str]
    ckpt: str
    synthetic: bool = False
    calm: bool = False
    cases: tuple[str, ...] = ()
    exact: bool = True
    asked: bool = False
    values: bool = True
    repeat: bool = True
    required: Required | None = None
    rows: bool = False
    notes: tuple[str, ...] = ()
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

    @property
    def judged(self) -> Plan:
        """The cases that are judged: none where the exact lane alone is wanted."""
        return self.plan if self.terms.values else []

    @cached_property
    def every(self) -> list[Comparison]:
        """All comparisons, in the order of a report."""
        types = {peer.name: peer.dtype for peer in self.terms.peers}
        return comparisons([t.name for t in self.judged_on], types, self.judged, exact=self.terms.exact)


def work(terms: Terms, targets: Iterable[Target], cases_of: Callable[[Config], list[Case]] | None = None) -> Work:
    """The cases that were asked for, on these checkpoints.

    Args:
        cases_of: makes the cases for a geometry; None for those of the catalogue.
    """
    made, build = tuple(targets), cases_of or (catalogue.build_rows if terms.rows else catalogue.build)
    built = [(t, case) for t in made for case in build(t.config) if t is made[0] or not case.costly]
    plan = [(t, case) for t, case in built if catalogue.select([case], list(terms.cases))]
    return Work(terms, made, built, plan, cases_of is None)
