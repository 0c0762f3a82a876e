"""A badge from the report document: JSON as shields.io's endpoint reads it (https://shields.io/badges/endpoint-badge)."""

from __future__ import annotations

import json

from conformance.report.document import Document, checked

COLOURS = {"CONFORMS": "brightgreen", "DEVIATES": "red", "INCOMPLETE": "lightgrey"}
LABEL = "T5Gemma 2"


def render(document: Document) -> str:
    """The badge. A verdict on a part of the cases, or beside known deviations, does not look like a whole one."""
    verdict = str(checked(document)["verdict"])
    types = dict.fromkeys(str(j["dtype"]) for j in document["judgements"] if j.get("local"))
    said, colour = verdict.lower(), COLOURS.get(verdict, "lightgrey")
    if verdict == "CONFORMS":
        said = f"{said} in {', '.join(types)}" if types else said
        if document["line"] != f"VERDICT: {verdict}":
            said, colour = f"{said}, in part", "yellowgreen"
    return json.dumps({"schemaVersion": 1, "label": LABEL, "message": said, "color": colour}) + "\n"
