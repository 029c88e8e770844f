"""Files that users ask commands to write, `--out` and its like: never over what a command reads.

How they are written is `write_output` of `common/storage/files.py`; files of a run are the run's own.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from beit.common.errors import InputError, require
from beit.common.images.formats import is_image_path
from beit.common.runs.layout import (
    CHECKPOINTS,
    COMMIT,
    CONFIG,
    DATA,
    ENCODER,
    ENVIRONMENT,
    FEATURES,
    LAST,
    MASK_PROBE,
    METRICS,
    MODEL,
    NONFINITE,
    PICTURES,
    PROBES,
    PROFILE,
    REPORT,
    TENSORBOARD,
    WANDB,
)
from beit.common.storage.files import check_output, existing, is_special, require_writable
from beit.common.storage.paths import expand_braces, is_remote, require_local

_OWN_FILES = {CONFIG, ENVIRONMENT, METRICS, NONFINITE, DATA, *(f"{name}.json" for name in (*PROBES, MASK_PROBE))}
_OWN_FOLDERS = {CHECKPOINTS, ENCODER, MODEL, LAST, FEATURES, PICTURES, PROFILE, TENSORBOARD, WANDB}
_WEIGHTS = ("model.safetensors", "config.json")
TOKENIZER = _WEIGHTS[0]
"""Which, in the directory itself, is what the training of a tokenizer leaves."""
_STORE = "store.json"
_DATA_SUFFIXES = (".tar", ".parquet")


PICTURE, PAGE, JSON = (".png",), (".html", ".htm"), (".json",)
"""Endings of what commands write. The first is the one to name."""
_ENDINGS = {"--html": PAGE, "--json": JSON}
"""Of options that mean the same everywhere."""


def check_outputs(
    outputs: Mapping[str, Path | None],
    *,
    inputs: Iterable[str | Path] = (),
    makes_folder: bool = False,
    endings: Iterable[str] | None = None,
) -> None:
    """Refuse, before any work is done, output files that cannot be written or that would replace what is read.

    Args:
        outputs: Path by option; None where it was not given.
        inputs: What the user named to be read: runs, models, stores, images, lists; by path, pattern or URL.
        makes_folder: Whether the folder of a file is made if it is missing.
        endings: Of what `--out` writes, lower case: `PICTURE`, `PAGE`, `JSON`, or several formats of which the ending
            of the file says one; None takes any.
    """
    options: dict[str, str] = {}
    entries = [str(entry) for entry in inputs]
    for option, path in outputs.items():
        if path is None:
            continue
        check_output(path, option=option, makes_folder=makes_folder)
        if is_special(path):
            continue
        target, named = Path(os.path.realpath(path)), f"{option} {path}"
        twin = options.setdefault(str(target), option)
        require(twin == option, f"{twin} and {option} are the same file ({path}); name two")
        _refuse_own(target, named)
        for entry in entries:
            _refuse_input(target, entry, named)
    for option, path in outputs.items():
        if path is not None:
            _check_ending(path, option, endings if option == "--out" else _ENDINGS.get(option))


def _check_ending(path: Path, option: str, endings: Iterable[str] | None) -> None:
    known = tuple(endings or ())
    if not known or path.suffix.lower() in known:
        return
    is_one_format = known in (PICTURE, PAGE, JSON)
    if is_one_format and is_special(path):  # which has no name of its own
        return
    why = {PICTURE: ": it is a picture", PAGE: ": it is a page", JSON: ": it is JSON"}.get(known)
    named = known[0] if is_one_format else ", ".join(known)
    raise InputError(f"{option} {path} must end in {named}{why or ', which says the format'}")


def check_output_folder(option: str, folder: Path, *, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse, before any work is done, a folder for files that cannot be made, or that would mix with what is read.

    Args:
        option: How the user named the folder.
        folder: Need not exist.
        inputs: What the user named to be read, as `check_outputs` takes it.
    """
    named, target = f"{option} {folder}", Path(os.path.realpath(folder))
    require_local(folder, named)
    require(not folder.exists() or folder.is_dir(), f"{named} is a file; name a folder")
    there = existing(target)
    require(there.is_dir(), f"{named}: {there} is a file, in which no folder can be")
    require_writable(there, named)
    stands_for_all = target / "image.png"
    _refuse_own(stands_for_all, named)
    for entry in map(str, inputs):
        _refuse_input(stands_for_all, entry, named)


def check_new_folder(option: str, folder: Path, *, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse, before any work is done, a folder that `atomic_folder` could not put in its place; see the one above."""
    is_new = not folder.is_dir() or next(folder.iterdir(), None) is None
    require(is_new, f"{option} {folder} is not an empty folder; name a new one")
    check_output_folder(option, folder, inputs=inputs)
    # What is written is put there whole, which no file system takes in the place where it is mounted.
    require(not os.path.ismount(folder), f"{option} {folder} is where a disk is mounted; name a new folder in it")


def written(run: Path) -> str:
    """Return what a training has left in its directory for others to use, as the line that says so."""
    pictures = sorted(path.name for path in run.glob("*.png"))
    known = (ENCODER, MODEL, LAST, TOKENIZER, METRICS, *pictures, REPORT)
    names = [name for name in known if (run / name).exists()]
    return f"wrote {', '.join(str(run / name) for name in names)}"


def _refuse_own(target: Path, named: str) -> None:
    """Refuse a file that beit reads as part of a store, a model, a checkpoint or a run, wherever these lie."""
    folder = target.parent
    is_weights = all((folder / name).is_file() for name in _WEIGHTS) or (folder / COMMIT).is_file()
    require(not is_weights, f"{named} lies among the weights in {folder}; name a file outside it")
    for folder in target.parents:
        require(not (folder / _STORE).is_file(), f"{named} lies in the token store {folder}; name a file outside it")
        if (folder / CONFIG).is_file() and (folder / ENVIRONMENT).is_file():
            first, *rest = target.relative_to(folder).parts
            is_own = first in _OWN_FOLDERS if rest else first in _OWN_FILES
            require(not is_own, f"{named} would replace a file of the run {folder}; name another")


def _refuse_input(target: Path, entry: str, named: str) -> None:
    if is_remote(entry):
        return
    # A pattern stands for the files that are there.
    for path in (Path(found) for text in expand_braces(entry) for found in glob.glob(text) or [text]):
        if path.is_dir() and not (path / CONFIG).is_file():
            is_data = is_image_path(str(target)) or target.suffix.lower() in _DATA_SUFFIXES
            is_inside = Path(os.path.realpath(path)) in target.parents
            require(
                not (is_data and is_inside),
                f"{named} would become part of {path}, which is read; name a file outside it",
            )
        elif path.is_file() and target.exists():
            require(not path.samefile(target), f"{named} is what is read ({entry}); name another file")
