"""What somebody gave for an encoder that is none of ours, and the command that makes it one; torch-free."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit.common.storage.documents import but_is, read_json

WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".tar", ".th", ".pkl", ".npz", ".h5", ".msgpack")
"""How files of weights end; `beit import` says which of them it reads."""
FOLDER = "a folder of Hugging Face or timm"
_RUN_FILES = ("config.toml", "environment.json")
"""What every run has from its start."""
_WRITTEN_BY_RUNS = ("encoder", "model", "last")
"""Folders of weights in a run; a run that is not finished may have only some of them, or none."""
_GIVE = "give the folder `encoder` of a run, or `model` of a fine-tuned one"
_NAME_PARTS = 2
"""Of a model's name on Hugging Face: owner and name."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_OTHERS = ("model_type", "architectures", "architecture", "pretrained_cfg")
"""What config.json has in folders of Hugging Face or timm, and not in ours."""


def import_command(weights: Path | str, name: str | None = None) -> str:
    """Return the command that turns weights of somebody else into an encoder called so, ready to be pasted."""
    return f"beit import {shlex.quote(str(weights))} {shlex.quote(_encoder_name(name or weights))}"


def is_foreign_config(config: Any) -> bool:
    """Tell config.json of Hugging Face or timm."""
    return isinstance(config, Mapping) and "format" not in config and any(name in config for name in _OTHERS)


def describe_foreign(given: Path, config_file: str) -> str:
    """Say what to do with what is no encoder folder: a file, weights, an early run, a name, an address, or nothing."""
    run = given.parent if given.name in _WRITTEN_BY_RUNS else given
    if _is_run(run):
        return _describe_early_run(run, given, config_file)
    if given.is_file():
        beside = given.with_name(config_file)
        if beside.is_file() and given.suffix in (".safetensors", ".bin", ".json"):
            folder = f"{given} is a file; give its folder, {given.parent}"
            return _to_import(given.parent, FOLDER) if is_foreign_config(read_json(beside)) else folder
        return _to_import(given, "a file of weights" if given.suffix in WEIGHT_SUFFIXES else "a file")
    if given.is_dir():
        files = sorted(file for file in given.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        if len(files) == 1:
            return _to_import(files[0], f"weights without a {config_file}")
        return f"{given} is not an encoder{but_is(given)}: it has no {config_file}; {_GIVE}"
    if match := _ADDRESS.match(str(given)):
        address = f"{match[0]}/{str(given)[match.end() :]}"  # a Path has taken the second slash
        return f"{address} is an address, and an encoder is a folder here; run {import_command(address)}"
    missing = f"{given} is not an encoder: there is no such folder; {_GIVE}"
    if given.is_absolute() or len(given.parts) > _NAME_PARTS:
        return missing
    owner = "" if len(given.parts) == _NAME_PARTS else "OWNER/"
    return f"{missing}. A model of the Hugging Face hub: {import_command(f'hf://{owner}{given}', given.name)}"


def _is_run(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _RUN_FILES)


def _describe_early_run(run: Path, given: Path, config_file: str) -> str:
    """Say which weights a run has so far, if any, and what makes it write the rest."""
    there = [run / name for name in _WRITTEN_BY_RUNS if (run / name / config_file).is_file()]
    so_far = f"; so far it has {' and '.join(map(str, there))}" if there else ""
    missing = f"no {given.name}" if given != run else "no weights for use"
    return (
        f"{run} is a run that has {missing} yet: it is not finished, or only measures{so_far}; to go on, run the "
        f"command that started it again ({run / _RUN_FILES[1]} has it)"
    )


def describe_foreign_folder(folder: Path) -> str:
    """Say what to do with a folder of Hugging Face or timm."""
    return _to_import(folder, FOLDER)


def _to_import(weights: Path, kind: str) -> str:
    name = shlex.quote(_encoder_name(weights))
    return f"{weights} is {kind}, not an encoder of beit; run {import_command(weights)} and give {name}"


def _encoder_name(weights: Path | str) -> str:
    """Return where the command puts the encoder: `encoders/` and what the weights are called."""
    path = Path(weights)
    name = path.name
    while Path(name).suffix in WEIGHT_SUFFIXES:
        name = Path(name).stem
    if name in ("model", "pytorch_model", ""):
        name = path.resolve().parent.name
    return f"encoders/{name or 'imported'}"
