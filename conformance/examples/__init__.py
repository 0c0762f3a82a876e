"""Worked examples: a peer in forty lines, one of logits alone, and a dump by a program that knows nothing of ours."""
