"""What a model in pre-training sees, as a picture: image, mask, what it predicts there, and what it should have.

The same sheet is drawn from a finished run (`reconstruction_sheet`) and at every evaluation (`Reconstruction`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from beit.common.encoder import load_weights
from beit.common.errors import BadSample, InputError, require
from beit.common.images.channels import in_colour
from beit.common.pages.pictures import mask_patches, picture_table, sheet
from beit.common.runs.kinds import PRETRAIN, require_command
from beit.common.runs.layout import ENCODER
from beit.common.shards.schema import TokenizerInfo
from beit.common.shards.token_store import TokenStore
from beit.common.tokenizer import Tokenizer, load_store_tokenizer
from beit.common.tokenizers.dalle_cache import has_decoder
from beit.common.vit.channels import fit_channels
from beit.common.vit.description import EncoderConfig, read_encoder_config
from beit.common.vit.transform import normalize_images
from beit.pretrain.config import PretrainConfig
from beit.pretrain.data import build_transform
from beit.pretrain.model import PATCH_EPS, MaskedPrediction, patchify, unpatchify
from beit.pretrain.objective import TokenSource, build_model
from beit.pretrain.sample import EvenSample
from beit.pretrain.store_dataset import StoreDataset
from beit.pretrain.stored_run import open_stored_run

logger = logging.getLogger(__name__)

TITLES = ("image", "masked", "predicted tokens", "original tokens")
PIXEL_TITLES = ("image", "masked", "predicted pixels")
_LEGEND = (
    "Held-out images. Grey patches are hidden from the model. Where it predicts, they are what it makes of them, each "
    "patch by itself, and the others as they are"
)
_TOKEN_LEGEND = (
    f"{_LEGEND}; predicted and original tokens are painted by the tokenizer, so the original ones are the best there "
    "can be."
)

Decode = Callable[[Tensor], NDArray[np.uint8]]
"""From words (B, h, w) to what they look like, (B, H, W, 3) uint8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """A few held-out images, always the same ones under the same masks, to be completed by a model.

    B images, N patches, V words, P pixel values of a patch.
    """

    config: PretrainConfig
    """Settings of the run."""
    patch_size: int
    """Side in pixels."""
    images: Tensor
    """(B, C, H, W) uint8."""
    masks: Tensor
    """(B, N) bool, True = masked."""
    token_ids: Tensor | None
    """(B, N) int64, the original words; None where pixels are predicted."""

    def predict(self, model: nn.Module, device: torch.device) -> Tensor:
        """Return the words (B, N) or pixel values (B, N, P) of all patches on the CPU, predicted ones replaced.

        Args:
            model: In eval mode; called as in training, so that all ranks can take part under ZeRO 3.
            device: Of the model.
        """
        images, masks = self.images.to(device), self.masks.to(device)
        normalized = normalize_images(images, *self.config.data.normalization)
        wanted = masks if bool(masks.any()) else torch.ones_like(masks)  # all where none is masked
        prediction: MaskedPrediction = model(normalized, masks, wanted)
        positions, valid = prediction.positions.cpu(), prediction.valid.cpu()
        if self.token_ids is None:
            values = prediction.logits.float().cpu()
            whole = torch.zeros(*masks.shape, values.shape[-1])
            index = positions[..., None].expand_as(values)
            return whole.scatter(1, index, torch.where(valid[..., None], values, whole.gather(1, index)))
        words = prediction.logits.argmax(-1).cpu()
        return self.token_ids.scatter(1, positions, torch.where(valid, words, self.token_ids.gather(1, positions)))

    def draw(self, predicted: Tensor, decode: Decode | None, *, heading: str, facts: str) -> Image.Image:
        """Draw what `predict` returned, RGB, with the columns of `TITLES`, or of `PIXEL_TITLES`.

        `decode` paints words, and is needed where words are predicted; `facts` stand below the heading.
        """
        side = round(self.masks.shape[1] ** 0.5)
        pictures = in_colour(self.images.permute(0, 2, 3, 1).numpy())
        masks = self.masks.view(-1, side, side).numpy()
        columns = [pictures, np.stack([mask_patches(*pair) for pair in zip(pictures, masks, strict=True)])]
        titles: Sequence[str]
        titles, legend = PIXEL_TITLES, f"{_LEGEND}."
        if self.token_ids is None:
            columns.append(in_colour(self._complete_pixels(predicted)))
        else:
            assert decode is not None
            columns += [decode(ids.view(-1, side, side)) for ids in (predicted, self.token_ids)]
            titles, legend = TITLES, _TOKEN_LEGEND
        rows = [list(row) for row in zip(*columns, strict=True)]
        return sheet([picture_table(rows, titles=titles)], heading=heading, facts=facts, legend=legend)

    def _complete_pixels(self, predicted: Tensor) -> NDArray[np.uint8]:
        """Put predicted pixels in the place of masked ones, (B, H, W, C), C of the model.

        Patches that were predicted standardised by themselves get their own mean and deviation back, which the model
        does not know.
        """
        pixels, size = self.config.data.normalization, self.patch_size
        images = fit_channels(self.images, len(pixels.mean))
        filled = predicted
        if self.config.objective.normalize_patches:
            normalized = patchify(normalize_images(images, *pixels), size)
            variance, mean = torch.var_mean(normalized, dim=-1, keepdim=True)
            filled = filled * (variance + PATCH_EPS).sqrt() + mean
        # The channel is the innermost of a patch's values.
        std, mean = (torch.tensor(value).repeat(size**2) for value in (pixels.std, pixels.mean))
        filled = (filled * std + mean).clamp(0, 1) * 255
        completed = torch.where(self.masks[..., None], filled, patchify(images.float(), size))
        return unpatchify(completed.round().to(torch.uint8), size).permute(0, 2, 3, 1).numpy()


def build_reconstruction(
    store: TokenStore, config: PretrainConfig, tokens: TokenSource | None, *, num_images: int
) -> Reconstruction:
    """Choose at most `num_images` held-out images, spread over the store, with the masks they are measured under.

    Images that cannot be read are left out. Without `tokens`, pixels are predicted.
    """
    info = store.info
    token_img_size = tokens.token_img_size if tokens else 0
    transform = build_transform(config, info, token_img_size=token_img_size, fixed_masks=True, strict=False)
    dataset = StoreDataset(store, seed=config.train.seed, held_out=True)
    places = EvenSample(dataset, num_images).places().tolist()
    samples, problem = [], ""
    for shard, rank in places:
        try:
            samples.append(transform(dataset.fetch(shard, rank, 0)))
        except BadSample as error:
            problem = f"{dataset.sample_id(shard, rank)}: {error}"
    require(bool(samples), f"none of {len(places)} held-out images of {store.location} can be drawn ({problem})")
    arrays = {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}
    token_ids = arrays.get("token_ids")
    if token_img_size:
        assert tokens is not None and tokens.encoder is not None
        token_ids = tokens.encoder.encode(arrays["token_views"]).flatten(1).cpu().clone()
    return Reconstruction(
        config=config,
        patch_size=info.patch_size,
        images=arrays["images"],
        masks=arrays["bool_masked_pos"],
        token_ids=token_ids,
    )


def find_decoder(info: TokenizerInfo, device: torch.device) -> Tokenizer | None:
    """Load a store's tokenizer if it is on this machine and can paint; nothing is downloaded for a picture."""
    if info.name == "dall-e" and not has_decoder():
        logger.info("DALL-E's decoder is not on this machine, so evaluations draw no pictures")
        return None
    try:
        tokenizer = load_store_tokenizer(info, device=device)
    except InputError as error:
        logger.info("evaluations draw no pictures: %s", error)
        return None
    return tokenizer if tokenizer.can_decode else None


def reconstruction_sheet(run: Path, *, store: str | None, tokenizer: str | None, num_images: int) -> Image.Image:
    """Draw held-out images as the model of a run directory completes them, one per row; see `Reconstruction`.

    `store` and `tokenizer` are where they are now, if that is no longer what the run names.
    """
    require_command(run, PRETRAIN, is_read=True)
    encoder = read_encoder_config(run / ENCODER)
    opened = open_stored_run(run, store)
    tokens = _tokens(encoder, tokenizer) if opened.config.objective.needs_tokens else None
    shown = build_reconstruction(opened.store, opened.config, tokens, num_images=num_images)
    model = build_model(opened.config, encoder.architecture, tokens)
    load_weights(model, run / ENCODER)
    with torch.inference_mode():
        predicted = shown.predict(model.eval(), torch.device("cpu"))
    decode = tokens.encoder.decode if tokens and tokens.encoder else None
    origin = encoder.provenance
    facts = f"step {origin['step']} of {origin['total_steps']}; {opened.config.mask.mode} masks"
    return shown.draw(predicted, decode, heading="Masked images, completed", facts=facts)


def _tokens(encoder: EncoderConfig, given: str | None) -> TokenSource:
    """Load the run's tokenizer with its decoder."""
    origin = encoder.provenance
    if encoder.vocab_size is None:
        raise InputError("this encoder does not predict visual tokens, so there are none to draw")
    info = TokenizerInfo(
        name=origin["tokenizer"],
        fingerprint=origin["tokenizer_fingerprint"],
        vocab_size=encoder.vocab_size,
        downsampling=1,  # not looked at when loading; the network knows
    )
    network = load_store_tokenizer(info, given=given, need_decoder=True)
    grid_height, _ = encoder.architecture.grid_size
    is_online = origin.get("tokenizer_online", False)
    if is_online:
        network.require_grid(grid_height)
    return TokenSource.of(network, grid_height * network.downsampling if is_online else 0)
