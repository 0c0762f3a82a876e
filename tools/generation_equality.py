"""Holds our greedy and beam generation against transformers': the same ids, on ragged sources and with pictures.

    python tools/generation_equality.py                    60 greedy and 20 beam calls on tiny and on demo
    python tools/generation_equality.py --greedy 500 --seed 7

Both run on the same float32 weights, ours in float64. The first ids that differ are printed, and end in status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

import t5g2ref
from conformance.cases.case import Case
from conformance.checkpoints import resolve
from conformance.peers.torch.transformers import TransformersPeer
from conformance.target import Target
from t5g2ref import params
from t5g2ref.generate.beam import beam_search
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.hypotheses import Search
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics
from t5g2ref.processor.prepare import Processor

NEW = 16  # tokens of an answer
WORDS = ["one", "two", "three", "seven", "eleven", "twenty-two", "fifty-nine", "eighty-four", "ninety"]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SEARCHES = (
    Search(2),
    Search(3, early_stopping=True),
    Search(4, 2.0, "never"),
    Search(3, -1.0),
    Search(5, 0.0, "never"),
)
Source = dict[str, Any]


def of_ids(model: T5Gemma2, rng: np.random.Generator) -> Iterator[Source]:
    """Ragged random ids past every window; every fourth source has pictures."""
    c, turn = model.config, 0
    block = [c.boi_token_index, *[c.image_token_index] * c.mm_tokens_per_image, c.eoi_token_index]
    while True:
        turn += 1
        side, pictured = c.vision.image_size, turn % 4 == 0
        rows = [
            [*rng.integers(40, 290, rng.integers(1, 24)), *(block if pictured else ()), *rng.integers(40, 290, 3)]
            for _ in range(3)
        ]
        longest = max(map(len, rows))
        mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        ids = np.array([[c.decoder.pad_token_id] * (longest - len(row)) + row for row in rows])
        pixels = {"pixel_values": rng.uniform(-1, 1, (3, 3, side, side)).astype(np.float32)} if pictured else {}
        yield {"input_ids": ids, "attention_mask": mask, **pixels}


def of_words(model: T5Gemma2, rng: np.random.Generator) -> Iterator[Source]:
    """What the trained checkpoint was trained for: prompts in words, and pictures to name and to add."""
    folder = t5g2ref.bundled("demo")
    processor, turn = Processor.from_folder(folder, model.config), 0
    while True:
        turn += 1
        texts, pictures = [], []
        for _ in range(3):
            count = int(rng.integers(1, 3)) if turn % 2 == 0 else 0
            shown = [folder / "pictures" / f"{name}.png" for name in rng.choice(DIGITS, count)]
            a, b = rng.choice(WORDS, 2)
            date = f"{rng.integers(1900, 2099)}-0{rng.integers(1, 9)}-17"
            plain = (f"add {a} and {b}", f"english to french: {a}", f"say {date}")
            asked = ("name" if count == 1 else "add") + " <start_of_image>" * count
            texts.append(asked if count else plain[rng.integers(3)])
            pictures.append(shown)
        given = processor(texts, pictures)
        pixels = {} if given.pixels is None else {"pixel_values": given.pixels}
        yield {"input_ids": given.ids, "attention_mask": given.mask, **pixels}


class Both:
    """A checkpoint in t5g2ref and in transformers."""

    def __init__(self, name: str) -> None:
        self.target: Target = resolve(name, synthetic=False)[0]
        weights = params.tree(dict(self.target.rounded("float32").items()))
        self.ours = T5Gemma2(self.target.config, weights, Numerics(embed_dtype="float32"))
        self.peer = TransformersPeer("sdpa")
        self.peer.open(self.target)
        self.theirs = self.peer.model(Case("generate", "", ()))

    def ids(self, source: Source, **how: Any) -> Any:
        """transformers' ids, start included."""
        import torch
        from transformers import GenerationConfig

        c = self.target.config.decoder
        tokens = {"pad_token_id": c.pad_token_id, "bos_token_id": c.bos_token_id, "eos_token_id": list(c.eos_token_id)}
        settings = GenerationConfig(
            **tokens, decoder_start_token_id=c.bos_token_id, max_new_tokens=NEW, use_cache=True, do_sample=False, **how
        )
        inputs = {name: torch.tensor(value) for name, value in source.items()}
        with torch.no_grad():
            return self.theirs.generate(**inputs, generation_config=settings).numpy()

    def greedy(self, source: Source) -> tuple[Any, Any]:
        return greedy(self.ours, **source, max_new_tokens=NEW).ids, self.ids(source)

    def beams(self, source: Source, search: Search) -> tuple[Any, Any]:
        how = {"length_penalty": search.length_penalty, "early_stopping": search.early_stopping}
        theirs = self.ids(source, num_beams=search.beams, num_return_sequences=search.beams, **how)
        return beam_search(self.ours, **source, search=search, max_new_tokens=NEW).ids, theirs


def alike(ours: Any, theirs: Any, ends: tuple[int, ...]) -> bool:
    """Whether every row has the same ids up to its end. Behind it transformers' beams have the end's id again where the
    pad id is 0, as in the released checkpoints."""
    return [answer(row, ends) for row in ours.tolist()] == [answer(row, ends) for row in theirs.tolist()]


def answer(row: list[int], ends: tuple[int, ...]) -> list[int]:
    """A row's ids, the one that ends it included."""
    return row[: next((at for at, token in enumerate(row, 1) if token in ends), len(row))]


def compared(name: str, greedy_calls: int, beam_calls: int, seed: int) -> Iterator[tuple[str, bool, Any, Any]]:
    """(which call, whether its ids are equal, ours, theirs) of a checkpoint."""
    both, rng = Both(name), np.random.default_rng([seed, *name.encode()])
    sources, ends = (of_words if name == "demo" else of_ids)(both.ours, rng), both.target.config.decoder.eos_token_id
    for number, source in enumerate(islice(sources, greedy_calls)):
        ids = both.greedy(source)
        yield f"{name} greedy {number}", alike(*ids, ends), *ids
    for number, source in enumerate(islice(sources, beam_calls)):
        ids = both.beams(source, SEARCHES[number % len(SEARCHES)])
        yield f"{name} beams {number}", alike(*ids, ends), *ids


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--greedy", type=int, default=60, help="calls of three rows on each checkpoint (default: 60)")
    parser.add_argument("--beams", type=int, default=20, help="calls of three sources each (default: 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if min(options.greedy, options.beams) < 0 or options.greedy + options.beams == 0:
        parser.error(
            f"--greedy {options.greedy} --beams {options.beams}: nothing would be compared; give a call or more"
        )
    found: dict[str, list[int]] = {}
    for name in ("tiny", "demo"):
        for call, equal, ours, theirs in compared(name, options.greedy, options.beams, options.seed):
            counts = found.setdefault(call.rpartition(" ")[0], [0, 0])
            counts[not equal] += 1
            if not equal:
                print(f"{call} differs\n  ours   {ours.tolist()}\n  theirs {theirs.tolist()}", file=sys.stderr)
    said = {what: {"equal": equal, "unequal": unequal} for what, (equal, unequal) in found.items()}
    lines = [f"{what:14} {equal:4} equal {unequal:4} unequal" for what, (equal, unequal) in found.items()]
    print(json.dumps(said) if options.json else "\n".join(lines))
    return int(any(unequal for _, unequal in found.values()))


if __name__ == "__main__":
    sys.exit(main())
