"""Engines of others, each run in a process of its own.

These files run under any Python that has the engine and NumPy. They import nothing else, and nothing of this package
but each other, relatively: `peers.boxed` starts them under another package's name.
"""
