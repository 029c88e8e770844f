"""The health of a run: where it is, whether it can go on, and whether what it has saved is intact."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from beit.common.config import read_toml
from beit.common.errors import InputError
from beit.common.forecast.words import in_gb
from beit.common.overview.doctor.findings import Finding, fault, guarded, warning, well
from beit.common.overview.doctor.health.tokenizers import look_at_tokenizer
from beit.common.overview.doctor.health.weights import look_at_encoder
from beit.common.overview.doctor.machine.space import look_at_disk
from beit.common.pages.numbers import count, percent
from beit.common.runs.commits import checkpoint_folders
from beit.common.runs.environment import STARTS, read_environment
from beit.common.runs.layout import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    DESCRIPTION,
    ENCODER,
    ENVIRONMENT,
    LAST,
    MASK_PROBE,
    METRICS,
    MODEL,
    PROBES,
    TOTAL_STEPS,
)
from beit.common.runs.metrics import read_metrics
from beit.common.storage.documents import read_json
from beit.common.storage.locks import is_in_use
from beit.common.storage.paths import is_remote

_ROOM = 1.2
"""Free space that a checkpoint asks for, relative to its size."""
_MANY_SKIPPED = 0.01
"""Share of steps that were not finite from which on something is wrong; float16 skips a few at its beginning."""

_RECENT, _LONG_WAIT = 10, 0.3
"""Records of which the share of time is taken that went into waiting for data, and which share is long; arbitrary."""


def look_at_run(path: Path) -> Iterator[Finding]:
    """Yield where a run is, and what is wrong with it."""
    config = read_toml(path / CONFIG)
    starts = read_environment(path / ENVIRONMENT).get(STARTS, [])
    is_busy, saved = is_in_use(path), checkpoint_folders(path / CHECKPOINTS)
    intact, damaged = _intact(saved)
    if intact is not None or not saved:
        yield _state(path, config, starts, step=intact[0] if intact else None, is_busy=is_busy)
    yield from _checkpoints(path, saved, intact=intact, damaged=damaged)
    yield from _measured(path)
    if saved and not is_busy and not _is_finished(path, config, starts, intact[0] if intact else None):
        needed = _ROOM * _size(saved[-1][1])
        disk = [*look_at_disk(path, f"the disk of {path}", topic="run", needed=needed)]
        yield from (finding for finding in disk if finding.level == "fault")
    yield from _data(path)
    yield from _weights(path)


def _intact(saved: list[tuple[int, Path]]) -> tuple[tuple[int, Mapping[str, Any]] | None, dict[int, str]]:
    """Return step and record of the newest intact checkpoint, and what is wrong with the others."""
    from beit.common.runs.checkpoint import open_checkpoint

    newest, damaged = None, {}
    for step, folder in saved:
        try:
            newest = step, open_checkpoint(folder).record
        except (InputError, OSError) as error:
            damaged[step] = str(error)
    return newest, damaged


def _total_steps(path: Path, config: Mapping[str, Any], starts: list[dict[str, Any]]) -> int | None:
    """Return the steps of the whole run; of a run of before, as far as its records tell."""
    train = config.get("train", {})
    for known in (train.get("steps"), starts[-1].get(TOTAL_STEPS) if starts else None):
        if isinstance(known, int):
            return known
    records = [record for record in read_metrics(path / METRICS) if record.get("epoch")]
    epochs = train.get("epochs")
    if not records or not isinstance(epochs, int | float):
        return None
    return max(1, int(epochs * records[-1]["step"] / records[-1]["epoch"]))


def _is_finished(path: Path, config: Mapping[str, Any], starts: list[dict[str, Any]], step: int | None) -> bool:
    if any((path / f"{name}.json").is_file() for name in (*PROBES, MASK_PROBE)):
        return True
    if "steps" not in config.get("train", {}) and "epochs" not in config.get("train", {}):
        return (path / DESCRIPTION).is_file()  # k-means: no steps, one result
    total = _total_steps(path, config, starts)
    return step is not None and total is not None and step >= total


def _state(
    path: Path,
    config: Mapping[str, Any],
    starts: list[dict[str, Any]],
    *,
    step: int | None,
    is_busy: bool,
) -> Finding:
    total = _total_steps(path, config, starts)
    where = "not begun" if step is None else f"step {step:,}" + (f" of {total:,}" if total else "")
    if is_busy:
        return well("run", f"{path}: a process is at work in it; saved: {where}")
    if _is_finished(path, config, starts, step):
        return well("run", f"{path} is finished" + ("" if step is None else f" ({where})"))
    command = _command(starts)
    again = f"; to go on: {command}" if command else "; the same command goes on"
    if step is None:
        return well("run", f"{path} has saved nothing yet{again.replace('go on', 'begin')}")
    return well("run", f"{path} stopped at {where}{again}")


def _command(starts: list[dict[str, Any]]) -> str:
    """Return the command that was given last; secrets in it are stars."""
    words = starts[-1].get("command") if starts else None
    if not isinstance(words, list) or not words:
        return ""
    return shlex.join(["beit", *map(str, words[1:])])


def _checkpoints(
    path: Path,
    saved: list[tuple[int, Path]],
    *,
    intact: tuple[int, Mapping[str, Any]] | None,
    damaged: Mapping[int, str],
) -> Iterator[Finding]:
    for step, reason in damaged.items():
        folder = shlex.quote(str(path / CHECKPOINTS / f"step_{step}"))
        if intact is None:
            mend = f"restore it, or rm -r {folder} to begin anew"
            yield fault("checkpoint", f"{reason}; no checkpoint is intact, the run cannot go on", mend)
        elif step > intact[0]:
            yield fault("checkpoint", f"{reason}; the run would go back to step {intact[0]}", f"rm -r {folder}")
        else:
            yield warning("checkpoint", f"{reason}; a newer one is intact", f"rm -r {folder}")
    if intact is None:
        return
    step, record = intact
    skipped = record.get("nonfinite", {}).get("total", 0)
    if skipped > _MANY_SKIPPED * max(1, step):
        yield warning(
            "checkpoint",
            f"{count(skipped, 'step')} of {step:,} were skipped, their loss or gradients not finite "
            f"({path / 'nonfinite.jsonl'})",
            "--set optimizer.lr lower, from an earlier checkpoint",
        )
    size = in_gb(_size(saved[-1][1]))
    many = len(saved) - len(damaged)
    yield well("checkpoint", f"{count(many, 'checkpoint')} intact by sha256, up to step {step:,}, {size} each")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _measured(path: Path) -> Iterator[Finding]:
    """Yield what metrics.jsonl tells of the end of the training so far."""
    if not (path / METRICS).is_file():
        return
    records = [record for record in read_metrics(path / METRICS) if "loss" in record]
    if records and records[-1]["loss"] is None:
        yield fault(
            "run",
            f"the loss of step {records[-1]['step']:,} is not finite",
            "--resume an earlier checkpoint with a lower optimizer.lr",
        )
        return
    waits = [record["data_wait"] for record in records[-_RECENT:] if isinstance(record.get("data_wait"), float)]
    if len(waits) == _RECENT and sum(waits) / len(waits) > _LONG_WAIT:
        yield warning(
            "run",
            f"it waits for data {percent(sum(waits) / len(waits))} of the time",
            "more cores, --set reader.num_workers=N, or a store made with --materialize",
        )


def _data(path: Path) -> Iterator[Finding]:
    if not (path / DATA).is_file():
        return
    data = read_json(path / DATA)
    store = data.get("store") if isinstance(data, dict) else None
    if isinstance(store, str) and not is_remote(store) and not Path(store).exists():
        yield warning(
            "run",
            f"the store it trains on, {store}, is not there",
            "name where it is now in the command, or restore it",
        )


def _weights(path: Path) -> Iterator[Finding]:
    for name in (ENCODER, MODEL, LAST):
        folder = path / name
        if folder.is_dir() and any(folder.iterdir()):
            yield from guarded(name, partial(look_at_encoder, folder))
    if (path / DESCRIPTION).is_file():
        yield from guarded("tokenizer", partial(look_at_tokenizer, path))
