"""What the settings make of the objective: where tokens come from, which model learns them, what a step costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from beit.common.shards.schema import StoreInfo
from beit.common.tokenizer import Tokenizer, load_tokenizer
from beit.common.vit.config import ViTConfig
from beit.common.vit.init import scale_to_width
from beit.pretrain.config import PretrainConfig
from beit.pretrain.masking import max_num_masked
from beit.pretrain.model import MaskedImageModel, MaskedPixelModel
from beit.pretrain.step import MimStep, PixelStep


@dataclass(frozen=True, slots=True)
class TokenSource:
    """The tokenizer behind a run's visual tokens."""

    name: str
    """Name or path it was loaded by."""
    fingerprint: str
    """sha256 over its weights and configuration."""
    vocab_size: int
    """Token ids lie in [0, vocab_size)."""
    encoder: Tokenizer | None = None
    """The network, where tokens are computed online; None where the store has them."""
    token_img_size: int = 0
    """Side in pixels of what `encoder` sees; 0 without one."""

    @classmethod
    def of(cls, encoder: Tokenizer, token_img_size: int) -> TokenSource:
        """Return the source that a network is."""
        name, fingerprint, vocab_size = encoder.name, encoder.fingerprint, encoder.vocab_size
        return cls(name, fingerprint, vocab_size, encoder, token_img_size)


def token_source(config: PretrainConfig, store: StoreInfo, device: torch.device) -> TokenSource | None:
    """Return where visual tokens come from, an online tokenizer on `device`; None where the objective needs none."""
    if not config.objective.needs_tokens:
        return None
    if config.tokenizer.online is None:
        assert store.tokenizer is not None
        info = store.tokenizer
        return TokenSource(name=info.name, fingerprint=info.fingerprint, vocab_size=info.vocab_size)
    encoder = load_tokenizer(
        config.tokenizer.online,
        device=device,
        dtype=config.tokenizer.dtype,
        compile_encoder=config.tokenizer.compile_encoder,
    )
    encoder.require_grid(store.grid_size)
    return TokenSource.of(encoder, store.grid_size * encoder.downsampling)


def build_model(
    config: PretrainConfig, vit: ViTConfig, tokens: TokenSource | None
) -> MaskedImageModel | MaskedPixelModel:
    """Build the model of the objective with its initial values."""
    num_masked = max_num_masked(config.mask, vit.grid_size)
    model: MaskedImageModel | MaskedPixelModel
    if tokens is None:
        model = MaskedPixelModel(vit, num_masked=num_masked)
    else:
        num_predicted = vit.num_patches if config.objective.kind == "all_tokens" else num_masked
        model = MaskedImageModel(vit, vocab_size=tokens.vocab_size, num_masked=num_predicted)
    if config.objective.aggregate:
        model.aggregate(config.objective.aggregate, config.objective.aggregate_from)
    if config.weights == "scaled" and config.init is None:
        scale_to_width(model, vit.grid_size)
    return model


def build_step(config: PretrainConfig, tokens: TokenSource | None, *, patch_size: int) -> MimStep | PixelStep:
    """Return what a micro-batch costs under the objective."""
    mean, std = config.data.normalization
    if tokens is None:
        normalize = config.objective.normalize_patches
        return PixelStep(mean=mean, std=std, patch_size=patch_size, normalize_patches=normalize)
    predict_all = config.objective.kind == "all_tokens"
    return MimStep(mean=mean, std=std, predict_all=predict_all, tokenizer=tokens.encoder)
