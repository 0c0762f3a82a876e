"""transformers under `torch.compile`: one graph, of which nothing inside can be seen."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from conformance.activations import Dump
from conformance.cases.case import Case, Run
from conformance.cases.least import ENCODED, LOGITS
from conformance.errors import PeerUnavailable
from conformance.peers.torch.releases import cache_name
from conformance.peers.torch.tensors import to_array
from conformance.peers.torch.transformers import TransformersPeer
from conformance.target import Target
from t5g2ref.dtypes import DType

GRAPHS = 64  # of one model: each set of inputs that are given has its own


class CompiledPeer(TransformersPeer):
    """It shows what a forward returns. Lengths are dynamic, so that one graph serves all of them.

    A call that would run outside a graph raises: it would be judged as what it is not. A graph takes a minute to make,
    so choose cases.
    """

    taps = (LOGITS, ENCODED, "loss")
    picks = False  # keys and values cannot be seen

    def __init__(self, attention: str, dtype: DType = "float32", device: str = "cpu") -> None:
        super().__init__(attention, dtype, device)
        self.name = self.name.replace(attention, f"{attention}-compile", 1)
        self._compiled: dict[int, Any] = {}
        self.generate = None  # type: ignore[method-assign, assignment] # it compiles in its own way

    def open(self, target: Target) -> None:
        if target.streamed:
            raise PeerUnavailable(f"{self.name}: a graph holds all weights: give --no-stream, or a smaller checkpoint")
        super().open(target)

    def close(self) -> None:
        super().close()
        self._compiled = {}

    def _run(self, model: Any, case: Case, run: Run, dump: Dump) -> None:
        assert self._target is not None
        compiled = self._compiled.get(id(model))
        if compiled is None:
            compiled = self._compiled[id(model)] = torch.compile(model, dynamic=True, fullgraph=True)
        held = cache_name(type(model).forward)
        cache = encoded = None
        for first, last in run.bounds:
            inputs = self._inputs(case, run, first, last, {held: cache}, encoded)
            dump.new_call()
            config = importlib.import_module("torch._dynamo").config  # late: it takes a second to import
            with config.patch(recompile_limit=GRAPHS, fail_on_recompile_limit_hit=True):
                out = compiled(**inputs)
            seen = {ENCODED: out.get("encoder_last_hidden_state") if encoded is None else None}
            seen |= {ENCODED: out.last_hidden_state} if case.task == "encoder" else {}
            seen |= {name: out.get(name) for name in (LOGITS, "loss")}
            for name, value in seen.items():
                if value is not None:
                    dump.put(name, to_array(value.detach(), self._target.backend))
            if run.splits is not None:
                cache, encoded = getattr(out, held), encoded or (out.encoder_last_hidden_state,)
