"""The HTML report: that it says what the document says, needs nothing from outside, and lets no text become markup."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="needs Jinja2: the page is made with it")

from documents import (
    BAND,
    DEC,
    ENC,
    HOSTILE,
    SPINE,
    WIDER,
    document,
    everything,
    hostile,
    judgement,
    local,
    named,
    real,
    row,
)

from conformance.report.document import in_words
from conformance.report.html import comparisons
from conformance.report.html.commands import whole_command
from conformance.report.html.depth import BOTTOM, MANY, TOP, depth, part_of
from conformance.report.html.masks import mask
from conformance.report.html.page import linked, render

VOID = {"meta", "br", "wbr"}
PLAIN = {
    *("html", "head", "meta", "title", "style", "script", "body", "header", "main", "footer", "nav", "section", "div"),
    *("h1", "h2", "h3", "h4", "p", "ul", "ol", "li", "dl", "dt", "dd", "a", "b", "strong", "em", "code", "pre", "span"),
    *("br", "wbr", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "figcaption", "button"),
    *("svg", "path", "rect", "circle", "text"),
}


class Page(HTMLParser):
    """Every element with its attributes and text; nesting is checked."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def within(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]

    def having(self, **attributes: str) -> list[tuple[str, dict[str, str]]]:
        return [(t, a) for t, a in self.found if all(a.get(k) == v for k, v in attributes.items())]

    @property
    def text(self) -> str:
        return " ".join("".join(text for tag, text in self.texts if tag not in ("style", "script")).split())


def safe(page: Page) -> None:
    """Nothing but our own markup, our own style and script, links to the web and to places that are here."""
    assert {tag for tag, _ in page.found} <= PLAIN
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.found:
        assert not {"style", "src", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        if "href" in attributes:
            assert tag == "a"
            where = attributes["href"]
            assert re.fullmatch(r"https?://[^\s\"'<>]+", where) or where.removeprefix("#") in ids
            assert where.startswith("#") or "noopener" in attributes["rel"]
    assert [tag for tag, _ in page.found].count("script") == 1


def test_the_page_is_safe_and_whole() -> None:
    page = Page(render(everything()))
    safe(page)
    policy = next(a["content"] for _, a in page.having(**{"http-equiv": "Content-Security-Policy"}))
    for kind, tag in (("style-src", "style"), ("script-src", "script")):
        (text,) = page.within(tag)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert page.having(name="viewport")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    source = render(hostile(text))
    source.encode("utf-8")  # a lone surrogate would not be
    page = Page(source)
    safe(page)
    seen = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    assert seen in page.text.replace("\ufffe", "\\ufffe")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]", source)
    assert "49" not in page.text or "{{" not in text


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("see https://example.org/a?b=1&c=2.", ["https://example.org/a?b=1&amp;c=2"]),
        ("(http://example.org/1) and https://example.org/2", ["http://example.org/1", "https://example.org/2"]),
        ("javascript:alert(1) data:text/html,x file:///etc/passwd //example.org", []),
        ("https://", []),
        ("https://[oops", []),
        ("https://exa\u202emple.org", []),
    ],
)
def test_only_web_addresses_are_links(text: str, links: list[str]) -> None:
    assert re.findall(r'href="([^"]*)" rel="noopener noreferrer"', str(linked(text))) == links


def test_verdict_first_in_colour_word_and_symbol() -> None:
    found = document(judgement(row("logits", "values", 99.0)))
    page = Page(render(found))
    assert page.having(**{"class": "banner tone-fail"})
    assert page.text.index("✗ DEVIATES") < page.text.index("What deviates") < page.text.index("All cases")
    for verdict, tone, symbol in (("CONFORMS", "pass", "✓"), ("INCOMPLETE", "error", "?")):
        page = Page(render(document(judgement(), verdict=verdict)))
        assert page.having(**{"class": f"banner tone-{tone}"})
        assert f"{symbol} {verdict}" in page.text


def test_a_fault_is_told_once_with_all_its_cases() -> None:
    bad = row(f"{DEC}.layers.1.mlp.act_fn", "values", 3661.0)
    page = Page(render(document(*(judgement(bad, case=c, named=[named()]) for c in ("short", "window", "eoi")))))
    cards = page.having(**{"class": "card fail"})
    assert len(cards) == 1
    assert "✗ D52, erf GELU instead of tanh" in page.text
    assert "port on tiny: short, window, eoi" in page.text
    assert "coefficient 1.010 ± 0.02" in page.text
    assert "short, window, eoi" in page.text
    assert "--ckpt tiny --peer port --case short --detail" in page.text


def test_a_finding_of_several_peers_is_one_card() -> None:
    """Two attention paths fail on two checkpoints: one card, which says where."""
    bad = row(f"{DEC}.layers.1.mlp.act_fn", "values", 3661.0)
    places = [(peer, target) for peer in ("eager", "sdpa") for target in ("tiny", "tiny-even")]
    found = [judgement(bad, case="short", peer=peer, target=target) for peer, target in places]
    page = Page(render(document(*found)))
    assert len(page.having(**{"class": "card fail"})) == 1
    assert all(f"{peer} on {target}: short" in page.text for peer, target in places)


def test_every_section_says_its_thing() -> None:
    text = Page(render(everything())).text
    for part in (
        "raised, and could not be judged",
        "RuntimeError: no kernel",
        "no images (https://example.org/2)",
        "text only; known: as planned (https://example.org/3)",
        "Known deviation, not counted",
        "Listed as known, and no longer there",
        "transformers >=5.20,<5.24",
        "rounding noise could hide anything",
        "one kv head",
        "too many",
        "2 of 2",
        "float16 was not run",
        "no power",
        "40",
        "raw, before the cut",
        "version 2",
    ):
        assert part.lower() in text.lower(), part


def test_the_exact_lane_counts_checks_and_no_taps() -> None:
    wrong = row("weights.lm_head.weight", "exact", "nan")
    found = judgement(wrong, case="exact", local=[], cumulative=[], exact=[wrong, row("probe-window", judged=0.0)])
    text = Page(render(document(found))).text
    assert "1 of 2 checks, bit for bit in case exact" in text
    assert "reference 1.25 s; 2 checks." in text


@pytest.mark.parametrize("unclear", [[], ["logits"]])
def test_a_part_of_a_pattern_is_told_with_its_error(unclear: list[str]) -> None:
    """Beside the noise that could hide anything, where there is both; never the noise alone."""
    part = named(verdict="partly") | {"coefficient": 0.2, "head": 1}
    found = judgement(passed=False, dtype="bfloat16", named=[part], unclear=unclear)
    text = Page(render(document(found))).text
    told = f"0.20 ± 0.02 of the pattern of D52 is at {DEC}.layers.1.mlp.act_fn, head 1: no proof, and no pass"
    assert text.count(told) == 2  # on its card, and with its taps
    assert ("rounding noise could hide anything at logits" in text) == bool(unclear)
    assert "anything at ." not in text


def test_passing_comparisons_show_their_worst_taps_and_say_what_is_left_out() -> None:
    rows = [row(f"{DEC}.layers.0.x{i}", judged=1 + i / 1000) for i in range(900)]
    page = Page(render(document(judgement(local=rows))))
    shown = [text for text in page.texts if text[1].startswith("x") and text[1][1:].isdigit()]
    assert [text for _, text in shown] == [f"x{i}" for i in range(899, 891, -1)]
    assert "906 taps, of which 892 are not on this page: the JSON report has all" in page.text
    assert "worst taps (local): 900 taps, 8 shown" in page.text


def test_failing_comparisons_show_every_tap_the_failing_ones_first_and_open() -> None:
    bad = row(f"{DEC}.layers.1.mlp.act_fn", "values", 99.0)
    page = Page(render(document(judgement(bad))))
    groups = [text.strip() for text in page.within("summary") if "(local)" in text or "(cumulative)" in text]
    assert groups[0].startswith("✗ decoder layer 1 (local)")
    opened = [a for tag, a in page.found if tag == "details" and "open" in a]
    assert len(opened) == 2  # the comparison and its failing group
    assert "not on this page" not in page.text


def test_a_report_of_any_size_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "FULL", 100)
    bad = [row(f"{DEC}.layers.0.x{i}", "values", 10.0 + i) for i in range(300)]
    found = document(*(judgement(*bad, case=f"c{i}", local=bad) for i in range(3)))
    page = Page(render(found))
    assert len([tag for tag, a in page.found if tag == "tr" and a.get("class") == "bad"]) == 3 * 80
    assert "220 are not on this page" in page.text


def test_depth_marks_faults_by_shape_and_what_has_no_number_at_the_rim() -> None:
    found = [dict(zip(document()["columns"], r, strict=True)) for r in local()]
    found[4] |= {"status": "values", "judged": 500.0}
    found[6] |= {"status": "mask", "judged": "nan", "worst": "nan"}
    plot = depth(found, [found[4] | {"judged": 2.0, "status": "pass"}], found[4])
    assert plot is not None
    assert [(p.bad, p.rim) for p in plot.points if p.bad] == [(True, False), (True, True)]
    assert plot.mark is not None
    assert plot.mark[1] == f"{ENC}.layers.0.pre_self_attn_layernorm"
    assert all(TOP <= p.y <= BOTTOM for p in plot.points)
    assert all(p.rim == (p.y == TOP) for p in plot.points)
    assert plot.limit_label is not None
    assert plot.limit_label[1] == "limit 8"
    source = render(document(judgement(row(found[4]["tap"], "values", 500.0))))
    assert 'class="bad"' in source
    assert "first bad tap: " in source


def test_depth_breaks_its_line_where_there_is_no_number() -> None:
    found = [dict(zip(document()["columns"], row(tap), strict=True)) for tap in SPINE]
    found[2] |= {"status": "nan", "judged": "nan", "worst": "nan"}
    plot = depth([], found, None)
    assert plot is not None
    assert (plot.line.count("M"), plot.line.count("L")) == (2, len(SPINE) - 3)


def test_depth_of_a_long_run_draws_the_worst_of_each_layer() -> None:
    found = [dict(zip(document()["columns"], r, strict=True)) for r in local(calls=MANY // 10)]
    plot = depth(found, [], None)
    assert plot is not None
    assert plot.reduced
    assert len(plot.points) == len({(r["call"], part_of(r["tap"])) for r in found})
    assert depth([], [], None) is None


@pytest.mark.parametrize("ratio", ["nan", "inf", "-inf", 0.0, -1.0, 1e-300, 1e300])
def test_depth_takes_any_number(ratio: Any) -> None:
    found = dict(zip(document()["columns"], row("logits", judged=ratio, limit=ratio), strict=True))
    plot = depth([found], [found], found)
    assert plot is not None
    assert all(TOP <= p.y <= BOTTOM for p in plot.points)


def test_mask_picture_counts_what_is_too_many_and_too_few() -> None:
    picture = mask(BAND, WIDER)
    wrong = sum(a != b for x, y in zip(BAND, WIDER, strict=True) for a, b in zip(x, y, strict=True))
    assert picture.counts == (wrong, 0)
    assert mask(WIDER, BAND).counts == (0, wrong)
    assert picture.extra.count("z") == wrong
    assert sum(d.count("z") for d in (picture.both, picture.neither, picture.extra, picture.missing)) == 25
    assert [q for _, q in mask(BAND, WIDER, 7).rows] == [7]
    assert mask(BAND, WIDER, None).rows == []


@pytest.mark.parametrize(("expected", "found"), [([], []), ([""], ["x"]), (["x" * 5000] * 5000, [])])
def test_mask_picture_of_any_drawing(expected: list[str], found: list[str]) -> None:
    picture = mask(expected, found)
    assert picture.width < 1000
    assert picture.height < 1000
    assert picture.cut == (len(expected) > 1)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("tiny", "--ckpt tiny"),
        ("1b (synthetic weights)", "--ckpt 1b --synthetic"),
        ("270m (calm synthetic weights)", "--ckpt 270m --synthetic --calm"),
        ("a; rm -rf b", "--ckpt 'a; rm -rf b'"),
    ],
)
def test_commands_are_quoted_and_say_how_weights_were_made(target: str, words: str) -> None:
    found = document(judgement(target=target))
    assert whole_command(found) == f"python -m conformance {words} --peer port"
    assert whole_command(found | {"command": "as it was"}) == "as it was"


@pytest.mark.parametrize(
    ("given", "asked", "told"),
    [
        ("--json check.json --peer port", "port", "--ckpt tiny --peer port --case short --detail"),
        ("--peer process:./check", "process:./check", "--ckpt tiny --peer process:./check --case short --detail"),
        ("check 'my dump'", "dir:my dump", "check 'my dump' --ckpt tiny --case short --detail"),
    ],
)
def test_every_card_can_be_reproduced(given: str, asked: str, told: str) -> None:
    """Whatever words the command line holds: what was asked for stands beside the peer's name."""
    found = document(judgement(row("logits", "values", 99.0)), command=f"python -m conformance {given}")
    assert f"python -m conformance {told}" in Page(render(found | {"peers": {"port": asked}})).within("pre")
    assert told not in Page(render(found)).text, "who does not tell how it was asked for gets no command"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, "1"),
        (3661.2, "3,661"),
        (1.4e7, "14 million"),
        ("nan", "NaN"),
        ("inf", "∞"),
        ("no number", "NaN"),
    ],
)
def test_numbers_for_people(value: object, expected: str) -> None:
    assert in_words(value) == expected


def test_the_judges_own_document_is_understood() -> None:
    page = Page(render(real()))
    safe(page)
    assert "✗ DEVIATES" in page.text


def test_an_empty_run_has_a_page() -> None:
    page = Page(render(document(verdict="INCOMPLETE")))
    safe(page)
    assert "Nothing was compared." in page.text
