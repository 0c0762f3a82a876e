"""Which releases of transformers can be judged, and what each calls the decoder's cache. No torch here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import InvalidVersion, Version

from conformance.errors import PeerUnavailable

OLDEST, NEWEST = "5.1.0", "5.24.0"
"""Every release between them was judged; pyproject.toml asks for the oldest at least."""


def refuse_unsupported(installed: str | None = None) -> None:
    """Raises PeerUnavailable for a release that cannot be judged: 5.0 has no `get_interface`, 4 no T5Gemma 2.

    Args:
        installed: the version; None for the installed package's. If no package is there, its import will say so.
    """
    try:
        found = installed or version("transformers")
        old = Version(found) < Version(OLDEST)
    except (PackageNotFoundError, InvalidVersion):
        return
    if old:
        raise PeerUnavailable(
            f"transformers {found} cannot be judged, expected {OLDEST} or later (tested up to {NEWEST}): "
            f'pip install "transformers>={OLDEST},<6"'
        )


def untested(installed: str) -> str:
    """A note for a release that is newer than every tested one; "" for the others."""
    try:
        new = Version(installed).release[:2] > Version(NEWEST).release[:2]
    except InvalidVersion:
        return ""
    return f"transformers {installed} is newer than the releases this was tested with, {OLDEST} to {NEWEST}" * new


def named(attention: str, way: str, dtype: str, device: str) -> str:
    """What a peer is called: float32 on the CPU goes without saying.

    Args:
        way: "", "-static" or "-compile".
    """
    usual = (dtype, device) == ("float32", "cpu")
    return f"transformers:{attention}{way}" + ("" if usual else f":{dtype}:{device}")


def cache_name(forward: Callable[..., Any]) -> str:
    """The name of the cache in a model's `forward`: "cache" from 5.24 on, "past_key_values" before."""
    names = inspect.signature(forward).parameters
    return "cache" if "cache" in names else "past_key_values"
