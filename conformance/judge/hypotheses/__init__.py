"""What is wrong in a black box? The oracle is run with catalogued faults, until it computes what the peer does."""
