"""Tensors in a file: written, read, and whether they are exactly what a network needs, before any of them is used.

Descriptions are checked against the header of the file without torch, so torch is imported where tensors are read.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from beit.common.errors import InputError, require
from beit.common.storage.files import refuse_lfs_pointer

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

_NAMES_IN_MESSAGE = 3


def read_shapes(file: Path) -> dict[str, Shape]:
    """Return name and shape of every tensor of a safetensors file, from its header."""
    try:
        with safe_open(file, framework="numpy") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; copy it again, beside the description that is there") from None
    except Exception as error:  # safetensors raises its own type for damage, without a public common base
        refuse_lfs_pointer(file)
        raise InputError(
            f"{file} cannot be read: it is not a readable safetensors file ({error}); copy it again"
        ) from None


def require_possible(counts: Iterable[int], shapes: Mapping[str, Shape], origin: Path) -> None:
    """Refuse a description with a count that no file of these tensors can have, before anything of that size is built.

    Args:
        counts: Layers, channels and the like, each of which is a number of tensors or part of a shape.
        shapes: Of the tensors in the file.
        origin: The description, for the message.
    """
    largest = max([len(shapes), *(size for shape in shapes.values() for size in shape)])
    absurd = max(counts, default=0)
    require(
        absurd <= largest,
        f"{origin} has a number, {absurd}, that the tensors beside it cannot have; they do not belong together, copy "
        "both again",
    )


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file."""
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except Exception as error:  # safetensors raises its own type for damage, without a public common base
        refuse_lfs_pointer(file)
        raise InputError(f"{file} is not a readable safetensors file ({error}); fetch or copy it again") from None


def write_safetensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors of the CPU to a safetensors file that whoever may read other new files here may read.

    Raises:
        OSError: it could not be written, because the disk is full for instance.
    """
    from safetensors.torch import save_file

    file.touch()
    permissions = stat.S_IMODE(file.stat().st_mode)
    try:
        save_file(dict(tensors), file, metadata=metadata)
    except SafetensorError as error:  # a full disk comes out as this
        name, _, _ = file.name.partition(".tmp.")  # as who reads the message knows it
        raise OSError(f"{file.with_name(name)} could not be written: {error}") from error
    with suppress(OSError):  # of a file system that has none
        file.chmod(permissions)  # safetensors replaces the file by one that only its owner may read


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: Path) -> None:
    """Compare names, shapes and kind with `expected`, and look for infinities and NaN.

    Args:
        tensors: As read.
        expected: The network's own state dict; only names and shapes count.
        origin: Where the tensors came from, for the message.
    """
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise InputError(
            f"{origin} has {_listed(extra)} too many and lacks {_listed(missing)}; it is of another network"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shape, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            raise InputError(f"{origin}: {name} has shape {shape}, must be {wanted}; it is of another network")
        if not tensor.is_floating_point():
            raise InputError(f"{origin}: {name} has dtype {tensor.dtype}, must be floating point; fetch it again")
        if not tensor.isfinite().all():
            raise InputError(f"{origin}: {name} holds values that are not finite; the file is damaged, fetch it again")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_IN_MESSAGE])
    return f"{len(names)} tensors ({shown}{', ...' if len(names) > _NAMES_IN_MESSAGE else ''})" if names else "none"
