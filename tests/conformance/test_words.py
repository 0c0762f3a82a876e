"""Numbers for people: one way to say each, in a sentence and in a table."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import ROOT

from conformance.measure.words import in_table, in_words, of_the_value

ROOM = ROOT / "conformance"


@pytest.mark.parametrize(
    ("x", "sentence", "column"),
    [
        (0.0, "0", "0"),
        (1.0, "1", "1"),
        (3.17, "3.17", "3.17"),
        (0.98765, "0.988", "0.988"),
        (-2.5, "−2.5", "−2.5"),
        (999.7, "1,000", "1,000"),
        (12300.4, "12,300", "12,300"),
        (999_700.0, "1 million", "1.0e6"),
        (1.91e6, "1.9 million", "1.9e6"),
        (-1.91e6, "−1.9 million", "−1.9e6"),
        (14.2e6, "14 million", "1.4e7"),
        (142e6, "142 million", "1.4e8"),
        (999.96e6, "1 billion", "1.0e9"),
        (2e12, "2 trillion", "2.0e12"),
        (3e18, "3.0 × 10¹⁸", "3.0e18"),
        (1.2e-7, "1.2 × 10⁻⁷", "1.2e−7"),
        (1e-4, "0.0001", "0.0001"),
        (math.inf, "∞", "∞"),
        (-math.inf, "−∞", "−∞"),
        (math.nan, "NaN", "NaN"),
    ],
)
def test_a_number_in_a_sentence_and_in_a_table(x: float, sentence: str, column: str) -> None:
    assert (in_words(x), in_table(x)) == (sentence, column)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (0.0, "0 % of the value"),
        (0.84, "84 % of the value"),
        (0.0012, "0.12 % of the value"),
        (1.0, "100 % of the value"),
        (1.2e-7, "1 part in 8.3 million"),
        (3.17, "3.17 times the value"),
        (math.inf, "∞ times the value"),
        (math.nan, "NaN times the value"),
    ],
)
def test_an_error_beside_its_value(error: float, said: str) -> None:
    assert of_the_value(error) == said


@given(st.floats())
def test_no_exponent_is_in_a_sentence_and_no_number_is_long(x: float) -> None:
    assert "e" not in re.sub("[mb]illion|trillion", "", in_words(x))
    assert len(in_words(x)) <= 13
    assert len(in_table(x)) <= 9


def test_sentences_have_no_other_source() -> None:
    """Broken by an f-string that formats a figure by itself, as `1.91e+06 times`."""
    for room in ("measure", "report"):
        for path in sorted((ROOM / room).rglob("*.py")):
            own = re.findall(r"\{[^{}]*:\.?\d?[eg]\}", path.read_text(encoding="utf-8"))
            assert not own or path.name in ("words.py", "document_write.py"), (path.name, own)
