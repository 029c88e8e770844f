"""A segmentation model in Python: pictures in, the class of every pixel out. The command is `masks.py`.

    model = beit.load_model("runs/streets/model")
    model.predict("photo.jpg").to_image().save("photo.png")

B = batch, C = classes; H, W = size of an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.images.channels import fit_image, pixels_of
from beit.common.images.decoding import USUAL, Decoding
from beit.common.vit.transform import ImageLike, open_image
from beit.finetune.evaluation.overlays import OPACITY, overlay
from beit.finetune.masks.classes import Colour, MaskClasses
from beit.finetune.prediction.mask_files import palette_image
from beit.finetune.prediction.missed_files import RangeCheck
from beit.finetune.segmentation.artifact import load_segmenter
from beit.finetune.segmentation.config import InferenceConfig
from beit.finetune.segmentation.inference import class_ids, segment
from beit.finetune.segmentation.model import Segmenter


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmentation:
    """What the model says about one image of H x W pixels."""

    ids: NDArray[np.uint8]
    """Class of every pixel, (H, W) uint8 in [0, C): the place of its name in `class_names`."""
    class_names: tuple[str, ...]
    """C names."""
    colours: tuple[Colour, ...]
    """C colours, RGB, of `to_image` and `overlay`."""
    probabilities: NDArray[np.float32] | None = None
    """Of every class at every pixel, (C, H, W) float32 that sum to 1 over the classes, if they were asked for."""
    decoding: Decoding = USUAL
    """How the image was decoded, so that `overlay` shows what the model saw."""

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels of each class that was found, the largest first."""
        counts = np.bincount(self.ids.ravel(), minlength=len(self.class_names))
        order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
        return {self.class_names[number]: float(counts[number] / self.ids.size) for number in order}

    def to_image(self) -> Image.Image:
        """Return the ids as an image of mode P (W x H) in the classes' colours; saved as PNG, it gives the ids back."""
        return palette_image(self.ids, self._classes)

    def overlay(self, image: ImageLike, opacity: float = OPACITY) -> Image.Image:
        """Lay the classes' colours over the image they were found in.

        Args:
            image: The image, or its path or URL.
            opacity: Of the colours, in [0, 1].

        Returns:
            RGB, W x H.
        """
        picture = open_image(image, self.decoding).convert("RGB")
        if picture.size != self.ids.shape[::-1]:
            raise ValueError(f"the image ({picture.size}) must be as large as the mask ({self.ids.shape[::-1]})")
        return overlay(picture, self.ids, self._classes, opacity)

    @property
    def _classes(self) -> MaskClasses:
        return MaskClasses(names=self.class_names, colours=self.colours)


class SegmentationModel(Segmenter):
    """A segmentation model and what belongs to it; see `load_model`.

    Attributes:
        class_names: C names, in the order of the logits.
        colours: C colours, RGB.
        inference: How images are segmented; another one, for `dataclasses.replace`, may be put in its place.
    """

    class_names: tuple[str, ...]
    colours: tuple[Colour, ...]
    inference: InferenceConfig
    _range_check: RangeCheck

    # A path is text, and text is an iterable of texts, too: the first signature that fits counts.
    @overload
    def predict(self, images: ImageLike, *, probabilities: bool = False) -> Segmentation: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Iterable[ImageLike], *, probabilities: bool = False) -> list[Segmentation]: ...
    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, probabilities: bool = False
    ) -> Segmentation | list[Segmentation]:
        """Say what each pixel of one image or of many belongs to, as `beit predict` does.

        An image of any size is looked at through windows, or whole, as `inference` says, and answered at its own size.

        Args:
            images: A Pillow image, a path or a URL; or any number of them.
            probabilities: Whether to keep the probabilities of all classes: 4 C bytes per pixel.

        Returns:
            For one image its segmentation, with `ids` (H, W) uint8; for many a list.

        Example:
            >>> model = beit.load_model("runs/streets/model")
            >>> found = model.predict("street.jpg", probabilities=True)
            >>> found.ids.shape, found.ids.dtype, found.probabilities.shape
            ((48, 64), dtype('uint8'), (2, 48, 64))
            >>> found.to_image().save("street.png")
        """
        if isinstance(images, Image.Image | str | PathLike):
            return self._predict_one(images, probabilities)
        return [self._predict_one(image, probabilities) for image in images]

    def _predict_one(self, image: ImageLike, keeps: bool) -> Segmentation:
        pixels = self._pixels(image)
        self._range_check.look([image])
        kept = None
        if keeps:
            kept = np.empty((len(self.class_names), *pixels.shape[1:]), np.float32)
            for strip in segment(self, pixels, self.inference):
                kept[:, strip.top : strip.top + strip.probabilities.shape[1]] = strip.probabilities.cpu().numpy()
        ids = class_ids(self, pixels, self.inference) if kept is None else kept.argmax(0).astype(np.uint8)
        return Segmentation(
            ids=ids,
            class_names=self.class_names,
            colours=self.colours,
            probabilities=kept,
            decoding=self.decoding,
        )

    def _pixels(self, image: ImageLike) -> NDArray[np.uint8]:
        """Return what the model sees of an image before the normalisation, (C, H, W)."""
        return pixels_of(fit_image(open_image(image, self.decoding), self.config.in_chans)).transpose(2, 0, 1)


def load_segmentation_model(path: str | Path) -> SegmentationModel:
    """Load a segmentation model for use, in eval mode on the CPU."""
    model, _, info = load_segmenter(path, kind=SegmentationModel)
    model.class_names, model.colours, model.inference = info.classes.names, info.classes.colours, info.inference
    model._range_check = RangeCheck(model.decoding)
    return model
