"""Faults: every defect of the catalogue, and more, as something that can be put into a model. See `catalogue`."""
