"""The exact lane: weights, ids, embedding rows and masks, bit for bit."""
