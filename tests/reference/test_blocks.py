"""Blocks: who gets them, that they are the definition's own results, and that nobody else's threads are in the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.cases.catalogue import build
from conformance.checkpoints import resolve
from t5g2ref import attention, blocks, ops
from t5g2ref.attention import Keys, attend
from t5g2ref.backend import NUMPY, crew
from t5g2ref.blocks import elementwise, rowwise
from t5g2ref.cache import KeyValue
from t5g2ref.masks import Band
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import EXACT, RUNNING, SDPA, Numerics
from t5g2ref.params import tree
from t5g2ref.trace import OFF, Trace, recorder

SINGLE = Numerics("float32", SDPA)
Array = np.ndarray[Any, Any]


class Blas:
    """Stands in for the library's two functions."""

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, list[int]()

    def put(self, count: int) -> None:
        self.count = count


@pytest.fixture
def blas(monkeypatch: pytest.MonkeyPatch) -> Blas:
    """A BLAS that has been given four threads, on a machine of four cores."""
    made = Blas(4)
    monkeypatch.setattr(crew, "_blas", lambda: (lambda: made.count, made.put))
    monkeypatch.setattr(crew, "cores", lambda: 4)
    return made


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few tokens and pieces of few numbers, so that small arrays have several."""
    for name, value in {"MOST": 8, "ALONE": 16, "LEAST": 4, "STEP": 2, "SMALL": 1, "CACHED": 7}.items():
        monkeypatch.setattr(blocks, name, value)


@pytest.fixture
def call() -> Iterator[None]:
    with crew.together():
        yield


# Jobs


def test_jobs_run_side_by_side_with_the_blas_at_one_thread(blas: Blas, call: None) -> None:
    meeting = threading.Barrier(4, timeout=20)  # four at once, or this breaks

    def job(i: int) -> tuple[int, int, int]:
        meeting.wait()
        return i, blas.count, crew.threads()

    assert crew.each([lambda i=i: job(i) for i in range(4)]) == [(i, 1, 1) for i in range(4)]
    assert (blas.count, crew.threads()) == (4, 4), "as before"


@pytest.mark.parametrize("given", [1, 2, 3])
def test_a_limited_blas_limits_the_threads(blas: Blas, call: None, given: int) -> None:
    blas.put(given)
    names = set(crew.each([lambda: threading.current_thread().name for _ in range(50)]))
    assert len(names) <= given
    assert given > 1 or names == {threading.current_thread().name}
    assert blas.count == given


def test_cores_limit_the_threads(blas: Blas, call: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "cores", lambda: 2)
    assert crew.threads() == 2


def test_an_unknown_blas_keeps_its_threads(call: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_blas", lambda: None)
    assert crew.threads() == 1
    assert crew.each([lambda: 1, lambda: 2]) == [1, 2]


def test_outside_a_call_of_the_model_there_are_none(blas: Blas) -> None:
    assert crew.threads() == 1
    with NUMPY.scope():
        with NUMPY.scope():
            assert NUMPY.threads == 4
        assert NUMPY.threads == 4, "the inner call's end is not the outer's"
    assert NUMPY.threads == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("t5g2ref")]


def test_an_error_stops_the_rest_and_leaves_all_as_it_was(blas: Blas) -> None:
    begun = []

    def job(i: int) -> None:
        begun.append(i)
        if i == 3:
            raise IndexError("the job's own")

    with pytest.raises(IndexError, match="the job's own"), crew.together():
        crew.each([lambda i=i: job(i) for i in range(10_000)])
    assert len(begun) < 10_000
    assert blas.count == 4
    assert not crew.ALONE.locked()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("t5g2ref")]


def test_two_crews_never_work_at_once(blas: Blas, call: None) -> None:
    """The second finds the first at work and does its jobs itself; the first one's thread count comes back."""

    def other() -> set[str]:
        with crew.together():
            return set(crew.each([lambda: threading.current_thread().name for _ in range(20)]))

    def job() -> None:
        found = set[str]()
        thread = threading.Thread(target=lambda: found.update(other()), name="second")
        thread.start()
        thread.join()
        assert found == {"second"}

    crew.each([job, job])
    assert blas.count == 4


def test_who_sets_the_blas_meanwhile_knows_better(blas: Blas, call: None) -> None:
    crew.each([lambda: blas.put(3), lambda: blas.put(3)])
    assert blas.count == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_waits_for_no_thread_of_its_parent(blas: Blas, call: None) -> None:
    crew.each([threading.Barrier(4, timeout=20).wait] * 4)
    time.sleep(0.1)  # now all of them wait for work
    child = os.fork()
    if not child:
        signal.alarm(10)
        with NUMPY.scope():
            os._exit(0 if crew.each([lambda: 2] * 4) == [2] * 4 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_jobs_see_the_caller_s_numpy_settings(blas: Blas, call: None) -> None:
    def job() -> str:
        return np.geterr()["over"]

    with np.errstate(over="raise"):
        assert set(crew.each([job] * 20)) == {"raise"}


def test_the_installed_blas_is_the_one_that_threadpoolctl_limits() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    found = [pool for pool in threadpoolctl.threadpool_info() if "openblas" in pool["internal_api"]]
    if not any("numpy" in pool["filepath"] for pool in found):
        pytest.skip("NumPy has another BLAS here")
    with threadpoolctl.threadpool_limits(1, user_api="blas"), crew.together():
        assert crew._blas() is not None
        assert crew.threads() == 1


# Tokens


@rowwise("x", "tables", axis=2)
def halves(nx: Numerics, factor: float, x: Array, tables: tuple[Array, Array], trace: Trace = OFF) -> Any:
    """(B, T, D) → two (B, 1, T, D)."""
    trace("x", x)
    return (x * factor + tables[0])[:, None], (x * tables[1])[:, None]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 4))
def test_blocks_are_the_definition_s_own_rows(batch: int, length: int, count: int) -> None:
    rng = np.random.default_rng(length)
    x, a, b = (rng.standard_normal((batch, length, 3), dtype=np.float32) for _ in range(3))
    made = Blas(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "_blas", lambda: (lambda: made.count, made.put))
        patch.setattr(crew, "cores", lambda: 4)
        for name, value in {"MOST": 8, "ALONE": 16, "LEAST": 4, "STEP": 2, "SMALL": 1}.items():
            patch.setattr(blocks, name, value)
        with crew.together():
            cuts = blocks.blocks(SINGLE, x)
            found = halves(SINGLE, 2.0, x, (a, b))
    same_bits(found[0], (x * np.float32(2) + a)[:, None])
    same_bits(found[1], (x * b)[:, None])
    assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(length)) * bool(cuts)
    assert max((cut.stop - cut.start for cut in cuts), default=0) <= (
        8 + 2 if count > 1 and length >= 4 * count else 18
    )


def shapes_seen(nx: Numerics, *given: Any) -> list[int]:
    """Tokens of each block that the definition was given."""
    seen = []

    @rowwise("x")
    def watched(nx: Numerics, x: Array, trace: Trace = OFF) -> Array:
        seen.append(x.shape[1])
        return trace("x", x)

    x = np.zeros((1, 64, 2), np.float32)
    with crew.together():
        assert watched(nx, x, *given).shape == x.shape
    return sorted(seen)


def test_float32_alone_goes_in_blocks(blas: Blas, small: None) -> None:
    assert shapes_seen(SINGLE) == [8] * 8
    for other in (Numerics("float64"), Numerics("bfloat16", SDPA), Numerics("float32", RUNNING)):
        assert shapes_seen(other) == [64]


def test_who_watches_is_shown_whole_arrays(blas: Blas, small: None) -> None:
    assert shapes_seen(SINGLE, recorder({})) == [64]


def test_too_few_tokens_for_all_threads_are_left_to_the_blas(
    blas: Blas, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LEAST", 17)  # and there are 64 for 4
    assert shapes_seen(SINGLE) == [16] * 4, "one after the other, for memory's sake"
    blas.put(3)
    assert max(shapes_seen(SINGLE)) <= 8


# Heads and numbers


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_pieces_have_the_bits_of_the_whole(dtype: Any, small: None) -> None:
    rng = np.random.default_rng(1)
    nx = Numerics(dtype, SDPA)
    gate, up = (nx.array(rng.standard_normal((2, 5, 9))) for _ in range(2))
    for operation, arrays in ((ops.gelu_tanh, (gate,)), (ops.gated_gelu, (gate, up))):
        definition = operation.__wrapped__.__wrapped__  # type: ignore[attr-defined]
        assert not hasattr(definition, "__wrapped__")
        same_bits(operation(nx, *arrays), definition(nx, *arrays))


def test_pieces_are_small_and_none_is_left_out(small: None) -> None:
    sizes = []

    @elementwise
    def doubled(nx: Numerics, x: Array, y: Array, factor: float) -> Array:
        sizes.append(x.size)
        return x * np.float32(factor) + y

    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    same_bits(doubled(SINGLE, x, x, 2.0), 3 * x)
    assert sizes == [7, 7, 7, 3]
    same_bits(doubled(SINGLE, x.swapaxes(0, 1), x.swapaxes(0, 1), 2.0), 3 * x.swapaxes(0, 1))
    assert sizes[4:] == [24], "what does not lie in one row is left whole"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("band", [Band(2, 1), Band()])
def test_one_head_at_a_time_has_the_bits_of_all(dtype: Any, band: Band, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    nx = Numerics(dtype, SDPA)
    q, k, v = (nx.array(rng.standard_normal((2, n, 7, 4))) for n in (6, 3, 3))
    groups = [Keys(KeyValue(k, v), rng.random((2, 7)) < 0.8, band), Keys(KeyValue(v, k))]
    expected = attend(nx, q, groups, scale=0.3)
    monkeypatch.setattr(attention, "MANY", 0)
    same_bits(attend(nx, q, groups, scale=0.3), expected)
    running = replace(nx, profile=RUNNING)
    assert np.isfinite(attend(running, q, groups, scale=0.3)).all()


# The model


@pytest.mark.parametrize("name", ["padded-left", "image", "window"])
def test_the_model_in_blocks_is_the_model(name: str, blas: Blas, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage in blocks on four threads: float32 within its rounding of the whole, float64 to the bit."""
    target = resolve("tiny", synthetic=False)[0]
    (run, *_) = next(case for case in build(target.config) if case.name == name).runs

    def logits(dtype: Any, threads: int) -> Array:
        blas.put(threads)
        nx = Numerics(dtype, SDPA if dtype == "float32" else EXACT)
        arrays = {name: nx.array(value) for name, value in target.weights.items()}
        model = T5Gemma2(target.config, tree(arrays), nx)
        masks = {"attention_mask": run.attention_mask, "decoder_attention_mask": run.decoder_attention_mask}
        found: Array = model(run.input_ids, run.decoder_input_ids, pixel_values=run.pixel_values, **masks).logits
        return found

    same_bits(logits("float64", 4), logits("float64", 1))
    blocked = logits("float32", 4)
    monkeypatch.setattr(blocks, "SMALL", 1 << 40)
    whole = logits("float32", 1)
    assert np.linalg.norm(blocked - whole) <= 1e-5 * np.linalg.norm(whole)
    assert np.isfinite(blocked).all()


@pytest.mark.parametrize(
    ("dtype", "count", "length", "expected"),
    [
        ("float32", 1, 640, 128),  # as the backend says
        ("float32", 4, 640, 128),
        ("float32", 4, 256, 64),  # one for each of four
        ("float32", 4, 100, 32),  # not less
        ("float32", 4, 63, 128),  # too few to share
        ("float64", 4, 256, 128),  # whose sums follow from the block
    ],
)
def test_queries_are_shared_out(blas: Blas, call: None, dtype: Any, count: int, length: int, expected: int) -> None:
    blas.put(count)
    assert Numerics(dtype, SDPA).block(length, 1) == expected
    assert Numerics(dtype, SDPA).block(length, NUMPY.block_scores) == 1, "memory comes first"
