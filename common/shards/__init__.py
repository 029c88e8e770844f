"""What a token store is made of: its documents, tables, shards, checks, cache.

Not here: opening one (`store.py`) and writing one (the tokenize stage).
"""
