"""Samples in training order: who gets which, decoded by worker processes, and resumed at any position.

Not here: where their bytes lie (`sources`, `shards`).
"""
