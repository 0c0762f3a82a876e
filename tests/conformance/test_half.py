"""The statistics of a half-precision lane, on numbers made for each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from helpers import close, generator

from conformance.cases.plan import kind_of
from conformance.judge import patterns
from conformance.judge.patterns import regression
from conformance.measure import half
from conformance.measure.half import Measured, judged, limit_of, yardstick
from conformance.measure.limits import LIMITS
from conformance.measure.logits import LogitTest
from conformance.measure.sums import Moments, moments
from conformance.oracle.run_case import legal
from t5g2ref.attention import Keys, attend
from t5g2ref.backend import NUMPY
from t5g2ref.cache import KeyValue
from t5g2ref.dtypes import to_grid
from t5g2ref.numerics import EAGER, TIES, Numerics
from t5g2ref.taps import Tap

TAP = Tap("decoder.layers.3.mlp.act_fn", "B T F", "decoder", "")
U = 2.0**-8


def tap(name: str = "t", tokens: int = 24, features: int = 64, controls: int = 2) -> dict[str, Any]:
    """A truth, and peer and controls that are it rounded once after different noise of float32's size."""
    rng = generator(name)
    truth = rng.normal(size=(1, tokens, features))

    def once() -> Any:
        return to_grid((truth * (1 + 1e-7 * rng.normal(size=truth.shape))).astype(np.float32), "bfloat16")

    return {"truth": truth, "peer": once(), "controls": [once() for _ in range(controls)], "bound": np.abs(truth) * U}


def measured(made: dict[str, Any], given: list[Any] | None = None, keep: Any = None) -> Measured:
    found = moments(NUMPY, (0, 1), made["truth"], made["peer"], made["controls"], made["bound"], given or [], 2.0**-126)
    keep = np.ones(made["truth"].shape[:2], bool) if keep is None else keep
    return Measured(TAP, 0, found.of(keep.reshape(-1)), np.argwhere(keep))


def verdict(made: dict[str, Any], others: list[Any] | None = None) -> Any:
    findings, limits, unclear = judged([measured(made), *map(measured, others or [])], "bfloat16")
    return findings[0], limits[0], unclear


def test_moments_are_what_they_are_called() -> None:
    made = tap()
    other = made["truth"] * (1 + U * 0.3)
    found = measured(made, [other]).moments
    errors = np.stack([np.asarray(a, np.float64) - made["truth"] for a in (made["peer"], *made["controls"])])[:, 0]
    scaled = errors / made["bound"][0]
    close(found.norm, np.linalg.norm(made["truth"][0], axis=1), rtol=1e-13)
    close(found.errors, np.linalg.norm(errors, axis=2), rtol=1e-12)
    close(found.top, np.abs(scaled).max(axis=2), rtol=1e-12)
    close(found.shift, scaled.sum(axis=2), rtol=1e-9, atol=1e-9)
    close(found.gain, (scaled * np.sign(made["truth"][0])).sum(axis=2), rtol=1e-9, atol=1e-9)
    close(found.square, (scaled**2).sum(axis=2), rtol=1e-12)
    rows = np.concatenate([scaled, (other - made["truth"]) / made["bound"]])
    close(found.gram, np.einsum("itf,jtf->ijt", rows, rows)[:, :, None], rtol=1e-9, atol=1e-9)
    assert (found.features, found.norm.size) == (64, 24)


def test_in_pieces_or_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tap()
    at_once = measured(made, [made["truth"] * 1.01]).moments
    monkeypatch.setattr("conformance.measure.sums.PIECE", 700)
    in_pieces = measured(made, [made["truth"] * 1.01]).moments
    for name in ("norm", "errors", "top", "gain", "shift", "square", "gram"):
        close(getattr(in_pieces, name), getattr(at_once, name), rtol=1e-12, atol=1e-12)


def test_padding_counts_nowhere() -> None:
    made = tap()
    keep = np.ones((1, 24), bool)
    keep[0, 5] = False
    made["peer"] = made["peer"].copy()
    made["peer"][0, 5] = 1e6
    findings, _, _ = judged([measured(made, keep=keep)], "bfloat16")
    assert (findings[0].status, findings[0].tokens) == ("pass", 23)


def test_a_legal_peer_passes_and_k_is_near_one() -> None:
    found, k, unclear = verdict(tap())
    assert found.status == "pass"
    assert 0.9 < found.median < 1.1
    assert 1 <= k.median <= k.worst <= LIMITS["half"]
    assert k.median < 1.3
    assert k.raw[0] <= k.raw[1]
    assert not unclear


def changed(change: Any) -> dict[str, Any]:
    made = tap()
    return made | {"peer": np.asarray(change(made["truth"], made["peer"].copy()), np.float32)}


def truncated(truth: Any, peer: Any) -> Any:
    """Towards zero, as when the lower half of a float32 is cut off."""
    return (truth.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def one_element(truth: Any, peer: Any) -> Any:
    peer[0, 7, 9] = truth[0, 7, 9] * (1 + 4 * U)
    return peer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (one_element, r"token \(0, 7\): an error 4(\.\d+)? times the worst that legal rounding can do"),
        (truncated, "times the worst that legal rounding can do"),
        (lambda t, p: t * 1.02, "times the worst"),
    ],
)
def test_above_the_ceiling_is_proof(change: Any, words: str) -> None:
    import re

    found, _, _ = verdict(changed(change))
    assert (found.status, found.limit) == ("ceiling", 1.0)
    assert found.judged == found.ceiling > 1
    assert re.search(words, found.detail)


def loose(made: dict[str, Any]) -> dict[str, Any]:
    """With a bound that proves nothing, so that the statistics have to."""
    return made | {"bound": made["bound"] * 50}


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (lambda t, p: t + 2.5 * (p - t), "values", "the median token is 2.48"),
        (lambda t, p: np.where(np.arange(24)[:, None] == 11, t + 4 * (p - t), p), "values", "the worst token is"),
    ],
)
def test_without_a_ceiling_the_ratio_fails_it(change: Any, status: str, words: str) -> None:
    found, k, _ = verdict(loose(changed(change)))
    assert found.status == status
    assert found.detail.startswith(words)
    assert found.judged > found.limit
    assert k.worst <= LIMITS["half"]


def test_a_large_element_among_many_is_a_tail() -> None:
    """3 times the largest legal error in one of 4096 elements: hardly seen in the norm."""
    made = tap("tail", 4, 4096)
    error = np.abs(made["controls"][0] - made["truth"]) / made["bound"]
    made["peer"] = made["peer"].copy()
    made["peer"][0, 2, 0] = made["truth"][0, 2, 0] + 3 * error.max() * made["bound"][0, 2, 0]
    found, _, _ = verdict(loose(made))
    assert found.status == "tail"
    assert found.worst < 1.2
    assert 2 < found.tail < 4


def test_errors_of_one_sign_are_a_bias() -> None:
    """Every error made positive: no norm changes, no largest element."""
    made = tap()
    made["peer"] = (made["truth"] + np.abs(made["peer"] - made["truth"])).astype(np.float32)
    found, _, _ = verdict(made | {"bound": made["bound"] * 1.01})
    assert found.status == "bias"
    assert found.worst < 1.3
    assert found.bias > found.limit > 0.1


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_excuses_nobody(broken: float) -> None:
    made = tap()
    made["controls"] = [c.copy() for c in made["controls"]]
    for control in made["controls"]:
        control[0, 3, 3] = broken
    assert verdict(made)[0].status != "pass"


def test_a_legal_error_as_large_as_the_value_is_unclear() -> None:
    rng = generator("unclear")
    truth = rng.normal(size=(1, 12, 32))
    noisy = [np.asarray(truth + 0.4 * rng.normal(size=truth.shape), np.float32) for _ in range(3)]
    made = {"truth": truth, "peer": noisy[0], "controls": noisy[1:], "bound": np.full(truth.shape, 10.0)}
    found, _, unclear = verdict(made)
    assert found.status == "pass"
    assert unclear == ["decoder.layers.*.mlp.act_fn"]


def yarded(m: Measured) -> half.Yarded:
    return m, yardstick(m.moments, "bfloat16")


def test_k_never_leaves_its_range_and_is_the_same_twice() -> None:
    wild = tap("wild")
    scale = (1 + 0.05 * (np.arange(24) % 4 == 0))[None, :, None].astype(np.float32)
    wild["controls"] = [c * scale for c in wild["controls"]]
    group = [yarded(measured(wild))]
    k = limit_of("kind", group)
    assert k == limit_of("kind", group)
    assert k.raw[1] > LIMITS["half"]
    assert (k.worst, k.tokens) == (LIMITS["half"], 24)
    of_one = limit_of("kind", [yarded(measured(tap("one", 1)))])
    assert of_one.median == LIMITS["half"], "of one token nothing can be drawn"


def test_kinds() -> None:
    assert kind_of("decoder.layers.3.mlp.act_fn") == kind_of("decoder.layers.12.mlp.act_fn")
    assert kind_of("decoder.layers.3") == "decoder.layers.*"
    assert kind_of("decoder.norm") == "decoder.norm"


# Patterns


def with_pattern(share: float, others: int = 0) -> Measured:
    """A peer whose value before rounding has `share` of a pattern half the size of its rounding, and none of others."""
    made, rng = tap("p", 24, 128), generator("pattern")
    pattern = made["truth"] * U * 0.25 * rng.choice([-1, 1], made["truth"].shape)
    made["peer"] = to_grid((made["truth"] + share * pattern).astype(np.float32), "bfloat16")
    more = [made["truth"] * U * 0.25 * rng.choice([-1, 1], made["truth"].shape) for _ in range(others)]
    return measured(made, [made["truth"] + p for p in (pattern, *more)])


@pytest.mark.parametrize(("share", "verdict_"), [(0.0, "absent"), (1.0, "named"), (0.2, "absent")])
def test_the_coefficient_is_the_share(share: float, verdict_: str) -> None:
    (found,) = regression(["D52"], "place", [with_pattern(share).moments.gram])
    assert found.verdict == verdict_
    assert abs(found.coefficient - share) < 6 * found.error < 0.5
    assert found.tap == "place"


def test_a_pattern_that_is_not_there_has_no_power() -> None:
    made = tap()
    (found,) = regression(["D52"], "place", [measured(made, [made["truth"]]).moments.gram])
    assert found.verdict == "no power"


def test_two_patterns_are_told_apart() -> None:
    made, rng = tap("two", 24, 128), generator("two patterns")
    first, second = (made["truth"] * U * 0.25 * rng.choice([-1, 1], made["truth"].shape) for _ in range(2))
    made["peer"] = to_grid((made["truth"] + second).astype(np.float32), "bfloat16")
    found = regression(
        ["D11", "D12"], "place", [measured(made, [made["truth"] + first, made["truth"] + second]).moments.gram]
    )
    assert [s.verdict for s in found] == ["absent", "named"]


def test_every_defect_has_a_member_and_taps() -> None:
    assert sorted(d for member in patterns.MEMBERS for d in member) == sorted(patterns.SHOWN)
    names = ["decoder.norm", "decoder.layers.0.mlp.act_fn", "decoder.layers.0.self_attn.q_norm", "decoder.embed_tokens"]
    assert [patterns.shown_at(n) for n in names] == [
        ["D11", "D12", "D13", "D84"],
        ["D52", None, None, "D83"],
        ["D11", "D12", "D13", "D84"],
        ["D02", None, None, None],
    ]  # fmt: skip
    assert patterns.shown_at("decoder.layers.0.self_attn.q_proj") == [None] * 4


def test_signatures_take_the_tap_that_names_it() -> None:
    one = with_pattern(1.0, 1)
    other = replace(with_pattern(0.0, 1), tap=replace(TAP, name="decoder.layers.4.mlp.act_fn"))
    found = patterns.signatures([other, one])
    assert [(s.defect, s.verdict) for s in found] == [("D52", "named"), ("D83", "absent")]
    assert found[0].tap == TAP.name


# Logits


def logits(peer: Any, truth: Any, controls: list[Any], valid: Any = None) -> dict[str, float]:
    test = LogitTest()
    test.add(NUMPY, peer, truth, controls, valid)
    return test.figures()


def test_divergence_of_known_distributions() -> None:
    truth = np.log(np.array([[[0.5, 0.25, 0.25]]]))
    peer, control = np.log(np.array([[[0.25, 0.5, 0.25]]])), np.log(np.array([[[0.4, 0.3, 0.3]]]))
    found = logits(peer, truth, [control])
    close(np.array(found["kl"]), np.array(0.25 * np.log(2)), rtol=1e-12)
    close(
        np.array(found["kl_ratio"]), np.array(0.25 * np.log(2) / (0.5 * np.log(1.25) + 0.5 * np.log(5 / 6))), rtol=1e-9
    )
    assert (found["tokens"], found["flips"]) == (1, 1)


@pytest.mark.parametrize(("margin", "wrong"), [(1.0, 1.0), (0.001, 0.0)])
def test_a_flip_counts_where_the_margin_certifies(margin: float, wrong: float) -> None:
    truth = np.array([[[3.0 + margin, 3.0, 0.0], [5.0, 0.0, 0.0]]])
    peer = truth + np.array([[[-2 * margin, 0, 0], [0, 0, 0]]])
    found = logits(peer, truth, [truth + 1e-3])
    assert (found["flips"], found["wrong"]) == (1.0, wrong)


def test_padding_has_no_logits() -> None:
    truth = np.random.default_rng(1).normal(size=(2, 3, 8))
    peer = truth.copy()
    peer[1, 2] = -peer[1, 2]
    found = logits(peer, truth, [truth + 1e-6], np.array([[True] * 3, [True, True, False]]))
    assert (found["tokens"], found["flips"]) == (5, 0)
    assert LogitTest().figures() == {}


def test_moments_of_part_of_the_tokens() -> None:
    found = measured(tap(), [tap("x")["truth"]]).moments
    some = found.of(np.arange(24) < 3)
    assert isinstance(some, Moments)
    assert (some.norm.size, some.errors.shape, some.gram.shape, some.features) == (3, (3, 3), (4, 4, 1, 3), 64)
    assert half.yardstick(some, "bfloat16").shape == (3,)


# Ties


@dataclass(frozen=True)
class Ordered(Numerics):
    """Sums in float32, term by term: from the first, or from the last."""

    last_first: bool = False

    def _sums(self, a: Any, b: Any, dtype: Any) -> Any:
        a, b, terms = self.wide(a), self.wide(b), range(a.shape[-1])
        found = np.zeros((), np.float32)
        for i in reversed(terms) if self.last_first else terms:
            found = found + a[..., i : i + 1] * b[..., i : i + 1, :]
        return found.astype(dtype)


def test_a_score_that_falls_on_the_other_side_of_a_tie_is_legal() -> None:
    # Between 64 and 128 float16 numbers are 2⁻⁴ apart, float32's 2⁻¹⁷. The second score is 64 + 2⁻⁵, a tie, and
    # two terms of 0.75 · 2⁻¹⁸: each is lost beside 64, both together are not.
    q, small = np.ones((1, 1, 1, 4)), 0.75 * 2.0**-18
    k = np.asarray([[[[64, 2.0**-6, 0, 0], [64, 2.0**-5, small, small]]]])
    v = np.ones((1, 1, 2, 32))
    v[..., 1, 16:] = -1

    def run(nx: Numerics) -> Any:
        return attend(nx, nx.array(q), [Keys(KeyValue(nx.array(k), nx.array(v)))], scale=1.0)[:, 0]

    def finding(profiles: Any) -> Any:
        controls = [run(Ordered("float16", profile)) for profile in profiles]
        peer = run(Ordered("float16", EAGER, last_first=True))
        found = moments(NUMPY, (0, 1), run(Numerics()), peer, controls, None, [], 2.0**-24)
        return judged([Measured(TAP, 0, found, np.zeros((1, 2), int))], "float16")[0][0]

    profiles = legal("float16")
    assert finding(profiles).worst == pytest.approx(1, rel=0.01)
    assert finding(profiles).passed
    before = finding([profile for profile in profiles if profile is not TIES])
    assert before.worst > 2.9  # 2⁻⁵ + 2⁻⁶ over 2⁻⁵ − 2⁻⁶ is 3
    assert before.status == "values"
