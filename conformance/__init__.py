"""conformance: holds any implementation of T5Gemma 2 against `t5g2ref`, layer by layer.

`python -m conformance` judges; `judge.judge` is the same from Python, and `testing.assert_conforms` asserts it. Nothing
here but `peers.*` imports a peer.
"""
