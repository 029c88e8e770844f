"""Does pre-training help when labels are few? The whole chain on a labelled data set, ending in one table.

    python benchmarks/few_labels.py --train cifar10/train.parquet --val cifar10/test.parquet --out runs/few_labels

Tokenizes, pre-trains, then fine-tunes the pre-trained encoder and the same network from random weights with the same
recipe, labels and steps. Each step is a `beit` command that goes on where it stopped, so the script may be killed and
run again.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

HEADER = "| labels | start from | top-1 | top-5 |\n| ---: | --- | ---: | ---: |"


@click.command()
@click.option("--train", required=True, help="Labelled images; pre-training uses all of them without labels.")
@click.option("--val", required=True, help="Labelled images to measure on.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the store, the runs and the table."
)
@click.option("--labels", default="500,5000", show_default=True, help="Numbers of labels to fine-tune on.")
@click.option("--seeds", default="0", show_default=True, help="Seeds of the fine-tuning runs.")
@click.option("--views", default=4, show_default=True, help="Views per image.")
@click.option("--img-size", default=32, show_default=True, help="Side of the image in pixels.")
@click.option("--patch-size", default=4, show_default=True, help="Side of a patch in pixels.")
@click.option("--pretrain-recipe", default="beit_tiny_patch4_32", show_default=True)
@click.option("--finetune-recipe", default="cifar10_tiny", show_default=True)
@click.option("--pretrain-set", multiple=True, metavar="KEY=VALUE", help="Changes to the pre-training recipe.")
@click.option("--finetune-set", multiple=True, metavar="KEY=VALUE", help="Changes to the fine-tuning recipe.")
def main(
    train: str,
    val: str,
    out: Path,
    labels: str,
    seeds: str,
    views: int,
    img_size: int,
    patch_size: int,
    pretrain_recipe: str,
    finetune_recipe: str,
    pretrain_set: tuple[str, ...],
    finetune_set: tuple[str, ...],
) -> None:
    """Run every stage and write table.md and table.json to the output folder."""
    size = ["--img-size", str(img_size), "--patch-size", str(patch_size)]
    seconds = {
        "tokenize": beit("tokenize", train, out / "store", "--tokenizer", "mini", "--views", str(views), *size),
        "pretrain": beit("pretrain", out / "store", out / "pretrain", "--recipe", pretrain_recipe, *sets(pretrain_set)),
    }
    rows = []
    for num_labels in map(int, labels.split(",")):
        for name, encoder in (("random weights", "random"), ("pre-trained", str(out / "pretrain/encoder"))):
            scores = []
            for seed in map(int, seeds.split(",")):
                run = out / f"finetune-{num_labels}-{name.split()[0]}-{seed}"
                chosen = sets([*finetune_set, f"data.num_labels={num_labels}", f"train.seed={seed}"])
                options = ["--encoder", encoder, "--val", val, "--recipe", finetune_recipe, *chosen]
                seconds[run.name] = beit("finetune", "classification", train, run, *options)
                beit("evaluate", run / "model", val, "--out", run / "evaluation.json")
                scores.append(json.loads((run / "evaluation.json").read_text()))
            rows.append({"labels": num_labels, "start": name, "scores": scores})
    (out / "table.json").write_text(json.dumps({"rows": rows, "seconds": seconds}, indent=2) + "\n")
    table = "\n".join([HEADER, *map(table_row, rows)]) + "\n"
    (out / "table.md").write_text(table)
    click.echo(table)


def beit(*arguments: str | Path) -> float:
    """Run one `beit` command, printed first; return its seconds."""
    words = [str(word) for word in arguments]
    click.echo(f"$ beit {shlex.join(words)}")
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "beit.cli", *words], check=True)
    return time.monotonic() - started


def sets(settings: Sequence[str]) -> list[str]:
    """Turn KEY=VALUE items into --set options."""
    return [word for setting in settings for word in ("--set", setting)]


def table_row(row: dict) -> str:
    """Format mean scores over seeds, with their range where there are several."""
    cells = []
    for metric in ("top1", "top5"):
        values = [100 * score[metric] for score in row["scores"]]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        cells.append(f"{sum(values) / len(values):.1f} %{spread}")
    return f"| {row['labels']} | {row['start']} | {cells[0]} | {cells[1]} |"


if __name__ == "__main__":
    main()
