"""Does `source.range` matter? A microscopy-like and an X-ray-like run by `beit` commands, with it and without.

    python benchmarks/science.py --out runs/science

The images are simulated, so that everything is known of them. *Microscopy*: OME-TIFF of three slices, 12 bits in 16,
cells whose four classes differ in texture and not in brightness, counts of about 200 to 1500 with Poisson noise; only
the middle slice is in focus. *X-ray*: DICOM, MONOCHROME1, 14 bits, rescaled, with a window of its own in every file;
chests whose lungs are clear, hold nodules or are crossed by a net. Each is tokenized once as files come (`dtype`) and
once with the range that fits (percentiles, windows), and everything else is equal: a fitness report of the words, a
small pre-training, a linear probe beside random weights, and labels for new files.

Every step is a `beit` command with a folder of its own; the script may be stopped at any time and goes on.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from beit.benchmarks.paired_runs import run_script
from beit.common.images.decode import decode_image
from beit.common.pages.pictures import picture_table, save_png, sheet
from beit.common.processes.signals import stop_on_signals
from beit.common.runs.environment import environment
from beit.common.runs.layout import METRICS
from beit.common.runs.metrics import read_metrics
from beit.common.storage.documents import read_json, write_json
from beit.common.store import open_store
from beit.finetune.worth.runner import Runner, claim, sets, unless_finished

FloatArray = NDArray[np.float64]
FIELD_PX, CHEST_PX = 96, 128
IMG_SIZE_PX, PATCH_SIZE_PX, BATCH = 64, 8, 32
DARK_COUNTS, COUNTS_PER_ELECTRON, WHITE_COUNTS = 200, 2.0, 4095
"""Of the camera: what it says of no light, its gain, and its 12 bits."""
DETECTOR_BITS, INTERCEPT = 14, -200.0
DEFAULT, FITTING = "dtype", "fitting"
DONE = "done.json"


def texture(rng: np.random.Generator, side: int, along: float, across: float | None = None) -> FloatArray:
    """Return noise (side, side) of mean 0 and deviation 1, smoothed by Gaussians of `along` and `across` px.

    Where the two differ, the direction is drawn.
    """
    across = along if across is None else across
    rows, columns = np.meshgrid(*[np.fft.fftfreq(side)] * 2, indexing="ij")
    angle = rng.uniform(0, np.pi)
    one, other = (rows * np.cos(angle) + columns * np.sin(angle), columns * np.cos(angle) - rows * np.sin(angle))
    kept = np.exp(-2 * np.pi**2 * ((along * one) ** 2 + (across * other) ** 2))
    return standardised(np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * kept).real)


def net(rng: np.random.Generator, side: int, px: float) -> FloatArray:
    """Return bright lines that close to a net, standardised: where smooth noise passes through 0."""
    return standardised(-np.sqrt(np.abs(texture(rng, side, px))))


def standardised(values: FloatArray) -> FloatArray:
    """Return values of mean 0 and deviation 1, at most 2.5 away."""
    return np.asarray(((values - values.mean()) / values.std()).clip(-2.5, 2.5))


def ellipse(side: int, row: float, column: float, height: float, width: float, edge: float = 1.5) -> FloatArray:
    """Return 1 inside an ellipse of these half-axes in px, 0 outside, with an edge so many px wide."""
    rows, columns = np.mgrid[:side, :side]
    away = np.hypot((rows - row) / height, (columns - column) / width)
    return np.asarray(((1 - away) * min(height, width) / edge + 0.5).clip(0, 1))


CELLS: dict[str, Callable[[np.random.Generator], FloatArray]] = {
    "fibrous": lambda rng: texture(rng, FIELD_PX, 8.0, 0.8),
    "granular": lambda rng: texture(rng, FIELD_PX, 1.0),
    "netted": lambda rng: net(rng, FIELD_PX, 3.0),
    "smooth": lambda rng: texture(rng, FIELD_PX, 6.0),
}


def field(rng: np.random.Generator, kind: str) -> NDArray[np.uint16]:
    """Return three slices of a field of cells of one kind, (3, H, W), the middle one in focus."""
    cells = np.zeros((FIELD_PX, FIELD_PX))
    for _ in range(rng.integers(7, 12)):
        place, axes = rng.uniform(0, FIELD_PX, 2), rng.uniform(12, 22, 2)
        cells = np.maximum(cells, rng.uniform(0.7, 1.3) * ellipse(FIELD_PX, *place, *axes))
    light = 40 + cells * (480 + 170 * CELLS[kind](rng))
    slices = [blurred(light, 4.0), light, blurred(light, 4.0)]
    counts = [DARK_COUNTS + rng.poisson(one / COUNTS_PER_ELECTRON) * COUNTS_PER_ELECTRON for one in slices]
    return np.stack(counts).clip(0, WHITE_COUNTS).astype(np.uint16)


def blurred(values: FloatArray, px: float) -> FloatArray:
    """Smooth by a Gaussian; nothing of it is below 0."""
    rows, columns = np.meshgrid(*[np.fft.fftfreq(len(values))] * 2, indexing="ij")
    kept = np.exp(-2 * np.pi**2 * px**2 * (rows**2 + columns**2))
    return np.asarray(np.fft.ifft2(np.fft.fft2(values) * kept).real.clip(0))


def write_field(file: Path, rng: np.random.Generator, kind: str) -> None:
    """Write a field as OME-TIFF."""
    import tifffile

    tifffile.imwrite(file, field(rng, kind), ome=True, photometric="minisblack", metadata={"axes": "ZYX"})


def chest(rng: np.random.Generator, kind: str) -> tuple[NDArray[np.uint16], float]:
    """Return what a detector counts behind a chest, (H, W), and how much more than usual it was exposed."""
    side, exposure = CHEST_PX, rng.normal(0, 150)
    middle = side / 2 + rng.uniform(-4, 4, 2)
    body = ellipse(side, middle[0] + 8, middle[1], rng.uniform(66, 74), rng.uniform(50, 56), 8)
    half = rng.uniform(16, 19)
    lungs = sum(ellipse(side, middle[0], middle[1] + sign * 25, rng.uniform(36, 42), half, 4) for sign in (-1.0, 1.0))
    rows, columns = np.mgrid[:side, :side]
    ribs = (np.sin((rows + ((columns - middle[1]) / 9) ** 2) / 2.4) > 0.75) * body
    spine = np.exp(-(((columns - middle[1]) / 6) ** 2)) * body
    found = np.zeros((side, side))
    if kind == "nodules":
        for sign in (-1, 1):
            for _ in range(rng.integers(3, 6)):
                away, angle = rng.uniform(0, 0.8), rng.uniform(0, 2 * np.pi)
                place = middle + (34 * away * np.sin(angle), sign * 25 + 14 * away * np.cos(angle))
                found = np.maximum(found, ellipse(side, *place, *[rng.uniform(2.5, 4.5)] * 2) * lungs)
    elif kind == "net":
        found = (net(rng, side, 2.5) * 0.4) * lungs
    values = 3000 - 1500 * body + 550 * lungs - 70 * ribs - 350 * spine - 140 * found
    values += exposure + 60 * texture(rng, side, 14) + rng.normal(0, 22, found.shape)
    return values.round().clip(0, 2**DETECTOR_BITS - 1).astype(np.uint16), float(exposure)


CHESTS = ("clear", "net", "nodules")


def write_chest(file: Path, rng: np.random.Generator, kind: str) -> None:
    """Write a chest as DICOM, with the window that a radiographer's machine would find."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    values, exposure = chest(rng, kind)
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = DigitalXRayImageStorageForPresentation
    uid = generate_uid(entropy_srcs=[file.as_posix()])
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = uid
    made.Modality, made.PhotometricInterpretation, made.SamplesPerPixel = "DX", "MONOCHROME1", 1
    made.Rows, made.Columns = values.shape
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, DETECTOR_BITS, 13, 0
    made.RescaleSlope, made.RescaleIntercept, made.RescaleType = 1.0, INTERCEPT, "US"
    made.WindowCenter, made.WindowWidth = round(1750 + exposure + INTERCEPT), 1500
    made.PixelData = values.astype("<u2").tobytes()
    made.save_as(file, enforce_file_format=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Science:
    """Images of one kind."""

    title: str
    """In the table."""
    suffix: str
    """Of its files."""
    classes: tuple[str, ...]
    """What differs."""
    write: Callable[[Path, np.random.Generator, str], None]
    """Writes one file of a class."""
    images: int
    """Without labels."""
    fitting: str
    """The range that fits."""
    settings: tuple[str, ...]
    """Of the source, beside the range."""


KINDS = {
    "microscopy": Science(
        title="microscopy, TIFF",
        suffix=".ome.tif",
        classes=tuple(CELLS),
        write=write_field,
        images=400,
        fitting="percentile:0.5,99.5",
        settings=("source.channels=grey", "source.frame=middle"),
    ),
    "xray": Science(
        title="X-ray, DICOM",
        suffix=".dcm",
        classes=CHESTS,
        write=write_chest,
        images=200,
        fitting="window",
        settings=("source.channels=grey",),
    ),
}
LABELLED_EACH, TEST_EACH, NEW_EACH = 20, 100, 10
"""Files of each class to fit on, to measure on, and that come later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much is done."""

    out: Path
    """Where everything is."""
    share: float
    """Of the files that a full run has."""
    steps: int
    """Of each pre-training."""
    views: int
    """Of each image."""
    report_images: int
    """That a fitness report measures."""
    shape: tuple[str, ...]
    """Settings of the network."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--kinds", default=",".join(KINDS), show_default=True, help="Which images.")
@click.option("--share", default=1.0, show_default=True, help="Of the files that a full run has.")
@click.option("--steps", default=400, show_default=True, help="Of each pre-training, in batches of 32.")
@click.option("--views", default=8, show_default=True, help="Of each image.")
@click.option("--report-images", default=128, show_default=True, help="That a fitness report measures.")
@click.option("--shape", default="model.embed_dim=96", show_default=True, help="Changes of the network of `demo`.")
@click.option("--threads", default=1, show_default=True, help="Processor threads of a run.")
def main(kinds: str, shape: str, threads: int, **values: Any) -> None:
    """Run what is missing; write OUT/table.md, OUT/table.json and OUT/examples.png."""
    budget = Budget(shape=tuple(shape.split(",")), **values)
    names = kinds.split(",")
    if unknown := sorted(set(names) - set(KINDS)):
        raise click.BadParameter(f"--kinds must be among {', '.join(KINDS)}, not {', '.join(unknown)}")
    budget.out.mkdir(parents=True, exist_ok=True)
    with claim(budget.out, "science.py") as lock, stop_on_signals() as stop:
        runner = Runner(stop=stop, lock=lock, threads=threads)
        for name in names:
            make_images(budget, name)
            for which in (DEFAULT, FITTING):
                run(budget, name, which, runner)
    rows = [summarize(budget, name, which) for name in names for which in (DEFAULT, FITTING)]
    settings = {"kinds": kinds, "shape": shape, **values, "out": str(budget.out)}
    write_json(budget.out / "table.json", {"settings": settings, "environment": environment(), "rows": rows})
    (budget.out / "table.md").write_text(table := markdown(rows))
    save_png(examples(budget, names), budget.out / "examples.png")
    click.echo(table)


def make_images(budget: Budget, name: str) -> None:
    """Simulate the images, unless that is done: unlabelled, train/CLASS, test/CLASS, and new ones, CLASS-NUMBER."""
    kind, folder = KINDS[name], budget.out / name / "images"
    if (folder / DONE).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    each = {"unlabelled": kind.images / len(kind.classes)}
    each |= {"train": LABELLED_EACH, "test": TEST_EACH, "new": NEW_EACH}
    for part, (place, count) in enumerate(each.items()):
        for of, label in enumerate(kind.classes):
            inside = folder / place / (label if place in ("train", "test") else "")
            inside.mkdir(parents=True, exist_ok=True)
            for number in range(max(2, round(budget.share * count))):
                stem = f"{label}-{number:04d}" if place == "new" else f"{number:04d}{chr(ord('a') + of)}"
                kind.write(inside / f"{stem}{kind.suffix}", np.random.default_rng([part, of, number]), label)
    write_json(folder / DONE, {"share": budget.share})


def run(budget: Budget, name: str, which: str, runner: Runner) -> None:
    """Do what is not done yet of one kind of images with one range."""
    for step, words in commands(budget, name, which).items():
        folder = budget.out / name / which
        (folder / "done").mkdir(parents=True, exist_ok=True)
        with unless_finished(folder / "done" / f"{step}.json", {"words": [str(word) for word in words]}) as is_missing:
            if is_missing:
                runner.beit(*words)


def commands(budget: Budget, name: str, which: str) -> dict[str, list[str | Path]]:
    """Return what is run, in order: the words behind `beit`."""
    kind, images, folder = KINDS[name], budget.out / name / "images", budget.out / name / which
    value_range = kind.fitting if which == FITTING else DEFAULT
    source = sets([*kind.settings, f"source.range={value_range}"])
    options: list[str | Path] = ["--range", value_range, "--channels", "grey"]
    options += ["--frame", "middle"] if "source.frame=middle" in kind.settings else []
    report = ["tokenizer", "report", "mini", images / "unlabelled", *options, "--view-size", str(IMG_SIZE_PX)]
    sides = ["--img-size", str(IMG_SIZE_PX), "--patch-size", str(PATCH_SIZE_PX), "--views", str(budget.views)]
    network = ["--recipe", "demo", *sets(budget.shape)]
    lengths = sets([f"train.steps={budget.steps}", f"train.eval_interval_steps={max(1, budget.steps // 2)}"])
    lengths += sets([f"optimizer.warmup_steps={budget.steps // 10}", "run.report=false"])
    on: list[str | Path] = [images / "train", folder / "probe", "--val", images / "test", *network]
    random: list[str | Path] = [images / "train", folder / "random", "--val", images / "test", *network, *source]
    encoder = folder / "pretrain/encoder"
    return {
        "sources": ["sources", images / "unlabelled", *source, "--json", folder / "sources.json"],
        "report": [*report, "--images", str(budget.report_images), "--out", folder / "report.json"],
        "tokenize": ["tokenize", images / "unlabelled", folder / "store", *sides, *source],
        "pretrain": ["pretrain", folder / "store", folder / "pretrain", *network, *lengths],
        "probe": ["finetune", "linear-probe", *on, "--encoder", encoder, "--set", "run.report=false"],
        "random": ["finetune", "linear-probe", *random, "--encoder", "random", "--set", "run.report=false"],
        "predict": ["predict", folder / "probe/model", images / "new", "--out", folder / "new.csv"],
    }


def summarize(budget: Budget, name: str, which: str) -> dict[str, Any]:
    """Return one line of the table as plain values."""
    folder = budget.out / name / which
    (words,) = read_json(folder / "report.json")["tokenizers"]
    held_out = [record for record in read_metrics(folder / "pretrain" / METRICS) if "held_out_bits" in record][-1]
    with (folder / "new.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    levels = [len(np.unique(pixels)) for pixels in decoded(budget, name, which, "test", 50)]
    top1 = {run: read_json(folder / run / "linear-probe.json")["top1"] for run in ("probe", "random")}
    verdicts = [(verdict["title"], verdict["level"]) for verdict in words["verdicts"]]
    return {
        "kind": name,
        "range": which,
        "resolved": str(open_store(folder / "store").info.decoding.value_range),
        "levels": float(np.median(levels)),
        "words_used": words["tokens"]["words"]["words_used"],
        "perplexity": words["tokens"]["words"]["perplexity"],
        "verdicts": {
            level: [title for title, found in verdicts if found == level] for level in ("good", "look", "bad")
        },
        "unigram_bits": held_out["unigram_bits"],
        "below_unigram": held_out["unigram_bits"] - held_out["held_out_bits"],
        "below_unigram_se": held_out["below_unigram_se"],
        "top1": top1,
        "new_right": float(np.mean([Path(row["key"]).name.startswith(row["label"]) for row in rows])),
        "new": len(rows),
    }


def decoded(budget: Budget, name: str, which: str, place: str, count: int) -> list[NDArray[np.uint8]]:
    """Return images as a model sees them, of evenly many of each class, (H, W) each."""
    decoding = open_store(budget.out / name / which / "store").info.decoding
    folders = [budget.out / name / "images" / place / label for label in KINDS[name].classes]
    files = [file for folder in folders for file in sorted(folder.iterdir())[: -(-count // len(folders))]]
    return [np.asarray(decode_image(file.read_bytes(), decoding)) for file in files]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table for reading."""
    heading = ["images", "`source.range`", "grey levels in an image", "words used", "verdicts good / look / bad"]
    heading += ["held-out bits below unigram (of)", "linear probe", "of random weights"]
    lines = [f"| {' | '.join([*heading, 'new files right'])} |", "| --- | --- " + "| ---: " * 7 + "|"]
    for row in rows:
        cells = [KINDS[row["kind"]].title, f"`{row['resolved']}`", f"{row['levels']:.0f}", f"{row['words_used']}"]
        cells += [" / ".join(str(len(row["verdicts"][level])) for level in ("good", "look", "bad"))]
        below, error = row["below_unigram"], row["below_unigram_se"]
        half = "" if error is None else f" ± {1.96 * error:.2f}"  # one held-out image has no deviation
        cells += [f"{below:.2f}{half} ({row['unigram_bits']:.2f})"]
        cells += [f"{100 * row['top1'][run]:.1f} %" for run in ("probe", "random")]
        cells += [f"{100 * row['new_right']:.0f} % of {row['new']}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def examples(budget: Budget, names: Sequence[str]) -> Image:
    """Draw an image of every class, as a model sees it without the range and with it."""
    tables = []
    for name in names:
        kind = KINDS[name]
        rows = [decoded(budget, name, which, "test", len(kind.classes)) for which in (DEFAULT, FITTING)]
        grey = [[np.repeat(pixels[..., None], 3, axis=2) for pixels in row] for row in rows]
        labels = [f"{name}\n{which}" for which in (DEFAULT, kind.fitting)]
        tables.append(picture_table(grey, titles=kind.classes, labels=labels, cell_px=CHEST_PX))
    return sheet(tables)


if __name__ == "__main__":
    run_script(main)
