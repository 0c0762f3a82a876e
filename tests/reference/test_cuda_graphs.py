"""Which calls `cupy-fast` records and replays, with a stand-in for a recording. What a graph computes is in
test_gpu_graphs.py."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import t5g2ref.backend.cuda
from t5g2ref.cache import Cache, KeyValue
from t5g2ref.trace import OFF, Trace

HERE = "t5g2ref.backend.cuda"


class Recorded:
    """Calls again, and counts."""

    def __init__(self, call: Any, inputs: Any) -> None:
        self.call, self.replays = call, 0

    def replay(self, inputs: Any) -> Any:
        self.replays += 1
        return self.call(inputs)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Any:
    cuda = SimpleNamespace(cublas=SimpleNamespace(), runtime=SimpleNamespace())
    cupy = SimpleNamespace(ndarray=np.ndarray, cuda=cuda)
    for name, module in (("cupy", cupy), ("cupy.cuda", cuda), (f"{HERE}.blas", SimpleNamespace())):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(t5g2ref.backend.cuda, "blas", sys.modules[f"{HERE}.blas"], raising=False)
    monkeypatch.setattr(t5g2ref.backend.cuda, "graphs", None, raising=False)
    monkeypatch.setitem(sys.modules, f"{HERE}.graphs", None)
    del sys.modules[f"{HERE}.graphs"]
    found = importlib.import_module(f"{HERE}.graphs")
    monkeypatch.setattr(found, "Recording", Recorded)
    monkeypatch.setattr(found, "recorded", Recorded)
    return found


@dataclass(eq=False)
class Weights:
    layers: Any = ()


POOL = SimpleNamespace(get_limit=lambda: 0)
NX: Any = SimpleNamespace(dtype="float32", profile="sdpa", backend=SimpleNamespace(pool=POOL, twins={}))
CALLS: list[str] = []


def definition(nx: Any, w: Any, config: Any, x: Any, *rest: Any) -> Any:
    CALLS.append("called")
    return x * 2


def encode(recorder: Any, w: Any, x: Any, *rest: Any, nx: Any = NX, config: Any = None) -> int:
    """How often the definition has run for it, a replay of the stand-in included; the result is right."""
    CALLS.clear()
    np.testing.assert_array_equal(recorder.encode(definition, nx, w, config, x, None, *rest), x * 2)
    return len(CALLS)


def test_the_second_call_of_a_shape_is_recorded(graphs: Any) -> None:
    recorder, w = graphs.Recorder(), Weights()
    for length in (3, 4):
        for _ in range(4):
            encode(recorder, w, np.arange(length * 2.0).reshape(1, length, 2))
    (kept,) = recorder._kept.values()
    assert [found.replays for found in kept.values()] == [3, 3]
    encode(recorder, Weights(), np.ones((1, 3, 2)))  # other weights have their own
    assert [found.replays for found in kept.values()] == [3, 3]


def test_no_more_are_kept_than_there_may_be(graphs: Any) -> None:
    recorder, w = graphs.Recorder(), Weights()
    for length in range(1, graphs.MOST + 3):
        for _ in range(3):
            encode(recorder, w, np.ones((1, length, 2)))
    (kept,) = recorder._kept.values()
    found = [key[-1][1][0][1] for key, one in kept.items() if isinstance(one, Recorded)]
    assert found == list(range(3, graphs.MOST + 3))  # lengths: the last of them


def test_another_window_and_another_twin_are_other_recordings(graphs: Any) -> None:
    recorder, w, x = graphs.Recorder(), Weights(), np.ones((1, 3, 2))
    pool = SimpleNamespace(pool=POOL, twins={"rms_norm": len})
    for nx, config in (
        (NX, "window 3"),
        (NX, "window 4"),
        (SimpleNamespace(**{**vars(NX), "backend": pool}), "window 3"),
    ):
        for _ in range(3):
            encode(recorder, w, x, nx=nx, config=config)
    (kept,) = recorder._kept.values()
    assert [found.replays for found in kept.values()] == [2, 2, 2]


def test_what_nobody_knows_is_not_recorded(graphs: Any) -> None:
    recorder, w = graphs.Recorder(), Weights()
    for _ in range(3):
        recorder.encode(definition, NX, w, None, np.ones((1, 3, 2)), object())
    assert not recorder._kept


def test_under_a_memory_limit_nothing_is_recorded(graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POOL, "get_limit", lambda: 1 << 30)
    recorder, w = graphs.Recorder(), Weights()
    assert [encode(recorder, w, np.ones((1, 3, 2))) for _ in range(3)] == [1, 1, 1]
    assert not recorder._kept


@pytest.mark.parametrize(
    "rest",
    [
        (None, Trace(lambda name, x: x)),
        (None, OFF, {"full_attention": np.ones(3)}),
    ],
)
def test_who_listens_or_masks_gets_the_definition(graphs: Any, rest: tuple[Any, ...]) -> None:
    recorder, w = graphs.Recorder(), Weights()
    assert [encode(recorder, w, np.ones((1, 3, 2)), *rest) for _ in range(3)] == [1, 1, 1]
    assert not recorder._kept


def test_long_calls_and_weights_on_demand_get_the_definition(graphs: Any) -> None:
    recorder = graphs.Recorder()
    for _ in range(3):
        encode(recorder, Weights(), np.ones((1, graphs.LONGEST + 1, 1)))
        encode(recorder, Weights(layers=[]), np.ones((1, 2, 1)))
    assert not recorder._kept


def test_one_position_is_left_to_its_kernel(graphs: Any) -> None:
    recorder, w = graphs.Recorder(), Weights()
    for _ in range(3):
        recorder.decode(definition, NX, w, None, np.ones((2, 1, 4)), None, None)
    assert not recorder._kept


def test_a_cache_is_part_of_what_is_recorded(graphs: Any) -> None:
    def cache(length: int, start: int) -> Cache:
        own = KeyValue(np.zeros((1, 1, length, 2)), np.zeros((1, 1, length, 2)), start)
        return Cache((own,), (own,), np.ones((1, length), bool), np.ones((1, length), bool))

    assert graphs.form(cache(3, 0)) == graphs.form(cache(3, 0))
    assert graphs.form(cache(3, 0)) != graphs.form(cache(3, 1))
    assert graphs.form(cache(3, 0)) != graphs.form(cache(4, 0))
    assert len(list(graphs.leaves(cache(3, 0)))) == 6
    changed = graphs.mapped(lambda x: x + 1, cache(3, 5))
    assert (changed.own[0].start, float(changed.own[0].keys.max())) == (5, 1.0)
