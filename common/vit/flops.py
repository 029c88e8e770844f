"""How much arithmetic a training step of a vision transformer is: its matrix products and convolution, exactly.

Element-wise work, norms and softmax are left out, as everywhere where model FLOPs utilisation (MFU) is quoted; so is
what activation checkpointing computes a second time.

Legend: N = patches, S = 1 + N, D = embed_dim, K = positions that leave the last block.
"""

from __future__ import annotations

from beit.common.vit.config import ViTConfig


def training_flops(
    config: ViTConfig,
    *,
    head_rows: int,
    head_outputs: int,
    last_rows: int | None = None,
    frozen_blocks: int | None = None,
    lora_rank: int | None = None,
    is_input_trained: bool = False,
    extra_blocks: int = 0,
) -> int:
    """Return multiplications and additions of one image's forward and backward pass.

    Args:
        config: Shape of the encoder.
        head_rows: Vectors per image that the head sees: positions predicted, or 1 for a classifier.
        head_outputs: Width of the head's output.
        last_rows: K, where the last block finishes only some positions; None where it finishes all.
        frozen_blocks: First blocks that are not trained, with everything before them; None where all is.
        lora_rank: Of the updates that are trained in the place of all blocks' weights and what is before them.
        is_input_trained: Whether a mask token or a position table is trained although what is before the blocks is not:
            then gradients go through all blocks.
        extra_blocks: Blocks behind the encoder's, the last of which finishes `last_rows` positions; always trained.
    """
    length, dim, rank = 1 + config.num_patches, config.embed_dim, lora_rank or 0
    is_frozen = frozen_blocks is not None or rank > 0
    goes_through = is_input_trained or not is_frozen
    embedding = 2 * config.num_patches * config.in_chans * config.patch_size**2 * dim
    # Trained: forward, gradient of the inputs, gradient of the weights. The pixels need no gradient.
    total = (1 if is_frozen else 2) * embedding + 3 * 2 * head_rows * dim * head_outputs
    for number in range(config.depth):
        block = _Block(config, length, last_rows if number == config.depth - 1 else None, rank)
        if number < (frozen_blocks or 0):
            total += 2 * block.weights + 3 * block.attention if goes_through else block.weights + block.attention
            continue
        total += (2 if rank else 3) * block.weights + 3 * (block.attention + block.updates)
        if number == 0 and rank and not goes_through:  # nothing before its first norm wants a gradient
            total -= block.inputs
    for number in range(extra_blocks):
        block = _Block(config, length, last_rows if number == extra_blocks - 1 else None, 0)
        total += 3 * (block.weights + block.attention)
    return total


def forward_flops(config: ViTConfig) -> int:
    """Return multiplications and additions of one image's forward pass through the encoder, without a head."""
    embedding = 2 * config.num_patches * config.in_chans * config.patch_size**2 * config.embed_dim
    block = _Block(config, 1 + config.num_patches, None, 0)
    return embedding + config.depth * (block.weights + block.attention)


class _Block:
    """Forward arithmetic of one block by its parts: `rows` positions leave it, or None for all of `length`."""

    def __init__(self, config: ViTConfig, length: int, rows: int | None, rank: int) -> None:
        asking = length if rows is None else rows
        dim, hidden = config.embed_dim, config.mlp_dim
        queries_keys_values = 2 * (asking + 2 * length) * dim * dim
        reading = length if rows is None else asking + length  # queries apart from keys and values
        first, second = 2 * reading * dim * rank, 2 * (asking + 2 * length) * dim * rank
        self.weights = queries_keys_values + 2 * asking * dim * (dim + 2 * hidden)
        """Products with the block's matrices."""
        self.attention = 2 * 2 * asking * length * dim
        """Queries with keys, probabilities with values."""
        self.updates = first + second + 2 * asking * rank * (2 * dim + 2 * (dim + hidden))
        """Products with the factors of their updates."""
        self.inputs = queries_keys_values + first
        """As much as the gradient of what queries, keys and values are made of."""
