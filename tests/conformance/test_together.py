"""What no single case has the tokens to show in a half type, and all of them together do."""

from __future__ import annotations

import dumping
import pytest

from conformance.cases.catalogue import build
from conformance.defects.injection import HEALTHY, Injection, rounded
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.judge.together import TOGETHER, together
from conformance.measure.match import Signature
from conformance.selftest.faulty_peer import FaultyPeer

CASES = ("window", "padded-left", "padded-right", "decoder-split", "images", "far-positions")


def signature(
    coefficient: float, error: float, verdict: str = "no power", tap: str = "layers.0.mlp.act_fn"
) -> Signature:
    return Signature("D83", tap, coefficient, error, 0.9, verdict)


def of(*signatures: Signature, dtype: str = "bfloat16") -> list[tuple[str, Judgement]]:
    return [("tiny", Judgement("mine", f"case {n}", dtype=dtype, named=[s])) for n, s in enumerate(signatures)]


def pooled(*signatures: Signature) -> Signature:
    ((_, judgement),) = together(of(*signatures))
    assert judgement.case == TOGETHER
    (found,) = judgement.named
    return found


def test_coefficients_are_weighed_by_their_certainty() -> None:
    found = pooled(signature(1.0, 0.3), signature(0.0, 0.4))
    assert found.coefficient == pytest.approx(0.64)  # (1 / 0.09) / (1 / 0.09 + 1 / 0.16)
    assert found.error == pytest.approx(0.24)  # 1 / √(1 / 0.09 + 1 / 0.16)
    assert found.verdict == "no power"


def test_what_sixteen_cases_hint_at_is_named() -> None:
    found = pooled(*[signature(1.02, 0.4)] * 16)
    assert (found.verdict, found.error) == ("named", pytest.approx(0.1))
    ((_, judgement),) = together(of(*[signature(1.02, 0.4)] * 16))
    assert judgement.deviates
    assert judgement.culprit is not None
    assert judgement.culprit.detail == "1.02 ± 0.1 of the pattern of D83 is at layers.*.mlp.act_fn, over 16 cases"


def test_what_sixteen_cases_do_not_have_is_absent() -> None:
    found = pooled(*[signature(0.02, 0.4)] * 16)
    assert found.verdict == "absent"
    ((_, judgement),) = together(of(*[signature(0.02, 0.4)] * 16))
    assert judgement.passed


def test_a_case_that_speaks_for_itself_is_not_repeated() -> None:
    ((_, judgement),) = together(of(signature(1.0, 0.01, "named"), signature(1.0, 0.4)))
    assert not judgement.named
    assert not judgement.deviates


def test_errors_that_are_not_known_count_nothing() -> None:
    assert pooled(signature(7.0, float("inf")), signature(0.0, 0.1)).coefficient == 0.0
    assert pooled(signature(7.0, float("inf")), signature(7.0, float("inf"))).verdict == "no power"


def test_one_case_and_float32_are_left_alone() -> None:
    assert together(of(signature(1.0, 0.1))) == []
    assert together(of(signature(1.0, 0.1), signature(1.0, 0.1), dtype="float32")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inject", "defect"), [(HEALTHY, ""), *((rounded(d), d) for d in ("D83", "D84", "D85"))], ids=lambda x: str(x)[:3]
)
def test_faults_below_the_rounding_are_seen_by_all_cases(inject: Injection, defect: str) -> None:
    """Broken by patterns that are looked for case by case alone."""
    target = dumping.tiny()
    peer = FaultyPeer(inject, dtype="bfloat16")
    peer.open(target)
    cases = [case for case in build(target.config) if case.name in CASES]
    found = [("tiny", judge(peer, target, case, repeat=False)) for case in cases]
    seen = [s for _, j in [*found, *together(found)] for s in j.named if s.named or s.akin]
    assert {s.defect for s in seen} == ({defect} if defect else set())
