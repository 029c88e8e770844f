"""Reading what torch.save wrote: tensors, plain containers, and the arguments that training scripts add.

Nothing in a file is executed: torch's own reader with weights_only=True knows tensors and containers. Objects of numpy,
and of the libraries that trainers keep their settings in, are common beside weights, as the best accuracy or as
hyper-parameters. For those an empty object is put, whatever they are made of; neither library need be there. Every
other name is refused.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from beit.common.errors import InputError
from beit.common.storage.files import refuse_lfs_pointer

_BESIDE: tuple[str, ...] = (
    "numpy",
    "omegaconf",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "pytorch_lightning",
    "yacs",
)
_BESIDE += ("fvcore", "mmcv", "mmengine", "pathlib", "hydra")
"""Libraries whose objects are put aside."""
_NUMPY = ["numpy.dtype", "numpy.ndarray"]
_NUMPY += [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
"""What scalars and arrays of numpy are made of; files of torch's old format cannot be asked for it before."""
_MESSAGE_LENGTH = 120


class _Unread:
    """In the place of an object that is not read."""

    def __init__(self, *_arguments: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


def load_pickle(file: Path) -> tuple[Any, tuple[str, ...]]:
    """Return what a file holds, and the libraries whose objects were put aside."""
    refuse_lfs_pointer(file)
    names = _names_in(file)
    put_aside = [name for name in names if name.split(".")[0] in _BESIDE] or _NUMPY
    stand_ins = [(_Unread, name) for name in put_aside]
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *stand_ins]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of other pickle protocols; what cannot be read is refused
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The message of a refused load is a page that begins with how to load it unsafely.
        unknown = [name for name in names if name not in put_aside]
        if unknown:
            raise InputError(
                f"{file} names {', '.join(unknown)}: it holds more than tensors, and nothing in it is executed; "
                "give a file with a state dict"
            ) from None
        raise InputError(f"{file} is not a file that torch wrote ({_first_line(error)}); fetch it again") from None
    # The unpickler reports damage with whatever exception the bytes happen to provoke.
    except Exception as error:
        raise InputError(f"{file} cannot be read ({_first_line(error)}); fetch it again") from None
    return loaded, tuple(sorted({name.split(".")[0] for name in names if name in put_aside} - {"numpy", "pathlib"}))


def _names_in(file: Path) -> list[str]:
    """Return the names of code that a file would like to have, beyond what plain tensors need."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # not a zip file, or not a pickle: the caller says that it cannot be read
        return []


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0][:_MESSAGE_LENGTH] if lines else type(error).__name__
