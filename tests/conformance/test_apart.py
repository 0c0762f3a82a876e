"""Two defects that are one where the peer fails: the report says which case tells them apart, and that case does."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from dumping import tiny
from judging import judged

from conformance.cases import catalogue
from conformance.defects.all import FAULTS
from conformance.judge.apart import told_apart_by
from conformance.selftest.faulty_peer import FaultyPeer

BY_KEY = {fault.key: fault for fault in FAULTS}


def said(*keys: str, case: str) -> str:
    return told_apart_by({BY_KEY[key].id: [BY_KEY[key]] for key in keys}, tiny("tiny"), case)


def named(key: str, case: str) -> Any:
    found = judged(FaultyPeer(BY_KEY[key].inject), tiny("tiny"), case)
    return {s.defect for s in found.named if s.named}, found.apart


def test_the_case_that_is_named_tells_them_apart() -> None:
    """Without padding, no window and a window that goes with the mask are one; a padded source tells."""
    together, apart = named("D32", "window")
    assert together == {"D32", "D69"}
    match = re.fullmatch(r"case (\S+) tells D32 from D69", apart)
    assert match is not None
    assert named("D32", match[1])[0] == {"D32"}
    assert "D32" not in named("D69 encoder", match[1])[0]


def test_two_names_of_one_pattern() -> None:
    """The end-of-image row is missing, or stands at a constant id: an input that has this id tells."""
    together, apart = named("D06 eoi", "eoi")
    assert together == {"D05", "D06"}
    match = re.fullmatch(r"case (\S+) tells D05 from D06", apart)
    assert match is not None
    assert judged(FaultyPeer(BY_KEY["D05 missing"].inject), tiny("tiny"), match[1]).passed
    assert named("D06 eoi", match[1])[0] == {"D06"}


def test_what_no_case_tells_apart_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    eoi = [case for case in catalogue.build(tiny("tiny").config) if case.name in ("eoi", "equal-lengths")]
    monkeypatch.setattr(catalogue, "build", lambda _: eoi)
    assert said("D05 missing", "D06 eoi", case="eoi") == "no case tells D05 from D06"


def test_one_name_needs_no_case() -> None:
    assert said("D32", case="window") == ""


def test_unlike_defects_are_told_apart_by_the_first_case_that_shows_them() -> None:
    assert said("D09", "D52", case="window") == "case short tells D09 from D52"
    assert said("D09", "D52", case="short") == "case window tells D09 from D52"
