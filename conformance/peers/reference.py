"""The reference itself as a peer, on an array library and in a type of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from conformance.activations import Dump
from conformance.arrays import release, to_backend
from conformance.cases.case import Case
from conformance.cases.plan import plan_of
from conformance.cases.prompt import Answer, Prompt
from conformance.errors import PeerUnavailable
from conformance.oracle.run_case import TraceOfCall, program
from conformance.peers.picked_trace import PickedTrace
from conformance.peers.protocol import OptionalMembers
from conformance.target import Target
from t5g2ref.backend import Backend, BackendError, find
from t5g2ref.dtypes import HALF, DType
from t5g2ref.generate.beam import beam_search
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.hypotheses import Search
from t5g2ref.generate.options import Options
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import FAST, SDPA, Numerics
from t5g2ref.on_demand import extended, mapped
from t5g2ref.params import tree
from t5g2ref.trace import Trace


class ReferencePeer(OptionalMembers):
    """`t5g2ref` with the rounding points of a fused attention. It shows every tap.

    Args:
        backend: where it computes. `cupy-fast` has kernels with rounding points of their own.
        dtype: the type that it runs in; NumPy emulates the half types.
    """

    picks = True

    def __init__(self, backend: Backend, dtype: DType) -> None:
        library, fast, device = backend.name.partition("-fast")
        self.name = f"t5g2ref:{library}{device}:{dtype}:fast" if fast else f"t5g2ref:{library}:{dtype}"
        self.dtype: DType = dtype
        self._nx = Numerics(dtype, FAST if fast else SDPA, backend)
        self._target: Target | None = None
        self._weights: Mapping[str, Any] = {}

    def versions(self) -> dict[str, str]:
        return self._nx.backend.describe()

    def open(self, target: Target) -> None:
        """Take the judge's weights, rounded to the type, as arrays of this backend."""
        backend = self._nx.backend
        with backend.scope():
            self._weights = mapped(target.rounded(self.dtype), lambda _, w: self._nx.array(to_backend(w, backend)))
        self._target = target

    def weights(self) -> Iterator[tuple[str, Any]]:
        """The weights that are computed with, in the peer's type."""
        exact = HALF[self.dtype] if self._nx.emulated else None
        for name, value in self._weights.items():
            yield name, value if exact is None else value.astype(exact)

    def close(self) -> None:
        self._weights, self._target = {}, None

    def give_back(self) -> None:
        release(self._nx.backend)

    def run(self, case: Case, dump: Dump) -> None:
        assert self._target is not None, "open() comes first"
        with self._nx.scope():
            head = {n: self._nx.array(value) for n, value in case.head(self._target.config.decoder.hidden_size).items()}
        config = replace(self._target.config, num_labels=case.num_labels)
        model = T5Gemma2(config, tree(extended(self._weights, head)), self._nx)
        program(case)(model, self._traces(case, dump))

    def _traces(self, case: Case, dump: Dump) -> TraceOfCall:
        """What puts each call's values into `dump`: of a long run those of the picked tokens."""
        assert self._target is not None
        plan = plan_of(self._target.config, case) if case.picks else []

        def put(name: str, value: Any) -> Any:
            return self._shown(dump, name, value)

        def trace_of(call: int) -> Trace:
            while dump.calls <= call:
                dump.new_call()
            run, _ = case.calls[call]
            if run.picked is None:
                return Trace(put)
            return PickedTrace(run, {tap.name: tap for n, tap in plan if n == call}, put, self._nx.join)

        return trace_of

    def generate(self, prompt: Prompt) -> Answer:
        """What `t5g2ref.generate` makes of it: greedy, or a beam search whose scores are means."""
        assert self._target is not None, "open() comes first"
        model = T5Gemma2(self._target.config, tree(self._weights), self._nx)
        options: Options = {
            "attention_mask": prompt.attention_mask,
            "pixel_values": prompt.pixel_values,
            "decoder_input_ids": prompt.start,
            "max_new_tokens": prompt.new,
            "stop": prompt.stop,
        }
        if prompt.beams == 1:
            found = greedy(model, prompt.input_ids, **options)
            return Answer(found.ids, found.logits)
        best = beam_search(model, prompt.input_ids, Search(prompt.beams), **options)
        return Answer(best.ids, best.logits, scores=best.scores)

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        """Put the value into `dump`, in the peer's type, and return it as it was.

        Only an emulated type needs a conversion, which is exact. A mask stays bool, and a loss stays wide.
        """
        exact = self._nx.emulated and name != "loss" and value.dtype != bool
        dump.put(name, value.astype(HALF[self.dtype]) if exact else value)
        return value


def create(name: str, dtype: DType, fast: str | None, backend: Backend) -> ReferencePeer:
    """The peer, on the judge's own backend if `name` is its name. Raises PeerUnavailable for a missing backend.

    Args:
        fast: ":fast" for the kernels of the backend `cupy-fast`.
    """
    wanted = name.replace("cupy", "cupy-fast", 1) if fast else name
    try:
        return ReferencePeer(backend if backend.name == wanted else find(wanted), dtype)
    except BackendError as error:
        raise PeerUnavailable(f"peer t5g2ref:{name}:{dtype}{fast or ''}: {error}") from error
