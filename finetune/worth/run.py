"""`beit worth`: does what is missing of a comparison, run after run, and writes its results.

What is compared is `comparison.py`, which commands that comes to `plan.py`, what is refused `checks.py`, what it costs
`cost.py`; what was measured is `results.py`, how it is said `report.py`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beit.common.pages.numbers import count
from beit.common.pages.pictures import save_png
from beit.common.processes.signals import stop_on_signals
from beit.common.progress import Progress
from beit.common.runs.environment import environment
from beit.common.runs.layout import CHECKPOINTS, FEATURES, METRICS, MODEL
from beit.common.storage.documents import write_json
from beit.common.storage.files import sha256_file, write_atomic
from beit.common.store import open_store
from beit.common.vit.description import WEIGHTS_FILE, find_encoder
from beit.finetune.worth.checks import FORMAT, PLAN_FILE, Checked
from beit.finetune.worth.comparison import CONTINUED, RANDOM, SCRATCH, TASKS, WEIGHTS
from beit.finetune.worth.cost import Job, count_text, disk_text, duration, jobs_of, time_text, training_steps
from beit.finetune.worth.plan import LATER, Command, Plan, budget_of
from beit.finetune.worth.report import as_markdown, as_text, picture
from beit.finetune.worth.results import Row, measured, read_rows
from beit.finetune.worth.runner import Runner, claim, is_finished, unless_finished

Say = Callable[[str], None]
TABLE, DOCUMENT, PICTURE, LOGS = "worth.md", "worth.json", "worth.png", "logs"
"""In OUT: the table as Markdown, everything as JSON, the chart, and what every run printed."""
_STEP = re.compile(rb'"step": ?(\d+)')
_TAIL_BYTES, _LOOK_SECONDS = 4096, 2.0
"""Of the records of a training, to find its newest step in, and how often; arbitrary."""


def plan_text(checked: Checked) -> str:
    """Say what a comparison comes to and what it costs, before it begins."""
    plan, matrix = checked.plan, checked.plan.matrix
    jobs = jobs_of(plan, checked.num_test_images)
    numbers = ", ".join(labels.text for labels in matrix.labels)
    seeds = ", ".join(map(str, matrix.seeds))
    lines = [
        f"{', '.join(matrix.starts)}; {numbers} labels; seeds {seeds}; measured on "
        f"{count(checked.num_test_images, 'image')} of {count(checked.num_classes, 'class', plural='classes')}",
        count_text(jobs),
        *([_budget_text(plan)] if plan.to_pretrain() else []),
        time_text(jobs),
        disk_text(plan, jobs),
        *plan.unfit_recipes(),
    ]
    return "\n".join(line for line in lines if line)


def commands_text(checked: Checked) -> str:
    """Return the commands of what is not done, as they would be typed; those of one seed stand for the others."""
    first, *others = checked.plan.matrix.seeds
    jobs = [job for job in jobs_of(checked.plan, checked.num_test_images) if not job.is_done]
    shown = [job for job in jobs if job.run is None or job.run.seed == first]
    lines = [f"beit {shlex.join(command)}" for job in shown for command in _commands(checked.plan, job)]
    if len(shown) < len(jobs):
        lines.append(f"and so on for {'seed' if len(others) == 1 else 'seeds'} {', '.join(map(str, others))}")
    return "\n".join(lines)


def run(checked: Checked, *, say: Say) -> list[Row]:
    """Do what is missing, and write table, document and chart; they are also there after every seed.

    Raises:
        ResumableStop: it was stopped; the same command goes on.
    """
    plan, out = checked.plan, checked.plan.given.out
    out.mkdir(parents=True, exist_ok=True)
    with claim(out, "beit worth") as lock, stop_on_signals() as stop:
        write_json(out / PLAN_FILE, {**FORMAT.header(), "identity": checked.identity})
        (out / LOGS).mkdir(exist_ok=True)
        jobs = jobs_of(plan, checked.num_test_images)
        _refuse_others(plan, jobs)
        runner = Runner(stop=stop, lock=lock, threads=plan.given.threads)
        seed = None
        for number, job in enumerate(jobs, start=1):
            if job.run is not None and seed not in (None, job.run.seed):
                write_results(checked)
            seed = None if job.run is None else job.run.seed
            _ensure(plan, job, runner, jobs=jobs, head=f"[{number:>{len(str(len(jobs)))}}/{len(jobs)}]", say=say)
    return write_results(checked)


def write_results(checked: Checked) -> list[Row]:
    """Write what is measured so far into OUT, and return it."""
    plan, out = checked.plan, checked.plan.given.out
    rows = read_rows(plan.matrix, out)
    told = notes(checked)
    document = {
        **FORMAT.header(),
        "identity": checked.identity,
        "encoders": {start: _origin(plan, start) for start in plan.matrix.starts},
        "images": {"test": checked.num_test_images, "classes": checked.num_classes},
        "environment": environment(),
        "rows": [row.document() for row in rows],
        "notes": told,
    }
    write_json(out / DOCUMENT, document)
    write_atomic(out / TABLE, as_markdown(rows, notes=told).encode())
    drawn = picture(rows, facts=_measured_on(checked))
    if drawn is not None:
        save_png(drawn, out / PICTURE)
    return rows


def result_text(checked: Checked, rows: Sequence[Row]) -> str:
    """Return the result for a terminal."""
    return as_text(rows, notes=notes(checked))


def notes(checked: Checked) -> list[str]:
    """Say how to read the table."""
    plan = checked.plan
    text = (
        f"{_measured_on(checked)} Means over seeds and their 95 % intervals (Student's t), each by itself; every seed "
        "draws other labels, the same for all starts, and differences are those of pairs. A fine-tuning is measured "
        "once, at its end."
    )
    found = [text]
    if set(plan.matrix.starts) & {CONTINUED, SCRATCH}:
        found.append("Each encoder is one pre-training: what other seeds of it would give, no interval covers.")
        found += [_budget_text(plan)] if _budgets(plan) else []
    if any(labels.is_all for labels in plan.matrix.labels) and plan.matrix.tasks_of(False):
        found.append("All labels are one choice, so that a probe of them has one value and no interval.")
    return found


def _measured_on(checked: Checked) -> str:
    classes = count(checked.num_classes, "class", plural="classes")
    return f"Measured on {count(checked.num_test_images, 'image')} of {classes}."


def _budgets(plan: Plan) -> dict[str, tuple[int | None, int | None]]:
    """Return steps and batch of the pre-trainings that say them."""
    folders = {start: plan.encoder(start) for start in (CONTINUED, SCRATCH) if start in plan.matrix.starts}
    found = {start: budget_of(folder) for start, folder in folders.items() if folder is not None}
    return {start: budget for start, budget in found.items() if budget[0] is not None}


def _budget_text(plan: Plan) -> str:
    """Say how long the pre-trainings are."""
    found = _budgets(plan)
    if found:
        said = (
            f"{start} {steps:,} steps" + ("" if batch is None else f" of {count(batch, 'image')}")
            for start, (steps, batch) in found.items()
        )
        return f"Pre-training here: {', '.join(said)}."
    if plan.given.steps is not None:
        return f"pre-trainings have {plan.given.steps:,} steps each"
    if plan.to_pretrain() == [CONTINUED, SCRATCH]:
        return "from scratch is pre-trained for as many steps of as many images as the recipe of continued says"
    return "the pre-training has the steps of its recipe"


def _commands(plan: Plan, job: Job) -> list[Command]:
    if job.run is not None:
        return plan.finetune(job.run)
    if job.start:
        return [plan.pretrain(job.start)]
    found = plan.tokenize()
    return [] if found is None else [found]


def _identity(plan: Plan, job: Job) -> dict[str, Any]:
    """Return what decides a job: its settings, and the weights and tokens it starts from, wherever these lie."""
    given = plan.given
    places = {str(place) for place in (given.labelled, given.val, given.weights, given.images, given.pretrains_on)}
    encoder = None
    if job.run is not None:
        encoder = plan.encoder(job.run.start)
    elif job.start == CONTINUED:
        encoder = given.weights
    places |= {str(encoder)}
    found: dict[str, Any] = {"commands": [_without(command, places, given.out) for command in _commands(plan, job)]}
    if encoder is not None:
        found["encoder_sha256"] = sha256_file(find_encoder(encoder) / WEIGHTS_FILE)
    if job.start:
        found["store_sha256"] = open_store(str(given.pretrains_on)).index_sha256
    return found


def _without(command: Command, places: set[str], out: Path) -> list[str]:
    """Leave out places, which may move, and how many ranks there are."""
    ranks = command.index("--gpus") if "--gpus" in command else len(command)
    kept = [*command[:ranks], *command[ranks + 2 :]]
    return [word for word in kept if word not in places and not word.startswith(f"{out}/")]


def _refuse_others(plan: Plan, jobs: Sequence[Job]) -> None:
    """Refuse finished runs of other settings before any other is begun."""
    for job in (job for job in jobs if job.is_done):
        is_finished(job.file, _identity(plan, job), option="OUT")


def _ensure(plan: Plan, job: Job, runner: Runner, *, jobs: Sequence[Job], head: str, say: Say) -> None:
    """Do a job unless it is finished, and throw away what only an unfinished one needs."""
    with unless_finished(job.file, _identity(plan, job), option="OUT") as is_to_do:
        began = time.monotonic()
        if is_to_do:
            log = plan.given.out / LOGS / f"{job.folder.name}.log"
            with _watching(plan, job) as watch:
                for command in _commands(plan, job):
                    assert not any(LATER in word for word in command), "the continued encoder comes first"
                    runner.beit(*command, log=log, watch=watch)
    if is_to_do:
        told = _outcome(plan, job)
        left = time_text(jobs, is_begun=True)
        say(f"{head} {job.words}{told}, {duration(time.monotonic() - began)}" + (f"; {left}" if left else ""))
    if job.run is not None:
        for name in (CHECKPOINTS, FEATURES, MODEL):  # the last weights are kept, and all numbers
            shutil.rmtree(job.folder / name, ignore_errors=True)


def _outcome(plan: Plan, job: Job) -> str:
    """Say what a run measured."""
    if job.run is None:
        return ""
    found = measured(job.run, plan.given.out)
    return ": " + ", ".join(f"{TASKS[task]} {100 * value:.1f} %" for task, (_, value) in found.items())


@contextmanager
def _watching(plan: Plan, job: Job) -> Iterator[Callable[[], None] | None]:
    """Show how far a training is: always of a pre-training, of the others on a terminal only."""
    is_training = job.start or (job.run is not None and job.run.is_training)
    if not is_training or not (job.start or sys.stderr.isatty()):
        yield None
        return
    total = _steps(plan, job)
    file = job.folder / METRICS
    words = job.start if job.run is None else f"{job.run.labels.number} labels, {job.run.start}"
    with Progress(total, unit="steps", description=words, initial=_newest_step(file), foretells=False) as progress:
        shown, looked = _newest_step(file), time.monotonic()

        def watch() -> None:
            nonlocal shown, looked
            if time.monotonic() - looked < _LOOK_SECONDS:
                return
            step, looked = _newest_step(file), time.monotonic()
            if step > shown:
                progress.update(step - shown)
                shown = step

        yield watch


def _steps(plan: Plan, job: Job) -> int | None:
    """Return the steps of a training, as far as they are known."""
    if job.run is not None:
        return training_steps(plan, job.run.labels)
    [command] = _commands(plan, job)
    given = [word.partition("=")[2] for word in command if word.startswith("train.steps=")]
    return int(given[-1]) if given and given[-1].isdigit() else None


def _newest_step(file: Path) -> int:
    """Return the newest step in the records of a training; 0 where there is none."""
    try:
        with file.open("rb") as records:
            records.seek(0, 2)
            records.seek(max(0, records.tell() - _TAIL_BYTES))
            found = _STEP.findall(records.read())
    except OSError:
        return 0
    return int(found[-1]) if found else 0


def _origin(plan: Plan, start: str) -> dict[str, Any] | None:
    """Return which encoder a start is; None for random weights."""
    if start == RANDOM:
        return None
    encoder = plan.encoder(start)
    assert encoder is not None
    found: dict[str, Any] = {"path": str(encoder)}
    try:
        found["weights_sha256"] = sha256_file(find_encoder(encoder) / WEIGHTS_FILE)
    except ValueError:  # not there yet
        return found
    if start != WEIGHTS:
        found["steps"], found["global_batch_size"] = budget_of(encoder)
    return found
