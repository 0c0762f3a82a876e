"""Decoding at the rate at which a card reads weights: one kernel for a token, or for many.

plan.py       how the kernel is laid out for one geometry, card and batch
weights.py    the weights in its order
session.py    its memory, and tokens asked of it
stepping.py   the twins of `t5g2ref/one_step.py`
launch.py     compiled and launched with CuPy, which nothing else here needs
decode.cu     the kernel; it says what is in the files beside it
"""
