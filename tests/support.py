"""Small data for tests: images, a tokenizer with random weights, a token store; what a model says of all patches."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit.common.rng import CounterRng
from beit.common.shards.token_store import TokenStore
from beit.common.store import open_store
from beit.common.tokenizers.directory import save_tokenizer
from beit.common.tokenizers.dvae import DiscreteVAE
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.pretrain.model import MaskedImageModel, MaskedPixelModel
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.run import run_tokenize

VOCAB_SIZE = 16


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def predict_all(model: MaskedImageModel | MaskedPixelModel, images: Tensor, bool_masked_pos: Tensor) -> Tensor:
    """Return the predictions (B, N, V or P) of a pre-training model for every patch, masked or not."""
    hidden = model.forward_features(images, bool_masked_pos)
    return model.head(model.normed(hidden[:, 1:]))


def write_images(folder: Path, count: int, *, size: int = 24, classes: tuple[str, ...] = ()) -> Path:
    """Write blurred noise as PNG, in class sub-folders if classes are given: redder for each further class."""
    for i in range(count):
        rng = CounterRng(i, "test image")
        noise = rng.raw(8 * 8 * 3).astype(np.uint8).reshape(8, 8, 3).astype(np.int64)
        place = folder
        if classes:
            place = folder / classes[i % len(classes)]
            noise[..., 0] = noise[..., 0] // 4 + 190 * (i % len(classes)) // max(1, len(classes) - 1)
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
        image.resize((size, size), Image.Resampling.BICUBIC).save(place / f"{i:04d}.png")
    return folder


def write_tokenizer(folder: Path) -> Path:
    """Write a tiny dVAE with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = DiscreteVAEConfig(vocab_size=VOCAB_SIZE, width=8, num_blocks=1, code_dim=4)
        save_tokenizer(folder, DiscreteVAE(config).state_dict(), config, training={"data": "none"})
    return folder


def write_store(folder: Path, *, images: int = 60, views: int = 3, shard_size: int = 16) -> TokenStore:
    """Tokenize a few images: 16 px views, a 4 x 4 grid, several shards."""
    source = write_images(folder / "images", images)
    tokenizer = write_tokenizer(folder / "tokenizer")
    config = TokenizeConfig(
        tokenizer=str(tokenizer), views=views, img_size=16, patch_size=4, shard_size=shard_size, threads=1, workers=1
    )
    run_tokenize(config, str(source), folder / "store")
    return open_store(folder / "store")


def write_bare_store(folder: Path, *, images: int = 60) -> TokenStore:
    """Index the images of `write_store`, without tokens."""
    source = write_images(folder / "images", images)
    config = TokenizeConfig(views=0, img_size=16, patch_size=4, shard_size=16, threads=1, workers=1)
    run_tokenize(config, str(source), folder / "bare")
    return open_store(folder / "bare")
