"""JUnit from the report document: what CI systems read, and that nothing becomes a pass that is none."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from documents import DEC, ENC, HOSTILE, document, everything, hostile, judgement, known, named, real, row
from processes import ROOT

from conformance.defects.catalogue import DEFECTS
from conformance.measure.finding import FAILURES
from conformance.report.document import STATUSES, DocumentError, group_of, number, state
from conformance.report.junit import render

SCHEMA = ROOT / "conformance/report/schema/report-2.json"
COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def parsed(found: dict[str, Any]) -> ET.Element:
    return ET.fromstring(render(found).encode())


def case_of(root: ET.Element, name: str) -> ET.Element:
    (case,) = [case for case in root.iter("testcase") if case.get("name") == name]
    return case


def outcome(root: ET.Element, name: str) -> str:
    return next((child.tag for child in case_of(root, name)), "pass")


def message(root: ET.Element, name: str) -> str:
    return str(case_of(root, name)[0].get("message"))


def test_counts_and_times_add_up() -> None:
    root = parsed(everything())
    assert root.tag == "testsuites"
    for element in (root, *root):
        cases = list(element.iter("testcase"))
        assert int(element.get("tests", "")) == len(cases) > 0
        for attribute, tag in COUNTED.items():
            assert int(element.get(attribute, "")) == sum(case.find(tag) is not None for case in cases)
        assert float(element.get("time", "")) == pytest.approx(sum(float(case.get("time", "")) for case in cases))
    judged = sum(sum(j["seconds"].values()) for j in everything()["judgements"])
    assert float(root.get("time", "")) == pytest.approx(judged)


def test_every_element_has_what_ci_systems_read() -> None:
    root = parsed(everything())
    assert [suite.get("name") for suite in root] == ["right on tiny", "port on tiny", "known deviations"]
    for suite in root:
        assert {child.tag for child in suite} <= {"properties", "testcase"}
        for case in suite.iter("testcase"):
            assert case.get("name")
            assert case.get("classname")
            assert float(case.get("time", "nan")) >= 0
            assert len(case) <= 1
    for fault in (*root.iter("failure"), *root.iter("error")):
        assert fault.get("message")
        assert fault.get("type")
    names = [(c.get("classname"), c.get("name")) for c in root.iter("testcase")]
    assert len(names) == len(set(names))


def test_properties_are_environment_and_versions() -> None:
    found = {p.get("name"): p.get("value") for p in next(iter(parsed(everything()))).iter("property")}
    assert found["transformers"] == "5.23.0"
    assert (found["verdict"], found["limit local"]) == ("INCOMPLETE", "8")


def test_a_test_case_is_a_case_and_a_group_of_taps() -> None:
    names = [case.get("name") for case in parsed(document(judgement())).iter("testcase")]
    layers = [f"short: {stack} layer {i}" for stack in ("encoder", "decoder") for i in range(2)]
    assert names == [
        "short: encoder embedding",
        "short: vision",
        "short: projector",
        *layers[:2],
        "short: encoder final norm",
        "short: decoder embedding",
        *layers[2:],
        "short: heads",
        "short: cumulative",
    ]


@pytest.mark.parametrize(
    ("tap", "group"),
    [
        (f"{ENC}.layers.11", "encoder layer 11"),
        (f"{DEC}.layers.3.self_attn.mask", "decoder layer 3"),
        (f"{DEC}.rotary_emb.full_attention.cos", "decoder embedding"),
        (f"{DEC}.norm", "decoder final norm"),
        ("score", "heads"),
    ],
)
def test_group_of(tap: str, group: str) -> None:
    assert group_of(tap) == group


def test_failure_names_the_culprit_and_the_defect() -> None:
    root = parsed(everything())
    told = message(root, "short: decoder layer 1")
    assert told.startswith(f"first bad tap: {DEC}.layers.1.mlp.act_fn (call 0): values, its error is too large")
    assert "it is D52 (coefficient 1.010 ± 0.02" in told
    assert outcome(root, "window: encoder layer 0") == "failure"
    assert outcome(root, "short: heads") == "pass"
    assert outcome(root, "half: signatures") == "failure"


def test_a_part_of_a_pattern_is_told_with_its_error() -> None:
    part = named(verdict="partly") | {"coefficient": 0.2}
    root = parsed(document(judgement(passed=False, named=[part])))
    told = f"no proof, and no pass: 0.20 ± 0.02 of the pattern of D52 is at {DEC}.layers.1.mlp.act_fn"
    assert message(root, "short: signatures") == told


def test_a_peer_that_raised_is_an_error_and_what_it_did_not_reach_is_skipped() -> None:
    root = parsed(everything())
    assert outcome(root, "raises: run") == "error"
    assert message(root, "raises: run") == "the peer raised: RuntimeError: no kernel"
    assert outcome(root, "raises: decoder layer 0") == "skipped"
    assert outcome(root, "raises: encoder layer 0") == "pass"


def test_skipped_known_and_unclear_are_skipped_with_their_reason() -> None:
    root = parsed(everything())
    assert message(root, "skips: run") == "no images (https://example.org/2)"
    assert message(root, "known: decoder layer 1") == "known deviation: a table until 5.24 (https://example.org/1)"
    assert "noise could hide" in message(root, "unclear: verdict")
    for name in ("skips: run", "known: decoder layer 1", "unclear: verdict", "short: logits"):
        assert outcome(root, name) == "skipped"
    assert outcome(root, "short: loss") == "failure"  # an unexpected pass


def test_a_known_deviation_that_still_deviates_fails() -> None:
    found = judgement(row("logits", "values", 99.0), known="softcap (https://example.org/1)")
    assert outcome(parsed(document(found)), "short: heads") == "failure"


def test_what_is_not_passed_and_not_explained_fails() -> None:
    nothing = judgement(passed=False, local=[], cumulative=[])
    assert state(nothing) == "fail"
    assert outcome(parsed(document(nothing)), "short: verdict") == "failure"
    assert outcome(parsed(document()), "run") == "error"


def test_a_long_list_of_failing_taps_keeps_the_worst() -> None:
    bad = [row(f"{DEC}.layers.0.x{i}", "values", 9.0 + (i == 40) * 1e6) for i in range(50)]
    found = case_of(parsed(document(judgement(*bad, local=bad))), "short: decoder layer 0")[0]
    lines = str(found.text).splitlines()
    assert len(lines) == 14
    assert "x40" in lines[-2]
    assert lines[-1] == "50 failing taps"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    root = parsed(hostile(text))
    assert {e.tag for e in root.iter()} <= {
        *("testsuites", "testsuite", "testcase", "properties", "property", "failure", "error", "skipped")
    }
    kept = "".join(c for c in text if c in "\t\n" or 0x20 <= ord(c) <= 0xD7FF or 0xE000 <= ord(c) <= 0xFFFD)
    names = [p.get("name", "").replace("\N{REPLACEMENT CHARACTER}", "") for p in root.iter("property")]
    assert kept in names


@pytest.mark.parametrize("found", [{}, {"schema": 1}, {"schema": "2"}, []])
def test_another_schema_is_refused(found: Any) -> None:
    with pytest.raises(DocumentError, match="expected a report of schema 2"):
        render(found)


@pytest.mark.parametrize(
    ("value", "expected"), [("inf", float("inf")), ("-inf", float("-inf")), (3, 3.0), ("1e400", float("inf"))]
)
def test_number(value: object, expected: float) -> None:
    assert number(value) == expected


@pytest.mark.parametrize("value", ["nan", None, True, "x", [], 10**400])
def test_no_number_is_a_nan(value: object) -> None:
    assert number(value) != number(value)


def test_the_judges_own_document_is_understood() -> None:
    root = parsed(real())
    assert outcome(root, "short: heads") == "failure"
    assert outcome(root, "short: cumulative") == "pass"


@pytest.mark.parametrize("found", [everything(), document(), document(judgement()), real()])
def test_documents_are_as_the_schema_says(found: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: the schema is checked with it")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": "MAYBE"},
        {"schema": 3},
        {"columns": ["tap"]},
        {"judgements": [judgement() | {"local": [["logits", 0, "fine"]]}]},
        {"judgements": [judgement() | {"passed": "yes"}]},
        {"known": [known(link="javascript:alert(1)")]},
        {"judgements": [judgement(named=[named(verdict="perhaps")])]},
    ],
)
def test_the_schema_refuses_what_is_wrong(wrong: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: the schema is checked with it")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(document() | wrong)


def test_the_schema_knows_every_status() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert set(schema["$defs"]["status"]["enum"]) == set(STATUSES) >= {"pass", *FAILURES}
    assert all(defect.startswith("D") for defect in DEFECTS)


def test_a_part_of_a_pattern_is_no_pass() -> None:
    """Neither all of it nor none is there, so nothing of the case may look like a passed test of it."""
    partly = judgement(case="half", passed=False, named=[named(verdict="partly")])
    root = parsed(document(partly, verdict="INCOMPLETE"))
    assert outcome(root, "half: signatures") == "skipped"
    assert int(root.get("failures", "")) == 0
