"""Peers on torch. No other folder may import it."""
