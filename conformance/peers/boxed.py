"""Engines of `peers/engines` as peers: each in a process of its own, under this Python or another one.

Another Python needs the engine and NumPy, and nothing of this package: the child is given its files' folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from conformance.errors import PeerUnavailable
from conformance.peers.process import ProcessPeer
from conformance.target import Target
from t5g2ref.checkpoint.write import save
from t5g2ref.dtypes import RUN_IN

ENGINES = Path(__file__).parent / "engines"
START = """\
import importlib, importlib.util, sys
sys.path = [path for path in sys.path if path]
folder, name, *rest = sys.argv[1:]
spec = importlib.util.spec_from_file_location("engines", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["engines"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["engines"])
importlib.import_module("engines." + name).main(rest)
"""
"""Imports one engine's file as a module of a package, wherever the folder lies, then answers questions."""


@dataclass(frozen=True)
class Box:
    """What is known of an engine. It is the name of the package to install, too.

    Args:
        ways: in which it may be asked, the usual one first.
        form: how the peer is named, in `list peers`.
        what: it is, in words.
        typed: whether it runs in a type that is named.
        variable: of the environment, which may name the usual way; "" for none.
        checkpoint: that it is judged on unasked.
        preallocated: see `OptionalMembers`.
    """

    ways: tuple[str, ...]
    form: str
    what: str
    typed: bool = True
    variable: str = ""
    checkpoint: str = "tiny-released"
    preallocated: bool = False

    @property
    def words(self) -> re.Pattern[str]:
        """What may stand behind the engine's name: a way, then a type."""
        return re.compile(rf"(?::({'|'.join(self.ways)}))?(?::({'|'.join(RUN_IN) if self.typed else '(?!)'}))?")

    @property
    def usual(self) -> str:
        return os.environ.get(self.variable, self.ways[0])


BOXES = {
    "ctranslate2": Box(
        ("translate", "score"),
        "ctranslate2[:translate|score][@PYTHON]",
        "CTranslate2 by its translate_batch or score_batch, in a process",
        typed=False,
    ),
    "keras_hub": Box(
        ("torch", "jax", "numpy", "tensorflow"),
        "keras_hub[:torch|jax|numpy][:DTYPE][@PYTHON]",
        "KerasHub on a backend, by default $KERAS_BACKEND or torch",
        variable="KERAS_BACKEND",
        preallocated=True,
    ),
    "mlx_audio": Box(
        ("irodori", "breeze"),
        "mlx_audio[:irodori|breeze][:DTYPE][@PYTHON]",
        "mlx-audio's encoders for Irodori TTS or Breeze TTS, text alone",
        checkpoint="tiny-encoder",
    ),
}
FORMS = {box.form: box.what for box in BOXES.values()}


class BoxedPeer(ProcessPeer):
    """An engine in a process. It has the released settings alone, so that it is judged on its box's checkpoint unasked.

    Args:
        name: as it was asked for.
        python: the interpreter that has the engine.
        arguments: for the engine's `main`, after its name.
    """

    def __init__(self, name: str, python: str, engine: str, arguments: Sequence[str], dtype: str) -> None:
        super().__init__("", dtype)
        self.name = name
        self._argv = [python, "-c", START, str(ENGINES), engine, *arguments]
        self.preallocated, self.checkpoint = BOXES[engine].preallocated, BOXES[engine].checkpoint

    def _checkpoint(self, target: Target) -> str:
        """The checkpoint's folder; synthetic weights are written first. A whole config.json is written in any case."""
        given, own = target.folder, Path(self._folder.name)
        if given is None:
            weights = ((name, target.backend.host(value)) for name, value in target.weights.items())
            save(given := own / "checkpoint", target.config, weights, dtype="float32")
        (own / "config.json").write_text(json.dumps(target.config.to_dict()), encoding="utf-8")
        return str(Path(given).absolute())


def find(name: str) -> BoxedPeer | None:
    """The peer `ENGINE[:…][@PYTHON]`; None for another name.

    Raises PeerUnavailable for an engine that is not installed, words that it does not know, or no such Python.
    """
    stem, _, python = name.partition("@")
    engine = stem.partition(":")[0]
    if (box := BOXES.get(engine)) is None:
        return None
    match = box.words.fullmatch(stem.removeprefix(engine))
    if match is None:
        raise PeerUnavailable(f"peer {name}: expected {box.form}")
    way, dtype = match[1] or box.usual, match[2] or "float32"
    return BoxedPeer(name, _program(name, python, engine), engine, [way, *[dtype] * box.typed], dtype)


def _program(name: str, python: str, engine: str) -> str:
    """The Python to run. Raises PeerUnavailable where it is not there, or is this one and has no such package."""
    if python:
        if (found := shutil.which(python)) is None:
            raise PeerUnavailable(f"peer {name}: there is no program {python}; give the Python that has {engine}")
        return found
    if find_spec(engine) is None:
        extra = engine.replace("_", "-")  # as every pip finds it
        raise PeerUnavailable(
            f'peer {name} needs {engine}, which is not installed: pip install "t5g2ref[{extra}]"; or name a Python '
            f"that has it: --peer {engine}@PATH/python"
        )
    return sys.executable


def in_type(name: str, dtype: str) -> str:
    """The same peer in another type, by its name; "" for one that runs in one type alone, or whose type is named."""
    stem, at, python = name.partition("@")
    engine = stem.partition(":")[0]
    box = BOXES.get(engine)
    match = box.words.fullmatch(stem.removeprefix(engine)) if box is not None and box.typed else None
    if match is None or match[2]:
        return ""
    return f"{stem}:{dtype}{at}{python}"
