"""MAE, a rival of BEiT: an encoder that sees a quarter of the patches, and a small decoder that paints the others.

Written from the paper. Here: which patches are kept, the decoder, the loss. Not here: the training
(`rival_training.py`).

Legend: B = batch, N = patches, K = kept patches, S = 1 + N sequence with CLS first, D = width, P = 3 * patch_size**2
values of a patch. Masks are True where a patch is masked.

Source: He et al., "Masked autoencoders are scalable vision learners", 2021. Differs: the encoder is BEiT's, whose
positions are a relative bias, so that nothing but what is learned from differs; the sizes are those of small images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from beit.benchmarks.rival_training import Kind, Learning
from beit.common.config import above, at_least, checked, within
from beit.common.errors import require
from beit.common.views import AugmentConfig
from beit.common.vit.config import ViTConfig
from beit.common.vit.init import trunc_normal
from beit.common.vit.position_bias import bias_rows
from beit.common.vit.vit import Block, VisionTransformer, take_positions

_EPS = 1e-6
"""Added to the variance of a patch, as published."""


@checked("learning")
class MaeLearning(Learning):
    """The same, with MAE's values."""

    lr: Annotated[float, above(0)] = 2e-3
    batch_size: Annotated[int, at_least(1)] = 64
    betas: Annotated[tuple[float, float], within("[0, 1)")] = (0.9, 0.95)


@checked()
class MaeConfig:
    """Settings of MAE. Where the paper's are of ImageNet and hundreds of passes, those that trials chose here."""

    learning: MaeLearning = field(default_factory=MaeLearning)
    """Optimizer and schedule."""
    layer_scale: Annotated[float, above(0)] = 0.1
    """What every branch of the encoder is multiplied with at first; BEiT's is 0.1, the paper has none."""
    mask_ratio: Annotated[float, within("(0, 1)")] = 0.75
    """Share of the patches that the encoder does not see."""
    decoder_dim: Annotated[int, at_least(4)] = 64
    """Width of the decoder; the paper's is two thirds of the encoder's or less."""
    decoder_depth: Annotated[int, at_least(1)] = 2
    """Its blocks."""
    decoder_heads: Annotated[int, at_least(1)] = 4
    """Its attention heads."""
    normalize_patches: bool = True
    """Whether a patch's target is standardised by its own mean and deviation."""
    crop: Annotated[tuple[float, float], within("(0, 1]")] = (0.2, 1.0)
    """Smallest and largest area of a crop."""

    def __post_init__(self) -> None:
        width, heads = self.decoder_dim, self.decoder_heads
        require(
            width % 4 == 0 and width % heads == 0,
            f"decoder_dim ({width}) must be a multiple of 4 and of decoder_heads ({heads})",
        )


class Shuffle(NamedTuple):
    """Which patches of every image are kept."""

    kept: Tensor
    """(B, K) int64 in [0, N), in the order in which the encoder sees them."""
    restore: Tensor
    """(B, N) int64: where each patch stands in the shuffled order, whose first K are kept."""
    bool_masked_pos: Tensor
    """(B, N) bool, True = masked."""


class Mae(nn.Module):
    """Encoder, decoder and loss.

    Args:
        encoder: To be trained; its features pass a last norm of its own.
        config: Settings.
    """

    def __init__(self, encoder: VisionTransformer, config: MaeConfig) -> None:
        super().__init__()
        architecture = encoder.config
        self.config = config
        self.learning = config.learning
        self.kinds = (Kind(views=1, img_size=architecture.img_size, augment=AugmentConfig(scale=config.crop)),)
        self.encoder = encoder
        self.decoder = Decoder(architecture, config)

    def result(self) -> VisionTransformer:
        """Return the encoder that is worth keeping."""
        return self.encoder

    def loss(self, batch: Sequence[Tensor], *, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of a batch: one tensor of images (1, B, 3, img_size, img_size) float32, normalised."""
        images, num_patches = batch[0].flatten(0, 1), self.encoder.config.num_patches
        noise = torch.rand(images.shape[0], num_patches, generator=generator)
        shuffle = shuffle_by(noise, mask_ratio=self.config.mask_ratio)
        painted = self.decoder(encode_kept(self.encoder, images, shuffle.kept), shuffle.restore)
        targets = patchify(images, self.encoder.config.patch_size)
        return {"loss": masked_error(painted, targets, shuffle.bool_masked_pos, self.config.normalize_patches)}

    def before_step(self, *, progress: float) -> None:
        """Have every parameter take part."""

    def after_step(self, *, progress: float) -> None:
        """Have nothing follow the step."""


def shuffle_by(noise: Tensor, *, mask_ratio: float) -> Shuffle:
    """Keep the patches with the least noise, (B, N) float; at least one of each image is kept, and one masked."""
    num_patches = noise.shape[1]
    num_kept = min(max(1, int(num_patches * (1 - mask_ratio))), num_patches - 1)
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    return Shuffle(kept=order[:, :num_kept], restore=restore, bool_masked_pos=restore >= num_kept)


def encode_kept(encoder: VisionTransformer, images: Tensor, kept: Tensor) -> Tensor:
    """Encode some patches, (B, K) int64 in [0, N), of images (B, 3, h, w) and nothing else; returns (B, 1 + K, D)."""
    positions = nn.functional.pad(kept + 1, (1, 0))  # CLS is always kept
    hidden = take_positions(encoder.embed(images), positions)
    found: dict[int, Tensor | None] = {}  # the shared bias is one tensor, of which the pairs are taken once
    for block, bias in zip(encoder.blocks, encoder.attention_biases(), strict=True):
        if id(bias) not in found:
            found[id(bias)] = None if bias is None else bias_pairs(bias, positions)
        hidden = block(hidden, found[id(bias)])
    return encoder.finish(hidden)


def bias_pairs(bias: Tensor, positions: Tensor) -> Tensor:
    """Take the pairs of some positions, (B, K) int64 in [0, S), out of the bias (1, H, S, S): (B, H, K, K)."""
    rows = bias_rows(bias, positions)  # (B, H, K, S)
    columns = positions[:, None, None].expand(-1, rows.shape[1], rows.shape[2], -1)
    return rows.gather(3, columns)


class Decoder(nn.Module):
    """A narrow transformer over all positions: what was encoded, and one learned vector for all that was not."""

    positions: Tensor

    def __init__(self, architecture: ViTConfig, config: MaeConfig) -> None:
        super().__init__()
        # Plain blocks, as in the paper: positions are added to the sequence, and branches are not scaled.
        shape = ViTConfig(
            img_size=architecture.img_size,
            patch_size=architecture.patch_size,
            embed_dim=config.decoder_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            pos_bias="none",
            init_values=0.0,
            drop_path=0.0,
            layer_norm_eps=architecture.layer_norm_eps,
        )
        self.embed = nn.Linear(architecture.embed_dim, shape.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.embed_dim))
        self.register_buffer("positions", sine_positions(shape.grid_size, shape.embed_dim), persistent=False)
        self.blocks = nn.ModuleList(Block(shape, 0.0) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.embed_dim, eps=shape.layer_norm_eps)
        self.paint = nn.Linear(shape.embed_dim, shape.in_chans * shape.patch_size**2)
        trunc_normal(self.mask_token, "finetune")
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, encoded: Tensor, restore: Tensor) -> Tensor:
        """Map what was encoded, (B, 1 + K, D), to all patches in their places, (B, N, P)."""
        hidden = unshuffle(self.embed(encoded), restore, self.mask_token) + self.positions
        for block in self.blocks:
            hidden = block(hidden, None)
        painted: Tensor = self.paint(self.norm(hidden))
        return painted[:, 1:]


def unshuffle(encoded: Tensor, restore: Tensor, mask_token: Tensor) -> Tensor:
    """Put kept patches, (B, 1 + K, D) with CLS first, back to their places, mask tokens (1, 1, D) into the others."""
    batch, length, dim = encoded.shape
    masked = mask_token.expand(batch, restore.shape[1] + 1 - length, dim)
    patches = torch.cat([encoded[:, 1:], masked], dim=1)  # (B, N, D), shuffled
    return torch.cat([encoded[:, :1], take_positions(patches, restore)], dim=1)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, 3, h, w) into patches (B, N, P), row by row; in each the colours of a pixel are neighbours."""
    batch, channels, height, width = images.shape
    grid = (batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return images.reshape(grid).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def masked_error(painted: Tensor, targets: Tensor, bool_masked_pos: Tensor, normalize: bool) -> Tensor:
    """Return the mean squared error of masked patches; painted and targets (B, N, P), the mask (B, N) bool."""
    if normalize:
        variance, mean = torch.var_mean(targets, dim=-1, keepdim=True)
        targets = (targets - mean) / (variance + _EPS).sqrt()
    error = (painted - targets).square().mean(-1)  # (B, N)
    return (error * bool_masked_pos).sum() / bool_masked_pos.sum()


def sine_positions(grid_size: tuple[int, int], dim: int) -> Tensor:
    """Return fixed positions (1, 1 + N, dim), zeros for CLS; dim is a multiple of 4.

    Source: the released MAE code: sine and cosine of the column fill the first half, of the row the second.
    """
    height, width = grid_size
    rates = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
    x = torch.arange(width, dtype=torch.float64).repeat(height)
    angles = [torch.outer(axis, rates) for axis in (x, y)]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return nn.functional.pad(table, (0, 0, 1, 0)).float()[None]
