"""Checkpoints on disk, read as untrusted input, in both layouts; and how one is written, or made from a seed."""
