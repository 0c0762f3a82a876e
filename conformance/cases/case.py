"""A case: one or more runs, each a source for the encoder and ids for the decoder. One peer object does all of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from conformance.cases.picked import Picked
from conformance.cases.picture import Picture
from conformance.cases.prompt import Prompt
from t5g2ref.dtypes import HALF, to_grid

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Run:
    """One source through encoder and decoder.

    Args:
        input_ids, attention_mask, position_ids: (B, S); pixel_values (I, C, side, side) float32.
        decoder_input_ids, decoder_attention_mask, decoder_position_ids: (B, T).
        labels: for a loss; (B, T), (B,) or (B, labels). In a language model's run the decoder ids are these shifted
            right, which is what a peer has to make of them.
        splits: lengths of the cached decoder calls, summing to T; None for one call without a cache.
        derived: the decoder ids are what the model makes itself, from labels or encoder ids, and are not handed over.
        logits_to_keep: only the last so many positions of a call get logits; None for all. A vocabulary of 262144
            times 500 positions is 1 GB in float64, and says no more than 16 positions do.
        picked: of a run that is too long to judge at every token, those that are shown and judged; None for all. Such a
            run has one row without padding, and one call.
        cut: lengths of the whole rows, where the ids are those of the picked tokens alone, as our own runs walk them;
            None where all ids are there.
    """

    input_ids: Array
    decoder_input_ids: Array
    attention_mask: Array | None = None
    position_ids: Array | None = None
    pixel_values: Array | None = None
    decoder_attention_mask: Array | None = None
    decoder_position_ids: Array | None = None
    labels: Array | None = None
    splits: tuple[int, ...] | None = None
    derived: bool = False
    logits_to_keep: int | None = None
    picked: Picked | None = None
    cut: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.picked is None or self.cut:
            return
        if self.attention_mask is not None or self.decoder_attention_mask is not None or self.splits is not None:
            raise ValueError("a run with picked tokens: expected no mask and one call, found masks or several calls")
        if len(self.input_ids) != 1:
            raise ValueError(f"a run with picked tokens: expected one row, found {len(self.input_ids)}")
        self.picked.check(self.input_ids.shape[1], self.decoder_input_ids.shape[1], self.logits_to_keep)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First and last + 1 decoder position of each call."""
        lengths = self.splits or (self.decoder_input_ids.shape[1],)
        ends = np.cumsum(lengths)
        return [(int(end - n), int(end)) for end, n in zip(ends, lengths, strict=True)]

    @property
    def encoder_valid(self) -> Array:
        mask = self.attention_mask
        return np.ones(self.input_ids.shape, bool) if mask is None else mask.astype(bool)

    @property
    def decoder_valid(self) -> Array:
        mask = self.decoder_attention_mask
        return np.ones(self.decoder_input_ids.shape, bool) if mask is None else mask.astype(bool)


@dataclass(frozen=True)
class Case:
    """Runs made one after the other on the same peer object.

    Args:
        task: "lm", "encoder", "sequence" or "token"; the classifiers get seeded `score` weights.
        exposes: ids of the defects that this case can show, given a geometry in which they matter.
        costly: it takes seconds even on a tiny checkpoint. It is judged on the first checkpoint alone, and a self-test
            runs it only for the faults that ask for it.
        types: the types that peers are judged in on it; all where there is none.
        prompts: what the peer's own `generate` is asked for. The runs then follow from its answers.
        pictures: files that the peer's own processor is asked for; there are no runs then.
    """

    name: str
    title: str
    runs: tuple[Run, ...]
    task: str = "lm"
    num_labels: int = 3
    exposes: tuple[str, ...] = ()
    costly: bool = False
    types: tuple[str, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def asks(self, dtype: str) -> bool:
        """Whether a peer in this type is judged on it."""
        return not self.types or dtype in self.types

    @property
    def picks(self) -> bool:
        """Whether it is judged at picked tokens alone."""
        return any(run.picked is not None for run in self.runs)

    def cut(self) -> Case:
        """The case as our own runs walk it: of a run with picked tokens these alone, at their positions."""

        def of(run: Run) -> Run:
            if run.picked is None or run.cut:
                return run
            source, answer = run.picked.source, run.picked.answer
            return replace(
                run,
                input_ids=run.input_ids[:, source],
                position_ids=source[None] if run.position_ids is None else run.position_ids[:, source],
                decoder_input_ids=run.decoder_input_ids[:, answer],
                decoder_position_ids=answer[None]
                if run.decoder_position_ids is None
                else run.decoder_position_ids[:, answer],
                cut=(run.input_ids.shape[1], run.decoder_input_ids.shape[1]),
            )

        return replace(self, runs=tuple(map(of, self.runs)))

    @cached_property
    def calls(self) -> list[tuple[Run, tuple[int, int]]]:
        """Every call of the case in order: its run, and its first and last + 1 decoder position."""
        return [(run, bounds) for run in self.runs for bounds in run.bounds]

    def head(self, width: int) -> dict[str, Array]:
        """Seeded `score.out_proj` weights (labels, width) for a classifier over a language model's checkpoint, off
        bfloat16's grid, so that a copy kept in it shows."""
        if self.task in ("lm", "encoder"):
            return {}
        rng = np.random.default_rng([20251212, self.num_labels])
        weight, bias = (
            rng.normal(0, width**-0.5, (self.num_labels, width)),
            rng.normal(0, 0.5, self.num_labels),
        )
        return {
            "score.out_proj.weight": weight.astype(np.float32),
            "score.out_proj.bias": bias.astype(np.float32),
        }

    def of_encoder(self) -> Case:
        """The case for an encoder alone: its sources, and no decoder ids."""

        def source(run: Run) -> Run:
            ids = run.input_ids
            return Run(ids, ids[:, :0], run.attention_mask, run.position_ids, run.pixel_values)

        return replace(self, runs=tuple(map(source, self.runs)), task="encoder")

    def copied(self) -> Case:
        """The case with arrays of its own, for a peer to do with as it likes: the truth is computed from ours."""

        def copied(run: Run) -> Run:
            given = {f.name: getattr(run, f.name) for f in fields(run)}
            own: dict[str, Any] = {name: v.copy() for name, v in given.items() if isinstance(v, np.ndarray)}
            return replace(run, **own)

        return replace(self, runs=tuple(copied(run) for run in self.runs))

    def given(self, dtype: str) -> Case:
        """The case as a model in `dtype` is given it: pictures are numbers of that type, so that what their rounding
        costs is nobody's error."""
        if dtype not in HALF or all(run.pixel_values is None for run in self.runs):
            return self
        runs = [
            run if (p := run.pixel_values) is None else replace(run, pixel_values=to_grid(p, dtype))
            for run in self.runs
        ]
        return replace(self, runs=tuple(runs))
