"""onnxruntime as a peer: graphs that torch exports of transformers' model, run on the CPU in float32."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

from conformance.activations import Dump
from conformance.cases.case import Case, Run
from conformance.cases.least import ENCODED, LOGITS
from conformance.errors import PeerUnavailable
from conformance.peers.protocol import OptionalMembers, Skip
from conformance.peers.torch.onnx_graphs import exported
from conformance.peers.torch.transformers import TransformersPeer
from conformance.target import Target
from t5g2ref.backend import Backend

Array = np.ndarray[Any, Any]


class OnnxPeer(OptionalMembers):
    """ONNX graphs of transformers' eager attention. It shows the encoder's output and the logits.

    A part that cannot be exported is skipped by name, case by case.
    """

    name, dtype = "onnxruntime", "float32"
    taps = (LOGITS, ENCODED)
    lacks = ("labels", "classes")

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._failed: dict[str, str] = {}
        self._sessions: dict[str, Any] = {}

    def versions(self) -> dict[str, str]:
        found = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
        return found | {"transformers": transformers.__version__, "exported by": "torch.onnx, dynamo"}

    def open(self, target: Target) -> None:
        """Export the graphs into a temporary folder: half a minute for a tiny checkpoint."""
        self.close()
        if not target.config.has_decoder:
            raise PeerUnavailable(
                "peer onnxruntime: an encoder alone is not exported; give a checkpoint with a decoder"
            )
        if target.streamed:
            raise PeerUnavailable("peer onnxruntime: a graph holds all weights: give --no-stream")
        source = TransformersPeer("eager")
        source.open(target)
        self._folder = tempfile.TemporaryDirectory(prefix="conformance-onnx-")
        self._failed = exported(source.model(Case("export", "", ())), target.config, Path(self._folder.name))
        source.close()
        self.notes = [f"onnxruntime: {name} could not be exported: {why}" for name, why in self._failed.items()]

    def close(self) -> None:
        self._sessions = {}
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = None

    def run(self, case: Case, dump: Dump) -> None:
        for run in case.runs:
            hidden, mask = self._encoded(run)
            held: list[Array] = []
            for number, (first, last) in enumerate(run.bounds):
                dump.new_call()
                if number == 0:
                    dump.put(ENCODED, hidden)
                if case.task != "encoder":
                    logits, held = self._decoded(run, first, last, hidden, mask, held)
                    dump.put(LOGITS, logits if run.logits_to_keep is None else logits[:, -run.logits_to_keep :])

    def _encoded(self, run: Run) -> tuple[Array, Array]:
        """The encoder's output, and its mask."""
        shape = run.input_ids.shape
        mask = np.ones(shape, np.int64) if run.attention_mask is None else run.attention_mask.astype(np.int64)
        positions = np.arange(shape[1]) if run.position_ids is None else run.position_ids
        given = [run.input_ids, mask, np.broadcast_to(positions, shape)]
        if run.pixel_values is None:
            return self._outputs("encoder", given)[0], mask
        return self._outputs("seeing", [*given, run.pixel_values])[0], mask

    def _decoded(
        self, run: Run, first: int, last: int, hidden: Array, mask: Array, held: list[Array]
    ) -> tuple[Array, list[Array]]:
        """Logits of the decoder positions from first to last − 1, and what is held after them: own keys, own values,
        cross keys, cross values, each by layer."""
        ids = run.decoder_input_ids[:, first:last]
        own = np.ones((len(ids), last), np.int64)
        if run.decoder_attention_mask is not None:
            own = run.decoder_attention_mask[:, :last].astype(np.int64)
        positions = np.arange(first, last)
        if run.decoder_position_ids is not None:
            positions = run.decoder_position_ids[:, first:last]
        given = [ids, own, np.broadcast_to(positions, ids.shape), hidden, mask, *held]
        logits, *kept = self._outputs("next" if held else "first", given)
        return logits, [*kept, *held[len(held) // 2 :]]

    def _outputs(self, graph: str, given: list[Array]) -> list[Array]:
        """What a graph gives. Raises Skip where it could not be exported."""
        assert self._folder is not None, "open() comes first"
        if graph in self._failed:
            raise Skip(f"the graph {graph!r} could not be exported: {self._failed[graph]}")
        if graph not in self._sessions:
            path = str(Path(self._folder.name) / f"{graph}.onnx")
            self._sessions[graph] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        session = self._sessions[graph]
        names = [node.name for node in session.get_inputs()]
        found: list[Array] = session.run(None, dict(zip(names, map(np.ascontiguousarray, given), strict=True)))
        return found


def create(_: Backend) -> OnnxPeer:
    """The peer; the judge may be on any backend."""
    return OnnxPeer()
