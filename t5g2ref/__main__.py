"""The command `python -m t5g2ref`: see `--help`."""

from __future__ import annotations

import sys

from t5g2ref import streams

if __name__ == "__main__":
    sys.exit(streams.run("t5g2ref", "t5g2ref.command_line"))
