"""Pictures that a run did not draw itself, drawn for its report by `beit show`: of runs of before, or without time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from beit.common.errors import InputError
from beit.common.overview.report.asking import ask_beit
from beit.common.overview.report.pictures import sheet_files
from beit.common.overview.report.run_files import RunFiles
from beit.common.runs.layout import ENCODER, MODEL
from beit.common.runs.over_time import moments
from beit.common.storage.documents import read_json
from beit.common.storage.paths import is_remote

_MASKS = ("--rows", "4", "--epochs", "4")


def draw_missing(runs: Sequence[RunFiles], folder: Path, *, say: Callable[[str], None]) -> dict[Path, dict[str, Path]]:
    """Draw what runs of this page have no picture of, as far as what it takes is on this machine.

    Args:
        runs: Of the page.
        folder: For the files.
        say: Tells the user what is done, and how long it took.

    Returns:
        Files of sheets by run and name.
    """
    started, drawn = time.monotonic(), dict[Path, dict[str, Path]]()
    for run in runs:
        for name, words in missing(run):
            out = folder / f"{run.place}-{name}.png"
            say(f"drawing {name} of {run.name}: beit show {words[0]}")
            trouble = ask_beit(["show", *words, "--out", str(out)])
            if trouble:
                say(f"no {name} of {run.name}: {trouble}")
            else:
                drawn.setdefault(run.path, {})[name] = out
    number = sum(map(len, drawn.values()))
    if number:
        say(
            f"drew {number} picture{'s' * (number > 1)} in {time.monotonic() - started:.0f} s; --no-pictures saves that"
        )
    return drawn


def missing(run: RunFiles) -> Iterator[tuple[str, list[str]]]:
    """Yield the sheets that a run lacks and could have: name, and the words of `beit show` that draw it."""
    there = sheet_files(run.path).keys() | moments(run.path).keys()
    wanted = {"pre-training": _of_pretraining, "classification": _of_model, "segmentation": _of_model}.get(run.kind)
    if wanted is not None:
        yield from ((name, words) for name, words in wanted(run) if name not in there)


def _of_pretraining(run: RunFiles) -> Iterator[tuple[str, list[str]]]:
    store = str(run.data.get("store") or run.origin.get("store") or "")
    if not store or is_remote(store) or not (Path(store) / "store.json").is_file():
        return
    is_made = (run.path / ENCODER).is_dir()
    if is_made:
        yield "reconstruction", ["reconstruction", str(run.path), "--rows", "6"]
    if run.settings.get("mask.mode") != "none":
        yield "masks", ["masks", str(run.path), *_MASKS]
    images = _images_of(Path(store))
    if is_made and images is not None:
        yield "attention", ["attention", str(run.path), str(images), "--mean"]
    if run.origin.get("views"):
        yield "words", ["tokens", store]


def _images_of(store: Path) -> Path | None:
    """Return the images of a token store; None where they are not here."""
    try:
        root = read_json(store / "store.json").get("image_root")
    except (InputError, AttributeError):
        return None
    if not isinstance(root, str) or is_remote(root) or not (store / root).is_dir():
        return None
    return store / root


def _of_model(run: RunFiles) -> Iterator[tuple[str, list[str]]]:
    images = run.kept.get("provenance", {}).get("validation_data") or run.origin.get("data")
    if not (run.path / MODEL).is_dir() or not isinstance(images, str):
        return
    if is_remote(images) or not Path(images).exists():
        return
    if "mistakes" not in sheet_files(run.path):
        yield "predictions", ["predictions", str(run.path / MODEL), images]
    if run.kind == "classification":  # beside masks, images are not alone in their folder
        yield "attention", ["attention", str(run.path / MODEL), images, "--mean"]
