"""What is wrong in a black box: the faults that were put into it are the ones that the diagnosis names."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dumping import case_of, tiny

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from conformance.activations import Dump
from conformance.cases import catalogue
from conformance.cases.least import LOGITS
from conformance.commands import command_line as command
from conformance.defects.all import FAULTS
from conformance.defects.injection import Fault, Injection, joined
from conformance.judge.evidence import MOST_COLUMNS, Evidence, columns, evidence
from conformance.judge.hypotheses.diagnosis import Diagnosis, diagnosed
from conformance.judge.hypotheses.fit import fit
from conformance.judge.hypotheses.oracles import Oracles, candidates
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.legal import ORDERS

pytestmark = pytest.mark.slow  # minutes in all

FEW = ("short", "window", "eoi", "padded-left")


def fault(key: str) -> Fault:
    return next(f for f in FAULTS if f.key == key)


def shown(injection: Injection, names: Sequence[str] = FEW, order: str = "backwards") -> list[Evidence]:
    """What a peer with it shows, in an order of summation that no control has; judged by how near the oracle is."""
    target, peer = tiny(), FaultyPeer(joined(ORDERS[order], injection))
    peer.taps = (LOGITS,)
    peer.open(target)
    found = []
    for case in (case_of(target, name) for name in names):
        with Dump() as dump:
            peer.run(case, dump)
            seen = evidence(target, case, dump)
        oracles = Oracles(target, "float32", {case.name: case}, {case.name: seen})
        found.append(replace(seen, deviates=not fit(oracles, seen, ()).near))
    return found


def diagnosis(*keys: str, names: Sequence[str] = FEW) -> Diagnosis:
    seen = shown(joined(*(fault(key).inject for key in keys)), names)
    return diagnosed("box", tiny(), "float32", catalogue.build(tiny().config), seen)


@pytest.mark.parametrize("key", ["D01", "D09", "D32", "D39", "D52", "D85"])
def test_one_fault_is_named(key: str) -> None:
    found = diagnosis(key)
    assert (fault(key).id,) in found.found
    assert found.worst < 8 < found.without
    assert f"with {fault(key).id} " in found.sentences()[0]
    assert found.seconds < 60


@pytest.mark.parametrize(
    "keys",
    [
        *(("D32", "D39"), ("D09", "D16"), ("D05 missing", "D32"), ("D01", "D18")),
        ("D71 window of the decoder", "D34 cache"),  # the other way round it is another peer
        ("D34 cache", "D71 window of the decoder"),
    ],
    ids=lambda keys: "+".join(keys),
)
def test_two_faults_are_named_and_each_is_needed(keys: tuple[str, str]) -> None:
    found = diagnosis(*keys)
    ids = tuple(sorted(fault(key).id for key in keys))
    assert found.found[0] == ids
    assert set(found.left_out) == set(ids)
    assert all(ratio > 8 for ratio in found.left_out.values())
    assert "each is needed: " in found.sentences()[1]


def test_what_is_not_catalogued_is_not_named() -> None:
    def other(call: int, name: str, value: object) -> object:
        return value * np.float32(1.01) if name == "decoder.layers.2.mlp.up_proj" else value  # type: ignore[operator]

    seen = shown(Injection(taps=lambda _: other), ("short",))
    found = diagnosed("box", tiny(), "float32", catalogue.build(tiny().config), seen)
    assert found.found == ()
    assert found.sentences()[0].startswith("no defect of the catalogue explains all of 1 cases, and no set of them")


def test_two_that_these_inputs_do_not_tell_apart() -> None:
    """A window that is dropped, and one that is dropped where nothing is padded: here nothing is."""
    found = diagnosis("D32", names=("short", "window"))
    assert found.found == (("D32",), ("D69",))
    assert "padded" in found.apart
    assert " with D32 encoder window dropped, or else with D69 " in found.sentences()[0]
    assert found.sentences()[-1] == f"these inputs do not tell them apart; case {found.apart} would"
    assert diagnosis("D32", names=("short", "window", found.apart)).found == (("D32",),)


def test_two_that_no_input_tells_apart() -> None:
    """Without a cache, a window over the cross half and keys that it has cut off are one and the same."""
    found = diagnosis("D37 last", names=("short", "window"))
    assert ("D37",) in found.found
    assert found.sentences()[-1] == "these inputs do not tell them apart; no case of the catalogue does"


def test_a_right_peer_has_no_diagnosis() -> None:
    seen = shown(joined(), ("short",))
    assert not seen[0].deviates
    found = diagnosed("box", tiny(), "float32", catalogue.build(tiny().config), seen)
    assert found.why
    assert found.sentences()[0].startswith("no diagnosis: ")


def test_a_fault_that_changes_the_shape_is_named() -> None:
    """Its numbers cannot be held beside those of a right run."""
    found = diagnosis("D81 ignored", names=("short", "second-source"))
    assert found.found == (("D81",),)


def test_what_would_take_too_long_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.judge.hypotheses.diagnosis.LONGEST", 1e-3)
    found = diagnosis("D32", names=("window",))
    assert found.found == ()
    assert "give --ckpt tiny" in found.sentences()[0]


def test_a_fault_is_tried_in_each_of_its_variants_once() -> None:
    tried = candidates("float32")
    keys = [(f.id, f.variant) for f in tried]
    assert len(keys) == len(set(keys)) > 140
    assert all(f.catalogued and f.named and not f.later for f in tried)
    assert {f.id for f in candidates("bfloat16")} > {f.id for f in tried}


def test_faults_together_change_the_same_tap_one_after_the_other() -> None:
    plus = Injection(taps=lambda _: lambda call, name, value: value + 1)
    twice = Injection(taps=lambda _: lambda call, name, value: value * 2)
    change = joined(plus, twice).taps
    assert change is not None
    assert change(None)(0, "logits", 3) == 8  # type: ignore[arg-type]
    assert joined().taps is None


def test_of_a_large_vocabulary_a_part_is_looked_at() -> None:
    rows = np.arange(3 * 10_000.0).reshape(3, -1)
    part = columns(rows)
    assert part.shape == (3, MOST_COLUMNS)
    assert np.array_equal(part, columns(rows.copy()))
    assert np.array_equal(columns(rows[:, :9]), rows[:, :9])


PEER = """
from conformance.defects.all import FAULTS
from conformance.selftest.faulty_peer import FaultyPeer

class Box(FaultyPeer):
    taps, weights = ("logits",), None

def create(_argument, _backend):
    box = Box(next(f.inject for f in FAULTS if f.key == "D32"))
    box.name = "box"
    return box
"""


def test_every_report_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "box.py").write_text(PEER)
    given = ["--peer", str(tmp_path / "box.py"), "--ckpt", str(tiny().folder), "--lane", "fp32", "--once"]
    given += ["--case", "window", "--case", "padded-*", "--no-progress", "--jobs", "1"]
    files = [f"--{kind}={tmp_path / kind}" for kind in ("json", "html", "junit")]
    assert command.main([*given, *files]) == 1
    out = " ".join(capsys.readouterr().out.split())
    sentence = "this engine computes T5Gemma 2 with D32 encoder window dropped"
    assert sentence in out
    assert "at logits (values, D32; box, case window" in out
    (told,) = json.loads((tmp_path / "json").read_text())["diagnoses"]
    (case,) = [c for c in ET.parse(tmp_path / "junit").getroot().iter("testcase") if c.get("name") == "diagnosis"]
    assert (case[0].tag, case[0].get("message")) == ("failure", told["sentences"][0])
    assert told["found"] == [["D32"]]
    assert told["sentences"][0].startswith(sentence)
    assert sentence in (tmp_path / "html").read_text()
