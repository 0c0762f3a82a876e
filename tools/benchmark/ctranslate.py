"""CTranslate2 as a side of the benchmark: in float32 on the CPU, on the weights as the conformance suite converts them.

encode   its `Encoder`, on a specification made of the same encoder
forward  `score_batch`: all positions at once, and log-probabilities of the given ids where the others give logits
decode   `translate_batch`, which encodes and starts anew in each call: it is timed between its calls back, from the
         last cached position on, so that what is measured is the steps
vision   it has no pictures
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmark.ours import Inputs
from benchmark.timing import Cannot, Clocked, Work
from conformance.peers.engines import ctranslate2 as engine
from conformance.peers.engines import wire
from conformance.target import Target
from t5g2ref.params import EYES

Array = Any
NAME = "ctranslate2"


def missing() -> str:
    """Why it cannot be a side here; "" where it can."""
    return "" if find_spec("ctranslate2") else 'not installed: pip install "t5g2ref[ctranslate2]"'


class CTranslate2:
    """Raises `wire.Refused` for a checkpoint whose settings it does not have."""

    name = NAME

    def __init__(self, target: Target, threads: int) -> None:
        import ctranslate2

        with TemporaryDirectory(prefix="t5g2ref-bench-") as folder:
            folders = _saved(target, Path(folder))
            given = {"device": "cpu", "compute_type": "float32", "inter_threads": 1, "intra_threads": threads}
            self._translator = ctranslate2.Translator(str(folders[0]), **given)
            self._encoder = ctranslate2.Encoder(str(folders[1]), **given)
            self.weight_bytes = (folders[0] / "model.bin").stat().st_size
        self._inputs: Any = None

    def close(self) -> None:
        """Its memory goes at once: threads of its own may outlive the last name for it."""
        self._translator.unload_model()
        self._encoder.unload_model()

    def given(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def work(self, item: str) -> Work:
        if item == "encode":
            sources = engine.rows(self._inputs.source, None)
            return Work(lambda _: self._encoder.forward_batch(sources), _hidden)
        if item == "forward":
            return self._forward()
        if item == "decode":
            return self._decode()
        raise Cannot("it takes text alone")

    def _forward(self) -> Work:
        sources, targets = (engine.rows(ids, None) for ids in (self._inputs.source, self._inputs.target))
        target = self._inputs.target

        def scored(results: list[Any]) -> np.ndarray[Any, Any]:
            found = [list(result.log_probs)[: target.shape[1] - 1] for result in results]  # without the end's
            return np.array(found, np.float64)

        return Work(
            lambda _: self._translator.score_batch(sources, targets, max_input_length=0),
            scored,
            alike=lambda logits: log_probs(logits, target),
            note="`score_batch`, which gives log-probabilities of the given ids in place of all logits",
        )

    def _decode(self) -> Work:
        inputs = self._inputs
        (batch, warm), steps = inputs.warm.shape, inputs.steps.shape[1]
        sources, forced = engine.rows(inputs.source, None), np.concatenate([inputs.warm, inputs.steps], axis=1)
        begun, whole = engine.rows(forced[:, : warm + 1], None), engine.rows(forced, None)
        usual = {"beam_size": 1, "max_input_length": 0, "max_decoding_length": warm + steps}

        def run(_: Any) -> Clocked:
            clock = _Steps(warm - 1, warm + steps - 1, batch)
            least = {"min_decoding_length": warm + steps}  # no end before
            self._translator.translate_batch(sources, target_prefix=begun, callback=clock, **usual, **least)
            return clock.read()

        def check(_: Any) -> list[Any]:
            return self._translator.translate_batch(
                sources, target_prefix=whole, min_decoding_length=0, return_logits_vocab=True, **usual
            )

        note = "`translate_batch`, timed between its calls back: it cannot begin behind a cache"
        return Work(run, _last, check=check, note=note)


class _Steps:
    """Called back with each row's new id; reads the clocks where the last row of the steps `first` and `last` is done,
    counted from 0."""

    def __init__(self, first: int, last: int, batch: int) -> None:
        self._ends, self._batch = (first, last), batch
        self._calls: dict[int, int] = {}
        self._read: list[tuple[float, float]] = []

    def __call__(self, found: Any) -> bool:
        step = int(found.step)
        self._calls[step] = self._calls.get(step, 0) + 1
        if step in self._ends and self._calls[step] == self._batch:
            self._read.append((time.perf_counter(), time.process_time()))
        return False

    def read(self) -> Clocked:
        if len(self._read) != 2:
            raise RuntimeError(f"ctranslate2 ended after steps {sorted(self._calls)}, expected {self._ends[1] + 1}")
        (began, spent), (ended, used) = self._read
        return Clocked(ended - began, used - spent)


def _saved(target: Target, folder: Path) -> tuple[Path, Path]:
    """The folders of the whole model and of its encoder alone, written by CTranslate2's own converter."""
    from ctranslate2.specs import transformer_spec

    config = engine.settings(target.config.to_dict())
    whole, encoder = folder / "whole", folder / "encoder"
    text = {name: value for name, value in target.weights.items() if not name.startswith(EYES)}
    spec = engine.converted(config, text)
    wire.refuse("ctranslate2", list(engine.compared(config, spec)))
    _save(spec, whole)
    epsilon = spec.config.layer_norm_epsilon
    part = transformer_spec.TransformerEncoderModelSpec(engine.converted(config, text).encoder)
    part.register_vocabulary([str(token) for token in range(config.encoder.text_config.vocab_size)])
    part.config.layer_norm_epsilon, part.config.unk_token = epsilon, "0"
    _save(part, encoder)
    return whole, encoder


def _save(spec: Any, folder: Path) -> None:
    spec.validate()
    spec.optimize()
    folder.mkdir()
    spec.save(str(folder))


def log_probs(logits: Array, target: Array) -> Array:
    """log p of each id after the first: (B, T, V) logits, (B, T) ids → (B, T − 1)."""
    rows = []
    for row, ids in zip(logits, target, strict=True):  # one by one: logits are large
        kept = row[:-1] - row[:-1].max(axis=-1, keepdims=True)
        rows.append(kept[np.arange(len(kept)), ids[1:]] - np.log(np.exp(kept).sum(axis=-1)))
    return np.stack(rows)


def _hidden(output: Any) -> np.ndarray[Any, Any]:
    return np.asarray(output.last_hidden_state).astype(np.float64)


def _last(results: list[Any]) -> np.ndarray[Any, Any]:
    """The last logits of each row, (B, 1, V)."""
    return np.stack([np.asarray(result.logits[0][-1], np.float64)[None] for result in results])
