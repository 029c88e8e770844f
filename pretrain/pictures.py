"""What a pre-trained model sees, as a picture: image, mask, what it predicts there, and what it should have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.common.config import load_config
from beit.common.encoder import load_weights
from beit.common.encoder_config import EncoderConfig, read_encoder_config
from beit.common.errors import InputError
from beit.common.normalization import normalize_images
from beit.common.pictures import contact_sheet, mask_patches
from beit.common.store import TokenStore, open_store
from beit.common.store_dataset import StoreDataset
from beit.common.store_schema import TokenizerInfo
from beit.common.store_tokenizer import load_store_tokenizer
from beit.pretrain.config import PretrainConfig
from beit.pretrain.data import ViewTransform
from beit.pretrain.model import PATCH_EPS, patchify, unpatchify
from beit.pretrain.objective import TokenSource, build_model
from beit.pretrain.sample import EvenSample

TITLES = ("image", "masked", "predicted tokens", "original tokens")
PIXEL_TITLES = ("image", "masked", "predicted pixels")


def reconstruction_sheet(run: Path, *, store: str | Path | None, tokenizer: str | None, num_images: int) -> Image.Image:
    """Draw held-out images as the model of a run completes them.

    The third column shows visible patches as they are and masked ones as predicted: tokens decoded, or, where the model
    predicts pixels, pixels. Patches that were predicted standardised by themselves get their own mean and deviation
    back, which the model does not know.

    Args:
        run: Run directory of `beit pretrain`.
        store: The token store, where it is no longer where the run found it.
        tokenizer: What decodes the tokens, where it is not the one the run names.
        num_images: Rows of the sheet.

    Returns:
        RGB image with the columns of `TITLES`, or of `PIXEL_TITLES`.

    Raises:
        InputError: a part is missing, or the tokenizer is not the run's or cannot decode.
    """
    encoder = read_encoder_config(run / "encoder")
    config = load_config(PretrainConfig, recipe=run / "config.toml", overrides=(), recipe_dir=run)
    tokens = _tokens(encoder, tokenizer) if config.objective.needs_tokens else None
    token_store = open_store(store or encoder.provenance["store"])
    samples = _samples(token_store, config, tokens, num_images)
    images, masks = (torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in _SHOWN)
    model = build_model(config, encoder.architecture, tokens)
    load_weights(model, run / "encoder")
    with torch.inference_mode():
        normalized = normalize_images(images, config.data.mean, config.data.std)
        predicted = model.eval().predict_all(normalized, masks)  # (B, N, V or P)
    grid = (len(samples), *encoder.architecture.grid_size)
    pictures = images.permute(0, 2, 3, 1).numpy()
    columns = [pictures, _mask_all(pictures, masks.view(grid).numpy())]
    if tokens is None:
        completed = _complete_pixels(images, predicted, masks, config, encoder.architecture.patch_size)
        return _sheet([*columns, completed], PIXEL_TITLES)
    token_ids = _token_ids(samples, tokens)
    decoder = tokens.encoder
    assert decoder is not None
    for ids in (torch.where(masks, predicted.argmax(-1), token_ids), token_ids):
        columns.append(np.asarray(decoder.decode(ids.view(grid))))
    return _sheet(columns, TITLES)


_SHOWN = ("images", "bool_masked_pos")


def _sheet(columns: list[NDArray[np.uint8]], titles: tuple[str, ...]) -> Image.Image:
    return contact_sheet([list(row) for row in zip(*columns, strict=True)], titles=titles)


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
    return TokenSource(
        name=network.name,
        fingerprint=network.fingerprint,
        vocab_size=network.vocab_size,
        encoder=network,
        token_img_size=grid_height * network.downsampling if is_online else 0,
    )


def _samples(
    store: TokenStore, config: PretrainConfig, tokens: TokenSource | None, count: int
) -> list[dict[str, NDArray[np.generic]]]:
    """Return a few held-out samples with their fixed masks, spread over the shards."""
    info = store.info
    transform = ViewTransform(
        img_size=info.img_size,
        grid_size=info.grid_size,
        mask=config.mask,
        seed=config.train.seed,
        augment=info.augment,
        strict=False,
        fixed_masks=True,
        is_fresh=info.views == 0,
        store_seed=info.seed,
        token_img_size=tokens.token_img_size if tokens else 0,
        needs_tokens=tokens is not None,
    )
    dataset = StoreDataset(store, seed=config.train.seed, held_out=True)
    places = EvenSample(dataset, count).places().tolist()
    return [transform(dataset.fetch(shard, rank, 0)) for shard, rank in places]


def _token_ids(samples: list[dict[str, NDArray[np.generic]]], tokens: TokenSource) -> Tensor:
    """Return the original tokens, (B, N) int64."""
    if not tokens.token_img_size:
        return torch.from_numpy(np.stack([sample["token_ids"] for sample in samples]))
    assert tokens.encoder is not None
    views = torch.from_numpy(np.stack([sample["token_views"] for sample in samples]))
    return tokens.encoder.encode(views).flatten(1)


def _complete_pixels(
    images: Tensor, predicted: Tensor, masks: Tensor, config: PretrainConfig, patch_size: int
) -> NDArray[np.uint8]:
    """Put predicted pixels in the place of masked ones, (B, H, W, 3)."""
    filled = predicted  # (B, N, P)
    if config.objective.normalize_patches:
        normalized = patchify(normalize_images(images, config.data.mean, config.data.std), patch_size)
        variance, mean = torch.var_mean(normalized, dim=-1, keepdim=True)
        filled = filled * (variance + PATCH_EPS).sqrt() + mean
    # The channel is the innermost of a patch's values.
    std, mean = (torch.tensor(value).repeat(patch_size**2) for value in (config.data.std, config.data.mean))
    filled = (filled * std + mean).clamp(0, 1) * 255
    completed = torch.where(masks[..., None], filled, patchify(images.float(), patch_size))
    return unpatchify(completed.round().to(torch.uint8), patch_size).permute(0, 2, 3, 1).numpy()


def _mask_all(images: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.stack([mask_patches(image, mask) for image, mask in zip(images, masks, strict=True)])
