"""The discrete VAE of DALL-E, BEiT's tokenizer: encoder (images to logits over 8192 words), decoder (words to images).

Parameter names and shapes are those of the published weights. Finding and reading files is
`beit.common.tokenizers.dalle_files`.

B images, H x W pixels, h x w = H/8 x W/8 tokens, V = 8192 words.

Source: DALL-E (A. Ramesh et al., 2021), dVAE of appendix A; BEiT §2.1 for its use. Differs: nothing in the numbers;
weights never require gradients, and the decoder looks words up instead of multiplying one-hot vectors.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB_SIZE = 8192
NUM_GROUPS = 4
BLOCKS_PER_GROUP = 2
HIDDEN_WIDTH = 256
DECODER_INPUT_WIDTH = 128
POST_GAIN = 1.0 / (NUM_GROUPS * BLOCKS_PER_GROUP) ** 2
"""Residual branches are scaled by 1 / layers**2 = 1/64."""
LOGIT_LAPLACE_EPS = 0.1
"""Pixels live in [eps, 1 - eps], where the logit-Laplace likelihood has no singularities."""


def map_pixels(images: Tensor) -> Tensor:
    """Map float pixels in [0, 1], any shape, to [0.1, 0.9], what the encoder expects."""
    return (1.0 - 2.0 * LOGIT_LAPLACE_EPS) * images + LOGIT_LAPLACE_EPS


def unmap_pixels(images: Tensor) -> Tensor:
    """Undo `map_pixels` and clamp to [0, 1]."""
    return ((images - LOGIT_LAPLACE_EPS) / (1.0 - 2.0 * LOGIT_LAPLACE_EPS)).clamp(0.0, 1.0)


class SameConv2d(nn.Module):
    """Convolution that keeps height and width (odd kernel, zero padding), with parameters named `w` and `b`.

    Computes in the dtype of its weight, so that a network can mix dtypes layer by layer.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        std = 1.0 / math.sqrt(in_channels * kernel_size**2)
        weight = torch.empty(out_channels, in_channels, kernel_size, kernel_size)
        if not weight.is_meta:  # drawing numbers that are kept nowhere costs torch two seconds of imports
            weight.normal_(std=std)
        self.w = nn.Parameter(weight, requires_grad=False)
        self.b = nn.Parameter(torch.zeros(out_channels), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Convolve (B, in_channels, h, w) to (B, out_channels, h, w)."""
        return F.conv2d(hidden.to(self.w.dtype), self.w, self.b, padding=self.w.shape[-1] // 2)

    def extra_repr(self) -> str:
        """Show the shape of the weight."""
        return "x".join(map(str, self.w.shape))


class DalleBlock(nn.Module):
    """Identity path plus a scaled bottleneck of four convolutions, a quarter as wide, each after a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_sizes: tuple[int, int, int, int]) -> None:
        super().__init__()
        hidden = out_channels // 4
        same = in_channels == out_channels
        self.id_path: nn.Module = nn.Identity() if same else SameConv2d(in_channels, out_channels, 1)
        widths = (in_channels, hidden, hidden, hidden, out_channels)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, kernel_size in enumerate(kernel_sizes, start=1):
            layers[f"relu_{number}"] = nn.ReLU()
            layers[f"conv_{number}"] = SameConv2d(widths[number - 1], widths[number], kernel_size)
        self.res_path = nn.Sequential(layers)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h, w)."""
        return torch.add(self.id_path(hidden), self.res_path(hidden), alpha=POST_GAIN)


def _network(
    first: SameConv2d,
    widths: list[int],
    kernel_sizes: tuple[int, int, int, int],
    resize: tuple[str, Callable[[], nn.Module]],
    num_outputs: int,
) -> nn.Sequential:
    """Put together the first layer, groups of blocks with a change of size between them, and the output layer."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict(input=first)
    width = len(first.b)
    for number, out_width in enumerate(widths, start=1):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for place in range(1, BLOCKS_PER_GROUP + 1):
            layers[f"block_{place}"] = DalleBlock(width, out_width, kernel_sizes)
            width = out_width
        if number < len(widths):
            layers[resize[0]] = resize[1]()
        blocks[f"group_{number}"] = nn.Sequential(layers)
    blocks["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=SameConv2d(width, num_outputs, 1)))
    return nn.Sequential(blocks)


class DalleEncoder(nn.Module):
    """Images to logits over the vocabulary; 53,786,240 parameters."""

    def __init__(self) -> None:
        super().__init__()
        pool = ("pool", lambda: nn.MaxPool2d(2))
        widths = [HIDDEN_WIDTH * 2**number for number in range(NUM_GROUPS)]
        self.blocks = _network(SameConv2d(3, HIDDEN_WIDTH, 7), widths, (3, 3, 3, 1), pool, VOCAB_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels from `map_pixels`, float (B, 3, H, W), to logits, float32 (B, V, h, w)."""
        logits: Tensor = self.blocks(images)
        return logits


class DalleDecoder(nn.Module):
    """Words to images; 43,829,766 parameters. Needed for pictures only."""

    def __init__(self) -> None:
        super().__init__()
        enlarge = ("upsample", lambda: nn.Upsample(scale_factor=2, mode="nearest"))
        widths = [HIDDEN_WIDTH * 2**number for number in reversed(range(NUM_GROUPS))]
        # Out come location and log-scale of a logit-Laplace distribution per colour channel.
        self.blocks = _network(SameConv2d(VOCAB_SIZE, DECODER_INPUT_WIDTH, 1), widths, (1, 3, 3, 3), enlarge, 6)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Map words, int64 (B, h, w), to logit-Laplace statistics, float32 (B, 6, H, W)."""
        table = self.blocks.get_submodule("input")
        assert isinstance(table, SameConv2d)
        hidden = F.embedding(token_ids, table.w[:, :, 0, 0].t()) + table.b  # (B, h, w, 128)
        statistics: Tensor = self.blocks[1:](hidden.permute(0, 3, 1, 2))
        return statistics


class DalleModel(nn.Module):
    """Encoder and, if its weights are at hand, decoder, between bytes and words."""

    vocab_size = VOCAB_SIZE
    downsampling = 2 ** (NUM_GROUPS - 1)
    img_size: int | None = None
    """It takes images of any size."""

    def __init__(self, *, with_decoder: bool) -> None:
        super().__init__()
        self.encoder = DalleEncoder()
        self.decoder = DalleDecoder() if with_decoder else None

    def pixels_to_ids(self, pixels: Tensor) -> Tensor:
        """Map uint8 (B, 3, H, W) to the best word per position, int64 (B, h, w)."""
        token_ids: Tensor = self.encoder(map_pixels(pixels.float() / 255.0)).argmax(dim=1)
        return token_ids

    def ids_to_pixels(self, token_ids: Tensor) -> Tensor:
        """Map words, int64 (B, h, w), to uint8 (B, 3, H, W): the location of the predicted distribution."""
        assert self.decoder is not None, "callers ask `Tokenizer.can_decode` first"
        location = self.decoder(token_ids)[:, :3]
        return (unmap_pixels(torch.sigmoid(location)) * 255.0).round().to(torch.uint8)

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Compute tokens in `dtype`, except for the last layer, where ties are decided; the decoder stays float32."""
        self.encoder.blocks.to(dtype)
        self.encoder.blocks.get_submodule("output").to(torch.float32)
