"""The command `beit pretrain`; what it does is in `train.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from beit.cli_options import LongOptions, long_command_options, picture_option, say_written

RECIPES = Path(__file__).parent / "recipes"


@click.command("pretrain")
@click.argument("store")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--init", metavar="ENCODER", help="Encoder to continue, of a run or made by beit import; else random.")
@click.option("--check", is_flag=True, help="Check settings, store, encoder and RUN; nothing is trained.")
@long_command_options
def pretrain_command(store: str, run: Path, init: str | None, check: bool, **long: Any) -> None:
    """Pre-train a ViT to predict the visual tokens of masked patches, from the token store STORE into RUN.

    STORE is a folder or a URL (https://, s3://); the shards of a remote store are kept on this machine's disk as they
    are needed (reader.cache_dir, reader.cache_bytes).

    With --init the training goes on from an encoder: of a run, fine-tuned, or public weights after beit import. Its
    shape, positions and pixels stay; what is new is named.

    With --gpus or --hostfile the ranks are started through DeepSpeed's launcher; under a launcher nothing is launched
    again. Run the same command again to go on after an interruption.

    \b
    Examples:
      beit pretrain store/ runs/pretrain --recipe beit_mini_patch8_64
      beit pretrain store/ runs/continued --init encoders/dino --recipe continue_base_patch16_224
    """
    from beit.pretrain.config import PretrainConfig

    options = LongOptions(**long)
    config = options.load(PretrainConfig, RECIPES, init=init)
    options.refuse_code(config.tokenizer.online, "tokenizer.online", "--set tokenizer.online=")
    if check:
        from beit.pretrain.train import check as check_pretraining

        click.echo(check_pretraining(config, store=store, run_dir=run, resume=options.resume))
        return
    options.start(num_workers=config.reader.num_workers)
    from beit.pretrain.train import run as run_pretraining

    run_pretraining(config, store=store, run_dir=run, resume=options.resume)


@click.command("masks")
@click.argument("target", type=str, metavar="RUN|STORE")
@picture_option
@click.option("--rows", type=click.IntRange(1, 32), default=4, show_default=True, help="Images to draw.")
@click.option("--epochs", type=click.IntRange(1, 12), default=5, show_default=True, help="Epochs to draw each in.")
@click.option("--store", metavar="STORE", help="The token store of RUN, if it has moved.")
@click.option("--recipe", metavar="NAME|FILE", help="Settings for a STORE, as for beit pretrain.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; may be repeated.")
def show_masks_command(
    target: str, out: Path, rows: int, epochs: int, store: str | None, recipe: str | None, overrides: tuple[str, ...]
) -> None:
    """Draw what a run hides: training images under the masks of their first epochs, and statistics of many masks.

    For a STORE the masks are those that a run with these settings would draw.

    \b
    Examples:
      beit show masks runs/pretrain --out masks.png
      beit show masks store/ --set mask.mode=random --out random.png
    """
    from beit.common.config import load_config
    from beit.common.errors import require
    from beit.common.pages.pictures import save_png
    from beit.common.runs.layout import CONFIG
    from beit.common.runs.outputs import PICTURE, check_outputs
    from beit.common.store import open_store
    from beit.pretrain.config import PretrainConfig
    from beit.pretrain.pictures.masks import masks_sheet
    from beit.pretrain.stored_run import open_stored_run

    check_outputs({"--out": out}, inputs=[target], makes_folder=True, endings=PICTURE)
    if (Path(target) / CONFIG).is_file():
        require(recipe is None and not overrides, "a run has its own settings; --recipe and --set are for a STORE")
        run = open_stored_run(Path(target), store)
        opened, config = run.store, run.config
    else:
        require(store is None, "--store names the store of a RUN, and this is not a run (no config.toml)")
        config = load_config(PretrainConfig, recipe=recipe, overrides=overrides, recipe_dir=RECIPES)
        opened = open_store(target)
    save_png(masks_sheet(opened, config, num_images=rows, num_epochs=epochs), out)
    say_written(out)


@click.command("batch")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--step", type=click.IntRange(0), required=True, metavar="N", help="Counted from 0, as in RUN/nonfinite.jsonl."
)
@picture_option
@click.option(
    "--json", "listing", type=click.Path(path_type=Path), metavar="F.json", help="Also list all samples here."
)
@click.option("--images", type=click.IntRange(1, 256), default=24, show_default=True, help="Samples to draw.")
@click.option("--store", metavar="STORE", help="The token store, if it has moved.")
def show_batch_command(run: Path, step: int, out: Path, listing: Path | None, images: int, store: str | None) -> None:
    """Rebuild the batch of any step of RUN, over all ranks: keys, views, masks; nothing but its store is needed.

    Steps whose loss was not finite are listed in RUN/nonfinite.jsonl.

    \b
    Example:
      beit show batch runs/pretrain --step 1200 --out batch.png --json batch.json
    """
    from beit.common.pages.pictures import save_png
    from beit.common.runs.outputs import PICTURE, check_outputs
    from beit.common.storage.documents import json_bytes
    from beit.common.storage.files import write_output
    from beit.pretrain.pictures.batch import batch_sheet, rebuild_batch
    from beit.pretrain.stored_run import open_stored_run

    check_outputs({"--out": out, "--json": listing}, inputs=[run], makes_folder=True, endings=PICTURE)
    batch = rebuild_batch(open_stored_run(run, store), step, num_pictures=images)
    save_png(batch_sheet(batch), out)
    if listing is not None:
        write_output(listing, json_bytes(batch.listing))
    say_written(out, listing)


@click.command("reconstruction")
@click.argument("run", type=click.Path(path_type=Path))
@picture_option
@click.option("--rows", type=click.IntRange(1, 64), default=8, show_default=True, help="Images to draw.")
@click.option("--store", metavar="STORE", help="The token store, if it has moved.")
@click.option("--tokenizer", metavar="NAME|PATH", help="What decodes the tokens, if the store's has moved or is code.")
def show_reconstruction_command(run: Path, out: Path, rows: int, store: str | None, tokenizer: str | None) -> None:
    """Draw held-out images as the model of RUN completes them: image, mask, predicted and original tokens, decoded.

    \b
    Example:
      beit show reconstruction runs/pretrain --out reconstruction.png
    """
    from beit.common.pages.pictures import save_png
    from beit.common.runs.outputs import PICTURE, check_outputs
    from beit.pretrain.pictures.reconstruction import reconstruction_sheet

    check_outputs({"--out": out}, inputs=[run], makes_folder=True, endings=PICTURE)
    save_png(reconstruction_sheet(run, store=store, tokenizer=tokenizer, num_images=rows), out)
    say_written(out)


@click.command("learning")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@picture_option
def show_learning_command(runs: tuple[Path, ...], out: Path) -> None:
    """Draw how RUNs learned: what their evaluations measured, run beside run, with the lines they must beat.

    Any training will do, of a tokenizer, an encoder or a classifier, also one that is still at work.

    \b
    Examples:
      beit show learning runs/pretrain --out learning.png
      beit show learning runs/batch-32 runs/batch-256 --out compared.png
    """
    from beit.common.pages.pictures import save_png
    from beit.common.runs.learning_curves import learning_sheet
    from beit.common.runs.outputs import PICTURE, check_outputs

    check_outputs({"--out": out}, inputs=runs, makes_folder=True, endings=PICTURE)
    save_png(learning_sheet(runs), out)
    say_written(out)
