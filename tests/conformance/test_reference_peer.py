"""The reference as a peer: it conforms, a fault in it is found, and everyone runs with the same weights and inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import same_bits
from judging import Faulty, judged

from conformance.activations import Dump
from conformance.cases import catalogue as cases
from conformance.checkpoints import resolve
from conformance.oracle.run_case import models
from conformance.peers.find import create
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import NUMPY
from t5g2ref.dtypes import DType, to_grid

pytestmark = pytest.mark.slow  # minutes in all

TYPES = ("float32", "bfloat16", "float16")
SOME = ("short", "padded-left-cached", "images", "far-positions", "loss", "sequence-single")


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny-even", synthetic=False)[0]


# The reference as a peer


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_reference_conforms(dtype: str, name: str, target: Target) -> None:
    """It is one of the controls but for the BLAS's threads; a half type's arrays are shown in that type."""
    result = judged(create(f"t5g2ref:numpy:{dtype}"), target, name)
    assert result.peer == f"t5g2ref:numpy:{dtype}"
    assert result.passed, result.culprit
    assert max(finding.median for finding in result.local + result.cumulative) < 2.0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tap", ["encoder.text_model.layers.1.mlp.act_fn", "decoder.layers.2", "logits"])
def test_a_fault_in_it_is_found_at_its_tap(tap: str, dtype: DType, target: Target) -> None:
    result = judged(Faulty(NUMPY, dtype, tap, 1.5), target, "short")
    assert result.deviates
    assert result.culprit is not None
    assert result.culprit.tap == tap
    assert result.culprit.status in ("values", "ceiling")
    assert [f.tap for f in result.local if not f.passed] == [tap], "one fault lights one row"


def test_half_arrays_keep_their_values(target: Target) -> None:
    """Emulated on float32 arrays, they are shown as the type's own, which is exact; masks and losses are not."""
    (case,) = cases.select(cases.build(target.config), ["loss"])
    shown: dict[str, list[Any]] = {}
    for dtype in ("float32", "bfloat16"):
        peer = create(f"t5g2ref:numpy:{dtype}")
        peer.open(target)
        with Dump() as dump:
            peer.run(case, dump)
            shown[dtype] = [(name, dump.get(0, name)) for name in dump.names(0)]
    kinds = {name: str(value.dtype) for name, value in shown["bfloat16"]}
    assert kinds.pop("loss") == "float32"
    assert {kind for name, kind in kinds.items() if name.endswith(".mask")} == {"bool"}
    assert {kind for name, kind in kinds.items() if not name.endswith(".mask")} == {"bfloat16"}
    assert {str(value.dtype) for _, value in shown["float32"]} == {"float32", "bool"}


# The weights and inputs that everyone runs with


def test_rounded_weights(target: Target) -> None:
    assert target.rounded("float32") is target.weights
    half = target.rounded("bfloat16")
    assert list(half) == list(target.weights)
    assert not any(half[name] is value for name, value in target.weights.items()), "no tensor is on this grid"
    assert target.rounded("bfloat16") is half, "made once"
    grid = resolve(str(bundled("tiny")), synthetic=False)[0]
    assert all(grid.rounded("bfloat16")[name] is value for name, value in grid.weights.items()), "on this grid"


def test_weights_off_the_grid_are_rounded_for_truth_and_controls(target: Target) -> None:
    off = np.array([1 + 2**-10, -3.0, 0.5], np.float32)
    name = next(name for name, value in target.weights.items() if value.shape != off.shape)
    other = Target("x", target.config, {**target.weights, name: np.full_like(target.weights[name], off[0])})
    (case,) = cases.select(cases.build(target.config), ["token"])
    for dtype in ("bfloat16", "float16"):
        weights = other.rounded(dtype)
        same_bits(weights[name], to_grid(other.weights[name], dtype))
        assert (weights[name] is other.weights[name]) == (dtype == "float16")  # 1 + 2⁻¹⁰ is a float16
        head = models(other.config, weights, case, dtype)[0].weights.score.out_proj.weight
        same_bits(head, to_grid(case.head(target.config.decoder.hidden_size)["score.out_proj.weight"], dtype))


def test_pictures_are_given_in_the_type(target: Target) -> None:
    every = {case.name: case for case in cases.build(target.config)}
    for case in every.values():
        assert case.given("float32") is case
        pictures = any(run.pixel_values is not None for run in case.runs)
        assert (case.given("bfloat16") is case) == (not pictures)
    run = every["image"].runs[0]
    given = every["image"].given("bfloat16").runs[0].pixel_values
    assert given is not None
    assert run.pixel_values is not None
    same_bits(given, to_grid(run.pixel_values, "bfloat16"))
