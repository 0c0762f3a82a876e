"""What `tools/bench.py` measures, how, and how it is shown."""
