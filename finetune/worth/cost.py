"""What a comparison costs: how many runs, how long, as measured on those that are finished, and how much disk."""

from __future__ import annotations

import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beit.common.pages.numbers import count
from beit.common.storage.documents import read_json, reading
from beit.common.vit.description import WEIGHTS_FILE, find_encoder
from beit.finetune.worth.comparison import STORE, Labels, Run
from beit.finetune.worth.plan import Plan, is_encoder
from beit.finetune.worth.results import RESULT_FILE

_MOMENTS = 3
"""Copies of the weights in a checkpoint: they, and the two moments of AdamW."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Something to do: a store, a pre-training, or a run."""

    folder: Path
    """Its own."""
    words: str
    """What it is, in a line of the log."""
    kind: str
    """Jobs of one kind take times that are in proportion to their work."""
    work: float
    """In any unit that jobs of a kind have in common."""
    run: Run | None = None
    """Which, where it is one."""
    start: str = ""
    """Of a pre-training."""

    @property
    def file(self) -> Path:
        """What says that it is finished."""
        return self.folder / RESULT_FILE

    @property
    def is_done(self) -> bool:
        """Whether it is finished."""
        return self.file.exists()


def jobs_of(plan: Plan, num_test_images: int) -> list[Job]:
    """Return everything there is to do, in its order."""
    out = plan.given.out
    jobs = []
    if plan.tokenize() is not None:
        jobs.append(Job(folder=out / STORE, words=f"tokens of {plan.given.images}", kind="store", work=1))
    for start in plan.to_pretrain():
        jobs.append(Job(folder=out / start, words=f"pre-training, {start}", kind="pre-training", work=1, start=start))
    for run in plan.matrix.runs():
        work = training_steps(plan, run.labels) if run.is_training else run.labels.number + num_test_images
        kind = "fine-tuning" if run.is_training else "probe"
        jobs.append(Job(folder=run.folder(out), words=run.words, kind=kind, work=work, run=run))
    return jobs


def training_steps(plan: Plan, labels: Labels) -> int:
    """Return the steps of a fine-tuning."""
    train = plan.config.train
    epochs = train.epochs if labels.epochs is None else labels.epochs
    if train.steps is not None and labels.epochs is None:
        return train.steps
    return max(1, round(epochs * labels.number) // train.global_batch_size)


def seconds_left(jobs: Sequence[Job]) -> tuple[float, list[str]]:
    """Return the seconds that jobs not done will take as far as can be told, and the kinds of which none is measured.

    A kind is measured on all that are finished; those with as much work as the one in question come first.
    """
    rates: dict[str, list[tuple[float, float]]] = {}
    for job in jobs:
        if job.is_done:
            with reading(job.file):
                rates.setdefault(job.kind, []).append((job.work, float(read_json(job.file)["seconds"])))
    total, unknown = 0.0, []
    for job in (job for job in jobs if not job.is_done):
        measured = rates.get(job.kind)
        if measured is None:
            unknown.append(job.kind)
            continue
        alike = [seconds for work, seconds in measured if work == job.work]
        scaled = [seconds * job.work / work for work, seconds in measured]
        total += statistics.fmean(alike or scaled)
    return total, list(dict.fromkeys(unknown))


def time_text(jobs: Sequence[Job], *, is_begun: bool = False) -> str:
    """Say how long the rest will take; empty where nothing is left.

    Args:
        jobs: All there are.
        is_begun: When it is said has been said before: then this is empty, too, where nothing can be told yet.
    """
    if all(job.is_done for job in jobs):
        return ""
    seconds, unknown = seconds_left(jobs)
    if len(unknown) == len({job.kind for job in jobs if not job.is_done}):
        return "" if is_begun else "how long it takes is said once the first run of each kind is done"
    about = f"about {duration(seconds)} left"
    return about if not unknown else f"{about}, and what no run has been measured of yet: {', '.join(unknown)}"


def duration(seconds: float) -> str:
    """Write a time: 34 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count_text(jobs: Iterable[Job]) -> str:
    """Say how much there is to do: "2 pre-trainings, 12 fine-tunings, 12 probes; 4 of 26 are done"."""
    there = list(jobs)
    kinds: Mapping[str, int] = Counter(job.kind for job in there)
    done = sum(job.is_done for job in there)
    return ", ".join(count(number, kind) for kind, number in kinds.items()) + f"; {done} of {len(there)} are done"


def disk_text(plan: Plan, jobs: Sequence[Job]) -> str:
    """Say what will be kept on the disk, and how much more is needed while it runs."""
    like = next((folder for start in ("weights", "continued", "scratch") if (folder := _there(plan, start))), None)
    free = shutil.disk_usage(_existing(plan.given.out)).free
    if like is None:
        return f"disk: said once there is an encoder; {_bytes(free)} free"
    weights = (like / WEIGHTS_FILE).stat().st_size
    trainings = sum(job.kind == "fine-tuning" for job in jobs)
    keep = plan.config.checkpoint.keep
    kept = weights * (trainings + len(plan.to_pretrain()) * (1 + _MOMENTS * keep))
    more = weights * (2 + _MOMENTS * keep)
    store = ", the store of your images not counted" if plan.tokenize() is not None else ""
    return f"disk: about {_bytes(kept)}, and {_bytes(more)} more while it runs{store}; {_bytes(free)} free"


def _there(plan: Plan, start: str) -> Path | None:
    folder = plan.encoder(start)
    return find_encoder(folder) if folder is not None and is_encoder(folder) else None


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
