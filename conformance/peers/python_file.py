"""A Python file as a peer's package: `FILE.py[:FUNCTION]`, for a port that is not installed.

The function is called as an entry point's is: `create("", backend)`. Modules beside the file can be imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from conformance.errors import PeerBroken, PeerUnavailable
from conformance.peers.guard import said
from conformance.peers.made import made
from conformance.peers.protocol import Peer
from t5g2ref.backend import NUMPY, Backend

USUAL = "create"
_NAME = re.compile(r"(.+\.py)(?::([A-Za-z_]\w*))?")


def find(name: str, backend: Backend = NUMPY) -> Peer | None:
    """The peer of that file; None for a name of another form. Raises PeerUnavailable for a file that gives no peer."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    path, wanted = Path(match[1]), match[2] or USUAL
    if not path.is_file():
        raise PeerUnavailable(f"peer {name}: there is no file {path}; give FILE.py[:FUNCTION]")
    function = getattr(_imported(path, name), wanted, None)
    if not callable(function):
        raise PeerUnavailable(f"peer {name}: {path} has no function {wanted}; define it, or give {path}:FUNCTION")
    return made(f"peer {name}", function, "", backend)


def checksum(name: str) -> str:
    """SHA-256 of the file that such a name names; "" for a name of another form. Modules beside it do not count.

    A command of a process may end in `.py` too, so what is no file is of another form.
    """
    match = _NAME.fullmatch(name)
    if match is None or not Path(match[1]).is_file():
        return ""
    return hashlib.sha256(Path(match[1]).read_bytes()).hexdigest()


def _imported(path: Path, name: str) -> ModuleType:
    """The file as a module, run anew; its folder stays on the path, after all others."""
    spec = importlib.util.spec_from_file_location(f"_peer_{path.stem}", path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    sys.modules[spec.name] = module  # as dataclasses and pickle need it
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a foreign file raises, SystemExit too
        del sys.modules[spec.name]
        first = said(error).splitlines()[0]
        raise PeerBroken(f"peer {name}: {path} could not be imported: {first}") from error
    return module
