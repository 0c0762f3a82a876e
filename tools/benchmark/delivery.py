"""Where a result goes: the JSON file after each row, and at the end, or where it was interrupted, all of it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmark.document import as_json
from benchmark.options import Options
from benchmark.report import show
from benchmark.result import Result
from t5g2ref.files import write_text


@dataclass
class Delivery:
    """`result` is the newest; its file is on the disk when a row's time is said."""

    options: Options
    result: Result | None = field(default=None)

    def so_far(self, result: Result) -> None:
        """After each row. A file that cannot be written now is tried again at the next, and at the end."""
        self.result = result
        try:
            self._write(result)
        except OSError as error:
            print(f"bench: {self.options.json} could not be written yet: {error.strerror}", file=sys.stderr)

    def deliver(self) -> None:
        """Write what there is, draw it and show it; nothing where there is nothing. Each is tried whatever becomes of
        the others; OSError from a file, OutputError where nobody reads any more."""
        if self.result is None:
            return
        with ExitStack() as stack:  # from the last to the first
            stack.callback(show, self.result)
            stack.callback(self._draw, self.result)
            stack.callback(self._write, self.result)

    def _draw(self, result: Result) -> None:
        if self.options.plot is not None and result.rows:
            from benchmark.plot import save  # matplotlib is an extra

            save(result, self.options.plot)

    def _write(self, result: Result) -> None:
        if self.options.json is not None:
            write_text(self.options.json, as_json(result))
