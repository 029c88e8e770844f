"""Tokenizers of somebody else: what they must offer, how they are found, and checks that one bug there stays one line.

A plugin is found under a name that an installed package registers in the entry point group `beit.tokenizers`, or as
`module:Class`. Loading one runs its code, so the latter is only ever done for a name that the user gave; see
`beit.common.tokenizer` for names that come out of a file.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.common.errors import InputError, require

ENTRY_POINT_GROUP = "beit.tokenizers"
_IMPORT_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class TokenizerPlugin(Protocol):
    """What a tokenizer of somebody else must offer.

    It is made by calling the class (or function) with the keywords `device`, a `torch.device`, and `dtype`, "float32",
    "float16" or "bfloat16": where and in which number format to compute. beit calls `encode` under
    `torch.inference_mode`, on batches that all have one size; the same pixels must give the same words every time.
    A method `decode(token_ids)` is optional: int64 (B, h, w) to uint8 (B, 3, H, W); pictures need it.
    """

    vocab_size: int
    """Number of words, V; at most 65536 for a token store."""
    downsampling: int
    """Pixels per word and side: images of H x W pixels have h x w = H / downsampling x W / downsampling words."""
    fingerprint: str
    """Hex sha256 over everything that decides words, the weights above all;
    `beit.common.tokenizers.directory.fingerprint` computes one. Token stores are told apart by it."""

    def encode(self, images: Tensor) -> Tensor | NDArray[np.integer[Any]]:
        """Map uint8 RGB (B, 3, H, W) on the device to words, integers (B, h, w) in [0, V), on any device."""


class PluginModel:
    """A plugin, checked, in the form of the networks of this package.

    `name` is what it was asked for by, for messages; on `device` are its input and its output.
    """

    def __init__(self, plugin: Any, *, name: str, device: torch.device) -> None:
        self._name, self._device = name, device
        self.vocab_size = self._count(plugin, "vocab_size")
        self.downsampling = self._count(plugin, "downsampling")
        self.fingerprint = str(self._attribute(plugin, "fingerprint"))
        self._require(
            _FINGERPRINT.fullmatch(self.fingerprint) is not None,
            f"fingerprint ({self.fingerprint!r}) must be a sha256 of what decides its words, 64 lower-case hex digits",
        )
        self._encode: Callable[[Tensor], Any] = self._attribute(plugin, "encode")
        self._require(callable(self._encode), "encode must be a method")
        self._decode: Callable[[Tensor], Any] | None = getattr(plugin, "decode", None)
        self._require(self._decode is None or callable(self._decode), "decode must be a method, or absent")
        self.can_decode = self._decode is not None
        self._is_first = True

    def pixels_to_ids(self, pixels: Tensor) -> Tensor:
        """Map uint8 (B, 3, H, W) to int64 (B, h, w)."""
        batch, _, height, width = pixels.shape
        expected = (batch, height // self.downsampling, width // self.downsampling)
        result = self._tensor("encode", self._encode(pixels))
        self._require(
            result.dtype != torch.bool and not result.is_floating_point() and not result.is_complex(),
            f"encode returned {result.dtype}, must be integers",
        )
        self._require(
            tuple(result.shape) == expected,
            f"encode returned shape {tuple(result.shape)} for images {tuple(pixels.shape)}, must be {expected}: "
            f"downsampling is {self.downsampling}",
        )
        token_ids = result.to(self._device, torch.int64)
        # On a GPU a look at the values waits for them; whoever fetches them looks at the later batches.
        if self._is_first or self._device.type == "cpu":
            self._is_first = False
            low, high = (int(bound) for bound in torch.aminmax(token_ids)) if token_ids.numel() else (0, 0)
            self._require(
                0 <= low <= high < self.vocab_size,
                f"encode returned ids {low} to {high}, must lie in [0, {self.vocab_size}): vocab_size is "
                f"{self.vocab_size}",
            )
        return token_ids

    def ids_to_pixels(self, token_ids: Tensor) -> Tensor:
        """Map int64 (B, h, w) to uint8 (B, 3, H, W)."""
        assert self._decode is not None, "callers ask `Tokenizer.can_decode` first"
        pixels = self._tensor("decode", self._decode(token_ids))
        batch, height, width = token_ids.shape
        expected = (batch, 3, height * self.downsampling, width * self.downsampling)
        self._require(
            pixels.dtype == torch.uint8 and tuple(pixels.shape) == expected,
            f"decode returned {pixels.dtype} {tuple(pixels.shape)}, must be torch.uint8 {expected}",
        )
        return pixels

    def _tensor(self, method: str, result: Any) -> Tensor:
        if isinstance(result, np.ndarray):
            is_unsigned = method == "encode" and result.dtype.kind == "u"  # torch has few operations on such words
            return torch.from_numpy(result.astype(np.int64) if is_unsigned else result)
        is_tensor = isinstance(result, Tensor)
        self._require(is_tensor, f"{method} returned a {type(result).__name__}, must be a tensor or an array")
        return cast(Tensor, result)

    def _attribute(self, plugin: Any, attribute: str) -> Any:
        if not hasattr(plugin, attribute):
            raise InputError(
                f"tokenizer {self._name} has no {attribute}; it must offer vocab_size, downsampling, fingerprint and "
                "encode (docs/tokenizers.md)"
            )
        return getattr(plugin, attribute)

    def _count(self, plugin: Any, attribute: str) -> int:
        value = self._attribute(plugin, attribute)
        is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        self._require(is_whole and int(value) >= 1, f"{attribute} ({value!r}) must be a positive whole number")
        return int(value)

    def _require(self, condition: bool, message: str) -> None:
        require(condition, f"tokenizer {self._name}: {message} (docs/tokenizers.md)")


def is_import_name(name: str) -> bool:
    """Tell whether `name` has the form `module:Class`."""
    return _IMPORT_NAME.fullmatch(name) is not None


def installed_names() -> list[str]:
    """Return the names that installed packages register, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def load_plugin(name: str, *, device: torch.device, dtype: str) -> PluginModel:
    """Import and make a tokenizer of somebody else, which runs its code.

    Modules of a `module:Class` are looked for in the current folder too, last.
    """
    factory = _import(name)
    require(callable(factory), f"tokenizer {name} is a {type(factory).__name__}, must be a class or a function")
    try:
        inspect.signature(factory).bind(device=device, dtype=dtype)
    except TypeError as error:
        raise InputError(f"tokenizer {name} must accept the keywords device and dtype ({error})") from None
    return PluginModel(factory(device=device, dtype=dtype), name=name, device=device)


def _import(name: str) -> Any:
    points = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if len({point.value for point in points}) > 1:
        values = ", ".join(point.value for point in points)
        raise InputError(f"tokenizer {name} is registered by several packages ({values}); give one as module:Class")
    if os.getcwd() not in sys.path and not points:
        sys.path.append(os.getcwd())  # stays: what the module imports later lies beside it; last, so it hides nothing
    try:
        if points:
            return points[0].load()
        module_name, _, attribute = name.partition(":")
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except Exception as error:  # whatever the imported module does
        raise InputError(
            f"tokenizer {name} cannot be imported ({type(error).__name__}: {error}); check the name, and that its "
            "package is installed or lies in the current folder"
        ) from error
