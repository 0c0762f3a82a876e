"""A process as a peer: an honest one conforms, and whatever another one does ends in a message, never in a hang."""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dumping import TINY, case_of, tiny
from processes import ROOT, python

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from conformance.activations import Dump
from conformance.cases import generating
from conformance.errors import PeerUnavailable
from conformance.exchange.reading import DumpError
from conformance.judge.generated import judge_generated
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.peers.process import ProcessPeer, create
from conformance.peers.protocol import Skip
from conformance.report.called import labels, renamed
from conformance.target import Target

HELLO = {"name": "port", "dtype": "float32", "versions": {"port": "2.0"}, "taps": ["*"]}

HONEST = """\
import json, sys
sys.path[:0] = {paths!r}
import numpy as np
from safetensors.numpy import load_file
from conformance.cases.case import Case, Run
from conformance.exchange import writing
from dumping import least, recorded, tiny
from pathlib import Path

target = None
for line in sys.stdin:
    asked = json.loads(line)
    if "hello" in asked:
        target = tiny(asked["checkpoint"])
        print(json.dumps({hello!r}), flush=True)
        continue
    given = load_file(asked["inputs"])
    runs = []
    for number, run in enumerate(asked["runs"]):
        fields = {{field: given[name] for field, name in run["inputs"].items()}}
        splits = [c["decoder"][1] - c["decoder"][0] for c in asked["calls"] if c["run"] == number]
        cached = tuple(splits) if run["cached"] else None
        runs.append(Run(**fields, splits=cached, derived=run["derived"], logits_to_keep=run["logits_to_keep"]))
    case = Case(asked["run"], asked["title"], tuple(runs), asked["task"], asked["num_labels"])
    print("working on", asked["run"], file=sys.stderr)
    names = []
    for number, call in enumerate(({choose})(target, case, recorded(target, case))):
        writing.tensors(Path(asked["out"], str(number) + ".safetensors"), call)
        names.append(str(number) + ".safetensors")
    print(json.dumps({{"done": names}}), flush=True)
"""

GENERATING = """\
import json, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from safetensors.numpy import load_file
from conformance.cases.prompt import Prompt
from conformance.exchange import writing
from conformance.selftest.speaking_peer import SpeakingPeer
from dumping import tiny

peer = SpeakingPeer()
for line in sys.stdin:
    asked = json.loads(line)
    if "hello" in asked:
        peer.open(tiny(asked["checkpoint"]))
        print(json.dumps({hello!r} | {{"generates": {generates}}}), flush=True)
        continue
    given = load_file(asked["inputs"])
    answer = peer.generate(Prompt(**given, new=asked["new"], beams=asked["beams"], stop=tuple(asked["stop"])))
    tensors = {{n: v for n, v in vars(answer).items() if v is not None}}
    tensors = ({change})(tensors)
    writing.tensors(Path(asked["out"], "a.safetensors"), tensors)
    print(json.dumps({{"done": ["a.safetensors"]}}), flush=True)
"""

Start = Callable[..., ProcessPeer]


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny()


@pytest.fixture
def start(tmp_path: Path, target: Target, request: pytest.FixtureRequest) -> Start:
    """`start(program)` → an opened peer of that Python program, closed after the test."""

    def call(program: str, timeout: float = 60.0, opened: bool = True) -> ProcessPeer:
        path = tmp_path / "port.py"
        path.write_text(program)
        peer = create(f"process:{shlex.quote(sys.executable)} {shlex.quote(str(path))}", timeout)
        request.addfinalizer(peer.close)
        if opened:
            peer.open(target)
        return peer

    return call


def honest(choose: str = "least", **hello: Any) -> str:
    paths = [str(ROOT), str(ROOT / "tests" / "support")]
    return HONEST.format(paths=paths, hello=HELLO | hello, choose=choose)


def answering(body: str, **hello: Any) -> str:
    """A program that greets as it should, and does `body` for each case; `asked` is the request."""
    lines = [
        "import json, os, shutil, sys, time",
        "from pathlib import Path",
        "sys.stdin.readline()",
        f"print({json.dumps(HELLO | hello)!r}, flush=True)",
        "for line in sys.stdin:",
        "    asked = json.loads(line)",
        textwrap.indent(textwrap.dedent(body), "    "),
    ]
    return "\n".join(lines)


def judged(peer: ProcessPeer, target: Target, name: str = "short") -> Judgement:
    return judge(peer, target, case_of(target, name))


# An honest one


def test_it_conforms(start: Start, target: Target) -> None:
    peer = start(honest())
    assert peer.versions() == {"port": "2.0"}
    for name in ("short", "second-source", "image", "sequence-multi"):
        result = judged(peer, target, name)
        assert result.error == ""
        assert [f.tap for f in result.local if not f.passed and f.status != "missing"] == []


def test_it_conforms_at_the_taps_that_it_names(start: Start, target: Target) -> None:

    names = ["encoder.text_model.inputs_embeds", "encoder.text_model.norm", "decoder.embed_tokens", "logits"]
    layers = ["encoder.text_model.layers.[0-9]", "decoder.layers.[0-9]"]
    peer = start(honest(taps=names + layers))
    for name in ("short", "padded-left-cached", "token"):
        assert judged(peer, target, name).passed
    assert judged(start(honest("lambda t, c, calls: calls")), target, "short").passed


def test_the_public_command(start: Start) -> None:
    peer = start(honest("lambda t, c, calls: calls"), opened=False)
    name = peer.name.replace("process:", "process:float32:")
    arguments = ["--peer", name, "--ckpt", TINY, "--case", "short", "--lane", "fp32", "--no-progress"]
    done = python("-m", "conformance", *arguments, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["VERDICT: CONFORMS (on 1 of 25 cases)"], done.stderr
    assert done.returncode == 0


def test_reports_call_it_by_its_greeting(start: Start, tmp_path: Path) -> None:
    """And a file of known deviations by what was asked for, which no program can choose."""
    peer = start(answering('print(json.dumps({"skip": "not yet"}), flush=True)', name="<b>[bold]mine"), opened=False)
    entry = '[[deviation]]\ncase = "short"\nstatus = "skipped"\nreason = "a stub"\nlink = "https://x.org/1"\n'
    (tmp_path / "known.toml").write_text(entry + f'peer = "process:{glob_free(peer.name)}"\n')
    files = [f"--{kind}={tmp_path / kind}" for kind in ("json", "html", "junit")]
    given = ["--peer", peer.name, "--ckpt", TINY, "--case", "short", "--lane", "fp32", "--no-progress", *files]
    done = python("-m", "conformance", *given, "--known", str(tmp_path / "known.toml"), timeout=300)
    assert done.stdout.splitlines()[-1] == (
        "VERDICT: INCOMPLETE; known and not judged: short (on 1 of 25 cases) - <b>[bold]mine was judged on nothing"
    )
    assert "case   <b>[bold]mine  worst place" in done.stdout
    assert "".join(f"<b>[bold]mine: {peer.name}".split()) in "".join(done.stdout.split())  # a long path is broken
    document = json.loads((tmp_path / "json").read_text())
    assert [j["peer"] for j in document["judgements"]] == ["<b>[bold]mine"]
    assert document["peers"] == {"<b>[bold]mine": peer.name}
    page = (tmp_path / "html").read_text()
    assert "&lt;b&gt;[bold]mine" in page
    assert "<b>[bold]mine" not in page
    assert f'<property name="peer" value="{peer.name}"' in (tmp_path / "junit").read_text()


def glob_free(name: str) -> str:
    return name.removeprefix("process:").replace("[", "[[]")


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ({}, ["process:a", "dump"]),
        ({"process:a": "mine"}, ["mine", "dump"]),
        ({"process:a": "dump"}, ["dump [process:a]", "dump"]),
        ({"process:a": "transformers:sdpa"}, ["transformers:sdpa [process:a]", "dump"]),
        ({"process:a": "mine", "dump": "mine"}, ["mine [process:a]", "mine [dump]"]),
        ({"process:a": ""}, ["process:a", "dump"]),
    ],
)
def test_no_name_stands_for_two(called: dict[str, str], expected: list[str]) -> None:
    assert list(labels(["process:a", "dump"], called).values()) == expected


def test_a_note_calls_it_so_too() -> None:
    known = {"process:a": "mine", "process:ab": "yours"}
    assert renamed("process:ab shows no weights", known) == "yours shows no weights"
    assert renamed("nothing of process:a", known) == "nothing of process:a"


def test_what_it_is_told(start: Start, target: Target, tmp_path: Path) -> None:
    program = answering(
        f'Path({str(tmp_path / "asked")!r}).write_text(line); print(json.dumps({{"error": "no"}}), flush=True)'
    )
    judged(start(program), target, "padded-left-cached")
    asked = json.loads((tmp_path / "asked").read_text())
    assert asked["run"] == "padded-left-cached"
    assert [call["decoder"] for call in asked["calls"]] == [[0, 4], [4, 5], [5, 7]]
    assert asked["runs"][0]["inputs"]["attention_mask"] == "run0.attention_mask"
    assert not Path(asked["inputs"]).exists()  # and not a trace of it is left


def test_skip_with_a_link(start: Start, target: Target) -> None:
    peer = start(answering('print(json.dumps({"skip": "no pictures", "link": "https://x.org/1"}), flush=True)'))
    result = judged(peer, target)
    assert (result.skipped, result.passed, result.deviates) == ("no pictures (https://x.org/1)", False, False)
    with pytest.raises(Skip), Dump() as dump:
        peer.run(case_of(target, "short"), dump)


# Others

CASES = {
    "error": ('print(json.dumps({"error": "out of \\x1b[1mmemory"}), flush=True)', "it says: out of  [1mmemory"),
    "crash": ('print("bad thing", file=sys.stderr); sys.exit(7)', "ended with exit status 7\n    bad thing"),
    "traceback": ("raise ValueError('deep inside')", "exit status 1"),
    "signal": ("os.kill(os.getpid(), 9)", "signal SIGKILL"),
    "garbage": ('print("loading weights...", flush=True)', "answered 'loading weights...', expected a line of JSON"),
    "a list": ('print("[]", flush=True)', "answered a JSON list, expected an object"),
    "not text": ('sys.stdout.buffer.write(b"\\xff\\n"); sys.stdout.flush()', "expected a line of JSON"),
    "a long line": ('print("x" * 2_000_000, flush=True)', "a line of more than 1048576 bytes"),
    "a line without end": (
        'while True: sys.stdout.write("x" * 65536); sys.stdout.flush()',
        "a line of more than 1048576 bytes",
    ),
    "closed output": ("sys.stdout.flush(); os.close(1); time.sleep(60)", "closed its standard output"),
    "closed input": ("os.close(0); os.close(1); time.sleep(60)", "closed its standard output"),
    "nothing in time": ("time.sleep(60)", "gave no answer within 1.5 s"),
    "half a line": ('print("{", end="", flush=True); time.sleep(60)', "gave no answer within 1.5 s"),
    "much on stderr": ('os.write(2, b"x" * 1_000_000 + b"\\nlast\\n"); sys.exit(3)', "exit status 3"),
    "nothing known": ('print(json.dumps({"well": 1}), flush=True)', "expected done, skip or error"),
    "done is text": ('print(json.dumps({"done": "0.safetensors"}), flush=True)', "expected done, skip or error"),
    "no file": ('print(json.dumps({"done": ["0.safetensors"]}), flush=True)', "no such file in the folder"),
    "too few files": ('print(json.dumps({"done": []}), flush=True)', "expected 1 calls, found 0"),
    "a file elsewhere": ('print(json.dumps({"done": ["../inputs.safetensors"]}), flush=True)', "without .. in it"),
    "an absolute file": ('print(json.dumps({"done": [asked["inputs"]]}), flush=True)', "path inside the folder"),
    "a link out": (
        'os.symlink(asked["inputs"], asked["out"] + "/a"); print(json.dumps({"done": ["a"]}), flush=True)',
        "a link out of the folder",
    ),
    "no tap": (
        'shutil.copy(asked["inputs"], asked["out"] + "/a"); print(json.dumps({"done": ["a"]}), flush=True)',
        "'run0.input_ids' is no tap of call 0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_whatever_it_does_is_said(start: Start, target: Target, name: str) -> None:
    body, message = CASES[name]
    peer = start(answering(body), timeout=1.5)
    began = time.monotonic()
    result = judged(peer, target)
    assert time.monotonic() - began < 10
    assert message in result.error
    assert "\x1b" not in result.error
    assert len(result.error) < 6000
    assert not result.passed
    assert not result.deviates


def test_it_is_started_again_after_a_crash(start: Start, target: Target, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    body = f"""
        if not os.path.exists({mark!r}):
            open({mark!r}, "w").close()
            sys.exit(1)
        print(json.dumps({{"skip": "second life"}}), flush=True)
    """
    peer = start(answering(body))
    assert "exit status 1" in judged(peer, target).error
    assert judged(peer, target).skipped == "second life"


def test_what_it_says_unasked(start: Start, target: Target) -> None:
    peer = start(answering('print(json.dumps({"skip": "a"}) + "\\nand more", flush=True)'))
    judged(peer, target)
    assert "said 'and more" in judged(peer, target).error


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('no GPU here')", "no GPU here"),
        ("print('{}')", "peer.name is None"),
        (f"print({json.dumps(HELLO | {'name': 'x' * 65})!r})", "expected at most 64 characters"),
        (f"print({json.dumps(HELLO | {'name': 'a' + chr(27) + '[2J'})!r})", "expected a line of printable text"),
        (f"print({json.dumps(HELLO | {'name': 'a' + chr(0x202E)})!r})", "expected a line of printable text"),
        (f"print({json.dumps(HELLO | {'name': ' '})!r})", "expected a name that can be seen"),
        ('print(\'{"error": "no weights"}\', flush=True)', "it refuses: no weights"),
        ('print(\'{"name": "x", "dtype": "float8"}\')', "peer.dtype is 'float8', expected one of"),
        ('print(\'{"name": "x", "dtype": "bfloat16"}\')', "not float32; name it process:bfloat16:COMMAND"),
        ('print(\'{"name": "x", "dtype": "float32", "taps": 3}\')', "taps are 3, expected a list"),
        ('print(\'{"name": "x", "dtype": "float32", "layouts": {"q": "B"}}\')', "'q' is no tap"),
    ],
)
def test_a_handshake_that_is_none(start: Start, target: Target, program: str, message: str) -> None:
    peer = start(program, opened=False)
    with pytest.raises(PeerUnavailable) as raised:
        peer.open(target)
    assert message in str(raised.value)


def test_a_command_that_is_none(target: Target) -> None:
    for name, message in (("process:", "no command in it"), ("process:'a", "No closing quotation")):
        with pytest.raises(PeerUnavailable, match=message):
            create(name)
    with pytest.raises(PeerUnavailable, match="No such file"):
        create("process:/nowhere/port").open(target)


def test_the_type_is_in_the_name() -> None:
    peer = create("process:bfloat16:port --fast:yes")
    assert (peer.dtype, peer.name) == ("bfloat16", "process:bfloat16:port --fast:yes")
    assert create("process:port").dtype == "float32"


def test_a_dump_error_is_one(start: Start, target: Target) -> None:
    peer = start(answering('print(json.dumps({"done": [""]}), flush=True)'))
    with pytest.raises(DumpError, match="a file is called ''"), Dump() as dump:
        peer.run(case_of(target, "short"), dump)


# A black box

OUTSIDE = "lambda target, case, calls: [{'logits': call['logits']} for call in calls]"


def test_a_process_that_shows_logits_alone(start: Start, target: Target) -> None:
    peer = start(honest(OUTSIDE, taps=["logits"], lacks=["images", "cache"]))
    found = judged(peer, target)
    assert found.passed, (found.error, found.culprit)
    assert found.outside == "logits alone"
    assert peer.lacks == ("images", "cache")


def test_a_process_that_lacks_what_nobody_knows(start: Start) -> None:
    with pytest.raises(PeerUnavailable, match=r"lacks is .*, expected a list of words among images, cache"):
        start(honest(OUTSIDE, taps=["logits"], lacks=["pictures"]))


# Its own generation


def generating_program(change: str = "lambda tensors: tensors", generates: object = True) -> str:
    return GENERATING.format(
        paths=[str(ROOT), str(ROOT / "tests" / "support")], hello=HELLO, change=change, generates=generates
    )


def generated(peer: ProcessPeer, target: Target, name: str) -> Judgement:
    (case,) = (case for case in generating.build(target.config) if case.name == name)
    return judge_generated(peer, target, case, repeat=False)


@pytest.mark.parametrize("name", ["generate-second", "generate-stop", "generate-beams"])
def test_a_process_that_generates_is_judged(start: Start, target: Target, name: str) -> None:
    found = generated(start(generating_program()), target, name)
    assert found.passed, (found.culprit, found.error)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("lambda t: t | {'ids': t['ids'] * 0 + 33}", "generate.choice"),
        ("lambda t: t | {'more': t['ids']}", "has 'more', expected only ids, logits, log_probs, scores"),
        ("lambda t: {'logits': t['logits']}", "has no ids"),
    ],
)
def test_what_a_process_answers_wrongly_is_said(start: Start, target: Target, change: str, said: str) -> None:
    found = generated(start(generating_program(change)), target, "generate")
    assert not found.passed
    assert said in (found.error or (found.culprit.tap if found.culprit else ""))


def test_a_process_that_does_not_generate_is_skipped(start: Start, target: Target) -> None:
    found = generated(start(generating_program(generates=False)), target, "generate-second")
    assert found.skipped == "it has no generate()"


def test_a_greeting_says_in_true_or_false_whether_it_generates(start: Start) -> None:
    with pytest.raises(PeerUnavailable, match="generates is 'yes', expected true or false"):
        start(generating_program(generates="'yes'"))
