"""Reading DALL-E's dVAE from files: the published pickles, or the same tensors as safetensors.

A part is the encoder or the decoder. The network is `beit.common.tokenizers.dalle`, reading pickles without running
them `beit.common.tokenizers.safe_pickle`, the files of the name "dall-e" `beit.common.tokenizers.dalle_cache`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from beit.common.errors import InputError, require
from beit.common.storage.documents import but_is
from beit.common.storage.tensor_check import check_tensors, read_safetensors
from beit.common.tokenizers.dalle import DalleDecoder, DalleEncoder, DalleModel
from beit.common.tokenizers.safe_pickle import read_module_tensors

logger = logging.getLogger(__name__)

Part = Literal["encoder", "decoder"]
PARTS: tuple[Part, ...] = ("encoder", "decoder")
SUFFIXES = (".safetensors", ".pkl")

_CLASS_NAMES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)
"""Every class that the published modules consist of."""


def find_parts(path: Path) -> tuple[Path, Path | None]:
    """Find DALL-E's bare files by their folder or the encoder's file: that, and the decoder's if it lies beside."""
    encoder_file = find_part(path, "encoder") if path.is_dir() else path
    if encoder_file is None or encoder_file.suffix not in SUFFIXES:
        begun = path / "environment.json"
        require(
            not begun.is_file(),
            f"{path} is no tokenizer but a run; one of beit tokenizer train that has not finished goes on by the "
            f"command that began it ({begun} has it)",
        )
        raise InputError(
            f"{path} is no tokenizer{but_is(path)}: it must be a directory made by beit tokenizer train or convert "
            "(with config.json), or hold DALL-E's encoder.pkl or encoder.safetensors"
        )
    return encoder_file, find_part(encoder_file.parent, "decoder")


def load_dalle(encoder_file: Path, decoder_file: Path | None, *, need_decoder: bool = False) -> DalleModel:
    """Read DALL-E's dVAE, whatever folder its files lie in.

    A decoder that cannot be read is an error with `need_decoder` only: tokens do not need it.
    """
    _, encoder = read_part(encoder_file, "encoder")
    decoder = None
    if decoder_file is not None:
        try:
            _, decoder = read_part(decoder_file, "decoder")
        except InputError as error:
            if need_decoder:
                raise
            logger.warning("no decoder, so no pictures from these tokens: %s", error)
    with torch.device("meta"):  # 97 million random numbers would take longer than reading the file
        model = DalleModel(with_decoder=decoder is not None)
    model.encoder.load_state_dict(as_float32(encoder), assign=True)
    if model.decoder is not None and decoder is not None:
        model.decoder.load_state_dict(as_float32(decoder), assign=True)
    return model.requires_grad_(False)


def find_part(folder: Path, part: Part) -> Path | None:
    """Return the file in `folder` that by its name holds the encoder or the decoder; None if there is none."""
    candidates = [folder / f"{part}{suffix}" for suffix in SUFFIXES]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def read_part(file: Path, part: Part | None = None) -> tuple[Part, dict[str, Tensor]]:
    """Read one file and check that it holds exactly the tensors of one part of the network.

    Args:
        file: safetensors if its name says so, else a pickled module.
        part: What it must be; None to find out.
    Returns:
        The part, and its tensors under their published names.
    """
    require(file.is_file(), f"{file} does not exist")
    is_pickle = file.suffix != ".safetensors"
    tensors = read_module_tensors(file, _CLASS_NAMES) if is_pickle else read_safetensors(file)
    found = next((name for name in PARTS if tensors.keys() == _expected(name).keys()), None)
    wanted = part or found or "encoder"
    if found not in (None, wanted):
        raise InputError(f"{file} holds DALL-E's {found}, not its {wanted}; give the {wanted}'s file")
    check_tensors(tensors, _expected(wanted), file)
    return wanted, tensors


def _expected(part: Part) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = DalleEncoder() if part == "encoder" else DalleDecoder()
    return dict(network.state_dict())


def as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as they are kept: float32, contiguous, on the CPU."""
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
