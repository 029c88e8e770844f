"""A stand-in tokenizer and small sources for tests of stores; here, because killed processes must import them."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from beit.common.errors import ResumableStop
from beit.common.rng import CounterRng
from beit.common.storage.files import set_trap
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.run import run_tokenize

VOCAB_SIZE = 32


class BlockSums:
    """Tokens that are a function of the 8 x 8 px block under them, so that a wrong view gives wrong tokens."""

    vocab_size = VOCAB_SIZE
    downsampling = 8
    fingerprint = "f" * 64

    def __init__(self):
        self.batch_shapes = []

    def encode(self, images):
        self.batch_shapes.append(images.shape)
        batch, height, width, _ = images.shape
        blocks = images.reshape(batch, height // 8, 8, width // 8, 8, 3).astype(np.int64)
        return torch.from_numpy(blocks.sum(axis=(2, 4, 5)) % VOCAB_SIZE)


class StoppedAt(BlockSums):
    """Stops at the n-th batch, as a signal would."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def encode(self, images):
        if len(self.batch_shapes) == self.batch:
            raise ResumableStop("stopped")
        return super().encode(images)


def encoded_image(number, suffix="jpg", size=(48, 40)):
    noise = CounterRng(number, "tiny store").raw(12 * 10 * 3).astype(np.uint8).reshape(10, 12, 3)
    buffer = io.BytesIO()
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix])
    return buffer.getvalue()


def write_members(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_tars(folder, sizes=(5, 7), *, bad=()):
    """Image tars as a user has them: jpg and json per key; keys in `bad` hold no image."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, size in enumerate(sizes):
        members = {}
        for _ in range(size):
            key = f"k{number:03d}"
            members[f"{key}.jpg"] = b"not an image" if key in bad else encoded_image(number)
            members[f"{key}.json"] = json.dumps({"label": number % 3}).encode()
            number += 1
        write_members(folder / f"part-{shard}.tar", members)
    return folder


def write_folder(folder, count=10, *, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.{suffix}").write_bytes(encoded_image(number, suffix))
    return folder


def tiny_config(**changes):
    settings = {"views": 3, "img_size": 16, "patch_size": 4, "micro_batch_size": 4, "threads": 1, "workers": 2}
    return TokenizeConfig(**{**settings, "shard_size": 4, "bad_sample_budget": 0.5, **changes})


def tokenize(source, store, /, *, rank=0, world_size=1, tokenizer=None, **changes):
    return run_tokenize(
        tiny_config(**changes),
        str(source),
        str(store),
        rank=rank,
        world_size=world_size,
        tokenizer=tokenizer or BlockSums(),
    )


def tokenize_trapped(variables, trap, source, store, place):
    """As the rank and world size `place`, with environment variables and a trap of `beit.common.storage.files`."""
    os.environ.update(variables)
    set_trap(trap)
    tokenize(source, store, rank=place[0], world_size=place[1])


def tree_bytes(store):
    """Every file of a store."""
    return {
        str(path.relative_to(store)): path.read_bytes() for path in sorted(Path(store).rglob("*")) if path.is_file()
    }
