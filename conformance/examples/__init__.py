"""Worked examples: a peer in forty lines, one of logits alone, and a dump by a program that knows nothing of ours.

In `vectors/` are checkers for test vectors, in C, JavaScript and Rust.
"""
