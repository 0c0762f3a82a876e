"""tools/bench.py: what can be asked of it, what is refused, and what its help teaches."""

from __future__ import annotations

import copy
import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from processes import ROOT

from conformance.errors import UsageError
from t5g2ref.backend import NUMPY

sys.path.append(str(ROOT / "tools"))

import bench
from benchmark import options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "bfloat16"], "--dtype bfloat16: NumPy only emulates it"),
        (["--dtype", "float32", "--dtype", "float16"], "--dtype float16: NumPy only emulates it"),
        (["--what", "encoder"], "--what encoder: no such item; there are encode, forward"),
        (["--repeats", "0"], "--repeats 0: expected at least 1"),
        (["--backend", "cuda"], "no backend is called 'cuda'"),
        (["--backend", "numpy,"], "no backend is called ''"),
        (["--against", "sdpa,flash"], "--against flash: no such side; there are sdpa, eager, compiled, ctranslate2"),
        (["--lengths", "16,0"], "--lengths 16,0: expected whole numbers from 1, as 1,8"),
        (["--lengths", ""], "--lengths : expected whole numbers"),
        (["--batch", "-1"], "--batch -1: expected whole numbers"),
        (["--batch", "1;8"], "--batch 1;8: expected whole numbers"),
        (["--plot", "picture.gif"], "--plot picture.gif: expected a name that ends in .svg or .png"),
        (["--plot", "a.svg", "--what", "load"], "--plot: nothing here has a length: let --what have one of encode"),
        (["--json", "no/such/folder.json"], "--json no/such/folder.json: there is no folder no/such"),
        (["--plot", "no/such.svg"], "--plot no/such.svg: there is no folder no"),
        (["--json", "/"], "--json /: this is a folder, expected a file"),
    ],
)
def test_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_picture_needs_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    assert bench.main(["--plot", "a.svg"]) == 2
    assert 'bench: --plot needs matplotlib: pip install "t5g2ref[plot]"' in capsys.readouterr().err


def asked(*arguments: str) -> options.Options:
    return options.options_of(options.parser().parse_args(arguments))


def test_lists_and_what_they_are_without() -> None:
    plain, full = asked(), asked("--lengths=7, 512,7", "--batch=1,8", "--against=eager,sdpa")
    assert (plain.lengths, plain.batches, plain.against, plain.way) == ((), (1,), ("sdpa", "ctranslate2"), "sdpa")
    assert (full.lengths, full.batches, full.against, full.way) == ((7, 512), (1, 8), ("eager", "sdpa"), "eager")
    assert full.peer("compiled", "float32") == "transformers:sdpa:float32:cpu"
    assert asked("--against=ctranslate2").way == ""


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends of two cards by name: they hold another library's arrays."""

    def find(name: str) -> Any:
        return copy.copy(NUMPY) if name == "numpy" else SimpleNamespace(name=name, xp=math)

    monkeypatch.setattr(options, "find", find)


def test_backends_of_one_device(cards: None) -> None:
    both = asked("--backend=cupy:1,cupy-fast:1")
    assert ([backend.name for backend in both.backends], both.device) == (["cupy:1", "cupy-fast:1"], "cuda:1")
    assert (both.dtypes, both.against) == (("float32", "bfloat16"), ("sdpa", "eager", "compiled"))
    assert (both.ckpt, asked("--backend=cupy").device) == ("1b", "cuda")
    for names in ("numpy,cupy", "cupy,cupy-fast:1"):
        with pytest.raises(UsageError, match=f"--backend {names}: expected backends of one device"):
            asked(f"--backend={names}")


def test_columns_that_cannot_be_there_say_why(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from benchmark import columns

    monkeypatch.setattr(columns.ctranslate, "find_spec", lambda name: None)
    plain = {column.name: column.absent for column in columns.asked(asked())}
    assert plain == {"numpy": "", "sdpa": "", "ctranslate2": 'not installed: pip install "t5g2ref[ctranslate2]"'}
    (_, engine) = columns.asked(asked("--backend=cupy", "--against=ctranslate2"))
    assert (engine.whose, engine.absent) == ("engine", "here on the CPU alone, which is --backend numpy")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--help"])
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    assert "python tools/bench.py --backend cupy,cupy-fast --batch 1,8" in output
    assert "--plot lengths.svg" in output
    assert max(map(len, output.splitlines())) <= 100
