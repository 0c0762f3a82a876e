"""A peer in a half type that keeps its vision tower in float32 on purpose, and says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dumping import case_of, edit, write

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.checkpoints import resolve
from conformance.defects.all import FAULTS
from conformance.defects.injection import HEALTHY, Injection, Setting
from conformance.errors import PeerUnavailable
from conformance.judge.exact.lane import weight_findings
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.measure.limits import LIMITS
from conformance.peers.folder import create
from conformance.peers.guard import PeerError
from conformance.peers.protocol import wide
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.dtypes import HALF, DType, to_grid
from t5g2ref.numerics import SDPA, Numerics
from t5g2ref.trace import recorder

TOWER = "encoder.vision_tower.*"
FC1 = "encoder.vision_tower.encoder.layers.1.mlp.fc1"


class Towered(FaultyPeer):
    """A peer in a half type whose tower runs in float32, each in one of our own models.

    Args:
        injection: a fault in the tower.
        inside: the type that the tower really computes in.
        shown: the type that its values are shown in.
    """

    def __init__(
        self,
        injection: Injection = HEALTHY,
        dtype: DType = "bfloat16",
        inside: DType = "float32",
        shown: str = "float32",
        spoilt: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(HEALTHY, dtype=dtype)
        self.name, self.types = "towered", {TOWER: "float32"}
        self._tower, self._inside, self._as, self._spoilt = injection, inside, shown, spoilt or {}

    def run(self, case: Case, dump: Dump) -> None:
        assert self._target is not None
        seen: list[dict[str, Any]] = [{} for _ in case.calls]
        nx = Numerics(self._inside, SDPA, embed_dtype=self.dtype)
        weights = {n: nx.array(w) for n, w in self._target.weights.items()}
        self._tower.run(Setting(self._target.config, weights, case, nx, None), lambda call: recorder(seen[call]))
        self._seen = seen
        super().run(case, dump)

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        if not name.startswith(TOWER[:-1]):
            return super()._shown(dump, name, value)
        value = self._seen[dump.calls - 1][name].copy()
        value.reshape(-1)[7] *= 1 + self._spoilt.get(name, 0.0)
        dump.put(name, value.astype(HALF.get(self._as, self._as)))
        return to_grid(value, self.dtype)


@pytest.fixture(scope="module")
def target() -> Target:
    """Its weights are off the grid of every half type."""
    return resolve(str(bundled("tiny-even")), synthetic=False)[0]


def judged(peer: Towered, target: Target, case: str = "image") -> Judgement:
    peer.open(target)
    return judge(peer, target, case_of(target, case), repeat=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_tower_in_float32_conforms(dtype: DType, target: Target) -> None:
    found = judged(Towered(dtype=dtype), target)
    assert found.passed
    assert found.wider == {}
    single = [f for f in found.local if f.tap.startswith(TOWER[:-1])]
    assert len(single) > 40
    assert {f.limit for f in single} == {LIMITS["local"]}, "judged beside float32, not beside the half type"


def test_a_tower_that_only_looks_like_float32_is_found(target: Target) -> None:
    """Broken by computing in the half type and widening what comes out: undeclared, that is legal."""
    found = judged(Towered(inside="bfloat16"), target)
    assert found.culprit is not None
    assert found.culprit.tap == "encoder.vision_tower.embeddings.patch_embedding"
    assert found.culprit.worst > 1000


def test_what_is_declared_has_to_be_shown(target: Target) -> None:
    found = judged(Towered(shown="bfloat16"), target)
    assert found.culprit is not None
    assert (found.culprit.status, found.culprit.detail) == ("dtype", "expected float32, found bfloat16")


def test_one_element_in_float32_is_found(target: Target) -> None:
    """Far below what the half type rounds away, and above the worst case of float32."""
    found = judged(Towered(spoilt={FC1: 3e-3}), target)
    assert found.culprit is not None
    assert found.culprit.tap == FC1


def test_a_fault_in_the_tower_is_named(target: Target) -> None:
    fault = next(f for f in FAULTS if f.key == "D62 position")
    found = judged(Towered(fault.inject), target)
    assert found.culprit is not None
    assert found.culprit.tap == "encoder.vision_tower.embeddings"
    assert [s.defect for s in found.named if s.named] == ["D62"]


def test_a_fault_behind_the_tower_is_named(target: Target) -> None:
    """The projector is in the half type: our runs go on from the tower's values, rounded to it."""
    fault = next(f for f in FAULTS if f.tap.endswith("multi_modal_projector.avg_pool"))

    class Behind(Towered):
        def run(self, case: Case, dump: Dump) -> None:
            self._injection = fault.inject
            super().run(case, dump)

    found = judged(Behind(), target)
    assert found.culprit is not None
    assert found.culprit.tap == fault.tap


def test_weights_are_compared_in_the_type_of_their_module(target: Target) -> None:
    def weights(mine: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in mine.items():
            yield name, value if "vision_tower" in name else to_grid(value, "bfloat16").astype(HALF["bfloat16"])

    def in_single(name: str) -> bool:
        return name.startswith(TOWER[:-1])

    right = dict(target.weights)
    assert [f.status for f in weight_findings(weights(right), target, "bfloat16", in_single)] == ["pass"]
    name = "encoder.vision_tower.encoder.layers.0.mlp.fc1.weight"
    spoilt = right | {name: to_grid(right[name], "bfloat16")}
    (found,) = weight_findings(weights(spoilt), target, "bfloat16", in_single)
    assert (found.tap, found.status) == (f"weights.{name}", "exact")
    kinds = {f.status for f in weight_findings(weights(right), target, "bfloat16")}
    assert kinds == {"dtype"}, "who does not say so has them in its own type"


@pytest.mark.parametrize(
    ("types", "dtype", "sentence"),
    [
        ({TOWER: "float16"}, "bfloat16", f"its types have {TOWER}: float16, expected float32, the one that is wider"),
        ({TOWER: "float32"}, "float32", "it declares types and runs in float32; give the narrower type as dtype"),
        (["a"], "bfloat16", "its types are ['a'], expected names or patterns of taps, each with its type"),
        ({"*" * 2000: "float32"}, "bfloat16", "a pattern of its types has 2000 characters, expected at most 1024"),
    ],
)
def test_what_is_no_declaration_is_refused(types: Any, dtype: DType, sentence: str) -> None:
    peer = FaultyPeer(dtype=dtype)
    peer.types = types
    with pytest.raises(PeerError) as raised:
        wide(peer)
    assert str(raised.value).startswith(sentence)


def test_a_dump_declares_them(tmp_path: Path) -> None:
    widened = {f"{TOWER}": "float32"}
    peer = create(write(tmp_path, "short", dtype="bfloat16", types=widened))
    assert peer.types == widened
    tiny = resolve(str(bundled("tiny")), synthetic=False)[0]
    edit(tmp_path, lambda document: document.update(types={"decoder.layers.99": "float32"}))
    with pytest.raises(PeerUnavailable, match=r"'decoder\.layers\.99' is no tap, nor a pattern of any, in types"):
        create(tmp_path).open(replace(tiny, name=str(bundled("tiny"))))
    edit(tmp_path, lambda document: document.update(types={TOWER: "float64"}))
    with pytest.raises(
        PeerUnavailable, match=r"types\.encoder\.vision_tower\.\* is 'float64', expected float32, of a prog"
    ):
        create(tmp_path)
