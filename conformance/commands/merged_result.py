"""The result of the files of all shards: what one process would have found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from conformance.checkpoints import resolve
from conformance.commands.diagnose import diagnoses, puzzling
from conformance.errors import CheckpointError, UsageError
from conformance.judge.comparisons import Found
from conformance.judge.hypotheses.diagnosis import Diagnosis
from conformance.progress import reporting
from conformance.report.conclusion import concluded
from conformance.report.known import Known, load
from conformance.report.result import Result
from conformance.report.terms import cases
from conformance.sweep.header import marked
from conformance.sweep.merging import Merged, merged
from t5g2ref.backend import BackendError, find


def merged_result(paths: Sequence[Path], known: Path | None, command: str, *, progress: bool) -> Result:
    """What a run of all shards in one process says. Raises UsageError where the files do not fit together.

    Args:
        known: the file of known deviations that the shards were judged with; None where they had none.
    """
    found, excuses = merged(paths), load(known) if known else Known()
    if excuses.mark != found.work.terms.known:
        had = "another file of known deviations, or none" if found.work.terms.known else "no known deviations"
        raise UsageError(f"--known {known or 'is missing'}: the shards were judged with {had}: give merge the same")
    excuses.check(found.work.targets)
    result = _concluded(found, excuses, command)
    with reporting(quiet=not progress) as reporter:
        told = _diagnoses(found, result.judgements, reporter.say)
    return replace(result, diagnoses=told, seconds=found.seconds, peak_bytes=found.peak_bytes)


def _concluded(found: Merged, known: Known, command: str) -> Result:
    """The result. What no run writes may still look like what one does; then this is where it shows."""
    try:
        return concluded(found.work, found.found, found.beside, known, command)
    except Exception as error:
        raise UsageError(f"the files hold what no run writes: {type(error).__name__}: {error}") from error


def _diagnoses(found: Merged, judged: Found, say: Callable[[str], None]) -> list[Diagnosis]:
    """Of black boxes that deviate. They need the weights, which nothing else of a merged report does."""
    asked = puzzling([target.name for target in found.work.targets], judged)
    if not asked:
        return []
    terms = found.work.terms
    try:
        backend = find(terms.environment.get("backend", "numpy"))
        how: dict[str, Any] = {"synthetic": terms.synthetic, "calm": terms.calm, "stream": terms.stream}
        how["layers"] = terms.layers
        there = resolve(terms.ckpt, **how, backend=backend)
    except (CheckpointError, UsageError, BackendError) as error:
        return _without(asked, f"the weights are not to be had here: {str(error).splitlines()[0]}")
    marks = {checkpoint.name: checkpoint.mark for checkpoint in found.header.checkpoints}
    targets = [target for target in there if marks.get(target.name) == marked(target)]
    if {target for target, _ in asked} - {target.name for target in targets}:
        return _without(asked, "the weights here are others than those that were judged")
    return diagnoses(targets, judged, say, partial(cases, terms))


def _without(asked: Sequence[tuple[str, str]], why: str) -> list[Diagnosis]:
    return [Diagnosis(peer, target, why=why) for target, peer in asked]
