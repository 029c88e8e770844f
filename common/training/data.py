"""The samples a run trains on: the plan of its steps, the micro-batches of this rank, and the position to resume from.

Puts together the order (`common/reading/order.py`), the arithmetic of steps (`config.py`) and the reader
(`common/reading/reader.py`); every training of every stage goes through here. Beside it the stream of micro-batches as
the loop sees it: on the device, one ahead, with the time spent waiting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from beit.common.errors import InputError
from beit.common.processes.cores import return_freed_memory
from beit.common.processes.distributed import World
from beit.common.reading.batch_plan import BatchPlan, DataState, check_resume, grad_accum_steps_for
from beit.common.reading.contents import Watched, contents_of, difference
from beit.common.reading.dataset import Dataset, build_order
from beit.common.reading.order import Order
from beit.common.reading.reader import build_loader
from beit.common.runs.changes import FREE_KEYS, matches
from beit.common.storage.samples import Record
from beit.common.training.config import TrainingConfig, plan_training

logger = logging.getLogger(__name__)
_CONTENTS = "contents"
"""Where `state` keeps what the data hold; absent in checkpoints of before."""
_LOCATION = "location"
"""Key of where they lie; absent in records of earlier versions."""
_BESIDE = (_CONTENTS, _LOCATION)

Batch = Mapping[str, Any]
"""One micro-batch: tensors beside lists of keys and the like."""


class TrainingData:
    """One data set, the same on every rank, in the order of one run, as the training loop wants it.

    Args:
        dataset: The samples.
        transform: Turns a record into the arrays of one row; it is sent to the reader's workers.
        config: Of the run.
        world: The ranks.
        watched: Labelled data whose contents a resumed run insists on, by what the user calls them, such as "--val";
            those that settings choose may be others if these were changed, on purpose or freely.
        rows_together: Neighbouring rows that a micro-batch must not part, such as 2 where images are mixed in pairs;
            None where the loss looks across a whole micro-batch, which is then the rank's share, if nothing is set.
        is_joint: Whether what is learned depends on how many images go through the model at a time over all ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Callable[[Record], Mapping[str, Any]],
        config: TrainingConfig,
        *,
        world: World,
        watched: Mapping[str, Watched] | None = None,
        rows_together: int | None = 1,
        is_joint: bool = False,
    ) -> None:
        self.dataset, self.transform, self.rows_together = dataset, transform, rows_together
        self.is_joint = is_joint
        self._watched = dict(watched or {})
        # Of the machine that writes the checkpoints: elsewhere copies may have other times. Now, before anybody edits.
        self._contents = {name: contents_of(data.index) for name, data in self._watched.items() if world.is_main}
        self._reader, self._world, self._seed = config.reader, world, config.train.seed
        self.plan = plan_training(
            config.train,
            config.optimizer,
            config.checkpoint,
            num_samples=int(dataset.shard_sizes.sum()),
            world_size=world.world_size,
        )
        self._batches = self._cut(self._reader.lanes)
        self.start_step = 0
        """Where this process began."""
        self.is_resumed = False
        """Whether there is a checkpoint to go on from, whose weights replace the first ones."""

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
            world_size=self._world.world_size,
            rank=self._world.rank,
        )

    def use_micro_batches_of(self, size: int) -> None:
        """Cut this rank's share of every step into micro-batches of `size` samples; before the first is read."""
        steps = grad_accum_steps_for(self.plan.global_batch_size, size, self._world.world_size)
        self.plan = replace(self.plan, micro_batch_size=size, grad_accum_steps=steps)
        self._batches = replace(self._batches, micro_batch_size=size)

    def example(self, size: int) -> Batch:
        """Return a micro-batch of `size` samples of the first step, read by this process."""
        loader = build_loader(
            self.dataset,
            replace(self._batches, micro_batch_size=size),
            start_step=0,
            num_steps=1,
            transform=self.transform,
            config=replace(self._reader, num_workers=0),
        )
        return next(iter(loader))

    def micro_batches(self, start_step: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches from `start_step` to the end of the run, `grad_accum_steps` per step."""
        self.start_step = start_step
        loader = build_loader(
            self.dataset,
            self._batches,
            start_step=start_step,
            num_steps=self.plan.total_steps - start_step,
            transform=self.transform,
            config=self._reader,
            pin_memory=self._world.device.type == "cuda",
            # Alone, a rank can save what it has; together they would lose all since the last checkpoint.
            patience_seconds=5.0 if self._world.world_size == 1 else 20.0,
        )
        return iter(loader)

    def state(self, step: int) -> dict[str, Any]:
        """Describe the position in the data after `step` completed steps, and the identity of the data."""
        beside = {_CONTENTS: self._contents or None, _LOCATION: self._location}
        return asdict(self._state(step)) | {name: value for name, value in beside.items() if value is not None}

    @property
    def _location(self) -> str | None:
        """Where the data lie, for messages of a later start; None where they do not say."""
        return getattr(self.dataset, "location", None)

    def check_resume(
        self, saved: Mapping[str, Any], *, allow_data_change: bool = False, changed: Collection[str] = ()
    ) -> None:
        """Refuse to continue on other data than those of `saved`, an earlier `state`, unless told to.

        Where `reader.lanes` is left out, the saved order's lanes are taken: a store may have moved to or from a server.

        Args:
            saved: From the checkpoint.
            allow_data_change: Whether other data are fine.
            changed: Settings that are not those of the checkpoint.
        """
        self.is_resumed = True
        state = DataState.from_json({name: value for name, value in saved.items() if name not in _BESIDE})
        mine = self._state(0)
        same = (state.global_batch_size, state.index_sha256) == (mine.global_batch_size, mine.index_sha256)
        if self._reader.lanes is None and same and state.lanes != mine.lanes:
            if self._world.is_main:
                logger.info("the order keeps its lanes: %d, as the run began", state.lanes)
            self._batches = self._cut(state.lanes)
        locations = (saved.get(_LOCATION), self._location)
        check_resume(state, self._state(0), allow_data_change=allow_data_change, locations=locations)
        if self._watched:
            before = saved.get(_CONTENTS)
            self._world.run_on_main(lambda: self._check_contents(before, allow_data_change, changed))

    def _check_contents(self, before: Any, allow_data_change: bool, changed: Collection[str]) -> None:
        if not isinstance(before, Mapping):
            logger.info(
                "the checkpoint says nothing of the contents of %s: whether images were edited since is not known",
                " and ".join(self._watched),
            )
            return
        found = {name: difference(before[name], now) for name, now in self._contents.items() if name in before}
        differing = {name: words for name, words in found.items() if words}
        is_free = {
            name: any(setting in changed or matches(setting, FREE_KEYS) for setting in self._watched[name].settings)
            for name in differing
        }
        bound = [name for name in differing if not is_free[name]]
        listed = "; ".join(f"{name}: {words}" for name, words in differing.items())
        if bound and not allow_data_change:
            raise InputError(
                f"the data differ from those of the checkpoint ({listed}); restore them, go on with the present ones "
                "with --set run.allow_data_change=true, or start a new run"
            )
        if differing:
            logger.info("the data differ from those of the checkpoint (%s); going on with the present ones", listed)

    def _state(self, step: int) -> DataState:
        return self._batches.state(
            steps_completed=step, num_views=self.dataset.num_views, index_sha256=self.dataset.index_sha256
        )


class BatchStream:
    """Micro-batches from host memory, moved to the device of the model."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._ready: Batch | None = None
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.wait_seconds = 0.0
        """Time spent waiting for the reader since the last reset by the caller."""

    def start(self) -> None:
        """Fetch the first micro-batch, which starts whatever workers the reader has."""
        self._ready = self._load()

    def next(self) -> Batch:
        """Return the next micro-batch.

        Raises:
            StopIteration: the reader has no more; the trainer asks for no more than it was promised.
        """
        batch = self._ready if self._ready is not None else self._load()
        self._ready = None
        if self._copy_stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._copy_stream)
            for value in batch.values():
                if isinstance(value, torch.Tensor):  # else its memory could be reused while the step still reads it
                    value.record_stream(current)
        return batch

    def preload(self) -> None:
        """On a GPU, fetch the next micro-batch and start its copy while the device is busy with the present one."""
        if self._copy_stream is None or self._ready is not None:
            return
        try:
            self._ready = self._load()
        except StopIteration:
            self._ready = None

    def close(self) -> None:
        """End the reader's workers now, not when the garbage collector gets to them."""
        if isinstance(self._batches, Generator):
            self._batches.close()

    def _load(self) -> Batch:
        started = time.monotonic()
        batch = next(self._batches)
        self.wait_seconds += time.monotonic() - started
        if self._copy_stream is None:
            return batch
        with torch.cuda.stream(self._copy_stream):
            return {name: self._move(value) for name, value in batch.items()}

    def _move(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.pin_memory().to(self._device, non_blocking=True)


def padded(
    batches: Iterable[Mapping[str, Any]], num_batches: int, blank: Mapping[str, torch.Tensor], world: World
) -> Iterator[dict[str, Any]]:
    """Yield the batches that hold a sample, marked `is_real`, and then blank ones until all ranks have had as many.

    Ranks differ by one batch at times, and partitioned weights (ZeRO 3) are gathered by all ranks or by none. On a CPU
    what a batch has left free goes back: large blocks of many sizes come and go, and the gaps between them would be as
    much again as an evaluation needs.

    Args:
        batches: Of this rank.
        num_batches: How many there are, at most.
        blank: A batch of one sample, as long as it can be computed.
        world: The ranks; all of them iterate.
    """
    wanted = int(world.max_of([num_batches])[0])
    done = 0
    for batch in batches:
        if "images" in batch:  # else all of its samples were bad
            yield {**batch, "is_real": True}
            done += 1
            if world.device.type == "cpu":
                return_freed_memory()
    for _ in range(done, wanted if world.world_size > 1 else 0):
        yield {**blank, "is_real": False}


class HostFlag:
    """A device scalar on its way to the host; reading it waits for its own copy, not for later work."""

    def __init__(self, scalar: torch.Tensor) -> None:
        self._value = scalar.to("cpu", non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if scalar.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(scalar.device))

    def value(self) -> float:
        """Return the scalar."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._value)
