"""The Markdown for trackers: what it says, that no foreign text becomes markup, and that it stays under 4 KB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("markdown_it", reason="needs markdown-it-py: the text is parsed as a tracker would")

from documents import DEC, HOSTILE, document, hostile, judgement, named, row
from markdown_it import MarkdownIt

from conformance.commands import command_line as command
from conformance.report.html.markdown import code, render

PARSER = MarkdownIt("commonmark", {"html": True}).enable("table")
OURS = {  # what our own text needs
    *("paragraph_open", "paragraph_close", "inline", "text", "strong_open", "strong_close", "code_inline", "softbreak"),
    *("bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"),
    *("table_open", "table_close", "thead_open", "thead_close", "tbody_open", "tbody_close"),
    *("tr_open", "tr_close", "th_open", "th_close", "td_open", "td_close"),
}
TRACKERS = ("@everyone #1 org/repo#2", "`", "a ``` b", "| a | b |", "\n\n# heading\n\n---", "[x](http://e.org)", "*_~")


def tokens(text: str) -> list[Any]:
    return [token for block in PARSER.parse(text) for token in (block, *(block.children or ()))]


def act_fn(layer: int) -> str:
    return f"{DEC}.layers.{layer}.mlp.act_fn"


def test_it_says_what_the_page_says() -> None:
    bad = row(act_fn(1), "values", judged=3000.0)
    found = document(judgement(bad, named=[named()]), judgement(bad, case="window"), judgement(case="eoi"))
    text = render(found)
    assert text.startswith("**`DEVIATES`** `VERDICT: DEVIATES`\n")
    assert f"* first bad tap: `{act_fn(1)}`, call `0`, local anchor; `port` on `tiny`\n" in text
    assert "* `values`: `what is wrong at decoder.layers.1.mlp.act_fn`\n* judged 3,000, limit 8\n" in text
    assert "* it is `D52 erf GELU instead of tanh`: coefficient 1.010 ± 0.02\n" in text
    assert "* cases: `short`, `window`\n" in text
    assert "eoi" not in text, "what passes is not listed"
    assert "--case short" in text


def test_several_causes_are_a_table() -> None:
    bad = [
        row(f"{DEC}.layers.{i}.{part}", "values", 90.0) for i in range(2) for part in ("mlp.act_fn", "self_attn.q_proj")
    ]
    text = render(document(judgement(*bad), layers={"tiny": {DEC: ["full_attention"] * 2}}))
    assert "| `activation of the decoder, all layers` | `act_fn` | 1 |" in text
    assert [token.type for token in tokens(text)].count("tr_open") == 3
    assert "**2. `activation of the decoder, all layers`**" in text
    assert "**1. `projection of the decoder, all layers`**" in text


@pytest.mark.parametrize("text", [*HOSTILE, *TRACKERS])
def test_foreign_text_is_code_and_nothing_else(text: str) -> None:
    made = render(hostile(text))
    made.encode("utf-8")
    found = tokens(made)
    assert {token.type for token in found} <= OURS
    plain = " ".join(token.content for token in found if token.type == "text")
    assert not any(c in plain for c in "@#<>[]`"), plain
    assert all(c.isprintable() or c == "\n" for c in made)


@pytest.mark.parametrize("text", [*TRACKERS, "plain", " ", "", "``", "x" * 999])
def test_a_span_holds_it_all(text: str) -> None:
    (block,) = [token for token in PARSER.parse(f"- {code(text)} end") if token.type == "inline"]
    assert [child.type for child in block.children] == ["code_inline", "text"]
    assert len(block.children[0].content) <= 200


@pytest.mark.parametrize(
    "name", ["a`b", "`", "`a", "a`", "``", "```", "\n```\n", "a` <b> `b", "`" * 99, "a" * 196 + "`b"]
)
def test_names_of_an_environment_end_no_span(name: str) -> None:
    made = render(document(judgement()) | {"environment": {name: "1`", "numpy": "2"}})
    *_, last = (token for token in PARSER.parse(made) if token.type == "inline")
    assert [child.type for child in last.children] == ["code_inline"]
    assert not any(token.type in ("fence", "html_block") for token in PARSER.parse(made))


def test_it_stays_under_4_kilobytes() -> None:
    """Each cause a kind of its own, with a long name of many bytes."""
    bad = [row(f"{DEC}.layers.{i % 2}.ä{i}{'ß' * 300}", "values", 10.0 + i, detail="é" * 5000) for i in range(60)]
    text = render(document(*(judgement(*bad, case=f"c{i}", local=bad) for i in range(40)), command="x" * 9999))
    assert len(text.encode()) < 4096
    assert "more causes: in the page and in the JSON report." in text
    assert "**1. " in text, "the first always fits"


def test_what_conforms_is_short() -> None:
    assert render(document(judgement())).splitlines()[0] == "**`CONFORMS`** `VERDICT: CONFORMS`"
    assert "raised `it fell over`" in render(document(judgement(passed=False, error="it fell over", local=[])))


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = (
        "--peer",
        "t5g2ref:numpy:float32",
        "--lane",
        "fp32",
        "--case",
        "short",
        "--ckpt",
        "tiny-even",
        "--no-progress",
    )
    assert command.main([*quick, "--markdown", str(tmp_path / "issue.md")]) == 0
    assert (tmp_path / "issue.md").read_text(encoding="utf-8").startswith("**`CONFORMS`** `VERDICT: CONFORMS")
    capsys.readouterr()
