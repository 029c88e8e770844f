"""The images a user names, wherever they lie: loose files, tars, Parquet, and the index of labelled ones.

Not here: our own token stores (`shards`, `store.py`) and reading in training order (`reading`).
"""
