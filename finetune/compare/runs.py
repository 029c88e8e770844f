"""What `beit compare` knows of a run, read from its files: what was measured, under which settings, for how much work.

A directory holds one run, or a linear probe and k-NN on the same features, which are two. Grouping runs and comparing
them is `compare.py`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beit.common.config import flatten
from beit.common.errors import InputError, require
from beit.common.runs.changes import SPEED_KEYS, matches, with_defaults
from beit.common.runs.environment import STARTS, read_environment
from beit.common.runs.kinds import TOKENIZER, command_of
from beit.common.runs.layout import CONFIG, ENCODER, ENVIRONMENT, EVALUATION, LAST, MASK_PROBE, METRICS, MODEL, PROBES
from beit.common.runs.metrics import read_metrics
from beit.common.runs.starts import last_start
from beit.common.storage.documents import read_json, reading
from beit.common.storage.files import sha256_file
from beit.common.vit.description import WEIGHTS_FILE, read_encoder_config
from beit.finetune.compare.segmentation import MAIN, MeasuredImages, evaluated_settings, measured_images
from beit.finetune.config import FinetuneConfig
from beit.finetune.in_force import brought_settings
from beit.finetune.origin import encoder_text
from beit.finetune.segmentation.config import SegmentationConfig

SEEDS = ("train.seed", "data.subset_seed")
"""Settings that tell the repetitions of one experiment apart."""
_MICRO_BATCH = "train.micro_batch_size"
"""Decides what is learned where norms have statistics of a batch."""
_OF_FROZEN_FEATURES = (
    "encoder",
    "image.",
    "model.",
    "data.",
    "evaluation.crop_pct",
    "evaluation.short_side",
    "probe.",
)
"""Settings that decide a probe, `probe.` too, which decides no training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The work that a run took."""

    steps: int | None
    """Optimizer steps; None for probes, which are fitted."""
    images: int
    """Images seen in training, repetitions counted; for probes, those fitted on."""
    device_seconds: float | None
    """Seconds of training times ranks, evaluation and saving left out; None where nothing recorded it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run."""

    path: str
    """As the user named it."""
    task: str
    """classification, segmentation, linear-probe, knn, segmentation-probe or pretrain."""
    settings: dict[str, Any]
    """What decided it, seeds and speed left out: flat names such as optimizer.lr, and data, the images or the store."""
    seed: tuple[int, ...]
    """Of training and of the label subset."""
    metrics: dict[str, float]
    """What was measured."""
    main_metric: str
    """The one that counts unless another is asked for."""
    measured_on: str
    """Images it was measured on."""
    budget: Budget
    """The work."""
    missing_steps: int = 0
    """Steps that are left to do."""
    source_sha256: str | None = None
    """Identity of all images that training chose from; None where the run does not say."""
    measured_sha256: str | None = None
    """Identity of the images it was measured on; None where nothing says."""
    measured_data: str = ""
    """Where those are, as `measured_on` names it."""
    chance: tuple[float, str] | None = None
    """What the main metric is without looking at an image, and how; None where nothing says."""
    encoder: str = ""
    """What it started from, in words."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """What it recorded of its last start: time, version, command."""
    images: MeasuredImages | None = None
    """What `beit evaluate` kept of a segmenter's images; None where it did not measure the run, and for other tasks."""


def read_runs(path: Path) -> list[RunRecord]:
    """Read the run in a directory, or both probes of it."""
    if not (path / CONFIG).is_file():
        inside = (path.parent / CONFIG).is_file()
        named = f"name {path.parent}, the run that it is in" if inside else "name the RUN of beit finetune or pretrain"
        raise InputError(f"{path} is not a run directory (no config.toml); {named}")
    try:
        values = tomllib.loads((path / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path / CONFIG} is not valid TOML ({error}); restore it") from None
    if "encoder" in values:
        schema = SegmentationConfig if "head" in values else FinetuneConfig
        values = with_defaults(values, schema, path / CONFIG)
    settings = flatten(values)
    # What each reads is named in its errors; what is left are documents that do not say what they must.
    with reading(path, way_out="it is left as it is; restore its files, or leave it out"):
        probes = [
            _read_probe(path, task, settings) for task in (*PROBES, MASK_PROBE) if (path / f"{task}.json").is_file()
        ]
        if probes:
            return probes
        if (path / LAST).is_dir():
            return [_read_finetuning(path, settings)]
        if (path / ENCODER).is_dir():
            return [_read_pretraining(path, settings)]
    command = command_of(path) or ""
    require(
        not command.startswith(TOKENIZER),
        f"{path} holds a run of {command}, which has no row here; beit tokenizer compare holds tokenizers against each "
        "other",
    )
    raise InputError(
        f"{path} has no result yet, or is no run of beit finetune or beit pretrain; to go on with it, "
        "run the command that started it again, which its environment.json has"
    )


def _read_probe(path: Path, task: str, settings: Mapping[str, Any]) -> RunRecord:
    with reading(path / f"{task}.json"):
        return _probe_record(path, task, settings, read_json(path / f"{task}.json"))


def _probe_record(path: Path, task: str, settings: Mapping[str, Any], result: Mapping[str, Any]) -> RunRecord:
    chosen = {
        name: value for name, value in settings.items() if matches(name, _OF_FROZEN_FEATURES) and name not in SEEDS
    }
    if (
        "model.init_values" not in chosen
    ):  # earlier probes recorded what was left out as left out, whatever was in force
        chosen = {name: value for name, value in chosen.items() if not matches(name, ("image.", "model."))}
    measured_on = _images(result.get("validation_data") or settings.get("data.val"), result["num_images"])
    return RunRecord(
        path=str(path),
        task=task,
        settings=chosen | {"data": result.get("data")},
        seed=_seed(settings),
        metrics=_numbers(result),
        main_metric=MAIN if task == MASK_PROBE else "top1",
        measured_on=measured_on,
        measured_data=str(result.get("validation_data") or settings.get("data.val")),
        budget=Budget(steps=None, images=int(result["num_train_images"]), device_seconds=None),
        chance=None if task == MASK_PROBE else _even_chance(result.get("num_classes")),
        encoder=encoder_text(result.get("encoder")),
        start=last_start(path),
        source_sha256=result.get("source_sha256"),
        measured_sha256=result.get("validation_sha256"),
    )


def _read_finetuning(path: Path, settings: dict[str, Any]) -> RunRecord:
    """Read a run by `beit evaluate`'s numbers if they are there, else by those of the model it kept.

    Shape and pixels are the model's: earlier runs recorded what was left out as left out.
    """
    description = read_encoder_config(path / LAST, need_weights=False)
    last = description.provenance
    brought = flatten(brought_settings(description.architecture, description.normalization))
    is_segmenter, images = description.task == "segmentation", None
    if (path / EVALUATION).is_file():
        metrics = read_json(path / EVALUATION)
        with reading(path / EVALUATION):
            place = metrics.get("data")
            measured_on = _images(place, metrics["num_images"])
            measured = metrics.get("validation_sha256")
            if is_segmenter:
                brought, images = brought | evaluated_settings(metrics), measured_images(metrics)
        _require_own_weights(path, metrics.get("model_sha256"))
    else:
        best = read_encoder_config(path / MODEL, need_weights=False).provenance
        metrics = best["metrics"]
        if not metrics:
            raise InputError(f"{path} measured nothing; run beit evaluate {path}/model DATA --out {path / EVALUATION}")
        place = best.get("validation_data")
        measured_on = f"{_images(place, metrics['num_images'])}, the best evaluation"
        measured = best.get("validation_sha256")
    found = settings | brought
    if is_segmenter:  # what an evaluation left out is, as in other runs, not there
        found = {name: value for name, value in found.items() if value is not None}
    main = MAIN if is_segmenter else "map" if "map" in metrics else "top1"
    if main not in metrics:
        raise InputError(f"{path} has no {main} among what was measured; run beit evaluate again")
    return RunRecord(
        path=str(path),
        task=description.task,
        settings=_deciding(found) | {"data": last.get("data"), "images with labels": last.get("num_labels")},
        seed=_seed(settings),
        metrics=_numbers(metrics),
        main_metric=main,
        measured_on=measured_on,
        measured_data=str(place),
        budget=_training_budget(path, settings, last["step"]),
        chance=_chance(metrics, main, description.class_names),
        encoder=encoder_text(last.get("encoder")),
        start=last_start(path),
        missing_steps=_missing_steps(path, settings, last, metric=f"val_{main}", is_higher_better=True),
        source_sha256=last.get("source_sha256"),
        measured_sha256=measured,
        images=images,
    )


def _require_own_weights(path: Path, sha256: str | None) -> None:
    """Refuse an evaluation of weights that the run has replaced since; those of before do not say of which they are."""
    weights = [path / name / WEIGHTS_FILE for name in (MODEL, LAST)]
    if sha256 is not None and sha256 not in [sha256_file(file) for file in weights if file.is_file()]:
        raise InputError(
            f"{path / EVALUATION} is of other weights than {path}/{MODEL} and {path}/{LAST}; delete it, or run beit "
            f"evaluate {path}/{MODEL} DATA --out {path / EVALUATION} again"
        )


def _read_pretraining(path: Path, settings: Mapping[str, Any]) -> RunRecord:
    provenance = read_encoder_config(path / ENCODER, need_weights=False).provenance
    metrics = provenance.get("metrics") or {}
    main = next((name for name in ("held_out_bits", "held_out_mse") if name in metrics), None)
    if main is None:
        raise InputError(f"{path} measured nothing on held-out images; there is nothing to compare it by")
    return RunRecord(
        path=str(path),
        task="pretrain",
        settings=_deciding(settings) | {"data": provenance.get("store")},
        seed=_seed(settings),
        metrics=_numbers(metrics),
        main_metric=main,
        measured_on=f"{metrics.get('held_out_images', 0):.0f} held-out images of {provenance.get('store')}",
        measured_data=str(provenance.get("store")),
        budget=_training_budget(path, settings, provenance["step"]),
        chance=None if metrics.get("unigram_bits") is None else (metrics["unigram_bits"], "frequencies of the words"),
        start=last_start(path),
        missing_steps=_missing_steps(path, settings, provenance, metric=main, is_higher_better=False),
    )


def _chance(metrics: Mapping[str, Any], main: str, class_names: Sequence[str] | None) -> tuple[float, str] | None:
    """Return what `beit evaluate` found that chance gives; else, or for images of one class alone, that of guessing."""
    rows = metrics.get("per_class") or ()
    is_of_one_class = sum(bool(row.get("num_images")) for row in rows) == 1
    if isinstance(metrics.get("chance"), float) and not (main == "top1" and is_of_one_class):
        is_one_class = main in ("top1", MAIN)
        return metrics["chance"], "always saying the commonest class" if is_one_class else "guessing"
    return _even_chance(len(rows or class_names or ())) if main == "top1" else None


def _even_chance(num_classes: Any) -> tuple[float, str] | None:
    return (1 / num_classes, f"guessing one of {num_classes} classes") if num_classes else None


def _images(data: Any, count: Any) -> str:
    return f"{int(count)} images of {data}"


def _seed(settings: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(settings.get(name, 0)) for name in SEEDS)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out seeds and what changes speed only."""
    learned = (_MICRO_BATCH,) if settings.get("head.norm") == "batch" else ()
    return {
        name: value for name, value in settings.items() if name in learned or not matches(name, (*SEEDS, *SPEED_KEYS))
    }


def _training_budget(path: Path, settings: Mapping[str, Any], step: int) -> Budget:
    """Count work from the records of the loop; those of lost work were removed when the run was resumed."""
    batch = int(settings["train.global_batch_size"])
    seconds, logged = 0.0, 0
    for record in read_metrics(path / METRICS):
        if record.get("images_per_second"):
            seconds += (record["step"] - logged) * batch / record["images_per_second"]
            logged = record["step"]
    # What was done before the first record, or between the last one and the end, went as fast as the rest.
    seconds = seconds * step / logged if logged else 0.0
    starts = read_environment(path / ENVIRONMENT).get(STARTS, [])
    ranks = int(starts[-1].get("world_size", 1)) if starts else 1
    return Budget(steps=step, images=step * batch, device_seconds=seconds * ranks or None)


def _missing_steps(
    path: Path, settings: Mapping[str, Any], provenance: Mapping[str, Any], *, metric: str, is_higher_better: bool
) -> int:
    """Return the steps left, none if the run ended early on purpose."""
    missing = int(provenance["total_steps"]) - int(provenance["step"])
    patience = settings.get("train.early_stop_evals")
    if missing <= 0 or not isinstance(patience, int):
        return max(missing, 0)
    values = [record[metric] for record in read_metrics(path / METRICS) if record.get(metric) is not None]
    best = (max if is_higher_better else min)(values, default=None)
    since = len(values) - 1 - values.index(best) if best is not None else 0
    return 0 if since >= patience else missing
