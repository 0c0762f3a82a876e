"""Errors that end a command with status 2. Each is named after what is wrong, and its message says what to do."""

from __future__ import annotations


class UsageError(RuntimeError):
    """It was asked for in a way that makes no sense: an option, a name, a file that is to be written."""


class Unavailable(RuntimeError):
    """It makes sense and is not to be had here: something is to be installed, downloaded or changed first."""


class PeerUnavailable(Unavailable):
    """A peer that cannot be run here."""


class PeerBroken(PeerUnavailable):
    """A peer whose package or file is there, and fails. Beside others that work it is judged, and could not be."""


class CheckpointError(Unavailable):
    """A checkpoint that is not to be had, or cannot be used."""
