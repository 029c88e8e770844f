"""What a report knows of a run: its files, read once, of every kind of run and in every state.

What is damaged or missing leaves a gap on the page, and a line that says so; only a folder that is no run is refused.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from beit.common.config import flatten
from beit.common.errors import InputError, require
from beit.common.pages.pictures import PALETTE
from beit.common.runs.commits import committed_steps
from beit.common.runs.environment import STARTS, read_environment
from beit.common.runs.layout import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    DESCRIPTION,
    ENCODER,
    ENVIRONMENT,
    EVALUATION,
    INIT,
    LAST,
    MASK_PROBE,
    METRICS,
    MODEL,
    NONFINITE,
    PROBES,
    TOTAL_STEPS,
)
from beit.common.runs.learning_curves import LearningRun, learning_run
from beit.common.runs.metrics import read_metrics, read_records
from beit.common.runs.starts import start_time
from beit.common.storage.documents import read_json
from beit.common.storage.locks import is_in_use
from beit.common.training.judge import Limit, limit_passed

Kind = Literal["pre-training", "classification", "segmentation", "probe", "tokenizer"]
MOST_RUNS = len(PALETTE)
"""As many as colours can be told apart."""
TOKENIZER_FORMAT = "beit-tokenizer"
Shape = Mapping[str, type | tuple[type, ...]]
"""Of a document, what is looked into, and what it is where it is there."""
_NUMBER = (int, float)
_ANY: Shape = {}
_WEIGHTS: Shape = {"provenance": dict, "provenance.metrics": dict, "architecture": dict, "class_names": list}
_TOKENIZER: Shape = {"training": dict, "training.metrics": dict, "model": dict}
_MEASURES = ("top1", "top5", "map", "macro_f1", "miou", "mean_accuracy", "pixel_accuracy", "chance", "num_images")
_EVALUATION: Shape = {**dict.fromkeys(_MEASURES, _NUMBER), "miou_interval": list}
_PROBE: Shape = {**_EVALUATION, "blocks": list, "num_classes": int, "num_train_images": int}
_PATIENCE_SECONDS = 0.1
"""Far longer than it takes to rename a folder; arbitrary."""
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """What ended a run whose steps were not finite."""

    step: int
    """The last one, counted from 0."""
    limit: Limit
    """Which they passed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """One run, as its files say it."""

    path: Path
    """Its directory, as the user named it."""
    name: str
    """As short as it can be told from the others."""
    place: int
    """Among the runs of the page; decides its colour."""
    kind: Kind
    """What was trained or measured."""
    settings: Mapping[str, Any]
    """All settings by their flat names."""
    records: Sequence[Mapping[str, Any]]
    """metrics.jsonl."""
    starts: Sequence[Mapping[str, Any]]
    """environment.json."""
    made: Mapping[str, Any]
    """config.json of the newest weights that the run leaves for use; empty where there are none yet."""
    kept: Mapping[str, Any]
    """config.json of the weights that the run keeps as the best; the same where it keeps no others."""
    data: Mapping[str, Any]
    """data.json of a pre-training."""
    init: Mapping[str, Any]
    """init.json of a pre-training that began from an encoder."""
    probes: Mapping[str, Mapping[str, Any]]
    """What was measured on frozen features, by task."""
    evaluation: Mapping[str, Any]
    """evaluation.json; empty without one."""
    learning: LearningRun | None
    """What its evaluations measured; None for runs that keep no records."""
    checkpoints: tuple[int, ...]
    """Steps of the complete checkpoints."""
    skipped_steps: int
    """Steps that were not finite, as far as they were written down."""
    divergence: Divergence | None
    """What ended it, where skipped steps did and it has not gone on since."""
    is_at_work: bool
    """Whether a process of this or another command was at work in it."""
    gaps: tuple[str, ...]
    """What could not be read, one line each."""

    @property
    def origin(self) -> Mapping[str, Any]:
        """What the newest weights say of where they come from."""
        found = self.made.get("training" if self.kind == "tokenizer" else "provenance")
        return found if isinstance(found, dict) else {}

    @property
    def step(self) -> int:
        """The newest step that anything is known of."""
        steps = [record["step"] for record in self.records] + [*self.checkpoints, self.origin.get("step") or 0]
        return max(steps, default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole plan; None where nothing says it."""
        started = self.starts[-1].get(TOTAL_STEPS) if self.starts else None
        total = started or self.origin.get("total_steps") or self.settings.get("train.steps")
        return total if isinstance(total, int) else None

    @property
    def colour(self) -> tuple[int, int, int]:
        """Of its lines."""
        return PALETTE[self.place % len(PALETTE)]


def read_run_files(paths: Sequence[Path], *, has_ended: bool = False) -> list[RunFiles]:
    """Read runs for one page, at most eight.

    Args:
        paths: Run directories of any kinds.
        has_ended: Whether it is the runs themselves that ask, at their ends; left out, it is seen whether a process is
            at work in each.
    """
    require(len(paths) > 0, "name at least one run")
    require(len(paths) <= MOST_RUNS, f"{len(paths)} runs are too many for one page; name at most {MOST_RUNS}")
    places = [path.resolve() for path in paths]
    twice = next((path for path, place in zip(paths, places, strict=True) if places.count(place) > 1), None)
    require(twice is None, f"{twice} is named twice; name each run once")
    for path in paths:
        _require_run(path)
    named = enumerate(zip(paths, run_names(paths), strict=True))
    return [_read(path, name, place, has_ended=has_ended) for place, (path, name) in named]


def run_names(paths: Sequence[Path]) -> list[str]:
    """Name runs by as few of their folders as tell them apart: not those at their ends that all have."""
    parts = [path.resolve().parts for path in paths]
    if len(parts) > 1:
        while len({own[-1] for own in parts}) == 1:
            parts = [own[:-1] for own in parts]
    most = next(
        most for most in range(1, 1 + max(map(len, parts))) if len({own[-most:] for own in parts}) == len(parts)
    )
    return ["/".join(own[-most:]) for own in parts]


def _require_run(path: Path) -> None:
    require(path.exists(), f"{path} does not exist; name the RUN of a training or a probe")
    if (path / CONFIG).is_file() or (path / DESCRIPTION).is_file() and _is_tokenizer(path):
        return
    around = next((folder for folder in path.absolute().parents[:2] if (folder / CONFIG).is_file()), None)
    if around is not None:
        raise InputError(f"{path} is part of the run {around}; name that")
    if (path / "store.json").is_file():
        raise InputError(f"{path} is a token store; name a RUN that was trained on it, or draw it with beit show views")
    inside = sorted(str(file.parent) for file in path.glob(f"*/{CONFIG}"))
    way_out = f"it holds runs: name {' or '.join(inside[:2])}" if inside else "name the RUN of a training or a probe"
    raise InputError(f"{path} is not a run directory (no {CONFIG}); {way_out}")


def _is_tokenizer(path: Path) -> bool:
    try:
        return bool(read_json(path / DESCRIPTION).get("format") == TOKENIZER_FORMAT)
    except (InputError, AttributeError):
        return False


def _read(path: Path, name: str, place: int, *, has_ended: bool) -> RunFiles:
    gaps: list[str] = []

    def part(read: Callable[[], Found], otherwise: Found) -> Found:
        try:
            return _patiently(read)
        except (InputError, OSError) as error:
            gaps.append(str(error).replace(str(path), name))  # a page that is sent names no folders of ours
            return otherwise

    def document(file: Path, shape: Shape = _ANY) -> dict[str, Any]:
        return part(lambda: _read_document(file, shape), {}) if file.is_file() else {}

    none: dict[str, Any] = {}
    nothing: list[dict[str, Any]] = []
    settings = part(lambda: _settings(path), none)
    probes = {
        task: document(path / f"{task}.json", _PROBE)
        for task in (*PROBES, MASK_PROBE)
        if (path / f"{task}.json").is_file()
    }
    kind = _kind_of(path, settings, probes)
    newest = {"tokenizer": path, "pre-training": path / ENCODER}.get(kind, path / LAST)
    best = {"tokenizer": path, "pre-training": path / ENCODER}.get(kind, path / MODEL)
    has_records = (path / METRICS).is_file()
    shape = _TOKENIZER if kind == "tokenizer" else _WEIGHTS
    made = document(newest / DESCRIPTION, shape)
    starts = part(lambda: read_environment(path / ENVIRONMENT).get(STARTS, []), nothing)
    records = part(lambda: _records(path / METRICS), nothing)
    return RunFiles(
        path=path,
        name=name,
        place=place,
        kind=kind,
        settings=settings,
        records=records,
        starts=starts,
        made=made or document(best / DESCRIPTION, shape),
        kept=made if newest == best else document(best / DESCRIPTION, shape),
        data=document(path / DATA),
        init=document(path / INIT),
        probes={task: found for task, found in probes.items() if found},
        evaluation=document(path / EVALUATION, _EVALUATION),
        learning=part(lambda: learning_run(path, name=name, colour=PALETTE[place]), None) if has_records else None,
        checkpoints=tuple(sorted(committed_steps(path / CHECKPOINTS))),
        skipped_steps=len(read_records(path / NONFINITE)),
        divergence=_divergence(path / NONFINITE, starts, max((record["step"] for record in records), default=0)),
        is_at_work=not has_ended and is_in_use(path),
        gaps=tuple(gaps),
    )


def _patiently(read: Callable[[], Found]) -> Found:
    """Read a file, and once more where that fails: a run at work may be about to put another in its place."""
    try:
        return read()
    except (InputError, OSError):
        time.sleep(_PATIENCE_SECONDS)
        return read()


def _read_document(file: Path, shape: Shape) -> dict[str, Any]:
    """Read a JSON object in which what a shape names is of its type, where it is there."""
    document = read_json(file)
    way_out = "restore the file, or delete it"
    require(isinstance(document, dict), f"{file} is damaged: it is no object; {way_out}")
    for name, kind in shape.items():
        found: Any = document
        for key in name.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        is_sound = found is None or isinstance(found, kind) and not isinstance(found, bool)
        require(is_sound, f"{file} is damaged: {name} ({str(found)[:40]!r}) is not what it can be; {way_out}")
    for name in ("provenance", "training"):
        origin = document.get(name)
        metrics = (origin.get("metrics") or {}) if isinstance(origin, dict) else {}
        wrong = [key for key, value in metrics.items() if not (value is None or isinstance(value, _NUMBER))]
        require(not wrong, f"{file} is damaged: {', '.join(wrong[:3])} of its metrics is no number; {way_out}")
    return dict(document)


def _records(file: Path) -> list[dict[str, Any]]:
    found = read_metrics(file)
    is_lost = not found and file.is_file() and file.stat().st_size > 0
    require(not is_lost, f"{file} is damaged: no line of it is a record; restore it from a copy, if there is one")
    return found


def _divergence(file: Path, starts: Sequence[Mapping[str, Any]], newest_step: int) -> Divergence | None:
    """Tell whether skipped steps ended a run, which has not gone on since."""
    skipped: list[int] = []
    for record in read_records(file):  # a start takes up again what the one before it lost
        skipped = [step for step in skipped if step < record["step"]] + [record["step"]]
    limit = limit_passed(skipped)
    if limit is None or newest_step > skipped[-1] + 1:
        return None
    began = start_time(starts[-1]) if starts else None
    if began is not None and began.timestamp() > file.stat().st_mtime:
        return None
    return Divergence(step=skipped[-1], limit=limit)


def _settings(path: Path) -> dict[str, Any]:
    if not (path / CONFIG).is_file():
        return {}
    try:
        return flatten(tomllib.loads((path / CONFIG).read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{path / CONFIG} is not valid TOML ({error}); restore it") from None


def _kind_of(path: Path, settings: Mapping[str, Any], probes: Mapping[str, Any]) -> Kind:
    """Tell the kind by what was left, since what cannot be read must not decide it."""
    if _is_tokenizer(path) or any(name.startswith(("clustering.", "decoder.")) for name in settings):
        return "tokenizer"
    if (path / DATA).is_file() or (path / ENCODER).is_dir() or "mask.mode" in settings:
        return "pre-training"
    if probes and not (path / METRICS).is_file():
        return "probe"
    if "encoder" in settings:
        return "segmentation" if "head.kind" in settings else "classification"
    return "tokenizer"
