"""A fine-tuned model for use from Python, whatever it was trained for: `classifier.py` and `segmenter.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, overload

import torch

from beit.common.errors import require
from beit.common.vit.description import read_encoder_config
from beit.finetune.prediction.classifier import Classifier, load_classification_model
from beit.finetune.prediction.segmenter import SegmentationModel, load_segmentation_model


@overload
def load_model(
    path: str | Path, *, device: str | torch.device = "cpu", task: Literal["classification"] | None = None
) -> Classifier: ...
@overload
def load_model(
    path: str | Path, *, device: str | torch.device = "cpu", task: Literal["segmentation"]
) -> SegmentationModel: ...
def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    task: Literal["classification", "segmentation"] | None = None,
) -> Classifier | SegmentationModel:
    """Load a fine-tuned model for use: what `beit finetune classification`, `segmentation` or `linear-probe` wrote.

    Args:
        path: The folder `RUN/model`, or the run directory RUN.
        device: Where to put it.
        task: What it must have been trained for. Left out, either is loaded; type checkers then expect a classifier.

    Returns:
        The model in eval mode. Both kinds have `class_names`, `predict`, which takes images and paths, and all that an
        encoder has: see `beit.load_encoder`.

        A classifier, called, maps normalised images (B, 3, S, S) float32, S = `config.img_size` in pixels, to logits
        (B, C) float32; it has `transform` (image or path to (3, S, S)) and `probabilities`, and `predict` gives labels.

        A segmentation model, called, maps normalised images (B, 3, h, w) float32 to logits (B, C, h', w') float32 on
        the grid of its head; it has `colours` and `inference`, and `predict` gives the class of every pixel at the
        image's own size: `ids` (H, W) uint8.

    Example:
        >>> model = beit.load_model("runs/flowers/model")
        >>> images = model.transform.batch(["photo.jpg", Image.open("other.png")])
        >>> with torch.inference_mode():
        ...     logits = model(images)
        >>> logits.shape, logits.dtype
        (torch.Size([2, 2]), torch.float32)
        >>> [prediction.label in model.class_names for prediction in model.predict(["photo.jpg", "other.png"])]
        [True, True]
        >>> beit.load_model("runs/streets/model").predict("street.jpg").ids.shape
        (48, 64)
    """
    found = read_encoder_config(path).task
    require(task is None or task == found, f"{path} is a model of {found}, not of {task}; name another")
    model = load_segmentation_model(path) if found == "segmentation" else load_classification_model(path)
    return model.to(device)
