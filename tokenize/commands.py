"""The commands `beit sources`, `beit tokenize`, `beit verify` and `beit tokenizer`.

What they do is in `tokenize/survey/`, `run.py`, `tokenize/checking/verify.py`, the rooms that `tokenize/kinds.py`
lists, `tokenize/tokenizer_training/convert.py` and `tokenize/fitness/run.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beit.cli_options import Command, LongOptions, long_command_options, picture_option, say_written, source_options
from beit.tokenize.kinds import DEFAULT_KIND, DEFAULT_WITH_TEACHER, KINDS, check_place, check_recipe, choose_kind

if TYPE_CHECKING:
    from beit.tokenize.survey.document import Survey

RECIPES = Path(__file__).parent / "recipes"
"""Of `beit tokenizer train`."""


_JSON_OPTION = click.option(
    "--json",
    "listing",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="F.json",
    help="Also write all numbers here; - writes them to the terminal instead of the table.",
)


@click.command("sources")
@click.argument("source")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    metavar="N",
    help="Read the headers of so many images, spread evenly; 0 for all.  [default: 10000]",
)
@click.option("--duplicates", is_flag=True, help="Also decode these images, to find such that look alike.")
@_JSON_OPTION
@click.option("--out", type=click.Path(path_type=Path), metavar="F.png", help="Draw examples of what was found.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of beit tokenize; may be given several times.",
)
def sources_command(
    source: str,
    limit: int | None,
    duplicates: bool,
    listing: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Say what SOURCE holds, before anything is made of it: formats, sizes, labels, what would be left out and why.

    SOURCE is what beit tokenize takes. Headers are read, no pixels; of more than 10000 images those of a spread sample,
    and ~ marks what was estimated. Nothing is written, so it may be stopped at any time. Exits with 1 if tokenising
    would refuse.

    \b
    Examples:
      beit sources photos/
      beit sources photos/ --duplicates --out photos.png
    """
    from beit.common.runs.outputs import PICTURE, check_outputs
    from beit.tokenize.forecast import load
    from beit.tokenize.survey.survey import LIMIT, survey

    is_table = str(listing) != "-"
    check_outputs(
        {"--json": listing if is_table else None, "--out": out}, inputs=[source], makes_folder=True, endings=PICTURE
    )
    config = load(overrides=overrides)
    found, looks = survey(
        source,
        config.source,
        limit=LIMIT if limit is None else limit,
        looks_alike=duplicates,
        budget=0.0 if config.strict else config.bad_sample_budget,
    )
    _say_survey(found, (), listing)
    if out is not None:
        from beit.common.pages.pictures import save_png
        from beit.tokenize.survey.picture import survey_sheet

        save_png(survey_sheet(found, looks, config.source), out)
        say_written(out)
    if found.refusals:
        raise click.exceptions.Exit(1)


def _say_survey(found: Survey, more: Sequence[tuple[str, Sequence[tuple[str, str]]]], listing: Path | None) -> None:
    from beit.common.storage.documents import json_bytes
    from beit.common.storage.files import write_output
    from beit.tokenize.survey.text import survey_text

    document = json_bytes(found.to_json())
    is_table = str(listing) != "-"
    click.echo(survey_text(found, more) if is_table else document.decode().rstrip())
    if listing is not None and is_table:
        write_output(listing, document)
        say_written(listing)


@click.command("tokenize")
@click.argument("source")
@click.argument("store")
@click.option(
    "--tokenizer",
    metavar="NAME|PATH",
    help="mini (comes with beit), dall-e (downloaded on first use), what `beit tokenizer` wrote, the name of an "
    "installed one, or module:Class, which runs that code.  [default: mini]",
)
@click.option("--views", type=click.IntRange(min=0), metavar="K", help="Crop-augmented views per image.  [default: 16]")
@click.option("--img-size", type=int, metavar="PX", help="Side of the view the ViT will see.  [default: 224]")
@click.option("--patch-size", type=int, metavar="PX", help="Side of one ViT patch.  [default: 16]")
@click.option("--seed", type=int, metavar="N", help="Seed of crops, flips and colours.  [default: 0]")
@click.option("--short-side", type=int, metavar="PX", help="Shrink images to this short side when packing them.")
@click.option("--tile", type=int, metavar="PX", help="Cut larger images into squares of this side, each a sample.")
@click.option("--overlap", type=int, metavar="PX", help="Pixels that neighbouring tiles share.  [default: 0]")
@click.option(
    "--materialize",
    is_flag=True,
    flag_value="true",
    default=None,
    help="Store the K crops instead of the images: training then only decodes them.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Threads, above four processes, that decode and crop."
)
@click.option("--dry-run", is_flag=True, help="Say what SOURCE holds and what tokenising takes, and write nothing.")
@long_command_options
def tokenize_command(source: str, store: str, tokenizer: str | None, dry_run: bool, **dedicated: Any) -> None:
    """Cut K views from every image of SOURCE, turn them into visual tokens and write them to STORE.

    SOURCE is a folder of images (any depth), WebDataset tars (path, glob or brace range), Parquet files with an image
    column, or a text list; local or remote (docs/sources.md). STORE is a folder or the URL of an object store. Run the
    same command again to go on after an interruption: finished shards are kept.

    \b
    Example:
      beit tokenize photos/ store/ --img-size 64 --patch-size 8 --short-side 96
    """
    from beit.common.errors import require
    from beit.common.processes.launcher_env import launched_rank
    from beit.tokenize.config import TokenizeConfig
    from beit.tokenize.forecast import STORE_RECIPES
    from beit.tokenize.run import tokenize_with_ranks

    options = LongOptions.pop(dedicated)
    require(
        options.hostfile is None,
        f"--hostfile ({options.hostfile}) is not needed to tokenize: ranks do not talk to each other, so start this "
        "command on every machine with RANK and WORLD_SIZE set, by any launcher",
    )
    config = options.load(TokenizeConfig, STORE_RECIPES, tokenizer=tokenizer, **dedicated)
    if tokenizer is None:
        options.refuse_code(config.tokenizer, "tokenizer", "--tokenizer ")
    if dry_run:
        from beit.tokenize.survey.dry_run import rehearse

        found, rows = rehearse(config, source, store, ranks=options.gpus or 1, resume=options.resume)
        _say_survey(found, [("tokenising", rows)], None)
        if found.refusals:
            raise click.exceptions.Exit(1)
        return
    summary = tokenize_with_ranks(config, source, store, ranks=options.gpus, resume=options.resume)
    if not launched_rank():  # all ranks would say the same
        click.echo(summary.as_table())
        click.echo(summary.outcome)


@click.command("verify")
@click.argument("store")
@click.option("--audit", type=click.IntRange(min=0), default=0, metavar="N", help="Re-tokenise N random views.")
@click.option(
    "--tokenizer", metavar="NAME|PATH", help="What the audit tokenises with, if the store's has moved or is code."
)
def verify_command(store: str, audit: int, tokenizer: str | None) -> None:
    """Check manifests, sizes, hashes, counts and the index of STORE; exit 1 when anything is wrong.

    STORE is a folder or a URL; all of a remote store is read, one shard at a time.

    \b
    Example:
      beit verify store/
    """
    from beit.tokenize.checking.verify import verify_store

    report = verify_store(store, audit=audit, tokenizer=tokenizer)
    click.echo(report.as_text())
    if report.problems:
        raise click.exceptions.Exit(1)


@click.group("tokenizer")
def tokenizer_group() -> None:
    """Make an image tokenizer of your own, convert DALL-E's, and find out how fit one is."""


@tokenizer_group.command("train")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(list(KINDS)),
    help=f"What the words are made of (docs/tokenizers.md).  [default: {DEFAULT_KIND}, with --teacher "
    f"{DEFAULT_WITH_TEACHER}]",
)
@click.option(
    "--teacher",
    metavar="ENCODER|module:Class",
    help="Whose patch features the words stand for: the folder of an encoder, or code, which is run.",
)
@click.option(
    "--teacher-block",
    type=click.IntRange(min=0),
    metavar="N",
    help="The teacher's block, from 0.  [default: the last]",
)
@long_command_options
def tokenizer_train_command(
    source: str, out: Path, kind: str | None, teacher: str | None, teacher_block: int | None, **long: Any
) -> None:
    """Make a tokenizer from the images of SOURCE and write it to OUT, which `beit tokenize --tokenizer OUT` accepts.

    SOURCE is what `beit tokenize` takes, or `synthetic:N`, N images that beit generates itself. A dvae learns to
    reconstruct images, vqkd to tell a teacher's features by words. Words of kmeans are the nearest of many centres, of
    pixels or of a teacher's features: no training, minutes. Run the same command again to go on.

    \b
    Example:
      beit tokenizer train photos/ tokenizers/mine --recipe tokenizer_mini
      beit tokenizer train photos/ tokenizers/seen --kind kmeans --teacher runs/pretrain/encoder
    """
    name, chosen = choose_kind(kind, teacher, teacher_block)
    options, trained = LongOptions(**long), KINDS[name]
    check_recipe(name, options.recipe, RECIPES)
    check_place(name, out)
    config = options.load(trained.config, RECIPES)
    options.start(num_workers=config.reader.num_workers)
    taught = {} if trained.teacher == "none" else {"teacher": chosen}
    trained.train(config, source, out, resume=options.resume, **taught)


@tokenizer_group.command("convert")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def tokenizer_convert_command(file: Path, out: Path) -> None:
    """Convert DALL-E's published FILE to a tokenizer OUT, which `beit tokenize --tokenizer OUT` accepts.

    FILE is encoder.pkl, beside which decoder.pkl is taken along if it is there, or the folder of both. The pickles are
    read without running them, and no network is needed. A decoder.pkl that comes later is added to the same OUT.

    \b
    Example:
      beit tokenizer convert downloads/encoder.pkl tokenizers/dall-e
      beit tokenize photos/ store/ --tokenizer tokenizers/dall-e
    """
    from beit.tokenize.tokenizer_training.convert import convert_dalle

    click.echo(convert_dalle(file, out))


def _report_options(command: Command) -> Command:
    """Add what `report` and `compare` take; the defaults are those of `ReportSettings`."""
    command = source_options(command)
    path = click.Path(path_type=Path)
    for option in (
        click.option("--html", type=path, metavar="F.html", help="Write a page with verdicts, table and pictures."),
        click.option("--out", type=path, metavar="F.json", help="Write the numbers here, too."),
        click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of images and views."),
        click.option(
            "--view-size",
            type=int,
            metavar="PX",
            help="Side of the views measured.  [default: what a tokenizer is made for, else 112]",
        ),
        click.option(
            "--images",
            type=click.IntRange(min=2),
            default=256,
            show_default=True,
            metavar="N",
            help="Images to measure, one view of each.",
        ),
    ):
        command = option(command)
    return command


@tokenizer_group.command("report")
@click.argument("tokenizer")
@click.argument("source")
@_report_options
def tokenizer_report_command(tokenizer: str, source: str, **options: Any) -> None:
    """Measure how fit TOKENIZER is for the images of SOURCE, and say in words what to make of it.

    Use of the vocabulary, predictability from neighbours, meaning, reconstruction, stability and speed, with verdicts.
    TOKENIZER is mini, dall-e, or what `beit tokenizer train` wrote; SOURCE may also be `synthetic:N`. The keys of the
    JSON are described in docs/tokenizers.md.

    \b
    Example:
      beit tokenizer report mini photos/ --html report.html
    """
    _report([tokenizer], source, **options)


@tokenizer_group.command("compare")
@click.argument("tokenizers", nargs=-1, required=True, metavar="A B ...")
@click.argument("source")
@_report_options
def tokenizer_compare_command(tokenizers: tuple[str, ...], source: str, **options: Any) -> None:
    """Measure tokenizers A B ... on the same views of the images of SOURCE, side by side.

    As `beit tokenizer report`; `*` marks the best value where one is better. Beside a tokenizer that takes one side
    only, the others see the same views at the side that gives them as many words.

    \b
    Example:
      beit tokenizer compare mini tokenizers/mine photos/ --html compare.html
    """
    if len(tokenizers) < 2:
        raise click.UsageError("compare needs two tokenizers or more, then SOURCE; for one: beit tokenizer report")
    _report(list(tokenizers), source, **options)


def _report(
    names: list[str],
    source: str,
    *,
    images: int,
    view_size: int | None,
    seed: int,
    out: Path | None,
    html: Path | None,
    reading: Any,
) -> None:
    from beit.tokenize.fitness.report import ReportSettings
    from beit.tokenize.fitness.run import report_tokenizers

    settings = ReportSettings(num_images=images, view_size=view_size, seed=seed)
    report = report_tokenizers(names, source, settings, out=out, html=html, reading=reading)
    click.echo(report.as_text())
    say_written(out, html)


@click.command("views")
@click.argument("store")
@picture_option
@click.option("--rows", type=click.IntRange(1, 64), default=4, show_default=True, help="Images to draw.")
@click.option("--views", type=click.IntRange(1, 16), default=6, show_default=True, help="Views of each, at most.")
@click.option("--tokenizer", metavar="NAME|PATH", help="What decodes the tokens, if the store's has moved or is code.")
def show_views_command(store: str, out: Path, rows: int, views: int, tokenizer: str | None) -> None:
    """Draw images of STORE with their crop boxes; beside them the views, their visual tokens, and these decoded.

    The views are rendered as in training, so this is what the network will see. Tokens are decoded where the tokenizer
    can.

    \b
    Example:
      beit show views store/ --out views.png
    """
    from beit.common.pages.pictures import save_png
    from beit.common.runs.outputs import PICTURE, check_outputs
    from beit.common.store import open_store
    from beit.tokenize.pictures.views import load_decoder, views_sheet

    check_outputs({"--out": out}, inputs=[store], makes_folder=True, endings=PICTURE)
    opened = open_store(store)
    save_png(views_sheet(opened, load_decoder(opened, tokenizer), num_images=rows, num_views=views), out)
    say_written(out)


@click.command("tokens")
@click.argument("store")
@picture_option
@click.option("--words", type=click.IntRange(1, 200), default=16, show_default=True, help="Visual words to draw.")
@click.option("--examples", type=click.IntRange(1, 32), default=10, show_default=True, help="Patches of each, at most.")
@click.option("--images", type=click.IntRange(min=1), default=200, show_default=True, help="Images to look at.")
def show_tokens_command(store: str, out: Path, words: int, examples: int, images: int) -> None:
    """Draw what the commonest visual words of STORE look like: patches that carry them, and how common they are.

    \b
    Example:
      beit show tokens store/ --out tokens.png
    """
    from beit.common.pages.pictures import save_png
    from beit.common.runs.outputs import PICTURE, check_outputs
    from beit.common.store import open_store
    from beit.tokenize.pictures.words import words_sheet

    check_outputs({"--out": out}, inputs=[store], makes_folder=True, endings=PICTURE)
    save_png(words_sheet(open_store(store), num_words=words, num_examples=examples, num_samples=images), out)
    say_written(out)
