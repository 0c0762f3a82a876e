"""Words out: decoding with a cache.

Read `greedy.py` and its loop, `steps.py`; then `processors.py`, `rules.py` and `stop.py`: what is done to logits, and
where rows end. Then `sample.py`, and `beam.py` with `hypotheses.py`. `options.py` has what all of them take, and
`starts.py` what answers begin with.
"""
