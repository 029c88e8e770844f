"""Image tokenizers by name or path: `load_tokenizer`, and the one that a store was made with, loaded again.

    tokenizer = load_tokenizer("mini")
    token_ids = tokenizer.encode(images)     # uint8 pixels to visual words
    pictures = tokenizer.decode(token_ids)   # and back

The networks are `common/tokenizers/dalle.py` (BEiT's) and those of the table in `common/tokenizers/directory.py`, where
the directory that a trained one is kept in is described, too. Cutting many images into batches is the caller's
business; a convolution's last bits depend on the batch size, so stores fix it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beit.common.errors import InputError, did_you_mean, require
from beit.common.shards.schema import TokenizerInfo
from beit.common.tokenizers.dalle_cache import dalle_folder, has_decoder, has_encoder, prepare_dalle
from beit.common.tokenizers.directory import PATCHES, LoadedModel, load_model
from beit.common.tokenizers.plugin import (
    PluginModel,
    installed_names,
    is_import_name,
    load_plugin,
    noise,
    require_class,
)

logger = logging.getLogger(__name__)
BUNDLED_DIR = Path(__file__).parent / "tokenizers"
"""Tokenizers that come with the package, one folder each."""
DALLE = "dall-e"
"""Name of BEiT's own tokenizer."""
DType = Literal["float32", "bfloat16", "float16"]
DTypeSetting = Literal["auto", "float32", "bfloat16", "float16"]
CompileMode = Literal["auto", "on", "off"]


class TokenizerModel(Protocol):
    """What a network must offer to be a tokenizer."""

    vocab_size: int
    """Number of words."""
    downsampling: int
    """Pixels per token and side."""
    img_size: int | None
    """The one side of images in pixels that it takes; None takes all multiples of `downsampling`."""

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
        dtype: What `model` computes words in.
        is_compiled: Whether `encode` goes through `torch.compile`.
    """

    def __init__(
        self,
        model: TokenizerModel,
        *,
        name: str,
        fingerprint: str,
        can_decode: bool,
        device: torch.device,
        dtype: DType = "float32",
        is_compiled: bool = False,
    ) -> None:
        self._model, self._device = model, device
        self._pixels_to_ids = torch.compile(model.pixels_to_ids) if is_compiled else model.pixels_to_ids
        self.dtype, self.is_compiled = dtype, is_compiled
        self.name, self.fingerprint, self.can_decode = name, fingerprint, can_decode
        self.vocab_size, self.downsampling, self.img_size = model.vocab_size, model.downsampling, model.img_size
        # Networks of words that are not made to be painted have the mean patch of each (`directory.PATCHES`).
        self.paints_averages = can_decode and getattr(model, PATCHES, None) is not None

    def __repr__(self) -> str:
        side = "" if self.img_size is None else f"img_size={self.img_size}, "
        return (
            f"Tokenizer({self.name!r}, vocab_size={self.vocab_size}, downsampling={self.downsampling}, {side}"
            f"fingerprint={self.fingerprint[:12]}...)"
        )

    @torch.inference_mode()
    def encode(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Find the best visual word for every position of every image, in one forward pass.

        Args:
            images: uint8 RGB, either a NumPy array (B, H, W, 3) or a tensor (B, 3, H, W), or grey, with one channel
                instead of three. H and W divisible by `downsampling`, or both `img_size` where the tokenizer has one.
        Returns:
            token_ids, int64 (B, H / downsampling, W / downsampling) in [0, vocab_size), on the tokenizer's device.
        Raises:
            ValueError: wrong shape or dtype.
        """
        pixels = _to_channels_first(images)
        height, width = pixels.shape[-2:]
        if height % self.downsampling or width % self.downsampling or not height * width:
            raise ValueError(f"images of {height} x {width} px must have sides divisible by {self.downsampling}")
        if self.img_size is not None and (height, width) != (self.img_size, self.img_size):
            side = self.img_size
            raise ValueError(f"images of {height} x {width} px must be {side} x {side} px, all that {self.name} takes")
        with self._exact_arithmetic():
            return self._pixels_to_ids(pixels.to(self._device))

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
        self.require_decoder()
        array = token_ids.cpu().numpy() if isinstance(token_ids, Tensor) else np.asarray(token_ids)
        if array.ndim != 3 or array.dtype.kind not in "iu":
            raise ValueError(f"token_ids must be integers of shape (B, h, w), got {array.dtype} {array.shape}")
        ids = torch.from_numpy(array.astype(np.int64)).to(self._device)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ValueError(f"token_ids ({int(ids.min())} to {int(ids.max())}) must lie in [0, {self.vocab_size})")
        return np.ascontiguousarray(self._model.ids_to_pixels(ids).permute(0, 2, 3, 1).cpu().numpy())

    def encoder_module(self) -> nn.Module:
        """Return what `encode` computes as a module, for `torch.export` with batch, height and width left open.

        It maps uint8 (B, 3, H, W), on the tokenizer's device, to int64 (B, h, w), and checks nothing. Not part of it is
        what keeps float32 exact on a GPU: set torch.backends.cudnn.allow_tf32 = False there.
        """
        return _EncoderModule(self._model)

    def require_decoder(self) -> None:
        """Raise an `InputError` where this tokenizer has no decoder."""
        require(
            self.can_decode,
            f"tokenizer {self.name} has no decoder, so its tokens cannot be drawn; DALL-E's is decoder.pkl, beside its "
            "encoder.pkl, that of others decoder.safetensors",
        )

    def require_grid(self, grid_size: int) -> None:
        """Raise an `InputError` where images of `grid_size` tokens a side are none that this tokenizer takes.

        Code of somebody else is tried on one, so that what it gets wrong is said before anything is made with it.
        """
        if self.img_size is None or self.img_size == grid_size * self.downsampling:
            if isinstance(self._model, PluginModel):
                self.encode(noise(grid_size * self.downsampling))
            return
        own = self.img_size // self.downsampling
        raise InputError(
            f"tokenizer {self.name} takes images of {self.img_size} px only and gives {own} x {own} tokens, where "
            f"img_size / patch_size is {grid_size}; choose an img_size of {own} times the patch_size, such as "
            f"--img-size {self.img_size} --patch-size {self.downsampling}, or another tokenizer"
        )

    def _exact_arithmetic(self) -> AbstractContextManager[None]:
        """Make float32 mean float32: by default cuDNN shortens the factors of float32 convolutions to 10 bits."""
        if self.dtype != "float32" or self._device.type != "cuda":
            return nullcontext()
        flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return flags


class _EncoderModule(nn.Module):
    def __init__(self, model: TokenizerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.pixels_to_ids(pixels)


def _to_channels_first(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """Return uint8 (B, 3, H, W); what is grey stands in all three channels."""
    if isinstance(images, Tensor):
        pixels, expected = images, "(B, 3, H, W)"
    else:
        pixels, expected = torch.from_numpy(np.ascontiguousarray(images)), "(B, H, W, 3)"
        pixels = pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"images must be uint8 {expected}, got {images.dtype} {tuple(images.shape)}")
    return pixels.expand(-1, 3, -1, -1)  # of a grey network the luma of that is what came


def choose_dtype(setting: DTypeSetting, device: str | torch.device) -> DType:
    """Return the number format to compute words in.

    Args:
        setting: "auto" is float32 on the CPU and float16 on a GPU: BEiT's own choice there, and closer to float32 than
            bfloat16 (docs/decisions.md).
        device: Where to compute.
    """
    on_cpu = torch.device(device).type == "cpu"
    if setting == "auto":
        return "float32" if on_cpu else "float16"
    if setting not in ("float32", "bfloat16", "float16"):
        raise InputError(f"dtype ({setting}) must be auto, float32, bfloat16 or float16")
    require(
        setting != "float16" or not on_cpu,
        "dtype (float16) is about 30 times slower than float32 on a CPU; use auto, float32 or bfloat16",
    )
    return setting


def choose_compile(setting: CompileMode, device: str | torch.device) -> bool:
    """Return whether to compile the encoder.

    Args:
        setting: "auto" compiles on a GPU, if what `torch.compile` needs there is installed.
        device: Where to compute.
    """
    require(setting in ("auto", "on", "off"), f"compile_encoder ({setting}) must be auto, on or off")
    if setting != "auto":
        return setting == "on"
    if torch.device(device).type != "cuda":
        return False
    has_compiler = bool(os.environ.get("CC")) or any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    if importlib.util.find_spec("triton") is None or not has_compiler:
        logger.info("the tokenizer is not compiled: that needs triton and a C compiler")
        return False
    return True


def load_tokenizer(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: DTypeSetting = "auto",
    compile_encoder: CompileMode = "auto",
    need_decoder: bool = False,
) -> Tokenizer:
    """Load a tokenizer, ready to encode.

    Args:
        name_or_path: "mini" (comes with beit), "dall-e" (BEiT's; downloaded on first use), a directory written by
            `beit tokenizer train` or `convert`, a folder with DALL-E's encoder.pkl and perhaps decoder.pkl, an
            encoder.pkl, the name of an installed tokenizer of somebody else, or `module:Class`, which runs that code.
        device: Where to compute.
        dtype: Of the forward pass; comparisons that decide a word stay float32. See `choose_dtype`.
        compile_encoder: Whether `encode` goes through `torch.compile`; see `choose_compile`. The first batch of a
            shape then takes a minute.
        need_decoder: Whether `decode` must work.

    Returns:
        The tokenizer. Its `encode` maps uint8 images, an array (B, H, W, 3) or a tensor (B, 3, H, W), to int64 ids
        (B, h, w) in [0, vocab_size), one for each square of `downsampling` pixels, so that h = H / downsampling;
        `decode` paints ids as uint8 (B, H, W, 3). H and W are multiples of `downsampling`, or both `img_size` pixels
        where that is not None.

    Example:
        >>> tokenizer = beit.load_tokenizer("mini")
        >>> images = np.zeros((2, 112, 112, 3), np.uint8)
        >>> token_ids = tokenizer.encode(images)
        >>> token_ids.shape, token_ids.dtype, tokenizer.vocab_size
        (torch.Size([2, 14, 14]), torch.int64, 1024)
        >>> tokenizer.decode(token_ids).shape
        (2, 112, 112, 3)
    """
    place, name = torch.device(device), str(name_or_path)
    dtype = choose_dtype(dtype, place)
    is_compiled = choose_compile(compile_encoder, place)
    path = _find(name, need_decoder)
    loaded: LoadedModel | PluginModel
    model: TokenizerModel
    if path is None:
        loaded = model = load_plugin(name, device=place, dtype=dtype)
    else:
        loaded = load_model(path, need_decoder=need_decoder)
        model = loaded.model.eval().requires_grad_(False)
        # Convolutions are fastest in this layout, on the CPU and, in half precision, on a GPU.
        nn.Module.to(model, device=place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        loaded.model.use_dtype(getattr(torch, dtype))
    tokenizer = Tokenizer(
        model,
        name=name,
        fingerprint=loaded.fingerprint,
        can_decode=loaded.can_decode,
        device=place,
        dtype=dtype,
        is_compiled=is_compiled and path is not None,
    )
    if need_decoder:
        tokenizer.require_decoder()
    return tokenizer


def _find(name: str, need_decoder: bool) -> Path | None:
    """Return the directory or file that `name` means; None if it is a plugin."""
    if "/" not in name and (BUNDLED_DIR / name / "config.json").is_file():
        return BUNDLED_DIR / name
    if name == DALLE:
        return prepare_dalle(need_decoder=need_decoder)
    if name in installed_names():
        return None
    require_class(name, "tokenizer")
    path = Path(name)
    if path.exists():
        return path
    if is_import_name(name):
        return None
    bundled = sorted(file.parent.name for file in BUNDLED_DIR.glob("*/config.json"))  # other folders lie there, too
    known = [*bundled, DALLE, *installed_names()]
    hint = did_you_mean(name, known, {"dalle": DALLE, "dall_e": DALLE, "dvae": DALLE, "openai": DALLE})
    raise InputError(
        f"tokenizer {name!r} is neither a path nor one of {', '.join(known)}{hint}; "
        "train one with: beit tokenizer train"
    )


def load_store_tokenizer(
    info: TokenizerInfo,
    *,
    given: str | None = None,
    device: str | torch.device = "cpu",
    dtype: DTypeSetting = "auto",
    compile_encoder: CompileMode = "auto",
    need_decoder: bool = False,
) -> Tokenizer:
    """Load the tokenizer of a store, and make sure that it is that one.

    A name out of a file never decides which code runs: a `module:Class` is imported only if the user gave it. `given`
    is what the user names instead, because the tokenizer has moved or is code. For the rest see `load_tokenizer`.
    """
    name = given or info.name
    if given is None and is_import_name(name) and not Path(name).exists():
        raise InputError(
            f"the store was made with tokenizer {name}, which is code; if you trust it, name it yourself: "
            f"--tokenizer {name}"
        )
    if given is None and name == DALLE:  # nothing is downloaded that nobody asked for
        require(
            has_decoder() if need_decoder else has_encoder(),
            f"the store was made with {DALLE}, whose {'decoder' if need_decoder else 'encoder'} is not on this machine "
            f"({dalle_folder()}); to have it downloaded, say --tokenizer {DALLE}",
        )
    tokenizer = load_tokenizer(
        name, device=device, dtype=dtype, compile_encoder=compile_encoder, need_decoder=need_decoder
    )
    if tokenizer.fingerprint != info.fingerprint:
        raise InputError(
            f"tokenizer {name} (fingerprint {tokenizer.fingerprint[:12]}) is not the one the store was made with "
            f"({info.name}, {info.fingerprint[:12]}); restore that one, or name it with --tokenizer"
        )
    return tokenizer
