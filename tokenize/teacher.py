"""Teachers: networks whose patch features a tokenizer's words are made of.

    teacher = load_teacher("runs/pretrain/encoder", block=8)
    features = teacher.features(images)     # uint8 (B, 3, S, S) -> float32 (B, D, g, g)

A teacher is an encoder of beit, imported ones included, or code of somebody else, `module:Class`, which only a user
names, never a file. It stays as it is.

B images, S = img_size their side in pixels, g = grid_size patches per side, D = dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from beit.common.encoder import load_encoder, weights_sha256
from beit.common.errors import require
from beit.common.storage.documents import read_json
from beit.common.tokenizer import DType
from beit.common.tokenizers.directory import CONFIG_FILE, FORMAT, fingerprint
from beit.common.tokenizers.plugin import Offer, call_code, is_import_name, noise, require_class
from beit.common.vit.config import Normalization
from beit.common.vit.flops import forward_flops
from beit.common.vit.transform import normalize_images
from beit.common.vit.vit import VisionTransformer, grid_features
from beit.tokenize.encoders import VOCABULARIES, TeacherCost


class Teacher(Protocol):
    """What gives features of patches.

    One of somebody else is made by calling the class (or function) with the keywords `device`, a `torch.device`, and
    `dtype`, "float32", "float16" or "bfloat16": where and in which number format to compute. It need not have a name.
    """

    @property
    def name(self) -> str:
        """What it was asked for by."""

    @property
    def img_size(self) -> int:
        """Side of the images it takes, S, in pixels."""

    @property
    def grid_size(self) -> int:
        """Patches per side, g."""

    @property
    def dim(self) -> int:
        """Features of a patch, D."""

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over all that decides features; `beit.common.tokenizers.directory.fingerprint` computes one."""

    def features(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (B, 3, S, S) on the device to float32 (B, D, g, g); called under `torch.no_grad`."""


@dataclass(frozen=True, slots=True)
class EncoderTeacher:
    """An encoder of beit, up to one of its blocks."""

    name: str
    """Its folder, as the user gave it."""
    encoder: VisionTransformer
    """In eval mode, on its device; blocks after the one in use are never run."""
    block: int
    """Whose features they are, counted from 0; through the last norm where that is the encoder's own."""
    fingerprint: str
    """sha256 over the weights and the block."""
    dtype: torch.dtype
    """Of the products inside."""

    @property
    def img_size(self) -> int:
        """Side of the images it takes, S, in pixels."""
        return self.encoder.config.img_size

    @property
    def grid_size(self) -> int:
        """Patches per side, g."""
        return self.encoder.config.grid_size[0]

    @property
    def dim(self) -> int:
        """Features of a patch, D."""
        return self.encoder.config.embed_dim

    @property
    def normalization(self) -> Normalization:
        """Mean and std of its input."""
        found = self.encoder.normalization
        assert found is not None, "every encoder on disk says how its pixels are normalised"
        return found

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (B, 3, S, S) on the device to float32 (B, D, g, g)."""
        pixels = normalize_images(images, *self.normalization)
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            (hidden,) = self.encoder.forward_intermediates(pixels, [self.block])
        return grid_features(hidden).float()


class PluginTeacher:
    """A teacher of somebody else, checked; `name` is what it was asked for by."""

    def __init__(self, plugin: Any, *, name: str, device: torch.device) -> None:
        offer = Offer(plugin, f"teacher {name}", "img_size, grid_size, dim, fingerprint and features")
        self._offer, self._device, self.name = offer, device, name
        self.img_size, self.grid_size, self.dim = (offer.count(count) for count in ("img_size", "grid_size", "dim"))
        self.fingerprint = offer.fingerprint()
        self._features = offer.method("features")
        self._is_first = True

    def try_once(self) -> None:
        """Ask for the features of an image, so that what the code gets wrong is said before a run is begun."""
        self.features(noise(self.img_size).to(self._device))
        self._is_first = True

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (B, 3, S, S) on the device to float32 (B, D, g, g)."""
        result = self._offer.tensor("features", self._features(images))
        wanted = (len(images), self.dim, self.grid_size, self.grid_size)
        self._offer.require(
            result.is_floating_point() and tuple(result.shape) == wanted,
            f"features returned {result.dtype} {tuple(result.shape)} for images {tuple(images.shape)}, must be floats "
            f"{wanted}",
        )
        features = result.detach().to(self._device, torch.float32)
        # On a GPU a look at the values waits for them.
        if self._is_first or self._device.type == "cpu":
            self._is_first = False
            self._offer.require(bool(features.isfinite().all()), "features returned values that are not finite")
        return features


def load_teacher(
    name_or_path: str | Path,
    *,
    block: int | None = None,
    device: str | torch.device = "cpu",
    dtype: DType = "float32",
) -> Teacher:
    """Load a teacher.

    Args:
        name_or_path: Folder of an encoder, or a run; or `module:Class`, which runs that code.
        block: Whose features, counted from 0; None is the last, through its final norm where the encoder has one.
        device: Where to compute.
        dtype: What to compute in; features come as float32.
    """
    place, name = torch.device(device), str(name_or_path)
    if is_code(name):
        require(
            block is None,
            f"--teacher-block ({block}) chooses a block of an encoder, and {name} is code; leave it out",
        )
        teacher = PluginTeacher(call_code(name, "teacher", device=place, dtype=dtype), name=name, device=place)
        teacher.try_once()
        return teacher
    require_class(name, "teacher")
    description = Path(name) / CONFIG_FILE
    require(
        name not in VOCABULARIES or Path(name).exists(),
        f"--teacher {name} names a tokenizer; pre-train an encoder with its words, and give the folder of that run",
    )
    require(
        not description.is_file() or read_json(description).get("format") != FORMAT.name,
        f"--teacher {name} is a tokenizer, not an encoder; give the folder `encoder` of a run",
    )
    encoder = load_encoder(name, device=place).requires_grad_(False)
    last = encoder.config.depth - 1
    chosen = last if block is None else block
    require(0 <= chosen <= last, f"--teacher-block ({chosen}) must be in [0, {last}], the blocks of {name}")
    digest = fingerprint({"teacher": "encoder", "weights": weights_sha256(name), "block": chosen}, {})
    return EncoderTeacher(name, encoder, chosen, digest, getattr(torch, dtype))


def cost_of(teacher: Teacher) -> TeacherCost:
    """Return what it is to ask a teacher, as far as it can be told."""
    if not isinstance(teacher, EncoderTeacher):
        return TeacherCost(dim=teacher.dim, img_size=teacher.img_size)
    used = replace(teacher.encoder.config, depth=teacher.block + 1)
    size = sum(weight.numel() for weight in teacher.encoder.parameters())
    return TeacherCost(dim=teacher.dim, img_size=teacher.img_size, parameters=size, flops=float(forward_flops(used)))


def is_code(name: str) -> bool:
    """Tell whether a name stands for code of somebody else, `module:Class`."""
    return is_import_name(name) and not Path(name).exists()
