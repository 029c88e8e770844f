"""The samples a run trains on: the plan of its steps, the micro-batches of this rank, and the position to resume from.

Puts together the order (`common/reading/order.py`), the arithmetic of steps (`config.py`) and the reader
(`common/reading/reader.py`); every training of every stage goes through here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from beit.common.processes.distributed import World
from beit.common.reading.batch_plan import BatchPlan, DataState, check_resume
from beit.common.reading.config import ReaderConfig
from beit.common.reading.dataset import Dataset, build_order
from beit.common.reading.order import Order
from beit.common.reading.reader import build_loader
from beit.common.storage.samples import Record
from beit.common.training.batches import Batch
from beit.common.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, plan_training

logger = logging.getLogger(__name__)


class TrainingData:
    """One data set in the order of one run, as the training loop wants it (`beit.common.training.task.TaskData`).

    Args:
        dataset: Samples to train on; the same on every rank.
        transform: Turns a record into the arrays of one row; sent to the reader's workers.
        train: Length, batch and seed.
        optimizer: Warmup.
        checkpoint: Saving interval.
        reader: Loading.
        world: The ranks.
    Raises:
        InputError: no sample, or a global batch that the ranks cannot share.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Callable[[Record], Mapping[str, Any]],
        *,
        train: TrainConfig,
        optimizer: OptimizerConfig,
        checkpoint: CheckpointConfig,
        reader: ReaderConfig,
        world: World,
    ) -> None:
        self.dataset, self.transform = dataset, transform
        self._reader, self._world, self._seed = reader, world, train.seed
        self.plan = plan_training(
            train,
            optimizer,
            checkpoint,
            num_samples=int(dataset.shard_sizes.sum()),
            world_size=world.world_size,
        )
        self._batches = self._cut(reader.lanes)

    @property
    def order(self) -> Order:
        """The order the samples come in."""
        return self._batches.order

    def _cut(self, lanes: int | None) -> BatchPlan:
        """Build the order and this rank's share of it; None stands for the data set's number of lanes."""
        order = build_order(
            self.dataset,
            seed=self._seed,
            window_shards=self._reader.window_shards,
            lanes=lanes,
            global_batch_size=self.plan.global_batch_size,
        )
        return BatchPlan(
            order=order,
            global_batch_size=self.plan.global_batch_size,
            micro_batch_size=self.plan.micro_batch_size,
            grad_accum_steps=self.plan.grad_accum_steps,
            world_size=self._world.world_size,
            rank=self._world.rank,
        )

    def micro_batches(self, start_step: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches from `start_step` to the end of the run, `grad_accum_steps` per step."""
        loader = build_loader(
            self.dataset,
            self._batches,
            start_step=start_step,
            num_steps=self.plan.total_steps - start_step,
            transform=self.transform,
            config=self._reader,
            pin_memory=self._world.device.type == "cuda",
        )
        return iter(loader)

    def state(self, step: int) -> dict[str, Any]:
        """Describe the position in the data after `step` completed steps, and the identity of the data."""
        return self._state(step).to_json()

    def check_resume(self, saved: Mapping[str, Any], *, allow_data_change: bool = False) -> None:
        """Refuse to continue on other data than those of `saved`, an earlier `state`, unless told to.

        Where `reader.lanes` is left out, the saved order's lanes are taken: a store may have moved to or from a server.

        Raises:
            InputError: they differ; every difference is named.
        """
        state = DataState.from_json(dict(saved))
        mine = self._state(0)
        same = (state.global_batch_size, state.index_sha256) == (mine.global_batch_size, mine.index_sha256)
        if self._reader.lanes is None and same and state.lanes != mine.lanes:
            if self._world.is_main:
                logger.info("the order keeps its lanes: %d, as the run began", state.lanes)
            self._batches = self._cut(state.lanes)
        check_resume(state, self._state(0), allow_data_change=allow_data_change)

    def _state(self, step: int) -> DataState:
        return self._batches.state(
            steps_completed=step, num_views=self.dataset.num_views, index_sha256=self.dataset.index_sha256
        )
