"""Cases of long context, each asked for by its name: a row of thousands of tokens takes minutes, or a large machine.

They are judged at picked tokens (`picked.py`). A long source goes to an answer past the decoder's window, then a short
source to a long answer: so encoder, cross half and decoder all have keys far out, and no row is long twice.
`long-positions` is no long row: a few tokens at far positions, where RoPE's tables are judged in their own right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from conformance.cases.case import Case, Run
from conformance.cases.ingredients import Kit
from conformance.cases.picked import DOUBLINGS, LAST, Picked, tokens
from t5g2ref.config import Config, TextConfig

SEED = 20261128  # of the inputs that are judged
LENGTHS = {"long-8k": 8192, "long-32k": 32_768, "long-128k": 131_072}
POSITIONS = "long-positions"
NAMES = (*LENGTHS, POSITIONS)
SHORT = 8  # tokens beside a long row
FAR = ("D19", "D20", "D21", "D22", "D23", "D27")
ENCODER, DECODER = ("D30", "D31", "D32", "D35"), ("D33", "D34", "D37", "D67", "D68", "D69", "D71", "D79")


def build(config: Config) -> list[Case]:
    """Every case of long context that this geometry's parts can run."""
    kits = [Kit(config, np.random.default_rng([SEED, i])) for i in range(len(NAMES))]
    return [*(long(kits[i], name, length) for i, (name, length) in enumerate(LENGTHS.items())), _positions(kits[-1])]


def long(k: Kit, name: str, length: int) -> Case:
    """The case of rows of so many tokens."""
    encoder, decoder = k.config.encoder, k.config.decoder
    source = k.ids(1, length)
    at = tokens(length, _reaches(encoder), k.rng)
    if not k.config.has_decoder:
        alone = Run(source, source[:, :0], picked=Picked(at, np.arange(0)))
        return Case(name, f"{length} tokens, at picked ones", (alone,), "encoder", **_how(FAR, ENCODER))
    answer = decoder.sliding_window + SHORT
    far = Run(
        source,
        k.ids(1, answer),
        logits_to_keep=LAST,
        picked=Picked(at, tokens(answer, _reaches(decoder), k.rng)),
    )
    long_answer = Run(
        k.ids(1, SHORT),
        k.ids(1, length),
        logits_to_keep=LAST,
        picked=Picked(np.arange(SHORT), tokens(length, _reaches(decoder), k.rng)),
    )
    title = f"{length} tokens to a few, and few to as many"
    return Case(name, title, (far, long_answer), **_how(FAR, ENCODER, DECODER))


def _how(*exposes: tuple[str, ...]) -> dict[str, Any]:
    return {"exposes": tuple(sorted(sum(exposes, ()))), "costly": True, "types": ("float32",)}


def _reaches(stack: TextConfig) -> tuple[int, ...]:
    """How far a window may reach: half of it or all of it, and one less."""
    window = stack.sliding_window
    return (window // 2, window - 1, window)


def _positions(k: Kit) -> Case:
    """A row for each far place, up to the last of 128K positions. Positions rise by one in each: transformers takes a
    jump for the beginning of another text in the same row."""
    last = max(LENGTHS.values())
    first = [0, *(edge - SHORT // 2 for edge in DOUBLINGS), last - SHORT, *k.rng.integers(0, last - SHORT, 2).tolist()]
    places = np.array(first, np.int64)[:, None] + np.arange(SHORT)
    ids, answer = k.ids(len(places), SHORT), k.ids(len(places), SHORT)
    run = Run(ids, answer, position_ids=places, decoder_position_ids=places)
    title = f"rows of {SHORT} at positions up to {last - 1}"
    case = Case(POSITIONS, title, (run,), exposes=FAR, types=("float32",))
    return case if k.config.has_decoder else replace(case.of_encoder(), exposes=FAR)
