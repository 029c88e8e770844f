"""The commands `beit finetune`, `beit evaluate`, `beit predict` and `beit compare`.

What they do is in `train.py`, `finetune/probe/run.py`, `finetune/evaluation/evaluate.py`,
`finetune/prediction/predict.py` and `finetune/compare/compare.py`. Weights in and out are the business of
`finetune/weights/commands.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from beit.cli_options import (
    LongOptions,
    launch_options,
    long_command_options,
    picture_option,
    say_written,
    source_options,
    start_ranks,
)
from beit.common.runs.layout import PROBES

RECIPES = Path(__file__).parent / "recipes"
SEGMENTATION_RECIPES = Path(__file__).parent / "segmentation" / "recipes"
TASKS = ("classification", "segmentation", *PROBES)
_ALSO_CALLED = {
    "classify": "classification",
    "train": "classification",
    "segment": "segmentation",
    "seg": "segmentation",
    "semantic": "segmentation",
    "semantic_segmentation": "segmentation",
    "semseg": "segmentation",
    "masks": "segmentation",
    "linear": "linear-probe",
    "probe": "linear-probe",
    "k_nn": "knn",
}
"""What tasks are called elsewhere."""
_OF_TRAINING = (
    *("train.", "optimizer.", "augment.", "mix.", "checkpoint.", "deepspeed.", "speed.", "profile.", "run."),
    *("layer_decay", "freeze_blocks", "adapt", "class_weights", "classifier.", "head."),
)
_UNUSED = {
    "classification": ("probe.",),
    "segmentation": ("probe.",),
    "linear-probe": (*_OF_TRAINING, "probe.ks", "probe.temperature", "probe.knn_pooling"),
    "knn": (*_OF_TRAINING, "probe.l2"),
}
"""Settings that a task takes, since a run has those of all, and never looks at."""


@click.command("finetune")
@click.argument("task", metavar="TASK")
@click.argument("data")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option("--encoder", metavar="DIR|random", help="What to start from: a pre-trained encoder, or random weights.")
@click.option("--val", metavar="DATA", help="Labelled images to measure on; the best model is kept.")
@click.option("--check", is_flag=True, help="Segmentation: say what is in the masks of DATA; nothing is trained.")
@long_command_options
def finetune_command(
    task: str, data: str, run: Path | None, encoder: str | None, val: str | None, check: bool, **long: Any
) -> None:
    """Fine-tune an encoder on the labelled images of DATA, or measure it as it is.

    \b
    TASK:
      classification  train all of it; the best model is RUN/model
      segmentation    a class for every pixel, from images with masks; the best model is RUN/model
      linear-probe    linear classifiers on the frozen features of every block; the best one is RUN/model; of images
                      with masks, on every block's patches: says which block to use
      knn             weighted nearest neighbours on the frozen features of every block

    DATA is a folder with one sub-folder per class, WebDataset tars with .cls members, Parquet files with a label
    column, or a CSV table with the columns path and label. For segmentation it is a folder with images and masks
    (images/ and annotations/, VOC, ADE20K, Cityscapes, CamVid), the JSON of COCO beside its images, tars with .seg.png
    members, or Parquet files with a column of masks. Run the same command again to go on after an interruption.

    \b
    Examples:
      beit finetune classification flowers/train runs/flowers --encoder runs/pretrain/encoder --val flowers/val
      beit finetune linear-probe flowers/train runs/probe --encoder runs/pretrain/encoder --val flowers/val
      beit finetune segmentation streets --check
      beit finetune segmentation streets runs/streets --encoder runs/pretrain/encoder --recipe segmentation_small
    """
    from beit.common.errors import InputError, did_you_mean, require
    from beit.common.runs.idle import warn_of_unused

    if task not in TASKS:
        hint = did_you_mean(task, TASKS, _ALSO_CALLED)
        raise InputError(f"TASK ({task}) must be {', '.join(TASKS[:-1])} or {TASKS[-1]}{hint}")
    require(not check or task == "segmentation", f"--check looks at masks, which {task} has none of; leave it out")
    if run is None and not check:
        raise click.UsageError("Missing argument 'RUN'.", click.get_current_context())
    options, given = LongOptions(**long), {"encoder": encoder, "data__val": val}
    warn_of_unused(options.overrides, _UNUSED[task], task)
    if task == "segmentation":
        _segmentation(options, given, data=data, run=run, check=check)
        return
    from beit.finetune.config import FinetuneConfig

    assert run is not None
    if task in PROBES:
        _require_alone(task, options)
    if task == "linear-probe" and _probes_masks(options, given, data=data, run=run):
        return
    config = options.load(FinetuneConfig, RECIPES, **given)
    if task in PROBES:
        from beit.common.runs.layout import FEATURES, MODEL, REPORT
        from beit.finetune.probe.run import run_probe

        click.echo(run_probe(task, config, data=data, run_dir=run, resume=options.resume))
        say_written(run / f"{task}.json", run / MODEL if task == "linear-probe" else None, run / FEATURES)
        say_written(run / REPORT if (run / REPORT).is_file() else None)
        return
    options.start(num_workers=config.reader.num_workers)
    from beit.finetune.train import run as run_finetuning

    run_finetuning(config, data=data, run_dir=run, resume=options.resume)


def _segmentation(
    options: LongOptions, given: dict[str, str | None], *, data: str, run: Path | None, check: bool
) -> None:
    """Train on images with masks, or say what they hold."""
    from beit.common.errors import InputError
    from beit.finetune.segmentation.config import SegmentationConfig

    config = options.load(SegmentationConfig, SEGMENTATION_RECIPES, **given)
    if check:
        from beit.finetune.masks.check import survey

        found = survey(data, config.data, reading=config.source)
        click.echo(found.as_table())
        if found.problems:
            first, *more = found.problems
            raise InputError(f"{first} (and {len(more)} more, listed above)" if more else first)
        return
    assert run is not None
    options.start(num_workers=config.reader.num_workers)
    from beit.finetune.train_segmentation import run as run_segmentation

    run_segmentation(config, data=data, run_dir=run, resume=options.resume)


def _probes_masks(options: LongOptions, given: dict[str, str | None], *, data: str, run: Path) -> bool:
    """Measure patches if DATA are images with masks; else return False."""
    from beit.finetune.masks.opening import holds_masks

    if not holds_masks(data):
        return False
    from beit.common.runs.layout import MASK_PROBE, REPORT
    from beit.finetune.probe.segmentation import run_segmentation_probe
    from beit.finetune.segmentation.config import SegmentationConfig

    config = options.load(SegmentationConfig, SEGMENTATION_RECIPES, **given)
    click.echo(run_segmentation_probe(config, data=data, run_dir=run, resume=options.resume))
    say_written(run / f"{MASK_PROBE}.json", run / REPORT if (run / REPORT).is_file() else None)
    return True


def _require_alone(task: str, options: LongOptions) -> None:
    """Refuse several ranks for a task that one process does."""
    from beit.common.errors import InputError, require
    from beit.common.processes.launcher_env import find_launcher, under_launcher

    alone = f"{task} runs in one process, on a GPU if there is one"
    require(not (options.gpus or options.hostfile), f"{alone}; leave --gpus and --hostfile out")
    launcher = find_launcher() if under_launcher() else None
    if launcher is not None:
        raise InputError(
            f"{alone}, but {launcher.variables} say that this is one of several ranks; start it without a "
            f"launcher, or unset {launcher.rank} if this is a shell, not a rank"
        )


@click.command("evaluate")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), metavar="F.json", help="Write all numbers here, too.")
@click.option("--html", type=click.Path(path_type=Path), metavar="F.html", help="Write a page with pictures.")
@click.option(
    "--class-names", metavar="FILE", help="What class numbers mean: a JSON list or object, or one name per line."
)
@click.option("--label-column", metavar="NAME", help="Column of the classes in Parquet or CSV; of masks in Parquet.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Of a segmenter: how images are segmented and masks are read, as in its training.",
)
@source_options
@launch_options
def evaluate_command(
    model: Path,
    data: str,
    out: Path | None,
    html: Path | None,
    class_names: str | None,
    label_column: str | None,
    overrides: tuple[str, ...],
    reading: Any,
    gpus: int | None,
    hostfile: str | None,
) -> None:
    """Measure the classifier or segmenter MODEL on the labelled images of DATA, every image once.

    MODEL is the folder `model` of a fine-tuning run. Classes are matched by name; the name of a number is its text,
    unless a file of names says otherwise.

    Of a classifier are printed: top-1 and top-5 accuracy (with several labels per image, mean average precision),
    macro-F1, calibration error, loss, and the numbers of every class or of the worst. The page adds the confusion
    matrix and the most confident mistakes.

    Of a segmenter, for which DATA are images with masks: mean IoU with its interval, accuracies, and the numbers of
    every class or of the worst. The page adds what is taken for what, and images beside truth, prediction and errors.

    \b
    Example:
      beit evaluate runs/flowers/model flowers/test --out test.json --html test.html
      beit evaluate runs/streets/model streets/val --html val.html --set evaluation.flip=true
    """
    start_ranks(gpus, hostfile)
    from beit.common.processes.launcher_env import launched_rank
    from beit.common.vit.description import read_encoder_config

    report: Any
    if read_encoder_config(model).task == "segmentation":
        from beit.finetune.evaluation.segmentation import evaluate_segmenter

        options: dict[str, Any] = {"mask_column": label_column, "overrides": overrides}
        report = evaluate_segmenter(model, data, out=out, html=html, class_names=class_names, source=reading, **options)
    else:
        from beit.common.errors import require
        from beit.finetune.evaluation.evaluate import evaluate_model

        require(not overrides, f"--set {' '.join(overrides[:1])} is for segmenters, and {model} is none; leave it out")
        report = evaluate_model(
            model, data, out=out, html=html, class_names=class_names, label_column=label_column, source=reading
        )
    if not launched_rank():  # all ranks would say the same
        click.echo(report.as_table())
        say_written(out, html)


@click.command("predict")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("source")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="F.csv|F.parquet|F.jsonl|DIR",
    help="Labels: write here instead of to the terminal; the ending says the format. Masks: the folder for them.",
)
@click.option("--features", is_flag=True, help="Add the features of every image; MODEL may then be an encoder.")
@click.option("--overlays", is_flag=True, help="Beside masks: the classes laid over each image.")
@click.option("--probabilities", is_flag=True, help="Beside masks: the probabilities of all classes, as npz.")
@click.option("--values", metavar="FILE", help="In masks: the values this table gives the classes, not ids.")
@click.option("--tile", type=int, metavar="PX", help="Cut images into squares of this side, and put together again.")
@click.option("--overlap", type=int, default=0, metavar="PX", help="Pixels that neighbouring tiles share.")
@source_options
def predict_command(
    model: Path,
    source: str,
    out: Path | None,
    features: bool,
    overlays: bool,
    probabilities: bool,
    values: str | None,
    tile: int | None,
    overlap: int,
    reading: Any,
) -> None:
    """Label the images of SOURCE with the classifier MODEL, or each of their pixels with the segmenter MODEL.

    SOURCE is a folder, tars, Parquet files, a list, or a single image. Images that cannot be read are reported and left
    out.

    Labels: one row per image: key, label, probability, then the next most likely classes (label_2, probability_2, ...;
    lists in Parquet and JSON lines).

    Masks: DIR/masks/PATH.png for each image, a palette PNG of class ids at the image's own size, and DIR/legend.json.
    Run the same command again to go on after an interruption.

    With --tile, images of any size: a row for each tile and the mean of them, or one mask (docs/images.md).

    \b
    Examples:
      beit predict runs/flowers/model new-photos/ --out labels.csv
      beit predict runs/streets/model new-photos/ --out masks/ --overlays
    """
    from beit.common.vit.description import read_encoder_config
    from beit.finetune.prediction.predict import predict_to_file, refuse_mask_options
    from beit.finetune.prediction.tiles import predict_tiles_to_file, tiling_of

    tiling = tiling_of(model, tile, overlap)
    if read_encoder_config(model).task == "segmentation":
        from beit.finetune.prediction.masks import check_mask_options, predict_masks

        folder = check_mask_options(model, out, features=features, probabilities=probabilities, tiling=tiling)
        chosen = {"overlays": overlays, "probabilities": probabilities}
        click.echo(predict_masks(model, source, out=folder, **chosen, values=values, tiling=tiling, settings=reading))
        names = ["masks", *(name for name, wanted in chosen.items() if wanted), "legend.json"]
        say_written(*(folder / name for name in names))
        return
    refuse_mask_options(model, overlays=overlays, probabilities=probabilities, values=values is not None)
    told: dict[str, Any] = {"out": out, "stdout": sys.stdout, "features": features, "settings": reading}
    if tiling is not None:
        predict_tiles_to_file(model, source, tiling, **told)
    else:
        predict_to_file(model, source, **told)
    say_written(out)


@click.command("compare")
@click.argument("runs", metavar="RUN RUN ...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--metric", metavar="NAME", help="Compare by this one, such as top5, loss or macro_f1.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="F.json|F.csv|F.md|F.html",
    help="Write the comparison here, too; the ending says the format.",
)
def compare_command(runs: tuple[Path, ...], metric: str | None, out: Path | None) -> None:
    """Put runs into one table: those that differ only by their seeds are one row, with a 95 % interval.

    RUN is a directory of beit finetune (any task) or of beit pretrain. Every row shows the
    work it took, and the settings in which it differs from the others. RUN/evaluation.json, if beit evaluate has
    written it, counts instead of what the run measured on its validation images.

    \b
    Example:
      beit compare runs/ours-seed0 runs/ours-seed1 runs/dino-seed0 runs/dino-seed1 --out comparison.html
    """
    from beit.finetune.compare.compare import compare_runs
    from beit.finetune.compare.report import as_text, check_comparison_output, write_comparison

    check_comparison_output(out, runs)
    comparison = compare_runs(runs, metric=metric)
    click.echo(as_text(comparison))
    if out is not None:
        write_comparison(comparison, out)
        say_written(out)


@click.command("attention")
@click.argument("encoder", type=click.Path(path_type=Path), metavar="ENCODER|RUN")
@click.argument("images")
@picture_option
@click.option("--rows", type=click.IntRange(1, 32), default=4, show_default=True, help="Images to draw.")
@click.option(
    "--block", type=click.IntRange(0), metavar="N", help="From 0; by default the one a probe liked, or the last."
)
@click.option(
    "--query",
    "queries",
    multiple=True,
    metavar="ROW,COLUMN|cls",
    help="Whose attention, patches counted from 0; may be repeated. By default the middle.",
)
@click.option("--mean", is_flag=True, help="Only the mean of the heads, by default from CLS and three patches.")
@click.option("--json", "listing", type=click.Path(path_type=Path), metavar="F.json", help="Also write the distances.")
def show_attention_command(
    encoder: Path,
    images: str,
    out: Path,
    rows: int,
    block: int | None,
    queries: tuple[str, ...],
    mean: bool,
    listing: Path | None,
) -> None:
    """Draw where the heads of an encoder look in IMAGES, and how far the heads of all its blocks do.

    \b
    Examples:
      beit show attention runs/pretrain/encoder photos/ --out attention.png
      beit show attention runs/pretrain photos/ --block 0 --query 2,3 --query cls --out attention.png
    """
    from beit.common.pages.pictures import save_png
    from beit.common.runs.outputs import PICTURE, check_outputs
    from beit.common.storage.documents import json_bytes
    from beit.common.storage.files import write_output
    from beit.finetune.attention import attention_sheet

    check_outputs({"--out": out, "--json": listing}, inputs=[encoder, images], makes_folder=True, endings=PICTURE)
    picture = attention_sheet(encoder, images, num_images=rows, block=block, queries=queries, is_mean=mean)
    save_png(picture.image, out)
    if listing is not None:
        numbers = {"block": picture.block, "mean_distance_px": picture.distances.round(4).tolist()}
        write_output(listing, json_bytes(numbers))
    say_written(out, listing)


@click.command("neighbours")
@click.argument("encoder", type=click.Path(path_type=Path), metavar="ENCODER|RUN")
@click.argument("images")
@picture_option
@click.option("--rows", type=click.IntRange(1, 32), default=6, show_default=True, help="Images to draw neighbours of.")
@click.option(
    "--images", "number", type=click.IntRange(2), default=1000, show_default=True, help="At most so many are compared."
)
@click.option("--json", "listing", type=click.Path(path_type=Path), metavar="F.json", help="Also write the names.")
def show_neighbours_command(
    encoder: Path, images: str, out: Path, rows: int, number: int, listing: Path | None
) -> None:
    """Draw which of IMAGES an encoder finds alike: some of them, each with those nearest to it; no label is needed.

    \b
    Example:
      beit show neighbours runs/pretrain/encoder photos/ --out neighbours.png
    """
    from beit.common.pages.pictures import save_png
    from beit.common.runs.outputs import PICTURE, check_outputs
    from beit.common.storage.documents import json_bytes
    from beit.common.storage.files import write_output
    from beit.finetune.neighbours import neighbour_sheet

    check_outputs({"--out": out, "--json": listing}, inputs=[encoder, images], makes_folder=True, endings=PICTURE)
    picture = neighbour_sheet(encoder, images, num_rows=rows, num_images=number)
    save_png(picture.image, out)
    if listing is not None:
        write_output(listing, json_bytes(dict(picture.neighbours)))
    click.echo(f"wrote {out}" + (f" and {listing}" if listing else ""))


@click.command("predictions")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images")
@picture_option
@click.option("--rows", type=click.IntRange(1, 32), default=4, show_default=True, help="Rows of images to draw.")
def show_predictions_command(model: Path, images: str, out: Path, rows: int) -> None:
    """Draw what a fine-tuned MODEL says of IMAGES.

    Of a segmenter: the classes over each image and, where IMAGES have masks, the truth and what is wrong beside it. Of
    a classifier: the likeliest labels below each image.

    \b
    Example:
      beit show predictions runs/streets/model streets/val --out predictions.png
    """
    from beit.common.pages.pictures import save_png
    from beit.common.runs.outputs import PICTURE, check_outputs
    from beit.finetune.prediction.pictures import prediction_sheet

    check_outputs({"--out": out}, inputs=[model, images], makes_folder=True, endings=PICTURE)
    save_png(prediction_sheet(model, images, num_rows=rows), out)
    say_written(out)
