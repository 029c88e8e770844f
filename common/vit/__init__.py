"""The vision transformer: modules, shape, first weights, position bias, adaptation to other sizes, features.

Not here: reading and writing encoders (`encoder.py`) and what stands on top of one (the stages).
"""
