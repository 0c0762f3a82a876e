"""Peers on torch: the one folder that may import it."""
