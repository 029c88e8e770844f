"""Files and where they lie: atomic writes, locks, places local and remote, JSON documents, tars as bytes.

Also the numbers of samples, which every room above counts by. Not here: what the bytes mean (`shards`, `sources`,
`runs`).
"""
