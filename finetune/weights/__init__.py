"""Weights of other projects, in: their files, names and shapes; and out, in the room `export`."""
