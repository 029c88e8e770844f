"""How much of their time ten small runs spend on evaluations, where the settings leave open how often there are any.

    python benchmarks/evaluation_share.py --train train.parquet --val test.parquet --out runs/share

Five pre-trainings and five fine-tunings of different sizes, through the command line. What is shown is what the runs
record: `evaluation_seconds` and `evaluation_share` in metrics.jsonl, the share of the time from the first step to the
last evaluation. The last line names the largest share; the exit status is 1 where it is above a tenth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from beit.common.runs.metrics import read_metrics

SHARE = 0.1
_LABELLED = 3000
"""Images that fine-tunings choose theirs from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One small run; sizes in images."""

    name: str
    stage: str
    images: int
    """To train on, of which a pre-training holds some out."""
    val: int
    """To validate on."""
    settings: tuple[str, ...]


TINY = ("model.size=tiny", "model.embed_dim=96", "model.depth=4", "model.num_heads=4")
RUNS = (
    Run(name="pretrain-150", stage="pretrain", images=150, val=0, settings=("train.epochs=50",)),
    Run(name="pretrain-150-small", stage="pretrain", images=150, val=0, settings=(*TINY, "train.epochs=50")),
    Run(name="pretrain-600", stage="pretrain", images=600, val=0, settings=("train.epochs=10",)),
    Run(name="pretrain-3000", stage="pretrain", images=3000, val=0, settings=(*TINY, "train.epochs=8")),
    Run(
        name="pretrain-3000-batch-256",
        stage="pretrain",
        images=3000,
        val=0,
        settings=(*TINY, "train.epochs=8", "train.global_batch_size=256"),
    ),
    Run(name="finetune-100", stage="finetune", images=100, val=30, settings=("train.epochs=30",)),
    Run(name="finetune-300", stage="finetune", images=300, val=100, settings=("train.epochs=20",)),
    Run(name="finetune-300-large-val", stage="finetune", images=300, val=400, settings=("train.epochs=30",)),
    Run(name="finetune-1000-small", stage="finetune", images=1000, val=500, settings=(*TINY, "train.epochs=20")),
    Run(name="finetune-2000-ema", stage="finetune", images=2000, val=300, settings=(*TINY, "train.ema_decay=0.99")),
)


def main() -> int:
    """Do what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="labelled images, at least 3000; labels are used to fine-tune")
    parser.add_argument("--val", required=True, help="labelled images, at least 500")
    parser.add_argument("--out", required=True, type=Path, help="folder for stores and runs; finished ones are kept")
    parser.add_argument("--only", nargs="*", default=[], help="names of runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [measured(run, arguments) for run in RUNS if not arguments.only or run.name in arguments.only]
    print(f"{'run':24} {'steps':>6} {'evaluations':>12} {'seconds':>8} {'of them evaluating':>19} {'share':>6}")
    for row in rows:
        print(
            f"{row['name']:24} {row['steps']:6} {row['evaluations']:12} {row['seconds']:8.1f} "
            f"{row['evaluating']:19.2f} {row['share']:6.1%}"
        )
    (arguments.out / "shares.json").write_text(json.dumps(rows, indent=2) + "\n")
    worst = max(rows, key=lambda row: row["share"])
    print(f"largest share: {worst['share']:.1%} ({worst['name']})")
    return int(worst["share"] > SHARE)


def measured(run: Run, arguments: argparse.Namespace) -> dict[str, object]:
    """Do one run, unless it is there, and return what it recorded."""
    folder = arguments.out / run.name
    if run.stage == "pretrain":
        store = arguments.out / f"store-{run.images}"
        if not store.exists():
            tokenize = ("--tokenizer", "mini", "--views", "4", "--img-size", "32", "--patch-size", "4")
            beit("tokenize", part(arguments.train, run.images, arguments.out), store, *tokenize)
        command = ["pretrain", store, folder, "--recipe", "beit_tiny_patch4_32"]
    else:
        val, train = part(arguments.val, run.val, arguments.out), part(arguments.train, _LABELLED, arguments.out)
        command = ["finetune", "classification", train, folder, "--encoder", "random", "--val", val]
        command += ["--recipe", "cifar10_tiny", "--set", f"data.num_labels={run.images}"]
        command += ["--set", "train.global_batch_size=32"]
    if not any("evaluation_share" in record for record in read_metrics(folder / "metrics.jsonl")):
        shutil.rmtree(folder, ignore_errors=True)
    beit(*command, *(item for setting in run.settings for item in ("--set", setting)))
    records = [record for record in read_metrics(folder / "metrics.jsonl") if "evaluation_share" in record]
    evaluating, share = sum(record["evaluation_seconds"] for record in records), records[-1]["evaluation_share"]
    return {
        "name": run.name,
        "steps": records[-1]["step"],
        "evaluations": len(records),
        "seconds": evaluating / max(share, 1e-9),
        "evaluating": evaluating,
        "share": share,
    }


def part(source: str, count: int, folder: Path) -> Path:
    """Return the first `count` images of a Parquet file, as a file of their own; other sources are taken whole."""
    import pyarrow.parquet as parquet

    if not source.endswith(".parquet"):
        return Path(source)
    path = folder / f"{Path(source).stem}-{count}.parquet"
    if not path.exists():
        parquet.write_table(parquet.read_table(source).slice(0, count), path)
    return path


def beit(*command: object) -> None:
    """Run a command of beit; its words go to standard error."""
    words = [sys.executable, "-m", "beit.cli", *map(str, command)]
    print(" ".join(words[2:]), file=sys.stderr)
    subprocess.run(words, check=True)


if __name__ == "__main__":
    sys.exit(main())
