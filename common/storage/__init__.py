"""Files and what is counted in them: atomic writes, locks, documents, tars, and samples by their numbers.

Not here: what the files of a store, a run or a source mean.
"""
