"""The command `python -m conformance`: see `--help`."""

from __future__ import annotations

import importlib.util
import sys

if (found := importlib.util.find_spec("t5g2ref")) is None or found.origin is None:
    # Of an editable install Python takes a folder of that name first, as where the repository was cloned to.
    print("conformance: a folder here is called t5g2ref, and hides the package: go to another folder", file=sys.stderr)
    sys.exit(2)

from t5g2ref import streams


def main(arguments: list[str] | None = None) -> int:
    """Run the command in this process; see `commands.command_line.main`."""
    from conformance.commands import command_line

    return command_line.main(arguments)


if __name__ == "__main__":
    sys.exit(streams.run("conformance", "conformance.commands.command_line"))
