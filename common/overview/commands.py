"""The commands that span stages: `beit report`. What they do is in the rooms beside this file."""

from __future__ import annotations

from pathlib import Path

import click

from beit.cli_options import say_written


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="F.html", help="Page to write. [default: RUN/report.html]"
)
def report_command(runs: tuple[str, ...], out: Path | None) -> None:
    """Show runs of any kind on one page: results, curves, the way from images to model, speed, starts and stops.

    RUN is the directory of a pre-training, a fine-tuning, a probe or a tokenizer's training, finished or not; up to
    eight are laid over each other. The page is one file that needs nothing but itself: send it, open it anywhere.

    The JSON that beit tokenizer report or beit compare wrote may be named, too, and is shown with the runs.

    \b
    Examples:
      beit report runs/pretrain
      beit report runs/pretrain runs/flowers runs/flowers-random --out flowers.html
      beit report runs/tokenizer fitness.json --out tokenizer.html
    """
    from beit.common.overview.report.make import make_report

    say_written(make_report(runs, out, say=click.echo))
