"""What a fault may be where nothing named it: never a list longer than three, and nothing that the figures exclude."""

from __future__ import annotations

import pytest

from conformance.defects.catalogue import DEFECTS, first_seen_at
from conformance.report.candidates import MOST, NONE, candidates

MASK = "decoder.layers.0.self_attn.mask"
KNOWN = first_seen_at(MASK, DEFECTS)


def test_three_at_most_and_how_many_more() -> None:
    lines = candidates(MASK, "mask", DEFECTS, [])
    assert len(lines) == MOST + 1
    assert lines[0] == f"{KNOWN[0]} {DEFECTS[KNOWN[0]]}"
    assert lines[-1] == f"or one of {len(KNOWN) - MOST} more: see `list faults`"


def test_what_the_figures_exclude_is_left_out() -> None:
    tried = [(defect, "absent") for defect in KNOWN[:-2]] + [(KNOWN[-1], "no power")]
    assert [line.split()[0] for line in candidates(MASK, "mask", DEFECTS, tried)] == KNOWN[-2:]


def test_when_all_are_excluded_it_is_said() -> None:
    assert candidates(MASK, "mask", DEFECTS, [(defect, "absent") for defect in KNOWN]) == [NONE]


def test_a_tap_that_the_catalogue_does_not_know_has_none() -> None:
    assert candidates("somewhere", "values", DEFECTS, []) == []


def test_what_changes_nothing_here_is_not_the_reason() -> None:
    """In float32. In a half type "no power" means too few tokens, and the defect may be there."""
    tried = [(defect, "absent") for defect in KNOWN[:-2]] + [(KNOWN[-1], "no power")]
    assert [line.split()[0] for line in candidates(MASK, "mask", DEFECTS, tried, single=True)] == KNOWN[-2:-1]


@pytest.mark.parametrize("status", ["dtype", "shape", "missing"])
def test_what_says_it_by_itself_needs_no_list(status: str) -> None:
    assert candidates(MASK, status, DEFECTS, []) == []
