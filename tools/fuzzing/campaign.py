"""A campaign: tries by number, in several workers, and what is kept of those that found something."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from random import Random

from fuzzing.tries import FOUND, Kind, Limits, Outcome, attempt

PORTION = 20  # tries that a worker takes at a time
PATIENCE = 15.0  # seconds: more than a try may have
ALONE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",  # a fork has one thread
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True)
class Result:
    """What came of a try, and the name of its class and its number, which repeat it."""

    kind: str
    number: int
    outcome: Outcome

    @property
    def command(self) -> str:
        kind = f"'{self.kind}'" if " " in self.kind else self.kind
        return f"python tools/fuzz.py --class {kind} --seed {self.number} --tries 1"


def drawn(kinds: Sequence[Kind], number: int) -> Kind:
    """The class of a try, by weight; the number alone decides."""
    return Random(f"class:{number}").choices(kinds, [kind.weight for kind in kinds])[0]


@contextmanager
def workplace(kinds: Sequence[Kind]) -> Iterator[Path]:
    """A folder with the sound files of every class in `base`, and room for the tries."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        root = Path(name).resolve()
        for kind in kinds:
            (folder := root / "base" / kind.name).mkdir(parents=True)
            kind.base(folder)
        yield root


def one(kind: Kind, number: int, root: Path, limits: Limits, keep: Path | None) -> Result:
    """One try. Its input goes to `keep` where something was found."""
    folder = root / f"try-{os.getpid()}" / str(number)
    outcome = attempt(kind, number, root / "base" / kind.name, folder, limits)
    if keep is not None and outcome.end in FOUND:
        place = keep / f"{kind.name.replace(' ', '-')}-{number}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place / "input", symlinks=True, copy_function=_copy)
        said = Path(f"{folder}.said").read_text(errors="replace")
        (place / "found.txt").write_text(f"{outcome.end}\n{outcome.text}\n\n{said}", errors="backslashreplace")
    shutil.rmtree(folder.parent, ignore_errors=True)
    return Result(kind.name, number, outcome)


def _copy(source: str, target: str) -> None:
    if os.path.isfile(source):  # a pipe would wait
        shutil.copyfile(source, target, follow_symlinks=False)


def run(
    kinds: Sequence[Kind],
    numbers: range,
    jobs: int,
    keep: Path | None,
    heard: Callable[[Result], None],
) -> None:
    """Every try, in as many workers as were asked for; `heard` is called as they end, in any order."""
    os.environ |= ALONE
    names = [kind.name for kind in kinds]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool, workplace_in(pool, names) as root:
        portions = [numbers[at : at + PORTION] for at in range(0, len(numbers), PORTION)]
        waiting: list[Future[list[Result]]] = [pool.submit(_portion, names, part, root, keep) for part in portions]
        try:
            for future in as_completed(waiting):
                for result in future.result():
                    heard(result)
        except BaseException:
            for worker in active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def workplace_in(pool: ProcessPoolExecutor, names: list[str]) -> Iterator[Path]:
    """A workplace whose sound files a worker writes: so the process that leads needs none of the readers."""
    place = tempfile.TemporaryDirectory(prefix="fuzz-")
    try:
        root = Path(place.name).resolve()
        pool.submit(_bases, names, root).result()
        yield root
    finally:
        remove(place)


def remove(place: tempfile.TemporaryDirectory[str]) -> None:
    """Delete it. Where a campaign is told to end, a try that is under way may still write there for its own seconds."""
    last = time.monotonic() + PATIENCE
    while True:
        try:
            place.cleanup()
            return
        except OSError:
            if time.monotonic() > last:
                raise
            time.sleep(0.1)


def _bases(names: list[str], root: Path) -> None:
    from fuzzing.kinds import KINDS

    for name in names:
        (folder := root / "base" / name).mkdir(parents=True)
        KINDS[name].base(folder)


def _portion(names: list[str], numbers: range, root: Path, keep: Path | None) -> list[Result]:
    from fuzzing.kinds import KINDS

    kinds = [KINDS[name] for name in names]
    gc.collect()
    gc.freeze()  # so that a process that is split off need not look through, and so copy, what it has from here
    return [one(drawn(kinds, number), number, root, Limits(), keep) for number in numbers]
