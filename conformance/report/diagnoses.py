"""The diagnosis of a black box as lines of text: a heading, and a sentence a line."""

from __future__ import annotations

from itertools import chain, repeat

from conformance.judge.hypotheses.diagnosis import Diagnosis


def told(diagnosis: Diagnosis) -> str:
    """Whose diagnosis it is and what it rests on; then its sentences, behind a label, a line each."""
    head = f"{diagnosis.peer} on {diagnosis.target}, by {(n := len(diagnosis.cases))} case{'s' * (n != 1)}"
    labels = chain(["diagnosis"], repeat(""))
    lines = (f"  {label:15} {said}" for label, said in zip(labels, diagnosis.sentences(), strict=False))
    return "\n".join([head, *lines, ""])
