"""Writes JUnit XML from the report document, for CI systems that show a list of tests.

A suite is a peer on a checkpoint. A test case is a case and a group of taps ("short: encoder layer 3"). It fails where
the peer deviates, with the first bad tap in words. It is an error where the peer raised. It is skipped where the peer
skipped the case, where the deviation is known, and where nothing could be concluded. A skipped case is not a pass.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from conformance.report.document import (
    Document,
    Row,
    blame,
    checked,
    doubts,
    failing,
    grouped,
    in_parts,
    in_words,
    named,
    number,
    parts,
    rows,
    severity,
    state,
)

DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>'
LISTED = 12  # failing taps that one failure spells out


@dataclass(frozen=True)
class Test:
    """One test case. `outcome` is "pass", "failure", "error" or "skipped"; `weight` is its share of the time."""

    name: str
    outcome: str = "pass"
    message: str = ""
    text: str = ""
    weight: int = 1

    __test__ = False  # for pytest, which would take the name for its own


def render(document: Document) -> str:
    """The XML, with its declaration. Raises DocumentError for a document of another schema."""
    root = ET.Element("testsuites", {"name": "conformance"})
    judgements = checked(document)["judgements"]
    for target, peer in dict.fromkeys((j["target"], j["peer"]) for j in judgements):
        suite = ET.SubElement(root, "testsuite", {"name": clean(f"{peer} on {target}")})
        _properties(suite, document, str(peer))
        for judgement in judgements:
            if (judgement["target"], judgement["peer"]) == (target, peer):
                _cases(suite, document, judgement)
        for test in _diagnoses(document, target, peer):
            _put(suite, f"{target}.{peer}", test, 0)
    _known(root, document)
    if not judgements:
        _put(
            ET.SubElement(root, "testsuite", {"name": "run"}), "conformance", Test("run", "error", document["line"]), 0
        )
    for suite in root:
        _count(suite)
    _count(root)
    ET.indent(root)
    return f"{DECLARATION}\n{ET.tostring(root, encoding='unicode')}\n"


def _diagnoses(document: Document, target: object, peer: object) -> Iterator[Test]:
    """What a black box has, in words. It fails: there is one only where the peer deviates."""
    for said in document.get("diagnoses") or ():
        if (said["target"], said["peer"]) == (target, peer):
            first, *rest = said["sentences"]
            yield Test("diagnosis", "failure", first, "\n".join(rest))


def clean(text: object) -> str:
    """The text without the characters that XML 1.0 forbids even when escaped.

    These are most control characters, surrogates, U+FFFE and U+FFFF.
    """
    return "".join(c if _legal(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def _legal(code: int) -> bool:
    return code in (0x9, 0xA, 0xD) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000


def _properties(suite: ET.Element, document: Document, peer: str) -> None:
    found = {"verdict": document["verdict"], "line": document["line"], **document["environment"]}
    if given := document.get("peers", {}).get(peer):
        found["peer"] = given
    for limit, value in document["limits"].items():
        found[f"limit {limit}"] = in_words(value)
    block = ET.SubElement(suite, "properties")
    for name, value in found.items():
        ET.SubElement(block, "property", {"name": clean(name), "value": clean(value)})


def _cases(suite: ET.Element, document: Document, judgement: Document) -> None:
    """Add a judgement's test cases. Its time is shared among them by their number of taps."""
    tests = list(_tests(document, judgement))
    seconds = [number(s) for s in judgement.get("seconds", {}).values()]
    left, weight = round(1000 * sum(s for s in seconds if 0 < s < 1e9)), sum(test.weight for test in tests)
    place = f"{judgement['target']}.{judgement['peer']}"
    for test in tests:
        share = left * test.weight // weight
        weight, left = weight - test.weight, left - share
        _put(suite, place, replace(test, name=f"{judgement['case']}: {test.name}"), share)


def _put(suite: ET.Element, place: str, test: Test, milliseconds: int) -> None:
    found = {"classname": clean(place), "name": clean(test.name), "time": f"{milliseconds / 1000:.3f}"}
    case = ET.SubElement(suite, "testcase", found)
    if test.outcome != "pass":
        attributes = {"message": clean(test.message)}
        if test.outcome != "skipped":
            attributes["type"] = {"failure": "deviation", "error": "peer"}[test.outcome]
        ET.SubElement(case, test.outcome, attributes).text = clean(test.text) or None


def _count(element: ET.Element) -> None:
    """Set the attributes that CI systems read, counted from the test cases so that they add up."""
    cases = list(element.iter("testcase"))
    element.set("tests", str(len(cases)))
    for outcome, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        element.set(attribute, str(sum(case.find(outcome) is not None for case in cases)))
    milliseconds = sum(round(1000 * float(case.get("time", "0"))) for case in cases)
    element.set("time", f"{milliseconds / 1000:.3f}")


def _tests(document: Document, judgement: Document) -> Iterator[Test]:
    """The test cases of one judgement, at least one. If the judgement is no pass, one of them is no pass."""
    tests = [] if judgement.get("skipped") else list(_groups(document, judgement))
    if judgement.get("skipped"):
        known = f"; known: {judgement['known']}" if judgement.get("known") else ""
        tests.append(Test("run", "skipped", f"{judgement['skipped']}{known}"))
    elif judgement.get("error"):
        tests.append(Test("run", "error", f"the peer raised: {judgement['error']}", str(judgement["error"])))
    tests += _signatures(judgement)
    if state(judgement) != "pass" and all(test.outcome == "pass" for test in tests):
        why = "; ".join(doubts(judgement)) or "it did not pass"
        tests.append(Test("verdict", "skipped" if state(judgement) == "unclear" else "failure", why))
    yield from tests or [Test("run")]


def _groups(document: Document, judgement: Document) -> Iterator[Test]:
    exact, cumulative = (rows(document, judgement, lane) for lane in ("exact", "cumulative"))
    groups = {"exact lane": exact} if exact else {}
    groups |= grouped(rows(document, judgement, "local"))
    groups |= {"cumulative": cumulative} if cumulative else {}
    for name, found in groups.items():
        yield _judged(name, found, judgement)


def _judged(name: str, found: list[Row], judgement: Document) -> Test:
    bad, count = failing(found), len(found)
    unreached = [row for row in bad if judgement.get("error") and row["status"] == "missing"]
    if not bad:
        return Test(name, weight=count)
    if len(unreached) == len(bad):
        return Test(name, "skipped", f"not reached: {judgement['error']}", weight=count)
    if judgement.get("known") and not judgement.get("deviates"):
        return Test(name, "skipped", f"known deviation: {judgement['known']}", _listed(bad), count)
    return Test(name, "failure", _message(bad[0], judgement), _listed(bad), count)


def _message(row: Row, judgement: Document) -> str:
    """The first bad tap of a group in words, and the defect where one was named."""
    culprit = judgement.get("culprit") or {}
    first = (culprit.get("tap"), culprit.get("call")) == (row["tap"], row["call"])
    defects = "".join(f"; it is {_defect(s)}" for s in named(judgement)) if first else ""
    return f"{'first bad tap: ' if first else ''}{blame(row)}{defects}"


def _defect(signature: Document) -> str:
    coefficient, error = in_parts(signature["coefficient"]), in_words(signature["error"], 2)
    both = f" with {signature['beside']}" if signature.get("beside") else ""
    return f"{signature['defect']}{both} (coefficient {coefficient} ± {error} at {signature['tap']})"


def _listed(bad: list[Row]) -> str:
    """The first failing taps of a group, a line each. The worst of them is always listed."""
    shown = bad[:LISTED]
    worst = max(bad, key=severity)
    lines = [blame(row) for row in (shown if worst in shown else [*shown, worst])]
    return "\n".join([*lines, f"{len(bad)} failing taps"] if len(bad) > len(lines) else lines)


def _signatures(judgement: Document) -> list[Test]:
    """A test case for the defects looked for by their pattern: it fails where one was named.

    It is skipped where a part of a pattern was found, or where the input could not tell.
    """
    looked = judgement.get("named") or ()
    found = named(judgement)
    if found and judgement.get("known") and not judgement.get("deviates"):
        return [Test("signatures", "skipped", f"known deviation: {judgement['known']}")]
    if found:
        return [Test("signatures", "failure", "; ".join(_defect(s) for s in found))]
    if part := parts(judgement):
        return [Test("signatures", "skipped", f"no proof, and no pass: {'; '.join(part)}")]
    blind = [str(s["defect"]) for s in looked if s.get("verdict") == "no power"]
    if looked and len(blind) == len(looked):
        return [Test("signatures", "skipped", f"this input has no power to tell: {', '.join(blind)}")]
    return [Test("signatures")] if looked else []


def _known(root: ET.Element, document: Document) -> None:
    """Add a suite with an entry for each known deviation.

    One that was seen is skipped. One that is gone fails, so that the list stays true.
    """
    if not document.get("known"):
        return
    suite = ET.SubElement(root, "testsuite", {"name": "known deviations"})
    for entry in document["known"]:
        why = " ".join(str(entry[key]) for key in ("reason", "link") if entry.get(key))
        outcome: dict[str, Any] = {
            "unexpected pass": ("failure", f"unexpected pass: take this entry out of the list ({why})"),
            "seen": ("skipped", why),
        }
        test = outcome.get(str(entry["state"]), ("skipped", f"{entry['state']}: {why}"))
        _put(suite, str(entry["peer"]), Test(f"{entry['case']}: {entry['tap'] or entry['status']}", *test), 0)
