"""Pictures that a run did not draw itself, drawn for its report by `beit show`: of runs of before, or without time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from beit.common.errors import BadSample, InputError
from beit.common.overview.report.asking import ask_beit
from beit.common.overview.report.pictures import is_known, sheet_files
from beit.common.overview.report.run_files import RunFiles
from beit.common.pages.numbers import count
from beit.common.runs.layout import ENCODER, MODEL
from beit.common.runs.over_time import moments
from beit.common.storage.documents import read_json
from beit.common.storage.paths import is_remote
from beit.common.storage.samples import spread_evenly
from beit.common.store import open_store

_MASKS = ("--rows", "4", "--epochs", "4")
_CROPS = 4
"""Images of which attention is drawn, as of those of any other store."""


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
        for name, words in missing(run, folder):
            out = folder / f"{run.place}-{name}.png"
            say(f"drawing {name} of {run.name}: beit show {words[0]}")
            trouble = ask_beit(["show", *words, "--out", str(out)])
            if trouble:
                say(f"no {name} of {run.name}: {trouble}")
            else:
                drawn.setdefault(run.path, {})[name] = out
    number = sum(map(len, drawn.values()))
    if number:
        seconds = time.monotonic() - started
        say(f"drew {count(number, 'picture')} in {seconds:.0f} s; --no-pictures leaves them out")
    return drawn


def missing(run: RunFiles, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the sheets that a run lacks and could have: name, and the words of `beit show` that draw it.

    Lacking are also those of before, which cannot be set anew for a page.

    Args:
        run: Any.
        folder: Takes what a command needs as files of its own.
    """
    there = {name for name, file in sheet_files(run.path).items() if is_known(file)} | moments(run.path).keys()
    wanted = {"pre-training": _of_pretraining, "classification": _of_model, "segmentation": _of_model}.get(run.kind)
    if wanted is not None:
        yield from ((name, make()) for name, make in wanted(run, folder) if name not in there)


def _of_pretraining(run: RunFiles, folder: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    store = str(run.data.get("store") or run.origin.get("store") or "")
    if not store or is_remote(store) or not (Path(store) / "store.json").is_file():
        return
    is_made = (run.path / ENCODER).is_dir()
    if is_made:
        yield "reconstruction", lambda: ["reconstruction", str(run.path), "--rows", "6"]
    if run.settings.get("mask.mode") != "none":
        yield "masks", lambda: ["masks", str(run.path), *_MASKS]
    images = _images_of(Path(store), folder / f"{run.place}-crops")
    if is_made and images is not None:
        yield "attention", lambda: ["attention", str(run.path), str(images()), "--mean"]
    if run.origin.get("views"):
        yield "words", lambda: ["tokens", store]


def _images_of(store: Path, folder: Path) -> Callable[[], Path] | None:
    """Return what finds images of a token store, or takes crops out of it; None where they are not here."""
    try:
        info = read_json(store / "store.json")
        root, packing = info.get("image_root"), info.get("packing") or {}
        is_crops = bool(packing.get("materialize"))
    except (InputError, AttributeError):
        return None
    if not isinstance(root, str) or is_remote(root) or not (store / root).is_dir():
        return None
    return (lambda: _take_crops(store, folder)) if is_crops else lambda: store / root


def _take_crops(location: Path, folder: Path) -> Path:
    """Write a few crops of a materialised store as files of their own: its tars are no source, which has whole images.

    The first view of each, as it was encoded.
    """
    folder.mkdir()
    with contextlib.suppress(InputError):  # what is wrong with the store, the picture of masks says
        store = open_store(location)
        for number, position in enumerate(spread_evenly(len(store), _CROPS).tolist()):
            shard, row = store.locate(position)
            name = Path(store.name(shard, row)[1]).name  # a key may name folders
            with contextlib.suppress(BadSample):  # another is as good
                (folder / f"{number}-{name}.jpg").write_bytes(store.read_image(shard, row))
    return folder


def _of_model(run: RunFiles, folder: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    images = run.kept.get("provenance", {}).get("validation_data") or run.origin.get("data")
    if not (run.path / MODEL).is_dir() or not isinstance(images, str):
        return
    if is_remote(images) or not Path(images).exists():
        return
    if "mistakes" not in sheet_files(run.path):
        yield "predictions", lambda: ["predictions", str(run.path / MODEL), images]
    if run.kind == "classification":  # beside masks, images are not alone in their folder
        yield "attention", lambda: ["attention", str(run.path / MODEL), images, "--mean"]
