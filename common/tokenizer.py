"""Image tokenizers by name or path: `load_tokenizer`, and the directory a trained one is kept in.

    tokenizer = load_tokenizer("mini")
    token_ids = tokenizer.encode(images)     # uint8 pixels to visual words
    pictures = tokenizer.decode(token_ids)   # and back

The networks are `beit.common.dvae` (compact, trained here) and `beit.common.dalle` (BEiT's). Cutting many images into
batches is the caller's business; a convolution's last bits depend on the batch size, so stores fix it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from beit.common.config import config_from_dict, config_to_dict
from beit.common.dalle import DalleModel
from beit.common.dalle_files import find_dalle, load_dalle
from beit.common.dvae import DiscreteVAE
from beit.common.dvae_config import DiscreteVAEConfig
from beit.common.errors import InputError, require
from beit.common.files import read_json, write_atomic, write_json
from beit.common.tensor_check import check_tensors

FORMAT, FORMAT_VERSION = "beit-tokenizer", 1
BUNDLED_DIR = Path(__file__).parent / "tokenizers"
"""Tokenizers that come with the package, one folder each."""

DType = Literal["float32", "bfloat16", "float16"]


class TokenizerModel(Protocol):
    """What a network must offer to be a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of words."""

    @property
    def downsampling(self) -> int:
        """Pixels per token and side."""

    def pixels_to_ids(self, pixels: Tensor) -> Tensor:
        """Map uint8 (B, 3, H, W) to int64 (B, h, w)."""

    def ids_to_pixels(self, token_ids: Tensor) -> Tensor:
        """Map int64 (B, h, w) to uint8 (B, 3, H, W)."""


class Tokenizer:
    """A frozen network between pixels and visual words.

    Args:
        model: On its device, in eval mode.
        name: What it was loaded by.
        fingerprint: sha256 over settings and weights; equal fingerprints give the same words.
        can_decode: Whether `decode` works.
        device: Where `model` is.
    """

    def __init__(
        self, model: TokenizerModel, *, name: str, fingerprint: str, can_decode: bool, device: torch.device
    ) -> None:
        self._model = model
        self._device = device
        self.name = name
        self.fingerprint = fingerprint
        self.can_decode = can_decode
        self.vocab_size = model.vocab_size
        self.downsampling = model.downsampling

    def __repr__(self) -> str:
        """Show what decides compatibility."""
        return (
            f"Tokenizer({self.name!r}, vocab_size={self.vocab_size}, downsampling={self.downsampling}, "
            f"fingerprint={self.fingerprint[:12]}...)"
        )

    @torch.inference_mode()
    def encode(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Find the best visual word for every position of every image, in one forward pass.

        Args:
            images: uint8 RGB, either a NumPy array (B, H, W, 3) or a tensor (B, 3, H, W). H and W divisible by
                `downsampling`.
        Returns:
            token_ids, int64 (B, H / downsampling, W / downsampling) in [0, vocab_size), on the tokenizer's device.
        Raises:
            ValueError: wrong shape or dtype.
        """
        pixels = _to_channels_first(images)
        height, width = pixels.shape[-2:]
        if height % self.downsampling or width % self.downsampling or not height * width:
            raise ValueError(f"images of {height} x {width} px must have sides divisible by {self.downsampling}")
        return self._model.pixels_to_ids(pixels.to(self._device))

    @torch.inference_mode()
    def decode(self, token_ids: NDArray[np.integer[Any]] | Tensor) -> NDArray[np.uint8]:
        """Paint what the words mean.

        Args:
            token_ids: Integers (B, h, w) in [0, vocab_size).
        Returns:
            uint8 RGB (B, h * downsampling, w * downsampling, 3).
        Raises:
            InputError: this tokenizer has no decoder.
            ValueError: wrong shape, or an id outside the vocabulary.
        """
        require(self.can_decode, f"tokenizer {self.name} has no decoder; put decoder.pkl beside its encoder.pkl")
        array = token_ids.cpu().numpy() if isinstance(token_ids, Tensor) else np.asarray(token_ids)
        if array.ndim != 3 or array.dtype.kind not in "iu":
            raise ValueError(f"token_ids must be integers of shape (B, h, w), got {array.dtype} {array.shape}")
        ids = torch.from_numpy(array.astype(np.int64)).to(self._device)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ValueError(f"token_ids ({int(ids.min())} to {int(ids.max())}) must lie in [0, {self.vocab_size})")
        return np.ascontiguousarray(self._model.ids_to_pixels(ids).permute(0, 2, 3, 1).cpu().numpy())


def _to_channels_first(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """Return uint8 (B, 3, H, W)."""
    if isinstance(images, Tensor):
        pixels, expected = images, "(B, 3, H, W)"
    else:
        pixels, expected = torch.from_numpy(np.ascontiguousarray(images)), "(B, H, W, 3)"
        pixels = pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"images must be uint8 {expected}, got {images.dtype} {tuple(images.shape)}")
    return pixels


def load_tokenizer(
    name_or_path: str | Path, *, device: str | torch.device = "cpu", dtype: DType = "float32"
) -> Tokenizer:
    """Load a tokenizer, ready to encode.

    Args:
        name_or_path: "mini" (comes with beit), "dall-e" (BEiT's; its files must be in the cache folder), a directory
            written by `beit tokenizer train`, a folder with DALL-E's encoder.pkl and perhaps decoder.pkl, or an
            encoder.pkl.
        device: Where to compute.
        dtype: Of the forward pass; comparisons that decide a word stay float32. float16 needs a GPU.
    Raises:
        InputError: nothing by that name, or its files are damaged or of another kind.
    """
    place = torch.device(device)
    require(dtype in ("float32", "bfloat16", "float16"), f"dtype ({dtype}) must be float32, bfloat16 or float16")
    require(
        dtype != "float16" or place.type != "cpu",
        "dtype (float16) is about 30 times slower than float32 on a CPU; use bfloat16 or float32",
    )
    name = str(name_or_path)
    path = _find(name)
    model: DiscreteVAE | DalleModel
    model, settings, can_decode = _load_directory(path) if _is_directory_format(path) else _load_dalle(path)
    model.to(place).eval().requires_grad_(False)
    # Before the dtype changes: a fingerprint names the weights, not the arithmetic.
    digest = fingerprint(settings, _deciding_tensors(model))
    model.use_dtype(getattr(torch, dtype))
    if place.type == "cpu":  # the layout CPU convolutions are fastest in
        nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Tokenizer(model, name=name, fingerprint=digest, can_decode=can_decode, device=place)


def _find(name: str) -> Path:
    """Return the directory or file that `name` means."""
    if (BUNDLED_DIR / name / "config.json").is_file() and "/" not in name:
        return BUNDLED_DIR / name
    if name == "dall-e":
        return find_dalle()
    path = Path(name)
    if not path.exists():
        bundled = sorted(folder.name for folder in BUNDLED_DIR.iterdir() if folder.is_dir())
        raise InputError(
            f"tokenizer {name!r} is neither a path nor one of {', '.join([*bundled, 'dall-e'])}; "
            "train one with: beit tokenizer train"
        )
    return path


def _is_directory_format(path: Path) -> bool:
    return (path / "config.json").is_file()


def _load_dalle(path: Path) -> tuple[DalleModel, dict[str, Any], bool]:
    model = load_dalle(path)
    return model, {"architecture": "dall-e"}, model.decoder is not None


def _load_directory(path: Path) -> tuple[DiscreteVAE, dict[str, Any], bool]:
    settings = read_json(path / "config.json")
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise InputError(f"{path}/config.json does not describe a tokenizer; give a directory made by beit tokenizer")
    require(
        settings.get("format_version") == FORMAT_VERSION,
        f"{path} has format_version {settings.get('format_version')}, this beit reads {FORMAT_VERSION}; update beit",
    )
    require(
        settings.get("architecture") == "dvae",
        f"{path} has architecture {settings.get('architecture')!r}, this beit knows 'dvae'; update beit",
    )
    config = config_from_dict(DiscreteVAEConfig, settings.get("model", {}), origin=f"{path}/config.json")
    file = path / "model.safetensors"
    require(file.is_file(), f"{path} has no model.safetensors; the tokenizer is incomplete, copy it again")
    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors raises its own type for damage, without a public common base
        raise InputError(f"{file} is not a readable safetensors file ({error}); copy it again") from None
    model = DiscreteVAE(config)
    check_tensors(tensors, model.state_dict(), file)
    stated = settings.get("fingerprint")
    if stated != fingerprint(_deciding_settings(config), tensors):
        raise InputError(f"{path}: weights and config.json do not belong together (fingerprint differs); copy it again")
    model.load_state_dict(tensors)
    return model, _deciding_settings(config), True


def save_tokenizer(
    directory: Path, state: Mapping[str, Tensor], config: DiscreteVAEConfig, *, training: Mapping[str, Any]
) -> str:
    """Write a trained dVAE as a tokenizer directory, and return its fingerprint.

    Args:
        directory: Created if missing; model.safetensors and config.json in it are replaced.
        state: `DiscreteVAE.state_dict()`.
        config: Shape of the network.
        training: Where it came from; goes to config.json as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    digest = fingerprint(_deciding_settings(config), tensors)
    write_atomic(directory / "model.safetensors", save(tensors))
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": "dvae",
        "model": config_to_dict(config),
        "fingerprint": digest,
        "training": dict(training),
    }
    write_json(directory / "config.json", description)
    return digest


def _deciding_settings(config: DiscreteVAEConfig) -> dict[str, Any]:
    return {"architecture": "dvae", **config.identity()}


def _deciding_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what the fingerprint covers: everything, except DALL-E's decoder, which may be absent."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("decoder.")}


def fingerprint(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the hex sha256 over settings and float32 tensors, whatever file they came from."""
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        data = tensors[name].detach().float().cpu().contiguous().numpy()
        hasher.update(f"\n{name} {data.shape}\n".encode())
        hasher.update(data.astype("<f4", copy=False).tobytes())
    return hasher.hexdigest()
