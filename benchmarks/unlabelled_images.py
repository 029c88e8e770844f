"""From how many unlabelled images on does pre-training help? Encoders of 150 to 32 000 images against random weights.

    python benchmarks/unlabelled_images.py --train cifar10/train.parquet --val cifar10/test.parquet --out runs/curve

All encoders are pre-trained for the same number of steps of the same batch with the same warm-up, so fewer images are
only seen more often; each number of images includes the smaller ones. Every seed then draws its own few labels, the
same for all encoders and for random weights, which are others for every seed; differences to these are those of pairs.
Measured are k-NN, a linear probe and, for the seeds of `--finetune-seeds`, a fine-tuning at its end. Nothing is chosen
but what `beit finetune linear-probe` and `knn` choose, for random weights as for the others: the block, and k.

Pre-training and fine-tuning are `beit` commands with folders of their own; the script may be stopped at any time and
goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.benchmarks.paired_runs import run_script
from beit.common.config import load_config
from beit.common.encoder import load_encoder
from beit.common.errors import InputError, ResumableStop
from beit.common.images.decode import decode_image
from beit.common.pages.charts import Line, LineChart, line_charts
from beit.common.pages.pictures import PALETTE, save_png, sheet
from beit.common.processes.signals import StopFlag, stop_on_signals
from beit.common.runs.environment import environment
from beit.common.sources.index import draw_subset
from beit.common.storage.documents import read_json, write_json
from beit.common.vit.config import Normalization, build_vit_config
from beit.common.vit.features import Features, extract_features, fit_linear, knn_predict
from beit.common.vit.vit import VisionTransformer
from beit.finetune.commands import RECIPES
from beit.finetune.compare.runs import read_runs
from beit.finetune.config import FinetuneConfig, ProbeConfig
from beit.finetune.worth.runner import Runner, cell, claim, interval, parse_seeds, sets

RANDOM = 0
"""Stands for random weights among the numbers of images."""
FINE_TUNED = "fine-tuned"
MEASURES = ("k-NN", "linear probe", FINE_TUNED)
IMG_SIZE_PX, PATCH_SIZE_PX, BATCH = 32, 4, 32
VIEWS_AT_MOST, VIEWS_IN_ALL = 16, 16_000
"""Few images are seen often, so they get more views; arbitrary."""
CHART_PX = (380, 300)
DONE = "done.json"
"""In the folder of whatever is finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """What is measured, on what."""

    train: str
    """Parquet file of images with labels; pre-training does not see the labels."""
    val: str
    """To measure on."""
    out: Path
    """Where everything is."""
    images: tuple[int, ...]
    """Numbers of unlabelled images."""
    labels: int
    """Labelled images."""
    steps: int
    """Of each pre-training."""
    finetune_epochs: float
    """Passes of a fine-tuning over the labels."""
    val_images: int
    """To measure on."""
    shape: tuple[str, ...]
    """Settings of the network."""

    def encoder(self, number: int) -> str:
        """Return what `--encoder` takes."""
        return "random" if number == RANDOM else str(self.out / f"images-{number}/pretrain/encoder")

    def model(self, number: int, seed: int) -> VisionTransformer:
        """Return the encoder, or the random weights of a seed."""
        if number != RANDOM:
            return load_encoder(self.encoder(number))
        base = load_config(FinetuneConfig, recipe="cifar10_tiny", overrides=self.shape, recipe_dir=RECIPES)
        torch.manual_seed(seed)
        shape = base.model.for_random_weights()
        return VisionTransformer(build_vit_config(shape, img_size=IMG_SIZE_PX, patch_size=PATCH_SIZE_PX)).eval()

    def folder(self, number: int, seed: int) -> Path:
        """Return where the fine-tuning on the labels of a seed is."""
        return self.out / f"images-{number}/finetune-seed{seed}"


@click.command()
@click.option("--train", required=True, help="Parquet file of labelled images; pre-training ignores the labels.")
@click.option("--val", required=True, help="Labelled images to measure on.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--images", default="150,500,2000,32000", show_default=True, help="Numbers of unlabelled images.")
@click.option("--labels", default=300, show_default=True, help="Labelled images.")
@click.option("--steps", default=1000, show_default=True, help="Of each pre-training, in batches of 32.")
@click.option("--finetune-epochs", default=40.0, show_default=True, help="Passes of a fine-tuning over the labels.")
@click.option("--seeds", default="0,1,2,3,4", show_default=True, help="Choices of the labels for k-NN and probe.")
@click.option("--finetune-seeds", default="0,1,2", show_default=True, help="For fine-tuning; none leaves it out.")
@click.option("--val-images", default=2000, show_default=True, help="To measure on.")
@click.option(
    "--shape", default="model.embed_dim=128,model.depth=4,model.num_heads=4", show_default=True, help="The network."
)
@click.option("--threads", default=1, show_default=True, help="Processor threads of a run.")
def main(images: str, seeds: str, finetune_seeds: str, shape: str, threads: int, **values: Any) -> None:
    """Run what is missing; write OUT/table.md, OUT/table.json and OUT/curve.png."""
    curve = Curve(images=tuple(parse_seeds(images)), shape=tuple(shape.split(",")), **values)
    curve.out.mkdir(parents=True, exist_ok=True)
    probed = parse_seeds(seeds)
    tuned = [] if finetune_seeds == "none" else parse_seeds(finetune_seeds)
    with claim(curve.out, "unlabelled_images.py") as lock, stop_on_signals() as stop:
        runner = Runner(stop=stop, lock=lock, threads=threads)
        for number in curve.images:
            pretrain(curve, number, runner)
        probe(curve, probed, stop)
        for seed in tuned:
            for number in (RANDOM, *curve.images):
                finetune(curve, number, seed, runner)
    rows = [summarize(curve, number, name, probed) for name in MEASURES for number in (RANDOM, *curve.images)]
    settings = {"images": images, "seeds": seeds, "finetune_seeds": finetune_seeds, "shape": shape, **values}
    document = {"settings": settings | {"out": str(curve.out)}, "environment": environment(), "rows": rows}
    write_json(curve.out / "table.json", document)
    (curve.out / "table.md").write_text(table := markdown(rows))
    save_png(picture(rows, curve), curve.out / "curve.png")
    click.echo(table)


def pretrain(curve: Curve, number: int, runner: Runner) -> None:
    """Tokenize so many images and pre-train on them, unless that is done."""
    folder = curve.out / f"images-{number}"
    if (folder / "pretrain" / DONE).exists():
        return
    started = time.monotonic()
    source = folder / "images.parquet"
    if not source.exists():
        write_subset(curve.train, number, source)
    views = max(1, min(VIEWS_AT_MOST, VIEWS_IN_ALL // number))
    size = ["--img-size", str(IMG_SIZE_PX), "--patch-size", str(PATCH_SIZE_PX)]
    runner.beit("tokenize", source, folder / "store", "--tokenizer", "mini", "--views", str(views), *size)
    settings = [*curve.shape, f"train.steps={curve.steps}", f"optimizer.warmup_steps={curve.steps // 10}"]
    settings += ["reader.num_workers=0", f"train.eval_interval_steps={curve.steps}"]
    settings += [f"checkpoint.interval_steps={max(1, curve.steps // 4)}", "train.precision=fp32"]
    options = ["--recipe", "beit_tiny_patch4_32", *sets(settings)]
    runner.beit("pretrain", folder / "store", folder / "pretrain", *options)
    write_json(folder / "pretrain" / DONE, {"views": views, "seconds": time.monotonic() - started})


def write_subset(source: str, number: int, file: Path) -> None:
    """Write the first `number` images of a random order of `source` that is always the same."""
    table = pq.read_table(source)
    if not 1 <= number <= table.num_rows:
        raise InputError(f"--images {number} must be between 1 and the {table.num_rows} images of {source}")
    chosen = np.random.default_rng(0).permutation(table.num_rows)[:number]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.take(pa.array(np.sort(chosen))), file, row_group_size=1000)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Labelled images in memory."""

    pixels: Tensor
    """(n, 3, 32, 32) uint8."""
    labels: Tensor
    """(n,) int64."""

    def chosen(self, rows: NDArray[np.int64]) -> Pictures:
        """Return some of them."""
        places = torch.from_numpy(rows)
        return Pictures(self.pixels[places], self.labels[places])

    def features(self, model: VisionTransformer) -> Features:
        """Return every block's, CLS beside the mean of the patches."""
        batches = (
            {"images": self.pixels[start : start + 100], "labels": self.labels[start : start + 100]}
            for start in range(0, len(self.labels), 100)
        )
        scale = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        return extract_features(model, batches, device=torch.device("cpu"), normalization=scale, pooling="cls_mean")


def read_pictures(file: str, rows: NDArray[np.int64] | None = None) -> Pictures:
    """Read images of 32 px with their labels from a Parquet file."""
    table = pq.read_table(file)
    table = table if rows is None else table.take(pa.array(rows))
    encoded = table["image"].combine_chunks().field("bytes").to_pylist()
    pixels = np.stack([np.asarray(decode_image(data).resize((IMG_SIZE_PX, IMG_SIZE_PX))) for data in encoded])
    return Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(table["label"].to_numpy().copy()))


def probe(curve: Curve, seeds: Sequence[int], stop: StopFlag) -> None:
    """Measure all encoders, and random weights, by linear probe and k-NN on the labels of each seed, unless done.

    Raises:
        ResumableStop: it was stopped.
    """
    file = curve.out / "probes.json"
    found: dict[str, dict[str, float]] = read_json(file) if file.exists() else {}
    names = [f"{number} {seed}" for seed in seeds for number in (RANDOM, *curve.images)]
    if all(name in found for name in names):
        return
    all_labels = pq.read_table(curve.train, columns=["label"])["label"].to_numpy()
    val = read_pictures(curve.val, np.arange(pq.ParquetFile(curve.val).metadata.num_rows)[: curve.val_images])
    seen: dict[int, Features] = {}
    for seed in seeds:
        train = read_pictures(curve.train, draw_subset(all_labels, curve.labels, seed))
        for number in (RANDOM, *curve.images):
            if f"{number} {seed}" in found:
                continue
            if stop.is_set():
                raise ResumableStop("stopped; start the same command again to go on")
            model = curve.model(number, seed)
            if number == RANDOM or number not in seen:
                seen[number] = val.features(model)
            found[f"{number} {seed}"] = probe_scores(train.features(model), seen[number])
            write_json(file, found)


def probe_scores(train: Features, val: Features) -> dict[str, float]:
    """Return top-1 of the best block by linear probe, and of the best block and k by k-NN."""
    classes = int(train.labels.max()) + 1
    linear, neighbours = [], []
    for block, queries in zip(train.blocks, val.blocks, strict=True):
        logits = fit_linear(block, train.labels, num_classes=classes).logits(queries)
        linear.append((logits.argmax(1) == val.labels).double().mean().item())
        means = (part.chunk(2, dim=1)[1] for part in (block, queries))
        patches, asked = means
        voted = knn_predict(patches, train.labels, asked, num_classes=classes, ks=ProbeConfig().ks[:-2])
        neighbours.append((voted == val.labels).double().mean(1).max().item())
    return {"linear probe": max(linear), "k-NN": max(neighbours)}


def finetune(curve: Curve, number: int, seed: int, runner: Runner) -> None:
    """Fine-tune an encoder, or random weights, on the labels of a seed, unless that is done."""
    folder = curve.folder(number, seed)
    if (folder / DONE).exists():
        return
    steps = int(curve.finetune_epochs * curve.labels) // BATCH
    settings = [*curve.shape, f"data.num_labels={curve.labels}", f"data.subset_seed={seed}", f"train.seed={seed}"]
    settings += [f"data.num_val_images={curve.val_images}", "reader.num_workers=0", "train.precision=fp32"]
    settings += [f"train.epochs={curve.finetune_epochs:g}", f"train.eval_interval_steps={max(1, steps)}"]
    settings += [f"train.global_batch_size={BATCH}", "optimizer.lr=1e-3"]
    options = ["--encoder", curve.encoder(number), "--val", curve.val, "--recipe", "cifar10_tiny", *sets(settings)]
    runner.beit("finetune", "classification", curve.train, folder, *options)
    write_json(folder / DONE, {})


def top1(curve: Curve, number: int, name: str, seeds: Sequence[int]) -> dict[int, float]:
    """Return the top-1 by seed, of what is finished."""
    if name == FINE_TUNED:
        folders = {seed: curve.folder(number, seed) for seed in seeds}
        done = {seed: read_runs(folder) for seed, folder in folders.items() if (folder / DONE).exists()}
        return {seed: record.metrics["top1"] for seed, records in done.items() for record in records}
    file = curve.out / "probes.json"
    found = read_json(file) if file.exists() else {}
    return {seed: found[f"{number} {seed}"][name] for seed in seeds if f"{number} {seed}" in found}


def summarize(curve: Curve, number: int, name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Return one line of the table as plain values."""
    ours, random = (top1(curve, start, name, seeds) for start in (number, RANDOM))
    pairs = [ours[seed] - random[seed] for seed in ours if seed in random]
    signal = curve.out / f"images-{number}/pretrain/{DONE}"
    return {
        "images": number,
        "measure": name,
        "views": read_json(signal)["views"] if signal.exists() else None,
        "top1": interval(list(ours.values())),
        "by_seed": ours,
        "difference": None if number == RANDOM else interval(pairs),
        "wins": sum(pair > 0 for pair in pairs),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table for reading."""
    lines = ["| unlabelled images | measured | top-1 | against random weights, in points | wins |"]
    lines.append("| ---: | --- | ---: | ---: | ---: |")
    for row in (row for row in rows if row["top1"] is not None):
        is_random = row["images"] == RANDOM
        cells = ["random weights" if is_random else f"{row['images']}", row["measure"], cell(row["top1"], " %")]
        cells += ["", ""] if is_random else [cell(row["difference"], "", signed=True)]
        cells += [] if is_random else [f"{row['wins']} of {row['top1']['num_values']}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[dict[str, Any]], curve: Curve) -> Image.Image:
    """Draw top-1 over the number of unlabelled images, beside random weights; one chart per measure."""
    charts, ticks = [], {math.log10(number): f"{number}" for number in curve.images}
    means = [row["top1"]["mean"] for row in rows if row["top1"] is not None]
    y_range = (max(0.0, min(means) - 0.03), max(means) + 0.03)  # one for all, so that the charts compare
    for name in MEASURES:
        found = {row["images"]: row["top1"]["mean"] for row in rows if row["measure"] == name and row["top1"]}
        random = found.pop(RANDOM, None)
        lines = [Line(name="pre-trained", points=[(math.log10(n), y) for n, y in found.items()], colour=PALETTE[0])]
        if random is not None:
            lines.append(Line(name="random weights", points=[(x, random) for x in ticks], colour=PALETTE[1]))
        if found:
            named = {"title": f"{name}, top-1", "x_name": "unlabelled images", "x_ticks": ticks}
            charts.append(LineChart(lines=lines, y_range=y_range, percent=True, **named))
    drawn = line_charts(charts, chart_px=CHART_PX, columns=len(charts), key=True)
    return sheet([drawn], heading=f"From how many images on pre-training helps ({curve.labels} labels)")


if __name__ == "__main__":
    run_script(main)
