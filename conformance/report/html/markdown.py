"""The page's failing cards as Markdown for a tracker: verdict, causes, commands; under 4 KB, and escaped.

The document is untrusted. So whatever a peer chose (its name, its errors, taps, the last line) stands in code spans,
where nothing is markup, a mention or a link; its invisible characters are spelled out, and long text is cut. Cards that
do not fit are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from conformance.report.cards import Card, tabled
from conformance.report.document import Document, carded, checked, in_parts, in_words, number
from conformance.report.html.causes import Blame, blamed
from conformance.report.html.commands import whole_command
from conformance.report.html.comparisons import Comparison, comparisons

MOST_BYTES = 4000
LONGEST = 200  # bytes of foreign text in one place
MOST_CASES = 8
MOST_COMMAND = 400


def render(document: Document) -> str:
    """The report as Markdown."""
    shown = comparisons(checked(document))
    made = carded(document)
    cards = ["\n".join(_card(document, i, blame)) for i, blame in enumerate(blamed(document, shown, made), 1)]
    head, tail = "\n".join(_head(document, made, shown)), "\n".join(_tail(document))
    kept: list[str] = []
    for card in cards:
        if _size(head, *kept, card, _left(len(made)), tail) > MOST_BYTES:
            break
        kept.append(card)
    left = len(made) - len(kept)
    return "\n\n".join(filter(None, (head, *kept, _left(left) if left else "", tail))) + "\n"


def code(value: object, longest: int = LONGEST) -> str:
    """Foreign text as a code span of one line, which nothing in it can end. A bar would end a table's cell."""
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in " ".join(str(value).split(" ")))
    data = text.replace("|", "¦").encode()
    text = data.decode() if len(data) <= longest else data[: longest - 3].decode(errors="ignore") + "…"
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{space}{text}{space}{fence}"


def _size(*parts: str) -> int:
    return sum(len(part.encode()) + 2 for part in parts)


def _left(count: int) -> str:
    return f"{count} more cause{'s' * (count != 1)}: in the page and in the JSON report."


def _head(document: Document, made: list[Card], shown: list[Comparison]) -> Iterator[str]:
    """The verdict, and a table where a peer has several causes."""
    yield f"**{code(document['verdict'])}** {code(document['line'], 300)}"
    for (peer, target), several in tabled(made).items():
        yield from ("", f"{code(peer, 60)} on {code(target, 60)}: {len(several)} causes", "")
        yield from ("| cause | taps | cases |", "|---|---|---|")
        for card in several[:6]:
            taps = ", ".join(card.cause.taps[:4]) if card.cause else ""
            cases = len({f.case for f, _ in card.members if f.place == (peer, target)})
            yield f"| {code(card.cause.title if card.cause else '', 70)} | {code(taps, 60)} | {cases} |"
        break  # one table: of the first peer that has several
    raised = [c for c in shown if c.state == "error"][:4]
    for c in raised:
        yield f"\n{code(c.judgement['peer'])}, case {code(c.judgement['case'])}: raised {code(c.judgement['error'])}"


def _card(document: Document, index: int, blame: Blame) -> Iterator[str]:
    c, culprit = blame.first, blame.first.culprit or {}
    yield f"**{index}. {code(blame.cause or culprit.get('tap', 'it did not pass'))}**"
    yield ""
    at = f"{code(culprit.get('tap', ''))}, call {code(culprit.get('call', ''))}, {c.anchor}"
    yield f"* first bad tap: {at}; {code(c.judgement['peer'])} on {code(c.judgement['target'])}"
    yield f"* {code(culprit.get('status', ''))}: {code(culprit.get('detail', ''))}"
    if (judged := number(culprit.get("judged"))) == judged:
        yield f"* judged {in_words(judged)}, limit {in_words(culprit.get('limit'))}"
    for word, found in (("it is", blame.defects), ("it is akin to", blame.akin)):
        for s in found:
            title, error = document["defects"].get(s["defect"], ""), in_words(s["error"], 2)
            name = code(f"{s['defect']} {title}")
            name += f" together with {code(s['beside'])}" if s.get("beside") else ""
            yield f"* {word} {name}: coefficient {in_parts(s['coefficient'])} ± {error}"
    if blame.apart:
        yield f"* told apart by: {code(blame.apart)}"
    yield from (f"* it may be {code(line)}" for line in blame.candidates)
    cases = [case for places in blame.places.values() for _, case in places]
    more = f" and {len(cases) - MOST_CASES} more" if len(cases) > MOST_CASES else ""
    yield f"* cases: {', '.join(code(case, 40) for case in cases[:MOST_CASES])}{more}"
    if blame.command:
        yield f"* {code(blame.command, MOST_COMMAND)}"


def _tail(document: Document) -> Iterator[str]:
    versions = ", ".join(f"{name} {value}" for name, value in document["environment"].items())
    yield code(versions)
    if command := whole_command(document):
        yield from ("", code(command, MOST_COMMAND))
