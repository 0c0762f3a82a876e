"""`export --vectors`: test vectors of the text cases, for a port that tests itself without this suite."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

from conformance.cases import catalogue
from conformance.cases.abilities import TEXT, Required
from conformance.cases.case import Case
from conformance.checkpoints import resolve
from conformance.commands import options as shared
from conformance.errors import UsageError
from conformance.exchange import staged, vectors
from conformance.progress import Reporter, reporting
from conformance.target import Target
from t5g2ref.dtypes import RUN_IN, DType

HELP = """\
write test vectors instead: inputs, expected values and allowed distances of the text cases, in every type or in
--dtype alone (see `explain vectors`)"""


def main(options: argparse.Namespace) -> int:
    """Write the vectors; returns 0. Raises UsageError for options or a folder that cannot be used."""
    folder: Path = options.folder
    if options.expected:
        raise UsageError("--vectors has the truth in it: leave --expected away")
    check_folder(folder, options.force)
    types = cast(tuple[DType, ...], (options.dtype,) if options.dtype else RUN_IN)
    with reporting(quiet=options.no_progress) as reporter:
        made = {"synthetic": options.synthetic, "calm": options.calm}
        target = resolve(options.ckpt, **made, progress=reporter.tensors)[0]
        cases = _chosen(target, options.case or [], types)
        with staged.writing(folder, (), _clear, vectors.DOCUMENT) as staging:
            document = vectors.write(staging, target, cases, types, _told(reporter, len(cases) * len(types)))
    for name, case in document["cases"].items():
        for dtype, kinds in case["unclear"].items():
            print(f"note: {name} in {dtype}: left out, since rounding noise could hide anything: {', '.join(kinds)}")
    size = sum(
        (folder / name).stat().st_size for name in (vectors.DOCUMENT, *vectors.FILES) if (folder / name).exists()
    )
    print(f"vectors of {len(cases)} cases of {target.name} in {folder}: {size / 1e6:.2f} MB; see `explain vectors`")
    return 0


def _chosen(target: Target, patterns: list[str], types: tuple[DType, ...]) -> list[Case]:
    """The text cases that match, of those that are asked for in one of the types."""
    text = [case for case in catalogue.build(target.config) if Required(None, TEXT).covers(case, ())]
    asked = [case for case in text if any(map(case.asks, types))]
    shared.check_cases(patterns, (case.name for case in asked))
    return catalogue.select(asked, patterns)


def _told(reporter: Reporter, total: int) -> vectors.Said:
    """Says what is being done; each word of it is a step."""
    reporter.start(total)

    def said(what: str) -> None:
        reporter.say(what)
        reporter.step()

    return said


def check_folder(folder: Path, force: bool) -> None:
    """Raises UsageError for a folder where no vectors may be written."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: this is a file; name a folder")
    if folder.is_dir() and staged.others(folder) and not _earlier(folder) and not force:
        raise UsageError(f"{folder}: holds something else than vectors; name another folder, or give --force")


def _earlier(folder: Path) -> bool:
    return staged.manifest(folder, vectors.DOCUMENT, vectors.FORMAT) is not None


def _clear(folder: Path) -> None:
    """Earlier vectors go, their document first. Other files stay."""
    if _earlier(folder):
        for name in (vectors.DOCUMENT, *vectors.FILES):
            if not (folder / name).is_dir() or (folder / name).is_symlink():
                (folder / name).unlink(missing_ok=True)
