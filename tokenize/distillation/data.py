"""Views of images as the tokenizer and its teacher see them, in training and for measuring.

One view is drawn per image and rendered once for every side that is needed, each time from the decoded image, as `beit
tokenize` does; neither is resized from the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.common.images.channels import in_colour
from beit.common.rng import CounterRng
from beit.common.storage.samples import Record
from beit.common.views import TOKEN_RESAMPLE, AugmentConfig, draw_view, render_view

IMAGES, TEACHER_IMAGES, CHANGED_IMAGES = "images", "teacher_images", "changed_images"
"""Names of what the tokenizer sees, of what the teacher sees where that has another side, and of what the tokenizer is
to give the same words for."""
_JITTER = AugmentConfig()
"""Whose colours views of `beit tokenize` have by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewTransform:
    """Turn a record into one random view of its image. Instances are sent to the reader's workers.

    The view is keyed by the run's seed, epoch and sample.
    """

    side: int
    """That the tokenizer takes, S, in px."""
    teacher_side: int
    """That the teacher takes, T, in px."""
    augment: AugmentConfig
    """Distribution of the views."""
    seed: int
    """Of the run."""

    def __call__(self, record: Record) -> dict[str, NDArray[np.uint8]]:
        """Render a view.

        Returns:
            images, (3, S, S) uint8, and where the sides differ teacher_images, (3, T, T) uint8.
        Raises:
            BadSample: the image does not decode.
        """
        return self.render(record, CounterRng(self.seed, "distillation", record.epoch, record.sample_id))

    def render(self, record: Record, rng: CounterRng, *, with_changed: bool = False) -> dict[str, NDArray[np.uint8]]:
        """Render the view that `rng` draws.

        With `with_changed` also changed_images, (3, S, S) uint8: the same crop in mirror image and in colours that are
        drawn anew, of the range that `beit tokenize` draws from by default.
        """
        image = record.decode_image()
        view = draw_view(rng, image.width, image.height, self.augment)
        scope = self.augment.jitter_scope

        def rendered(view: np.void, side: int) -> NDArray[np.uint8]:
            pixels = render_view(image, view, img_size=side, resample=TOKEN_RESAMPLE, jitter_scope=scope)
            return np.ascontiguousarray(in_colour(pixels).transpose(2, 0, 1))

        sides = {IMAGES: self.side} | ({TEACHER_IMAGES: self.teacher_side} if self.teacher_side != self.side else {})
        views = {name: rendered(view, side) for name, side in sides.items()}
        if with_changed:
            changed, colours = view.copy(), draw_view(rng, image.width, image.height, _JITTER)
            changed["flip"] = 1 - view["flip"]
            for name in ("jitter_order", "bright", "contrast", "sat"):
                changed[name] = colours[name]
            views[CHANGED_IMAGES] = rendered(changed, self.side)
        return views
