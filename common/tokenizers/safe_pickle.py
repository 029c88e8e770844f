"""Tensors out of pickled modules, without running anything that the pickle names.

Old releases, the official DALL-E dVAE among them, are whole pickled modules, and loading such a file the ordinary way
runs whatever it says. Here every class it may name is replaced by an inert stand-in, every other name is refused, and
only the tensors are kept. Which names to allow is the caller's business (`beit.common.tokenizers.dalle_files`), and so
is comparing the tensors with what a network needs (`beit.common.storage.tensor_check`).
"""

from __future__ import annotations

import collections
import io
import pickle
import types
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.common.errors import LFS_ADVICE, InputError, is_lfs_pointer

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How every file that torch wrote before its zip format begins."""

_LEGACY_HARMLESS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "FloatStorage"): torch.FloatStorage,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}
"""Constructors of plain data; the same ones torch admits by itself in its zip format."""
_MAX_DEPTH = 64
"""Modules inside modules; the DALL-E dVAE has five levels."""
_TEXT_BYTES = 200
"""Enough to tell a page or a log from a pickle."""


class InertModule:
    """Stands in for any pickled class: holds what it is given and can do nothing."""

    dump_patches = False
    """Asked for by torch in its old format, which compares the source of classes; True would write a file."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Keep the pickled attributes."""
        self.__dict__.update(state)


def read_module_tensors(path: Path, class_names: Collection[str]) -> dict[str, Tensor]:
    """Read the tensors of a pickled module, in either of torch's formats, detached, under their state-dict names.

    `class_names` are the full names of the classes the file may mention, such as
    "torch.nn.modules.container.Sequential". None of them is imported.
    """
    try:
        module = _read_zip(path, class_names) if zipfile.is_zipfile(path) else _read_legacy(path, class_names)
    except InputError:
        raise
    # The unpicklers report damage with whatever exception the bytes happen to provoke.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} is not a module pickle that can be read safely ({reason}); fetch it again") from None
    if not isinstance(module, InertModule):
        raise InputError(f"{path} holds a {type(module).__name__}, not a pickled module; give the published file")
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors, ancestors=())
    return tensors


def _read_zip(path: Path, class_names: Collection[str]) -> Any:
    # A class of its own per name, because torch maps classes back to names.
    aliases: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (type("InertModule", (InertModule,), {}), name) for name in class_names
    ]
    with torch.serialization.safe_globals(aliases):
        # Asked first, because the message of a refused load is a page that begins with how to load it unsafely.
        unexpected = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        if unexpected:
            raise InputError(f"{path} names {', '.join(unexpected)}, which such a file has no use for; do not trust it")
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_legacy(path: Path, class_names: Collection[str]) -> Any:
    data = path.read_bytes()
    if not data.startswith(_LEGACY_MAGIC):
        raise InputError(f"{path} {_what_it_is(data)}; fetch it again or give the published file")
    # In memory: for a real file torch would first try an even older format, which unpacks an archive to disk.
    with warnings.catch_warnings():
        # That the stand-ins' source is not that of the pickled classes is the point.
        warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
        return torch.load(
            io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=_restricted_pickle(class_names)
        )


def _what_it_is(data: bytes) -> str:
    """Say what a file is that torch did not write, as far as its beginning tells."""
    if not data:
        return "is empty"
    if data.startswith(b"PK\x03\x04"):
        return "is cut short (the end of the zip archive is missing)"
    if is_lfs_pointer(data):
        return LFS_ADVICE
    beginning = data[:_TEXT_BYTES]
    if b"\0" not in beginning and (text := beginning.decode("utf-8", errors="ignore").strip()):
        kind = "a web page" if text[:1] == "<" else "text"
        # wget writes its log to -o and the file to -O; instructions with the wrong one are still around.
        return f"is {kind}, not a file that torch wrote (it begins with {text.splitlines()[0][:40]!r})"
    return "was not written by torch"


def _restricted_pickle(class_names: Collection[str]) -> types.ModuleType:
    """Build what `torch.load` accepts as pickle module, with an unpickler that resolves only harmless names."""

    class RestrictedUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" in class_names:
                return InertModule
            if (module, name) in _LEGACY_HARMLESS:
                return _LEGACY_HARMLESS[module, name]
            raise InputError(f"it names {module}.{name}, which such a file has no use for; do not trust it")

    def load(file: Any, **options: Any) -> Any:
        return RestrictedUnpickler(file, **options).load()

    restricted = types.ModuleType("restricted_pickle")
    restricted.__dict__.update(Unpickler=RestrictedUnpickler, load=load, UnpicklingError=pickle.UnpicklingError)
    return restricted


def _collect(module: InertModule, prefix: str, tensors: dict[str, Tensor], *, ancestors: tuple[int, ...]) -> None:
    """Add the tensors of `module` and its children, as `state_dict` would."""
    if id(module) in ancestors or len(ancestors) > _MAX_DEPTH:
        raise InputError("the pickled module contains itself, or is nested beyond reason; give the published file")
    for group in ("_parameters", "_buffers", "_modules"):
        values = module.__dict__.get(group, {})
        if not isinstance(values, Mapping):
            kind = type(values).__name__
            raise InputError(f"the pickled module is malformed ({group} is a {kind}); fetch the file again")
        for name, value in values.items():
            if isinstance(value, Tensor) and group != "_modules":
                tensors[f"{prefix}{name}"] = value.detach()
            elif isinstance(value, InertModule) and group == "_modules":
                _collect(value, f"{prefix}{name}.", tensors, ancestors=(*ancestors, id(module)))
