"""`beit predict`: the most likely classes of new images, or their features, as a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from beit.common.encoder import load_encoder
from beit.common.errors import InputError, require
from beit.common.reading.bad_samples import BadSampleLog
from beit.common.reading.loader import Loader
from beit.common.sources.config import SourceConfig
from beit.common.sources.glance.depth import warn_of_missed
from beit.common.sources.index import LabelledIndex
from beit.common.sources.index_build import build_index
from beit.common.vit.description import EncoderConfig, read_encoder_config
from beit.common.vit.features import pool_features
from beit.common.vit.transform import normalize_images
from beit.finetune.artifact import load_classifier
from beit.finetune.config import EvaluationConfig
from beit.finetune.data import image_name
from beit.finetune.evaluation.evaluate import default_reader, evaluation_loader, say_fit, single_rank, with_progress
from beit.finetune.prediction.classifier import class_probabilities, name_classes
from beit.finetune.prediction.files import Prediction, check_prediction_file, write_csv_text, write_predictions

logger = logging.getLogger(__name__)

ALL_BUT_ONE = 1 - 1e-12
"""Budget of bad samples: here each is skipped and reported, since the caller wants what can be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A model in use.

    Args:
        stored: Its description.
        model: Moved to where it computes.
        represent: Normalised images to features (B, D).
        classify: Features to logits (B, C); None for a model without classes.
        with_features: Whether predictions carry the features.
    """

    stored: EncoderConfig
    model: torch.nn.Module
    represent: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor] | None
    with_features: bool

    def __call__(self, images: Tensor, keys: Sequence[str]) -> list[Prediction]:
        """Return one prediction for each of images (B, 3, img_size, img_size) uint8."""
        return self.name(*self.look(images), keys)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features (B, D) and, of a model with classes, probabilities (B, C), both float32."""
        features = self.represent(normalize_images(images, *self.stored.normalization)).float()
        if self.classify is None:
            return features, None
        return features, class_probabilities(self.classify(features), multi_label=self.stored.multi_label)

    def name(self, features: Tensor, probabilities: Tensor | None, keys: Sequence[str]) -> list[Prediction]:
        """Turn what `look` returned, or means of it, into one prediction for each of B keys."""
        found = [Prediction(key=key) for key in keys]
        if probabilities is not None:
            is_multi = self.stored.multi_label
            found = name_classes(probabilities, keys, self.stored.class_names or (), multi_label=is_multi)
        if self.with_features:
            rows = zip(found, features.tolist(), strict=True)
            found = [replace(prediction, features=tuple(row)) for prediction, row in rows]
        return found


def predict_to_file(
    model: str | Path,
    source: str,
    *,
    out: Path | None,
    stdout: TextIO,
    features: bool = False,
    settings: SourceConfig | None = None,
) -> None:
    """Label every image of `source`, one row each; images that cannot be read are reported and left out.

    Args:
        model: Folder that `beit finetune` wrote, or its run directory; with `features` also an encoder.
        source: Images, with or without labels.
        out: .csv, .parquet or .jsonl file, complete or absent.
        stdout: CSV goes here where `out` is None.
        features: Add the features that the head sees; of an encoder, the mean of the patches after
            the block that its run's probe found best, or after the last.
        settings: Which images of the source are read.
    """
    check_prediction_file(out, inputs=[model, source])
    batches = predict(model, source, features=features, settings=settings)
    if out is None:
        write_csv_text(batches, stdout)
    else:
        write_predictions(batches, out)


def refuse_mask_options(model: str | Path, **given: bool) -> None:
    """Refuse, for a classifier or an encoder, what belongs to segmenters."""
    for option, is_given in given.items():
        require(
            not is_given,
            f"--{option} is for segmenters, and {model} is none: it says what an image shows, not each pixel; leave "
            "it out",
        )


def predict(
    model: str | Path, source: str, *, features: bool = False, settings: SourceConfig | None = None
) -> Iterator[list[Prediction]]:
    """Yield the predictions for all images of `source` that can be read, batch by batch, in the order of the source."""
    predictor = load_predictor(model, features=features)
    reading = (settings or SourceConfig()).after(predictor.stored.decoding, str(model), is_final=True)
    index, world = build_index(source, settings=reading), single_rank()
    world.announce()
    say_fit(index, predictor.stored, world)
    warn_of_missed(index, index.decoding, option="--range")
    reader = default_reader(world, bad_sample_budget=ALL_BUT_ONE)
    loader = evaluation_loader(index, predictor.stored, world=world, settings=EvaluationConfig(), reader=reader)
    predictor.model.to(world.device)
    for batch in with_progress(_readable(loader, index), index, world=world, description="predicting"):
        keys = [image_name(index, position) for position in batch["positions"]]
        with torch.inference_mode():
            found = predictor(batch["images"].to(world.device), keys)
        yield found
    report_bad_samples(loader.bad_samples, index)


def load_predictor(model: str | Path, *, features: bool) -> Predictor:
    """Load a classifier, or, where only features are wanted, an encoder without a head."""
    stored = read_encoder_config(model)
    if stored.task == "pretrain" and features:
        encoder = load_encoder(model)
        block = encoder.config.depth - 1 if stored.best_block is None else stored.best_block
        return Predictor(
            stored=stored,
            model=encoder,
            represent=lambda images: pool_features(encoder.forward_intermediates(images, [block])[0]),
            classify=None,
            with_features=True,
        )
    classifier, stored = load_classifier(model)
    return Predictor(
        stored=stored,
        model=classifier,
        represent=lambda images: classifier.pool(classifier.forward_features(images)),
        classify=classifier.head,
        with_features=features,
    )


def _readable(loader: Loader, index: LabelledIndex) -> Iterator[Mapping[str, Any]]:
    try:
        yield from loader
    except InputError:
        if len(loader.bad_samples) < len(index):
            raise
        report_bad_samples(loader.bad_samples, index)


def report_bad_samples(bad_samples: BadSampleLog, index: LabelledIndex) -> None:
    """Say how many images were left out, and refuse a source of which that is all."""
    if not bad_samples:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in bad_samples.counts.most_common())
    if len(bad_samples) == len(index):
        raise InputError(
            f"none of the {len(index)} images of {index.name} can be read ({reasons}); the lines above say why"
        )
    logger.warning("%d of %d images skipped (%s)", len(bad_samples), len(index), reasons)
