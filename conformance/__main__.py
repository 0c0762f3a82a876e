"""The command `python -m conformance`: see `--help`."""

from __future__ import annotations

import sys

from t5g2ref import streams


def main(arguments: list[str] | None = None) -> int:
    """Run the command in this process; see `commands.command_line.main`."""
    from conformance.commands import command_line

    return command_line.main(arguments)


if __name__ == "__main__":
    sys.exit(streams.run("conformance", "conformance.commands.command_line"))
