"""Runs the project's commands in this process, and holds their exit status against what they say."""

from __future__ import annotations

import io
import re
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

from fuzzing import lawful

USAGE = re.compile(r"usage: .*?\n(?=\S+( -m)? \S+?( \w+)?: error: )", re.DOTALL)  # argparse's own, before its line
OWN_FAULT = "the suite itself failed"
STRAY = re.compile(  # an error that nobody meant to raise, in the words of a report
    r"\b((Index|Key|Type|Value|Attribute|Recursion|Memory|Overflow|Assertion|ZeroDivision|FloatingPoint|Runtime|OS)Error"
    r"|Unicode\w*Error|LookupError|\w+Warning)\b"
)
MISSING = re.compile(r"(\S+) is not installed")
VERDICTS = {0: "VERDICT: CONFORMS", 1: "VERDICT: DEVIATES", 3: "VERDICT: INCOMPLETE"}


def ran(main: Callable[[list[str]], int], arguments: list[str]) -> tuple[int, str, str]:
    """The command's exit status, and what it wrote to both streams."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as left:  # argparse
            status = left.code if isinstance(left.code, int) else 2
        except BaseException:
            traceback.print_exc()
            status = -1
    return status, out.getvalue(), err.getvalue()


def judged(status: int, out: str, err: str) -> None:
    """Refused unless the verdict is CONFORMS; Unlawful for words that are not those of the status."""
    last = (out.strip().splitlines() or [""])[-1]
    if status in VERDICTS and not last.startswith(VERDICTS[status]):
        raise lawful.Unlawful(f"status {status}, and the last line is {last[:300]!r}; {err[-1500:]}")
    _told(status, err, (0, 1, 2, 3))
    if stray := STRAY.search(out + err):
        where = (out + err)[max(0, stray.start() - 500) : stray.end() + 500]
        raise lawful.Unlawful(f"status {status}, and an error is shown that nobody meant: {where}")
    if status:
        raise lawful.Refused(_line(err) if status == 2 else last)


def ended(status: int, out: str, err: str) -> None:
    """Refused for status 2; Unlawful for any other but 0."""
    _told(status, err, (0, 2))
    if status:
        raise lawful.Refused(_line(err))


def _line(err: str) -> str:
    if (gone := MISSING.search(err)) and gone[1] not in ("cupy", "CuPy"):
        raise lawful.Unlawful(f"a package is missing here: {err[:500]}")
    return USAGE.sub("", err, count=1).strip()


def _told(status: int, err: str, allowed: tuple[int, ...]) -> None:
    if status not in allowed or "Traceback" in err or OWN_FAULT in err:
        raise lawful.Unlawful(f"status {status}: {err[-2500:]}")
