"""What a tap is computed from, against the model: another value of one tap changes those that read it, and no other.

Every tap goes on with what it had before, so that one operation lies between two of them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from geometry import one_layer_each, seeded_weights
from helpers import Array

from conformance.cases.case import Case
from conformance.cases.catalogue import build
from conformance.cases.plan import inputs, plan_of
from conformance.oracle.run_case import models, program
from t5g2ref.config import Config
from t5g2ref.tap_inputs import inputs_of
from t5g2ref.trace import Trace

Place = tuple[int, str]
CASES = ("padded-left-cached", "second-source", "image", "loss", "sequence-multi", "token")


def run(config: Config, case: Case, kept: dict[Place, Array], other: Place | None = None) -> dict[Place, Array]:
    """What the float64 model computes at every tap when it goes on with `kept`, and with another value at one place."""
    seen: dict[Place, Array] = {}

    def trace_of(call: int) -> Trace:
        def go_on(name: str, value: Any) -> Any:
            seen[call, name] = np.array(value)
            given = kept.get((call, name), value)
            return given + 0.37 * (1 + np.abs(given)) if (call, name) == other else given

        return Trace(go_on)

    weights = {name: w for name, w in seeded_weights(config).items() if not name.startswith("score.")}
    program(case)(models(config, weights, case, "float32")[0], trace_of)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_the_table_is_the_model(name: str) -> None:
    config = one_layer_each()
    (case,) = (case for case in build(config) if case.name == name)
    kept = run(config, case, {})
    said, found = inputs(config, case), defaultdict(set)
    for place, value in kept.items():
        if value.dtype == bool:
            continue  # a mask is never handed on
        for other, changed in run(config, case, kept, place).items():
            if not np.array_equal(changed, kept[other]):
                found[other].add(place)
    assert {place: set(read) for place, read in said.items()} == {place: found[place] for place in kept}
    assert sum(map(len, said.values())) > len(said) / 2


def test_every_tap_is_in_it() -> None:
    config = one_layer_each()
    for case in build(config):
        for _, tap in plan_of(config, case):
            assert isinstance(inputs_of(tap.name, config), list)
    with pytest.raises(KeyError):
        inputs_of("decoder.layers.0.mlp.gate", config)
    with pytest.raises(KeyError):
        inputs_of("nothing", config)
