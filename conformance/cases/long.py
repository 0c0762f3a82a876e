"""Cases of long context, each asked for by its name: a row of thousands of tokens takes minutes, or a large machine.

They are judged at picked tokens (`picked.py`). A long source goes to an answer past the decoder's window, then a short
source to a long answer: so encoder, cross half and decoder all have keys far out, and no row is long twice.
`long-positions` is no long row: a few tokens at far positions, where RoPE's tables are judged in their own right.
"""

from __future__ import annotations

from dataclasses import replace

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
EXPOSES = tuple("D19 D20 D21 D22 D23 D27 D30 D31 D32 D33 D34 D35 D37 D67 D68 D69 D71 D79".split())
FAR = tuple("D19 D20 D21 D22 D23 D27".split())


def build(config: Config) -> list[Case]:
    """Every case of long context that this geometry's parts can run."""
    kits = [Kit(config, np.random.default_rng([SEED, i])) for i in range(len(NAMES))]
    return [*(long(kit, name, LENGTHS[name]) for kit, name in zip(kits, LENGTHS, strict=False)), _positions(kits[-1])]


def long(k: Kit, name: str, length: int) -> Case:
    """The case of rows of so many tokens."""
    encoder, decoder = k.config.encoder, k.config.decoder
    source, title = k.ids(1, length), f"{length} tokens to a few, and a few to {length}, at picked ones"
    at = tokens(length, _reaches(encoder), k.rng)
    if not k.config.has_decoder:
        alone = Run(source, source[:, :0], picked=Picked(at, np.arange(0)))
        return Case(name, f"{length} tokens, at picked ones", (alone,), "encoder", **_how(("D30", "D31", "D32", "D35")))
    answer = decoder.sliding_window + SHORT
    first = Picked(at, tokens(answer, _reaches(decoder), k.rng))
    second = Picked(np.arange(SHORT), tokens(length, _reaches(decoder), k.rng))
    runs = (
        Run(source, k.ids(1, answer), logits_to_keep=LAST, picked=first),
        Run(k.ids(1, SHORT), k.ids(1, length), logits_to_keep=LAST, picked=second),
    )
    return Case(name, title, runs, **_how(EXPOSES))


def _how(exposes: tuple[str, ...]) -> dict[str, tuple[str, ...] | bool]:
    return {"exposes": exposes, "costly": True, "types": ("float32",)}


def _reaches(stack: TextConfig) -> tuple[int, ...]:
    """How far a window may reach: half of it or all of it, and one less."""
    window = stack.sliding_window
    return (window // 2, window - 1, window)


def _positions(k: Kit) -> Case:
    """Every far position beside its neighbour, up to the last of 128K tokens."""
    last = max(LENGTHS.values()) - 1
    far = [edge + near for edge in (*DOUBLINGS, last) for near in (-1, 0)]
    places = np.array(sorted({0, 1, *far, *k.rng.choice(last, 12, replace=False).tolist()}), np.int64)[None]
    ids = k.ids(1, places.size)
    run = Run(ids, k.ids(1, places.size), position_ids=places, decoder_position_ids=places)
    title = f"a few tokens at positions up to {last}"
    case = Case(POSITIONS, title, (run,), exposes=FAR, types=("float32",))
    if k.config.has_decoder:
        return case
    return replace(case.of_encoder(), exposes=FAR)
