"""How rivals of BEiT are trained: the images of a store in order, fresh crops, an optimizer, and a state to go on from.

Here: the loop, and what it asks of a rival. Not here: the rivals (`dino.py`, `mae.py`), what is compared (`rivals.py`).

Every random number is a function of the seed and of where in the run it is drawn, so that a run that was stopped, or
killed, goes on as if it had not been, bit for bit. One process, one device: the processor.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from beit.benchmarks.processor_time import processor_seconds
from beit.common.config import above, at_least, checked, within
from beit.common.encoder import save_model
from beit.common.errors import InputError, ResumableStop, RunFailed, require
from beit.common.images.decode import decode_image
from beit.common.processes.signals import StopFlag
from beit.common.progress import Progress
from beit.common.rng import CounterRng, stable_hash64
from beit.common.runs.layout import ENCODER
from beit.common.storage.files import atomic_path
from beit.common.storage.tensor_check import write_safetensors
from beit.common.store import open_store
from beit.common.training.config import OptimizerConfig, cosine_schedule
from beit.common.training.optimizer import build_optimizer
from beit.common.views import AugmentConfig, draw_view, render_view
from beit.common.vit.config import Normalization
from beit.common.vit.description import EncoderConfig
from beit.common.vit.param_groups import param_groups
from beit.common.vit.vit import VisionTransformer
from beit.pretrain.store_dataset import StoreDataset

logger = logging.getLogger(__name__)

NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Of pixels, as in BEiT's recipes for small images."""
STATE = "state.safetensors"
"""In the folder of a run that is under way."""
_SAVE_SECONDS = 60.0
"""Between two states; arbitrary."""
_RECORDS = 50
"""Of the loss, kept of a run; arbitrary."""


@checked("learning")
class Learning:
    """The optimizer and its schedule: a linear warm-up, then half a cosine; the weight decay goes by a cosine, too."""

    lr: Annotated[float, above(0)] = 1e-3
    """Learning rate after the warm-up."""
    min_lr: Annotated[float, at_least(0)] = 1e-6
    """At the end."""
    warmup: Annotated[float, within("[0, 1]")] = 0.1
    """Share of the run in which it rises."""
    batch_size: Annotated[int, at_least(1)] = 32
    """Images of a step."""
    weight_decay: Annotated[tuple[float, float], at_least(0)] = (0.05, 0.05)
    """At the start and at the end."""
    betas: Annotated[tuple[float, float], within("[0, 1)")] = (0.9, 0.999)
    """Of AdamW."""
    clip_grad: Annotated[float, above(0)] = 3.0
    """Largest norm of the gradients."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, as in the papers; muon: the matrices of blocks by Muon, as in BEiT's recipe for small images."""
    position_lr_scale: Annotated[float, above(0)] = 5.0
    """Factor on the learning rate of the relative position tables, as in that recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Views of an image that are drawn alike."""

    views: int
    """How many of each image; 0 for none."""
    img_size: int
    """Their side in pixels."""
    augment: AugmentConfig
    """How they are drawn."""
    grey: float = 0.0
    """How often one loses its colours."""


class Rival(Protocol):
    """A module that learns from images without labels."""

    learning: Learning
    kinds: Sequence[Kind]

    def loss(self, batch: Sequence[Tensor], *, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Return "loss", and what else is worth watching.

        Args:
            batch: For each kind with views (V, B, 3, img_size, img_size) float32, normalised.
            progress: Share of the run that is done, in [0, 1).
            generator: For what is drawn.
        """

    def before_step(self, *, progress: float) -> None:
        """Change gradients before the optimizer sees them."""

    def after_step(self, *, progress: float) -> None:
        """Do what follows a step."""

    def result(self) -> VisionTransformer:
        """Return the encoder that is worth keeping."""


class Images:
    """The training images of a token store, as they are encoded; what it holds out of training is left out here, too.

    Args:
        store: Folder of the store.
    """

    def __init__(self, store: str | Path) -> None:
        opened = open_store(store)
        require(not opened.info.is_materialized, f"{store} has crops instead of images; make it without --materialize")
        dataset = StoreDataset(opened, seed=0)
        self.index_sha256 = opened.index_sha256
        self._encoded = [
            dataset.fetch(shard, rank, 0).image_bytes
            for shard, size in enumerate(dataset.shard_sizes.tolist())
            for rank in range(size)
        ]
        self._order: tuple[tuple[int, int], np.ndarray[Any, np.dtype[np.int64]]] | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._encoded)

    def batch(self, kinds: Sequence[Kind], *, first: int, count: int, seed: int) -> list[Tensor]:
        """Draw the views of `count` images from a position of the run on; see `Rival.loss`.

        Every pass takes all images once, in an order of its own.
        """
        drawn: list[list[list[np.ndarray[Any, Any]]]] = [[[] for _ in range(kind.views)] for kind in kinds]
        for position in range(first, first + count):
            image = decode_image(self._encoded[self._at(position, seed)])
            for number, kind in enumerate(kinds):
                for view in range(kind.views):
                    rng = CounterRng(seed, "rival-view", position, number, view)
                    record = draw_view(rng, image.width, image.height, kind.augment)
                    if rng.uniform() < kind.grey:
                        record["sat"] = 0
                    drawn[number][view].append(render_view(image, record, img_size=kind.img_size))
        return [normalised(np.array(views)) for views in drawn if views]

    def _at(self, position: int, seed: int) -> int:
        epoch, rank = divmod(position, len(self))
        if self._order is None or self._order[0] != (seed, epoch):
            self._order = (seed, epoch), CounterRng(seed, "rival-order", epoch).permutation(len(self))
        return int(self._order[1][rank])


def normalised(pixels: np.ndarray[Any, Any]) -> Tensor:
    """Turn pixels (V, B, h, w, 3) uint8 into the input of a network, (V, B, 3, h, w) float32."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATION)
    return (torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).float() / 255 - mean) / std


@dataclass(kw_only=True)
class Training:
    """One run, from its first step or from where it was stopped.

    Args:
        build: Makes the rival, from random weights.
        images: To learn from.
        folder: Of the run; the encoder is in it at the end.
        steps: Of the whole run.
        seed: Of weights, order and views.
        identity: What decides the run; a state of another is refused.
    """

    build: Callable[[], Any]
    images: Images
    folder: Path
    steps: int
    seed: int
    identity: Mapping[str, Any]
    step: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)
    records: list[dict[str, float]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.rival = self.build().train()
        learning: Learning = self.rival.learning
        # A decay of 1 is then a factor of the schedule's.
        groups = param_groups(self.rival, weight_decay=1.0, position_lr_scale=learning.position_lr_scale)
        chosen = {name: getattr(learning, name) for name in ("lr", "betas", "clip_grad")}
        config = OptimizerConfig(kind=learning.optimizer, **chosen)
        self.optimizer = build_optimizer(config, groups, self.rival, zero_stage=0)
        self.decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        self._load()

    def run(self, stop: StopFlag, *, name: str) -> None:
        """Do what is left of the run, and write the encoder.

        Raises:
            ResumableStop: it was stopped.
            RunFailed: a loss is not a finite number.
        """
        began, before, saved = processor_seconds(), self.seconds, time.monotonic()
        with Progress(self.steps, unit="steps", description=name, initial=self.step) as progress:
            while self.step < self.steps:
                told = self._advance()
                self.seconds = before + processor_seconds() - began
                progress.update(1, **told, processor_s=round(self.seconds))
                is_stopped = stop.is_set()
                if is_stopped or time.monotonic() - saved > _SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
                if is_stopped and self.step < self.steps:
                    raise ResumableStop("stopped; start the same command again to go on")
        self._write_encoder()
        (self.folder / STATE).unlink(missing_ok=True)

    def _advance(self) -> dict[str, float]:
        """Do one step and return what it told."""
        learning, progress = self.rival.learning, self.step / self.steps
        for group, factor in zip(self.optimizer.param_groups, self.decays, strict=True):
            group["lr"] = group["lr_scale"] * scheduled_lr(learning, self.step, self.steps)
            group["weight_decay"] = factor * between(*learning.weight_decay, progress)
        count = learning.batch_size
        batch = self.images.batch(self.rival.kinds, first=self.step * count, count=count, seed=self.seed)
        drawn = torch.Generator().manual_seed(stable_hash64(self.seed, "rival-step", self.step) >> 1)
        found = self.rival.loss(batch, progress=progress, generator=drawn)
        told = {key: value.item() for key, value in found.items()}
        if not math.isfinite(told["loss"]):
            raise RunFailed(f"{self.folder}: the loss of step {self.step} is {told['loss']}; lower learning.lr")
        self.optimizer.zero_grad(set_to_none=True)
        found["loss"].backward()
        self.rival.before_step(progress=progress)
        self.optimizer.step()
        self.rival.after_step(progress=progress)
        self.step += 1
        if self.step % max(1, self.steps // _RECORDS) == 0 or self.step == self.steps:
            self.records.append({"step": self.step, **told})
        return told

    def _save(self) -> None:
        """Write everything that the rest of the run depends on into one file, whole or not at all."""
        tensors = {f"rival.{name}": tensor.detach() for name, tensor in self.rival.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        facts = {"step": self.step, "seconds": self.seconds, "records": self.records, "identity": self.identity}
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / STATE) as temporary:
            write_safetensors(temporary, tensors, metadata={"facts": json.dumps(facts)})

    def _load(self) -> None:
        """Go on from the state of the folder, if there is one."""
        file = self.folder / STATE
        if not file.exists():
            return
        try:
            with safe_open(file, "pt") as opened:
                facts = json.loads((opened.metadata() or {})["facts"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        except Exception as error:  # whatever safetensors and json raise about a damaged file
            raise InputError(f"{file} cannot be read ({error}); remove it, and the run begins anew") from None
        is_same = facts["identity"] == json.loads(json.dumps(self.identity))
        require(is_same, f"{self.folder} was begun with other settings; name another --out, or remove it")
        self.rival.load_state_dict({name: value for name, value in _under("rival.", tensors)})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors):
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = value
        # Not by load_state_dict, which wants AdamW's step of every parameter, those of Muon included.
        numbered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.optimizer.state.update({numbered[number]: own for number, own in moments.items()})
        self.step, self.seconds, self.records = facts["step"], facts["seconds"], facts["records"]

    def _write_encoder(self) -> None:
        encoder = self.rival.result()
        provenance = {"total_steps": self.steps, "seed": self.seed, **self.identity}
        config = EncoderConfig(
            architecture=encoder.config, normalization=NORMALIZATION, task="pretrain", provenance=provenance
        )
        save_model(self.folder / ENCODER, encoder.state_dict(), config)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors whose names begin so, without that."""
    return ((name.removeprefix(prefix), value) for name, value in tensors.items() if name.startswith(prefix))


def scheduled_lr(learning: Learning, step: int, steps: int) -> float:
    """Return the learning rate of a step; the first is one step into the warm-up, since nothing is learned at 0."""
    warmup = min(round(learning.warmup * steps), steps - 1)
    if step < warmup:
        return learning.lr * (step + 1) / warmup
    return cosine_schedule(step, total_steps=steps, warmup_steps=warmup, peak=learning.lr, final=learning.min_lr)


def between(first: float, last: float, progress: float) -> float:
    """Go from one value to another by half a cosine, at a share of the run."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
