"""Reading weights that somebody else wrote: tensors and JSON only, nothing in a file is executed.

FILE.pth, .pt, .bin         torch.load with weights_only=True; a training checkpoint's weights, plain or averaged, and
                            its arguments are found in it
FILE.safetensors
FOLDER                      of Hugging Face or timm: config.json beside model.safetensors or pytorch_model.bin
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from beit.common.errors import InputError
from beit.common.storage.documents import read_json
from beit.common.storage.files import refuse_lfs_pointer, sha256_file
from beit.common.vit.description import FORMAT
from beit.finetune.weights.import_exported import OFFICIAL_FILE, ONNX_FILE, exported_facts, read_onnx
from beit.finetune.weights.import_pickles import load_pickle
from beit.finetune.weights.import_prefixes import WeightsKind

_CONTAINERS: dict[WeightsKind, tuple[str, ...]] = {
    "ema": ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher"),
    "plain": ("model", "module", "state_dict", "student", "model_state_dict", "model_state", "net", "network"),
}
"""Keys under which training checkpoints keep a running average of the weights, and the weights themselves, in the order
in which they are looked for. Where there are both the average is what timm and the released code of DINO use."""
_KIND_NAMES = {
    "ema": f"running average of its weights ({', '.join(_CONTAINERS['ema'])})",
    "plain": f"plain weights ({', '.join(_CONTAINERS['plain'])})",
}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignWeights:
    """What was read."""

    tensors: dict[str, Tensor]
    """On the CPU, under the names of the file."""
    sha256: dict[str, str]
    """Of every weight file, by name."""
    container: str | None
    """Key of the checkpoint under which the weights were; None where they were the whole file."""
    beside: tuple[str, ...]
    """Keys of the checkpoint under which there are other weights, which were not taken."""
    args: dict[str, Any]
    """Arguments of the training script, or what mmsegmentation has under `meta`, where the checkpoint has them."""
    unread: tuple[str, ...]
    """Libraries whose objects lie beside the weights; they were not read."""
    config: dict[str, Any]
    """config.json of a folder; else empty."""
    preprocessor: dict[str, Any]
    """preprocessor_config.json of a folder; else empty."""

    @property
    def is_average(self) -> bool:
        """Whether the weights are a running average, as the key says."""
        return self.container in _CONTAINERS["ema"]


class _Checkpoint(NamedTuple):
    """What one file holds; the fields are those of `ForeignWeights`."""

    tensors: dict[str, Tensor]
    container: str | None
    beside: tuple[str, ...]
    args: dict[str, Any]
    unread: tuple[str, ...]


def read_foreign(path: Path, weights: WeightsKind | None = None) -> ForeignWeights:
    """Read a weight file, or a folder of Hugging Face or timm.

    Args:
        path: The file or folder.
        weights: Which of a checkpoint's weights, the running average or the plain ones; by default the average if there
            is one.
    """
    if not path.exists():
        raise InputError(
            f"{path} does not exist; give a weight file or folder, an address, or hf://OWNER/NAME for a model of the "
            "Hugging Face hub"
        )
    folder = path if path.is_dir() else path.parent if path.name in _WEIGHTS else None  # its JSON tells more
    config, preprocessor = (
        _read_object(folder / name) if folder else {} for name in ("config.json", "preprocessor_config.json")
    )
    if config.get("format") == FORMAT.name:
        raise InputError(f"{path} is an encoder of beit already; give {folder} to --encoder as it is")
    files = _weight_files(path) if path.is_dir() else [path]
    if files[0].suffix == ".onnx":
        return _of_onnx(files[0])
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = _read_file(file, weights)
        tensors |= found.tensors
    return ForeignWeights(
        tensors=tensors,
        sha256={file.name: sha256_file(file) for file in files},
        container=found.container,
        beside=found.beside,
        args=found.args,
        unread=found.unread,
        config=config | exported_facts(config, found.args),
        preprocessor=preprocessor,
    )


def _of_onnx(file: Path) -> ForeignWeights:
    found, files = read_onnx(file), [file, file.with_name(f"{file.name}.data")]
    return ForeignWeights(
        tensors=found.tensors,
        sha256={one.name: sha256_file(one) for one in files if one.is_file()},
        container=None,
        beside=(),
        args={},
        unread=(),
        config=found.config,
        preprocessor=found.preprocessor,
    )


def _weight_files(path: Path) -> list[Path]:
    for name in _WEIGHTS:
        if (path / name).is_file():
            return [path / name]
    for own in (path / name for name in (OFFICIAL_FILE, ONNX_FILE)):  # as `beit export` calls them
        if own.is_file():
            return [own]
    for index in (path / f"{name}.index.json" for name in _WEIGHTS):  # of weights in several files
        if index.is_file():
            listed = _read_object(index).get("weight_map")
            names = sorted({str(part) for part in listed.values()}) if isinstance(listed, Mapping) else []
            if not names or any(Path(part).name != part for part in names):
                raise InputError(f"{index} does not list weight files of its own folder; fetch the folder again")
            return [path / part for part in names]
    raise InputError(f"{path} has none of {', '.join(_WEIGHTS)}; give a weight file, or a Hugging Face or timm folder")


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file} must hold a JSON object; fetch it again")
    return value


def _read_file(file: Path, weights: WeightsKind | None) -> _Checkpoint:
    if file.suffix != ".safetensors":
        loaded, unread = load_pickle(file)
        return _weights_in(loaded, file, weights)._replace(unread=unread)
    try:
        tensors = load_file(file)
    except (SafetensorError, FileNotFoundError) as error:
        refuse_lfs_pointer(file)
        raise InputError(f"{file} is not a safetensors file that can be read ({error}); fetch it again") from None
    return _Checkpoint(tensors, None, (), {}, ())


def _weights_in(loaded: Any, file: Path, weights: WeightsKind | None) -> _Checkpoint:
    """Find the state dict in a checkpoint."""
    if not isinstance(loaded, Mapping):
        raise InputError(f"{file} holds a {type(loaded).__name__}, not a state dict; give a file with one")
    # An average may be told by names inside the plain weights, as the momentum encoder of MoCo v3.
    sought = _known(weights) + (_CONTAINERS["plain"] if weights == "ema" else ())
    containers = [name for name in sought if _holds_tensors(loaded.get(name))]
    if not containers:
        if any(_holds_tensors(loaded.get(name)) for name in _known(None)):
            raise InputError(f"{file} has no {_KIND_NAMES[weights or 'plain']}; leave --weights out")
        return _Checkpoint(_only_tensors(loaded, file), None, (), {}, ())  # its names may still tell of an average
    args = next((loaded[name] for name in ("args", "meta") if loaded.get(name) is not None), None)
    return _Checkpoint(
        _only_tensors(loaded[containers[0]], file),
        containers[0],
        tuple(str(name) for name, value in loaded.items() if name != containers[0] and _are_weights(name, value)),
        dict(vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}),
        (),
    )


def _known(weights: WeightsKind | None) -> tuple[str, ...]:
    return _CONTAINERS["ema"] + _CONTAINERS["plain"] if weights is None else _CONTAINERS[weights]


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())


def _are_weights(name: Any, value: Any) -> bool:
    """Tell another encoder, or an average in whatever form, from optimizers, scalers and centres."""
    if not isinstance(value, Mapping) or not value:
        return False
    return "ema" in str(name).split("_") or any(str(entry).endswith("cls_token") for entry in value)


def no_average(source: Path) -> InputError:
    """Return what to raise where a running average is wanted and there is none."""
    return InputError(f"{source} has no {_KIND_NAMES['ema']}; leave --weights out")


def _only_tensors(values: Mapping[Any, Any], file: Path) -> dict[str, Tensor]:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{file} has {name!r} of type {type(value).__name__} among its tensors, and no state dict under "
                f"{', '.join(_known(None))}; give a file with one"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise InputError(
                f"{file}: {name!r} is sparse, quantized or empty of values; give a file with plain tensors"
            )
    return {str(name): value for name, value in values.items()}
