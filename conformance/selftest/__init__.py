"""Is the judge any good? Puts faults into a peer, and sees what the judge makes of them."""
