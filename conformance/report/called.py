"""What reports call a peer: a program by the name in its greeting, everything else by what was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from conformance.peers.find import BUILT_IN


def labels(names: Iterable[str], called: Mapping[str, str]) -> dict[str, str]:
    """Name of a peer → what to call it. A name that another peer has, or a built-in one may, does not stand alone.

    Args:
        names: of all peers.
        called: name → what the peer calls itself, where it does.
    """
    wanted = {name: called.get(name) or name for name in names}
    alike = Counter(wanted.values())
    return {
        name: label if label == name or (alike[label] == 1 and not label.startswith(BUILT_IN)) else f"{label} [{name}]"
        for name, label in wanted.items()
    }


def renamed(note: str, labels: Mapping[str, str]) -> str:
    """A note about a peer, which begins with its name."""
    name = max((name for name in labels if note.startswith(name)), key=len, default="")
    return labels[name] + note.removeprefix(name) if name else note
