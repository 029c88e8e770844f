"""`beit finetune linear-probe` and `beit finetune knn`: how well each block's frozen features tell the classes apart.

Features are `features.py`, the classifiers are `beit.common.vit.features`; here are the two tasks from settings to a
table, a JSON file and, for the linear probe, a model of the best block. Nothing is random.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.common.encoder import save_model
from beit.common.errors import require
from beit.common.forecast.hardware import this_machine
from beit.common.overview.report.automatic import write_report
from beit.common.pages.numbers import percent
from beit.common.pages.tables import aligned
from beit.common.reading.contents import contents_sha256
from beit.common.runs.kinds import PROBE, require_command
from beit.common.runs.layout import FEATURES, MODEL
from beit.common.runs.run_dir import begin_run, check_directory, open_run
from beit.common.sources.labels import all_listed
from beit.common.storage.documents import write_json
from beit.common.vit.channels import describe_fit
from beit.common.vit.description import EncoderConfig
from beit.common.vit.features import Features, LinearProbe, fit_linear, knn_predict
from beit.finetune.artifact import starting_point
from beit.finetune.config import FinetuneConfig
from beit.finetune.data import LabelledData, open_training_data
from beit.finetune.evaluation.evaluate import single_rank
from beit.finetune.evaluation.outcomes import TOP_K
from beit.finetune.in_force import in_force, unnamed_shape
from beit.finetune.probe.features import FrozenEncoder, frozen_features
from beit.finetune.probe.forecast import forecast_probe

logger = logging.getLogger(__name__)

_UNUSED = ("train.", "mix.")
"""Settings of a training, of which there is none here; another start on the same features may change them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeData:
    """What both tasks work on."""

    encoder: FrozenEncoder
    """Whose features they are."""
    images: LabelledData
    """Of the run."""
    train: Features
    """To fit with and to vote."""
    val: Features
    """To measure on."""

    @property
    def num_classes(self) -> int:
        """Classes, C."""
        return len(self.images.class_names)


def run_probe(task: str, config: FinetuneConfig, *, data: str, run_dir: Path, resume: str = "auto") -> str:
    """Measure an encoder's frozen features and write RUN/linear-probe.json or RUN/knn.json; returns the table.

    Both tasks ("linear-probe" and "knn") may share a run directory, and then share the features kept in it.
    """
    require(config.data.val is not None, f"--val is missing; {task} measures on images of its own")
    require(
        not config.classifier.multi_label, f"classifier.multi_label must be false: {task} knows one label per image"
    )
    require_command(run_dir, PROBE)
    check_directory(run_dir, resume=resume)  # before images are listed and weights loaded
    start = starting_point(config)
    if warning := unnamed_shape(config, start.architecture):
        logger.warning("%s", warning)
    config = replace(in_force(config, start.architecture, start.normalization), source=start.reading(config))
    images = open_training_data(data, config.data, reading=config.source)
    assert images.val is not None
    world = single_rank()
    world.announce()
    counts = len(images.train), len(images.val)
    logger.info("%s; %d training and %d validation images", all_listed(images.class_names), *counts)
    if fit := describe_fit(images.train.decoding.num_channels, start.architecture.in_chans):
        logger.info("%s", fit)
    encoder = FrozenEncoder(config, start)
    run = open_run(run_dir, config, world=world, resume=resume, free_keys=_UNUSED)
    begin_run(run, config, world=world)
    directory = run.path
    if not (directory / FEATURES).is_dir():  # else they may be kept from an earlier run
        expected = forecast_probe(
            config,
            start.architecture,
            num_train=counts[0],
            num_val=counts[1],
            num_classes=len(images.class_names),
            is_linear=task == "linear-probe",
            hardware=this_machine(num_devices=1),
        )
        logger.info("%s", expected.line())
    train, val = (
        frozen_features(encoder, index, directory / FEATURES / f"{name}.safetensors", config=config, world=world)
        for name, index in (("train", images.train), ("val", images.val))
    )
    found = ProbeData(encoder=encoder, images=images, train=train, val=val)
    result = _linear_probe(found, config, directory) if task == "linear-probe" else _knn(found, config)
    origin = {
        "encoder": config.encoder,
        "data": images.train.location,
        "validation_data": config.data.val,
        "source_sha256": contents_sha256(images.source),
        "validation_sha256": contents_sha256(images.val),
        "num_classes": found.num_classes,
        "num_train_images": len(train.labels),
        "num_images": len(val.labels),
    }
    result = {"task": task, **origin, **result}
    write_json(directory / f"{task}.json", result)
    if config.run.report:
        write_report(directory)
    return linear_table(result) if task == "linear-probe" else knn_table(result)


def _linear_probe(found: ProbeData, config: FinetuneConfig, directory: Path) -> dict[str, Any]:
    """Fit one classifier per block, and keep the best as a model."""
    probes, rows = [], []
    for block, (features, queries) in enumerate(zip(found.train.blocks, found.val.blocks, strict=True)):
        probe = fit_linear(features, found.train.labels, num_classes=found.num_classes, l2=config.probe.l2)
        probes.append(probe)
        rows.append({"block": block, **linear_scores(probe.logits(queries), found.val.labels)})
        logger.info("block %d: top-1 %s", block, percent(rows[-1]["top1"]))
    best = max(rows, key=lambda row: (row["top1"], row["block"]))
    block = int(best["block"])
    save_probe(directory / MODEL, found, probes[block], block=block, metrics=best, config=config)
    return {"best_block": block, "top1": best["top1"], "top5": best["top5"], "loss": best["loss"], "blocks": rows}


def linear_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return top-1, top-5 (shares) and cross-entropy (nats) of logits (n, C) against labels (n,)."""
    hits = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices == labels[:, None]
    return {
        "top1": hits[:, 0].double().mean().item(),
        "top5": hits.any(1).double().mean().item(),
        "loss": nn.functional.cross_entropy(logits.double(), labels).item(),
    }


def save_probe(
    directory: Path, found: ProbeData, probe: LinearProbe, *, block: int, metrics: Mapping[str, Any], config: Any
) -> None:
    """Write the blocks up to `block` with the classifier on top, for `beit evaluate` and `beit predict`."""
    model = found.encoder.model
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name != "mask_token" and not (name.startswith("blocks.") and int(name.split(".")[1]) > block)
    }
    state |= {"head.weight": probe.weight, "head.bias": probe.bias}
    scores = {name: metrics[name] for name in ("top1", "top5", "loss")}
    description = EncoderConfig(
        architecture=replace(model.config, depth=block + 1, use_mask_token=False),
        normalization=found.encoder.normalization,
        task="classification",
        class_names=found.images.class_names,
        pooling="cls_mean",
        crop_pct=config.evaluation.crop_pct,
        decoding=found.images.train.decoding.of_any_size(),
        provenance={
            "task": "linear-probe",
            "block": block,
            "metrics": {**scores, "num_images": len(found.val.labels)},
            "data": found.images.train.location,
            "data_sha256": found.images.train.index_sha256,
            "num_labels": len(found.images.train),
            "encoder": config.encoder,
            "encoder_provenance": model.provenance,
        },
    )
    save_model(directory, state, description)


def _knn(found: ProbeData, config: FinetuneConfig) -> dict[str, Any]:
    """Let neighbours vote in every block, for every number of neighbours."""
    settings = config.probe
    ks = sorted({min(k, len(found.train.labels)) for k in settings.ks})
    rows: list[dict[str, Any]] = []
    for block, pair in enumerate(zip(found.train.blocks, found.val.blocks, strict=True)):
        features, queries = (_part(blocks, settings.knn_pooling) for blocks in pair)
        predicted = knn_predict(
            features,
            found.train.labels,
            queries,
            num_classes=found.num_classes,
            ks=ks,
            temperature=settings.temperature,
        )  # (len(ks), n)
        top1 = (predicted == found.val.labels).double().mean(1).tolist()
        rows.append({"block": block, "top1": dict(zip(map(str, ks), top1, strict=True))})
        logger.info("block %d: top-1 %s", block, percent(max(top1)))
    score, block, k = max((row["top1"][str(k)], row["block"], -k) for row in rows for k in ks)
    return {"best_block": block, "best_k": -k, "top1": score, "temperature": settings.temperature, "blocks": rows}


def _part(features: Tensor, pooling: str) -> Tensor:
    """Take from features (n, 2 D), CLS first, what neighbours are compared by."""
    if pooling == "cls_mean":
        return features
    first, second = torch.chunk(features, 2, dim=1)
    return second if pooling == "mean" else first


def linear_table(result: Mapping[str, Any]) -> str:
    """Return the linear probe's result for reading."""
    cells = [[percent(row["top1"]), percent(row["top5"]), f"{row['loss']:.4f}"] for row in result["blocks"]]
    return _table(["top-1", "top-5", "loss"], cells, result, mark="best")


def knn_table(result: Mapping[str, Any]) -> str:
    """Return the result of k-NN for reading: one row per block, one column per k."""
    ks = list(result["blocks"][0]["top1"])
    cells = [[percent(row["top1"][k]) for k in ks] for row in result["blocks"]]
    return _table([f"k={k}" for k in ks], cells, result, mark=f"best, k={result['best_k']}")


def _table(titles: list[str], cells: list[list[str]], result: Mapping[str, Any], *, mark: str) -> str:
    """Lay out one row per block, with a mark behind the best one."""
    blocks = [row["block"] for row in result["blocks"]]
    marks = [mark if block == result["best_block"] else "" for block in blocks]
    rows = [[str(block), *shown, note] for block, shown, note in zip(blocks, cells, marks, strict=True)]
    return aligned([["block", *titles], *rows], align=">" * (1 + len(titles)) + "<")
