"""Image bytes to the pixels that models see: what may be an image, how it is decoded, how its values become 8 bits.

One decoder for the whole package, and one value, `Decoding`, that says how. Any room may import this one, which imports
none. Not here: where the bytes come from (`common/sources/`, `store.py`) and what is cut from the pixels (`views.py`).
"""
