"""From a stored record to a training sample: the view replayed, its tokens, and a block mask drawn on the fly.

Pixels leave here as uint8; scaling and normalisation are one fused step on the device (`step.py`). Which record comes
when is `beit.common.sampler`; reading it is `beit.common.reader`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.common.dataset import Record
from beit.common.errors import BadSample, InputError
from beit.common.images import decode_image
from beit.common.rng import CounterRng
from beit.common.views import JitterScope, compute_canary, mean_luma, render_view
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
        seed: Of the run; with the sample it keys the mask.
        jitter_scope: As the store's views were drawn.
        strict: Compare each crop's checksum; else the coarse luma.
        fixed_masks: Give a sample the same mask in every epoch, for held-out evaluation.
    """

    img_size: int
    grid_size: int
    mask: MaskConfig
    seed: int
    jitter_scope: JitterScope
    strict: bool
    fixed_masks: bool = False

    def __call__(self, record: Record) -> dict[str, NDArray[np.generic]]:
        """Render the view and draw the mask.

        Returns:
            images: (3, img_size, img_size) uint8. token_ids: (N,) int64. bool_masked_pos: (N,) bool, True = masked.

        Raises:
            BadSample: the image does not decode, or its pixels are not those that were tokenised.
        """
        if record.view is None or record.token_ids is None:
            raise ValueError(f"{record.sample_id} carries no view and tokens; the store was made with --views 0")
        image = decode_image(record.image_bytes)
        pixels = render_view(
            image, record.view, img_size=self.img_size, jitter_scope=self.jitter_scope, check_crop=self.strict
        )
        if not self.strict:
            _check_luma(record.view, pixels)
        return {
            "images": np.ascontiguousarray(pixels.transpose(2, 0, 1)),
            "token_ids": record.token_ids.astype(np.int64).reshape(-1),
            "bool_masked_pos": self.draw_mask(record).reshape(-1),
        }

    def draw_mask(self, record: Record) -> NDArray[np.bool_]:
        """Draw the mask of a sample in its epoch, (grid_size, grid_size) bool, True = masked.

        Keyed by (seed, epoch, sample), never by rank or worker: the same sample gets the same mask however the run is
        spread over machines.
        """
        when = "held-out" if self.fixed_masks else record.epoch
        return draw_mask(CounterRng(self.seed, "mask", when, record.sample_id), (self.grid_size,) * 2, self.mask)


def _check_luma(view: np.void, pixels: NDArray[np.uint8]) -> None:
    difference = np.abs(mean_luma(pixels).astype(np.int64) - view["luma"].astype(np.int64)).max()
    if difference > LUMA_TOLERANCE:
        raise BadSample("luma-mismatch", f"the view differs from the tokenised one by {difference} grey levels")


def check_replay(store_canary: str, *, strict: bool) -> None:
    """Refuse strict replay on a machine whose decoder or resampler differs from the one that tokenised.

    Raises:
        InputError: the canary hashes differ and replay is strict.
    """
    if strict and compute_canary() != store_canary:
        raise InputError(
            "this machine's Pillow or libjpeg renders images differently from the one that wrote the store; install "
            "the versions named in store.json, or accept nearly equal pixels with --set data.replay=tolerant"
        )
