"""Is the judge any good? Faults are put into a peer, and the judge has to find them."""
