"""Finds a peer by its name. A peer's module is imported when it is asked for, and never before."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from conformance.errors import PeerBroken, PeerUnavailable
from conformance.peers.boxed import FORMS as ENGINES
from conformance.peers.later import Later
from conformance.peers.protocol import Peer
from t5g2ref.backend import NUMPY, Backend, BackendError
from t5g2ref.dtypes import RUN_IN

_TYPES = "|".join(RUN_IN)
DUMP, PROCESS = "dir:", "process:"  # before a folder, and a command
FORMS = {
    f"transformers:eager|sdpa[-static|-compile][:{_TYPES}[:cpu|cuda|cuda:1]]": "in float32, on the judge's device",
    f"t5g2ref:numpy|cupy[:1]:{_TYPES}[:fast]": "the reference itself; fast: with the kernels of cupy-fast",
    "onnxruntime": "transformers' model as torch exports it to ONNX, on the CPU in float32",
    **ENGINES,
    f"{PROCESS}[DTYPE:]COMMAND": "a program that speaks JSON lines (see `explain ports`)",
    f"{DUMP}FOLDER": "what a program wrote, as `check` reads it",
    "FILE.py[:FUNCTION]": "a Python file whose function (by default create) makes the peer: create(argument, backend)",
    "ENTRY[:ARGUMENT]": "a Python package's entry point in the group conformance.peers",
}
"""How a peer may be named, and what that means."""

_NAMES = {  # module: its names, whose groups are the arguments of its `create`
    "torch.made": re.compile(rf"transformers:(eager|sdpa)(-static|-compile)?(?::({_TYPES})(?::(cpu|cuda|cuda:\d+))?)?"),
    "torch.onnx_peer": re.compile("onnxruntime"),
    "reference": re.compile(rf"t5g2ref:(?!numpy:.*:fast)(numpy|cupy(?::\d+)?):({_TYPES})(:fast)?"),
}


UNTYPED = (
    "transformers:eager",
    "transformers:sdpa",
    "transformers:eager-static",
    "transformers:sdpa-static",
    "transformers:eager-compile",
    "transformers:sdpa-compile",
    "t5g2ref:numpy",
    "t5g2ref:cupy",
)


def typed(name: str, dtype: str) -> str:
    """The name of that peer in a type; "" where the name has its type, or the peer has one alone."""
    from conformance.peers.boxed import in_type

    return f"{name}:{dtype}" if name in UNTYPED else in_type(name, dtype)


BUILT_IN = ("transformers:", "t5g2ref:")
"""Beginnings of names that mean the same peer in a short and a long form."""


def other_type(name: str, names: Iterable[str]) -> str:
    """Among the names, the same peer in another type; "" where there is none."""
    stem = re.sub(rf":({_TYPES})(?=:|$)", "", name)
    alike = (n for n in names if n != name and re.sub(rf":({_TYPES})(?=:|$)", "", n) == stem)
    return next(alike, "") if name.startswith(BUILT_IN) else ""


def names(dtype: str = "float32") -> list[str]:
    """The peers that are judged by default, in this type."""
    return [f"transformers:{attention}:{dtype}" for attention in ("eager", "sdpa")]


def create(name: str, backend: Backend = NUMPY) -> Peer:
    """The peer of that name, for a judge on `backend`.

    Raises PeerUnavailable where the name is unknown, its packages are not installed, or its device is not there.
    """
    for module, pattern in _NAMES.items():
        if match := pattern.fullmatch(name):
            return _created(name, module, *match.groups(), backend)
    if name.startswith(PROCESS):
        return _created(name, "process", name)
    if name.startswith(DUMP):
        from conformance.peers.folder import create as read

        return read(Path(name.removeprefix(DUMP)))
    from conformance.peers import boxed, python_file
    from conformance.peers import entry_points as plugins

    found = boxed.find(name) or python_file.find(name, backend) or plugins.find(name, backend)
    if found is None:
        known = ", ".join([*FORMS, *plugins.names()])
        raise PeerUnavailable(f"no peer is called {name!r}; there are: {known}")
    return found


def described(name: str, backend: Backend = NUMPY) -> Peer | None:
    """What a run has to know of transformers on the CPU, which is imported once it is asked for something; None for any
    other peer. Raises PeerUnavailable as `create` does, but for packages that are broken: then the peer does.
    """
    match = _NAMES["torch.made"].fullmatch(name)
    if match is None or backend.name != "numpy" or match[2] == "-compile" or match[4] not in (None, "cpu"):
        return None
    from conformance.peers.torch.releases import named, refuse_unsupported

    refuse_unsupported()
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise _missing(name, package)
    attention, way, dtype = match[1], match[2] or "", match[3] or "float32"
    return Later(
        named(attention, way, dtype, "cpu"),
        dtype,
        partial(create, name, backend),
        generates=True,
        prepares=True,
        picks=True,
        preallocated=way == "-static",
    )


def alone(names: Iterable[str]) -> bool:
    """Whether one package makes all of these peers: where it is broken, there is nothing to judge."""
    return len({name.split(":")[0] if name.startswith(BUILT_IN) else name for name in names}) == 1


def broken(name: str, dtype: str, error: PeerBroken) -> Peer:
    """Stands for a peer that could not be made, beside others that could: each of its cases has this error."""

    def make() -> Peer:
        raise error

    return Later(name, dtype, make)


def _missing(name: str, package: str | None, extra: str = "conformance") -> PeerUnavailable:
    return PeerUnavailable(f'peer {name} needs {package}, which is not installed: pip install "t5g2ref[{extra}]"')


def _created(name: str, module: str, *arguments: Any) -> Peer:
    extra = "onnxruntime" if module == "torch.onnx_peer" else "conformance"
    if module.startswith("torch."):
        from conformance.peers.torch.releases import refuse_unsupported

        refuse_unsupported()
    try:
        peer: Peer = importlib.import_module(f"conformance.peers.{module}").create(*arguments)
    except ModuleNotFoundError as error:
        raise _missing(name, error.name, extra) from error
    except (PeerUnavailable, BackendError):
        raise
    except Exception as error:  # it is installed, but too old or broken: a library that is not there is an OSError
        raise PeerBroken(
            f'peer {name} could not be imported ({error}): pip install --upgrade "t5g2ref[{extra}]"'
        ) from error
    return peer
