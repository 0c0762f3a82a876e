"""What `tools/fuzz.py` spoils, how it is read in a process of its own, and what may come of it."""
