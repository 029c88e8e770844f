"""Tensors read from a file, and whether they are exactly what a network needs, before any of them is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from beit.common.errors import InputError

_NAMES_IN_MESSAGE = 3


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file."""
    try:
        return dict(load_file(file))
    except Exception as error:  # safetensors raises its own type for damage, without a public common base
        raise InputError(f"{file} is not a readable safetensors file ({error}); fetch or copy it again") from None


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
        if not torch.isfinite(tensor).all():
            raise InputError(f"{origin}: {name} holds values that are not finite; the file is damaged, fetch it again")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_IN_MESSAGE])
    return f"{len(names)} tensors ({shown}{', ...' if len(names) > _NAMES_IN_MESSAGE else ''})" if names else "none"
