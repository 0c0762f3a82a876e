"""A program in any language as a peer: it is started, and asked in lines of JSON on its standard input.

    → {"hello": "t5g2ref", "version": 1, "checkpoint": "/path" or null, "folder": "/tmp/…"}
    ← {"name": "mine", "dtype": "float32", "versions": {"mine": "1.0"}, "taps": ["*"], "layouts": {}, "stored": {},
       "types": {}, "lacks": [], "quantised": ""}
    → {"run": "short", "inputs": "/tmp/…/inputs.safetensors", "out": "/tmp/…/out", "task": "lm", "runs": […], …}
    ← {"done": ["0.safetensors", …]}  one file a call, inside `out`, tensors named as the taps are
    ← {"skip": "no pictures yet", "link": "https://…"}   or   {"error": "out of memory"}

A program whose greeting has `"generates": true` is asked in `--lane generate` as well:

    → {"generate": "generate", "inputs": "/tmp/…/inputs.safetensors", "out": "/tmp/…/out", "new": 8, "beams": 1,
       "stop": [1, 106]}  tensors: input_ids, and where they are given attention_mask, pixel_values, start
    ← {"done": ["answer.safetensors"]}  tensors: ids, and where it has them logits, log_probs, scores

Reports call the peer by its `name`, with its command beside it; the file of `--known` calls it process:COMMAND.
Inputs, runs and calls are as `export` writes them, and files are read as `check` reads a dump's. When its input ends,
the program should end too.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.cases.prompt import GENERATE, Answer, Prompt
from conformance.errors import PeerUnavailable
from conformance.exchange import case_words as describe
from conformance.exchange import writing
from conformance.exchange.arrange import Shower, check_patterns
from conformance.exchange.channel import Channel, ProcessError
from conformance.exchange.manifest import Declared, Shown, declared
from conformance.exchange.reading import DumpError, Tensors
from conformance.measure.finding import Finding
from conformance.peers.folder import opened
from conformance.peers.guard import line
from conformance.peers.protocol import TIMEOUT, OptionalMembers, Skip
from conformance.target import Target
from t5g2ref.config.fields import short
from t5g2ref.dtypes import RUN_IN

VERSION = 1
_NAME = re.compile(rf"(?:process:)?(?:({'|'.join(RUN_IN)}):)?(.*)", re.DOTALL)


class ProcessPeer(OptionalMembers):
    """A process under judgement; started anew for each checkpoint, and after it has failed.

    Args:
        command: split as a shell would, and run without one.
        dtype: the type that it runs in; its greeting has to say the same.
        timeout: seconds for each answer.

    Attributes:
        called: the name that the process gave in its greeting; "" before.
        taps: the patterns that the process gave in its greeting.
        findings: see `DumpPeer`.
    """

    timeout: float

    def __init__(self, command: str, dtype: str = "float32", timeout: float = TIMEOUT) -> None:
        self.name = f"process:{command}" if dtype == "float32" else f"process:{dtype}:{command}"
        self.dtype = dtype
        self.taps: tuple[str, ...] = ("*",)
        self.findings: list[Finding] = []
        self._argv, self.timeout = shlex.split(command), timeout
        self._target: Target | None = None
        self._channel: Channel | None = None
        self._declared = Declared("", dtype)
        self.generate: Callable[[Prompt], Answer] | None = None  # known by its greeting

    def versions(self) -> dict[str, str]:
        return self._declared.versions

    def open(self, target: Target) -> None:
        """Start the process and greet it. Raises PeerUnavailable where it does not start or answers wrongly."""
        self.close()
        self._target = target
        self._folder = tempfile.TemporaryDirectory(prefix="conformance-process-")
        try:
            self._greet(target)
        except (ProcessError, DumpError, OSError) as error:
            self.close()
            raise PeerUnavailable(f"peer {self.name}: {error}") from error

    def close(self) -> None:
        """End the process and its group; delete what was exchanged."""
        if self._channel is not None:
            self._channel.close()
        if self._target is not None:
            self._folder.cleanup()
        self._channel = self._target = None

    def run(self, case: Case, dump: Dump) -> None:
        """Ask for the case and read its files. Raises Skip where it skips; ProcessError or DumpError where it fails."""
        assert self._target is not None, "open() comes first"
        channel, folder = self._running(self._target), Path(self._folder.name) / "case"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            (folder / "out").mkdir(parents=True)
            width = self._target.config.decoder.hidden_size
            writing.tensors(folder / "inputs.safetensors", describe.inputs(case, width))
            places = {"run": case.name, "inputs": str(folder / "inputs.safetensors"), "out": str(folder / "out")}
            answer = channel.ask(places | describe.words(self._target.config, case), self.timeout)
            shower = Shower(self._declared, self._target.config, case)
            files = opened(shower, folder / "out", _done(answer))
            self.findings = []
            shower.put_all(files, dump, self.findings)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _generate(self, prompt: Prompt) -> Answer:
        """Ask for one prompt and read its answer. Raises as `run` does."""
        assert self._target is not None, "open() comes first"
        channel, folder = self._running(self._target), Path(self._folder.name) / "prompt"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            (folder / "out").mkdir(parents=True)
            given = {name: getattr(prompt, name) for name in ("input_ids", "attention_mask", "pixel_values", "start")}
            writing.tensors(
                folder / "inputs.safetensors", {n: value for n, value in given.items() if value is not None}
            )
            places = {"generate": GENERATE, "inputs": str(folder / "inputs.safetensors"), "out": str(folder / "out")}
            how = {"new": prompt.new, "beams": prompt.beams, "stop": list(prompt.stop)}
            return _answer(folder / "out", _done(channel.ask(places | how, self.timeout)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _running(self, target: Target) -> Channel:
        """The process, started again if it has ended."""
        if self._channel is None or not self._channel.running:
            self._greet(target)
        assert self._channel is not None
        return self._channel

    def _checkpoint(self, target: Target) -> str | None:
        """What the greeting says of where the weights lie; None for synthetic ones."""
        return None if target.folder is None else str(Path(target.folder).absolute())

    def _greet(self, target: Target) -> None:
        self._channel = Channel(self._argv)
        hello = {"hello": "t5g2ref", "version": VERSION, "folder": self._folder.name}
        hello["checkpoint"] = self._checkpoint(target)
        answer = self._channel.ask(hello, self.timeout)
        if "error" in answer or "skip" in answer:
            raise ProcessError(f"it refuses: {line(answer.get('error', answer.get('skip')))}")
        usual: dict[str, Any] = {"layouts": {}, "stored": {}, "types": {}, "lacks": [], "quantised": ""}
        generates = answer.pop("generates", False)
        said = declared({name: answer.pop(name, value) for name, value in usual.items()}, answer)
        if not isinstance(generates, bool):
            raise ProcessError(f"generates is {short(generates)}, expected true or false")
        if said.dtype != self.dtype:
            raise ProcessError(f"it runs in {said.dtype}, not {self.dtype}; name it process:{said.dtype}:COMMAND")
        check_patterns(said, target.config)
        patterns = answer.get("taps", ["*"])
        if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
            raise ProcessError(f"taps are {short(patterns)}, expected a list of names or patterns")
        self._declared, self.taps, self.called = said, tuple(patterns), said.name
        self.lacks, self.quantised, self.types = said.lacks, said.quantised, said.types
        self.generate = self._generate if generates else None


def _answer(folder: Path, files: list[Shown]) -> Answer:
    """The answer in a file. Raises DumpError for other tensors than an answer has, or without ids."""
    if len(files) != 1:
        raise DumpError(f"it wrote {len(files)} files for a prompt, expected one")
    tensors = Tensors.open(folder, files[0].file)
    names = [field.name for field in fields(Answer)]
    if strange := [name for name in tensors.entries if name not in names]:
        raise DumpError(f"{short(tensors.name)}: has {short(strange[0])}, expected only {', '.join(names)}")
    if "ids" not in tensors.entries:
        raise DumpError(f"{short(tensors.name)}: has no ids")
    return Answer(**{name: tensors.read(name) for name in tensors.entries})


def _done(answer: dict[str, Any]) -> list[Shown]:
    """The files of an answer. Raises Skip or ProcessError where it has none."""
    if "skip" in answer:
        raise Skip(answer["skip"], answer.get("link", ""))
    if "error" in answer:
        raise ProcessError(f"it says: {line(answer['error'])}")
    files = answer.get("done")
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ProcessError(f"it answered {short(answer)}, expected done, skip or error")
    return [Shown(file) for file in files]


def create(name: str, timeout: float = TIMEOUT) -> ProcessPeer:
    """The peer `process:[DTYPE:]COMMAND`. Raises PeerUnavailable where there is no command in it."""
    match = _NAME.fullmatch(name)
    assert match is not None
    dtype, command = match.groups()
    try:
        if not shlex.split(command):
            raise ValueError("there is no command in it")
    except ValueError as error:
        raise PeerUnavailable(f"peer {name}: {error}; give process:[DTYPE:]COMMAND") from error
    return ProcessPeer(command, dtype or "float32", timeout)
