"""The commands `beit doctor` and `beit report`, which look at what every stage made.

What they do is in `common/overview/doctor/` and `common/overview/report/`.
"""

from __future__ import annotations

from pathlib import Path

import click

from beit.cli_options import say_written


@click.command("doctor")
@click.argument("subjects", nargs=-1, metavar="[STORE|RUN|ENCODER|TOKENIZER]...")
@click.option("--quick", is_flag=True, help="Leave out the two ranks, which take most of the time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of lines.")
def doctor_command(subjects: tuple[str, ...], quick: bool, as_json: bool) -> None:
    """Look at this machine, and at each STORE, RUN, ENCODER and TOKENIZER; one line each, with the command that mends.

    Exits with 1 if there are faults; warnings alone are none. Two ranks are started on this machine to let them talk
    through DeepSpeed. Nothing is downloaded and nothing is changed; a STORE may be a URL. What reads every byte of a
    store is beit verify. Each line is explained in docs/doctor.md.

    \b
    Example:
      beit doctor
      beit doctor store/ runs/pretrain --quick
    """
    from beit.common.overview.doctor.examine import examine
    from beit.common.overview.doctor.findings import are_faults, as_document, verdict
    from beit.common.storage.documents import json_bytes

    findings = []
    for finding in examine(subjects, with_ranks=not quick):
        findings.append(finding)
        if not as_json:
            click.echo(finding.as_text())
    click.echo(json_bytes(as_document(findings)).decode().rstrip("\n") if as_json else verdict(findings))
    if are_faults(findings):
        raise click.exceptions.Exit(1)


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="F.html", help="Page to write. [default: RUN/report.html]"
)
@click.option("--no-pictures", is_flag=True, help="Leave pictures out, some of which may have to be drawn first.")
def report_command(runs: tuple[str, ...], out: Path | None, no_pictures: bool) -> None:
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

    say_written(make_report(runs, out, has_pictures=not no_pictures, say=click.echo))
