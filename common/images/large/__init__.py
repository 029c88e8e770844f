"""Images of which only parts, or a smaller version, are ever in memory: tiles, windows, and decoding at a scale.

Not here: what whole images are decoded with (`common/images/decode.py`), and what becomes of tiles
(`tokenize/packing/`, `finetune/prediction/`).
"""
