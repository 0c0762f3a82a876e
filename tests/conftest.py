"""Shared fixtures: one small geometry in which every branch bites, seeded weights, and a model in any precision."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from geometry import seeded_weights, small_config
from helpers import Array
from hypothesis import settings

from t5g2ref import params
from t5g2ref.config import Config
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub

# Whoever starts the tests in the background has these ignored, and every program that a test starts inherits that.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# The same examples in every run: a failure elsewhere is a failure here. No deadline: the cores are shared.
settings.register_profile("t5g2ref", derandomize=True, deadline=None, database=None)
settings.load_profile("t5g2ref")

# A peer's next release may warn of anything: that is shown at the end and fails no test. Our own warnings do.
LENIENT = pytest.mark.filterwarnings("default", "error:::(t5g2ref|conformance)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is none (`-ra` prints the reason); mark what needs a peer."""
    reason = _no_gpu()
    for item in items:
        if reason and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))
        if "peer_installed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.peer)
        if item.get_closest_marker("peer"):
            item.add_marker(LENIENT)


@pytest.fixture(scope="session")
def peer_installed() -> None:
    """torch and transformers, or the test is skipped; what asks for this is marked `peer`."""
    pytest.importorskip("torch", reason="needs torch: transformers is the comparison")
    pytest.importorskip("transformers", reason="needs transformers: it is the comparison")


def _no_gpu() -> str:
    if importlib.util.find_spec("cupy") is None:
        return "needs CuPy, which is not installed"
    import cupy

    try:
        return "" if cupy.cuda.runtime.getDeviceCount() else "needs a CUDA device, CuPy sees none"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"needs a CUDA device: {error}"


@pytest.fixture(autouse=True)
def _arithmetic_warns() -> Iterator[None]:
    """0 / 0, overflow and NaN made anew warn, and pyproject.toml makes a warning an error; underflow to 0 is meant."""
    with np.errstate(divide="warn", over="warn", invalid="warn", under="ignore"):
        yield


@pytest.fixture(scope="session")
def config() -> Config:
    return small_config()


@pytest.fixture(scope="session")
def weights(config: Config) -> dict[str, Array]:
    """{canonical name: read-only array}."""
    return seeded_weights(config)


@pytest.fixture(scope="session")
def model(config: Config) -> Callable[..., T5Gemma2]:
    """A factory: `model()` is the float64 oracle, `model("float32")`, `model(numerics=…)`, `model(config=…)`."""

    def make(dtype: Any = "float64", *, config: Config = config, numerics: Numerics | None = None) -> T5Gemma2:
        return T5Gemma2(config, params.tree(seeded_weights(config)), numerics or Numerics(dtype))

    return make
