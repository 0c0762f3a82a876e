"""Worked examples: a peer in forty lines, and a dump by a program that knows nothing of this one."""
