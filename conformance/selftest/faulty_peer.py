"""A peer with a fault: our own model, wrong on purpose."""

from __future__ import annotations

import numpy as np

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.defects.injection import HEALTHY, Injection, Setting
from conformance.defects.rounding import half_of
from conformance.peers.reference import ReferencePeer
from t5g2ref.backend import NUMPY, Backend
from t5g2ref.dtypes import DType
from t5g2ref.numerics import SDPA, Numerics, Profile


class FaultyPeer(ReferencePeer):
    """The reference with one fault.

    Args:
        injection: the fault; none by default.
        profile: where it rounds and how it sums; another one makes another legal run.
        later: whether its first run is healthy.
    """

    def __init__(
        self,
        injection: Injection = HEALTHY,
        backend: Backend = NUMPY,
        dtype: DType = "float32",
        profile: Profile = SDPA,
        name: str = "",
        later: bool = False,
    ) -> None:
        super().__init__(backend, dtype)
        self.name = name or self.name
        self._nx = Numerics(dtype, profile, backend)
        self._injection, self._healthy_runs = injection, int(later)

    def run(self, case: Case, dump: Dump) -> None:
        assert self._target is not None, "open() comes first"
        config = self._target.config
        with self._nx.scope():
            head = {n: self._nx.array(value) for n, value in case.head(config.decoder.hidden_size).items()}

            setting = Setting(config, {**self._weights, **head}, case, self._nx, half_of(self.dtype))
            with np.errstate(all="ignore"):  # the judge has to find what a fault makes infinite
                injection = HEALTHY if self._healthy_runs else self._injection
                injection.run(setting, self._traces(case, dump))
        self._healthy_runs = 0
