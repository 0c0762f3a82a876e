"""Makes the report one page that needs nothing else: no network, no fonts, no foreign script.

The document is untrusted: a peer chooses its name, its errors and its tap names. So Jinja2 escapes everything, and
invisible characters are spelled out. Only http and https addresses become links. The page's own policy forbids every
style and script that was not written here.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from conformance.report import explain
from conformance.report.document import STATUSES, Document, checked, in_parts, in_table, in_words, number
from conformance.report.html.view import page

TEMPLATES = Path(__file__).resolve().parent / "templates"
_URL = re.compile(r"https?://[^\s<>\"'`|\\^{}]+")


def render(document: Document) -> str:
    """The page as HTML. Raises DocumentError for a document of another schema."""
    style, script = (_source(name) for name in ("report.css", "report.js"))
    return (
        _environment()
        .get_template("report.html")
        .render(
            page(checked(document)),
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
            explained=Markup(explain.as_html()),
            version=explain.version(),
            statuses=STATUSES,
        )
    )


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    made.filters |= {
        "ratio": in_words,
        "figure": in_table,
        "share": in_parts,
        "number": number,
        "linked": linked,
        "breakable": breakable,
        "joined": _joined,
        "versions": _versions,
    }
    return made


def _source(name: str) -> str:
    """One of our own files, which must not hold the end of the tags that it stands between."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    if "</" in text:
        raise ValueError(f"{name} holds '</', which would end its element")
    return text


def _policy(style: str, script: str) -> str:
    """The Content-Security-Policy: nothing but this very style and script, by their hashes."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    styles, scripts = (f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; style-src {styles}; script-src {scripts}; base-uri 'none'; form-action 'none'"


def visible(value: Any) -> Any:
    """Text with its invisible characters spelled out, as \\u202e, so that what is read is what is there.

    These are control characters, and those that turn the direction of text or take no room. Our own Markup passes.
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _UNSEEN else _spelled(c) for c in value)


_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def linked(text: object) -> Markup:
    """Escaped text in which http and https addresses are links; any other scheme stays text."""
    parts, last, whole = [], 0, str(text)
    for match in _URL.finditer(whole):
        address = match[0].rstrip(".,;:)]")
        if not _safe(address):
            continue
        parts += [escape(visible(whole[last : match.start()])), _anchor(address)]
        last = match.start() + len(address)
    return Markup("").join([*parts, escape(visible(whole[last:]))])


def _safe(address: str) -> bool:
    try:
        found = urlsplit(address)
        return found.scheme in ("http", "https") and bool(found.hostname) and address == visible(address)
    except ValueError:
        return False


def _anchor(address: str) -> Markup:
    return Markup('<a href="{0}" rel="noopener noreferrer">{0}</a>').format(address)


def breakable(name: object) -> Markup:
    """A name that a line may break after a dot, underscore, slash or colon. No HTML escape holds one of these."""
    return Markup(re.sub(r"([._/:])", r"\1<wbr>", str(escape(visible(str(name))))))


def _versions(value: object) -> str:
    """Ranges of versions in one line, from a table of packages or from text."""
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value or "")


def _joined(token: object) -> str:
    """The index of a token."""
    return ", ".join(map(str, token)) if isinstance(token, (list, tuple)) else str(token)
