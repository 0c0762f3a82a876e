"""What ports get wrong: the catalogue of defects, each with the faults that put it into a model."""
