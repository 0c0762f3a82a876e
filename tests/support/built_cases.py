"""The cases on every geometry: the bundled ones and the released ones."""

from __future__ import annotations

from functools import cache

from conformance.cases.case import Case
from conformance.cases.catalogue import build
from t5g2ref import bundled
from t5g2ref.config import PRESETS, Config

GEOMETRIES = ("tiny", "tiny-even", "tiny-released", "demo", *PRESETS)


def geometry(name: str) -> Config:
    return PRESETS[name] if name in PRESETS else Config.load(bundled(name))


@cache
def built(name: str) -> list[Case]:
    return build(geometry(name))
