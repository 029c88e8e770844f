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
import traceback
from collections.abc import Callable
from dataclasses import dataclass
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
    A method `decode(token_ids)` is optional: int64 (B, h, w) to uint8 (B, 3, H, W); pictures need it. So is an
    attribute `img_size`, of one that takes images of one side only, in pixels.
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


@dataclass(frozen=True, slots=True)
class Offer:
    """An object of somebody else's code, whose parts are looked at before they are used."""

    given: Any
    """The object."""
    label: str
    """What it is and what it was asked for by, such as "tokenizer brightness"."""
    needs: str
    """All that one of its kind must have, for messages."""

    def attribute(self, name: str) -> Any:
        """Return one that must be there."""
        if not hasattr(self.given, name):
            raise InputError(f"{self.label} has no {name}; it must offer {self.needs} (docs/tokenizers.md)")
        return getattr(self.given, name)

    def count(self, name: str) -> int:
        """Return a number of something."""
        value = self.attribute(name)
        is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        self.require(is_whole and int(value) >= 1, f"{name} ({value!r}) must be a positive whole number")
        return int(value)

    def fingerprint(self) -> str:
        """Return the sha256 that tells it from others."""
        value = str(self.attribute("fingerprint"))
        self.require(
            _FINGERPRINT.fullmatch(value) is not None,
            f"fingerprint ({value!r}) must be a sha256 of what decides its output, 64 lower-case hex digits",
        )
        return value

    def method(self, name: str) -> Callable[[Tensor], Any]:
        """Return one that must be there."""
        found: Callable[[Tensor], Any] = self.attribute(name)
        self.require(callable(found), f"{name} must be a method")
        return found

    def tensor(self, method: str, result: Any) -> Tensor:
        """Return what a method gave as a tensor."""
        if isinstance(result, np.ndarray):
            self.require(result.dtype.kind in "biufc", f"{method} returned an array of {result.dtype}, must be numbers")
            if result.dtype.kind == "u" and result.dtype != np.uint8:  # torch has few operations on such words
                return torch.from_numpy(result.astype(np.int64))
            # Torch reads no reversed views, and numbers in the machine's own byte order only.
            return torch.from_numpy(np.ascontiguousarray(result, result.dtype.newbyteorder("=")))
        is_tensor = isinstance(result, Tensor)
        self.require(is_tensor, f"{method} returned a {type(result).__name__}, must be a tensor or an array")
        return cast(Tensor, result)

    def require(self, condition: bool, message: str) -> None:
        """Raise an `InputError` unless the condition holds."""
        require(condition, f"{self.label}: {message} (docs/tokenizers.md)")


class PluginModel:
    """A plugin, checked, in the form of the networks of this package.

    `name` is what it was asked for by, for messages; on `device` are its input and its output.
    """

    def __init__(self, plugin: Any, *, name: str, device: torch.device) -> None:
        offer = Offer(plugin, f"tokenizer {name}", "vocab_size, downsampling, fingerprint and encode")
        self._offer, self._device = offer, device
        self.vocab_size, self.downsampling = offer.count("vocab_size"), offer.count("downsampling")
        self.img_size = None if getattr(plugin, "img_size", None) is None else offer.count("img_size")
        offer.require(
            self.img_size is None or self.img_size % self.downsampling == 0,
            f"img_size ({self.img_size}) must be a multiple of downsampling ({self.downsampling})",
        )
        self.fingerprint = offer.fingerprint()
        self._encode = offer.method("encode")
        self._decode: Callable[[Tensor], Any] | None = getattr(plugin, "decode", None)
        offer.require(self._decode is None or callable(self._decode), "decode must be a method, or absent")
        self.can_decode = self._decode is not None
        self._is_first = True

    def pixels_to_ids(self, pixels: Tensor) -> Tensor:
        """Map uint8 (B, 3, H, W) to int64 (B, h, w)."""
        batch, _, height, width = pixels.shape
        expected = (batch, height // self.downsampling, width // self.downsampling)
        result = self._offer.tensor("encode", self._encode(pixels))
        self._offer.require(
            result.dtype != torch.bool and not result.is_floating_point() and not result.is_complex(),
            f"encode returned {result.dtype}, must be integers",
        )
        self._offer.require(
            tuple(result.shape) == expected,
            f"encode returned shape {tuple(result.shape)} for images {tuple(pixels.shape)}, must be {expected}: "
            f"downsampling is {self.downsampling}",
        )
        token_ids = result.to(self._device, torch.int64)
        # On a GPU a look at the values waits for them; whoever fetches them looks at the later batches.
        if self._is_first or self._device.type == "cpu":
            self._is_first = False
            low, high = (int(bound) for bound in torch.aminmax(token_ids)) if token_ids.numel() else (0, 0)
            self._offer.require(
                0 <= low <= high < self.vocab_size,
                f"encode returned ids {low} to {high}, must lie in [0, {self.vocab_size}): vocab_size is "
                f"{self.vocab_size}",
            )
        return token_ids

    def ids_to_pixels(self, token_ids: Tensor) -> Tensor:
        """Map int64 (B, h, w) to uint8 (B, 3, H, W)."""
        assert self._decode is not None, "callers ask `Tokenizer.can_decode` first"
        pixels = self._offer.tensor("decode", self._decode(token_ids))
        batch, height, width = token_ids.shape
        expected = (batch, 3, height * self.downsampling, width * self.downsampling)
        self._offer.require(
            pixels.dtype == torch.uint8 and tuple(pixels.shape) == expected,
            f"decode returned {pixels.dtype} {tuple(pixels.shape)}, must be torch.uint8 {expected}",
        )
        return pixels


def is_import_name(name: str) -> bool:
    """Tell whether `name` has the form `module:Class`."""
    return _IMPORT_NAME.fullmatch(name) is not None


def installed_names() -> list[str]:
    """Return the names that installed packages register, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def load_plugin(name: str, *, device: torch.device, dtype: str) -> PluginModel:
    """Import and make a tokenizer of somebody else, which runs its code."""
    made = call_code(name, "tokenizer", device=device, dtype=dtype, group=ENTRY_POINT_GROUP)
    return PluginModel(made, name=name, device=device)


def call_code(name: str, role: str, *, device: torch.device, dtype: str, group: str | None = None) -> Any:
    """Import what a user named and call it with the keywords `device` and `dtype`; both run its code.

    Modules of a `module:Class` are looked for in the current folder too, last.

    Args:
        name: `module:Class`, or a name that an installed package registers in `group`.
        role: What it is to be, for messages.
        device: Passed on.
        dtype: Passed on.
        group: Of entry points; None knows no registered names.
    """
    factory = _import(name, role, group)
    require(callable(factory), f"{role} {name} is a {type(factory).__name__}, must be a class or a function")
    try:
        inspect.signature(factory).bind(device=device, dtype=dtype)
    except TypeError as error:
        raise InputError(f"{role} {name} must accept the keywords device and dtype ({error})") from None
    try:
        return factory(device=device, dtype=dtype)
    except (Exception, SystemExit) as error:  # whatever the code does; running out of memory is told by whom, too
        raise InputError(f"{role} {name} cannot be made ({_told(error)})") from error


def _import(name: str, role: str, group: str | None) -> Any:
    points = list(entry_points(group=group, name=name)) if group else []
    if len({point.value for point in points}) > 1:
        values = ", ".join(point.value for point in points)
        raise InputError(f"{role} {name} is registered by several packages ({values}); give one as module:Class")
    if os.getcwd() not in sys.path and not points:
        sys.path.append(os.getcwd())  # stays: what the module imports later lies beside it; last, so it hides nothing
    module_name, _, attribute = name.partition(":")
    try:
        if points:
            return points[0].load()
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except (Exception, SystemExit) as error:  # whatever the imported module does; a script ends by itself
        way_out = "check the name, and that its package is installed or lies in the current folder"
        if module_name.endswith(".py"):
            way_out = f"a module is named without .py: {module_name.removesuffix('.py')}:{attribute}"
        raise InputError(f"{role} {name} cannot be imported ({_told(error)}); {way_out}") from error


def _told(error: BaseException) -> str:
    """Say in one line what went wrong in somebody's code, and where."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    # What libraries were called on the way says nothing; nor does beit itself, which may be installed beside them.
    others = (sys.prefix, sys.base_prefix, "<", __file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return f"{text}, at {frames[-1].filename}:{frames[-1].lineno}" if frames else text
