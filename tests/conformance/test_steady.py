"""A peer that does not repeat itself is found, and called by that name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dumping
import pytest
from dumping import case_of
from judging import judged

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.cases.catalogue import build
from conformance.judge.judgement import Judgement
from conformance.judge.session import Session
from conformance.judge.steady import BETWEEN, between, steadiness
from conformance.peers.find import other_type
from conformance.peers.reference import ReferencePeer
from conformance.progress import reporting
from conformance.target import Target
from t5g2ref.backend import NUMPY

CULPRIT = "decoder.layers.1.self_attn.o_proj"
Change = Callable[[int, str, Any], Any]


@pytest.fixture
def tiny() -> Target:
    return dumping.tiny()


class Changing(ReferencePeer):
    """The reference, with a value changed in some of its runs."""

    def __init__(self, change: Change, dtype: Any = "float32") -> None:
        super().__init__(NUMPY, dtype)
        self.change, self.asked = change, list[str]()

    def run(self, case: Case, dump: Dump) -> None:
        self.asked.append(case.name)
        super().run(case, dump)

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        return super()._shown(dump, name, self.change(len(self.asked), name, value))


def _one(size: float, runs: set[int]) -> Change:
    """One value of one operation is off in those runs."""

    def change(run: int, name: str, value: Any) -> Any:
        if name != CULPRIT or run not in runs:
            return value
        value = value.copy()
        value.flat[-1] += size * abs(value).max()
        return value

    return change


def test_a_steady_peer_is_asked_four_times(tiny: Target) -> None:
    peer = Changing(_one(0.0, set()))
    found = judged(peer, tiny, "short", repeat=True)
    assert found.passed
    assert not found.unsteady
    assert found.repeated == len(found.local) > 300
    assert peer.asked == ["short", BETWEEN, BETWEEN, "short"]


@pytest.mark.parametrize("run", [1, 4])
def test_one_value_that_is_wrong_in_one_of_two_runs_is_found(tiny: Target, run: int) -> None:
    found = judged(Changing(_one(0.1, {run})), tiny, "short", repeat=True)
    assert found.deviates
    assert found.culprit is not None
    assert found.culprit.tap == CULPRIT
    assert found.unsteady == (
        f"two runs of the same call differ first at {CULPRIT} (call 0), in 1 of 192 values; "
        "one of the two runs is wrong"
    )


def test_a_value_that_is_wrong_alike_in_both_runs_is_steady(tiny: Target) -> None:
    found = judged(Changing(_one(0.1, {1, 4})), tiny, "short", repeat=True)
    assert found.deviates
    assert not found.unsteady


def test_a_last_bit_that_changes_is_said_and_is_no_failure(tiny: Target) -> None:
    found = judged(Changing(_one(1e-7, {4})), tiny, "short", repeat=True)
    assert found.passed
    assert found.unsteady.endswith("in 1 of 192 values; both runs conform")
    (line,) = steadiness([("tiny", found)], set())
    assert line.startswith(f"t5g2ref:numpy:float32 is unsteady in case short of tiny: {found.unsteady}")


def test_padding_may_hold_other_bits_each_time(tiny: Target) -> None:
    def change(run: int, name: str, value: Any) -> Any:
        if name != "encoder.text_model.layers.0.mlp.down_proj" or run != 4:
            return value
        value = value.copy()
        value[1, 3:] = 7  # this row has three tokens
        return value

    found = judged(Changing(change), tiny, "padded-right", repeat=True)
    assert found.passed
    assert not found.unsteady


def test_a_tap_that_comes_once_is_said(tiny: Target) -> None:
    class Forgetful(Changing):
        def _shown(self, dump: Dump, name: str, value: Any) -> Any:
            return value if name == CULPRIT and len(self.asked) == 4 else super()._shown(dump, name, value)

    found = judged(Forgetful(_one(0.0, set())), tiny, "short", repeat=True)
    assert found.deviates
    assert found.unsteady == f"only one of two runs shows {CULPRIT} (call 0); one of the two runs is wrong"


def test_a_peer_that_raises_when_asked_again_is_no_pass(tiny: Target) -> None:
    class Tired(Changing):
        def run(self, case: Case, dump: Dump) -> None:
            if len(self.asked) == 3:
                raise RuntimeError("enough")
            super().run(case, dump)

    found = judged(Tired(_one(0.0, set())), tiny, "short", repeat=True)
    assert not found.passed
    assert not found.deviates
    assert found.error == "asked for the same case once more, it raised: RuntimeError: enough"


def test_inputs_between_that_a_peer_cannot_do_cost_nothing(tiny: Target) -> None:
    class Narrow(Changing):
        def run(self, case: Case, dump: Dump) -> None:
            if case.name == BETWEEN:
                raise ValueError("another length")
            super().run(case, dump)

    found = judged(Narrow(_one(0.0, set())), tiny, "short", repeat=True)
    assert found.passed
    assert found.repeated > 300
    assert found.unmixed == "ValueError: another length"
    (_, line) = steadiness([("tiny", found)], set())
    assert line.endswith("between two runs (ValueError: another length): a stale table may not show")


def test_a_table_kept_from_another_length_is_found(tiny: Target) -> None:
    """Broken by a table that only grows with the first input, or is kept from the last one."""

    class Keeping(ReferencePeer):
        kept: Any = None

        def _shown(self, dump: Dump, name: str, value: Any) -> Any:
            if name.endswith("rotary_emb.sliding_attention.cos") and name.startswith("encoder"):
                if self.kept is None or self.kept.shape[1] < value.shape[1]:
                    self.kept = value[:, ::-1]  # the table of a longer input is read from its end
                else:
                    value = self.kept[:, : value.shape[1]]
            return super()._shown(dump, name, value)

    found = judged(Keeping(NUMPY, "float32"), tiny, "short", repeat=True)
    assert found.deviates
    assert found.unsteady.endswith("one of the two runs is wrong")


@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_a_table_kept_from_another_type_is_found_in_either_order(tiny: Target, first: str) -> None:
    """Broken by a table that the class keeps, in the type of whoever came first."""
    kept: dict[str, Any] = {}

    class Keeping(Changing):
        def _shown(self, dump: Dump, name: str, value: Any) -> Any:
            if name == "decoder.embed_tokens":
                value = kept.setdefault(f"{name} {value.shape}", value)
            return super()._shown(dump, name, value)

    peers = {name: Keeping(_one(0.0, set()), name) for name in ("float32", "bfloat16")}
    peer, other = peers.pop(first), *peers.values()
    found: list[Judgement] = []
    case = case_of(tiny, "short")
    with reporting(quiet=True) as reporter:
        Session(
            [tiny],
            [(tiny, case)],
            reporter,
            exact=False,
            others={peer.name: other},
            ended=lambda _, judgements, __: found.extend(judgements),
        ).judge([peer])
    assert found[0].deviates


def test_inputs_between_are_shorter_and_longer(tiny: Target) -> None:
    for case in build(tiny.config):
        lengths = [run.input_ids.shape[1] for run in case.runs]
        short, long = between(tiny, case)
        assert short.runs[0].input_ids.shape[1] < min(lengths)
        assert long.runs[0].input_ids.shape[1] > max(lengths)
        assert (short.task, short.num_labels) == (case.task, case.num_labels)


def test_the_line_says_how_rare_a_race_may_be(tiny: Target) -> None:
    found = judged(Changing(_one(0.0, set())), tiny, "short", repeat=True)
    n = found.repeated
    (line,) = steadiness([("tiny", found)], set())
    assert line == (
        f"1 comparisons were run twice, with the same bits at {n} taps: what strikes a tap less often than once in "
        f"{2 * n // 3} runs may not have shown"
    )


def test_a_dump_is_said_to_show_one_run(tiny: Target) -> None:
    found = judged(Changing(_one(0.0, set())), tiny, "short", repeat=True)
    lines = steadiness([("tiny", found)], {found.peer})
    assert lines[-1].startswith("t5g2ref:numpy:float32 shows one run: ")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformers:eager:float32", "transformers:eager:bfloat16"),
        ("transformers:sdpa", "transformers:sdpa:bfloat16"),
        ("process:mine", ""),
        ("t5g2ref:numpy:float32", ""),
    ],
)
def test_the_same_peer_in_another_type(name: str, expected: str) -> None:
    names = ["transformers:eager:float32", "transformers:sdpa", "process:mine", "t5g2ref:numpy:float32"]
    names += ["transformers:eager:bfloat16", "transformers:sdpa:bfloat16", "process:bfloat16:mine"]
    assert other_type(name, names) == expected
