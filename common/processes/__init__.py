"""Processes: launching ranks on one machine and several, what they report, signals, workers, cores.

Not here: what they do.
"""
