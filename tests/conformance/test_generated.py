"""The generation lane: a right `generate` conforms, and each thing that it can get wrong is found and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from dumping import tiny
from helpers import generator
from standin import Device

pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from conformance.cases import generating
from conformance.cases.case import Case
from conformance.cases.forced import ended, forced
from conformance.cases.prompt import Answer, Prompt
from conformance.defects.all import FAULTS
from conformance.judge import choices
from conformance.judge.generated import judge_generated
from conformance.judge.judgement import Judgement
from conformance.oracle.beams import searched
from conformance.peers.protocol import Skip
from conformance.peers.reference import ReferencePeer
from conformance.selftest.speaking_peer import SpeakingPeer
from conformance.selftest.trial import Bench
from conformance.target import Target
from t5g2ref.backend import NUMPY
from t5g2ref.numerics import RUNNING

pytestmark = pytest.mark.slow  # minutes in all
CASES = [case.name for case in generating.build(tiny().config) if not case.costly]
Change = Callable[[Answer], Any]


def case_of(target: Target, name: str) -> Case:
    return next(case for case in generating.build(target.config) if case.name == name)


def judged(peer: Any, target: Target, name: str, **how: Any) -> Judgement:
    peer.open(target)
    return judge_generated(cast(Any, peer), target, case_of(target, name), **{"repeat": False} | how)


class Changed(SpeakingPeer):
    """A right peer whose answers are changed."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self._change = change

    def generate(self, prompt: Prompt) -> Answer:
        return cast(Answer, self._change(super().generate(prompt)))


# A right peer


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("checkpoint", ["tiny", "tiny-even"])
def test_a_right_peer_conforms(checkpoint: str, name: str) -> None:
    target = next(t for t in (tiny("tiny"), *tiny_pair()) if t.name == checkpoint)
    found = judged(SpeakingPeer(profile=RUNNING), target, name, repeat=name == "generate-stop")
    assert found.passed, (found.culprit, found.error)
    assert found.local
    assert not found.unsteady
    assert {f.tap for f in found.exact} >= {choices.IDS, choices.STOP}
    assert bool(found.repeated) is (name == "generate-stop")


def tiny_pair() -> list[Target]:
    from conformance.checkpoints import resolve

    return resolve("tiny", synthetic=False)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("checkpoint", ["tiny", "tiny-even"])
def test_the_reference_conforms(checkpoint: str, name: str) -> None:
    """Its own generation, with both caches, greedy and beams, ragged and with pictures."""
    target = next(t for t in (tiny("tiny"), *tiny_pair()) if t.name == checkpoint)
    found = judged(ReferencePeer(NUMPY, "float32"), target, name)
    assert found.passed, (found.culprit, found.error)
    assert found.local
    assert ("beams" in name or "images" in name) is ({f.tap for f in found.exact} >= {choices.BEAMS, choices.SCORES})


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("name", [*CASES, "generate-long"])
@pytest.mark.parametrize("peer", ["transformers:eager", "transformers:sdpa"])
def test_transformers_conforms(peer: str, name: str) -> None:
    from conformance.peers.find import create

    found = judged(create(peer), tiny(), name)
    assert found.passed, (found.culprit, found.error)


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("name", [name for name in CASES if name != "generate-second"])  # see the findings
def test_transformers_static_cache_conforms(name: str) -> None:
    from conformance.peers.find import create

    found = judged(create("transformers:sdpa-static"), tiny(), name)
    assert found.passed, (found.culprit, found.error)


# What is wrong


@pytest.mark.parametrize("key", [f.key for f in FAULTS if f.spoken])
def test_a_fault_is_found_where_it_is(key: str) -> None:
    (fault,) = (f for f in FAULTS if f.key == key)
    trial = Bench({"tiny": tiny()}).try_out(fault, "own")
    assert trial.injected
    assert trial.culprit is not None
    assert fault.expects(*trial.culprit)
    assert trial.named == ([fault.id] if fault.catalogued else [])


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("D36 cached", "generate"),
        ("D36 cached", "generate-beams"),
        ("D55", "generate-second"),
        ("D28 restarts", "generate-second"),
        ("D39", "generate-stop"),
    ],
)
def test_a_defect_of_the_model_is_named_by_what_it_generates(key: str, name: str) -> None:
    (fault,) = (f for f in FAULTS if f.key == key)
    trial = Bench({"tiny": tiny()}).try_out(replace(fault, case=name), "own")
    assert trial.culprit is not None
    assert trial.culprit[:2] == ("logits", "values")
    assert trial.named == [fault.id]


def test_nan_logits_are_a_failure_before_any_choice() -> None:
    """Two programs that take the argmax of NaN agree on id 0 (D82)."""

    def spoilt(answer: Answer) -> Answer:
        return Answer(np.where(np.arange(answer.ids.shape[1]) > 0, 0, answer.ids), np.full_like(answer.logits, np.nan))

    found = judged(Changed(spoilt), tiny(), "generate")
    assert found.deviates
    assert "nan" in {f.status for f in found.local}


def test_another_answer_to_the_same_question_is_unsteady() -> None:
    calls: list[Answer] = []

    def drifting(answer: Answer) -> Answer:
        calls.append(answer)
        return replace(answer, logits=answer.logits + np.float32(len(calls)) * 1e-7)

    assert "for prompt 0 give other logits" in judged(Changed(drifting), tiny(), "generate-stop", repeat=True).unsteady


# Peers that show less


def ids_alone(answer: Answer) -> Answer:
    return Answer(answer.ids)


def with_log_probs(answer: Answer) -> Answer:
    n = answer.ids.shape[1] - answer.logits.shape[1]
    logits = np.asarray(answer.logits, np.float64)
    logs = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    own = np.take_along_axis(logs, answer.ids[:, n:, None], -1)[..., 0]
    return Answer(answer.ids, log_probs=own.astype(np.float32), scores=answer.scores)


@pytest.mark.parametrize("name", ["generate", "generate-stop", "generate-beams"])
@pytest.mark.parametrize("less", [ids_alone, with_log_probs])
def test_ids_or_log_probabilities_alone_are_judged(less: Change, name: str) -> None:
    found = judged(Changed(less), tiny(), name)
    assert found.passed, (found.culprit, found.error)
    assert bool(found.local) is (less is with_log_probs)


def test_of_ids_alone_a_choice_is_wrong_where_the_truth_is_certain() -> None:
    def other(answer: Answer) -> Answer:
        ids = answer.ids.copy()
        ids[1, 5] = np.argsort(answer.logits[1, 4])[-2]
        return Answer(ids)

    found = judged(Changed(other), tiny(), "generate")
    assert found.culprit is not None
    assert found.culprit.tap == choices.CHOICE
    assert "row 1, new position 4" in found.culprit.detail
    assert "is certain" in found.culprit.detail


def test_beams_that_the_truth_would_not_keep() -> None:
    """Each beam's own logits are right, and its score is; a likelier continuation was dropped."""

    def dropped(answer: Answer) -> Answer:
        ids, order = answer.ids.copy(), np.argsort(answer.logits[2, -1])
        ids[2, -1] = next(int(i) for i in order if i not in answer.ids[:3, -1])
        return Answer(ids)

    found = judged(Changed(dropped), tiny(), "generate-beams")
    assert found.culprit is not None
    assert found.culprit.tap == choices.BEAMS
    assert "row 0, beam 2: expected 33 " in found.culprit.detail


# Answers that are none


MALFORMED: dict[str, tuple[Change, str]] = {
    "rows": (lambda a: replace(a, ids=a.ids[1:]), "expected 3 rows"),
    "one axis": (lambda a: replace(a, ids=a.ids[0]), "expected 3 rows"),
    "floats": (lambda a: replace(a, ids=a.ids.astype(float)), "expected integers, found float64"),
    "no new id": (lambda a: replace(a, ids=a.ids[:, :1]), "a start of 1 and 1 to 22 new ones, found 1 a row"),
    "too many": (lambda a: replace(a, ids=np.pad(a.ids, ((0, 0), (0, 9)))), "found 32 a row"),
    "outside": (lambda a: replace(a, ids=a.ids + 1000), "expected ids from 0 to 310"),
    "start": (lambda a: replace(a, ids=a.ids * 0), "row 0 begins with id 0 at 0, expected 33"),
    "steps": (lambda a: replace(a, logits=a.logits[:, 1:]), "logits: expected float (3, 22, 311)"),
    "vocabulary": (lambda a: replace(a, logits=a.logits[..., :7]), "logits: expected float (3, 22, 311)"),
    "integers": (lambda a: replace(a, logits=a.logits.astype(int)), "found int64 (3, 22, 311)"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_answer_fails_with_what_was_expected(what: str) -> None:
    change, said = MALFORMED[what]
    found = judged(Changed(change), tiny(), "generate")
    assert found.deviates
    assert found.culprit is not None
    assert found.culprit.tap == choices.IDS
    assert said in found.culprit.detail


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: None, "generate() gave 'NoneType', expected an Answer"),
        (lambda a: replace(a, ids=None), "generate() gave no ids"),
        (lambda a: replace(a, ids=a.ids.tolist()), "generate() gave ids as list, expected an array"),
    ],
)
def test_what_is_no_answer_is_an_error(change: Change, said: str) -> None:
    found = judged(Changed(change), tiny(), "generate")
    assert said in found.error
    assert not found.passed
    assert not found.deviates


def test_a_peer_may_raise_or_skip() -> None:
    def raises(_: Answer) -> Any:
        raise RuntimeError("no beams here")

    def skips(_: Answer) -> Any:
        raise Skip("greedy alone", "https://example.org/1")

    assert judged(Changed(raises), tiny(), "generate").error == "generate() raised RuntimeError: no beams here"
    assert judged(Changed(skips), tiny(), "generate").skipped == "greedy alone (https://example.org/1)"


# What stands below


def test_a_row_ends_behind_its_start_alone() -> None:
    ids = np.array([[7, 1, 7, 1, 1], [1, 1, 1, 1, 7]])
    assert ended(ids, 2, (7,)).tolist() == [[False, False, True, True, True], [False] * 4 + [True]]
    assert not ended(ids, 2, ()).any()


def test_the_run_along_an_answer_repeats_rows_and_pictures_alike() -> None:
    target = tiny()
    (prompt,) = case_of(target, "generate-images").prompts
    assert prompt.pixel_values is not None
    run = forced(prompt, np.full((6, 5), 33), target.config)
    assert np.array_equal(run.input_ids[[0, 1, 2]], prompt.input_ids[[0, 0, 0]])
    assert np.array_equal(run.input_ids[[3, 4, 5]], prompt.input_ids[[1, 1, 1]])
    assert run.pixel_values is not None
    assert np.array_equal(run.pixel_values, prompt.pixel_values[[0, 1, 0, 1, 0, 1, 2, 2, 2]])
    assert run.splits == (1, 1, 1, 1)
    assert run.decoder_input_ids.shape == (6, 4)


def test_the_search_is_exhaustive_where_it_keeps_all() -> None:
    """With as many beams as there are answers, it is their order by probability."""
    vocabulary, new = 3, 3
    table = generator("beams").normal(size=(2, 1 + vocabulary**2 + vocabulary, vocabulary))

    def step(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        beams = len(ids) // 2
        index = [int("".join(map(str, row[1:])) or "0", vocabulary) + vocabulary ** (len(row) - 1) - 1 for row in ids]
        return np.stack([table[r // beams, i % table.shape[1]] for r, i in enumerate(index)])

    found = searched(step, np.zeros((2, 1), int), vocabulary**new, new)
    for row in range(2):
        block = found.ids[row * 27 : (row + 1) * 27]
        assert {tuple(ids[1:]) for ids in block.tolist()} == set(product(range(3), repeat=3))
        scores = found.scores[row * 27 : (row + 1) * 27]
        assert (np.diff(scores) <= 0).all()
        for ids, score in zip(block, scores, strict=True):
            total = 0.0
            for at in range(1, 4):
                logits = step(np.stack([ids[:at], ids[:at]]))[row]
                total += logits[ids[at]] - np.log(np.exp(logits).sum())
            assert score == pytest.approx(total / new, abs=1e-12)


def test_one_beam_is_greedy_and_its_margin_is_the_least_gap() -> None:
    logits = np.array([[0.0, 3.0, 1.0], [2.0, 1.9, 0.0]])
    found = searched(lambda ids: logits, np.array([[5], [6]]), 1, 4)
    assert found.ids.tolist() == [[5, 1, 1, 1, 1], [6, 0, 0, 0, 0]]
    assert found.margin == pytest.approx([2.0, 0.1])
    assert found.sources.tolist() == [[0] * 4, [1] * 4]


# As it is asked for


def test_a_port_s_own_test_judges_what_it_generates() -> None:
    from conformance.testing import assert_conforms

    assert_conforms(SpeakingPeer(), ckpt=str(tiny().folder), lane="generate", cases=["generate-stop"])
    wrong = Changed(lambda a: replace(a, scores=a.scores * 2))
    with pytest.raises(AssertionError, match=r"generate\.scores"):
        assert_conforms(wrong, ckpt=str(tiny().folder), cases=["generate-beams"], lane="generate")


DUMB = """
from conformance.peers import reference
from t5g2ref.backend import NUMPY

class Dumb(reference.ReferencePeer):
    generate = None

def create(*_):
    return Dumb(NUMPY, "float32")
"""


def test_who_cannot_generate_is_asked_by_name_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from conformance.__main__ import main

    (tmp_path / "dumb.py").write_text(DUMB)
    given = ["--peer", f"{tmp_path}/dumb.py:create", "--no-progress", "--once", "--ckpt", "tiny-even"]
    assert main([*given, "--lane", "fp32", "--lane", "generate", "--case", "generate-stop"]) == 3
    assert "it has no generate()" in capsys.readouterr().out
    assert main([*given, "--case", "short"]) == 0
    assert "generate" not in capsys.readouterr().out


def test_a_known_deviation_may_be_that_a_peer_raises() -> None:
    from conformance.report.known import Deviation, Known

    why = {"reason": "no beams", "link": "https://example.org"}
    known = Known((Deviation("*", "generate*", status="raised", **why),))
    known.check([tiny()])
    raised = Judgement("p", "generate", error="generate() raised RuntimeError: no")
    assert known.applied(raised, {}).known == "no beams (https://example.org)"
    assert [state["state"] for state in known.states()] == ["seen"]
    assert (
        not Known((Deviation("*", "generate*", status="raised", **why),))
        .applied(replace(raised, error="", skipped="no"), {})
        .known
    )


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("name", ["generate-stop", "generate-beams", "generate-images"])
def test_it_is_judged_where_the_arrays_are(name: str) -> None:
    """On a device library's arrays nothing falls back on NumPy's, and an answer may lie on the device or not."""
    from conformance.checkpoints import resolve

    (target, _) = resolve("tiny", synthetic=False, backend=Device())
    found = judged(SpeakingPeer(backend=target.backend), target, name)
    assert found.passed, (found.culprit, found.error)


def test_logits_for_some_prompts_alone_are_refused() -> None:
    """They would be held against their own argmax, and against nothing else."""
    seen: list[Answer] = []

    def some(answer: Answer) -> Answer:
        seen.append(answer)
        return answer if len(seen) % 2 else Answer(answer.ids)

    found = judged(Changed(some), tiny(), "generate-second")
    assert "gives logits for some prompts of a case and not for others: give all, or none" in found.error
    assert not found.passed


def test_pads_behind_the_last_row_s_end_are_no_crash() -> None:
    """A program of fixed shapes goes on with pad to the last step, where no row is left to be compared."""

    def padded(answer: Answer) -> Answer:
        more = 11 - answer.ids.shape[1]
        ids = np.pad(answer.ids, ((0, 0), (0, more)), constant_values=tiny().config.decoder.pad_token_id)
        return Answer(ids, np.pad(answer.logits, ((0, 0), (0, more), (0, 0))))

    found = judged(Changed(padded), tiny(), "generate-stop")
    assert found.passed, (found.culprit, found.error)
    assert found.exact[0].tokens < 4 * 11


def test_who_is_known_to_raise_everywhere_was_judged_on_nothing() -> None:
    from conformance.report.result import Result

    raised = Judgement(
        "p", "generate", error="generate() raised RuntimeError: no", known="no beams (https://example.org)"
    )
    result = Result([("tiny", raised)], {}, {}, {}, 1, 1)
    assert result.verdict == "INCOMPLETE"
    assert "p was judged on nothing" in result.last_line()
