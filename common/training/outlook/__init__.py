"""What a run is told of itself: before it begins, by arithmetic, and within its first steps, by measuring them.

Not here: the arithmetic (`common/forecast`).
"""
