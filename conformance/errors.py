"""Errors that end a command with status 2: each is named after what is wrong, and says what to do."""

from __future__ import annotations


class PeerUnavailable(RuntimeError):
    """The peer cannot be run here; the message says what to install or change."""


class CheckpointError(RuntimeError):
    """The checkpoint is not to be had or not usable; the message says what to do."""
