"""`beit predict`: the most likely classes of new images, as a CSV table."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from beit.common.bad_samples import BadSampleLog
from beit.common.errors import InputError
from beit.common.files import atomic_file, check_output
from beit.common.labelled_index import LabelledIndex
from beit.common.labelled_index_build import build_index
from beit.common.loader import Loader
from beit.finetune.artifact import load_classifier
from beit.finetune.config import EvaluationConfig
from beit.finetune.evaluate import TOP_K, default_reader, evaluation_loader, single_rank, with_progress
from beit.finetune.step import class_logits

logger = logging.getLogger(__name__)

_ALL_BUT_ONE = 1 - 1e-12
"""Budget of bad samples: here each is skipped and reported, since the caller wants what can be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What the model says about one image."""

    key: str
    """Path relative to the source's folder, or the sample's name in its tar or Parquet file."""
    labels: tuple[str, ...]
    """Up to five classes, the most likely first."""
    probabilities: tuple[float, ...]
    """Of `labels`, from a softmax over all classes."""


def predict_to_csv(model: str | Path, source: str, *, out: Path | None, stdout: TextIO) -> None:
    """Classify every image of `source` and write one row each; images that cannot be read are reported and left out.

    Columns: key, label, probability, and then label_2, probability_2 and so on for the next most likely classes.

    Args:
        model: Folder that `beit finetune classification` wrote, or its run directory.
        source: Images, with or without labels.
        out: CSV file, complete or absent.
        stdout: Written to where `out` is None.
    Raises:
        InputError: bad input, or no image at all can be read.
    """
    check_output(out)
    predictions = predict(model, source)
    if out is None:
        _write(predictions, stdout)
        return
    with atomic_file(out) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        _write(predictions, text)
        text.detach()


def predict(model: str | Path, source: str) -> Iterator[Prediction]:
    """Yield the prediction for every image of `source` that can be read, in the order of the source.

    Raises:
        InputError: bad input, or no image at all can be read.
    """
    classifier, stored = load_classifier(model)
    assert stored.class_names is not None
    index, world = build_index(source), single_rank()
    reader = default_reader(world, bad_sample_budget=_ALL_BUT_ONE)
    loader = evaluation_loader(index, stored, world=world, settings=EvaluationConfig(), reader=reader)
    classifier.to(world.device)
    mean, std = stored.normalization
    for batch in with_progress(_readable(loader, index), index, world=world, description="predicting"):
        with torch.inference_mode():
            logits = class_logits(classifier, batch["images"].to(world.device), mean=mean, std=std)
            best = logits.softmax(1).topk(min(TOP_K, logits.shape[1]), dim=1)
        for key, chances, classes in zip(_keys(index, batch), best.values.tolist(), best.indices.tolist(), strict=True):
            labels = tuple(stored.class_names[class_id] for class_id in classes)
            yield Prediction(key=key, labels=labels, probabilities=tuple(chances))
    _report(loader.bad_samples, index)


def _readable(loader: Loader, index: LabelledIndex) -> Iterator[Mapping[str, Any]]:
    try:
        yield from loader
    except InputError:
        if len(loader.bad_samples) < len(index):
            raise
        _report(loader.bad_samples, index)


def _report(bad_samples: BadSampleLog, index: LabelledIndex) -> None:
    if not bad_samples:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in bad_samples.counts.most_common())
    if len(bad_samples) == len(index):
        raise InputError(f"none of the {len(index)} images of {index.info.root} can be read ({reasons})")
    logger.warning("%d of %d images skipped (%s)", len(bad_samples), len(index), reasons)


def _keys(index: LabelledIndex, batch: Mapping[str, Any]) -> list[str]:
    """Name images as their user knows them: by path, or inside containers, where paths may repeat, by shard and key."""
    if index.info.kind == "files":
        return [index.ref_at(position).path for position in batch["positions"]]
    return list(batch["sample_ids"])


def _write(predictions: Iterable[Prediction], file: TextIO) -> None:
    """Write the table; its header is as wide as the first row, and all rows are equally wide."""
    writer = csv.writer(file, lineterminator="\n")
    for number, prediction in enumerate(predictions):
        if number == 0:
            more = [
                f"{name}_{place}" for place in range(2, len(prediction.labels) + 1) for name in ("label", "probability")
            ]
            writer.writerow(["key", "label", "probability", *more])
        pairs = zip(prediction.labels, prediction.probabilities, strict=True)
        writer.writerow([prediction.key, *(value for label, chance in pairs for value in (label, f"{chance:.6f}"))])
    file.flush()
