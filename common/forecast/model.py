"""A model under training, as numbers: its parameters, the arithmetic of an image, and what a micro-batch keeps.

A training keeps of every image what the backward pass will ask for. What that is was read off the modules, tensor by
tensor, and checked against measured peaks (`docs/plan.md`); each count below names its tensors in their order.

Legend: N = patches, S = 1 + N, D = embed_dim, M = mlp_dim, H = heads, K = positions that leave the last block,
V = width of the head's output. "Half" is bf16 or fp16 under autocast, where the residual stream stays float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from beit.common.forecast.hardware import Precision
from beit.common.vit.config import ViTConfig
from beit.common.vit.flops import training_flops

FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """What a training step works on; bytes are those of one image unless they say otherwise."""

    parameters: int
    """All."""
    trained: int
    """Of these, those that get gradients."""
    flops_per_image: float
    """Multiplications and additions, forward and backward."""
    kept_bytes: float
    """Of one image, what the backward pass needs."""
    passing_bytes: float
    """Of one image, what is there beside it for a moment, at the worst one."""
    step_bytes: float = 0.0
    """Of a micro-batch, whatever its size: position biases, copies of the weights in another number format."""
    forward_bytes: float = 0.0
    """Of one image that is evaluated, at the worst moment."""
    row_bytes: float = 0.0
    """Of one sample as a data worker hands it over."""


def vit_parameters(shape: ViTConfig) -> int:
    """Count the parameters of an encoder without a head."""
    length, dim = 1 + shape.num_patches, shape.embed_dim
    count = shape.in_chans * shape.patch_size**2 * dim + dim + dim  # patches, CLS
    count += dim * shape.use_mask_token + length * dim * shape.use_abs_pos_emb + 2 * dim * shape.final_norm
    count += _table_rows(shape) * shape.num_heads * (shape.pos_bias == "shared")
    return count + shape.depth * block_parameters(shape)


def block_parameters(shape: ViTConfig) -> int:
    """Count the parameters of one block, its own position table included."""
    dim, hidden = shape.embed_dim, shape.mlp_dim
    norms, biases = 4 * dim, 2 * dim * shape.qkv_bias + dim + hidden + dim
    matrices = 4 * dim * dim + 2 * dim * hidden
    table = _table_rows(shape) * shape.num_heads * (shape.pos_bias == "per_block")
    return norms + biases + matrices + 2 * dim * (shape.init_values > 0) + table


def head_parameters(shape: ViTConfig, outputs: int) -> int:
    """Count a last norm, unless it is the encoder's, and a linear head of so many outputs."""
    dim = shape.embed_dim
    return 2 * dim * (not shape.final_norm) + (dim + 1) * outputs


def vit_model(
    shape: ViTConfig,
    *,
    head_rows: int,
    head_outputs: int,
    last_rows: int | None = None,
    frozen_blocks: int | None = None,
    lora_rank: int | None = None,
    is_input_trained: bool = False,
    extra_blocks: int = 0,
    precision: Precision = "fp32",
    device: str = "cpu",
    is_recomputed: bool = False,
) -> TrainedModel:
    """Return the numbers of a vision transformer with a last norm and a linear head.

    Args:
        shape: Of the encoder.
        head_rows: Vectors per image that the head sees, over all times it is asked.
        head_outputs: V.
        last_rows: K, where the last block finishes only some positions; None where it finishes all.
        frozen_blocks: First blocks that are not trained, with everything before them; None where all is.
        lora_rank: Of the updates that are trained in the place of the encoder's matrices.
        is_input_trained: Whether something before the blocks is trained although these are not.
        extra_blocks: Behind the encoder's, of its kind; the last one finishes K positions.
        precision: Of the step.
        device: cpu or cuda, whose attention keeps more or less.
        is_recomputed: Whether blocks are computed again in the backward pass (activation checkpointing).
    """
    kept = _Kept(shape, precision=precision, device=device, rank=lora_rank or 0)
    total = vit_parameters(shape) + head_parameters(shape, head_outputs) + extra_blocks * block_parameters(shape)
    trained = _trained(shape, head_outputs, frozen_blocks, lora_rank, extra_blocks)
    updates = shape.depth * (lora_rank or 0) * (8 * shape.embed_dim + 2 * shape.mlp_dim)
    frozen = frozen_blocks or 0
    rows = [last_rows if number == shape.depth - 1 else None for number in range(shape.depth)]
    rows += [last_rows if number == extra_blocks - 1 else None for number in range(extra_blocks)]
    goes_through = is_input_trained or (frozen_blocks is None and not lora_rank)
    whole = [
        kept.block(asked) if number >= frozen or number >= shape.depth else kept.handing_down() if goes_through else 0.0
        for number, asked in enumerate(rows)
    ]
    if is_recomputed:
        # Only what enters each block stays; the one under way is there as a whole.
        held = kept.stream * sum(value > 0 for value in whole) + max(whole)
    else:
        held = sum(whole)
    head = kept.head(head_rows, head_outputs)
    return TrainedModel(
        parameters=total + updates,
        trained=trained,
        flops_per_image=training_flops(
            shape,
            head_rows=head_rows,
            head_outputs=head_outputs,
            last_rows=last_rows,
            frozen_blocks=frozen_blocks,
            lora_rank=lora_rank,
            is_input_trained=is_input_trained,
            extra_blocks=extra_blocks,
        ),
        kept_bytes=kept.pixels + held + head.kept,
        passing_bytes=max(head.passing, kept.passing),
        step_bytes=kept.biases + kept.copied_weights(total),
        forward_bytes=kept.pixels + kept.forward + head.kept + head.passing / 2,
        row_bytes=shape.in_chans * shape.img_size**2 + 9 * shape.num_patches,
    )


@dataclass(frozen=True, slots=True)
class _Head:
    kept: float
    passing: float


class _Kept:
    """Bytes of one image that the parts of an encoder keep, in a number format and on a device."""

    def __init__(self, shape: ViTConfig, *, precision: Precision, device: str, rank: int) -> None:
        self._shape, self._is_half, self._is_cpu, self._rank = shape, precision != "fp32", device == "cpu", rank
        self._value = 2 if self._is_half else FLOAT
        self._length = 1 + shape.num_patches
        self.stream = FLOAT * self._length * shape.embed_dim
        """The residual stream."""

    @property
    def pixels(self) -> float:
        """The image as bytes and as network input."""
        return (1 + FLOAT) * self._shape.in_chans * self._shape.img_size**2

    def block(self, rows: int | None) -> float:
        """What a trained block keeps, where `rows` positions leave it, or None for all."""
        shape, value, length = self._shape, self._value, self._length
        asking, dim, hidden = length if rows is None else rows, shape.embed_dim, shape.mlp_dim
        # The stream, into the first norm; normalised; keys and values; queries; and what they were asked for, apart.
        kept = FLOAT * length * dim + value * length * dim + 2 * value * length * dim
        kept += value * asking * dim * (1 if rows is None else 2)
        # Mixed values; and where steps are written out (`common/vit/vit.py`), scaled queries and probabilities.
        kept += value * asking * dim
        if self._is_cpu:
            kept += value * asking * dim + FLOAT * shape.num_heads * asking * length
        # The branch, to be scaled into the stream; the stream again; normalised; MLP before and after GELU; its branch.
        kept += FLOAT * asking * dim + FLOAT * asking * dim + value * asking * dim
        kept += 2 * value * asking * hidden + FLOAT * asking * dim
        return kept + 4 * value * self._rank * length

    def handing_down(self) -> float:
        """What a block keeps that is not trained, and hands gradients down."""
        shape, value, length, dim = self._shape, self._value, self._length, self._shape.embed_dim
        kept = 2 * FLOAT * length * dim + 3 * value * length * dim + value * length * shape.mlp_dim
        if self._is_cpu:
            kept += value * length * dim + FLOAT * shape.num_heads * length * length
        return kept

    def head(self, rows: int, outputs: int) -> _Head:
        """What a last norm and a linear head keep, and what their loss needs for a moment."""
        kept = (FLOAT + self._value) * rows * self._shape.embed_dim + FLOAT * rows * outputs
        # The logits' logarithms stay; their gradients, and those of the logits, come and go.
        return _Head(kept, (FLOAT + max(FLOAT, self._value)) * rows * outputs)

    @property
    def passing(self) -> float:
        """What is there for a moment in the backward pass of a block: gradients of its MLP and of its stream."""
        shape = self._shape
        return (2 * self._value * shape.mlp_dim + 2 * FLOAT * shape.embed_dim) * self._length

    @property
    def forward(self) -> float:
        """What a forward pass without gradients has at once, at most: a stream, and MLP or attention."""
        shape, value, length = self._shape, self._value, self._length
        mlp = 2 * value * length * shape.mlp_dim
        attention = 6 * value * length * shape.embed_dim
        attention += 3 * FLOAT * shape.num_heads * length * length if self._is_cpu else 0
        return 3 * self.stream + max(mlp, attention)

    @property
    def biases(self) -> float:
        """Position biases of a micro-batch, as the blocks read them."""
        shape = self._shape
        if shape.pos_bias == "none":
            return 0.0
        tables = 1 if shape.pos_bias == "shared" else shape.depth
        return 2.0 * FLOAT * tables * shape.num_heads * self._length**2

    def copied_weights(self, parameters: int) -> float:
        """Copies of the weights that autocast makes in half precision, and keeps through a micro-batch."""
        return 2.0 * parameters * self._is_half


def _trained(
    shape: ViTConfig, head_outputs: int, frozen_blocks: int | None, lora_rank: int | None, extra_blocks: int
) -> int:
    behind = head_parameters(shape, head_outputs) + extra_blocks * block_parameters(shape)
    if lora_rank:
        return behind + shape.depth * lora_rank * (8 * shape.embed_dim + 2 * shape.mlp_dim)
    if frozen_blocks is None:
        return behind + vit_parameters(shape)
    return behind + (shape.depth - frozen_blocks) * block_parameters(shape) + 2 * shape.embed_dim * shape.final_norm


def _table_rows(shape: ViTConfig) -> int:
    """Return the rows of a position table; see `common/vit/position_bias.py`, which needs torch."""
    height, width = shape.grid_size
    return (2 * height - 1) * (2 * width - 1) + 3
