"""Write a synthetic checkpoint to disk, one tensor at a time: the geometry of a release, seeded weights.

    python tools/make_checkpoint.py 270m FOLDER [--seed 0] [--dtype bfloat16] [--layout hub] [--shard-mb 4000]

The statistics are those of `t5g2ref.synthetic`. A run that is stopped leaves no half checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

from t5g2ref import streams
from t5g2ref.checkpoint.folder import WeightsError, save
from t5g2ref.checkpoint.synthetic import Synthetic
from t5g2ref.config import PRESETS, Config, ConfigError
from t5g2ref.dtypes import DTYPES


def tensors(config: Config, seed: int) -> Iterator[tuple[str, Any]]:
    """(canonical name, array), each made when its turn comes."""
    source = Synthetic(config, seed)
    yield from track(source.items(), "writing", total=len(source), transient=True)


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    result = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    result.add_argument("geometry", help=f"{', '.join(PRESETS)}, or a folder with a config.json")
    result.add_argument("folder", type=Path, help="where to write; must not hold weights yet")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    result.add_argument("--layout", default="hub", choices=("hub", "transformers"), help="names in the file")
    result.add_argument("--shard-mb", type=int, metavar="N", help="start a new file before one passes N megabytes")
    result.add_argument("--tied", action="store_true", help="repeat the embedding under its tied names")
    return result


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        config = PRESETS[options.geometry] if options.geometry in PRESETS else Config.load(options.geometry)
        save(
            options.folder,
            config,
            tensors(config, options.seed),
            dtype=options.dtype,
            layout=options.layout,
            shard_bytes=None if options.shard_mb is None else options.shard_mb * 1_000_000,
            write_tied=options.tied,
        )
    except (ConfigError, WeightsError, OSError) as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 2
    files = sorted(options.folder.glob("*.safetensors"))
    print(f"{options.folder}: {len(files)} files, {sum(f.stat().st_size for f in files) / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(streams.run("make_checkpoint", __name__))
