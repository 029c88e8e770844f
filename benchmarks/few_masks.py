"""Does pre-training help segmentation when masks are few? An encoder of unlabelled images against random weights.

    python benchmarks/few_masks.py --data camvid --photos photos/ --out runs/few_masks > table.md

The encoder is pre-trained here on the training images of the data, without their masks, and on other photos. Each row
takes some percent of the masks and trains both starts with one recipe, as the linear or the fpn head; `probe` rows
measure the frozen patches of both. Every seed draws other masks, the same for both starts, so that their difference is
that of pairs. A run is measured on all validation images with the weights of its last step: nothing is chosen on them.

Every run is a `beit` command with a folder of its own. The script may be stopped or killed at any time: started
again, it keeps what is finished and goes on with what is not. Rows that `--rows` leaves out are shown as far as
they are there.
"""

from __future__ import annotations

import math
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL import Image

from beit.benchmarks.paired_runs import NAMES, STARTS, run_script
from beit.common.encoder import find_encoder
from beit.common.errors import InputError
from beit.common.images.formats import is_image_path
from beit.common.pages.charts import Line, LineChart, line_charts
from beit.common.pages.pictures import PALETTE, save_png, sheet
from beit.common.processes.signals import stop_on_signals
from beit.common.runs.environment import environment
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.files import sha256_file
from beit.common.vit.description import WEIGHTS_FILE
from beit.finetune.worth.runner import Runner, cell, claim, interval, parse_seeds, sets, unless_finished

SCRIPT = "few_masks.py"
HEADS = ("linear", "fpn", "probe")
MEASURES = {"linear": "linear head", "fpn": "fpn head", "probe": "linear probe"}
VIEWED = ("evaluation.short_side=240", "reader.num_workers=0")
TRAINED = ("image.img_size=96", "augment.short_side=240", *VIEWED)
"""Sizes of images and crops, in pixels, of probes and trainings: a crop sees an eighth of a street at 320 x 240."""
CHART_PX = (380, 300)
RESULT_FILE = "few_masks.json"
"""In the folder of a finished run."""
IMG_SIZE, PATCH_SIZE, VIEW_SCALE = 96, 8, "[0.05,0.6]"
"""Of the views the encoder is pre-trained on: pixels, and shares of an image, as the crops of a training have them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One share of the masks and one kind of run."""

    head: str
    """linear, fpn or probe."""
    percent: int
    """Of the training images whose masks are used."""
    steps: int
    """Of the training."""

    @property
    def name(self) -> str:
        """As `--rows` spells it."""
        return f"{self.head}-{self.percent}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What is compared, on what."""

    data: str
    """Folder with the parts train and val."""
    photos: tuple[str, ...]
    """Folders of tars or images that are pre-trained on, too."""
    out: Path
    """Where the runs are."""
    given: Path | None
    """Encoder or run directory of a pre-training that was done before; None to do one."""
    pretrain_recipe: str
    """Of the encoder."""
    pretrain_settings: tuple[str, ...]
    """Changes to it, KEY=VALUE."""
    views: int
    """Of each image."""
    recipe: str
    """Of the segmentation."""
    settings: tuple[str, ...]
    """Changes to it, KEY=VALUE."""
    random_settings: tuple[str, ...]
    """Changes for random weights only."""
    probe_settings: tuple[str, ...]
    """Of the linear probe."""
    val_images: int
    """To measure on by the run itself; its last weights are measured on all."""

    @property
    def encoder(self) -> Path:
        """Encoder, or run directory of the pre-training."""
        return self.given or self.out / "pretrain"

    def run_folder(self, row: Row, start: str, seed: int) -> Path:
        """Return where a run is."""
        return self.out / f"{row.name}-{start}-seed{seed}"

    def options(self, row: Row, start: str, seed: int) -> list[str]:
        """Return the options of the `beit finetune` command of a run."""
        chosen = [f"train.seed={seed}"]
        if row.percent < 100:
            chosen += [f"data.label_fraction={row.percent / 100:g}", f"data.subset_seed={seed}"]
        encoder = str(self.encoder) if start == "pre-trained" else "random"
        if row.head == "probe":
            return ["--encoder", encoder, *sets([*self._shape(start), *VIEWED, *self.probe_settings, *chosen])]
        chosen += [f"head.kind={row.head}", f"train.steps={row.steps}", f"train.eval_interval_steps={row.steps}"]
        chosen += [f"data.num_val_images={self.val_images}"]
        own = [*self._shape(start), *TRAINED, *self.settings, *(self.random_settings if start == "random" else ())]
        return ["--encoder", encoder, "--recipe", self.recipe, *sets([*own, *chosen])]

    def _shape(self, start: str) -> list[str]:
        """Return the settings that give random weights the shape of the encoder, position tables included."""
        if start == "pre-trained":
            return []
        found = read_json(find_encoder(self.encoder) / "config.json")
        shape, scale = found["architecture"], found["normalization"]
        names = ("embed_dim", "depth", "num_heads", "mlp_ratio", "init_values", "use_abs_pos_emb")
        return [
            "model.size=tiny",
            *(f"model.{name}={str(shape[name]).lower()}" for name in names),
            *(f"image.{name}={shape[name]}" for name in ("img_size", "patch_size")),
            *(f"image.{name}={scale[name]}" for name in ("mean", "std")),
        ]


@click.command()
@click.option("--data", required=True, help="Folder with images and masks, in the parts train and val.")
@click.option("--photos", multiple=True, help="Folder with tars of more images to pre-train on; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for runs, table.json and pictures.")
@click.option(
    "--labels",
    default="10:800,30:800,100:800",
    show_default=True,
    metavar="PERCENT:STEPS,...",
    help="Shares of the masks, and for how many steps is trained on them.",
)
@click.option("--rows", default=None, help="What to run, such as linear-10,fpn-10. [default: all]")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds.")
@click.option(
    "--encoder",
    "given",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="One that is there, instead of pre-training.",
)
@click.option("--views", default=24, show_default=True, help="Views per image of the pre-training.")
@click.option("--pretrain-recipe", default="beit_mini_patch8_64", show_default=True, help="Of the encoder.")
@click.option("--pretrain-set", "pretrain_settings", multiple=True, metavar="KEY=VALUE", help="Changes to it.")
@click.option("--recipe", default="segmentation_small", show_default=True, help="Of the segmentation.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Changes to the recipe.")
@click.option("--random-set", "random_settings", multiple=True, metavar="KEY=VALUE", help="Only for random weights.")
@click.option("--probe-set", "probe_settings", multiple=True, metavar="KEY=VALUE", help="Settings of the probe.")
@click.option("--val-images", default=10, show_default=True, help="Measured on by the runs themselves.")
@click.option("--threads", default=1, show_default=True, help="Processor threads of a run.")
def main(labels: str, rows: str | None, seeds: str, threads: int, **values: Any) -> None:
    """Run what is missing; write the table to the terminal as Markdown, to OUT/table.json, a chart and a sheet."""
    comparison = Comparison(**values)
    comparison.out.mkdir(parents=True, exist_ok=True)
    known, numbers = parse_rows(labels), parse_seeds(seeds)
    chosen = choose_rows(known, rows)
    with claim(comparison.out, SCRIPT) as lock, stop_on_signals() as stop:
        runner = Runner(stop=stop, lock=lock, threads=threads)
        if comparison.given is None:
            pretrain(comparison, runner)
        encoder_sha256 = sha256_file(find_encoder(comparison.encoder) / WEIGHTS_FILE)
        for seed in numbers:
            for row in chosen:
                for start in STARTS:
                    ensure(comparison, row, start, seed, encoder_sha256=encoder_sha256, runner=runner)
        draw_predictions(comparison, known, numbers[0], runner)
    found = [summarize(comparison, row, numbers) for row in known]
    settings = {**values, "out": str(comparison.out), "given": str(comparison.encoder), "threads": threads}
    document = {"settings": settings, "encoder_sha256": encoder_sha256, "environment": environment(), "rows": found}
    write_json(comparison.out / "table.json", document)
    if any(None not in row["miou"].values() for row in found):
        save_png(picture(found), comparison.out / "table.png")
    click.echo(markdown(found))


def parse_rows(labels: str) -> list[Row]:
    """Return the rows of `--labels`."""
    rows = []
    for part in labels.split(","):
        percent, _, steps = part.partition(":")
        if not (percent.isdigit() and steps.isdigit() and 1 <= int(percent) <= 100 and int(steps)):
            raise InputError(f"--labels {part!r} must be PERCENT:STEPS, such as 10:600")
        rows += [Row(head=head, percent=int(percent), steps=int(steps)) for head in HEADS]
    return rows


def choose_rows(known: Sequence[Row], names: str | None) -> list[Row]:
    """Return the rows to run."""
    if names is None:
        return list(known)
    by_name = {row.name: row for row in known}
    for name in names.split(","):
        if name not in by_name:
            raise InputError(f"--rows {name!r} must be among {', '.join(by_name)}")
    return [by_name[name] for name in names.split(",")]


def pretrain(comparison: Comparison, runner: Runner) -> None:
    """Gather the images, tokenise them and pre-train on them, unless that is done."""
    settings = [*comparison.pretrain_settings, "reader.num_workers=0"]
    identity = {
        "data": comparison.data,
        "photos": list(comparison.photos),
        "recipe": comparison.pretrain_recipe,
        "settings": settings,
        "views": comparison.views,
    }
    with unless_finished(comparison.encoder / RESULT_FILE, identity) as is_to_do:
        if not is_to_do:
            return
        images, store = comparison.out / "images", comparison.out / "store"
        gather(comparison, images)
        size = ["--img-size", str(IMG_SIZE), "--patch-size", str(PATCH_SIZE), "--materialize"]
        views = ["--views", str(comparison.views), "--set", f"augment.scale={VIEW_SCALE}"]
        runner.beit("tokenize", images, store, *size, *views)
        options = ["--recipe", comparison.pretrain_recipe, *sets(settings)]
        runner.beit("pretrain", store, comparison.encoder, *options)


def gather(comparison: Comparison, folder: Path) -> None:
    """Put the training images and those of the photos' tars into one folder; no mask is among them."""
    if (folder / "done").exists():
        return
    folder.mkdir(exist_ok=True)
    own = Path(comparison.data) / "train" / "images"
    for path in sorted(path for path in own.rglob("*") if is_image_path(path.name)):
        shutil.copyfile(path, folder / path.name)
    for tar in sorted(tar for photos in comparison.photos for tar in Path(photos).glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in (member for member in archive if member.isfile() and is_image_path(member.name)):
                content = archive.extractfile(member)
                assert content is not None
                (folder / f"{tar.stem}-{Path(member.name).name}").write_bytes(content.read())
    (folder / "done").touch()


def ensure(comparison: Comparison, row: Row, start: str, seed: int, *, encoder_sha256: str, runner: Runner) -> None:
    """Do a run, or the rest of it, unless it is finished.

    Raises:
        InputError: the finished one had other settings, or another encoder.
    """
    folder, options = comparison.run_folder(row, start, seed), comparison.options(row, start, seed)
    identity = {"data": comparison.data, "options": options}
    identity |= {"encoder_sha256": encoder_sha256} if start == "pre-trained" else {}
    with unless_finished(folder / RESULT_FILE, identity) as is_to_do:
        if not is_to_do:
            return
        if row.head == "probe":
            runner.beit("finetune", "linear-probe", comparison.data, folder, *options)
        else:
            runner.beit("finetune", "segmentation", comparison.data, folder, *options)
            runner.beit("evaluate", folder / "last", comparison.data, "--out", folder / "evaluation.json")


def finished_runs(comparison: Comparison, row: Row, start: str, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return what the finished runs of one start measured, by seed."""
    name = "segmentation-probe.json" if row.head == "probe" else "evaluation.json"
    found = {}
    for seed in seeds:
        folder = comparison.run_folder(row, start, seed)
        if (folder / RESULT_FILE).exists():
            measured = read_json(folder / name)
            kept = ("miou", "mean_accuracy", "pixel_accuracy", "num_images")
            found[seed] = {key: measured[key] for key in kept} | {
                "seconds": read_json(folder / RESULT_FILE)["seconds"],
                "best_block": measured.get("best_block"),
            }
    return found


def summarize(comparison: Comparison, row: Row, seeds: Sequence[int]) -> dict[str, Any]:
    """Return one line of the table as plain values; unfinished runs are missing in it."""
    runs = {start: finished_runs(comparison, row, start, seeds) for start in STARTS}
    ours, random = (runs[start] for start in STARTS)
    pairs = [ours[seed]["miou"] - random[seed]["miou"] for seed in seeds if seed in ours and seed in random]
    return {
        "percent": row.percent,
        "measure": MEASURES[row.head],
        "steps": None if row.head == "probe" else row.steps,
        "wanted_seeds": len(seeds),
        "runs": {start: [{"seed": seed, **run} for seed, run in found.items()] for start, found in runs.items()},
        "miou": {start: interval([run["miou"] for run in found.values()]) for start, found in runs.items()},
        "difference": interval(pairs),
        "wins": sum(pair > 0 for pair in pairs),
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table for reading."""
    lines = [
        "| masks | measured | pre-trained, mIoU | random weights, mIoU | difference in points | seeds | wins |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        pairs = row["difference"]["num_values"] if row["difference"] else 0
        steps = "" if row["steps"] is None else f", {row['steps']} steps"
        cells = [
            f"{row['percent']} %",
            row["measure"] + steps,
            *(cell(row["miou"][start], " %") for start in STARTS),
            cell(row["difference"], "", signed=True),
            str(pairs) if pairs == row["wanted_seeds"] else f"{pairs} of {row['wanted_seeds']}",
            f"{row['wins']} of {pairs}" if pairs else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "Mean over the seeds and its 95 % interval (Student's t); every seed draws other masks, the same for both "
        "starts, and the difference is that of these pairs. mIoU over all validation images and the classes that occur."
    )
    return "\n".join([*lines, "", note])


def picture(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw the means of the table over the share of masks, one chart per measure; unfinished rows are left out."""
    means = [mean["mean"] for row in rows for mean in row["miou"].values() if mean is not None]
    y_range = (max(0.0, min(means) - 0.03), max(means) + 0.03)  # one for all, so that the charts compare
    charts = []
    for measure in MEASURES.values():
        finished = [row for row in rows if row["measure"] == measure and None not in row["miou"].values()]
        if not finished:
            continue
        lines = [
            Line(
                name=NAMES[start],
                points=[(math.log10(row["percent"]), row["miou"][start]["mean"]) for row in finished],
                colour=colour,
            )
            for start, colour in zip(STARTS, PALETTE, strict=False)
        ]
        ticks = {math.log10(row["percent"]): f"{row['percent']} %" for row in finished}
        named = {"title": f"{measure}, mIoU", "x_name": "of the masks", "x_ticks": ticks}
        charts.append(LineChart(lines=lines, y_range=y_range, percent=True, **named))
    drawn = line_charts(charts, chart_px=CHART_PX, columns=len(charts), key=True)
    return sheet([drawn], heading="What pre-training is worth to segmentation")


def draw_predictions(comparison: Comparison, known: Sequence[Row], seed: int, runner: Runner) -> None:
    """Draw what the two starts of the trainings with fewest masks say of the same validation images."""
    fewest = min(row.percent for row in known)
    for row in (row for row in known if row.percent == fewest and row.head != "probe"):
        for start in STARTS:
            folder = comparison.run_folder(row, start, seed)
            file = comparison.out / f"{row.name}-{start}.png"
            if (folder / RESULT_FILE).exists() and not file.exists():
                runner.beit("show", "predictions", folder / "last", comparison.data, "--out", file, "--rows", "4")


if __name__ == "__main__":
    run_script(main)
