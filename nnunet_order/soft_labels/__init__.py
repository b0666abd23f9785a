"""Soft labels: a teacher's probabilities beside the label maps of a raw data set, and training on them."""
