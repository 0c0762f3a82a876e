"""The README's picture is what the program draws of the code's own tables today."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

import draw_picture


def test_the_committed_picture_is_drawn_from_the_tables() -> None:
    assert draw_picture.FILE.read_text(encoding="utf-8") == draw_picture.draw(), "run python tools/draw_picture.py"


def test_it_is_well_formed_and_names_the_meeting() -> None:
    words = [element.text for element in ET.fromstring(draw_picture.draw()).iter() if element.text]
    assert {"truth", "controls", "peer", "act_fn"} <= set(words)
