"""A compact discrete VAE that a CPU can run: image patches in, visual words out, and back.

Here: the network (`DiscreteVAE`) and the formulas of its objective. Not here: training
(`tokenize/tokenizer_training/step.py`), files and names (`common/tokenizer.py`), the DALL-E network (`dalle.py`).

Unlike the DALL-E encoder, nearly all of the work happens at one position per token, and the logits over the vocabulary
are scaled cosines between a short code vector and a codebook. That makes logits cheap at any vocabulary size, and
lets a word nobody uses be moved onto features that exist.

A grey network sees the luma of the images and gives RGB of three equal channels, so that callers need not know.

Pixels follow the logit-Laplace distribution that DALL-E's dVAE is trained by. A Laplace distribution lives on the whole
line, pixels in an interval. Put through a sigmoid it lives on (0, 1), so no probability is spent on colours that do not
exist; and a network that also says how uncertain it is may leave sharp edges, where a squared error is large whatever
it does, for places where it can gain. Pixels are mapped to [0.1, 0.9] first, away from the ends of (0, 1), where the
density is infinite.

    f(x | mu, b) = 1 / (2 b x (1 - x)) * exp(-|logit(x) - mu| / b)

B images, H x W pixels, h x w tokens, V vocabulary, C code_dim, K channels seen (3, or 1 for grey).

Source: BEiT §2.1 and DALL-E (A. Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021) §2.1 for the discrete VAE:
Gumbel-softmax relaxation, uniform prior; appendix A.3, eq. 2 for the distribution. Differs: cosine logits with a
codebook shared by encoder and decoder, as in later vector-quantised tokenizers, instead of one free logit per word; the
scale b has a lower bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.common.tokenizers.dalle import map_pixels, unmap_pixels
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.common.vit.channels import fit_channels

STEM_STRIDE = 4
"""Pixels per position after the first convolution; patches this small still hold edges well."""
INITIAL_LOGIT_SCALE = 20.0
"""Cosines times this are the first logits; training raises it as words become distinct."""
MIN_LOG_SCALE = -5.0
"""Of b: half a grey level at middle grey, 0.4/255 of a mapped pixel, is e**-5.07 in logits. Below that a network would
be paid without bound for pixels that it gets exactly right, flat areas above all."""


class ResidualBlock(nn.Module):
    """Add a 3x3 look at the neighbours to the stream, shape (B, width, h, w) in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.neighbours = nn.Conv2d(width, width // 2, 3, padding=1)
        self.expand = nn.Conv2d(width // 2, width, 1)
        # The block starts as the identity, so that depth needs no normalisation layers.
        nn.init.zeros_(self.expand.weight)
        if self.expand.bias is not None:
            nn.init.zeros_(self.expand.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return hidden plus the block's change."""
        change: Tensor = self.expand(F.relu(self.neighbours(F.relu(hidden))))
        return hidden + change


class DiscreteVAE(nn.Module):
    """Encoder to code vectors, shared codebook, decoder to pixels."""

    img_size: int | None = None
    """It takes images of any size."""

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config, self.vocab_size, self.downsampling = config, config.vocab_size, config.downsampling
        self.dtype = torch.float32
        width, half = config.width, config.width // 2
        shuffle = config.downsampling // STEM_STRIDE
        self.patch_embed = nn.Conv2d(config.channels, half, STEM_STRIDE, stride=STEM_STRIDE)
        self.merge = nn.Conv2d(half, width, 3 if shuffle > 1 else 1, stride=min(shuffle, 2), padding=int(shuffle > 1))
        self.merge_again = nn.Conv2d(width, width, 3, stride=2, padding=1) if shuffle == 4 else None
        self.encoder_blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(config.num_blocks)))
        self.to_code = nn.Conv2d(width, config.code_dim, 1)

        self.codebook = nn.Parameter(F.normalize(torch.randn(config.vocab_size, config.code_dim), dim=1))
        # One entry, not a scalar: DeepSpeed cannot broadcast parameters without dimensions.
        self.log_scale = nn.Parameter(torch.tensor([math.log(INITIAL_LOGIT_SCALE)]))

        self.from_code = nn.Conv2d(config.code_dim, width, 3, padding=1)
        self.decoder_blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(config.num_blocks)))
        self.split = nn.Conv2d(width, half * shuffle**2, 1)
        self.unshuffle = nn.PixelShuffle(shuffle)
        self.to_pixels = nn.Conv2d(half, config.head_channels * STEM_STRIDE**2, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(STEM_STRIDE)

    def extra_repr(self) -> str:
        """Show the settings that decide compatibility."""
        return f"vocab_size={self.vocab_size}, downsampling={self.downsampling}"

    def see(self, pixels: Tensor) -> Tensor:
        """Map uint8 RGB or grey (B, 3 or 1, H, W) to what the network works on, float32 (B, K, H, W) in [-1, 1]."""
        return scale_pixels(fit_channels(pixels, self.config.channels))

    def encode_features(self, images: Tensor) -> Tensor:
        """Map images, float (B, K, H, W) in [-1, 1], to code vectors, float (B, C, h, w) of length 1 along C."""
        hidden = self.merge(F.relu(self.patch_embed(images)))  # (B, width, H/8, W/8), finer for downsampling 4
        if self.merge_again is not None:
            hidden = self.merge_again(F.relu(hidden))
        code = self.to_code(F.relu(self.encoder_blocks(hidden)))
        return F.normalize(code.float(), dim=1)

    def unit_codebook(self) -> Tensor:
        """Return the words as unit vectors, float32 (V, C)."""
        return F.normalize(self.codebook.float(), dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """Score every word at every position of `encode_features`, float32 (B, h, w, V) also under autocast."""
        # bfloat16 rounds a cosine to 1/256; times a scale of 100, that is noise of nearly half a nat.
        with torch.autocast(features.device.type, enabled=False):
            return self.log_scale.exp() * (features.float().permute(0, 2, 3, 1) @ self.unit_codebook().t())

    def decode_features(self, code: Tensor) -> Tensor:
        """Map code vectors (B, C, h, w), or mixtures of them, to what the decoder says of every pixel.

        That is float32 (B, head_channels, H, W): pixels, meant for [-1, 1], or locations and log-scales.
        `expected_images` makes images of both.
        """
        hidden = F.relu(self.decoder_blocks(self.from_code(code)))
        hidden = F.relu(self.unshuffle(self.split(hidden)))  # (B, width / 2, H / 4, W / 4)
        statistics: Tensor = self.pixel_shuffle(self.to_pixels(hidden))
        return statistics.float()

    def decode_weights(self, weights: Tensor) -> Tensor:
        """Map word weights, float (B, h, w, V) summing to 1, as `decode_features` does."""
        return self.decode_features((weights @ self.unit_codebook()).permute(0, 3, 1, 2))

    def expected_images(self, statistics: Tensor) -> Tensor:
        """Map the output of `decode_features` to images, float32 (B, K, H, W), meant for [-1, 1]."""
        return statistics if self.config.reconstruction == "mse" else most_likely_pixels(statistics)

    def pixels_to_ids(self, pixels: Tensor) -> Tensor:
        """Map uint8 (B, 3, H, W) to the best word per position, int64 (B, h, w) in [0, V)."""
        with torch.autocast(pixels.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            features = self.encode_features(self.see(pixels))
        # The scale is positive and common to all words, so it cannot change which is best.
        return (features.permute(0, 2, 3, 1) @ self.unit_codebook().t()).argmax(dim=-1)

    def ids_to_pixels(self, token_ids: Tensor) -> Tensor:
        """Map words, int64 (B, h, w), to uint8 (B, 3, H, W)."""
        images = self.expected_images(self.decode_features(self.unit_codebook()[token_ids].permute(0, 3, 1, 2)))
        pixels = ((images.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
        return pixels.expand(-1, 3, -1, -1)

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Compute code vectors in `dtype`; comparing them with the codebook, and decoding, stay float32."""
        self.dtype = dtype


def scale_pixels(pixels: Tensor) -> Tensor:
    """Map uint8 pixels, any shape, to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def gumbel_softmax(logits: Tensor, *, temperature: float, generator: torch.Generator) -> Tensor:
    """Relax one draw from the categorical distribution `softmax(logits)` along the last dim.

    Args:
        logits: Float (..., V).
        temperature: Above 0; near 0 the result is close to one-hot, near infinity to uniform.
        generator: Owns all randomness.
    Returns:
        Float (..., V), non-negative, sums to 1.
    Source: E. Jang et al., "Categorical Reparameterization with Gumbel-Softmax", 2017, eq. 1 and 2.
    """
    # Minus the logarithm of an exponential draw is a Gumbel draw; one logarithm less than from a uniform one.
    exponential = torch.empty_like(logits).exponential_(generator=generator)
    return F.softmax((logits - exponential.clamp_min_(1e-20).log_()) / temperature, dim=-1)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Mean over positions of KL(softmax(logits) || uniform), in nats: 0 when undecided, log V when certain.

    Takes float (..., V), returns a scalar.

    Source: BEiT §2.1, uniform prior. Differs: a mean over positions, so that its weight does not depend on batch or
    image size; log-softmax instead of a logarithm of probabilities with an added constant.
    """
    log_probability = F.log_softmax(logits, dim=-1)
    return (log_probability.exp() * log_probability).sum(dim=-1).mean() + math.log(logits.shape[-1])


def usage_kl(logits: Tensor) -> Tensor:
    """KL(mean over positions of softmax(logits) || uniform), in nats: 0 when the batch uses all words equally.

    This is the part of `kl_to_uniform` that collapse shows up in; the rest is the information a token carries, which a
    tokenizer should keep. The two are weighted separately for that reason. Takes float (..., V), returns a scalar.
    """
    mean_probability = F.softmax(logits, dim=-1).flatten(0, -2).mean(dim=0)
    entropy = -(mean_probability * mean_probability.clamp_min(1e-12).log()).sum()
    return math.log(logits.shape[-1]) - entropy


def negative_log_likelihood(statistics: Tensor, images: Tensor) -> Tensor:
    """Mean over pixels and channels of -log f, in nats.

    Args:
        statistics: Float32 (B, 2K, H, W): locations mu of all channels, then log-scales log b.
        images: Float (B, K, H, W) in [-1, 1].
    Returns:
        Scalar; negative where f is above 1.
    """
    location, log_scale = statistics.chunk(2, dim=1)
    log_scale = log_scale.clamp_min(MIN_LOG_SCALE)
    targets = map_pixels((images + 1.0) / 2.0)
    distance = (torch.logit(targets) - location).abs()
    volume = (targets * (1.0 - targets)).log()
    return (log_scale + math.log(2.0) + volume + distance * torch.exp(-log_scale)).mean()


def most_likely_pixels(statistics: Tensor) -> Tensor:
    """Map statistics, float32 (B, 2K, H, W), to the image at their locations, float32 (B, K, H, W) in [-1, 1]."""
    location, _ = statistics.chunk(2, dim=1)
    return unmap_pixels(torch.sigmoid(location)) * 2.0 - 1.0
