"""`assert_conforms`: a right peer passes in silence; every other raises, and says where, what, which and how again."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import ROOT, python

pytest.importorskip("rich", reason="needs rich: the message is laid out with it")

from command_line import Ours, at, raising

import t5g2ref
from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.commands import run as judging
from conformance.defects.all import find
from conformance.errors import PeerUnavailable, UsageError
from conformance.peers.protocol import Skip
from conformance.peers.reference import ReferencePeer
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.testing import assert_conforms
from t5g2ref import bundled
from t5g2ref.backend import NUMPY

TINY = str(bundled("tiny"))
ONE: dict[str, Any] = {"ckpt": TINY, "lane": "fp32", "cases": ["short"]}


def refused(peer: Any, **asked: Any) -> str:
    """The message that it raises."""
    with pytest.raises(AssertionError) as caught:
        assert_conforms(peer, **(ONE | asked))
    return str(caught.value)


class Skipping(Ours):
    def run(self, case: Case, dump: Dump) -> None:
        if case.name == "short":
            raise Skip("no short sentences", "https://example.org/1")
        super().run(case, dump)


class Lacking(Ours):
    probed = False  # it is run once
    lacks = ("padding", "images", "classes", "labels", "positions", "cache", "rows")


# Peers


def test_a_right_peer_passes_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert_conforms(Ours(), **ONE)
    assert_conforms(ReferencePeer(NUMPY, "bfloat16"), ckpt=TINY, lane="bf16", cases=["short"])
    assert capsys.readouterr() == ("", "")


def test_without_a_lane_the_exact_one_belongs_to_it() -> None:
    class Cast(ReferencePeer):
        def weights(self) -> Any:
            return ((name, value * np.float32(1.5) if "v_proj" in name else value) for name, value in super().weights())

    assert_conforms(Cast(NUMPY, "float32"), **ONE)
    message = refused(Cast(NUMPY, "float32"), lane=None)
    assert "VERDICT: DEVIATES" in message
    assert "weights." in message
    assert message.endswith(f"  reproduce       assert_conforms(peer, ckpt={TINY!r}, lane='exact')")


def test_a_wrong_one_is_told_where_what_which_and_how_again() -> None:
    (fault,) = (fault for fault in find(["D31 right short"]) if fault.key == "D31 right short")
    peer = FaultyPeer(fault.inject)
    first, *lines = refused(peer, cases=["short", "window"]).splitlines()
    assert re.match(
        r"VERDICT: DEVIATES \(on 2 of \d+ cases\) at encoder.text_model.layers.0.self_attn.mask \(mask", first
    )
    assert "  first bad tap   encoder.text_model.layers.0.self_attn.mask   (local anchor, call 0)" in lines
    assert any(line.startswith("  what            mask: query (0, 0): 1 keys differ from the rule") for line in lines)
    assert any(line.startswith("  it is           D31 ") for line in lines)
    assert lines[-1] == f"  reproduce       assert_conforms(peer, ckpt={TINY!r}, lane='fp32', cases=['short'])"
    with pytest.raises(AssertionError) as again:
        exec(lines[-1].split(maxsplit=1)[1], {"assert_conforms": assert_conforms, "peer": peer})
    assert "(mask, D31;" in str(again.value).splitlines()[0]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (at("decoder.layers.2.mlp.product", lambda x: None), "missing"),
        (at("decoder.layers.2.mlp.product", lambda x: np.where(x == x.max(), np.nan, x).astype(x.dtype)), "nan"),
        (at("decoder.layers.2.mlp.product", lambda x: x[:, :-1]), "shape"),
        (at("decoder.layers.2.mlp.product", lambda x: x.astype(np.float16)), "dtype"),
        (at("decoder.layers.2.mlp.product", lambda x: x * np.float32(1.01)), "values"),
    ],
)
def test_what_cannot_pass_does_not(change: Callable[..., Any], status: str) -> None:
    message = refused(Ours(change=change))
    assert message.startswith("VERDICT: DEVIATES")
    assert "  first bad tap   decoder.layers.2.mlp.product" in message
    assert f"  what            {status}: " in message


def test_a_peer_that_raises_skips_or_lacks_is_no_pass() -> None:
    for peer, why in (
        (Ours(change=raising(RuntimeError("out of luck"))), "out of luck"),
        (Skipping(), "no short sentences (https://example.org/1)"),
        (Lacking(), "the peer lacks rows"),
    ):
        message = refused(peer, cases=["short", "eoi"])
        assert message.startswith("VERDICT: INCOMPLETE"), message
        assert why in message
        assert ("if it cannot" in message) == ("out of luck" in why)  # nobody else raised


def test_what_deviates_comes_before_what_was_not_judged() -> None:
    peer = Skipping(change=at("decoder.layers.2", lambda x: x * 2))
    lines = refused(peer, cases=["short", "eoi"]).splitlines()
    assert re.match(r"VERDICT: DEVIATES \(on 2 of \d+ cases\) at decoder.layers.2 \(values", lines[0])
    assert lines[-1].endswith("cases=['eoi'])")
    assert any("no short sentences" in line for line in lines)


def test_who_stops_the_peer_stops_the_tests() -> None:
    class Stopped(Ours):
        def run(self, case: Case, dump: Dump) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assert_conforms(Stopped(), **ONE)


def test_what_is_required_is_all_that_counts(tmp_path: Path) -> None:
    asked = ONE | {"cases": ()}
    assert_conforms(Lacking(), **asked, require="text")
    assert_conforms(Skipping(), **asked, require=["eoi"])
    (tmp_path / "cases.toml").write_text('cases = ["eoi"]')
    assert_conforms(Skipping(), **asked, require=tmp_path / "cases.toml")
    assert "skips case short" in refused(Skipping(), cases=(), require=["eoi", "short"])


def test_known_deviations_pass_and_stale_ones_do_not(tmp_path: Path) -> None:
    (known := tmp_path / "known.toml").write_text(
        '[[deviation]]\npeer = "ours"\ncase = "short"\nstatus = "skipped"\nreason = "later"\nlink = "https://example.org"\n'
    )
    assert_conforms(Skipping(), **(ONE | {"cases": ["short", "eoi"]}), known=known)
    assert "a known skip is no longer seen: later" in refused(Ours(), known=known)


# Functions


@pytest.fixture(scope="module")
def logits() -> Callable[..., Any]:
    model = t5g2ref.load(TINY, "float32")

    def mine(*, input_ids: Any, attention_mask: Any, decoder_input_ids: Any, decoder_attention_mask: Any) -> Any:
        masks = {"attention_mask": attention_mask, "decoder_attention_mask": decoder_attention_mask}
        return model(input_ids, decoder_input_ids, **masks).logits

    return mine


@pytest.mark.slow
def test_a_function_is_judged_on_the_text_cases_that_it_can_do(logits: Callable[..., Any]) -> None:
    asked: list[set[str]] = []

    def watched(**given: Any) -> Any:
        asked.append({name for name, value in given.items() if value is not None})
        return logits(**given)

    assert_conforms(watched, ckpt=TINY)
    assert {"input_ids", "decoder_input_ids"} in asked, "a mask that is not given is None"
    assert {"input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"} in asked


def test_a_list_will_do_and_a_half_type_may_be_widened(
    logits: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "diagnoses", lambda *_: [])
    assert_conforms(lambda **given: [*logits(**given)], ckpt=TINY, cases=["short"])
    wide = t5g2ref.load(TINY, "bfloat16")

    def half(*, input_ids: Any, decoder_input_ids: Any, **masks: Any) -> Any:
        found = wide(input_ids, decoder_input_ids, **masks).logits
        assert found.dtype == np.float32
        return found

    assert_conforms(half, ckpt=TINY, lane="bf16", cases=["short"])
    assert "VERDICT: DEVIATES" in refused(half)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda x: x * np.float32(1.001), "values: "),
        (lambda x: x * np.nan, "nan: "),
        (lambda x: x[:, :-1], "shape: "),
        (lambda x: x[:, -1:], "shape: expected B T V = (1, 4, 311), found (1, 1, 311): one position; to show each,"),
        (lambda x: None, "shape: "),
        (lambda x: x.astype("U8"), "dtype: "),
    ],
)
def test_a_wrong_function(
    logits: Callable[..., Any], change: Callable[[Any], Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "diagnoses", lambda *_: [])  # these take seconds; test_black_box.py is about them

    def mine(**given: Any) -> Any:
        return change(logits(**given))

    message = refused(mine)
    assert re.match(r"VERDICT: DEVIATES on logits alone \(on 1 of \d+ cases\) at logits ", message)
    assert "\nmine fails case short" in message
    assert f"  what            {what}" in message


@pytest.mark.parametrize(
    ("given", "asked", "message"),
    [
        (lambda **_: 0, {"ckpt": None}, "a function has one checkpoint's weights"),
        (lambda **_: 0, {"ckpt": "tiny"}, "a function has one checkpoint's weights"),
        (lambda **_: 0, {"lane": "exact"}, "a function shows no weights"),
        (Ours(), {"lane": "fp64"}, "expected one of exact, fp32, bf16, fp16"),
        (Ours(), {"lane": "bf16"}, "ours runs in float32"),
        (Ours(), {"require": "text"}, "give one of them"),
        (Ours(), {"cases": (), "require": ()}, "names no case"),
        (Ours(), {"cases": ["nothing*"]}, "no case matches"),
        (Ours(), {"cases": (), "require": ["nothing"]}, "no case is called nothing"),
    ],
)
def test_what_makes_no_sense_is_no_verdict(given: Any, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        assert_conforms(given, **(ONE | asked))


def test_what_is_no_peer() -> None:
    with pytest.raises(PeerUnavailable, match="a object without versions, open, run, close"):
        assert_conforms(object(), **ONE)  # type: ignore[arg-type]


# Under pytest


@pytest.mark.slow
def test_three_lines_under_pytest(tmp_path: Path) -> None:
    """The report shows the test's own line, and the message; nothing of ours in between."""
    (tmp_path / "test_port.py").write_text(
        textwrap.dedent(
            """\
            from command_line import Ours, at
            from conformance.testing import assert_conforms

            def test_right():
                assert_conforms(Ours(), lane="fp32", cases=["short"])

            def test_wrong():
                peer = Ours(change=at("decoder.layers.2", lambda x: x * 2))
                assert_conforms(peer, lane="fp32", cases=["short"])
            """
        )
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = python(
        *("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_port.py"),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert '>       assert_conforms(peer, lane="fp32", cases=["short"])' in done.stdout
    assert "E         first bad tap   decoder.layers.2 " in done.stdout
    assert "result_of(" not in done.stdout


# The pytest plugin


PORT = """\
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.defects.all import FAULTS


def test_right(conforms):
    conforms(FaultyPeer(), ckpt={ckpt!r}, lane="fp32", cases=["short"])


def test_wrong(conforms):
    conforms(FaultyPeer(next(f.inject for f in FAULTS if f.id == "D01")), ckpt={ckpt!r}, lane="fp32", cases=["short"])
"""


def test_the_fixture_of_the_plugin_is_the_assertion(tmp_path: Path) -> None:
    (tmp_path / "test_port.py").write_text(PORT.format(ckpt=str(bundled("tiny"))))
    given = ("-p", "t5g2ref", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    done = python("-m", "pytest", *given, str(tmp_path / "test_port.py"))
    assert done.returncode == 1, done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "D01 embedding scale omitted" in done.stdout


def test_the_plugin_costs_nothing_where_it_is_not_used() -> None:
    program = (
        "import sys, conformance.commands.pytest_plugin; print([m for m in ('numpy', 'rich') if m in sys.modules])"
    )
    assert python("-c", program).stdout.strip() == "[]"
