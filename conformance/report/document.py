"""Reads the report document (JSON, schema 2) for JUnit and HTML: rows by name, groups of taps, numbers in words.

Nothing here knows a Python object of the judge, so a document written by another program renders as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from conformance.measure import words
from conformance.measure.match import Signature
from conformance.report.cards import Card, Failure, cards

SCHEMA = 2
Row = dict[str, Any]
Document = Mapping[str, Any]

_TOWER, _PROJECTOR = "encoder.vision_tower", "encoder.multi_modal_projector"
_STACKS = {"encoder.text_model": "encoder", "decoder": "decoder"}


class DocumentError(ValueError):
    """The document is not of this schema. The message says what was expected and what to do."""


def checked(document: Document) -> Document:
    """The document itself. Raises DocumentError for one of another schema."""
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, Mapping) else type(document).__name__
        raise DocumentError(f"expected a report of schema {SCHEMA}, found {found!r}: write it again with --json")
    return document


def number(value: object) -> float:
    """A number of the document, which has "nan", "inf" and "-inf" as words. Anything else becomes NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def rows(document: Document, judgement: Document, lane: str) -> list[Row]:
    """The findings of the exact lane ("exact") or of an anchor ("local", "cumulative"), as dicts by column."""
    columns = document["columns"]
    return [dict(zip(columns, row, strict=True)) for row in judgement.get(lane, ())]


def failing(findings: Iterable[Row]) -> list[Row]:
    return [row for row in findings if row["status"] != "pass"]


def severity(row: Row) -> tuple[bool, float]:
    """A sort key that puts the worst last: failures after passes, NaN after every number."""
    judged = number(row.get("judged"))
    return row["status"] != "pass", math.inf if math.isnan(judged) else judged


def group_of(tap: str) -> str:
    """The part of the model that a tap belongs to, in words: "encoder layer 3" or "projector"."""
    if tap.startswith(_TOWER):
        return "vision"
    if tap.startswith(_PROJECTOR):
        return "projector"
    for prefix, stack in _STACKS.items():
        if tap.startswith(prefix + "."):
            return _within(stack, tap.removeprefix(prefix + "."))
    return "heads"


def _within(stack: str, rest: str) -> str:
    part, _, more = rest.partition(".")
    if part == "layers":
        return f"{stack} layer {more.split('.')[0]}"
    return f"{stack} final norm" if part == "norm" else f"{stack} embedding"


def grouped(findings: Iterable[Row]) -> dict[str, list[Row]]:
    """Findings by group; the groups stand in the order of the computation."""
    groups: dict[str, list[Row]] = {}
    for row in findings:
        groups.setdefault(group_of(str(row["tap"])), []).append(row)
    return groups


def named(judgement: Document, verdict: str = "named") -> list[Document]:
    """The defects that were named by their pattern, or those with another verdict."""
    return [s for s in judgement.get("named", ()) if s.get("verdict") == verdict]


def parts(judgement: Document) -> list[str]:
    """The defects that are there in part, each in words: how much of its pattern is where, and its error."""
    found = (s for s in judgement.get("named", ()) if s.get("verdict") == "partly")
    return [_signature(s).part for s in found]


def _signature(raw: Document) -> Signature:
    defect, tap, verdict = (str(raw.get(name)) for name in ("defect", "tap", "verdict"))
    coefficient, error, residual = (number(raw.get(name)) for name in ("coefficient", "error", "residual"))
    return Signature(defect, tap, coefficient, error, residual, verdict, raw.get("head"))


def doubts(judgement: Document) -> list[str]:
    """Why nothing can be concluded, a line each; none where there is no doubt."""
    unclear = ", ".join(map(str, judgement.get("unclear", ())))
    noise = [f"rounding noise could hide anything at {unclear}"] if unclear else []
    return noise + [f"{part}: no proof, and no pass" for part in parts(judgement)]


def state(judgement: Document) -> str:
    """What became of one peer on one case: "pass", "fail", "known", "error", "skip" or "unclear".

    It fails closed: a judgement that neither passed nor is explained is a failure.
    """
    if judgement.get("passed") and not judgement.get("deviates"):
        return "pass"
    if judgement.get("deviates"):
        return "fail"
    for key, name in (("skipped", "skip"), ("error", "error"), ("known", "known"), ("unclear", "unclear")):
        if judgement.get(key):
            return name
    if any(s.get("verdict") == "partly" for s in judgement.get("named", ())):
        return "unclear"  # a part of a pattern: neither all of it nor none
    return "fail"


def carded(document: Document, wanted: str = "fail") -> list[Card]:
    """The cards of the judgements of one state; a card's comparisons are indices into the document's judgements."""
    return cards(
        (_failure(document, i, j) for i, j in enumerate(document["judgements"]) if state(j) == wanted),
        document.get("layers", {}),
    )


def _failure(document: Document, index: int, judgement: Document) -> Failure:
    culprit = judgement.get("culprit") or {"tap": "", "call": 0, "status": ""}
    place, first = (str(judgement["peer"]), str(judgement["target"])), _place(culprit)
    local = [_place(row) for row in rows(document, judgement, "local")]
    error = str(judgement.get("error", ""))
    return Failure(index, place, str(judgement["case"]), first, local if first in local else [], error)


def _place(row: Document) -> tuple[str, int, str]:
    """Tap, call and status of a finding."""
    call = number(row["call"])
    return str(row["tap"]), int(call) if math.isfinite(call) else 0, str(row["status"])


def finding(document: Document, judgement: Document, place: tuple[str, int, str]) -> Row | None:
    """The row of a finding, from the lane or the anchor that has it; the culprit's own where none has."""
    found = (row for lane in ("exact", "local", "cumulative") for row in rows(document, judgement, lane))
    return next((row for row in found if _place(row) == place), judgement.get("culprit"))


def looked_for(judgement: Document, place: tuple[str, int, str]) -> tuple[list[Document], str]:
    """The defects looked for at a failing tap, and what tells the named ones apart."""
    culprit = judgement.get("culprit")
    if not culprit or _place(culprit) == place:
        return list(judgement.get("named", ())), str(judgement.get("apart", ""))
    at = [f for f in judgement.get("further", ()) if (str(f["tap"]), int(number(f["call"]))) == place[:2]]
    return (list(at[0]["named"]), str(at[0].get("apart", ""))) if at else ([], "")


def in_words(value: object, digits: int = 3) -> str:
    """A number of the document in a sentence."""
    return words.in_words(number(value), digits)


def in_table(value: object, digits: int = 3) -> str:
    """A number of the document in a table. A NaN is a dash: its row's status says why."""
    x = number(value)
    return "–" if math.isnan(x) else words.in_table(x, digits)


def in_parts(value: object) -> str:
    """A number that is usually near 0 or 1, to a thousandth."""
    x = number(value)
    return f"{x:.3f}".replace("-0.000", "0.000").replace("-", "−") if abs(x) < 100 else in_words(x)


STATUSES = {
    "pass": "within its limit",
    "missing": "the peer does not show it",
    "shape": "its shape is wrong",
    "dtype": "its number type is wrong",
    "nan": "it holds a NaN or an infinity",
    "exact": "bits differ where none may",
    "values": "its error is too large for this precision",
    "mask": "it lets the wrong keys through",
    "ceiling": "its error is larger than any legal rounding can make",
    "bias": "its errors lean to one side",
    "tail": "its largest errors are too large",
    "signature": "its errors hold the pattern of a catalogued defect",
}
"""Status of a finding → what it means."""


def blame(row: Row) -> str:
    """A failing finding in one sentence: where, what, how much."""
    text = f"{row['tap']} (call {row['call']}): {row['status']}, {STATUSES.get(row['status'], 'it fails')}"
    return f"{text}; {row['detail']}" if row.get("detail") else text
