"""Command lines that reproduce a report, or one row of it, as near as the document tells them."""

from __future__ import annotations

import re
import shlex

from conformance.cases.each_kind import CUT, EACH_KIND
from conformance.cases.prompt import GENERATE
from conformance.peers.find import DUMP
from conformance.report.document import Document


def whole_command(document: Document) -> str:
    """The command line of the whole run: as it was given, else as near as the document tells it."""
    given = document.get("command") or document["environment"].get("command")
    if given:
        return str(given)
    targets = dict.fromkeys(_checkpoint(str(j["target"])) for j in document["judgements"])
    peers = dict.fromkeys(str(j["peer"]) for j in document["judgements"])
    backend = _backend(document)
    lines = [[*_START, *words, *(w for p in peers for w in ("--peer", p)), *backend] for words in targets]
    return "\n".join(shlex.join(line) for line in lines)


def command(document: Document, judgement: Document) -> str:
    """The command line of one comparison by itself; a dump is judged by `check`.

    It is "" where the run does not tell how the peer was asked for.
    """
    peers = document.get("peers", {})
    asked = str(peers.get(judgement["peer"], "" if document.get("command") else judgement["peer"]))
    if not asked:
        return ""
    folder = asked.removeprefix(DUMP)
    target = _checkpoint(str(judgement["target"]))
    case = str(judgement["case"])
    lane = ["--lane", GENERATE] if case.startswith(GENERATE) else []  # a process is asked by that name alone
    words = ["check", folder, *target] if folder != asked else [*target, "--peer", asked]
    return shlex.join([*_START, *words, *lane, *_backend(document), "--case", case, "--detail"])


_START = ("python", "-m", "conformance")
_MADE = re.compile(r"(?P<name>.+) \((?P<calm>calm )?synthetic weights\)")


def _checkpoint(target: str) -> tuple[str, ...]:
    if target.endswith(CUT):
        return (*_checkpoint(target.removesuffix(CUT)), "--layers", EACH_KIND)
    if made := _MADE.fullmatch(target):
        return ("--ckpt", made["name"], "--synthetic", *(["--calm"] if made["calm"] else []))
    return ("--ckpt", target)


def _backend(document: Document) -> list[str]:
    name = document["environment"].get("backend")
    return ["--backend", str(name)] if name else []
