"""Time t5g2ref beside transformers and others: see `python tools/bench.py --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from benchmark.options import Options, options_of, parser

from conformance.checkpoints import HUB, resolve
from conformance.errors import CheckpointError, PeerUnavailable, UsageError
from conformance.target import Target
from t5g2ref import streams
from t5g2ref.backend import BackendError
from t5g2ref.checkpoint.folder import WeightsError
from t5g2ref.config import ConfigError


def checkpoint(options: Options, progress: Callable[[str, int, int], None]) -> tuple[Target, str]:
    """The target on the first backend, and what its weights are."""
    ckpt, backend = options.ckpt, options.backends[0]
    why = "as asked"
    if not options.synthetic:
        try:
            target = resolve(ckpt, synthetic=False, progress=progress, backend=backend)[0]
            return target, f"weights: those of {target.folder}"
        except CheckpointError:
            if ckpt not in HUB:
                raise
            why = f"for those of {ckpt} are not on this machine"
    target = resolve(ckpt, synthetic=True, progress=progress, backend=backend)[0]
    return target, f"weights: SYNTHETIC (seeded, at that geometry), {why}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. What was measured is shown also where KeyboardInterrupt goes on."""
    given = parser().parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a benchmark downloads nothing
    try:
        options = options_of(given)
        reporting, run, deliver = _measuring()
        kept = deliver(options)
        try:
            with reporting(quiet=False) as reporter:
                target, origin = checkpoint(options, reporter.tensors)
                kept.result = run(options, target, origin, reporter, kept.so_far)
        finally:
            kept.deliver()
        return int(kept.result.status)
    except streams.OutputError:
        raise
    except (BackendError, CheckpointError, ConfigError, OSError, PeerUnavailable, UsageError, WeightsError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _measuring() -> tuple[Any, ...]:
    """What needs torch and rich, imported only now: --help and bad options are answered without them."""
    try:
        from benchmark.delivery import Delivery
        from benchmark.run import run

        from conformance.progress import reporting
    except ImportError as error:
        raise PeerUnavailable(f'{error.name or error} is not to be had: pip install "t5g2ref[conformance]"') from error
    return reporting, run, Delivery


if __name__ == "__main__":
    sys.exit(streams.run("bench", __name__))
