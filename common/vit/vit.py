"""The vision transformer of BEiT: patches to hidden states, with the parameter names of the released checkpoints.

Here: patch embedding, blocks, and the backbone. Not here: its shape (`config.py`), its input (`transform.py`), initial
values (`init.py`), position tables (`position_bias.py`), heads (`pretrain/model.py`,
`finetune/classification/model.py`), weights on disk (`common/encoder.py`).

Nothing in a forward pass asks a tensor for its length in Python, so that `torch.export` can leave the batch open.

Legend: B = batch, N = patches, S = 1 + N sequence with CLS first, D = embed_dim, H = heads, E = D / H, K = positions
that are asked for, Q = positions that ask: S or K. Masks are True where a patch is masked and do not cover CLS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit.common.images.decoding import USUAL, Decoding
from beit.common.vit.adapt import resize_pos_embed
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.init import init_vit
from beit.common.vit.lora import updated
from beit.common.vit.position_bias import (
    RelativePositionBias,
    bias_rows,
    gather_bias,
    num_table_rows,
    relative_position_index,
    resize_table,
)
from beit.common.vit.transform import ImageTransform, default_crop_pct

_LONG = 512
"""Positions above which the CPU's fused attention is faster, by a third at 1025; up to 197 there is no difference."""


class PatchEmbed(nn.Module):
    """Project non-overlapping patches to D channels."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, kernel_size=side, stride=side)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, h, w) to patches (B, N, D), row-major."""
        return self.proj(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention with an additive bias; owns a position table in per-block mode."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        # Stored apart, as in the released checkpoints, because the keys have none.
        self.q_bias = nn.Parameter(torch.zeros(dim)) if config.qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if config.qkv_bias else None
        self.relative_position_bias_table = (
            nn.Parameter(torch.zeros(num_table_rows(config.grid_size), config.num_heads))
            if config.pos_bias == "per_block"
            else None
        )
        self.proj = nn.Linear(dim, dim)

    def project(self, hidden: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Map hidden (B, S, D) to queries (B, H, Q, E), keys and values, each (B, H, S, E).

        Queries are those of `positions`, (B, K) int64 in [0, S), or of all; keys and values are always everybody's.
        """
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        if positions is None:
            whole = nn.functional.linear(hidden, self.qkv.weight, bias)
            query, key, value = self._heads(updated(self.qkv, whole, hidden), 3)
            return query, key, value
        dim = hidden.shape[-1]
        sizes, asking = [dim, 2 * dim], take_positions(hidden, positions)
        query_weight, other_weight = torch.split(self.qkv.weight, sizes)
        query_bias, other_bias = (None, None) if bias is None else torch.split(bias, sizes)
        asked = nn.functional.linear(asking, query_weight, query_bias)
        others = nn.functional.linear(hidden, other_weight, other_bias)
        (query,) = self._heads(updated(self.qkv, asked, asking, slice(0, dim)), 1)
        key, value = self._heads(updated(self.qkv, others, hidden, slice(dim, None)), 2)
        return query, key, value

    def _heads(self, projected: Tensor, parts: int) -> Sequence[Tensor]:
        """Cut (B, S or K, parts * D) into `parts` of (B, H, S or K, E)."""
        batch, length, width = projected.shape
        sizes = (batch, length, parts, self.num_heads, width // (parts * self.num_heads))
        heads = projected.view(sizes).permute(2, 0, 3, 1, 4)  # (parts, B, H, S, E)
        if projected.device.type == "cpu":
            heads = heads.contiguous()  # one copy here saves one per product and direction
        return heads.unbind(0)

    def forward(self, hidden: Tensor, bias: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """Attend over the sequence.

        Args:
            hidden: (B, S, D), normalised.
            bias: (1, H, S, S) in the compute dtype, added to the scaled logits, or None.
            positions: (B, K) int64 in [0, S): who asks; None lets all ask.

        Returns:
            (B, Q, D).
        """
        query, key, value = self.project(hidden, positions)
        if bias is not None and positions is not None:
            bias = bias_rows(bias, positions)  # (B, H, K, S)
        # Steps written out train faster on a CPU (see there); without gradients, fused ones use long sequences better.
        is_fused = hidden.device.type != "cpu" or (key.shape[2] > _LONG and not torch.is_grad_enabled())
        attend = nn.functional.scaled_dot_product_attention if is_fused else _attend_on_cpu
        mixed = attend(query, key, value, bias)  # (B, H, Q, E)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _attend_on_cpu(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    # The CPU's fused kernel has no gradient for the bias. What it falls back to trains some 10 % slower than the steps
    # written out (bf16, 65 and 197 positions); without gradients the two are equally fast.
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, H, Q, S)
    mixed: Tensor = (logits if bias is None else logits + bias).softmax(-1) @ value
    return mixed


def take_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Take some positions, (B, K) int64 in [0, S), out of a sequence (B, S, D); returns (B, K, D)."""
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def grid_features(hidden: Tensor, grid_size: tuple[int, int] | None = None) -> Tensor:
    """Lay the patches of a sequence out as maps, and leave CLS out.

    Args:
        hidden: (B, 1 + N, D) of any dtype, CLS first, then the N patches: what an encoder returns.
        grid_size: Patches per side (h, w); left out, images are square and h = w = img_size / patch_size.

    Returns:
        (B, D, h, w) of the same dtype, rows from the top. One place is `patch_size` pixels of the image.

    Example:
        >>> beit.grid_features(torch.zeros(2, 1 + 16, 24)).shape
        torch.Size([2, 24, 4, 4])
    """
    height, width = grid_size or (math.isqrt(hidden.shape[1] - 1),) * 2
    return hidden[:, 1:].transpose(1, 2).reshape(hidden.shape[0], hidden.shape[2], height, width)


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, S, D) to (B, S, D)."""
        return self.fc2(nn.functional.gelu(self.fc1(hidden)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block with layer scale and stochastic depth.

    `drop_path` is the chance that a sample skips a branch while training.
    """

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.embed_dim, config.mlp_dim)
        scaled = config.init_values > 0
        self.gamma_1 = nn.Parameter(torch.full((config.embed_dim,), config.init_values)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.full((config.embed_dim,), config.init_values)) if scaled else None

    def extra_repr(self) -> str:
        """Show the stochastic depth rate."""
        return f"drop_path={self.drop_path:.4g}"

    def forward(self, hidden: Tensor, bias: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """Map the residual stream (B, S, D) to itself, or to what it becomes at some positions, (B, K, D).

        See `Attention.forward` for the arguments.
        """
        attended = self.attn(self.norm1(hidden), bias, positions)
        if positions is not None:
            hidden = take_positions(hidden, positions)
        hidden = self._add(hidden, attended, self.gamma_1)
        return self._add(hidden, self.mlp(self.norm2(hidden)), self.gamma_2)

    def _add(self, hidden: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        # Layer scale and stochastic depth act as one factor per sample and channel: a single pass over the stream.
        if self.training and self.drop_path > 0:
            keep = 1 - self.drop_path
            kept = hidden.new_empty(hidden.shape[0], 1, 1).bernoulli_(keep).div_(keep)
            return torch.addcmul(hidden, branch, kept if gamma is None else kept * gamma)
        return hidden + branch if gamma is None else torch.addcmul(hidden, branch, gamma)


class VisionTransformer(nn.Module):
    """The encoder, without head; with a final norm only where the encoder has one of its own (`config.final_norm`).

    Attributes:
        config: The shape, position mode and initialisation rule it was built with.
        normalization: How input pixels are normalised, where the weights come from a file; else None.
        decoding: How the images were decoded that the weights were trained on.
        crop_pct: Share of an image's short side that it is to see, where the file says it; else None.
        best_block: Block, from 0, whose features classified best when the encoder was probed; None if it was not.
        provenance: Where the weights come from, as the file says.
        recompute_blocks: Whether training forgets what happens inside blocks and computes it again in the backward pass
            (activation checkpointing): less memory, about a third more work, the same gradients bit for bit.
    """

    normalization: Normalization | None = None
    decoding: Decoding = USUAL
    crop_pct: float | None = None
    best_block: int | None = None
    recompute_blocks: bool = False
    relative_position_index: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.provenance: dict[str, Any] = {}
        dim, length = config.embed_dim, 1 + config.num_patches
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.use_mask_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, length, dim)) if config.use_abs_pos_emb else None
        self.rel_pos_bias = (
            RelativePositionBias(config.grid_size, config.num_heads) if config.pos_bias == "shared" else None
        )
        self.build_index()
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / last) for i in range(config.depth))
        if config.final_norm:
            self.norm: nn.Module | None = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        init_vit(self, config)

    def build_index(self, device: str | torch.device | None = None) -> None:
        """Fill the buffer that says which table row each pair of positions reads; it is not part of the state dict."""
        index = None if self.config.pos_bias == "none" else relative_position_index(self.config.grid_size, device)
        self.register_buffer("relative_position_index", index, persistent=False)

    @property
    def transform(self) -> ImageTransform:
        """What turns an image into the input of this model, as evaluation and prediction do it.

        Raises:
            ValueError: the weights come from no file, so that no normalisation is known.
        """
        if self.normalization is None:
            raise ValueError("a model that was not loaded has no normalization; set it, to mean and std of its pixels")
        img_size = self.config.img_size
        crop_pct = default_crop_pct(img_size) if self.crop_pct is None else self.crop_pct
        return ImageTransform(img_size, crop_pct, self.normalization, self.decoding)

    def embed(
        self, images: Tensor, bool_masked_pos: Tensor | None = None, grid_size: tuple[int, int] | None = None
    ) -> Tensor:
        """Turn images into the sequence that enters the first block.

        Args:
            images: (B, 3, img_size, img_size) float, normalised.
            bool_masked_pos: (B, N) bool, True = replaced by the mask token; None masks nothing.
            grid_size: Patches (height, width) of images of another shape, for which positions are resized as for a
                model of another resolution; None allows the model's own only.

        Returns:
            (B, S, D), in the dtype of the weights; under autocast at least float32, because in bf16 a branch scaled by
            an initial 1e-5 would round to nothing.

        Raises:
            ValueError: images have another size than the model, or a mask comes without a mask token.
        """
        height, width = (side * self.config.patch_size for side in grid_size or self.config.grid_size)
        if images.shape[-2:] != (height, width):
            what = "their grid_size" if grid_size else "the model's img_size"
            raise ValueError(f"images ({tuple(images.shape)}) must be {height}x{width} pixels, {what}")
        dtype = self.cls_token.dtype
        if torch.is_autocast_enabled(images.device.type):
            dtype = torch.promote_types(dtype, torch.float32)
        patches = self.patch_embed(images).to(dtype)  # (B, N, D)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("bool_masked_pos was given to a model without a mask token")
            patches = torch.where(bool_masked_pos[..., None], self.mask_token.to(dtype), patches)
        cls_token = self.cls_token.to(dtype).expand(patches.shape[0], -1, -1)
        hidden = torch.cat([cls_token, patches], dim=1)  # (B, S, D)
        if self.pos_embed is None:
            return hidden
        own, rule = self.config.grid_size, self.config.pos_resize
        return hidden + resize_pos_embed(self.pos_embed, own, grid_size or own, rule=rule)

    def attention_biases(self) -> list[Tensor | None]:
        """Build the additive bias of every block: (1, H, S, S) in the compute dtype, the same tensor where shared."""
        return list(self._biases(None))

    def _biases(self, grid_size: tuple[int, int] | None) -> Iterator[Tensor | None]:
        """Yield what `attention_biases` lists, for a grid (height, width), block by block: together they are large."""
        kind, own = self.cls_token.device.type, self.config.grid_size
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.cls_token.dtype
        grid, index = grid_size or own, self.relative_position_index
        if grid != own and self.config.pos_bias != "none":
            index = relative_position_index(grid, index.device)
        if self.rel_pos_bias is not None:
            yield from [self.rel_pos_bias(index, grid).to(dtype)] * len(self.blocks)
            return
        for block in cast(Iterable[Block], self.blocks):
            table = block.attn.relative_position_bias_table
            yield None if table is None else gather_bias(resize_table(table, own, grid), index, grid).to(dtype)

    def forward_features(
        self, images: Tensor, bool_masked_pos: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Encode images.

        Args:
            images: (B, 3, img_size, img_size) float, normalised as the encoder's `normalization` says.
            bool_masked_pos: (B, N) bool, True = masked; None masks nothing.
            positions: (B, K) int64 in [0, S), 0 is CLS, the patches follow: the last block skips the others, which
                nobody will look at. None finishes all.

        Returns:
            (B, S, D) or (B, K, D), float32 for float32 weights: the residual stream after the last block, CLS first,
            through `finish`. See `pool_features` and `grid_features` for vectors and maps.
        """
        hidden = self.embed(images, bool_masked_pos)
        for i, (block, bias) in enumerate(zip(self.blocks, self.attention_biases(), strict=True), start=1):
            hidden = self._run(block, hidden, bias, positions if i == len(self.blocks) else None)
        return self.finish(hidden)

    def finish(self, hidden: Tensor) -> Tensor:
        """Turn the residual stream (B, S, D) after a block into features: by the encoder's own last norm, if any."""
        return self.norm(hidden) if self.config.final_norm and self.norm is not None else hidden

    def forward_intermediates(
        self, images: Tensor, block_indices: Sequence[int], grid_size: tuple[int, int] | None = None
    ) -> list[Tensor]:
        """Return the features (B, S, D) after each of the blocks asked for, ascending; see `finish`.

        Blocks are counted from 0, or from the end with -1 as the last. Those after the last one wanted are not run.
        `grid_size` is for images of another shape; see `embed`.
        """
        depth = len(self.blocks)
        if not all(-depth <= i < depth for i in block_indices):
            raise ValueError(f"block_indices ({list(block_indices)}) must be in [{-depth}, {depth - 1}]")
        wanted = {i % depth for i in block_indices}
        hidden = self.embed(images, grid_size=grid_size)
        outputs: list[Tensor] = []
        for i, (block, bias) in enumerate(zip(self.blocks, self._biases(grid_size), strict=True)):
            hidden = self._run(block, hidden, bias)
            if i in wanted:
                outputs.append(self.finish(hidden))
            if len(outputs) == len(wanted):
                break
        return outputs

    def _run(self, block: nn.Module, *arguments: Tensor | None) -> Tensor:
        """Run a block, in training perhaps such that it is run again in the backward pass."""
        if self.recompute_blocks and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)  # type: ignore[no-any-return]
        return block(*arguments)  # type: ignore[no-any-return]

    def get_intermediate_layers(
        self, images: Tensor, n: int | Sequence[int] = 1, *, reshape: bool = False, return_class_token: bool = False
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]:
        """Return the patches' features after several blocks, called as in DINOv2 and timm.

        A BEiT has no norm of its own (`finish`), so these are raw residual streams, whose scale grows with depth; the
        block to take is rarely the last (`best_block`).

        Args:
            images: (B, 3, img_size, img_size) float, normalised: what `transform` gives.
            n: How many of the last blocks, or which, counted from 0 or from the end; always returned ascending.
            reshape: As maps instead of lists of patches.
            return_class_token: With CLS beside them.

        Returns:
            For each block (B, N, D), or with `reshape` (B, D, h, w); with `return_class_token` pairs of that and CLS,
            (B, D).

        Example:
            >>> encoder = beit.load_encoder("runs/pretrain/encoder")
            >>> images = encoder.transform.batch(["photo.jpg", "other.png"])
            >>> [maps.shape for maps in encoder.get_intermediate_layers(images, n=2, reshape=True)]
            [torch.Size([2, 24, 4, 4]), torch.Size([2, 24, 4, 4])]
        """
        depth = len(self.blocks)
        if isinstance(n, int) and not 1 <= n <= depth:
            raise ValueError(f"n ({n}) must be in [1, {depth}], the number of blocks")
        found = self.forward_intermediates(images, range(depth - n, depth) if isinstance(n, int) else n)
        patches = [grid_features(hidden) if reshape else hidden[:, 1:] for hidden in found]
        if return_class_token:
            return tuple((kept, hidden[:, 0]) for kept, hidden in zip(patches, found, strict=True))
        return tuple(patches)

    def attention_weights(self, images: Tensor, block_index: int) -> Tensor:
        """Return how much every position of one block looks at every other.

        Args:
            images: (B, 3, img_size, img_size) float, normalised: what `transform` gives.
            block_index: Which block, from 0.

        Returns:
            (B, heads, S, S) float32, S = 1 + N with CLS first: rows are those who look, and sum to 1; columns what they
            look at.

        Example:
            >>> encoder = beit.load_encoder("runs/pretrain/encoder")
            >>> images = encoder.transform.batch(["photo.jpg"])
            >>> weights = encoder.attention_weights(images, 1)
            >>> weights.shape, bool(torch.allclose(weights.sum(-1), torch.ones(1)))
            (torch.Size([1, 2, 17, 17]), True)
        """
        hidden, biases = self.embed(images), self.attention_biases()
        for block, bias in zip(self.blocks[:block_index], biases, strict=False):
            hidden = block(hidden, bias)
        last, bias = cast(Block, self.blocks[block_index]), biases[block_index]
        query, key, _ = last.attn.project(last.norm1(hidden))
        logits: Tensor = (query @ key.transpose(-2, -1)).float() * query.shape[-1] ** -0.5
        return (logits if bias is None else logits + bias).softmax(-1)

    def forward(self, images: Tensor) -> Tensor:
        """Same as `forward_features` without a mask; the heads override this."""
        return self.forward_features(images)
