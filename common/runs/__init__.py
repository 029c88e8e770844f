"""A run directory: the names in it, checkpoints, metrics, changes of settings, its copy elsewhere, its curves.

Not here: the training that fills it (`training`).
"""
