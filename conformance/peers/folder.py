"""A folder of files as a peer: manifest.json, and a safetensors file for each call. Any program may have written it.

Nothing in it is trusted, and nothing is guessed. A broken manifest, a missing file or an unknown name is an error
before anything is judged. A wrong number is a finding.
"""

from __future__ import annotations

from pathlib import Path

from conformance.activations import Dump
from conformance.cases import catalogue as case_list
from conformance.cases.abilities import unmet
from conformance.cases.case import Case
from conformance.cases.rows import ALONE
from conformance.errors import PeerUnavailable
from conformance.exchange.arrange import File, Shower, check_patterns, unknown
from conformance.exchange.case_words import fingerprint, fingerprints
from conformance.exchange.geometry import difference
from conformance.exchange.manifest import Manifest, Shown, read
from conformance.exchange.reading import DumpError, Tensors
from conformance.measure.finding import Finding
from conformance.peers.protocol import OptionalMembers, Skip
from conformance.target import Target


class DumpPeer(OptionalMembers):
    """A dump under judgement.

    Attributes:
        taps: names that the dump shows in the case that was run last; others are not judged.
        findings: what is wrong in that case's files: ids that are not the case's, arrays without their declared layout.
    """

    probed = False  # a dump can only be read

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.name, self.dtype = manifest.peer.name, manifest.peer.dtype
        self.lacks, self.quantised, self.types = manifest.peer.lacks, manifest.peer.quantised, manifest.peer.types
        self.taps: tuple[str, ...] = ()
        self.findings: list[Finding] = []
        self._folder, self._manifest = folder, manifest
        self.notes: list[str] = []
        self._target: Target | None = None

    @property
    def by_rows(self) -> bool:
        """Whether its batches were given a row at a time: `export --rows` says so in their names."""
        return any(name.endswith(ALONE) for name in (*self._manifest.cases, *self._manifest.skipped))

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def versions(self) -> dict[str, str]:
        return self._manifest.peer.versions

    def accepts(self, target: Target) -> bool:
        """Whether the dump is of these weights, by their fingerprint if it has one, else by name."""
        if not self._manifest.fingerprint:
            return self._manifest.checkpoint == target.name
        return self._manifest.fingerprint == fingerprint(fingerprints(target.weights, target.backend))

    def open(self, target: Target) -> None:
        """Check every entry and every header. Raises PeerUnavailable, which names the first that is wrong."""
        try:
            if not self.accepts(target):
                shown, mark = self._manifest.checkpoint, self._manifest.fingerprint[:12] or "none"
                said = f"it is of checkpoint {shown!r} (fingerprint {mark}), not of {target.name!r}"
                raise DumpError(f"{said}; give the --ckpt that was exported")
            self.notes = self._compared(target)
            check_patterns(self._manifest.peer, target.config)
            build = case_list.build_rows if self.by_rows else case_list.build
            known = {case.name: case for case in build(target.config)}
            for name in (*self._manifest.cases, *self._manifest.skipped):
                if name not in known:
                    unknown(name, known, "case")
            for name, calls in self._manifest.cases.items():
                if why := unmet(known[name], self.lacks):
                    raise DumpError(f"case {name}: {why}, and the dump holds the case; take it out of one of them")
                opened(Shower(self._manifest.peer, target.config, known[name]), self._folder, calls)
        except DumpError as error:
            raise PeerUnavailable(f"dump {self._folder}: {error}") from error
        self._target = target

    def _compared(self, target: Target) -> list[str]:
        """Compare the configuration that the dump was made with; returns what has to be said of it.

        Raises DumpError for another one: with it no value could be right, and every tap would be blamed.
        """
        made_with = self._manifest.config
        if made_with is None:
            unsaid = "does not say with which configuration it was made: that was not checked"
            return [f"the dump of {self.name} {unsaid}; copy `checkpoint` whole from the export's manifest"]
        if other := difference(made_with, target.config):
            raise DumpError(f"{other}; give the --ckpt that was exported")
        return []

    def close(self) -> None:
        self._target = None

    def run(self, case: Case, dump: Dump) -> None:
        """Read the case's files into `dump`.

        Raises Skip for a case that the dump does not hold, with the reason that it gives. Raises DumpError for ids of
        another input, or where a required tap is missing, but only after everything was put into `dump`.
        """
        assert self._target is not None, "open() comes first"
        if case.name not in self._manifest.cases:
            raise Skip(self._manifest.skipped.get(case.name, "the dump does not hold this case"))
        shower = Shower(self._manifest.peer, self._target.config, case)
        files = opened(shower, self._folder, self._manifest.cases[case.name])
        self.taps, self.findings = tuple(dict.fromkeys(name for _, names in files for name in names)), []
        shower.put_all(files, dump, self.findings)


def opened(shower: Shower, folder: Path, calls: list[Shown]) -> list[File]:
    """A case's files, each with tap → tensor: as the manifest has it, else every tensor under its own name.

    Raises DumpError for a wrong file, name or layout, and for too few or too many files.
    """
    if len(calls) != len(shower.case.calls):
        expected = f"expected {len(shower.case.calls)} calls, found {len(calls)}"
        raise DumpError(f"case {shower.case.name}: {expected}; see `calls` in the export's manifest")
    files: list[File] = []
    for call, shown in enumerate(calls):
        try:
            tensors = Tensors.open(folder, shown.file)
            names = {name: name for name in tensors.entries} if shown.taps is None else shown.taps
            shower.check(call, tensors, names)
        except DumpError as error:
            raise DumpError(f"case {shower.case.name}, call {call}: {error}") from error
        files.append((tensors, names))
    return files


def create(path: str | Path) -> DumpPeer:
    """The peer of a dump folder. Raises PeerUnavailable where its manifest cannot be used."""
    folder = Path(path)
    try:
        return DumpPeer(folder, read(folder))
    except (DumpError, OSError) as error:
        raise PeerUnavailable(f"dump {folder}: {error}") from error
