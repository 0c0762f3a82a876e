"""Is the judge any good: faults put into a peer, and what the judge made of them."""
