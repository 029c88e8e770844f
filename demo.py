"""`beit demo`: the three stages on images beit generates itself, each command printed as a user would type it.

Nothing is downloaded. The folder then holds the images, the token store, the runs, a picture of what the model predicts
for masked patches, and a table that compares the pre-trained encoder with random weights.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click

from beit.common.errors import InputError
from beit.common.runs.layout import ENCODER, MODEL
from beit.common.storage.documents import read_json, reading

UNLABELLED, LABELLED, VALIDATION = 2600, 500, 500
"""Images without labels, with labels, and for validation: few labels is where pre-training pays."""
IMG_SIZE_PX, PATCH_SIZE_PX = 24, 4
MARKER = "demo.json"


@click.command("demo")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("demo"))
@click.option(
    "--seed", default=0, show_default=True, metavar="N", help="Seed of the generated images and the training."
)
def demo_command(folder: Path, seed: int) -> None:
    """Run the whole chain in FOLDER on generated images: tokenize, pretrain, finetune; minutes on two cores.

    \b
    Example:
      beit demo demo/
    """
    started = time.monotonic()
    _claim(folder, seed)
    click.echo(f"Generating {UNLABELLED} unlabelled, {LABELLED} labelled and {VALIDATION} validation images")
    _generate(folder / "images", seed)
    size = ["--img-size", str(IMG_SIZE_PX), "--patch-size", str(PATCH_SIZE_PX)]
    crops = ["--set", "augment.scale=[0.4,1.0]"]  # small images of one thing each: a tenth of one shows too little
    views = ["--tokenizer", "mini", "--views", "4", *crops, *size]
    recipe = ["--recipe", "demo", "--set", f"train.seed={seed}"]
    _beit("tokenize", folder / "images/unlabelled", folder / "store", *views)
    _beit("pretrain", folder / "store", folder / "pretrain", *recipe)
    rows = {}
    for name, encoder in (("pretrained", folder / "pretrain" / ENCODER), ("random", "random")):
        labelled = [folder / "images/labelled", folder / f"finetune-{name}"]
        options = ["--encoder", encoder, "--val", folder / "images/validation"]
        _beit("finetune", "classification", *labelled, *options, *recipe)
        out = folder / f"finetune-{name}.json"
        _beit("evaluate", folder / f"finetune-{name}" / MODEL, folder / "images/validation", "--out", out)
        rows[name] = json.loads(out.read_text())
    picture = folder / "reconstruction.png"
    _beit("show", "reconstruction", folder / "pretrain", "--out", picture)
    click.echo(_table(rows))
    click.echo(f"Picture (image | masked | predicted tokens decoded | original tokens decoded): {picture}")
    click.echo(f"Done in {time.monotonic() - started:.0f} s. Everything is in {folder}")


def _claim(folder: Path, seed: int) -> None:
    """Take an empty folder, or one that an earlier demo left, whose finished steps are then reused."""
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the demo")
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        raise InputError(f"{folder} is not empty and was not made by beit demo; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if marker.is_file() and _seed_of(marker) != seed:
        raise InputError(f"{folder} holds a demo with another seed than {seed}; name another folder or remove it")
    marker.write_text(json.dumps({"seed": seed}) + "\n")


def _seed_of(marker: Path) -> int:
    with reading(marker, way_out="delete it to begin the demo again"):
        return int(read_json(marker)["seed"])


def _generate(folder: Path, seed: int) -> None:
    from beit.tokenize.synthetic import write_demo_images

    parts = {"unlabelled": UNLABELLED, "labelled": LABELLED, "validation": VALIDATION}
    for part, (name, count) in enumerate(parts.items()):
        # Another seed for each part, far from the next user seed, so that no image stands in two of them.
        write_demo_images(folder / name, num_images=count, img_size=IMG_SIZE_PX * 3 // 2, seed=seed * 1000 + part)


def _beit(*arguments: str | Path) -> None:
    """Print a `beit` command, run it, and stop the demo with its exit code when it fails."""
    words = [str(word) for word in arguments]
    click.echo(click.style(f"\n$ beit {shlex.join(words)}", bold=True))
    code = subprocess.run([sys.executable, "-m", "beit.cli", *words]).returncode
    if code:
        raise click.exceptions.Exit(code)


def _table(rows: dict[str, dict[str, float]]) -> str:
    from beit.common.pages.tables import aligned

    title = f"\n{LABELLED} labelled images, {VALIDATION} to test on, 10 classes (chance 10 %):\n"
    shown = [[name, *(f"{100 * row[metric]:.1f}%" for metric in ("top1", "top5"))] for name, row in rows.items()]
    return title + aligned([["start from", "top-1", "top-5"], *shown])
