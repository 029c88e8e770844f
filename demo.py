"""`beit demo`: the three stages on images beit generates itself, or on one's own, each command printed as it is typed.

Nothing is downloaded. The folder then holds the token store, the runs, pictures of what the model predicts for masked
patches and of which images it finds alike, and, where there are labels, a table that compares the pre-trained encoder
with random weights of the same network. How one's own images are divided for that is `split_labelled`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from beit.common.errors import EXIT_RESUMABLE, InputError, ResumableStop, RunFailed, require
from beit.common.runs.layout import ENCODER, MODEL
from beit.common.storage.documents import read_json, reading
from beit.common.storage.files import write_atomic
from beit.common.storage.paths import is_remote, normalise

UNLABELLED, LABELLED, TEST = 2500, 100, 1000
"""Generated images without labels, with labels, and to measure on: few labels is where pre-training pays."""
SCENE_PX, IMG_SIZE_PX, PATCH_SIZE_PX = 96, 64, 8
"""Side of a generated image, of what the model sees of one, and of a patch."""
OWN_VIEWS, OWN_VIEWS_IN_ALL = (4, 32), 10_000
"""Of one's own images: at least and at most so many views of each, and in between about so many in all."""
FEWEST_OWN = 5
"""Of one's own images; of fewer none is held out to measure on, at most a fifth being so."""
OWN_WARM_UP_STEPS = 50
"""Of the pre-training on one's own images; a tenth of it."""
OWN_LABELS_PER_CLASS, OWN_TEST_AT_MOST, CLASSES_AT_MOST = 10, 1000, 100
"""How one's own labelled images are divided; arbitrary, but few labels is what pre-training is for."""
MARKER = "demo.json"
STARTS = {"pretrained": "pre-trained", "random": "random weights"}
"""In names of folders, and in the table."""
MEASURES = {"linear-probe": "linear probe", "knn": "k-NN", "classification": "fine-tuned"}
"""Tasks of `beit finetune`, and in the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Labelled images to compare on, in any form `beit finetune` takes."""

    train: Path
    """Few."""
    test: Path
    """To measure on."""
    num_train: int
    """Images."""
    num_test: int
    """Images."""
    num_classes: int
    """Classes."""


@click.command("demo")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("demo"))
@click.option(
    "--data", metavar="IMAGES", help="Your own images, as beit tokenize takes them, in place of generated ones."
)
@click.option(
    "--labelled",
    metavar="FOLDER",
    help="Your own labelled images, one sub-folder per class. [default: those of --data, if it has such sub-folders]",
)
@click.option(
    "--seed", default=0, show_default=True, metavar="N", help="Seed of the generated images and the training."
)
def demo_command(folder: Path, data: str | None, labelled: str | None, seed: int) -> None:
    """Run the whole chain in FOLDER: tokenize, pretrain, compare with random weights, draw; minutes on two cores.

    Without --data on images it generates. With --data on your own, which are only read: the pre-training then takes as
    long, whatever their number, and tokenizing about a minute for 5000 of them. With labels, up to 10 images of each
    class are trained on and up to 1000 others measured on. The same command goes on where it was stopped.

    \b
    Examples:
      beit demo demo/
      beit demo mine/ --data photos/
      beit demo mine/ --data photos/ --labelled flowers/
    """
    started = time.monotonic()
    require(labelled is None or data is not None, f"--labelled ({labelled}) needs --data, the images to pre-train on")
    asked = {"seed": seed, "data": data, "labelled": labelled}
    refuse_other_use(folder, asked)
    pictures = [folder / "reconstruction.png", folder / "neighbours.png"]
    if all(picture.is_file() for picture in pictures):
        click.echo(f"the demo in {folder} is finished; its results are shown once more")
    if data is None:
        claim(folder, asked)
        images, labels, views = folder / "images/unlabelled", generate(folder / "images", seed), 4
        crops = [0.4, 1.0]
    else:
        images, labels, views = own_images(folder, data, labelled, seed)
        claim(folder, asked)  # not earlier, so that the folder is still free if the images are refused
        crops = [0.2, 1.0]
    size = ["--img-size", IMG_SIZE_PX, "--patch-size", PATCH_SIZE_PX, "--set", f"augment.scale={crops}"]
    size += [] if data is None else ["--short-side", 2 * IMG_SIZE_PX]
    recipe = ["--recipe", "demo", "--set", f"train.seed={seed}"]
    _beit("tokenize", images, folder / "store", "--tokenizer", "mini", "--views", views, *size)
    # In epochs, as the recipe has it, a warm-up of few images would be hardly any.
    warm_up = [] if data is None else ["--set", f"optimizer.warmup_steps={OWN_WARM_UP_STEPS}"]
    _beit("pretrain", folder / "store", folder / "pretrain", *recipe, *warm_up)
    if labels is not None:
        for start in STARTS:
            encoder = folder / "pretrain" / ENCODER if start == "pretrained" else start
            options = ["--encoder", encoder, "--val", labels.test, *recipe]
            for task in MEASURES:
                _beit("finetune", task, labels.train, run_folder(folder, start, task), *options)
    _beit("show", "reconstruction", folder / "pretrain", "--out", pictures[0], "--rows", 6)
    _beit("show", "neighbours", folder / "pretrain", labels.test if labels else images, "--out", pictures[1])
    if labels is not None:
        click.echo(f"\n{table(labels, {start: scores(folder, start) for start in STARTS})}")
    click.echo(f"\n{pictures[0]}: held-out images, what was hidden of them, and how the model completes them")
    click.echo(f"{pictures[1]}: images, and those it finds most like them")
    click.echo(f"Done in {time.monotonic() - started:.0f} s. Everything is in {folder}")


def refuse_other_use(folder: Path, asked: Mapping[str, object]) -> None:
    """Accept an empty folder, or one that an earlier demo left, whose finished steps are then reused."""
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the demo")
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        raise InputError(f"{folder} is not empty and was not made by beit demo; name another folder")
    for name in ("data", "labelled"):
        require(
            asked[name] is None or not _is_inside(folder, str(asked[name])),
            f"{folder}, the folder of the demo, must not lie inside --{name} ({asked[name]}); name another",
        )
    if marker.is_file():
        with reading(marker, way_out="delete it to begin the demo again"):
            kept = read_json(marker)
            before = {"seed": int(kept["seed"])} | {name: kept.get(name) for name in ("data", "labelled")}
        for name, value in asked.items():
            if _place(before[name]) != _place(value):
                was, now = (
                    f"--{name} {given}" if given is not None else f"no --{name}" for given in (before[name], value)
                )
                raise InputError(f"{folder} holds a demo with {was}, not {now}; name another folder or remove it")


def claim(folder: Path, asked: Mapping[str, object]) -> None:
    """Mark a folder as that of this demo."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / MARKER, (json.dumps(asked) + "\n").encode())


def _place(given: object) -> object:
    """Return one name for what is written as photos, photos/ or ./photos."""
    return normalise(given) if isinstance(given, str) else given


def _is_inside(folder: Path, images: str) -> bool:
    return not is_remote(images) and folder.resolve().is_relative_to(Path(normalise(images)).resolve())


def generate(folder: Path, seed: int) -> Labels:
    """Paint the images, unless an earlier demo did."""
    from beit.tokenize.patterns import PATTERNS, write_cloths

    click.echo(f"Painting {UNLABELLED} unlabelled, {LABELLED} labelled and {TEST} test images of folded cloths, ")
    click.echo(f"whose patterns are the {len(PATTERNS)} classes: {', '.join(PATTERNS)}")
    for part, (name, count) in enumerate({"unlabelled": UNLABELLED, "labelled": LABELLED, "test": TEST}.items()):
        if not (folder / f"{name}.done").exists():
            # Another seed for each part, far from the next user seed, so that no image stands in two of them.
            seeds = {"img_size": SCENE_PX, "seed": seed * 1000 + part, "has_classes": name != "unlabelled"}
            write_cloths(folder / name, count, **seeds)
            (folder / f"{name}.done").touch()
    found = {"num_train": LABELLED, "num_test": TEST, "num_classes": len(PATTERNS)}
    return Labels(train=folder / "labelled", test=folder / "test", **found)


def own_images(folder: Path, data: str, labelled: str | None, seed: int) -> tuple[str, Labels | None, int]:
    """Say what will be done with somebody's own images; returns them, what to compare on, and K."""
    from beit.common.sources.opening import list_samples, open_source

    source = open_source(data)
    number = sum(len(refs) for refs in list_samples(source))
    require(
        number >= FEWEST_OWN, f"{data} has {number} images; the demo needs at least {FEWEST_OWN}, better some hundred"
    )
    views = max(OWN_VIEWS[0], min(OWN_VIEWS[1], OWN_VIEWS_IN_ALL // max(1, number)))
    click.echo(f"{data}: {number} images, {views} views of each; they are only read")
    labels = None if labelled is None else split_labelled(labelled, folder / "labelled", seed)
    if labelled is None and source.kind == "files" and source.class_names and len(source.class_names) > 1:
        try:
            labels = split_labelled(data, folder / "labelled", seed)
            click.echo("Its sub-folders are taken as classes; --labelled names other labelled images")
            labelled = data
        except InputError as error:  # folders of dates, say: nobody called them classes
            click.echo(f"Its sub-folders are not taken as classes: {error}")
    if labels is None:
        click.echo("Without labels nothing is compared; --labelled FOLDER, one sub-folder per class, does that")
    else:
        parts = f"{labels.num_train} images to train on, {labels.num_test} others to measure on"
        click.echo(f"{labelled}: {labels.num_classes} classes; {parts}")
    return data, labels, views


def split_labelled(source: str, folder: Path, seed: int) -> Labels:
    """Divide labelled images at random: few of each class to train on, others to measure on; writes two CSV tables.

    At most a third of a class is trained on, so that small classes are measured, too.
    """
    from beit.common.rng import CounterRng
    from beit.common.sources.opening import list_samples, open_source

    opened = open_source(source, for_classes=True)
    require(
        opened.kind == "files" and opened.class_names is not None,
        f"--labelled {source} must be a folder with one sub-folder of images per class",
    )
    names = opened.class_names or ()
    require(
        2 <= len(names) <= CLASSES_AT_MOST,
        f"--labelled {source} has {len(names)} classes; the demo compares on 2 to {CLASSES_AT_MOST}",
    )
    members: dict[int, list[str]] = {number: [] for number in range(len(names))}
    root = Path(opened.root).absolute()
    for refs in list_samples(opened):
        for ref in refs:
            members[int(ref.label)].append(str(root / ref.path))
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    for number, paths in members.items():
        require(
            len(paths) >= 3,
            f"{source}: class {names[number]} has {len(paths)} images; the demo needs at least 3 of each",
        )
        order = CounterRng(seed, "demo labels", names[number]).permutation(len(paths))
        few = min(OWN_LABELS_PER_CLASS, len(paths) // 3)
        most = few + max(1, OWN_TEST_AT_MOST // len(names))
        train += [(paths[place], names[number]) for place in order[:few]]
        test += [(paths[place], names[number]) for place in order[few:most]]
    files = {"train": train, "test": test}
    for name, rows in files.items():
        text = io.StringIO()
        csv.writer(text).writerows([("path", "label"), *rows])
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{name}.csv", text.getvalue().encode())
    found = {"num_train": len(train), "num_test": len(test), "num_classes": len(names)}
    return Labels(train=folder / "train.csv", test=folder / "test.csv", **found)


def run_folder(folder: Path, start: str, task: str) -> Path:
    """Return where a task is done; both probes share a folder, and the features in it."""
    return folder / f"{'finetune' if task == 'classification' else 'probe'}-{start}"


def scores(folder: Path, start: str) -> dict[str, float]:
    """Return the top-1 of each task, a share."""
    found = {}
    for task in MEASURES:
        run = run_folder(folder, start, task)
        if task == "classification":
            found[task] = float(read_json(run / MODEL / "config.json")["provenance"]["metrics"]["top1"])
        else:
            found[task] = float(read_json(run / f"{task}.json")["top1"])
    return found


def table(labels: Labels, found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the comparison for reading.

    The interval is that of so many test images. The two starts are measured on the same ones, which only makes their
    difference surer than it is said to be.
    """
    from beit.common.pages.tables import aligned

    rows: list[Sequence[str]] = [["", *STARTS.values(), "difference"]]
    for task, name in MEASURES.items():
        ours, random = (found[start][task] for start in STARTS)
        variances = [share * (1 - share) / labels.num_test for share in (ours, random)]
        difference = f"{100 * (ours - random):+.1f} ± {196 * math.sqrt(sum(variances)):.1f}"
        cells = [f"{100 * share:.1f} %" for share in (ours, random)]
        rows.append([name, *cells, difference])
    heading = (
        f"Right answers with {labels.num_train} labelled images, {labels.num_classes} classes "
        f"(chance {100 / labels.num_classes:.1f} %), on {labels.num_test} others:"
    )
    return f"{heading}\n\n{aligned(rows, align='<>')}\n\n± is the 95 % interval, in points, of so many test images"


def _beit(*arguments: object) -> None:
    """Print a `beit` command, run it, and stop the demo with its exit code when it fails or is asked to stop."""
    from beit.common.processes.signals import die_with_parent, stop_signals_go_to

    words = [str(word) for word in arguments]
    click.echo(click.style(f"\n$ beit {shlex.join(words)}", bold=True))
    asked = []

    def forward(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        process.send_signal(signum)

    # A session of its own, so that Ctrl-C in a terminal reaches it once, through this process, which waits for its end.
    command = [sys.executable, "-m", "beit.cli", *words]
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)
    with stop_signals_go_to(forward):
        code = process.wait()
    if asked and code in (0, EXIT_RESUMABLE, *(-signum for signum in asked)):
        raise ResumableStop("the demo was stopped; the same demo command goes on")
    if code < 0:
        raise RunFailed(f"beit {words[0]} was ended by signal {-code}; the same demo command goes on")
    if code:
        raise click.exceptions.Exit(code)
