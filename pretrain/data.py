"""From a stored record to a training sample: a view of the image, its tokens, and a mask drawn on the fly.

The view is replayed as it was tokenised, or, where the store has none (--views 0), drawn here. Pixels leave as uint8;
scaling and normalisation are one fused step on the device (`step.py`), and so is a tokenizer that runs online. Which
record comes when is `beit.common.reading.order`; reading it is `beit.common.reading.reader`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.rng import CounterRng
from beit.common.shards.schema import StoreInfo
from beit.common.storage.samples import Record
from beit.common.views import (
    TOKEN_RESAMPLE,
    AugmentConfig,
    Resample,
    compute_canary,
    draw_stored_view,
    draw_view,
    mean_luma,
    render_view,
    replay_view,
)
from beit.pretrain.config import PretrainConfig
from beit.pretrain.masking import MaskConfig, draw_mask

LUMA_TOLERANCE = 3
"""Grey levels by which a cell may differ in tolerant replay: far above resampling noise, far below a wrong crop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewTransform:
    """Turn a record into the arrays of one training sample. Instances are sent to the reader's workers.

    Args:
        img_size: Side of the ViT's view in pixels.
        grid_size: Patches per side.
        mask: How masks are drawn.
        seed: Of the run; with the sample it keys the mask and a fresh view.
        augment: What the store's views were drawn from, and fresh ones are.
        strict: Compare each crop's checksum; else the coarse luma.
        fixed_masks: Give a sample the same mask in every epoch, and instead of fresh views the one that a store with
            views would hold first, for held-out evaluation.
        is_fresh: Draw a view per epoch instead of replaying a stored one.
        token_img_size: Side in pixels of what an online tokenizer sees; 0 where there is none.
        needs_tokens: Whether the stored tokens are part of the sample.
        store_seed: Of the store; decides on its views.
        store_token_img_size: Side in pixels of what was tokenised; 0 where it is not known.
        num_channels: Of the images, C: 3, or 1 where they are grey.
        resample: Filter of the ViT's view.
    """

    img_size: int
    grid_size: int
    mask: MaskConfig
    seed: int
    augment: AugmentConfig
    strict: bool
    fixed_masks: bool = False
    is_fresh: bool = False
    token_img_size: int = 0
    needs_tokens: bool = True
    store_seed: int = 0
    store_token_img_size: int = 0
    num_channels: int = 3
    resample: Resample = "bicubic"

    def __call__(self, record: Record) -> dict[str, NDArray[Any]]:
        """Render the view and draw the mask.

        Returns:
            images: (C, img_size, img_size) uint8. bool_masked_pos: (N,) bool, True = masked. token_ids: (N,) int64,
            where they are needed and stored. token_views: (C, token_img_size, token_img_size) uint8, where a tokenizer
            is to see them.

        Raises:
            BadSample: the image does not decode, or its pixels are not those that were tokenised.
        """
        sample = self._fresh(record) if self.is_fresh else self._stored(record)
        sample["bool_masked_pos"] = self.draw_mask(record.sample_id, record.epoch).reshape(-1)
        return sample

    def blank(self) -> dict[str, NDArray[Any]]:
        """Return a sample of zeros, nothing masked, in the shapes and types of a real one."""
        num_patches = self.grid_size**2
        shown = np.zeros((self.num_channels, self.img_size, self.img_size), dtype=np.uint8)
        sample: dict[str, NDArray[Any]] = {"images": shown, "bool_masked_pos": np.zeros(num_patches, np.bool_)}
        if self.token_img_size:
            side = self.token_img_size
            sample["token_views"] = np.zeros((self.num_channels, side, side), dtype=np.uint8)
        elif self.needs_tokens:
            sample["token_ids"] = np.zeros(num_patches, dtype=np.int64)
        return sample

    def draw_mask(self, sample_id: str, epoch: int) -> NDArray[np.bool_]:
        """Draw the mask of a sample in an epoch, (grid_size, grid_size) bool, True = masked.

        Keyed by (seed, epoch, sample), never by rank or worker: the same sample gets the same mask however the run is
        spread over machines, and whether its tokens are stored or computed online.
        """
        rng = CounterRng(self.seed, "mask", "held-out" if self.fixed_masks else epoch, sample_id)
        return draw_mask(rng, (self.grid_size,) * 2, self.mask)

    def view_of(self, record: Record, width: int, height: int) -> np.void:
        """Return the view a sample is seen under: its stored one, or where there are none, the one drawn for it.

        Width and height are those of the image in px, after EXIF orientation.
        """
        if not self.is_fresh:
            assert record.view is not None
            return record.view
        if self.fixed_masks:
            return draw_stored_view(self.store_seed, record.key, 0, width=width, height=height, augment=self.augment)
        rng = CounterRng(self.seed, "fresh view", record.epoch, record.sample_id)
        return draw_view(rng, width, height, self.augment)

    def _stored(self, record: Record) -> dict[str, NDArray[Any]]:
        if record.view is None or record.token_ids is None:
            raise ValueError(f"{record.sample_id} carries no view and tokens; the store was made with --views 0")
        if self.strict:
            pixels = replay_view(record.image_bytes, record.view, decoding=record.decoding, **self._rendering)
        else:
            image = record.decode_image()
            pixels = render_view(image, record.view, **self._rendering)
            self._check_luma(image, record.view, pixels)
        sample: dict[str, NDArray[Any]] = {"images": _channels_first(pixels)}
        if self.needs_tokens:
            sample["token_ids"] = record.token_ids.astype(np.int64).reshape(-1)
        return sample

    def _fresh(self, record: Record) -> dict[str, NDArray[Any]]:
        image = record.decode_image()
        view = self.view_of(record, image.width, image.height)
        sample = {"images": _channels_first(render_view(image, view, **self._rendering))}
        if self.token_img_size:  # from the same crop
            sample["token_views"] = _channels_first(self._as_tokenised(image, view, self.token_img_size))
        return sample

    @property
    def _rendering(self) -> dict[str, Any]:
        return {"img_size": self.img_size, "resample": self.resample, "jitter_scope": self.augment.jitter_scope}

    def _as_tokenised(self, image: Image.Image, view: np.void, img_size: int) -> NDArray[np.uint8]:
        """Render what a tokenizer sees, with its own filter, as `beit tokenize` does."""
        return render_view(image, view, **(self._rendering | {"img_size": img_size, "resample": TOKEN_RESAMPLE}))

    def _check_luma(self, image: Image.Image, view: np.void, pixels: NDArray[np.uint8]) -> None:
        difference = _luma_difference(view, pixels)
        if difference > LUMA_TOLERANCE and self.store_token_img_size:
            # Fine stripes of small images come out differently at another size; what was tokenised tells for sure.
            difference = _luma_difference(view, self._as_tokenised(image, view, self.store_token_img_size))
        if difference > LUMA_TOLERANCE:
            raise BadSample("luma-mismatch", f"the view differs from the tokenised one by {difference} grey levels")


def build_transform(
    config: PretrainConfig,
    info: StoreInfo,
    *,
    token_img_size: int = 0,
    fixed_masks: bool = False,
    strict: bool | None = None,
) -> ViewTransform:
    """Return what turns the records of a store into the samples of a run, see `ViewTransform`.

    `strict` overrules `data.replay`, for pictures, which may be drawn on another machine.
    """
    return ViewTransform(
        img_size=info.img_size,
        grid_size=info.grid_size,
        mask=config.mask,
        seed=config.train.seed,
        augment=info.augment,
        strict=config.data.replay == "strict" if strict is None else strict,
        fixed_masks=fixed_masks,
        is_fresh=info.views == 0,
        token_img_size=token_img_size,
        needs_tokens=config.objective.needs_tokens,
        resample=config.data.resample(info.img_size),
        store_seed=info.seed,
        store_token_img_size=info.token_img_size if info.views else 0,
        num_channels=info.num_channels,
    )


def _channels_first(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _luma_difference(view: np.void, pixels: NDArray[np.uint8]) -> int:
    return int(np.abs(mean_luma(pixels).astype(np.int64) - view["luma"].astype(np.int64)).max())


def check_replay(store_canary: str, *, strict: bool) -> None:
    """Refuse strict replay on a machine whose decoder or resampler differs from the one that tokenised."""
    if strict and compute_canary() != store_canary:
        raise InputError(
            "this machine's Pillow or libjpeg renders images differently from the one that wrote the store; install "
            "the versions named in store.json, or accept nearly equal pixels with --set data.replay=tolerant"
        )
