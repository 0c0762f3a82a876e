"""The two worked examples do what they say: a peer in forty lines, and a dump by a program that knows nothing of us."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from processes import python

pytest.importorskip("torch", reason="needs torch: the examples are programs on it")
pytest.importorskip("transformers", reason="needs transformers: it is the port of the examples")
pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from dumping import case_of, tiny

from conformance import __main__ as command
from conformance import examples
from conformance.judge.judge import judge
from conformance.peers import entry_points as plugins
from t5g2ref import bundled
from t5g2ref.backend import NUMPY

pytestmark = [pytest.mark.peer, pytest.mark.slow]  # minutes in all

FOLDER = Path(examples.__file__).parent
TINY = str(bundled("tiny"))
CASES = ("short", "padded-left-cached", "image", "sequence-multi", "loss")

# A fault in decoder layer 3, put into transformers from outside: the program itself is not touched.
FAULTY = """\
import runpy, sys
import torch, transformers

load = transformers.PreTrainedModel.from_pretrained.__func__

def faulty(cls, *args, **kwargs):
    model = load(cls, *args, **kwargs)
    mlp = model.model.decoder.layers[3].mlp
    {fault}
    return model

transformers.PreTrainedModel.from_pretrained = classmethod(faulty)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FAULTS = {
    "scaled": "mlp.register_forward_hook(lambda module, args, out: out * 1.01)",
    "swapped": "mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj",
}


def selected(names: tuple[str, ...]) -> list[str]:
    return [word for name in names for word in ("--case", name)]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    assert command.main(["export", str(folder), "--ckpt", "tiny", "--no-progress", *selected(CASES)]) == 0
    return folder


def dumped(cases: Path, dump: Path, *start: str) -> None:
    """The program as a user runs it, far from our packages."""
    program = [*start, str(FOLDER / "hooks_dump.py"), str(cases), TINY, str(dump)]
    given = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = python(*program, timeout=300, cwd=dump.parent, env=given)
    assert done.returncode == 0, done.stderr


def check(dump: Path, *arguments: str, names: tuple[str, ...] = CASES) -> int:
    return command.main(["check", str(dump), "--ckpt", "tiny", "--no-progress", *arguments, *selected(names)])


def test_forty_lines_are_forty() -> None:
    lines = (FOLDER / "forty_lines.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


def test_the_dump_uses_nothing_of_ours() -> None:
    code = (FOLDER / "hooks_dump.py").read_text()
    imports = [line for line in code.splitlines() if line.lstrip().startswith(("import ", "from "))]
    assert imports
    assert not [line for line in imports if "conformance" in line or "t5g2ref" in line]


def test_a_peer_in_forty_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    point = EntryPoint("mine", "conformance.examples.forty_lines:create", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda **wanted: EntryPoints([point]).select(**wanted))
    peer, target = plugins.find("mine", NUMPY), tiny()
    assert peer is not None
    peer.open(target)
    for name in ("short", "padded-left", "images", "loss"):
        result = judge(peer, target, case_of(target, name))
        assert result.passed, (result.error, result.culprit)
    assert "cached decoding" in judge(peer, target, case_of(target, "image")).skipped
    peer.close()


def test_a_program_of_its_own_conforms(cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dumped(cases, tmp_path / "dump")
    assert check(tmp_path / "dump") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "VERDICT: CONFORMS (on 5 of 25 cases)"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_decoder_layer_3_is_found_there(
    cases: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY.format(fault=FAULTS[fault]))
    dumped(cases, tmp_path / "dump", str(tmp_path / "faulty.py"))
    assert check(tmp_path / "dump", "--json", str(tmp_path / "found.json")) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    name = {"scaled": "", "swapped": ", D53"}[fault]  # gate and up exchanged; 1 % too much is no catalogued defect
    assert last.startswith(f"VERDICT: DEVIATES (on 5 of 25 cases) at decoder.layers.3 (values{name};")
    document: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert [j["culprit"]["tap"] for j in document["judgements"]] == ["decoder.layers.3"] * len(CASES)
    rows = [dict(zip(document["columns"], row, strict=True)) for j in document["judgements"] for row in j["local"]]
    assert {row["tap"] for row in rows if row["status"] != "pass"} == {"decoder.layers.3"}
