"""Pickles as the published DALL-E files are made: whole modules of a package `dall_e` that readers do not have."""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from beit.common.dalle import DalleBlock, DalleDecoder, DalleEncoder, SameConv2d

_NAMES = {"encoder": ("Encoder", "EncoderBlock"), "decoder": ("Decoder", "DecoderBlock"), "utils": ("Conv2d",)}


@contextmanager
def dall_e_package() -> Iterator[dict[str, type]]:
    """Make `dall_e` importable inside the block, and yield its classes by name."""
    modules = {"dall_e": types.ModuleType("dall_e")}
    classes: dict[str, type] = {}
    for module, names in _NAMES.items():
        full = f"dall_e.{module}"
        modules[full] = types.ModuleType(full)
        for name in names:
            classes[name] = type(name, (nn.Module,), {"__module__": full})
            setattr(modules[full], name, classes[name])
    sys.modules.update(modules)
    try:
        yield classes
    finally:
        for name in modules:
            sys.modules.pop(name, None)


def write_pickle(network: DalleEncoder | DalleDecoder, path: Path, *, zip_format: bool, extra: object = None) -> None:
    """Write `network` as a module of `dall_e` classes; `extra` becomes an attribute of it."""
    with dall_e_package() as classes:
        outer = "Encoder" if isinstance(network, DalleEncoder) else "Decoder"
        lookalike = _convert(network, classes, outer)
        lookalike.__dict__.update(device=torch.device("cpu"), use_mixed_precision=True, extra=extra)
        torch.save(lookalike, path, _use_new_zipfile_serialization=zip_format)


def _convert(module: nn.Module, classes: dict[str, type], outer: str) -> nn.Module:
    names = {SameConv2d: "Conv2d", DalleBlock: f"{outer}Block", DalleEncoder: outer, DalleDecoder: outer}
    if type(module) not in names:
        copy = module
        if isinstance(module, nn.Sequential):
            copy = nn.Sequential()
    else:
        copy = classes[names[type(module)]]()
        for name, parameter in module.named_parameters(recurse=False):
            copy.register_parameter(name, nn.Parameter(parameter.detach()))
    for name, child in module.named_children():
        copy.add_module(name, _convert(child, classes, outer))
    return copy
