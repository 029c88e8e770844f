"""Files as DALL-E's were published: whole modules of the public package `dall_e`, pickled. Weights are random."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

from beit.common.tokenizers import dalle
from beit.common.tokenizers.dalle import DalleDecoder, DalleEncoder

# In milliseconds instead of seconds; all that the names, kernels and levels depend on stays.
SMALL = {"HIDDEN_WIDTH": 8, "DECODER_INPUT_WIDTH": 4, "VOCAB_SIZE": 32}


@contextmanager
def dall_e_package() -> Iterator[ModuleType]:
    """Import the public package inside the block only: what reads the files must do without it."""
    try:
        yield importlib.import_module("dall_e")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "dall_e"]:
            del sys.modules[name]


def public_module(package: ModuleType, network: DalleEncoder | DalleDecoder) -> torch.nn.Module:
    """Make the package's own module of the sizes that are set, with the weights of `network`."""
    if isinstance(network, DalleEncoder):
        module = package.Encoder(n_hid=dalle.HIDDEN_WIDTH, vocab_size=dalle.VOCAB_SIZE)
    else:
        sizes = {"n_init": dalle.DECODER_INPUT_WIDTH, "n_hid": dalle.HIDDEN_WIDTH, "vocab_size": dalle.VOCAB_SIZE}
        module = package.Decoder(**sizes)
    module.load_state_dict(network.state_dict())
    return module


def write_pickle(
    network: DalleEncoder | DalleDecoder, path: Path, *, zip_format: bool = True, extra: object = None
) -> None:
    """Write `network` as the package would; `extra` becomes an attribute of the module."""
    with dall_e_package() as package:
        module = public_module(package, network)
        if extra is not None:
            module.extra = extra
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module, path, _use_new_zipfile_serialization=zip_format)


def use_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink DALL-E's network in this process, for a test."""
    for name, value in SMALL.items():
        monkeypatch.setattr(dalle, name, value)
    monkeypatch.setattr(dalle.DalleModel, "vocab_size", SMALL["VOCAB_SIZE"])
    torch.manual_seed(0)
