"""Asks a process in lines of JSON: one answer to each question, within a time limit. Ends it with its whole group.

The process cannot hang or flood the judge: every read and write has a deadline, and all that is kept is bounded.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
import weakref
from typing import IO, Any

from t5g2ref.config.fields import from_json, short

MAX_LINE = 1 << 20  # bytes of an answer
KEPT = 1 << 12  # bytes of standard error
LINES = 8  # lines of it in a message
GRACE = 2.0  # seconds between a request to end and the end


class ProcessError(RuntimeError):
    """The process did not answer as it has to. The message says what happened, with its last standard error."""


class Channel:
    """A running process in a group of its own. It is killed when this is closed or collected, or Python ends.

    Args:
        argv: the command, run without a shell.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, argv: list[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self._out, self._err = bytearray(), bytearray()
        self._end = weakref.finalize(self, _end, self._process)
        for stream in self._streams():
            os.set_blocking(stream.fileno(), False)

    @property
    def running(self) -> bool:
        return self._end.alive and self._process.poll() is None

    def close(self) -> None:
        self._end()

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Its answer. Raises ProcessError, and ends the process, where there is none that can be used."""
        what = f"to {short(next(iter(question)))}"
        try:
            line = self._exchange(json.dumps(question).encode() + b"\n", time.monotonic() + seconds, seconds)
            try:
                answer = from_json(line)
            except ValueError:
                raise self._failed(
                    f"answered {short(line.decode(errors='replace'))}, expected a line of JSON"
                ) from None
            if not isinstance(answer, dict):
                raise self._failed(f"answered a JSON {type(answer).__name__}, expected an object")
        except ProcessError as error:
            self.close()
            raise ProcessError(f"{error} (asked {what})") from None
        except BaseException:  # an interruption: nothing may be left running
            self.close()
            raise
        return answer

    def _streams(self) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        return process.stdin, process.stdout, process.stderr

    def _exchange(self, question: bytes, deadline: float, seconds: float) -> bytes:
        """Write the question, read one line."""
        if self._out:
            raise self._failed(f"said {short(bytes(self._out[:200]).decode(errors='replace'))} unasked")
        stdin, stdout, stderr = self._streams()
        left = memoryview(question)
        with selectors.DefaultSelector() as waiting:
            waiting.register(stdin, selectors.EVENT_WRITE)
            for stream in (stdout, stderr):
                waiting.register(stream, selectors.EVENT_READ)
            while True:
                ready = waiting.select(max(0.0, deadline - time.monotonic()))
                if not ready and time.monotonic() >= deadline:
                    raise self._failed(f"gave no answer within {seconds:g} s")
                for key, _ in ready:
                    if key.fileobj is stdin:
                        left = left[_written(stdin, left) :]
                        if not left:
                            waiting.unregister(stdin)
                    elif key.fileobj is stderr:
                        if not self._more(stderr, self._err):
                            waiting.unregister(stderr)
                        del self._err[:-KEPT]
                    elif (line := self._line(stdout)) is not None:
                        return line

    def _line(self, stdout: IO[bytes]) -> bytes | None:
        """The answer once it is whole; None before."""
        ended = not self._more(stdout, self._out)
        line, newline, rest = self._out.partition(b"\n")
        if len(line) > MAX_LINE:
            raise self._failed(f"answered a line of more than {MAX_LINE} bytes")
        if newline:
            self._out = rest
            return bytes(line)
        if ended:
            raise self._failed("closed its standard output")
        return None

    def _more(self, stream: IO[bytes], into: bytearray) -> bool:
        """Take what there is; False at the end of the stream."""
        try:
            data = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        into += data
        return bool(data)

    def _failed(self, what: str) -> ProcessError:
        """The error, with how the process ended if it did, and its last lines of standard error."""
        try:
            status = self._process.wait(0.2)
            ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            what += f"; it has ended with {ended}"
        except (subprocess.TimeoutExpired, ValueError):
            pass
        while len(before := bytes(self._err)) >= 0 and self._more(self._streams()[2], self._err):
            del self._err[:-KEPT]
            if bytes(self._err) == before:
                break
        lines = [_plain(line) for line in self._err.decode(errors="replace").splitlines() if line.strip()]
        return ProcessError("\n    ".join([what, *lines[-LINES:]]))


def _written(stdin: IO[bytes], data: memoryview) -> int:
    """How many bytes were written. If nobody reads any more, all: the end of its output will tell."""
    try:
        return os.write(stdin.fileno(), data)
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(data)


def _plain(line: str) -> str:
    """A foreign line without what a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in line)[:400]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close its input, ask its group to end, then kill it; its pipes are closed too."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)  # even if it has ended by itself: its children may still run
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
