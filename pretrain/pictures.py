"""What a pre-trained model sees, as a picture: image, mask, predicted tokens and original tokens, decoded to pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from beit.common.config import load_config
from beit.common.encoder import load_weights, read_encoder_config
from beit.common.errors import InputError
from beit.common.normalization import normalize_images
from beit.common.pictures import contact_sheet, mask_patches
from beit.common.store import TokenStore, open_store
from beit.common.store_dataset import StoreDataset
from beit.common.store_tokenizer import load_store_tokenizer
from beit.common.tokenizer import Tokenizer
from beit.pretrain.config import PretrainConfig
from beit.pretrain.data import ViewTransform
from beit.pretrain.masking import max_num_masked
from beit.pretrain.model import MaskedImageModel

TITLES = ("image", "masked", "predicted tokens", "original tokens")


def reconstruction_sheet(run: Path, *, store: str | Path | None, tokenizer: str | None, num_images: int) -> Image.Image:
    """Draw held-out images as the model of a run completes them.

    The third column decodes the tokens of visible patches as they are and those of masked patches as predicted.

    Args:
        run: Run directory of `beit pretrain`.
        store: The token store, where it is no longer where the run found it.
        tokenizer: What decodes the tokens, where it is not the one the store names.
        num_images: Rows of the sheet.

    Returns:
        RGB image with the columns of `TITLES`.

    Raises:
        InputError: a part is missing, or the tokenizer is not the store's or cannot decode.
    """
    encoder = read_encoder_config(run / "encoder")
    config = load_config(PretrainConfig, recipe=run / "config.toml", overrides=(), recipe_dir=run)
    token_store = open_store(store or encoder.provenance["store"])
    decoder = _load_decoder(token_store, tokenizer)
    model = MaskedImageModel(
        encoder.architecture,
        vocab_size=decoder.vocab_size,
        num_masked=max_num_masked(config.mask, encoder.architecture.grid_size),
    )
    load_weights(model, run / "encoder")
    samples = _samples(token_store, config, num_images)
    bool_masked_pos = torch.from_numpy(np.stack([sample["bool_masked_pos"] for sample in samples]))
    images = torch.from_numpy(np.stack([sample["images"] for sample in samples]))
    token_ids = torch.from_numpy(np.stack([sample["token_ids"] for sample in samples]))
    with torch.inference_mode():
        logits = model.eval().predict_all(
            normalize_images(images, config.data.mean, config.data.std), bool_masked_pos
        )  # (B, N, V)
    completed = torch.where(bool_masked_pos, logits.argmax(-1), token_ids)
    grid = (len(samples), *encoder.architecture.grid_size)
    columns = [
        images.permute(0, 2, 3, 1).numpy(),
        _mask_all(images.permute(0, 2, 3, 1).numpy(), bool_masked_pos.view(grid).numpy()),
        np.asarray(decoder.decode(completed.view(grid))),
        np.asarray(decoder.decode(token_ids.view(grid))),
    ]
    return contact_sheet([list(row) for row in zip(*columns, strict=True)], titles=TITLES)


def _load_decoder(store: TokenStore, name: str | None) -> Tokenizer:
    info = store.info.tokenizer
    if info is None:
        raise InputError(f"{store.location} holds no tokens (views = 0), so there is nothing to draw")
    return load_store_tokenizer(info, given=name, need_decoder=True)


def _samples(store: TokenStore, config: PretrainConfig, count: int) -> list[dict[str, NDArray[np.generic]]]:
    """Return the first held-out samples with their fixed masks, spread over the shards."""
    dataset = StoreDataset(store, seed=config.train.seed, held_out=True)
    transform = ViewTransform(
        img_size=store.info.img_size,
        grid_size=store.info.grid_size,
        mask=config.mask,
        seed=config.train.seed,
        jitter_scope=store.info.augment.jitter_scope,
        strict=False,
        fixed_masks=True,
    )
    deepest = int(dataset.shard_sizes.max())
    places = ((shard, rank) for rank in range(deepest) for shard in range(len(store.shards)))
    held_out = [(shard, rank) for shard, rank in places if rank < dataset.shard_sizes[shard]][:count]
    return [transform(dataset.fetch(shard, rank, 0)) for shard, rank in held_out]


def _mask_all(images: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.stack([mask_patches(image, mask) for image, mask in zip(images, masks, strict=True)])
