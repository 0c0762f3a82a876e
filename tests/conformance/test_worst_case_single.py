"""The worst-case bounds of the float32 lane: legal orders of summation stay below them, one wrong element does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from dumping import case_of, tiny
from helpers import normal

from conformance.defects.injection import HEALTHY, Injection
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.oracle.worst_case import SINGLE, SMALLEST, ceiling
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.legal import LEGAL
from t5g2ref import bundled
from t5g2ref.attention import attention_weights
from t5g2ref.backend import NUMPY
from t5g2ref.config import Rope
from t5g2ref.numerics import RUNNING, SDPA, Numerics
from t5g2ref.ops import gelu_tanh, layer_norm, rms_norm, softcap
from t5g2ref.rope import rotate, tables
from t5g2ref.vision import average

TRUE, BOUNDS = Numerics("float64", embed_dtype="float32"), ceiling(NUMPY, "float32")
RUNS = [Numerics("float32", SDPA), Numerics("float32", RUNNING)]


def given(name: str, *shape: int, scale: float = 1.0) -> Any:
    return normal(name, *shape, scale=scale).astype(np.float32)


def massive(name: str, *shape: int) -> Any:
    """One channel is 2e4 times as large as the others."""
    x = given(name, *shape)
    x[..., 3] *= np.float32(2e4)
    return x


OPERATIONS: dict[str, Callable[[Numerics], Any]] = {
    "rms_norm": lambda nx: rms_norm(nx, massive("n", 40, 64), given("w", 64), 1e-6),
    "layer_norm": lambda nx: layer_norm(nx, given("l", 40, 64) + np.float32(80), given("w", 64), given("b", 64), 1e-6),
    "gelu": lambda nx: gelu_tanh(nx, given("g", 50, 64, scale=3)),
    "softcap": lambda nx: softcap(nx, given("c", 50, 64, scale=40), 30.0),
    "add": lambda nx: nx.add(massive("a", 50, 64), massive("b", 50, 64)),
    "mul": lambda nx: nx.mul(massive("a", 50, 64), given("b", 50, 64)),
    "linear": lambda nx: nx.linear(massive("x", 50, 96), given("v", 64, 96)),
    "linear with bias": lambda nx: nx.linear(given("x", 50, 2048), given("v", 64, 2048), given("b", 64)),
    "rotate": lambda nx: rotate(nx, given("r", 2, 3, 9, 16), given("cos", 2, 9, 16), given("sin", 2, 9, 16)),
    "average": lambda nx: average(nx, given("p", 2, 3, 4, 3, 4, 44)),
    "cos": lambda nx: tables(nx, Rope(31000.0, 2.5), 14, np.array([[0, 1, 5, 1000, 131071]]))[0],
}


def bounded(operation: Callable[[Numerics], Any], found: Any) -> Any:
    """|error| / bound, element by element."""
    error = np.abs(np.asarray(found, np.float64) - operation(TRUE))
    return error / (np.abs(operation(BOUNDS)) + SMALLEST["float32"])


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_legal_run_is_above_its_bound(name: str) -> None:
    for nx in RUNS:
        assert bounded(OPERATIONS[name], OPERATIONS[name](nx)).max() <= 1


@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("keys", [7, 300])
def test_attention(scale: float, cap: float | None, keys: int) -> None:
    q, k, v = (given(name, 1, 2, keys, 16, scale=scale) for name in "qkv")
    allowed = np.tril(np.ones((keys, keys), bool))[None, None, None]

    def attended(nx: Numerics, values: Any) -> Any:
        weights = attention_weights(nx, q, k, 0.25, cap, allowed, (1, 2, -1, keys, keys))
        return nx.matmul(weights.reshape(1, 2, keys, keys), values)

    bound = attended(BOUNDS, np.abs(v))
    for nx in RUNS:
        assert (np.abs(attended(nx, v) - attended(TRUE, v.astype(np.float64))) <= bound + SMALLEST["float32"]).all()


def test_one_weight_of_2048_with_a_flipped_bit_is_above_it() -> None:
    """Half of a typical weight: a hundred times what all the others may lose in their sum."""
    x, w = given("x", 5, 2048), given("v", 640, 2048)
    row, column = 7, int(np.abs(x[2] * w[7]).argmax())
    wrong = w.copy()
    wrong.view(np.uint32)[row, column] ^= 1 << 22  # the top bit of the mantissa
    excess = bounded(lambda nx: nx.linear(x, w), RUNS[0].linear(x, wrong))
    assert excess[2, row] > 1
    excess[:, row] = 0
    assert excess.max() <= 1


@pytest.mark.parametrize("name", ["add", "rms_norm"])
def test_a_massive_neighbour_excuses_nobody(name: str) -> None:
    wrong = OPERATIONS[name](RUNS[0]).copy()
    wrong[4, 5] *= np.float32(1 + 1e-3)
    whole = np.linalg.norm(OPERATIONS[name](TRUE)[4])
    assert abs(wrong[4, 5]) * 1e-3 < 8 * SINGLE * whole, "by the norm of its token it would pass"
    assert np.argwhere(bounded(OPERATIONS[name], wrong) > 1).tolist() == [[4, 5]]


def run(injection: Injection, case: str, taps: tuple[str, ...] | None = None, legal: str = "sdpa") -> Judgement:
    target = tiny(str(bundled("tiny-even")))
    peer = FaultyPeer(injection, target.backend, profile=LEGAL[legal][0])
    if taps is not None:
        peer.taps = taps
    peer.open(target)
    return judge(peer, target, case_of(target, case), repeat=False)


@pytest.mark.parametrize("legal", LEGAL)
@pytest.mark.parametrize("case", ["images", "padded-left-cached", "far-positions"])
def test_legal_runs_conform_through_the_whole_model(legal: str, case: str) -> None:
    result = run(LEGAL[legal][1], case, legal=legal)
    assert result.passed, result.culprit
    assert all(f.ceiling <= 1 for f in result.local if f.tap != "loss" and not f.tap.endswith("mask"))


def test_a_copy_may_change_no_bit() -> None:
    def change(call: int, name: str, value: Any) -> Any:
        if (call, name) == (1, "decoder.layers.3.self_attn.keys"):
            value = value.copy()
            value[0, 1, 2, 3] = np.nextafter(value[0, 1, 2, 3], np.float32(9))
        return value

    result = run(Injection(taps=lambda _: change), "eoi-cached")
    assert [(f.tap, f.call, f.status) for f in result.local if not f.passed] == [
        ("decoder.layers.3.self_attn.keys", 1, "ceiling")
    ]
    assert result.culprit is not None
    assert result.culprit.detail == (
        "token (0, 2), element (1, 3): it is a copy of what was shown before, of which no bit may change"
    )


def test_bounds_are_of_single_operations() -> None:
    """Where several lie between two taps that are shown, their bound is none of the textbook's."""
    few = run(HEALTHY, "short", ("*embed*", "*.layers.?", "*.norm", "logits"))
    bounded = [f.tap for f in few.local if f.ceiling == f.ceiling]
    stacks = ("encoder.text_model", "decoder")
    assert bounded == [f"{stack}.{tap}" for stack in stacks for tap in ("embed_tokens", "inputs_embeds", "norm")]
    assert all(f.ceiling <= 1 for f in few.local if f.ceiling == f.ceiling)
    assert len(few.local) > len(bounded)
