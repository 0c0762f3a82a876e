"""Runs a command among what a terminal does to it: streams that close or fill up, Ctrl-C, and requests to end.

A command starts here, before the imports that take time. Whatever happens, its user sees a line or nothing, and an exit
status that says no more than is known: 1 is never Python's own.
"""

from __future__ import annotations

import io
import os
import signal
import sys

TYPE_CHECKING = False  # as `typing` has it, which takes a while to import: Ctrl-C would meet it
if TYPE_CHECKING:
    from typing import Any

USAGE, INCOMPLETE = 2, 3
STOPS = ("SIGINT", "SIGTERM", "SIGHUP")


class OutputError(OSError):
    """Standard output takes no more: its reader has gone, or its disk is full. Raised once; then all is discarded."""


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end: what was begun is undone on the way out, as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run(name: str, module: str) -> int:
    """Import the command's module and run its `main()`; returns the exit status.

    That is what `main` returns or exits with; 128 and the signal's number where it was stopped; 2 where standard output
    is closed or full; 3 where its reader has gone, and where the command itself failed.
    """
    _on_signals(signal.SIG_DFL)  # nothing can be left behind yet: a signal ends it at once, in silence
    output = _streams()
    if output is None:
        print(f"{name}: standard output is closed", file=sys.stderr)
        return USAGE
    try:
        import importlib

        command = importlib.import_module(module)
        _on_signals(_stop)
        try:
            status: int = command.main()
        finally:
            _on_signals(signal.SIG_IGN)  # Python's own end is short, and would answer with a stack trace
    except SystemExit as left:  # `argparse`
        status = left.code if isinstance(left.code, int) else USAGE if left.code else 0
    except BaseException as error:
        status = _failed(name, error)
    from contextlib import suppress

    with suppress(OutputError):
        sys.stdout.flush()
    return status if output.error is None or status > 1 else _unread(name, output.error)


def stopped(error: BaseException | None) -> int:
    """The number of the signal behind an error; 0 for none. An import that is interrupted may fail in other words."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return int(getattr(error, "number", signal.SIGINT))
        error = error.__cause__ or error.__context__
    return 0


def _failed(name: str, error: BaseException) -> int:
    if number := stopped(error):
        print(f"{name}: interrupted", file=sys.stderr)
        return 128 + number
    if isinstance(error, OutputError):
        return 0  # of no consequence: why it failed is known
    if isinstance(error, ImportError):
        print(f"{name}: {error.name or error} cannot be imported: pip install t5g2ref", file=sys.stderr)
        return USAGE
    import traceback

    traceback.print_exception(error)
    return INCOMPLETE


def _unread(name: str, error: OSError) -> int:
    """The status where what was printed, a verdict too, did not arrive."""
    if isinstance(error, BrokenPipeError):  # `… | head`: the reader has had enough
        return INCOMPLETE
    print(f"{name}: standard output: {error.strerror}", file=sys.stderr)
    return USAGE


def _on_signals(handler: Any) -> None:
    """What asks to end meets the handler; a signal that was ignored when we came (nohup) stays so."""
    for number in (getattr(signal, name) for name in STOPS if hasattr(signal, name)):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _stop(number: int, _: object) -> None:
    raise Stopped(number)


def _streams() -> _Output | None:
    """Standard output, which from here on raises OutputError; None where it is closed. Input and errors that are closed
    are /dev/null from here on: a number that is free would be given to the next file that is opened."""
    for wanted in range(3):
        try:
            os.fstat(wanted)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    errors = io.BufferedWriter(_Errors(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(errors, encoding, "backslashreplace", line_buffering=True)
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return None
    raw, line_by_line = _Output(1, "w", closefd=False), sys.stdout.line_buffering or sys.stdout.write_through
    buffer = io.BufferedWriter(raw)
    sys.stdout = io.TextIOWrapper(buffer, sys.stdout.encoding, "replace", line_buffering=line_by_line)
    return raw


class _Output(io.FileIO):
    """Standard output that fails once."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is not None:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise OutputError(error.errno, error.strerror) from error


class _Errors(io.FileIO):
    """Standard error, whose own errors cost neither a judgement nor its status."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
