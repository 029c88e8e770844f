"""The views that centres are made of: their order, their patches, and what a resumed run insists on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError
from beit.common.images.channels import in_colour
from beit.common.processes.distributed import World
from beit.common.reading.batch_plan import BatchPlan, DataState
from beit.common.reading.contents import contents_of, difference
from beit.common.reading.dataset import build_order
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.reading.reader import build_loader
from beit.common.rng import CounterRng
from beit.common.storage.samples import Record
from beit.common.views import TOKEN_RESAMPLE, AugmentConfig, draw_view, render_view
from beit.tokenize.clustering.config import ClusteringConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewTransform:
    """Turn a record into one random view and a choice of its patches. Instances are sent to the reader's workers."""

    seed: int
    augment: AugmentConfig
    view_size: int
    num_patches: int
    """Of a view."""
    num_chosen: int
    """Patches that are looked at, k."""

    def __call__(self, record: Record) -> dict[str, NDArray[Any]]:
        """Render a view, keyed by the run's seed, epoch and sample.

        Returns:
            images: (3, view_size, view_size) uint8. chosen: (k,) int64, positions in the grid, row by row, ascending.
        Raises:
            BadSample: the image does not decode.
        """
        rng = CounterRng(self.seed, "tokenizer-clustering", record.epoch, record.sample_id)
        pixels = self.render(record, rng)
        chosen = np.arange(self.num_patches)
        if self.num_chosen < self.num_patches:
            chosen = np.sort(rng.permutation(self.num_patches)[: self.num_chosen])
        return {"images": np.ascontiguousarray(pixels.transpose(2, 0, 1)), "chosen": chosen}

    def render(self, record: Record, rng: CounterRng) -> NDArray[np.uint8]:
        """Render one random view, (view_size, view_size, 3) uint8.

        Raises:
            BadSample: the image does not decode.
        """
        image = record.decode_image()
        view = draw_view(rng, image.width, image.height, self.augment)
        scope = self.augment.jitter_scope
        pixels = render_view(image, view, img_size=self.view_size, resample=TOKEN_RESAMPLE, jitter_scope=scope)
        return in_colour(pixels)  # words of grey images are those of the grey in three channels


class Views:
    """The training images in the order of a run, cut into batches and those into micro-batches of this rank."""

    def __init__(
        self, images: LabelledDataset, transform: ViewTransform, config: ClusteringConfig, *, world: World
    ) -> None:
        self._images, self._transform, self._reader, self._world = images, transform, config.reader, world
        settings = config.clustering
        order = build_order(
            images,
            seed=config.seed,
            window_shards=config.reader.window_shards,
            lanes=config.reader.lanes,
            global_batch_size=settings.global_batch_size,
        )
        self._plan = BatchPlan(
            order=order,
            global_batch_size=settings.global_batch_size,
            micro_batch_size=settings.micro_batch_size,
            world_size=world.world_size,
            rank=world.rank,
        )
        self._contents = contents_of(images.index) if world.is_main else None

    @property
    def micro_batches_per_step(self) -> int:
        """Of this rank."""
        return self._plan.grad_accum_steps

    def micro_batches(self, start_step: int, num_steps: int) -> Iterator[Mapping[str, Any]]:
        """Yield this rank's micro-batches of so many batches."""
        loader = build_loader(
            self._images,
            self._plan,
            start_step=start_step,
            num_steps=num_steps,
            transform=self._transform,
            config=self._reader,
            pin_memory=self._world.device.type == "cuda",
            patience_seconds=5.0 if self._world.world_size == 1 else 20.0,
        )
        return iter(loader)

    def state(self, step: int) -> dict[str, Any]:
        """Describe the position after `step` batches, and the identity of the images."""
        return {"order": asdict(self._state(step)), "contents": self._contents}

    def check(self, saved: Mapping[str, Any]) -> None:
        """Refuse to go on over other images, or another order, than those of `saved`, an earlier `state`."""
        order = replace(DataState.from_json(dict(saved["order"])), samples_consumed=0)
        changed = self._world.run_on_main(lambda: difference(saved["contents"], self._contents or {}))
        if order != self._state(0) and not changed:
            changed = "another order"
        if changed:
            raise InputError(
                f"the images differ from those of the checkpoint ({changed}); restore them, or name a new folder"
            )

    def _state(self, step: int) -> DataState:
        images = self._images
        return self._plan.state(steps_completed=step, num_views=images.num_views, index_sha256=images.index_sha256)
