"""A run with three mistakes at once: three cards, each with its name, as text and as a page."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from judging import judged

pytest.importorskip("rich", reason="needs rich: conformance reports with it")
pytest.importorskip("jinja2", reason="needs Jinja2: the page is made with it")

from dumping import tiny
from rich.console import Console

from conformance.defects.all import FAULTS
from conformance.defects.injection import joined, operation
from conformance.defects.rounding import twins
from conformance.measure.causes import layer_types
from conformance.report import text
from conformance.report.document_write import as_json
from conformance.report.html import markdown
from conformance.report.html.page import render
from conformance.report.result import Result
from conformance.selftest.faulty_peer import FaultyPeer

NAMES = {  # cause: the defect that it is
    "RoPE table of the encoder and the decoder, full layers only": "D20",
    "norm of the encoder and the decoder, all layers": "D09",
    "activation of the encoder and the decoder, all layers": "D52",
}


@pytest.fixture(scope="module")
def result() -> Result:
    """Linear factor ignored, norms without + 1, erf GELU; on two cases."""
    by_key = {fault.key: fault.inject for fault in FAULTS}
    erf = twins("D52", "bfloat16")["gelu_tanh"]
    assert erf is not None
    inject = joined(by_key["D20"], by_key["D09"], operation(gelu_tanh=erf))
    target = tiny("tiny-even")
    found = [(target.name, judged(FaultyPeer(inject, name="port"), target, case)) for case in ("short", "window")]
    exposes = {"short": ("D09", "D46", "D52"), "window": ("D20",)}
    return Result(found, exposes, {}, {}, 2, 2, layers={target.name: layer_types(target.config)})


@pytest.fixture(scope="module")
def document(result: Result) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(as_json(result))
    return made


def test_each_is_named_where_it_begins(result: Result) -> None:
    for _, judgement in result.judgements:
        names = [s.defect for s in judgement.named if s.named]
        names += [s.defect for more in judgement.further for s in more.named if s.named]
        assert names == ["D20", "D09", "D52"]


def test_the_text_has_a_table_and_three_cards(result: Result) -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    text.show(result, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "port on tiny-even: 3 causes" in shown
    assert shown.count("port fails case short on tiny-even") == 3
    assert all(f"  cause           {title}\n" in shown for title in NAMES)
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("  it is ")] == list(NAMES.values())
    assert shown.count("the same in     port on tiny-even: window") == 3
    assert max(map(len, shown.splitlines())) <= 100


def test_the_page_has_them_too(document: dict[str, Any]) -> None:
    page = render(document)
    assert "port on tiny-even: 3 causes" in page
    cards = page.split('<div class="card fail"')[1:]
    assert len(cards) == 3
    for card, (title, defect) in zip(cards, NAMES.items(), strict=True):
        assert f"<dt>cause</dt><dd>{title}</dd>" in card
        assert f"<dt>named</dt><dd><b>{defect}</b>" in card


def test_text_page_and_markdown_have_the_same_figures(result: Result, document: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    text.show(result, console)
    assert isinstance(console.file, io.StringIO)
    errors = re.findall(r"1\.00 ± (.*?) of its pattern", console.file.getvalue())
    assert len(errors) == len(NAMES)
    assert re.findall(r"</b> ± (.*?) at ", render(document)) == errors
    assert re.findall(r"coefficient 1\.000 ± (.*)", markdown.render(document)) == errors


def test_a_card_counts_what_is_its_own(result: Result) -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    text.show(result, console)
    assert isinstance(console.file, io.StringIO)
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("  failing taps")]
    counts = [int(line.split(",")[1].split()[0]) for line in lines]
    whole = sum(not f.passed for f in result.judgements[0][1].local)
    assert sum(counts) == whole
    assert all(f"{whole} of " in line for line in lines)
