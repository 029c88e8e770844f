"""The command `beit worth`; what it does is in `run.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from beit.cli_options import say_written

RECIPES = Path(__file__).parent.parent / "recipes"
_FOLDER = click.Path(path_type=Path)


@click.command("worth")
@click.argument("labelled")
@click.argument("out", type=_FOLDER)
@click.option("--val", required=True, metavar="DATA", help="Labelled images to measure on, none of LABELLED.")
@click.option("--weights", type=_FOLDER, metavar="ENCODER", help="Public weights (beit import), or any encoder.")
@click.option("--store", metavar="STORE", help="Your images without labels, as tokens (beit tokenize).")
@click.option("--images", metavar="SOURCE", help="Your images without labels; a store is made of them.")
@click.option(
    "--labels", metavar="N,N:EPOCHS,all", help="How many are learned from. [default: 10 and 50 of each class]"
)
@click.option("--seeds", default="0,1,2", show_default=True, help="Each draws other labels, the same for all starts.")
@click.option(
    "--starts", metavar="START,START", help="Of random, weights, continued, scratch. [default: all there are]"
)
@click.option(
    "--tasks", default="classification,linear-probe,knn", show_default=True, help="What is measured, of these."
)
@click.option(
    "--steps", type=click.IntRange(1), metavar="N", help="Of each pre-training. [default: as its recipe says]"
)
@click.option("--recipe", default="small_500", show_default=True, metavar="NAME|FILE", help="Of the fine-tuning.")
@click.option("--continue-recipe", metavar="NAME|FILE", help="To go on from the weights. [default: by their shape]")
@click.option("--scratch-recipe", metavar="NAME|FILE", help="From scratch. [default: by the size of a patch]")
@click.option("--continued", type=_FOLDER, metavar="ENCODER", help="One that is continued already; none is made.")
@click.option("--scratch", type=_FOLDER, metavar="ENCODER", help="One pre-trained from scratch already; none is made.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the fine-tunings and probes.")
@click.option("--random-set", "random_settings", multiple=True, metavar="KEY=VALUE", help="Only from random weights.")
@click.option("--pretrain-set", "pretrain_settings", multiple=True, metavar="KEY=VALUE", help="Change pre-trainings.")
@click.option("--continue-set", "continue_settings", multiple=True, metavar="KEY=VALUE", help="Only the continued one.")
@click.option("--scratch-set", "scratch_settings", multiple=True, metavar="KEY=VALUE", help="Only that from scratch.")
@click.option("--views", type=click.IntRange(1), default=16, show_default=True, help="Of each of --images.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Processor threads of a run.")
@click.option("--gpus", type=click.IntRange(1), metavar="N", help="Ranks of each training on this machine.")
@click.option("--dry-run", is_flag=True, help="Say what it costs, list the commands, and do nothing.")
def worth_command(
    labels: str | None, seeds: str, starts: str | None, tasks: str, dry_run: bool, **options: Any
) -> None:
    """Does pre-training pay on your images? One table: the same labels and recipe from several starts.

    \b
    START:
      random     random weights of the same shape
      weights    the weights of --weights as they are
      continued  these after more pre-training on your images (beit pretrain --init)
      scratch    the same network, pre-trained on your images alone, for as many steps

    Each is fine-tuned with the labels of LABELLED, and its frozen features are measured by linear probe and k-NN, for
    several numbers of labels and seeds. OUT gets the runs, worth.md, worth.json and worth.png. The same command goes on
    where it was stopped; more labels, seeds and starts may be added to it.

    \b
    Examples:
      beit worth flowers/train worth/ --val flowers/val --weights encoders/dino --store store/ --labels 100,500
      beit worth flowers/train worth/ --val flowers/val --weights runs/pretrain/encoder --labels 500:40,all:2
    """
    from beit.finetune.worth.checks import check
    from beit.finetune.worth.comparison import Given
    from beit.finetune.worth.run import DOCUMENT, PICTURE, TABLE, commands_text, plan_text, result_text, run

    given = Given(**options)
    checked = check(given, starts=starts, labels=labels, seeds=seeds, tasks=tasks, recipes=RECIPES)
    click.echo(plan_text(checked))
    if dry_run:
        click.echo(f"\n{commands_text(checked)}")
        return
    rows = run(checked, say=click.echo)
    click.echo(f"\n{result_text(checked, rows)}\n")
    say_written(*(path for name in (TABLE, DOCUMENT, PICTURE) if (path := given.out / name).exists()))
