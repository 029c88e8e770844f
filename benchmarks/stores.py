"""What several benchmarks measure on: generated photographs, and stores tokenised at no cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from beit.common.rng import CounterRng
from beit.common.shards.token_store import TokenStore
from beit.common.store import open_store
from beit.common.tokenizer import Tokenizer
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.run import run_tokenize
from beit.tokenize.synthetic import render_scene


class NoTokenizer:
    """All tokens 0: for what does not depend on them, such as the speed of reading."""

    vocab_size, downsampling, fingerprint = 8192, 8, "0" * 64

    def encode(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Return token ids (B, g, g) for pixels (B, s, s, 3)."""
        side = images.shape[1] // self.downsampling
        return torch.zeros((len(images), side, side), dtype=torch.int64)


def make_store(source: str, folder: Path, **settings: object) -> TokenStore:
    """Tokenise `source` with a tokenizer that costs nothing, and open the store; `settings` of `TokenizeConfig`."""
    config = TokenizeConfig(threads=1, **settings)
    run_tokenize(config, source, folder, tokenizer=NoTokenizer())
    return open_store(folder)


def write_scenes(folder: Path, count: int, *, side: int = 500) -> str:
    """Write generated photographs of the form 4:3, at 500 px about 110 kB each as in ImageNet; return the folder."""
    folder.mkdir()
    for number in range(count):
        pixels = render_scene(CounterRng(number, "views_speed"), side)[: side * 3 // 4]
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=95)
    return str(folder)


def random_dalle(device: torch.device, dtype: str) -> Tokenizer:
    """Build DALL-E's encoder as `load_tokenizer` would, without its weights: the arithmetic is the same."""
    from beit.common.tokenizers.dalle import DalleModel

    model = DalleModel(with_decoder=False)
    torch.nn.Module.to(model, device=device, memory_format=torch.channels_last)
    model.eval().requires_grad_(False)
    model.use_dtype(getattr(torch, dtype))
    return Tokenizer(model, name="dall-e", fingerprint="0" * 64, can_decode=False, device=device, dtype=dtype)
