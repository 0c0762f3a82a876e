"""The benchmark's command line: what can be asked for, its defaults, and its help."""

from __future__ import annotations

import argparse
import fnmatch
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmark.timing import on_cpu
from conformance.checkpoints import HUB
from conformance.errors import PeerUnavailable, UsageError
from t5g2ref.backend import Backend, find
from t5g2ref.dtypes import HALF
from t5g2ref.files import in_the_way

HELP = """\
Time t5g2ref beside transformers and CTranslate2 in one process, taking turns, on a CPU or a GPU.

  encode   the text encoder on 512 tokens
  forward  512 encoder and 128 decoder tokens, with all logits
  decode   a cached step over a 512-token source, with its logits and the next id
  vision   one image through the tower and the projector
  load     a checkpoint from disk to the device
  truth    our float64 forward of 512 text tokens and an image; nobody else has such a thing
  verdict  `python -m conformance --quick`, whole; only where it is asked for by name

A toy checkpoint gets shorter lengths; the output says which. Before an item is timed every side
runs it and the results are compared. Under each item are its floors: the operations that it cannot
do without at the rate that the machine reached here in this type, and the bytes at its bandwidth.

sides, with --against
  sdpa, eager  transformers with that attention, and the cache that it makes by itself
  compiled     transformers' fastest decoding: sdpa, a static cache, each step under torch.compile
  ctranslate2  on the CPU in float32, where it is installed; notes say by name which item it has
               otherwise, or not at all. Its failures and other results do not fail the command

exit status   0 measured   1 the results are further apart than rounding, or an item failed
              2 bad usage or environment   3 the command itself failed
              130 Ctrl-C and 143 SIGTERM: what was measured until then is shown, and is in --json
"""

PAIRED = ("encode", "forward", "decode", "vision")
LONG = PAIRED[:3]  # what has a source
ITEMS = (*PAIRED, "load", "truth", "verdict")
WAYS = ("sdpa", "eager", "compiled")
AGAINST = (*WAYS, "ctranslate2")
PICTURES = (".svg", ".png")

EXAMPLES = """\
examples
  python tools/bench.py                           tiny, NumPy and torch on the CPU (under a minute)
  python tools/bench.py --ckpt 270m --threads 2   a real geometry on two threads (minutes)
  python tools/bench.py --ckpt 270m --lengths 128,512,2048,4096 --plot lengths.svg --json long.json
      time and memory against the source's length, over the machine's limits
  python tools/bench.py --ckpt tiny-released --against sdpa,ctranslate2 --what encode --lengths 7,64
      CTranslate2 on the small checkpoint whose settings it has, below its windows, which it
      ignores, and above them, where it computes something else
  python tools/bench.py --backend cupy            1b on the GPU: every item, float32 and bfloat16
  python tools/bench.py --backend cupy,cupy-fast --batch 1,8 --dtype bfloat16 --json bench.json
      two backends of ours in turns with transformers' three ways, for one row and for eight
  python tools/bench.py --backend cupy --what decode --against compiled --repeats 30
  python tools/bench.py --backend cupy --ckpt FOLDER --what load --what truth --json bench.json

A size (270m, 1b, 4b) whose weights are not at hand is timed on seeded ones at its geometry, and the
output says so; nothing is downloaded. A ratio of an item during which others took 5 % of the cores
or more is not printed: "busy" stands in its place, and null in the JSON.
"""


@dataclass(frozen=True)
class Options:
    """What was asked for, with every default filled in.

    Args:
        backends: of ours, all on one device.
        device: as torch names it.
        lengths: of the source; none for the usual one, or for a plot's.
    """

    ckpt: str
    synthetic: bool
    backends: tuple[Backend, ...]
    device: str
    dtypes: tuple[Any, ...]
    against: tuple[str, ...]
    items: tuple[str, ...]
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int | None
    threads: int | None
    json: Path | None
    plot: Path | None

    @property
    def way(self) -> str:
        """The first of transformers' columns, whose results the others are held against; "" where it has none."""
        return next((name for name in self.against if name in WAYS), "")

    def peer(self, way: str, dtype: str) -> str:
        """The name of transformers' side in the conformance suite."""
        attention = "sdpa" if way == "compiled" else way
        return f"transformers:{attention}:{dtype}:{self.device}"


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python tools/bench.py", description=HELP, epilog=EXAMPLES, formatter_class=form)
    top.add_argument("--ckpt", help=f"tiny, {', '.join(HUB)} or a folder (default: tiny on numpy, 1b on cupy)")
    top.add_argument("--synthetic", action="store_true", help="seeded weights even where the real ones are at hand")
    top.add_argument(
        "--backend",
        default="numpy",
        metavar="NAMES",
        help="ours: numpy, cupy, cupy:1 for the second GPU, or several of one device, as cupy,cupy-fast (default: "
        "numpy)",
    )
    top.add_argument(
        "--dtype",
        action="append",
        choices=("float32", "bfloat16", "float16"),
        help="repeatable (default: float32; on cupy float32 and bfloat16)",
    )
    top.add_argument(
        "--against",
        metavar="NAMES",
        help=f"of {','.join(AGAINST)} (default: sdpa,ctranslate2; on cupy sdpa,eager,compiled)",
    )
    top.add_argument(
        "--what",
        action="append",
        metavar="GLOB",
        help=f"repeatable, of {', '.join(ITEMS)} (default: all but verdict; on numpy the first four)",
    )
    top.add_argument("--lengths", metavar="N,N", help="tokens of the source (default: 512; with --plot 128,512,2048)")
    top.add_argument("--batch", metavar="N,N", default="1", help="rows, or images, of one call (default: 1)")
    top.add_argument("--repeats", type=int, metavar="N", help="default: what fits in 4 s, at least 5; load: at most 3")
    top.add_argument("--threads", type=int, metavar="N", help="of the BLAS, of torch and of CTranslate2, on a CPU")
    top.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything, each repeat's time included, after each row"
    )
    top.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.svg|png",
        help='draw time and memory against the source\'s length: pip install "t5g2ref[plot]"',
    )
    return top


def options_of(given: argparse.Namespace) -> Options:
    """Raises UsageError, PeerUnavailable and BackendError."""
    names = _names("backend", given.backend)
    backends = tuple(find(name) for name in names)
    device = _device(names, backends)
    host = device == "cpu"
    dtypes = tuple(dict.fromkeys(given.dtype or (("float32",) if host else ("float32", "bfloat16"))))
    options = Options(
        ckpt=given.ckpt or ("tiny" if host else "1b"),
        synthetic=given.synthetic,
        backends=backends,
        device=device,
        dtypes=dtypes,
        against=_names("against", given.against or ("sdpa,ctranslate2" if host else "sdpa,eager,compiled"), AGAINST),
        items=_items(given.what or (PAIRED if host else ITEMS[:-1])),
        lengths=_numbers("lengths", given.lengths) if given.lengths is not None else (),
        batches=_numbers("batch", given.batch),
        repeats=given.repeats,
        threads=given.threads,
        json=given.json,
        plot=given.plot,
    )
    _check(options)
    return options


def _names(option: str, value: str, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if known and name not in known:
            raise UsageError(f"--{option} {name}: no such side; there are {', '.join(known)}")
    return names


def _numbers(option: str, value: str) -> tuple[int, ...]:
    numbers = [number.strip() for number in value.split(",")]
    if not all(number.isascii() and number.isdecimal() and int(number) > 0 for number in numbers):
        raise UsageError(f"--{option} {value}: expected whole numbers from 1, as 1,8")
    return tuple(dict.fromkeys(int(number) for number in numbers))


def _items(globs: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    for glob in globs:
        if not fnmatch.filter(ITEMS, glob):
            raise UsageError(f"--what {glob}: no such item; there are {', '.join(ITEMS)}")
    return tuple(item for item in ITEMS if any(fnmatch.fnmatch(item, glob) for glob in globs))


def _device(names: tuple[str, ...], backends: tuple[Backend, ...]) -> str:
    """torch's name of the one device that these backends are on. UsageError where they are on several."""
    numbers = (name.partition(":")[2] or "0" for name in names)
    devices = {
        "cpu" if on_cpu(backend) else f"cuda:{number}" if int(number) else "cuda"
        for number, backend in zip(numbers, backends, strict=True)
    }
    if len(devices) > 1:
        raise UsageError(f"--backend {','.join(names)}: expected backends of one device, on which sides take turns")
    return devices.pop()


def _check(options: Options) -> None:
    host = options.device == "cpu"
    half = [dtype for dtype in options.dtypes if dtype in HALF]
    if host and half:
        raise UsageError(f"--dtype {half[0]}: NumPy only emulates it, which says nothing about speed; give float32")
    for option in ("repeats", "threads"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option} {value}: expected at least 1")
    if options.threads is not None and not host:
        raise UsageError("--threads: only where all sides run on the CPU, which is --backend numpy")
    for option in ("json", "plot"):
        _writable(option, getattr(options, option))
    if options.plot is not None:
        if not set(options.items) & set(LONG):
            raise UsageError(f"--plot: nothing here has a length: let --what have one of {', '.join(LONG)}")
        if options.plot.suffix.lower() not in PICTURES:
            raise UsageError(f"--plot {options.plot}: expected a name that ends in {' or '.join(PICTURES)}")
        if find_spec("matplotlib") is None:
            raise PeerUnavailable('--plot needs matplotlib: pip install "t5g2ref[plot]"')


def _writable(option: str, path: Path | None) -> None:
    """UsageError before anything is measured for a file that could not be written after it."""
    if path is None:
        return
    if what := in_the_way(path):
        raise UsageError(f"--{option} {path}: this is {what}, expected a file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--{option} {path}: there is no folder {path.parent}")
