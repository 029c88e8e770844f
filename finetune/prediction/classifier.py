"""A classifier in Python: pictures in, classes with probabilities out. The command is `predict.py`.

    model = beit.load_model("runs/flowers/model")
    model.predict("photo.jpg").label

B = batch, C = classes, S = img_size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import overload

import torch
from PIL import Image
from torch import Tensor

from beit.common.images.decoding import GREY, RGB
from beit.common.vit.transform import ImageLike
from beit.finetune.artifact import load_classifier
from beit.finetune.classification.model import ImageClassifier
from beit.finetune.evaluation.outcomes import TOP_K
from beit.finetune.evaluation.scores import THRESHOLD
from beit.finetune.prediction.files import Prediction
from beit.finetune.prediction.missed_files import RangeCheck

_CHUNK = 32
"""Images in memory and in one forward pass; arbitrary."""


class Classifier(ImageClassifier):
    """A fine-tuned model and what belongs to it; see `load_model`.

    Attributes:
        class_names: C names, in the order of the logits.
        multi_label: Whether an image may be of several classes or of none.
    """

    class_names: tuple[str, ...]
    multi_label: bool
    _range_check: RangeCheck

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of every class.

        Args:
            images: (B, 3, S, S), of a grey model (B, 1, S, S): float, normalised, as `transform` gives them; or uint8,
                pixels in [0, 255], grey or RGB for either, which are normalised here. On any device.

        Returns:
            (B, C) float32 on the model's device: a softmax over the classes, so that rows sum to 1; a sigmoid for each
            class where images may have several.
        Raises:
            ValueError: another shape.
        """
        own = self.config.in_chans
        if images.ndim != 4 or images.shape[1] not in ((GREY, RGB) if images.dtype == torch.uint8 else (own,)):
            raise ValueError(
                f"images must be (B, {own}, S, S), got {tuple(images.shape)}; images[None] makes one a batch"
            )
        images = images.to(self.cls_token.device)
        if images.dtype == torch.uint8:
            images = self.transform.normalize(images)
        return class_probabilities(self(images.to(self.cls_token.dtype)), multi_label=self.multi_label)

    @overload  # a path is text, and text is an iterable of texts, too: the first signature that fits counts
    def predict(self, images: ImageLike, *, top_k: int = TOP_K) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Tensor | Iterable[ImageLike], *, top_k: int = TOP_K) -> list[Prediction]: ...
    def predict(
        self, images: ImageLike | Tensor | Iterable[ImageLike], *, top_k: int = TOP_K
    ) -> Prediction | list[Prediction]:
        """Say what is in one image or in many, as `beit predict` does.

        Args:
            images: A Pillow image, a path or a URL; any number of them; or a tensor (B, C, S, S), see `probabilities`.
            top_k: How many classes to name at most.

        Returns:
            For one image its prediction: `label` and `probability`, and `labels` and `probabilities` of the `top_k`
            most likely classes, the most likely first. For many, or a tensor, a list.

        Example:
            >>> model = beit.load_model("runs/flowers/model")
            >>> model.class_names
            ('rose', 'tulip')
            >>> prediction = model.predict("photo.jpg")
            >>> prediction.label in model.class_names, 0.5 <= prediction.probability <= 1
            (True, True)
        """
        if isinstance(images, Image.Image | str | PathLike):
            return self._predict_all([images], top_k)[0]
        return self._predict_all(images, top_k)

    def _predict_all(self, images: Tensor | Iterable[ImageLike], top_k: int) -> list[Prediction]:
        if top_k < 1:
            raise ValueError(f"top_k ({top_k}) must be at least 1")
        found: list[Prediction] = []
        with torch.inference_mode():
            for batch, names in self._batches(images):
                keys = [str(len(found) + row) if name is None else name for row, name in enumerate(names)]
                found += name_classes(
                    self.probabilities(batch), keys, self.class_names, multi_label=self.multi_label, top_k=top_k
                )
        return found

    def _batches(self, images: Tensor | Iterable[ImageLike]) -> Iterator[tuple[Tensor, list[str | None]]]:
        """Yield batches of few images, and what each image is called: its path, or nothing."""
        if isinstance(images, Tensor):
            for batch in torch.split(images, _CHUNK):
                yield batch, [None] * len(batch)
            return
        rest = iter(images)
        while chunk := list(islice(rest, _CHUNK)):
            names = [None if isinstance(image, Image.Image) else str(image) for image in chunk]
            yield self.transform.batch(chunk), names
            self._range_check.look(chunk)


def load_classification_model(path: str | Path) -> Classifier:
    """Load a classifier for use, in eval mode on the CPU."""
    model, stored = load_classifier(path, kind=Classifier)
    assert stored.class_names is not None
    model.class_names, model.multi_label = stored.class_names, stored.multi_label
    model._range_check = RangeCheck(model.decoding)
    return model


def class_probabilities(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Turn logits (B, C) into probabilities, float32."""
    logits = logits.float()  # softmax loses too much in bf16
    return logits.sigmoid() if multi_label else logits.softmax(1)


def name_classes(
    probabilities: Tensor, keys: Sequence[str], class_names: Sequence[str], *, multi_label: bool, top_k: int = TOP_K
) -> list[Prediction]:
    """Turn probabilities (B, C) into one prediction for each of B keys."""
    best = probabilities.topk(min(top_k, len(class_names)), dim=1)
    rows = zip(keys, best.values.tolist(), best.indices.tolist(), probabilities >= THRESHOLD, strict=True)
    return [
        Prediction(
            key=key,
            labels=tuple(class_names[class_id] for class_id in classes),
            probabilities=tuple(values),
            predicted=tuple(class_names[int(c)] for c in over.nonzero()) if multi_label else None,
        )
        for key, values, classes, over in rows
    ]
