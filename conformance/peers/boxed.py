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

NAMED = {  # engine: the package to install, and what may be said of it
    "ctranslate2": ("ctranslate2", re.compile(r"(?::(translate|score))?()")),
    "keras_hub": ("keras_hub", re.compile(rf"(?::(torch|jax|numpy|tensorflow))?(?::({'|'.join(RUN_IN)}))?")),
    "mlx_audio": ("mlx_audio", re.compile(rf"(?::(irodori|breeze))?(?::({'|'.join(RUN_IN)}))?")),
}
WAYS = {"ctranslate2": "translate", "keras_hub": "torch", "mlx_audio": "irodori"}  # by default
CHECKPOINTS = {"mlx_audio": "tiny-encoder"}  # of an engine that is judged on another than the others'
TYPED = ("keras_hub", "mlx_audio")  # those that run in a type that is named
FORMS = {
    "ctranslate2[:translate|score][@PYTHON]": "CTranslate2 by its translate_batch or score_batch, in a process",
    "keras_hub[:torch|jax|numpy][:DTYPE][@PYTHON]": "KerasHub on a backend, by default $KERAS_BACKEND or torch",
    "mlx_audio[:irodori|breeze][:DTYPE][@PYTHON]": "mlx-audio's encoders for Irodori TTS or Breeze TTS, text alone",
}


class BoxedPeer(ProcessPeer):
    """An engine in a process. It has the released settings alone, so that it is judged on `tiny-released` unasked, or
    where it has the text encoder alone, on `tiny-encoder`.

    Args:
        name: as it was asked for.
        python: the interpreter that has the engine.
        arguments: for the engine's `main`, after its name.
    """

    checkpoint = "tiny-released"

    def __init__(self, name: str, python: str, engine: str, arguments: Sequence[str], dtype: str) -> None:
        super().__init__("", dtype)
        self.name = name
        self._argv = [python, "-c", START, str(ENGINES), engine, *arguments]
        self.preallocated = engine == "keras_hub"
        self.checkpoint = CHECKPOINTS.get(engine, self.checkpoint)

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
    if engine not in NAMED:
        return None
    package, words = NAMED[engine]
    match = words.fullmatch(stem.removeprefix(engine))
    if match is None:
        raise PeerUnavailable(f"peer {name}: expected {next(form for form in FORMS if form.startswith(engine))}")
    way, dtype = match[1], match[2] or "float32"
    program = _program(name, python, package, engine)
    usual = os.environ.get("KERAS_BACKEND", WAYS[engine]) if engine == "keras_hub" else WAYS[engine]
    return BoxedPeer(name, program, engine, [way or usual, *[dtype] * (engine in TYPED)], dtype)


def _program(name: str, python: str, package: str, engine: str) -> str:
    """The Python to run. Raises PeerUnavailable where it is not there, or is this one and has no such package."""
    if python:
        if (found := shutil.which(python)) is None:
            raise PeerUnavailable(f"peer {name}: there is no program {python}; give the Python that has {package}")
        return found
    if find_spec(package) is None:
        extra = engine.replace("_", "-")  # as every pip finds it
        raise PeerUnavailable(
            f'peer {name} needs {package}, which is not installed: pip install "t5g2ref[{extra}]"; or name a Python '
            f"that has it: --peer {engine}@PATH/python"
        )
    return sys.executable


def in_type(name: str, dtype: str) -> str:
    """The same peer in another type, by its name; "" for one that runs in one type alone, or whose type is named."""
    stem, at, python = name.partition("@")
    engine = stem.partition(":")[0]
    match = NAMED[engine][1].fullmatch(stem.removeprefix(engine)) if engine in TYPED else None
    if match is None or match[2]:
        return ""
    return f"{stem}:{dtype}{at}{python}"
