"""Whatever a peer does, it is its own fault in plain words: the run goes on, and nothing of it is a pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from dumping import case_of, tiny

from conformance import __main__ as command
from conformance.activations import Dump
from conformance.commands import request as running
from conformance.judge.exact.moves import Moves
from conformance.judge.judge import judge
from conformance.peers.guard import PeerError, call, line, said
from conformance.peers.protocol import Skip, shows
from conformance.peers.reference import ReferencePeer
from t5g2ref.backend import NUMPY

Run = Callable[..., tuple[int, list[str], str]]


class Odd(ReferencePeer):
    """The reference in float32, but for what `given` replaces."""

    def __init__(self, name: str = "odd", **given: Any) -> None:
        super().__init__(NUMPY, "float32")
        self.name = name
        for method, value in given.items():
            setattr(self, method, value)


@pytest.mark.parametrize(
    ("taps", "words"),
    [
        (tuple(f"*a{n}" for n in range(50_000)), "its taps have 50000 patterns, expected at most 500 beside names"),
        (("*" * 5000,), "a pattern of its taps has 5000 characters, expected at most 1024"),
        ((), "its taps are"),
    ],
)
def test_patterns_are_few_and_short(taps: tuple[str, ...], words: str) -> None:
    with pytest.raises(PeerError, match=words):
        shows(Odd(taps=taps))


def test_names_of_taps_may_be_many() -> None:
    shown = shows(Odd(taps=(*(f"decoder.layers.{n}" for n in range(20_000)), "encoder.*")))
    assert [shown(name) for name in ("decoder.layers.7", "encoder.x", "decoder.layers.x")] == [True, True, False]


def leaves(*_: Any) -> Any:
    sys.exit(0)


def fails(*_: Any) -> Any:
    raise RuntimeError("boom\nVERDICT: CONFORMS")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "100")

    def call(*peers: Any, lane: str = "fp32") -> tuple[int, list[str], str]:
        known = dict(enumerate(peers))
        monkeypatch.setattr(running, "create", lambda name, backend: known[int(name)])
        words = [word for n in known for word in ("--peer", str(n))]
        status = command.main([*words, "--lane", lane, "--ckpt", "tiny-even", "--case", "short", "--no-progress"])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert [n for n, text in enumerate(out.splitlines()) if text.startswith("VERDICT")] == [out.count("\n") - 1]
        return status, out.splitlines(), err

    return call


@pytest.mark.parametrize("how", [leaves, fails])
@pytest.mark.parametrize("method", ["open", "versions", "run"])
def test_what_a_peer_raises_is_its_own_error(method: str, how: Callable[..., Any], run: Run) -> None:
    status, lines, _ = run(Odd(**{method: how}), Odd("right"))
    assert status == 3
    assert lines[-1] == "VERDICT: INCOMPLETE (on 1 of 25 cases) - odd could not be judged on case short"
    assert any(("SystemExit: 0" if how is leaves else "RuntimeError: boom") in text for text in lines)
    assert any(text.startswith("float32: worst local ratio") and "right" in " ".join(lines) for text in lines)


def test_what_it_raises_at_the_end_costs_no_result(run: Run) -> None:
    status, lines, _ = run(Odd(close=leaves))
    assert status == 0
    assert any(text == "note: odd: close() raised SystemExit: 0" for text in lines)


def test_a_command_that_leaves_is_no_pass(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "create", leaves)
    assert command.main(["--peer", "x", "--no-progress"]) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"versions": lambda: None}, "versions() gave None, expected names and versions as text"),
        ({"versions": lambda: {"a": 1}}, "versions() gave {'a': 1}, expected"),
        ({"taps": 5}, "its taps are 5, expected a tuple of names or patterns"),
        ({"taps": "*"}, "its taps are '*', expected"),
        ({"taps": ()}, "its taps are (), expected"),
        ({"taps": (5,)}, "its taps are (5,), expected"),
    ],
)
def test_what_it_says_of_itself_has_to_be_of_a_kind(given: dict[str, Any], words: str, run: Run) -> None:
    status, lines, _ = run(Odd(**given))
    assert status == 3
    assert any(words in text for text in lines)


def shown(change: Callable[[Dump], None]) -> Callable[[Any, Dump], None]:
    """A run that ends with something more."""

    def run(case: Any, dump: Dump) -> None:
        peer.run(case, dump)
        change(dump)

    peer = ReferencePeer(NUMPY, "float32")
    peer.open(tiny())
    return run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda dump: dump.new_call(), "it made 2 calls, expected 1"),
        (lambda dump: dump.put("logit", np.zeros(3)), "it shows logit in call 0, which is no tap of that call"),
        (lambda dump: dump.put("loss", np.float32(3)), "it shows loss in call 0, which is no tap of that call"),
        (lambda dump: dump.put("loss", [3.0]), "tap loss is a list, expected an array of NumPy or of a device"),
    ],
)
def test_what_is_too_much_is_no_pass(change: Callable[[Dump], None], words: str) -> None:
    target = tiny()
    peer = Odd(run=shown(change))
    peer.open(target)
    judged = judge(peer, target, case_of(target, "short"))
    assert words in judged.error
    assert not judged.passed


def test_a_tap_before_any_call_is_refused() -> None:
    with Dump() as dump, pytest.raises(ValueError, match="tap x was given before any call"):
        dump.put("x", np.zeros(1))


def test_a_masked_array_hides_nothing() -> None:
    with Dump() as dump:
        dump.new_call()
        dump.put("x", np.ma.masked_array(np.full(3, 7.0), mask=True))
        assert type(dump.get(0, "x")) is np.ndarray
        np.testing.assert_array_equal(dump.get(0, "x"), 7.0)


@pytest.mark.parametrize("case", ["image", "padded-left", "loss"])
def test_a_peer_cannot_change_the_question(case: str) -> None:
    """Inputs changed in place are the peer's own copy: it is judged by what it was asked."""
    target = tiny()
    asked = case_of(target, case)
    peer = Odd(run=(inner := ReferencePeer(NUMPY, "float32")) and _spoiling(inner))
    inner.open(target)
    judged = judge(peer, target, asked)
    assert judged.culprit is not None or judged.error
    for given, again in zip(asked.runs, case_of(target, case).runs, strict=True):
        for name in ("input_ids", "attention_mask", "pixel_values", "labels"):
            np.testing.assert_array_equal(getattr(given, name), getattr(again, name))


def _spoiling(inner: ReferencePeer) -> Callable[[Any, Dump], None]:
    def run(case: Any, dump: Dump) -> None:
        for given in case.runs:
            for array in (given.attention_mask, given.pixel_values, given.labels):
                if array is not None:
                    array[...] = 1
        inner.run(case, dump)

    return run


def test_a_probe_is_asked_with_arrays_of_its_own() -> None:
    from conformance.judge.exact.moves import examine_probe
    from conformance.judge.exact.probes import probes

    target = tiny()
    probe = next(iter(probes(target.config)))

    def spoil(case: Any, moves: Moves) -> None:
        for run in case.runs:
            run.input_ids[...] = 1

    before = [run.input_ids.copy() for run in probe.case.runs]
    examine_probe(Odd(run=spoil), target, "float32", probe)
    for run, ids in zip(probe.case.runs, before, strict=True):
        np.testing.assert_array_equal(run.input_ids, ids)


def test_peers_of_one_name_are_told_apart(run: Run) -> None:
    status, lines, _ = run(Odd("same", run=fails), Odd("same"))
    assert status == 3
    assert "same [0] could not be judged" in lines[-1]
    assert any("same [1]" in text.replace("\n", "") for text in lines)


def test_a_reason_cannot_be_a_verdict(run: Run) -> None:
    def skip(*_: Any) -> Any:
        raise Skip("no\nVERDICT: CONFORMS\x1b[31m")

    status, lines, _ = run(Odd(run=skip))
    assert status == 3
    assert lines[-1].endswith("odd skips case short: no VERDICT: CONFORMS [31m")


def test_skipping_without_a_word_is_no_pass(run: Run) -> None:
    def skip(*_: Any) -> Any:
        raise Skip("")

    status, lines, _ = run(Odd(run=skip))
    assert status == 3
    assert lines[-1].endswith("odd skips case short: it does not say why")


def test_foreign_words() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert said(Mute()) == "Mute: "
    assert said(ValueError("a\nVERDICT: b\x1b")) == "ValueError: a\n    VERDICT: b "
    assert line(SimpleNamespace(a=1)) == "namespace(a=1)"
    assert len(line("x" * 10**6)) == 1000
    with pytest.raises(KeyboardInterrupt):
        call("f()", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(PeerError, match=r"f\(\) raised ValueError: no"):
        call("f()", lambda: (_ for _ in ()).throw(ValueError("no")))
