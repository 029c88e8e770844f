"""Does `beit plan` tell the truth? Three small chains, planned by `beit plan --measure` and then really run.

    python benchmarks/plan_check.py --photos photos/ --cifar train.parquet --val test.parquet --out runs/plan_check

Views of 32 px and of 64 px, each tokenised and pre-trained on, and one fine-tuning. Planned and found stand side by
side: bytes on disk, peak memory (of the process and of what its workers have beside it), seconds of the command. The
exit status is 1 where disk is off by more than 5 %, memory by 15 % or time by 30 %. `--only` takes some of the three.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import psutil

from beit.common.forecast.words import in_gb, in_words
from beit.common.pages.tables import aligned

ALLOWED = {"disk": 0.05, "memory": 0.15, "time": 0.30}
"""Of what is found, the most that a plan may be off."""
TARGETS = {"tokenize": "store", "pretrain": "runs/pretrain", "finetune": "runs/finetune"}
"""What each stage's command writes."""
_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """A plan, and the commands that it is about."""

    name: str
    source: str
    """photos or cifar."""
    recipe: str
    pretrain: tuple[str, ...]
    """Settings of the pre-training."""
    tokenize: tuple[str, ...] = ()
    """Settings of tokenising."""
    labels: int | None = None
    """Labelled images to fine-tune on; None fine-tunes nothing."""
    finetune: tuple[str, ...] = ()


CHAINS = (
    Chain(
        name="32 px",
        source="cifar",
        recipe="beit_tiny_patch4_32",
        tokenize=("views=2",),
        pretrain=("train.steps=400",),
    ),
    Chain(
        name="64 px",
        source="photos",
        recipe="beit_mini_patch8_64",
        tokenize=("views=16",),
        pretrain=("train.steps=300",),
    ),
    Chain(
        name="fine-tuning",
        source="photos",
        recipe="beit_mini_patch8_64",
        tokenize=("views=4",),
        pretrain=("train.steps=20",),
        labels=500,
        finetune=("train.epochs=20",),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure, planned and found."""

    chain: str
    stage: str
    figure: str
    planned: float
    found: float

    @property
    def error(self) -> float:
        """How far the plan was off, as a share of what was found."""
        return self.planned / self.found - 1

    @property
    def is_right(self) -> bool:
        """Whether it was near enough."""
        return abs(self.error) <= ALLOWED[self.figure]


@click.command()
@click.option("--photos", required=True, help="Photographs, some hundred, as beit tokenize takes them.")
@click.option("--cifar", required=True, help="Small labelled images, as beit finetune takes them.")
@click.option("--val", required=True, help="Labelled images to validate on.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep stores and runs here.  [default: nowhere]")
@click.option("--only", multiple=True, type=click.Choice([chain.name for chain in CHAINS]), help="Some of the three.")
@click.option("--steps", type=int, help="Of every training, instead of those of the chains.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list instead of a table.")
def main(
    photos: str, cifar: str, val: str, out: Path | None, only: Sequence[str], steps: int | None, as_json: bool
) -> None:
    """Plan, run and compare."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        data = {"photos": photos, "cifar": cifar, "val": val}
        data = {name: str(Path(given).absolute()) if Path(given).exists() else given for name, given in data.items()}
        rows = []
        for chain in CHAINS:
            if not only or chain.name in only:
                rows += check(chain, data, folder.absolute(), steps)
    click.echo(json.dumps([asdict(row) | {"error": row.error} for row in rows]) if as_json else as_table(rows))
    sys.exit(not all(row.is_right for row in rows))


def check(chain: Chain, data: Mapping[str, str], folder: Path, steps: int | None) -> list[Row]:
    """Return the figures of one chain: planned, then run by the very commands that the plan names."""
    place = folder / chain.name.replace(" ", "-")
    place.mkdir(parents=True)
    pretrain = chain.pretrain if steps is None else (f"train.steps={steps}",)
    finetune = chain.finetune if steps is None else (f"train.steps={steps}",)
    planned = plan(chain, data[chain.source], pretrain, finetune, place / "plan.json")
    labelled = {"labelled/train": data["cifar"], "labelled/val": data["val"]}
    rows = []
    for command, (stage, figures) in zip(planned["commands"], planned_stages(planned).items(), strict=True):
        words = [labelled.get(word, word) for word in shlex.split(command)[1:]]
        if stage == "finetune":
            words += ["--set", f"data.num_labels={chain.labels}"]
            words += ["--set", f"data.num_val_images={figures['num_val_images']}"]
        rows += compared(chain.name, stage, figures, found(words, place, place / TARGETS[stage]))
    return rows


def planned_stages(planned: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what is planned of each stage, in the order of the commands."""
    return {stage: planned["stages"][stage] for stage in TARGETS if stage in planned["stages"]}


def plan(chain: Chain, source: str, pretrain: Sequence[str], finetune: Sequence[str], document: Path) -> dict[str, Any]:
    """Run `beit plan` and return what it writes."""
    words = ["plan", source, "--recipe", chain.recipe, "--measure", "--json", str(document)]
    words += [f"--set={setting}" for setting in pretrain]
    words += [f"--set=tokenize.{setting}" for setting in chain.tokenize]
    if chain.labels is not None:
        words += ["--labels", str(chain.labels), *(f"--set=finetune.{setting}" for setting in finetune)]
    subprocess.run([sys.executable, "-m", "beit.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return json.loads(document.read_text())


def found(words: Sequence[str], place: Path, target: Path) -> dict[str, float]:
    """Run a command in a folder and return the disk its target takes, its peak memory and its seconds."""
    began = time.monotonic()
    process = psutil.Popen([sys.executable, "-m", "beit.cli", *words], cwd=place, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of(process))
        time.sleep(_POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"beit {' '.join(words)} ended with {process.returncode}")
    disk = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return {"disk": disk, "memory": peak, "time": time.monotonic() - began}


def memory_of(process: psutil.Process) -> int:
    """Return the memory of a process, and what the processes below it have of their own or share among each other."""
    total = 0
    try:
        total = process.memory_info().rss
        for child in process.children(recursive=True):
            total += own_memory(child.pid)
    except (psutil.Error, OSError):  # ended a moment ago
        pass
    return total


def own_memory(pid: int) -> int:
    """Return a process's share of memory that is no file's; what workers and their server share is counted once.

    What only one process has at a moment would leave that out, and would grow by it when the last worker ends.
    """
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return next((1024 * int(row[1]) for row in rows if row[0] == "Pss_Anon:"), 0)


def compared(chain: str, stage: str, planned: Mapping[str, float], measured: Mapping[str, float]) -> list[Row]:
    """Return a row per figure."""
    names = {"disk": "disk_bytes", "memory": "memory_bytes", "time": "seconds"}
    return [
        Row(chain=chain, stage=stage, figure=figure, planned=planned[name], found=measured[figure])
        for figure, name in names.items()
        if planned[name] is not None
    ]


def as_table(rows: Sequence[Row]) -> str:
    """Lay the figures out for reading."""
    cells = [("chain", "stage", "figure", "planned", "found", "off", "")]
    for row in rows:
        words = in_words if row.figure == "time" else in_gb
        cells.append(
            (row.chain, row.stage, row.figure, words(row.planned), words(row.found))
            + (f"{row.error:+.0%}", "" if row.is_right else f"more than {ALLOWED[row.figure]:.0%}")
        )
    return aligned(cells, align="<<<>>><")


if __name__ == "__main__":
    main()
