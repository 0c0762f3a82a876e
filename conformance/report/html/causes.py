"""The causes as the page shows them: a card for each, and a table for each peer that has several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from conformance.report import spread
from conformance.report.candidates import candidates
from conformance.report.cards import Card, Place, tabled
from conformance.report.document import Document, Row, finding, in_table, looked_for, number, rows, severity
from conformance.report.html.commands import command
from conformance.report.html.comparisons import Comparison

CARDS = 12  # of causes, and rows of a table of them


@dataclass(frozen=True)
class Blame:
    """One cause: the comparison that shows it first, and every peer, checkpoint and case that shows the same.

    `main`: whether it has the comparison's first bad tap.
    """

    first: Comparison
    places: dict[tuple[str, str], list[tuple[int, str]]]
    defects: list[Document]
    akin: list[Document]
    candidates: list[str]
    command: str
    apart: str = ""
    cause: str = ""
    main: bool = True
    layers: str = ""
    cache: str = ""


def blamed(document: Document, shown: list[Comparison], made: list[Card]) -> list[Blame]:
    """The first causes, each once, in the order of the run."""
    return [_blame(document, shown, card) for card in made[:CARDS]]


def _blame(document: Document, shown: list[Comparison], card: Card) -> Blame:
    (failure, place), places = card.members[0], dict[tuple[str, str], list[tuple[int, str]]]()
    for other, _ in card.members:
        places.setdefault(other.place, []).append((other.index, other.case))
    c = shown[failure.index]
    first = c if failure.culprit == place else replace(c, culprit=finding(document, c.judgement, place))
    looked = [s for other, at in card.members for s in looked_for(shown[other.index].judgement, at)[0]]
    defects = dict[str, Document]()
    for signature in (s for s in looked if s.get("verdict") == "named"):
        defects.setdefault(str(signature["defect"]), signature)  # figures of the first case, as all of the card
    here, apart = looked_for(c.judgement, place)
    akin = [s for s in here if s.get("verdict") == "akin" and not defects]
    return Blame(
        first,
        places,
        list(defects.values()),
        akin,
        [] if defects or akin else _may_be(document, first, looked),
        command(document, c.judgement),
        apart,
        card.cause.title if card.cause is not None and card.cause.where else "",
        first is c,
        *_spread(document, first),
    )


@dataclass(frozen=True)
class CauseRow:
    """A cause in the table of a peer that has several."""

    number: int
    title: str
    taps: str
    cases: list[str]
    worst: str
    names: str


def tables(document: Document, shown: list[Comparison], made: list[Card]) -> list[tuple[Place, int, list[CauseRow]]]:
    """Peer and checkpoint, how many causes it has where there are several, and a row for each of the first."""
    numbers = {id(card): i for i, card in enumerate(made)}
    return [
        (where, len(several), [_cause_row(document, shown, card, where, numbers[id(card)]) for card in several[:CARDS]])
        for where, several in tabled(made).items()
    ]


def _cause_row(document: Document, shown: list[Comparison], card: Card, where: Place, number: int) -> CauseRow:
    members = [(shown[f.index].judgement, f.case, place) for f, place in card.members if f.place == where]
    worst = largest(row for j, _, place in members if (row := finding(document, j, place)) is not None)
    looked = [s for j, _, place in members for s in looked_for(j, place)[0]]
    names = dict.fromkeys(str(s["defect"]) for s in looked if s.get("verdict") == "named")
    title, taps = (card.cause.title, ", ".join(card.cause.taps)) if card.cause else ("", "")
    return CauseRow(number, title, taps, [case for _, case, _ in members], worst, " ".join(names) or "?")


def _may_be(document: Document, first: Comparison, looked: list[Document]) -> list[str]:
    """What a culprit without a name may be, a line each; nothing that this very page says is absent or unseen."""
    exposed = [d for d in document["exposes"].get(first.judgement["case"], ()) if d not in document["not_exposed"]]
    tried = [(str(s["defect"]), str(s["verdict"])) for s in looked]
    tap, status = (str((first.culprit or {}).get(name, "")) for name in ("tap", "status"))
    return candidates(tap, status, exposed, tried, single=first.judgement.get("dtype") == "float32")


def _spread(document: Document, c: Comparison) -> tuple[str, str]:
    """Over which layers a local culprit's mistake is spread, and whether it begins at the cache."""
    if c.culprit is None or c.anchor != "local anchor":
        return "", ""
    tap, call = str(c.culprit["tap"]), int(number(c.culprit["call"]))
    found = [(str(r["tap"]), int(number(r["call"])), str(r["status"])) for r in rows(document, c.judgement, "local")]
    return spread.layers(tap, found), spread.cache(tap, call, found)


def largest(found: Iterable[Row]) -> str:
    """The largest ratio that was judged; where a failure has none, its status."""
    worst = max(found, key=severity, default=None)
    if worst is None:
        return "–"
    judged = number(worst["judged"])
    return str(worst["status"]) if judged != judged else in_table(judged)
