"""One training step of the discrete VAE: phases of the run and loss of a micro-batch.

First a plain autoencoder, so that features mean something; then a codebook fitted to them and the Gumbel-softmax
bottleneck, ever colder; last single words with straight-through gradients, as the tokenizer will be used. The formulas
are in `beit.common.tokenizers.dvae`, the upkeep of the codebook in `codebook.py`, the loop in
`beit.common.training.trainer`.

Source: BEiT §2.1; DALL-E appendix A.2 (annealed temperature and KL weight). Differs: the autoencoder phase, the term
for even use of the vocabulary, and straight-through words at the end, all to keep words in use in a short training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.common.tokenizers.dvae import DiscreteVAE, gumbel_softmax, kl_to_uniform, negative_log_likelihood, usage_kl
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.tokenize.tokenizer_training.config import ObjectiveConfig

_USAGE_DECAY = 0.98
"""Per micro-batch, of the running use of each word: a memory of about 50."""
_NATS_TO_SQUARED_ERROR = 0.03
"""Factor on the log-likelihood. Near the errors a short training reaches (some 0.02), a gradient step on a nat weighs
about 1 / 0.03 times as much as one on the squared error; so the weights of the divergences mean the same for both."""
_FEATURE_NOISE = 0.5
"""Length of the noise on unit features in the autoencoder phase: the error a codebook will make, roughly."""


class TokenizerModel(nn.Module):
    """The network under training and the running use of its words."""

    usage: Tensor

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.vae = DiscreteVAE(config)
        self.register_buffer("usage", torch.full((config.vocab_size,), 1.0 / config.vocab_size))


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """What holds at one step."""

    is_discrete: bool
    """False in the autoencoder phase."""
    is_hard: bool
    """Whether the decoder sees single words."""
    temperature: float
    """Of the Gumbel-softmax."""
    kl_scale: float
    """Factor on both divergence terms, in [0, 1]."""
    is_revival: bool
    """Whether unused words are looked for in this step."""


def first_discrete_step(objective: ObjectiveConfig, total_steps: int) -> int:
    """Return the step at which the codebook is fitted and the bottleneck comes in; the last step at the latest."""
    return min(round(objective.autoencoder_fraction * total_steps), total_steps - 1)


def phase_at(objective: ObjectiveConfig, step: int, total_steps: int) -> Phase:
    """Return what holds at `step` of `total_steps`."""
    first = first_discrete_step(objective, total_steps)
    start, end = objective.temperature
    anneal_steps = max(1.0, objective.anneal_fraction * total_steps - first)
    progress = min(1.0, max(0.0, (step - first) / anneal_steps))
    ramp_steps = max(1.0, objective.kl_ramp_fraction * total_steps)
    return Phase(
        is_discrete=step >= first,
        is_hard=step >= max(first, objective.hard_fraction * total_steps),
        temperature=start * (end / start) ** progress,
        kl_scale=min(1.0, (step + 1) / ramp_steps),
        is_revival=first < step < objective.revive_fraction * total_steps
        and step % objective.revive_interval_steps == 0,
    )


def autoencoder_loss(model: TokenizerModel, images: Tensor, generator: torch.Generator) -> Tensor:
    """Reconstruction error of a plain autoencoder whose features are disturbed as a codebook will disturb them.

    Of images, uint8 (B, 3, H, W); a scalar, as of `reconstruction_loss`.
    """
    pixels = _channels_last(model.vae.see(images))
    features = model.vae.encode_features(pixels)
    noise = torch.randn(features.shape, generator=generator, device=features.device)
    disturbed = F.normalize(features + noise * (_FEATURE_NOISE / math.sqrt(features.shape[1])), dim=1)
    return reconstruction_loss(model.vae, model.vae.decode_features(disturbed), pixels)


def reconstruction_loss(vae: DiscreteVAE, statistics: Tensor, pixels: Tensor) -> Tensor:
    """Return how badly the decoder's output describes the pixels.

    Args:
        vae: Says what the output means.
        statistics: Of `DiscreteVAE.decode_features`, float32 (B, head_channels, H, W).
        pixels: What was encoded, float32 (B, K, H, W) in [-1, 1].
    Returns:
        Scalar: the mean squared error, or the scaled negative log-likelihood.
    """
    if vae.config.reconstruction == "mse":
        return F.mse_loss(statistics, pixels)
    return _NATS_TO_SQUARED_ERROR * negative_log_likelihood(statistics, pixels)


def discrete_loss(
    model: TokenizerModel, images: Tensor, *, phase: Phase, objective: ObjectiveConfig, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction of images, uint8 (B, 3, H, W), through words, plus the two divergence terms.

    The model's running use of words is updated; the generator owns the Gumbel noise.

    Returns:
        Loss (scalar) and detached scalar metrics.
    """
    pixels = _channels_last(model.vae.see(images))
    features = model.vae.encode_features(pixels)
    logits = model.vae.logits(features)  # (B, h, w, V)
    _count(model, logits)
    weights = gumbel_softmax(logits, temperature=phase.temperature, generator=generator)
    if phase.is_hard:
        words = F.one_hot(weights.argmax(dim=-1), model.vae.vocab_size).to(weights.dtype)
        weights = words + weights - weights.detach()  # value of the word, gradient of the relaxation
    statistics = model.vae.decode_weights(weights)
    error = reconstruction_loss(model.vae, statistics, pixels)
    certainty, unevenness = kl_to_uniform(logits), usage_kl(logits)
    penalty = objective.kl_weight * certainty + objective.usage_weight * unevenness
    metrics = {
        "psnr": psnr(F.mse_loss(model.vae.expected_images(statistics.detach()), pixels)),
        "kl": certainty.detach(),
        "usage_kl": unevenness.detach(),
        "logit_scale": model.vae.log_scale.detach().exp().squeeze(),
        "words_used": (model.usage >= objective.revive_threshold / len(model.usage)).sum().float(),
    }
    return error + phase.kl_scale * penalty, metrics


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in [-1, 1], any shape."""
    return -10.0 * torch.log10(mse.clamp_min(1e-12) / 4.0)


def _channels_last(pixels: Tensor) -> Tensor:
    # The layout in which CPU and GPU convolutions of this network are fastest.
    return pixels.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _count(model: TokenizerModel, logits: Tensor) -> None:
    counts = torch.bincount(logits.argmax(dim=-1).flatten(), minlength=len(model.usage))
    model.usage.lerp_(counts / counts.sum(), 1.0 - _USAGE_DECAY)
