"""The commands `beit tokenize`, `beit verify` and `beit tokenizer`.

What they do is in `run.py`, `verify.py` and `tokenizer_train.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from beit.cli_options import long_command_options

RECIPES = Path(__file__).parent / "recipes"


def _dedicated(**options: Any) -> list[str]:
    """Turn the dedicated options that were given into the overrides they stand for."""
    return [f"{name}={value}" for name, value in options.items() if value is not None]


@click.command("tokenize")
@click.argument("source")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--tokenizer", metavar="NAME|PATH", help="dall-e, mini, or what `beit tokenizer train` wrote.")
@click.option("--views", type=click.IntRange(min=0), metavar="K", help="Crop-augmented views per image.  [default: 16]")
@click.option("--img-size", type=int, metavar="PX", help="Side of the view the ViT will see.  [default: 224]")
@click.option("--patch-size", type=int, metavar="PX", help="Side of one ViT patch.  [default: 16]")
@click.option("--seed", type=int, metavar="N", help="Seed of crops, flips and colours.  [default: 0]")
@click.option("--short-side", type=int, metavar="PX", help="Shrink images to this short side when packing them.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Threads that decode and crop.")
@long_command_options
def tokenize_command(
    source: str,
    store: Path,
    recipe: str | None,
    overrides: tuple[str, ...],
    gpus: int | None,
    hostfile: str | None,
    resume: str,
    **dedicated: Any,
) -> None:
    """Cut K views from every image of SOURCE, turn them into visual tokens and write them to STORE.

    SOURCE is a folder of images (any depth), WebDataset tars (path, glob or brace range), Parquet files with an image
    column, or a text list. Run the same command again to go on after an interruption: finished shards are kept.

    \b
    Example:
      beit tokenize photos/ store/ --tokenizer mini --views 8
    """
    from beit.common.config import load_config
    from beit.common.errors import require
    from beit.tokenize.config import TokenizeConfig
    from beit.tokenize.run import tokenize_with_ranks

    require(
        hostfile is None,
        f"--hostfile ({hostfile}) is not needed to tokenize: ranks do not talk to each other, so start this command on "
        "every machine with RANK and WORLD_SIZE set, by any launcher",
    )

    settings = [*_dedicated(**dedicated), *overrides]
    config = load_config(TokenizeConfig, recipe=recipe, overrides=settings, recipe_dir=RECIPES)
    summary = tokenize_with_ranks(config, source, store, ranks=gpus, resume=resume)
    click.echo(summary.as_table())


@click.command("verify")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--audit", type=click.IntRange(min=0), default=0, metavar="N", help="Re-tokenise N random views.")
def verify_command(store: Path, audit: int) -> None:
    """Check manifests, sizes, hashes, counts and the index of STORE; exit 1 when anything is wrong.

    \b
    Example:
      beit verify store/
    """
    from beit.tokenize.verify import verify_store

    report = verify_store(store, audit=audit)
    click.echo(report.as_text())
    if report.problems:
        raise click.exceptions.Exit(1)


@click.group("tokenizer")
def tokenizer_group() -> None:
    """Train an image tokenizer (a discrete VAE) of your own."""


@tokenizer_group.command("train")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@long_command_options
def tokenizer_train_command(
    source: str,
    out: Path,
    recipe: str | None,
    overrides: tuple[str, ...],
    gpus: int | None,
    hostfile: str | None,
    resume: str,
) -> None:
    """Train a dVAE on the images of SOURCE and write it to OUT, which `beit tokenize --tokenizer OUT` accepts.

    SOURCE is what `beit tokenize` takes, or `synthetic:N`, N images that beit generates itself. OUT/reconstruction.png
    shows how far it has come. Run the same command again to go on after an interruption.

    \b
    Example:
      beit tokenizer train photos/ tokenizers/mine --recipe tokenizer_mini
    """
    from beit.common.config import load_config
    from beit.common.launch import launch_ranks, under_launcher
    from beit.tokenize.tokenizer_config import TokenizerTrainConfig

    config = load_config(TokenizerTrainConfig, recipe=recipe, overrides=overrides, recipe_dir=RECIPES)
    if (gpus or hostfile) and not under_launcher():
        raise click.exceptions.Exit(launch_ranks(gpus=gpus, hostfile=hostfile))
    from beit.tokenize.tokenizer_train import train_tokenizer

    train_tokenizer(config, source, out, resume=resume)
