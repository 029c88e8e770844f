"""Files and where they lie: atomic writes, locks, places local and remote, JSON documents, tars as bytes.

Not here: what the bytes mean (`shards`, `sources`, `runs`).
"""
