"""Segmenting an image of any size: windows over it or all of it at once, several scales and mirrored, strip by strip.

    for strip in segment(model, pixels, settings):
        strip.probabilities  # (C, rows, W) of the rows from strip.top on

Where windows lie, and what is averaged when, follows mmsegmentation 0.11, which the published numbers were made with:
windows start every `stride` pixels, the last one of a row or column is moved back to the edge; the logits of each are
resized to the window and averaged where windows overlap, then resized to the image's own size; scales and mirrored
looks average probabilities. `short_side` sets the long side to at most four times as much, as there. Differs: what is
smaller than the window, or gets so by that, is filled up to it with the mean colour; there windows shrink, or the run
ends.

What is computed depends on the size of a batch of windows by rounding only. Run it inside `torch.autocast` for half
precision; averages are taken in float32 in any case.

Legend: C = classes; H, W = the image's own size in pixels; h, w = its size at the scale it is looked at; h', w' = size
of the logits of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beit.common.errors import InputError
from beit.common.images.large.tiles import window_starts
from beit.common.vit.config import ViTConfig
from beit.common.vit.transform import normalize_images
from beit.finetune.segmentation.config import InferenceConfig
from beit.finetune.segmentation.model import Segmenter

MAX_ASPECT = 4
"""Of the long side to `short_side`, as in the official size of 2048 by 512."""
MAX_STRIP_BYTES = 16_000_000
"""Of the probabilities of one strip, unless a single row takes more. From 4 to 32 MB are about equally fast."""
MAX_WHOLE_BYTES = 2_000_000_000
"""Of the position bias of one block where an image is looked at as a whole; arbitrary."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of an image, from side to side."""

    top: int
    """First row."""
    probabilities: Tensor
    """(C, rows, W) float32, on the model's device; they sum to 1 over the classes."""


def segment(model: Segmenter, pixels: NDArray[np.uint8] | Tensor, settings: InferenceConfig) -> Iterator[Strip]:
    """Yield the probabilities of every class for every pixel, from the top to the bottom.

    Besides the model and one strip, at most two rows of windows' logits are in memory for each scale and direction that
    is looked in (more where the stride is less than half a window), however large the image.

    Args:
        model: In eval mode, with a normalisation, as `load_segmenter` gives it.
        pixels: (3, H, W) uint8, RGB, or (1, H, W), grey.
        settings: How.

    Raises:
        InputError: the image is too large to be looked at as a whole.
    """
    for top, logits in _strips(model, pixels, settings):
        probabilities = logits[0].softmax(0)
        for other in logits[1:]:
            probabilities += other.softmax(0)
        yield Strip(top, probabilities.div_(len(logits)))


def class_ids(model: Segmenter, pixels: NDArray[np.uint8] | Tensor, settings: InferenceConfig) -> NDArray[np.uint8]:
    """Return the likeliest class of every pixel, (H, W) uint8; the first of equals. See `segment`."""
    rows = []
    for _, logits in _strips(model, pixels, settings):
        # Of a single look the largest logit is the largest probability.
        scores = logits[0] if len(logits) == 1 else torch.stack([one.softmax(0) for one in logits]).sum(0)
        rows.append(likeliest(scores))
    found: NDArray[np.uint8] = torch.cat(rows).numpy()
    return found


def likeliest(scores: Tensor) -> Tensor:
    """Return the class with the largest score for every pixel: from (C, rows, W) to (rows, W) uint8, on the CPU."""
    # The CPU's argmax over the first of several axes takes some ten times as long as its max, which tells places, too.
    found = scores.max(0).indices if scores.device.type == "cpu" else scores.argmax(0)
    return found.to(torch.uint8).cpu()


def looked_at_size(size: tuple[int, int], settings: InferenceConfig, scale: float = 1.0) -> tuple[int, int]:
    """Return the size (height, width) at which an image of another is looked at, in pixels."""
    factor = scale
    if settings.short_side is not None:
        factor *= min(settings.short_side / min(size), MAX_ASPECT * settings.short_side / max(size))
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def require_no_gaps(settings: InferenceConfig, crop_px: int) -> None:
    """Refuse windows so far apart that pixels between them are seen by none.

    Args:
        settings: How images are segmented.
        crop_px: Side of a window, the model's img_size.
    """
    if settings.mode == "slide" and settings.stride is not None and settings.stride > crop_px:
        raise InputError(
            f"evaluation.stride ({settings.stride}) must not exceed the windows, {crop_px} px, or pixels between them "
            "are not looked at; leave it out for two thirds of that"
        )


def require_room(settings: InferenceConfig, shape: ViTConfig, most_pixels: int) -> None:
    """Refuse images that are surely too large to be looked at as a whole, before a training spends hours on them.

    Args:
        settings: How images are segmented.
        shape: Of the model.
        most_pixels: Of the largest image.
    """
    if settings.mode == "whole":
        # Of a given short side an image has at least the square; sizes in whole patches are a little more.
        looked_at = (settings.short_side**2 if settings.short_side else most_pixels) * max(settings.scales) ** 2
        _refuse_too_many(int(looked_at) // shape.patch_size**2, shape, f"an image of {most_pixels:,} pixels")


def _strips(
    model: Segmenter, pixels: NDArray[np.uint8] | Tensor, settings: InferenceConfig
) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield (top, logits (C, rows, W) float32 of every look) strip by strip."""
    if model.training or model.normalization is None:
        raise ValueError("model must be in eval mode and have a normalization")
    require_no_gaps(settings, model.config.img_size)
    image = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.require(pixels, requirements="W"))
    height, width = image.shape[-2:]
    looks = [
        _Look(model, image, settings, size=looked_at_size((height, width), settings, scale), is_mirrored=is_mirrored)
        for scale in settings.scales
        for is_mirrored in ((False, True) if settings.flip else (False,))
    ]
    widest = max(look.row_bytes for look in looks)
    rows = max(1, MAX_STRIP_BYTES // widest)
    for top in range(0, height, rows):
        with torch.inference_mode():
            logits = [look.own_rows(top, min(top + rows, height)) for look in looks]
        yield top, logits


@dataclass
class _Look:
    """One look at an image, at one scale and in one direction."""

    model: Segmenter
    image: Tensor
    """(C, H, W) uint8."""
    settings: InferenceConfig
    size: tuple[int, int]
    """(h, w)."""
    is_mirrored: bool
    _rows: dict[int, list[tuple[int, Tensor]]] = field(default_factory=dict)
    """Top of a row of windows to their left edges and logits (C, h', w')."""

    def __post_init__(self) -> None:
        model, settings = self.model, self.settings
        self.own_size = own_size = (self.image.shape[-2], self.image.shape[-1])
        side, patch = model.config.img_size, model.config.patch_size
        self.window = (side, side)
        if settings.mode == "whole":
            height, width = (-(-length // patch) * patch for length in self.size)
            self.window = height, width
            _require_room(model, self.window, own_size)
        stride = settings.stride or max(1, side * 2 // 3)
        self.tops, self.lefts = (
            window_starts(length, window, stride) for length, window in zip(self.size, self.window, strict=True)
        )
        image = self.image.flip(-1) if self.is_mirrored else self.image
        if own_size != self.size:
            image = nn.functional.interpolate(image[None], size=self.size, mode="bilinear", antialias=True)[0]
        self.image = image
        stretch = -(-self.size[0] // own_size[0])
        self.row_bytes = 4 * model.num_classes * max(own_size[1], stretch * self.size[1])

    def own_rows(self, first: int, last: int) -> Tensor:
        """Return logits (C, rows, W) float32 of rows of the image at its own size; asked for in ascending order."""
        height, width = self.own_size
        if self.own_size == self.size:
            logits = self._averaged(first, last)
        else:
            low, high = _support(first, last, height, self.size[0])
            logits = resized_rows(self._averaged(low, high), (self.size[0], height), width, (first, last), low)
        return logits.flip(-1) if self.is_mirrored else logits

    def _averaged(self, first: int, last: int) -> Tensor:
        """Return logits (C, rows, w) of rows at this look's size, averaged over the windows that see them."""
        side = self.window[0]
        self._rows = {top: row for top, row in self._rows.items() if top + side > first}
        if self.tops == self.lefts == [0]:
            return self._of_window(self._logits_of_row(0)[0][1], first, last)[..., : self.size[1]]
        total = torch.zeros(self.model.num_classes, last - first, self.size[1], device=self.model.cls_token.device)
        counts = total.new_zeros(total.shape[1:])
        for top in self.tops:
            low, high = max(first, top), min(last, top + side)
            if low >= high:
                continue
            for left, logits in self._logits_of_row(top):
                right = min(left + self.window[1], self.size[1])
                found = self._of_window(logits, low - top, high - top)
                total[:, low - first : high - first, left:right] += found[..., : right - left]
                counts[low - first : high - first, left:right] += 1
        return total.div_(counts)

    def _of_window(self, logits: Tensor, first: int, last: int) -> Tensor:
        """Resize logits (C, h', w') to their window, of which some rows are wanted."""
        return resized_rows(logits, (logits.shape[1], self.window[0]), self.window[1], (first, last), 0)

    def _logits_of_row(self, top: int) -> list[tuple[int, Tensor]]:
        """Return left edges and logits of all windows that begin at a row, computed once."""
        if top not in self._rows:
            self._rows[top] = list(self._row_of_windows(top))
        return self._rows[top]

    def _row_of_windows(self, top: int) -> Iterator[tuple[int, Tensor]]:
        """Compute the logits of all windows that begin at a row, yielded with their left edges."""
        count = self.settings.micro_batch_size
        weight, normalization = self.model.cls_token, self.model.normalization
        assert normalization is not None
        for start in range(0, len(self.lefts), count):
            lefts = self.lefts[start : start + count]
            cut = [self.image[:, top : top + self.window[0], left : left + self.window[1]] for left in lefts]
            images = normalize_images(torch.stack(cut).to(weight.device), *normalization).to(weight.dtype)
            lacking = [window - length for window, length in zip(self.window, images.shape[-2:], strict=True)]
            images = nn.functional.pad(images, (0, lacking[1], 0, lacking[0]))  # zero is the mean colour
            yield from zip(lefts, self.model(images).float(), strict=True)


def _support(first: int, last: int, out_length: int, in_length: int) -> tuple[int, int]:
    """Return which input rows [low, high) the output rows [first, last) of a bilinear resize look at."""
    low, high = ((row + 0.5) * in_length / out_length - 0.5 for row in (first, last - 1))
    return max(0, int(low) - 1), min(in_length, int(high) + 3)


def resized_rows(maps: Tensor, lengths: tuple[int, int], width: int, rows: tuple[int, int], offset: int) -> Tensor:
    """Resize maps bilinearly as a whole, but only some rows of the result.

    Args:
        maps: (C, h', w'): rows of the input from `offset` on, at least those that are looked at.
        lengths: Rows of the whole input, and of the whole result.
        width: Columns of the result.
        rows: First and last + 1 of those that are wanted.
        offset: Of the first row that is there.

    Returns:
        (C, rows, width), as `resize` would compute them, up to rounding.
    """
    whole, result = lengths
    wanted = torch.arange(*rows, dtype=torch.float64, device=maps.device)
    source = ((wanted + 0.5) * whole / result - 0.5).clamp(min=0)
    upper = source.long()
    share = (source - upper).to(maps.dtype)[None, :, None]
    lower = (upper + 1).clamp(max=whole - 1)
    found = torch.lerp(maps[:, upper - offset], maps[:, lower - offset], share)
    return nn.functional.interpolate(found, size=width, mode="linear", align_corners=False)


def _require_room(model: Segmenter, size: tuple[int, int], own_size: tuple[int, int]) -> None:
    patches = size[0] * size[1] // model.config.patch_size**2
    _refuse_too_many(patches, model.config, f"an image of {own_size[1]}x{own_size[0]} pixels")


def _refuse_too_many(patches: int, shape: ViTConfig, what: str) -> None:
    if 4 * shape.num_heads * (1 + patches) ** 2 > MAX_WHOLE_BYTES:
        raise InputError(
            f"{what} is too large to be looked at as a whole, in {patches} patches; set evaluation.mode=slide, or "
            "evaluation.short_side"
        )
