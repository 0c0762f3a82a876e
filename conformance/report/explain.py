"""The text of `explain`: its topics, its version, and the text as HTML for the page."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = Path(__file__).resolve().with_name("explain.md")


def sections() -> dict[str, tuple[str, str]]:
    """Topic → (title, Markdown of the section with its heading), in order."""
    parts = re.split(r"(?m)^(?=## )", TEXT.read_text(encoding="utf-8"))[1:]
    titles = [part.splitlines()[0].removeprefix("## ").strip() for part in parts]
    return {slug(title): (title, part) for title, part in zip(titles, parts, strict=True)}


def slug(title: str) -> str:
    """A heading as a topic: "Two anchors" → "two-anchors"."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def version() -> str:
    """The number that stands at the top of the text."""
    found = re.search(r"(?m)^Version (\S+)", TEXT.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{TEXT.name} has no line 'Version …'")
    return found[1]


def as_html() -> str:
    """The text as HTML for the page: headings one level down, each section with the id explain-TOPIC."""
    from markdown_it import MarkdownIt

    text = TEXT.read_text(encoding="utf-8")
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text[text.index("\n## ") :])
    for i, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            token.attrSet("id", f"explain-{slug(tokens[i + 1].content)}")
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1:]) + 1}"
        for child in token.children or ():
            if child.type == "link_open":
                child.attrSet("rel", "noopener noreferrer")
    html: str = markdown.renderer.render(tokens, markdown.options, {})
    return html.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
