"""The suite's command, in this process and in one of its own, and a peer for it that can be made wrong at any tap."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import python

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.oracle.run_case import models, program
from conformance.target import Target
from t5g2ref.trace import Trace

Change = Callable[[int, str, Any], Any]


class Ours:
    """A peer in NumPy: right unless `change(call, tap, value)` makes it wrong; None leaves a tap out."""

    dtype = "float32"

    def __init__(self, name: str = "ours", change: Change = lambda call, tap, value: value) -> None:
        self.name, self._change = name, change

    def versions(self) -> dict[str, str]:
        return {"ours": "1.0"}

    def open(self, target: Target) -> None:
        self._target = target

    def close(self) -> None:
        del self._target

    def run(self, case: Case, dump: Dump) -> None:
        model = models(self._target.config, self._target.weights, case, "float32")[1]

        def trace_of(call: int) -> Trace:
            while dump.calls <= call:
                dump.new_call()

            def sink(name: str, value: Any) -> Any:
                shown = self._change(call, name, value)
                if shown is not None:
                    dump.put(name, np.asarray(shown))
                return value if shown is None else shown

            return Trace(sink)

        program(case)(model, trace_of)


def raising(error: Exception) -> Change:
    def change(call: int, name: str, value: Any) -> Any:
        raise error

    return change


def at(tap: str, change: Callable[[Any], Any], call: int = 0) -> Change:
    return lambda n, name, value: change(value) if (n, name) == (call, tap) else value


Ran = tuple[int, list[str], str]
Run = Callable[..., Ran]
Check = Callable[..., Ran]


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    """The command in this process: its exit status, its lines on stdout, and stderr."""
    from conformance import __main__ as command

    capsys.readouterr()
    status = command.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def process(*arguments: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m conformance …`, or with `code` run before it, as a user runs it."""
    start = (
        ["-m", "conformance"]
        if not code
        else ["-c", f"{code}\nfrom conformance.__main__ import main\nsys.exit(main())"]
    )
    given = {k: v for k, v in os.environ.items() if not k.startswith(("T5G2REF_", "HF_"))}
    return python(*start, *arguments, env=given | {"HF_HUB_OFFLINE": "1", "COLUMNS": "100"} | environment)


def strictly(path: Path) -> dict[str, Any]:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return document


def narrow(lines: list[str], columns: int = 100) -> None:
    """No line is wider; the verdict alone, which is read by programs, may never be broken."""
    wide = [line for line in lines if len(line) > columns and not line.startswith("VERDICT: ")]
    assert not wide, wide
