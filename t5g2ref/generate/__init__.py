"""Words out: decoding with a cache."""
