"""What `tiny` cannot show and `tiny-even` does: copies kept in bfloat16, and poolings that are the mean of four."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dumping import case_of, tiny
from helpers import normal

from conformance.defects.all import find
from conformance.defects.uncatalogued.pictures import bilinear, strided
from conformance.judge.exact.lane import examine_exact
from conformance.judge.judge import judge
from conformance.peers.reference import ReferencePeer
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import NUMPY
from t5g2ref.dtypes import to_grid

EVEN = str(bundled("tiny-even"))
MATRIX, TABLE = "decoder.layers.2.mlp.up_proj.weight", "encoder.text_model.embed_tokens.weight"


def moved(target: Target) -> set[str]:
    """The tensors that a copy in bfloat16 would change."""
    return {name for name, w in target.weights.items() if (to_grid(w, "bfloat16") != w).any()}


def test_every_tensor_of_one_checkpoint_is_off_the_grid() -> None:
    even = tiny(EVEN)
    assert moved(even) == set(even.weights)
    assert not moved(tiny())
    assert all((to_grid(w, "bfloat16") != w).all() for w in case_of(even, "token").head(48).values())


class Kept(ReferencePeer):
    """Holds one tensor in bfloat16."""

    def __init__(self, kept: str) -> None:
        super().__init__(NUMPY, "float32")
        self._kept = kept

    def open(self, target: Target) -> None:
        super().open(target)
        self._weights = {n: to_grid(w, "bfloat16") if n == self._kept else w for n, w in self._weights.items()}


@pytest.mark.parametrize("kept", [MATRIX, TABLE])
def test_a_copy_in_bfloat16_is_found_by_its_bits(kept: str) -> None:
    found = {}
    for target in (tiny(EVEN), tiny()):
        peer = Kept(kept)
        peer.open(target)
        found[target.name] = [f.tap for f in examine_exact(peer, target, "float32") if not f.passed]
    even, grid = found.values()
    assert even[0] == f"weights.{kept}"
    assert grid == [], "on the grid there is nothing to see"


@pytest.mark.parametrize("key", ["X56", "X57", "X70", "X71", "X73"])
def test_the_fp32_lane_finds_it_on_one_checkpoint_alone(key: str) -> None:
    (fault,) = find([key])
    found: dict[str, Any] = {}
    for target in (tiny(EVEN), tiny()):
        target = replace(target, name="even" if target.folder == bundled("tiny-even") else "tiny")
        peer = FaultyPeer(fault.inject)
        peer.open(target)
        found[target.name] = judge(peer, target, case_of(target, fault.case), repeat=False).culprit
    assert found["even"] is not None
    assert found["even"].tap == fault.tap
    assert found["tiny"] is None or key == "X73"  # a classifier's head is off the grid on both


@pytest.mark.parametrize("pool", [bilinear, strided])
def test_of_two_by_two_they_are_the_mean(pool: Any) -> None:
    grid = normal("grid", 2, 8, 8, 5)
    mean = grid.reshape(2, 4, 2, 4, 2, 5).mean(axis=(2, 4))
    assert np.allclose(pool(np, grid, 4), mean, atol=1e-15)
    assert not np.allclose(pool(np, grid, 2), grid.reshape(2, 2, 4, 2, 4, 5).mean(axis=(2, 4)), atol=0.1)
