"""What `beit worth` compares: starts, numbers of labels, seeds, tasks, and where the run of each lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.common.errors import InputError, did_you_mean, require
from beit.common.runs.layout import PROBES
from beit.common.storage.files import sha256_file
from beit.common.storage.paths import normalise

RANDOM, WEIGHTS, CONTINUED, SCRATCH = "random", "weights", "continued", "scratch"
NAMES = {
    RANDOM: "random weights",
    WEIGHTS: "the weights as they are",
    CONTINUED: "continuing here",
    SCRATCH: "pre-training from scratch here",
}
"""What there is to start from, in sentences."""
STARTS = tuple(NAMES)
_STARTS_CALLED = {
    "public": WEIGHTS,
    "pretrained": WEIGHTS,
    "pre_trained": WEIGHTS,
    "as_is": WEIGHTS,
    "init": RANDOM,
    "continue": CONTINUED,
    "adapted": CONTINUED,
    "from_scratch": SCRATCH,
}
CLASSIFICATION = "classification"
TASKS = {CLASSIFICATION: "fine-tuned", PROBES[0]: "linear probe", PROBES[1]: "k-NN"}
"""What is measured, as `beit finetune` calls it and in tables; the first that is there is what sentences are about."""
PAIRS = (
    (CONTINUED, WEIGHTS),
    (SCRATCH, WEIGHTS),
    (CONTINUED, SCRATCH),
    (WEIGHTS, RANDOM),
    (CONTINUED, RANDOM),
    (SCRATCH, RANDOM),
)
"""What is held against what: the second of each."""
_ONLY_WITHOUT = {(CONTINUED, RANDOM): WEIGHTS, (SCRATCH, RANDOM): WEIGHTS}
"""Pairs that say nothing new where a third start is there."""
ALL = "all"
RUNS, STORE = "runs", "store"
"""In OUT: the fine-tunings and probes, and the tokens of `--images`; the pre-trainings are called as their starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """One number of labels."""

    text: str
    """As it was given: a number, or all."""
    number: int
    """The same as a number."""
    epochs: float | None = None
    """Passes over them of the fine-tuning; None leaves that to the recipe."""

    @property
    def is_all(self) -> bool:
        """Whether these are all labels, of which there is one choice only."""
        return self.text == ALL


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """The options of a comparison as they were given."""

    labelled: str
    """Images to learn from."""
    val: str
    """Images to measure on."""
    out: Path
    """Where everything is written."""
    weights: Path | None
    """A pre-trained encoder."""
    store: str | None
    """Token store to pre-train on here."""
    images: str | None
    """Images to make such a store of."""
    continued: Path | None
    """Encoder that was continued before."""
    scratch: Path | None
    """Encoder that was pre-trained from scratch before."""
    recipe: str
    """Of the fine-tuning."""
    continue_recipe: str | None
    """Of the pre-training that goes on from the weights; None for the one that fits their shape."""
    scratch_recipe: str | None
    """Of the pre-training from scratch; None for the one that fits their patches."""
    steps: int | None
    """Of each pre-training; None for as many as the recipe of the first has."""
    settings: tuple[str, ...]
    """Changes to the recipe of the fine-tuning, KEY=VALUE."""
    random_settings: tuple[str, ...]
    """The same for random weights only."""
    pretrain_settings: tuple[str, ...]
    """Changes to both recipes of pre-training."""
    continue_settings: tuple[str, ...]
    """Changes to that of the continued one only."""
    scratch_settings: tuple[str, ...]
    """Changes to that from scratch only."""
    views: int
    """Of each image, in a store that is made of `images`."""
    threads: int | None
    """Processor threads of a run; None leaves that to it."""
    gpus: int | None
    """Ranks of each training."""

    @property
    def pretrains_on(self) -> str | None:
        """The store that is pre-trained on here; None where there is none."""
        return str(self.out / STORE) if self.images is not None else self.store


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of one start: fine-tuned and measured, or both probes."""

    start: str
    """What it starts from."""
    labels: Labels
    """How many it learns from."""
    seed: int
    """Of the choice of labels, and of the training."""
    tasks: tuple[str, ...]
    """What it measures."""

    @property
    def is_training(self) -> bool:
        """Whether it is fine-tuned; otherwise it is measured as it is."""
        return self.tasks == (CLASSIFICATION,)

    @property
    def name(self) -> str:
        """Of its folder."""
        kind = "finetune" if self.is_training else "probe"
        return f"{kind}-{self.labels.text}-{self.start}-seed{self.seed}"

    @property
    def words(self) -> str:
        """What it is, in a line of the log."""
        return f"{self.labels.number} labels, {self.start}, seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Return where it is."""
        return out / RUNS / self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """All runs of a comparison."""

    starts: tuple[str, ...]
    """In the order of `STARTS`."""
    labels: tuple[Labels, ...]
    """From few to many."""
    seeds: tuple[int, ...]
    """Repetitions."""
    tasks: tuple[str, ...]
    """In the order of `TASKS`."""

    def runs(self) -> list[Run]:
        """Return all runs, seed after seed, so that pairs are complete early."""
        kinds = [part for part in (self.tasks_of(True), self.tasks_of(False)) if part]
        return [
            Run(start=start, labels=labels, seed=seed, tasks=tasks)
            for seed in self.seeds
            for labels in self.labels
            for tasks in kinds
            if seed in self.seeds_of(labels, tasks[0])
            for start in self.starts
        ]

    def tasks_of(self, is_training: bool) -> tuple[str, ...]:
        """Return those that are trainings, or the others."""
        return tuple(task for task in self.tasks if (task == CLASSIFICATION) == is_training)

    def seeds_of(self, labels: Labels, task: str) -> tuple[int, ...]:
        """Return the seeds that tell runs apart: a probe of all labels is the same whatever the seed."""
        return self.seeds[:1] if labels.is_all and task != CLASSIFICATION else self.seeds

    def pairs(self) -> list[tuple[str, str]]:
        """Return what is held against what."""
        there = [pair for pair in PAIRS if set(pair) <= set(self.starts)]
        return [pair for pair in there if _ONLY_WITHOUT.get(pair) not in self.starts]


def identity_of(given: Given, *, labelled_sha256: str, val_sha256: str, encoders: dict[str, str]) -> dict[str, Any]:
    """Return what decides a comparison, whatever is added to it later: starts, numbers of labels, seeds, tasks.

    Args:
        given: Its options.
        labelled_sha256: Identity of the images to learn from.
        val_sha256: Identity of those to measure on.
        encoders: sha256 of the weights of those that were there before, by start.
    """
    return {
        "labelled": labelled_sha256,
        "val": val_sha256,
        "encoders": encoders,
        "recipe": given.recipe,
        **_recipe_files(given),
        "set": list(given.settings),
        "random-set": list(given.random_settings),
    } | ({} if given.pretrains_on is None else _pretraining(given))


def _recipe_files(given: Given) -> dict[str, str]:
    """Return what is in the recipes that are files, which may be edited later."""
    named = {"recipe": given.recipe, "continue-recipe": given.continue_recipe, "scratch-recipe": given.scratch_recipe}
    files = {option: Path(name) for option, name in named.items() if name is not None}
    return {f"{option}-sha256": sha256_file(path) for option, path in files.items() if path.is_file()}


def _pretraining(given: Given) -> dict[str, Any]:
    return {
        "store": given.store,
        "images": given.images,
        "views": given.views if given.images is not None else None,
        "steps": given.steps,
        "continue-recipe": given.continue_recipe,
        "scratch-recipe": given.scratch_recipe,
        "pretrain-set": list(given.pretrain_settings),
        "continue-set": list(given.continue_settings),
        "scratch-set": list(given.scratch_settings),
    }


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what two identities do not agree on; what only one of them has was added, and contradicts nothing."""
    found = [key for key in now if key != "encoders" and key in before and not _agree(key, before[key], now[key])]
    encoders = [start for start, sha in now["encoders"].items() if before["encoders"].get(start, sha) != sha]
    return [*(f"encoders.{start}" for start in encoders), *found]


def _agree(key: str, before: Any, now: Any) -> bool:
    """Tell whether two values say the same; a place may be written in several ways."""
    if key in ("store", "images") and before is not None and now is not None:
        return normalise(before) == normalise(now)
    return bool(before == now)


def parse_starts(text: str | None, given: Given) -> tuple[str, ...]:
    """Return the starts of `--starts`; None means all that what is given allows."""
    is_possible = {start: not _missing(start, given) for start in STARTS}
    if text is None:
        chosen = [start for start in STARTS if is_possible[start]]
        require(
            len(chosen) > 1,
            "there is nothing to compare random weights with; give --weights ENCODER, an encoder, and --store STORE "
            "to pre-train on your own images",
        )
        return tuple(chosen)
    names = _parts(text)
    for name in names:
        if name not in STARTS:
            hint = did_you_mean(name, STARTS, _STARTS_CALLED)
            raise InputError(f"--starts {name!r} must be among {', '.join(STARTS)}{hint}")
        if missing := _missing(name, given):
            raise InputError(f"--starts {name} needs {missing}; give it, or leave {name} out")
    require(len(set(names)) > 1, f"--starts {text} is one start; name two or more of {', '.join(STARTS)}")
    return tuple(start for start in STARTS if start in names)


def _missing(start: str, given: Given) -> str:
    """Return which options a start lacks; empty where none."""
    here = "--store STORE (or --images SOURCE)"
    if start == WEIGHTS:
        return "" if given.weights else "--weights ENCODER"
    if start == SCRATCH:
        return "" if given.scratch or given.pretrains_on else here
    if start == CONTINUED and not given.continued:
        needed = ([] if given.weights else ["--weights ENCODER"]) + ([] if given.pretrains_on else [here])
        return " and ".join(needed)
    return ""


def parse_labels(text: str | None, *, total: int, num_classes: int) -> tuple[Labels, ...]:
    """Return the numbers of labels of `--labels`, from few to many.

    Args:
        text: N or N:EPOCHS, separated by commas; None for 10 and 50 of each class, as far as there are so many.
        total: Labelled images there are.
        num_classes: Classes among them.
    """
    if text is None:
        numbers = [number for number in (10 * num_classes, 50 * num_classes) if number < total]
        return tuple(Labels(text=str(n), number=n) for n in numbers) or (Labels(text=ALL, number=total),)
    found = {}
    for part in _parts(text):
        number, colon, epochs = part.partition(":")
        is_right = (number == ALL or number.isdigit()) and (not colon or _is_positive(epochs))
        require(
            is_right, f"--labels {part!r} must be a number of labels, or {ALL}; N:EPOCHS also says how long is trained"
        )
        count = total if number == ALL else int(number)
        require(
            num_classes <= count <= total,
            f"--labels {number} must be between the {num_classes} classes and the {total} labelled images there are",
        )
        require(count not in found, f"--labels {text} has {number} twice; leave one out")
        found[count] = Labels(
            text=ALL if count == total else number, number=count, epochs=float(epochs) if colon else None
        )
    return tuple(found[count] for count in sorted(found))


def parse_tasks(text: str) -> tuple[str, ...]:
    """Return the tasks of `--tasks`."""
    names = _parts(text)
    for name in names:
        if name not in TASKS:
            hint = did_you_mean(name, TASKS, {"finetune": CLASSIFICATION, "probe": PROBES[0], "k_nn": PROBES[1]})
            raise InputError(f"--tasks {name!r} must be among {', '.join(TASKS)}{hint}")
    return tuple(task for task in TASKS if task in names)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
