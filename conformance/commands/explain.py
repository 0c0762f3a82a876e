"""The command `explain`: prints what a report's numbers mean, and how to get from a red row to a line of code.

The text is `explain.md`, versioned; topics are its second-level headings. The HTML report holds the same text.
"""

from __future__ import annotations

import argparse
import difflib
import sys

from conformance.defects.catalogue import DEFECTS, SEEN
from conformance.errors import UsageError
from conformance.report.explain import TEXT, sections, slug

WIDTH = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "topic", nargs="?", metavar="TOPIC", help="one topic, see --list, or a defect such as D16 (default: all)"
    )
    parser.add_argument("--list", action="store_true", dest="list_topics", help="list the topics, one a line")


def main(options: argparse.Namespace) -> int:
    """Print the whole text, one topic or the list of topics; returns 0. Raises UsageError for an unknown topic."""
    topics = sections()
    if options.list_topics:
        width = max(map(len, topics))
        for slug, (title, _) in topics.items():
            print(f"{slug:{width}}  {title}")
        return 0
    _print(TEXT.read_text(encoding="utf-8") if options.topic is None else _found(topics, options.topic))
    return 0


def _found(topics: dict[str, tuple[str, str]], wanted: str) -> str:
    """The section of this topic, or of the only topic that begins so."""
    if (defect := wanted.upper()) in DEFECTS:
        return _defect(defect)
    name = slug(wanted)
    starting = [topic for topic in topics if topic.startswith(name)] if name else []
    if name in topics or len(starting) == 1:
        return topics[name if name in topics else starting[0]][1]
    close = starting or difflib.get_close_matches(name, topics, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UsageError(f"explain {wanted!r}: there is no such topic; {hint}`explain --list` has them all")


def _defect(defect: str) -> str:
    """One defect of the catalogue: what it is, and where each of its variants shows in the self-test."""
    from conformance.defects.all import FAULTS  # with the model, which the pages do not need

    variants = dict.fromkeys((fault.title, fault.case, fault.tap) for fault in FAULTS if fault.id == defect)
    seen = [f"\nSeen in {SEEN[defect]}."] if defect in SEEN else []
    lines = [f"* {title}: shows in case `{case}` at `{tap}`" for title, case, tap in variants]
    caught = f"\n`python -m conformance selftest --fault '{defect}*'` shows it caught."
    return "\n".join([f"## {defect} {DEFECTS[defect]}\n", *lines, *seen, caught])


def _print(text: str) -> None:
    """Print the text: laid out in a terminal, plain into a pipe or a file."""
    if not sys.stdout.isatty():
        print(text.rstrip())
        return
    from rich.markdown import Markdown

    from conformance.terminal import console

    terminal = console()
    terminal.print(Markdown(text), width=min(WIDTH, terminal.width))
