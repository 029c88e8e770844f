"""Where DALL-E's dVAE lies on disk, and reading it: published pickles, or safetensors.

The network is `beit.common.dalle`; reading pickles without running them is `beit.common.safe_pickle`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from beit.common.dalle import DalleModel
from beit.common.errors import InputError, require
from beit.common.safe_pickle import read_module_tensors
from beit.common.tensor_check import check_tensors

ENCODER_URL = "https://cdn.openai.com/dall-e/encoder.pkl"
DECODER_URL = "https://cdn.openai.com/dall-e/decoder.pkl"

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
_SUFFIXES = (".safetensors", ".pkl")


def dalle_folder() -> Path:
    """Return where the name "dall-e" is looked up: $BEIT_CACHE/dall-e, or ~/.cache/beit/dall-e."""
    return Path(os.environ.get("BEIT_CACHE") or Path.home() / ".cache" / "beit") / "dall-e"


def find_dalle() -> Path:
    """Return the folder of the DALL-E files in the cache.

    Raises:
        InputError: they are not there; says how to get them.
    """
    folder = dalle_folder()
    if _find_part(folder, "encoder") is None:
        raise InputError(
            f"the DALL-E tokenizer is not in {folder}; download {ENCODER_URL} (and {DECODER_URL} for pictures) "
            "into it, or use --tokenizer mini, which comes with beit"
        )
    return folder


def load_dalle(path: Path) -> DalleModel:
    """Read DALL-E's dVAE.

    Args:
        path: Folder with encoder.pkl or encoder.safetensors and perhaps the decoder, or the encoder's file itself,
            beside which the decoder is looked for.
    Raises:
        InputError: no encoder there, or a file is not what it should be.
    """
    encoder_file = _find_part(path, "encoder") if path.is_dir() else path
    if encoder_file is None or encoder_file.suffix not in _SUFFIXES:
        raise InputError(
            f"{path} is no tokenizer: it must be a directory made by beit tokenizer train (with config.json), or hold "
            "DALL-E's encoder.pkl or encoder.safetensors"
        )
    decoder_file = _find_part(encoder_file.parent, "decoder")
    model = DalleModel(with_decoder=decoder_file is not None)
    _fill(model.encoder, encoder_file)
    if model.decoder is not None and decoder_file is not None:
        _fill(model.decoder, decoder_file)
    return model


def _find_part(folder: Path, part: str) -> Path | None:
    candidates = [folder / f"{part}{suffix}" for suffix in _SUFFIXES]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _fill(module: nn.Module, file: Path) -> None:
    require(file.is_file(), f"{file} does not exist")
    tensors = _read(file)
    check_tensors(tensors, module.state_dict(), file)
    module.load_state_dict(dict(tensors))


def _read(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".pkl":
        return read_module_tensors(file, _CLASS_NAMES)
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except Exception as error:  # safetensors raises its own type for damage, without a public common base
        raise InputError(f"{file} is not a readable safetensors file ({error}); fetch it again") from None
    return tensors
