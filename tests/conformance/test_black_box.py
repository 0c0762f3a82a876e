"""A peer that shows logits alone, or log-probabilities: it is judged by what leaves it, and nobody right is blamed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from dumping import Calls, case_of, edit, tiny, write

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from conformance.activations import Dump
from conformance.cases import catalogue
from conformance.cases.case import Case
from conformance.cases.least import ENCODED, LOG_PROB_IDS, LOG_PROBS, LOGITS, least
from conformance.commands import command_line as command
from conformance.defects.all import FAULTS
from conformance.defects.injection import HEALTHY, Injection
from conformance.judge import evidence as evidence_of
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.legal import LEGAL
from t5g2ref.dtypes import DType
from t5g2ref.numerics import SDPA, Profile

pytestmark = pytest.mark.slow  # minutes in all

Array = np.ndarray[Any, Any]
Pair = tuple[Array, Array]
TYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")


def judged(
    name: str,
    injection: Injection = HEALTHY,
    dtype: DType = "float32",
    profile: Profile = SDPA,
    taps: tuple[str, ...] = (LOGITS,),
) -> Judgement:
    target, peer = tiny(), FaultyPeer(injection, dtype=dtype, profile=profile)
    peer.taps = taps
    peer.open(target)
    return judge(peer, target, case_of(target, name), repeat=False)


def fault(key: str) -> Injection:
    return next(f.inject for f in FAULTS if f.key == key)


# Logits


@pytest.mark.parametrize("taps", [(LOGITS,), (LOGITS, ENCODED)])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", LEGAL)
def test_legal_runs_are_not_blamed(name: str, dtype: DType, taps: tuple[str, ...]) -> None:
    profile, order = LEGAL[name]
    for case in ("short", "padded-left-cached", "image", "sequence-regression", "token"):
        found = judged(case, order, dtype, profile, taps)
        assert found.passed, (case, found.culprit, found.error, found.unclear)
        assert all(f.judged < 4 for f in found.local), "half of the limit: it was not drawn around them"
        assert found.outside.startswith("logits")


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_is_not_blamed(attention: str, dtype: str) -> None:
    from conformance.peers.find import create

    target, peer = tiny(), create(f"transformers:{attention}:{dtype}")
    cast(Any, peer).taps = (LOGITS,)
    peer.open(target)
    for name in ("window", "padded-left-cached", "image"):
        found = judge(peer, target, case_of(target, name), repeat=False)
        assert found.passed, (name, found.culprit, found.error)
    peer.close()


@pytest.mark.parametrize(
    ("key", "case"),
    [("D01", "short"), ("D32", "window"), ("D39", "padded-left"), ("D52", "short"), ("D54 few", "decoder-steps")],
)
def test_a_fault_is_found_by_logits_alone(key: str, case: str) -> None:
    found = judged(case, fault(key))
    assert found.deviates
    assert found.culprit is not None
    assert found.culprit.tap == LOGITS


def test_one_wrong_token_is_found() -> None:
    """The median token says nothing of it."""

    def one(call: int, name: str, value: Any) -> Any:
        if name != LOGITS:
            return value
        value = value.copy()
        value[0, 0] *= np.float32(1.001)
        return value

    found = judged("window", Injection(taps=lambda _: one))
    (finding,) = found.local
    assert finding.status == "values"
    assert finding.token == (0, 0)
    assert finding.median < 4


def test_padding_does_not_count() -> None:
    case = case_of(tiny(), "padded-right")
    valid = case.runs[0].decoder_valid
    assert not valid.all()

    def spoiled(call: int, name: str, value: Any) -> Any:
        return np.where(valid[..., None], value, 1e6).astype(value.dtype) if name == LOGITS else value

    assert judged("padded-right", Injection(taps=lambda _: spoiled)).passed


def test_the_encoder_is_told_from_the_decoder() -> None:
    both = (LOGITS, ENCODED)
    encoder, decoder = judged("window", fault("D32"), taps=both), judged("short", fault("D16"), taps=both)
    assert [f.passed for f in encoder.local] == [False, True]
    assert [f.passed for f in decoder.local] == [True, False]
    assert encoder.outside == "logits and the encoder's output"
    assert len(encoder.cumulative) == 2


def test_who_shows_part_of_its_inside_is_told_what_is_missing() -> None:
    found = judged("short", taps=(LOGITS, "decoder.layers.0"))
    assert "it shows too few taps to be judged; missing: encoder.text_model.inputs_embeds" in found.error
    assert "or logits alone" in found.error
    nothing = judged("short", taps=(ENCODED,))
    assert "missing: logits, or log_probs and log_prob_ids" in nothing.error


# Log-probabilities


def log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    return cast(Array, shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


class Teller(FaultyPeer):
    """It tells log-probabilities of ids that `choose` picks."""

    def __init__(self, choose: Callable[[Array], Array], change: Callable[[Pair], Pair], **more: Any) -> None:
        super().__init__(**more)
        self._choose, self._change = choose, change
        self.taps = (LOG_PROBS, LOG_PROB_IDS)

    def run(self, case: Case, dump: Dump) -> None:
        with Dump() as own:
            super().run(case, own)
            for call in range(own.calls):
                logits = np.asarray(own.get(call, LOGITS))
                ids = self._choose(logits)
                told = np.take_along_axis(log_softmax(logits), ids, -1)
                dump.new_call()
                for name, value in zip((LOG_PROBS, LOG_PROB_IDS), self._change((told, ids)), strict=True):
                    dump.put(name, value)


def everything(logits: Array) -> Array:
    return np.broadcast_to(np.arange(logits.shape[-1])[::-1], logits.shape).copy()


def top(logits: Array) -> Array:
    return np.argsort(-logits, -1)[..., :5]


def own(logits: Array) -> Array:
    return np.random.default_rng(3).integers(0, logits.shape[-1], (*logits.shape[:2], 1))


CHOICES = {"all": everything, "top": top, "own": own}


def told(
    choose: str,
    change: Callable[[Pair], Pair] = lambda pair: pair,
    case: str = "window",
    injection: Injection = HEALTHY,
    profile: Profile = SDPA,
) -> Judgement:
    target, peer = tiny(), Teller(CHOICES[choose], change, injection=injection, profile=profile)
    peer.open(target)
    return judge(peer, target, case_of(target, case))


@pytest.mark.parametrize("name", LEGAL)
@pytest.mark.parametrize("choose", CHOICES)
def test_legal_log_probabilities_are_not_blamed(choose: str, name: str) -> None:
    profile, order = LEGAL[name]
    for case in ("short", "padded-left-cached"):
        found = told(choose, case=case, injection=order, profile=profile)
        assert found.passed, (case, found.culprit, found.error)
        assert found.outside == "log-probabilities alone"
        assert found.logits["kl_ratio"] < 2
        assert ("flips" in found.logits) == (choose == "all"), "a first choice needs the whole distribution"


@pytest.mark.parametrize("choose", CHOICES)
def test_wrong_log_probabilities_deviate(choose: str) -> None:
    assert told(choose, injection=fault("D32")).deviates


def at(index: tuple[int, ...], value: float, of: int) -> Callable[[Pair], Pair]:
    def change(pair: Pair) -> Pair:
        pair[of][index] = value
        return pair

    return change


@pytest.mark.parametrize(
    ("choose", "change", "status", "words"),
    [
        ("top", lambda p: (p[0][:, :, 0], p[1]), "shape", "log_probs: expected B T k"),
        ("top", lambda p: (p[0][..., :2], p[1]), "shape", "have to agree"),
        ("top", lambda p: (p[0][:, 1:], p[1][:, 1:]), "shape", "log_probs: expected B T k"),
        ("top", lambda p: (p[0], p[1].astype(np.float32)), "dtype", "expected integers, found float32"),
        ("top", lambda p: (p[0].astype(np.float16), p[1]), "dtype", "expected float32"),
        ("top", at((0, 1, 2), 311, 1), "exact", "expected ids from 0 to 310, found 311 at (0, 1, 2)"),
        ("top", at((0, 1, 2), -1, 1), "exact", "found -1 at (0, 1, 2)"),
        ("top", lambda p: (p[0], p[1][..., [0, 0, 1, 2, 3]]), "exact", "has an id twice"),
        ("own", at((0, 3, 0), np.nan, 0), "nan", "found nan at (0, 3, 0)"),
        ("own", at((0, 3, 0), -np.inf, 0), "nan", "found -inf"),
        ("all", lambda p: (p[0] + np.float32(0.01), p[1]), "exact", "add up to 1.01, expected 1"),
        ("all", lambda p: (p[0] - np.float32(0.01), p[1]), "exact", "add up to 0.99, expected 1"),
        ("top", lambda p: (p[0] + np.float32(9), p[1]), "exact", "expected at most 1"),
    ],
)
def test_what_is_no_log_probability(choose: str, change: Callable[[Pair], Pair], status: str, words: str) -> None:
    finding = told(choose, change).culprit
    assert finding is not None
    assert finding.status == status
    assert words in finding.detail


def test_logits_and_log_probabilities_at_once_are_refused() -> None:
    target, peer = tiny(), Teller(top, lambda pair: pair)
    peer.open(target)

    def both(case: Case, dump: Dump, run: Any = peer.run) -> None:
        run(case, dump)
        dump.put(LOGITS, np.zeros((1, 1), np.float32))

    peer.run = both  # type: ignore[method-assign]
    found = judge(peer, target, case_of(target, "short"))
    assert "it shows logits and log_probs in call 0, expected one of them" in found.error


def test_other_bits_in_a_second_run_are_seen() -> None:
    turn = iter((0.0, 0.0, 0.0, 1e-3))  # two inputs come between the runs
    found = told("top", lambda p: (p[0] - np.float32(next(turn)), p[1]), case="short")
    assert "two runs of the same call differ first at log_probs" in found.unsteady


# A dump


def outside(calls: Calls) -> None:
    for call in calls:
        for name in [name for name in call if name != LOGITS]:
            del call[name]


def replaced(calls: Calls) -> None:
    outside(calls)
    for call in calls:
        logits = np.asarray(call.pop(LOGITS))
        ids = top(logits)
        call |= {LOG_PROBS: np.take_along_axis(log_softmax(logits), ids, -1), LOG_PROB_IDS: ids}


def check(folder: Path, case: str) -> int:
    return command.main(["check", str(folder), "--ckpt", str(tiny().folder), "--case", case, "--no-progress"])


@pytest.mark.parametrize("change", [outside, replaced])
def test_a_dump_of_logits_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any) -> None:
    status = check(write(tmp_path, "eoi-cached", change=change), "eoi-cached")
    out = " ".join(capsys.readouterr().out.split())
    assert status == 0, out
    assert "where a mistake is inside cannot be seen" in out


def test_a_dump_without_the_ids_of_its_log_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def without(calls: Calls) -> None:
        replaced(calls)
        del calls[0][LOG_PROB_IDS]

    assert check(write(tmp_path, "short", change=without), "short") == 3
    assert "lacks 1 of what every dump has to show: log_prob_ids (call 0)" in " ".join(capsys.readouterr().out.split())


def test_a_dump_that_loses_a_value_of_its_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It does not become a black box by that."""

    def without(calls: Calls) -> None:
        del calls[0]["decoder.layers.1"]

    assert check(write(tmp_path, "short", change=without), "short") == 3
    assert "decoder.layers.1" in capsys.readouterr().out


def test_a_dump_with_taps_by_other_names(tmp_path: Path) -> None:
    folder = write(tmp_path, "short")
    edit(folder, lambda document: document["cases"]["short"][0].update(taps={LOGITS: LOGITS}))
    assert check(folder, "short") == 0


def test_the_least_of_every_case() -> None:
    target = tiny()
    assert least(target.config, case_of(target, "eoi-cached"))[:2] == [LOGITS, LOGITS]
    assert least(target.config, case_of(target, "short").of_encoder()) == [ENCODED]


def test_ids_are_cut_as_their_log_probabilities_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken by ids of the whole vocabulary beside values of a part of it: no oracle is then held against the values.
    A case of many tokens keeps fewer of each, so that a file's line can hold it."""
    target = tiny("tiny")
    case = next(case for case in catalogue.build(target.config) if case.name == "short")
    shape = (*case.runs[0].decoder_input_ids.shape, target.config.decoder.vocab_size)
    logs = np.random.default_rng(7).standard_normal(shape)
    ids = np.broadcast_to(np.arange(shape[-1]), shape)
    for numbers, width in ((evidence_of.MOST_NUMBERS, shape[-1]), (8 * shape[0] * shape[1], 8)):
        monkeypatch.setattr(evidence_of, "MOST_NUMBERS", numbers)
        with Dump() as dump:
            dump.new_call()
            dump.put(LOG_PROBS, logs)
            dump.put(LOG_PROB_IDS, ids)
            seen = evidence_of.evidence(target, case, dump)
        place = (0, LOGITS)
        assert seen.values[place].shape[-1] == seen.ids[place].shape[-1] == width
        rows = logs.reshape(-1, shape[-1])
        wanted = np.take_along_axis(rows, seen.ids[place].reshape(len(rows), -1), -1)
        assert np.array_equal(seen.values[place].reshape(wanted.shape), wanted)
        ours = evidence_of.alike(seen, place, rows.reshape(seen.values[place].shape[:-1] + shape[-1:]))
        assert ours.shape == seen.values[place].shape
