"""The cards of a report: one for each cause, with every comparison that shows it.

Failing taps of one peer on one checkpoint are sorted into causes over all cases at once, since each case shows a part.
The same cause of several peers or checkpoints is one card. A comparison that fails in the exact lane or under the
cumulative anchor alone has no causes: its first bad tap is a card.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from conformance.measure.causes import Cause, LayerTypes, Row, of_rows, own

Place = tuple[str, str]
"""Peer and checkpoint."""


@dataclass(frozen=True)
class Failure:
    """A failing comparison, as far as it is to be sorted.

    Args:
        index: of the comparison in its report.
        culprit: its first bad tap, with call and status.
        local: every finding of the local anchor; none where the culprit is not one of them.
        error: what the peer raised: taps that are missing behind it are no cause.
    """

    index: int
    place: Place
    case: str
    culprit: Row
    local: Sequence[Row]
    error: str = ""

    @property
    def rows(self) -> list[Row]:
        """The failing local findings that stand for themselves."""
        return [row for row in own(self.local) if not (self.error and row[2] == "missing")]


@dataclass
class Card:
    """One cause, or one culprit without: (comparison's index, its first bad tap here) of everything that shows it."""

    cause: Cause | None
    members: list[tuple[Failure, Row]] = field(default_factory=list)


def cards(failures: Iterable[Failure], types: Mapping[str, LayerTypes]) -> list[Card]:
    """The cards in the order of the run, and within a comparison in that of the computation.

    Args:
        types: checkpoint → its stacks' layer types.
    """
    failures = list(failures)
    known = {place: _of_place(failures, place, types) for place in dict.fromkeys(f.place for f in failures)}
    found: dict[object, Card] = {}
    for failure in failures:
        for cause, row in _causes_of(failure, known[failure.place]):
            key = (row[0], row[2], failure.error) if cause is None else (cause, failure.error)
            found.setdefault(key, Card(cause)).members.append((failure, row))
    return list(found.values())


def tabled(made: Iterable[Card]) -> dict[Place, list[Card]]:
    """Peer and checkpoint → its cards that have a cause, where there are several."""
    tables: dict[Place, list[Card]] = {}
    for card in made:
        for place in dict.fromkeys(failure.place for failure, _ in card.members if card.cause is not None):
            tables.setdefault(place, []).append(card)
    return {place: rows for place, rows in tables.items() if len(rows) > 1}


def _of_place(failures: Iterable[Failure], place: Place, types: Mapping[str, LayerTypes]) -> dict[Row, Cause]:
    """Failing finding → the cause that it belongs to, from all cases of a peer on a checkpoint."""
    rows = dict.fromkeys(row for f in failures if f.place == place for row in f.rows)
    return {row: cause for cause in of_rows(list(rows), types.get(place[1], {})) for row in cause.rows}


def _causes_of(failure: Failure, known: Mapping[Row, Cause]) -> list[tuple[Cause | None, Row]]:
    """The causes that a comparison shows, each with its first bad tap; the culprit alone where it is of no cause."""
    first: dict[Cause, Row] = {}
    for row in failure.rows:
        first.setdefault(known[row], row)
    if failure.culprit not in failure.local or not first:
        return [(None, failure.culprit)]
    return list(first.items())
