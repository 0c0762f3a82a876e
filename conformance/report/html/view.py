"""Decides what the page says, section by section. The markup is in `templates/report.html`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from conformance.report.document import (
    Document,
    Row,
    carded,
    failing,
    number,
    rows,
    severity,
)
from conformance.report.html import markdown
from conformance.report.html.causes import Blame, blamed, largest, tables
from conformance.report.html.commands import whole_command
from conformance.report.html.comparisons import SYMBOLS, WORDS, WORST, Comparison, comparisons
from conformance.report.html.depth import Depth, depth

PLOTS = 6  # of culprits; a peer without one has a plot of its own
VERDICTS = {"CONFORMS": ("✓", "pass"), "DEVIATES": ("✗", "fail"), "INCOMPLETE": ("?", "error")}


@dataclass(frozen=True)
class Cell:
    """One peer on one case in the matrix."""

    index: int
    state: str
    symbol: str
    word: str
    figures: str


@dataclass(frozen=True)
class Matrix:
    target: str
    peers: list[str]
    cases: list[tuple[str, str, list[Cell | None]]] = field(default_factory=list)


def page(document: Document) -> dict[str, Any]:
    """Everything that the template needs, by name."""
    shown = comparisons(document)
    by_state = {name: [c for c in shown if c.state == name] for name in SYMBOLS}
    symbol, tone = VERDICTS.get(str(document["verdict"]), ("?", "error"))
    return {
        "document": document,
        "symbol": symbol,
        "tone": tone,
        "comparisons": shown,
        "by_state": by_state,
        "blames": (blames := blamed(document, shown, made := carded(document))),
        "more_blames": len(made) - len(blames),
        "tables": tables(document, shown, made),
        "matrices": _matrices(document, shown),
        "plots": _plots(document, shown, blames),
        "targets": list(dict.fromkeys(str(c.judgement["target"]) for c in shown)),
        "peers": list(dict.fromkeys(str(c.judgement["peer"]) for c in shown)),
        "taps": sum(c.total for c in shown),
        "hidden": _by_reason(document["not_exposed"]),
        "largest_kl": _largest_kl(shown),
        "largest_k": _largest_k(shown),
        "unexpected": [k for k in document["known"] if k["state"] == "unexpected pass"],
        "command": whole_command(document),
        "asked": {name: given for name, given in document.get("peers", {}).items() if name != given},
        "text": markdown.render(document),
        "words": WORDS,
        "symbols": SYMBOLS,
        "worst": WORST,
    }


def _matrices(document: Document, shown: list[Comparison]) -> list[Matrix]:
    tables: dict[str, dict[str, dict[str, Comparison]]] = {}
    for c in shown:
        cases = tables.setdefault(str(c.judgement["target"]), {})
        cases.setdefault(str(c.judgement["case"]), {})[str(c.judgement["peer"])] = c
    return [_matrix(document, target, cases) for target, cases in tables.items()]


def _matrix(document: Document, target: str, cases: dict[str, dict[str, Comparison]]) -> Matrix:
    peers = list(dict.fromkeys(peer for row in cases.values() for peer in row))
    matrix = Matrix(target, peers)
    for case, row in cases.items():
        title = next((str(c.judgement.get("title", "")) for c in row.values()), "")
        matrix.cases.append((case, title, [_cell(document, row[p]) if p in row else None for p in peers]))
    return matrix


def _cell(document: Document, c: Comparison) -> Cell:
    lanes = [rows(document, c.judgement, lane) for lane in ("exact", "local", "cumulative")]
    return Cell(c.index, c.state, c.symbol, c.word, _figures(c, *lanes))


def _figures(c: Comparison, exact: list[Row], local: list[Row], cumulative: list[Row]) -> str:
    """Largest ratios, local / cumulative; for the exact lane, how many findings passed; else what happened."""
    if c.state in ("skip", "error"):
        return c.word
    if exact and not local:
        return f"{len(exact) - len(failing(exact))} of {len(exact)}"
    return f"{largest(local)} / {largest(cumulative)}" if local or cumulative else c.word


def _plots(document: Document, shown: list[Comparison], blames: list[Blame]) -> list[tuple[Comparison, Depth]]:
    """One plot for each culprit; for a peer without one, a plot of its largest ratio."""
    chosen = [blame.first for blame in blames if blame.main][:PLOTS]
    covered = {(c.judgement["target"], c.judgement["peer"]) for c in chosen}
    best: dict[tuple[str, str], tuple[Any, Comparison]] = {}
    for c in shown:
        key = (str(c.judgement["target"]), str(c.judgement["peer"]))
        worst = max(map(severity, rows(document, c.judgement, "local")), default=None)
        if (
            key not in covered
            and worst is not None
            and c.state == "pass"
            and worst > best.get(key, ((False, -1.0),))[0]
        ):
            best[key] = worst, c
    chosen += [c for _, c in best.values()][: max(2, PLOTS - len(chosen))]
    made = [(c, _depth(document, c)) for c in chosen]
    return [(c, plot) for c, plot in made if plot is not None]


def _depth(document: Document, c: Comparison) -> Depth | None:
    local, cumulative = (rows(document, c.judgement, anchor) for anchor in ("local", "cumulative"))
    return depth(local, cumulative, c.culprit)


def _by_reason(hidden: Document) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for defect, reason in hidden.items():
        groups.setdefault(str(reason), []).append(str(defect))
    return list(groups.items())


def _largest_kl(shown: list[Comparison]) -> list[Comparison]:
    """For each peer on each checkpoint, the comparison with the largest KL ratio."""
    largest: dict[tuple[str, ...], Comparison] = {}
    for c in (c for c in shown if c.judgement.get("logits")):
        key = tuple(str(c.judgement[name]) for name in ("target", "peer"))
        if key not in largest or _kl(c) > _kl(largest[key]):
            largest[key] = c
    return list(largest.values())


def _kl(c: Comparison) -> float:
    """The KL ratio; a NaN is the largest of all."""
    ratio = number(c.judgement["logits"].get("kl_ratio"))
    return math.inf if math.isnan(ratio) else ratio


def _largest_k(shown: list[Comparison]) -> list[tuple[Document, Comparison]]:
    """For each kind of tap, the largest limit and the comparison that has it."""
    largest: dict[str, tuple[Document, Comparison]] = {}
    for c in shown:
        for entry in c.judgement.get("k", ()):
            kind = str(entry["kind"])
            if kind not in largest or number(entry["median"]) > number(largest[kind][0]["median"]):
                largest[kind] = entry, c
    return list(largest.values())
