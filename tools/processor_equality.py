"""Holds the processor against the installed transformers': pixels bit for bit, ids, masks, and what ids say.

    python tools/processor_equality.py                                   500 pictures, 300 texts: a minute
    python tools/processor_equality.py --big                             texts also by 262 144 pieces, and load times
    python tools/processor_equality.py --pictures 100 --texts 0 --side 896          pictures of the released size
    python tools/processor_equality.py --pictures 5000 --seed 10000 --json FILE

Pictures, texts and tokenizers are drawn by number; nothing is downloaded. transformers' Pillow processor is asked, also
where torchvision is installed. Exit status: 0 all are equal, 1 some are not, 2 bad usage.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from processing import big_tokenizer, compare, folders

from t5g2ref.files import write_text

PACKAGES = ("transformers", "tokenizers", "Pillow", "numpy")


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("python tools/processor_equality.py", description=__doc__, formatter_class=form)
    made.add_argument("--pictures", type=int, default=500, metavar="N", help="how many (500)")
    made.add_argument("--texts", type=int, default=300, metavar="N", help="how many (300)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="the number of the first (0)")
    made.add_argument("--side", type=int, default=folders.SIDE, metavar="N", help="of a resized picture (32)")
    made.add_argument("--big", action="store_true", help="build a tokenizer of 262 144 pieces as well")
    made.add_argument("--json", type=Path, metavar="FILE", help="the figures")
    return made


def loading(folder: Path, times: int = 3) -> dict[str, float]:
    """Seconds that each side takes to load the folder's tokenizer, the least of some."""
    found: dict[str, float] = {}
    for name, load in (("ours", folders.ours), ("transformers", folders.theirs)):
        for _ in range(times):
            began = time.perf_counter()
            load(folder)
            found[name] = min(found.get(name, 1e9), time.perf_counter() - began)
    return found


def measured(options: argparse.Namespace, place: Path) -> tuple[compare.Table, dict[str, float]]:
    """(the table, load times of the big tokenizer)."""
    table, seed = compare.Table(), options.seed
    numbers = range(seed, seed + options.texts)
    folder = folders.make(place / "small", big_tokenizer.SMALL)
    compare.compare_pictures(table, folder, range(seed, seed + options.pictures), options.side)
    compare.compare_settings(table, folder, range(seed, seed + options.pictures // 5))
    compare.compare_prompts(table, folder, range(seed, seed + options.pictures // 10))
    compare.compare_tokens(table, folder, range(seed, seed + options.texts // 10), big_tokenizer.SMALL)
    compare.compare_texts(table, folder, numbers, f"{big_tokenizer.SMALL} pieces")
    if not options.big:
        return table, {}
    big = folders.make(place / "big", big_tokenizer.SIZE, padding_side="right")
    seconds = loading(big)
    compare.compare_texts(table, big, numbers, f"{big_tokenizer.SIZE} pieces")
    return table, seconds


def main(arguments: list[str] | None = None) -> int:
    """Compare and print; returns the exit status."""
    options = parser().parse_args(arguments)
    if min(options.pictures, options.texts) < 0 or options.pictures + options.texts == 0:
        said = f"--pictures {options.pictures} --texts {options.texts}"
        parser().error(f"{said}: nothing would be compared; give a picture or a text")
    found: list[Any] = []
    with tempfile.TemporaryDirectory() as place:
        compare.quietly(lambda: found.extend(measured(options, Path(place))))
    table, seconds = found
    print("\n".join(compare.lines(table)))
    if seconds:
        print("load time, s: " + ", ".join(f"{name} {value:.2f}" for name, value in seconds.items()))
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    rows = [vars(row) for row in table.rows.values()]
    equal, unequal = (sum(row[name] for row in rows) for name in ("equal", "unequal"))
    print(f"{equal} equal, {unequal} unequal; " + ", ".join(f"{name} {value}" for name, value in packages.items()))
    if options.json:
        write_text(options.json, json.dumps({"rows": rows, "load_s": seconds, "packages": packages}, indent=2) + "\n")
    return int(unequal > 0)


if __name__ == "__main__":
    sys.exit(main())
