"""The README's picture is what the program draws from the code's own tables today."""

from __future__ import annotations

from types import ModuleType
from xml.etree import ElementTree

import pytest
from processes import tool

pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the picture has the judge's own limit")

from conformance.measure.finding import FAILURES
from conformance.oracle.run_case import legal

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def picture() -> ModuleType:
    """tools/draw_picture.py, which is a program and in no package."""
    return tool("draw_picture")


def words(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_committed_picture_is_what_is_drawn(picture: ModuleType) -> None:
    committed = picture.FILE.read_text(encoding="utf-8")
    assert committed == picture.draw(), "a table has changed: run `python tools/draw_picture.py`, and look at it"


def test_every_gate_is_in_it_in_order(picture: ModuleType) -> None:
    assert [word for word in words(picture.draw()) if word in FAILURES] == list(FAILURES)


def test_every_control_is_in_it(picture: ModuleType) -> None:
    shown = words(picture.draw())
    always = {profile.name for profile in legal("float32")}
    for profile in legal("bfloat16"):
        assert profile.name + ("" if profile.name in always else " *") in shown


def test_it_meets_at_a_tap_among_its_neighbours(picture: ModuleType) -> None:
    assert picture.taps()[2] == picture.TAP
    assert len(picture.taps()) == len(picture.COLUMNS)


def test_nothing_is_drawn_outside_of_the_page(picture: ModuleType) -> None:
    for element in ElementTree.fromstring(picture.draw()).iter():
        x, y = float(element.get("x", 0)), float(element.get("y", 0))
        assert 0 <= x <= picture.WIDTH
        assert 0 <= y <= picture.HEIGHT
