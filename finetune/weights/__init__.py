"""Weights of other projects, in: their files, names and shapes."""
