"""How much arithmetic a training step of a vision transformer is: its matrix products and convolution, exactly.

Element-wise work, norms and softmax are left out, as everywhere where model FLOPs utilisation (MFU) is quoted; so is
what activation checkpointing computes a second time.

Legend: N = patches, S = 1 + N, D = embed_dim, K = positions that leave the last block.
"""

from __future__ import annotations

from beit.common.vit.config import ViTConfig


def training_flops(
    config: ViTConfig, *, head_rows: int, head_outputs: int, last_rows: int | None = None, frozen_blocks: int = 0
) -> int:
    """Return multiplications and additions of one image's forward and backward pass.

    Args:
        config: Shape of the encoder.
        head_rows: Vectors per image that the head sees: positions predicted, or 1 for a classifier.
        head_outputs: Width of the head's output.
        last_rows: K, where the last block finishes only some positions; None where it finishes all.
        frozen_blocks: First blocks that are not trained, with everything before them.
    """
    length, dim, hidden = 1 + config.num_patches, config.embed_dim, config.mlp_dim
    patch_values = config.in_chans * config.patch_size**2
    blocks = [_block(length, length, dim, hidden)] * (config.depth - 1)
    blocks.append(_block(length, length if last_rows is None else last_rows, dim, hidden))
    embedding, head = 2 * config.num_patches * patch_values * dim, 2 * head_rows * dim * head_outputs
    # Trained: forward, gradient of the inputs, gradient of the weights. The pixels need no gradient.
    trained = 3 * (sum(blocks[frozen_blocks:]) + head)
    return trained + sum(blocks[:frozen_blocks]) + (1 if frozen_blocks else 2) * embedding


def _block(length: int, rows: int, dim: int, hidden: int) -> int:
    keys_and_values = 2 * length * dim * 2 * dim
    queries_and_output = 2 * rows * dim * 2 * dim
    attention = 2 * 2 * rows * length * dim
    mlp = 2 * 2 * rows * dim * hidden
    return keys_and_values + queries_and_output + attention + mlp
