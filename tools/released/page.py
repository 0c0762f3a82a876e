"""The page of verdicts, in Markdown and in HTML: a table for each package, a row a release, a column a way."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from released.listed import PACKAGES

Verdict = dict[str, Any]
TITLE = "What released peers were found to do"
INTRODUCTION = (
    "Made by `python tools/releases.py`; each verdict is a file in `verdicts/`. Few cases were judged, which each file "
    "names, and each once. A verdict says nothing of other inputs, or of speed.",
    "A cell has the verdict, the first bad tap with its case, and the defects by their names in the catalogue "
    "(`python -m conformance list faults`). `findings/` has reports to paste, each with a script that needs the peer "
    "alone.",
)


def cell(verdict: Verdict | None, code: Callable[[str], str]) -> str:
    """One verdict in words. `code` marks a name."""
    if verdict is None:
        return "not judged"
    if verdict["verdict"] == "NONE":
        return f"no verdict: {verdict['said']}"
    if verdict["verdict"] == "CONFORMS":
        return f"CONFORMS, worst ratio {verdict['worst']:.3g}"
    at = verdict["first"]
    where = f" at {code(at['tap'])}, case {code(at['case'])}" if at else ""
    defects = "; ".join(" or ".join(each) for each in verdict["defects"])
    defects = defects or ", or ".join(" with ".join(each) for each in verdict["diagnosis"])
    errors = f"; raises in {', '.join(map(code, verdict['errors']))}" if verdict["errors"] else ""
    return f"{verdict['verdict']}{where}{f': {defects}' if defects else ''}{errors}"


def tables(
    verdicts: Iterable[Verdict], order: Callable[[Verdict], tuple[int, ...]]
) -> list[tuple[str, list[str], list[Any]]]:
    """(package, its columns, rows of (version, verdicts in the columns' order)), in the order of `order`."""
    found = []
    for package, group in groupby(sorted(verdicts, key=order), lambda verdict: str(verdict["package"])):
        held = list(group)
        ways = list(dict.fromkeys(verdict["way"] for verdict in held))
        rows = []
        for version, same in groupby(held, lambda verdict: str(verdict["version"])):
            by_way = {verdict["way"]: verdict for verdict in same}
            rows.append((version, [by_way.get(way) for way in ways]))
        found.append((package, ways, rows))
    return found


def markdown(found: list[tuple[str, list[str], list[Any]]]) -> str:
    """The page in Markdown."""
    lines = [f"# {TITLE}", "", *"\n\n".join(INTRODUCTION).splitlines()]
    for package, ways, rows in found:
        lines += ["", f"## {package}", ""]
        if report := PACKAGES[package].report:
            lines += [f"[What was found, by hand too]({report})", ""]
        lines += [f"| version | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
        for version, verdicts in rows:
            cells = [cell(verdict, lambda text: f"`{text}`").replace("|", "\\|") for verdict in verdicts]
            lines.append(f"| {version} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left;vertical-align:top}.CONFORMS{background:#e4f5e4}"
    ".DEVIATES{background:#fbe3e0}.INCOMPLETE{background:#fdf3d8}"
)


def page(found: list[tuple[str, list[str], list[Any]]]) -> str:
    """The page in HTML, without anything from elsewhere."""
    parts = ["<!doctype html>", "<html lang=en><meta charset=utf-8>", f"<title>{TITLE}</title><style>{STYLE}</style>"]
    parts += [f"<h1>{TITLE}</h1>", *(f"<p>{_coded(text)}</p>" for text in INTRODUCTION)]
    for package, ways, rows in found:
        head = "".join(f"<th>{html.escape(way)}</th>" for way in ways)
        parts.append(f"<h2>{html.escape(package)}</h2>")
        if report := PACKAGES[package].report:
            parts.append(f'<p><a href="{report}">What was found, by hand too</a></p>')
        parts += [f"<table><tr><th>version</th>{head}</tr>"]
        for version, verdicts in rows:
            cells = "".join(_cell(verdict) for verdict in verdicts)
            parts.append(f"<tr><td>{html.escape(version)}</td>{cells}</tr>")
        parts.append("</table>")
    return "\n".join([*parts, "</html>"]) + "\n"


def _coded(text: str) -> str:
    """Text in HTML; what stands between backquotes is code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _cell(verdict: Verdict | None) -> str:
    said = html.escape(cell(verdict, str))
    if verdict is None:
        return f"<td>{said}</td>"
    return f'<td class="{html.escape(verdict["verdict"])}" title="{html.escape(verdict["command"])}">{said}</td>'
