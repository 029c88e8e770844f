"""`beit tokenizer train --kind kmeans`: from images, and perhaps a teacher, to a tokenizer directory.

Nothing has gradients, so there is no DeepSpeed here. Batch 0 measures the vectors and starts the centres, the others
move them, and some more collect the mean patch of every word. A checkpoint holds all of that, so a killed run goes on
exactly. What is added up over ranks are whole numbers (`centres.py`), so the number of ranks makes no difference.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from beit.common.errors import InputError, ResumableStop, require
from beit.common.forecast.words import in_gb, in_words
from beit.common.processes.distributed import World, init_distributed
from beit.common.processes.signals import StopFlag, resumable_without_others, stop_on_signals
from beit.common.progress import Progress
from beit.common.reading.fetcher import StoppedWaiting
from beit.common.rng import CounterRng
from beit.common.runs.checkpoint import Checkpoint, PortableState, save_checkpoint
from beit.common.runs.outputs import written
from beit.common.runs.run_dir import RunDirectory, begin_run, open_run
from beit.common.storage.locks import sole_use
from beit.common.tokenizers.directory import CONFIG_FILE, save_tokenizer
from beit.common.tokenizers.kmeans import KMeansTokenizer
from beit.common.tokenizers.kmeans_config import KMeansConfig
from beit.common.tokenizers.patches import cut_patches
from beit.common.training.measure import children_memory_bytes, peak_memory_bytes
from beit.common.training.outlook.foretelling import free_disk_of, hardware_of
from beit.tokenize.clustering.centres import Centres, assign, reduce_counts, revive, start, statistics, update
from beit.tokenize.clustering.config import ClusteringConfig
from beit.tokenize.clustering.data import Views, ViewTransform
from beit.tokenize.clustering.forecast import forecast_clustering
from beit.tokenize.clustering.report import commonest_words, kmeans_card, word_metrics
from beit.tokenize.kinds import TeacherChoice
from beit.tokenize.teacher import EncoderTeacher, is_code, load_teacher
from beit.tokenize.tokenizer_training.card import CARD, training_record
from beit.tokenize.tokenizer_training.data import Images, introduction, open_split, read_samples

logger = logging.getLogger(__name__)

_PATCH_SIZE, _VIEW_SIZE = 8, 112
"""Of words of pixels, where settings leave them out."""
_GREY = 128


def train_kmeans(
    config: ClusteringConfig, source: str, out_dir: Path, *, teacher: TeacherChoice | None, resume: str = "auto"
) -> None:
    """Cluster patches of the images of `source` and write the words to `out_dir`; on every rank.

    Args:
        config: Settings.
        source: Folder, tars, Parquet files or list of images, or "synthetic:N" for N generated ones.
        out_dir: New, empty, or of the same run. Gets model.safetensors, decoder.safetensors, config.json and README.md.
        teacher: The encoder whose features are clustered; None clusters pixels.
        resume: "auto", "never", or a checkpoint.
    Raises:
        InputError: bad input.
        ResumableStop: a signal asked to stop; a checkpoint was committed.
    """
    with stop_on_signals() as stop, resumable_without_others(stop):
        world = init_distributed()
        world.announce()
        network, taught = build_network(config, teacher)
        network.to(world.device)
        images = world.run_on_main(lambda: open_split(source, config, img_size=_view_size(config, network)))
        run = open_run(out_dir, config, world=world, resume=resume)
        with ExitStack() as locks:
            clustering = Clustering(config, source, network, taught, images, world)
            if run.checkpoint is not None:
                clustering.restore(run.checkpoint)
            begin_run(run, config, world=world)
            world.run_on_main(lambda: locks.enter_context(sole_use(run.path)) and None)
            clustering.run(run, stop)


def build_network(
    config: ClusteringConfig, choice: TeacherChoice | None
) -> tuple[KMeansTokenizer, EncoderTeacher | None]:
    """Build the tokenizer without its centres, on the CPU, and return it with its teacher."""
    words = config.model
    anchor = words.anchor if words.anchor is not None else float(choice is None)
    shared: dict[str, Any] = {"vocab_size": words.vocab_size, "standardise": words.standardise, "anchor": anchor}
    if choice is None:
        patch_size, view_size = words.patch_size or _PATCH_SIZE, config.data.view_size or _VIEW_SIZE
        require(
            view_size % patch_size == 0,
            f"data.view_size ({view_size}) must be a multiple of model.patch_size ({patch_size})",
        )
        return KMeansTokenizer(KMeansConfig(patch_size=patch_size, **shared)).eval(), None
    require(
        not is_code(choice.name),
        f"--teacher ({choice.name}) must be an encoder: words by k-means carry the blocks they need with them, which "
        "code cannot; use it with --kind vqkd, or bring weights in with beit import",
    )
    teacher = load_teacher(choice.name, block=choice.block)
    assert isinstance(teacher, EncoderTeacher)
    shape = replace(teacher.encoder.config, depth=teacher.block + 1, use_mask_token=False, drop_path=0.0)
    for name, given, own in (
        ("model.patch_size", words.patch_size, shape.patch_size),
        ("data.view_size", config.data.view_size, shape.img_size),
    ):
        require(given in (None, own), f"{name} ({given}) is {own} with this --teacher, {choice.name}; leave it out")
    mean, std = teacher.normalization
    pixels: dict[str, Any] = {"pixel_mean": tuple(mean), "pixel_std": tuple(std)}
    network = KMeansTokenizer(KMeansConfig(patch_size=shape.patch_size, vit=shape, **pixels, **shared))
    assert network.vit is not None
    wanted, found = network.vit.state_dict(), teacher.encoder.state_dict()
    network.vit.load_state_dict({name: found[name] for name in wanted})
    return network.eval().requires_grad_(False), teacher


def _view_size(config: ClusteringConfig, network: KMeansTokenizer) -> int:
    return network.img_size or config.data.view_size or _VIEW_SIZE


@dataclass
class Clustering:
    """The state of one run: batch by batch to centres and mean patches.

    Args:
        config: Settings.
        source: As the user named it.
        network: On the device; gets mean, deviation and centres.
        teacher: Whose features they are.
        images: Training and held-out images.
        world: The ranks.
    """

    config: ClusteringConfig
    source: str
    network: KMeansTokenizer
    teacher: EncoderTeacher | None
    images: Images
    world: World

    def __post_init__(self) -> None:
        """Build the order; identical on every rank."""
        config, side = self.config, self.network.downsampling
        self.view_size = _view_size(config, self.network)
        num_patches = (self.view_size // side) ** 2
        self.transform = ViewTransform(
            seed=config.seed,
            augment=config.augment,
            view_size=self.view_size,
            num_patches=num_patches,
            num_chosen=min(num_patches, config.data.patches_per_view),
        )
        in_batch = config.clustering.global_batch_size * self.transform.num_chosen
        require(
            self.network.vocab_size <= in_batch,
            f"model.vocab_size ({self.network.vocab_size}) is more than the {in_batch} patches of a batch, from which "
            "words start; lower it, or raise clustering.global_batch_size or data.patches_per_view",
        )
        self.views = Views(self.images.train, self.transform, config, world=self.world)
        self.step = 0
        self.centres: Centres | None = None
        vocab_size = self.network.vocab_size
        self.pixel_sums = torch.zeros(vocab_size, 3, side, side, dtype=torch.int64)
        self.pixel_counts = torch.zeros(vocab_size, dtype=torch.int64)
        self.revived = 0

    @property
    def identity(self) -> str:
        """What words are made of, for a resume."""
        return "pixels" if self.teacher is None else self.teacher.fingerprint

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint, if it is one of the same words."""
        record = checkpoint.record
        if "kmeans" not in record:
            raise InputError(f"{checkpoint.path} is a checkpoint of another kind of training; name another folder")
        require(
            record["kmeans"] == self.identity,
            f"{checkpoint.path} is of another --teacher than the one given; give the same, or name another folder",
        )
        self.views.check(record["data"])
        with checkpoint.reader("model") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
        device, self.step = self.world.device, checkpoint.step
        self.network.mean.copy_(tensors["mean"])
        self.network.deviation.copy_(tensors["deviation"])
        directions = tensors["directions"].to(device)
        self.centres = Centres(directions=directions, sums=tensors["sums"], counts=tensors["counts"])
        self.pixel_sums, self.pixel_counts = tensors["pixel_sums"], tensors["pixel_counts"]

    def run(self, run: RunDirectory, stop: StopFlag) -> None:
        """Take all batches that are left, and write the tokenizer."""
        total, is_main = self.config.clustering.total_steps, self.world.is_main
        if self.step == total and all((run.path / name).is_file() for name in (CONFIG_FILE, CARD)):
            if is_main:
                logger.info("%s is finished (%d batches); name another folder for other words", run.path, total)
            return
        if is_main:
            self._introduce(run.path)
        first = self.step
        bar = Progress(total, unit="batches", description="clustering", initial=first, enabled=is_main, foretells=False)
        stream = self.views.micro_batches(first, total - first)
        self.world.shorten_timeouts()
        with bar:
            while self.step < total:
                self._heed(run, stop)
                began = time.monotonic()
                try:
                    with stop.during("this batch"):
                        shown = self._take_batch(stream)
                except StoppedWaiting as stopped:
                    self._leave_half_way(run, stopped)
                self.step += 1
                if self.step == first + 2:
                    self._foretell(time.monotonic() - began)
                bar.update(1, **shown)
                if self.step % self.config.checkpoint.interval_steps == 0 or self.step == total:
                    self._save(run)
        if is_main:
            self._finish(run.path)
        self.world.gather(None)

    def _introduce(self, run: Path) -> None:
        shape = self.network.config
        made_of = "pixels" if self.teacher is None else f"features of block {self.teacher.block} of {self.teacher.name}"
        made = f"tokenizer by k-means of {made_of} ({shape.dim} numbers)"
        logger.info("%s", introduction(made, num_words=shape.vocab_size, side=shape.patch_size, images=self.images))
        expected = forecast_clustering(
            self.config,
            shape,
            view_size=self.view_size,
            num_chosen=self.transform.num_chosen,
            hardware=hardware_of(self.world),
        )
        logger.info("%s", expected.line(after=self.step, free_disk=free_disk_of(run)))

    def _foretell(self, seconds: float) -> None:
        memory = float(peak_memory_bytes(self.world.device))
        if self.world.device.type == "cpu":
            memory += children_memory_bytes()
        seconds, memory = self.world.max_of([seconds, memory])
        left = self.config.clustering.total_steps - self.step + 1
        if self.world.is_main:
            ranks = "" if self.world.world_size == 1 else " per rank"
            words = in_words(seconds), in_words(seconds * left), left, in_gb(memory), ranks
            logger.info("measured: %s per batch, %s for %d batches; %s of memory%s", *words)

    def _heed(self, run: RunDirectory, stop: StopFlag) -> None:
        """Save and leave when any rank was asked to stop."""
        if not self.world.max_of([float(stop.is_set())])[0]:
            return
        self._save(run)
        reason = next(reason for reason in self.world.gather(stop.reason) if reason)
        raise ResumableStop(f"stopped at batch {self.step} ({reason}), all of it saved; run the same command to go on")

    def _leave_half_way(self, run: RunDirectory, stopped: StoppedWaiting) -> NoReturn:
        """Leave while a worker owes views; ranks save together or not at all, and the others may have theirs."""
        kept = "the newest checkpoint"
        if self.world.world_size == 1 and self.centres is not None:
            self._save(run)
            kept = f"batch {self.step}"
        raise ResumableStop(f"{stopped.what}; run the same command to go on from {kept}") from None

    @torch.no_grad()
    def _take_batch(self, stream: Iterator[Mapping[str, Any]]) -> dict[str, float]:
        """Do what the next batch is for, and return what to show of it."""
        settings, step, network = self.config.clustering, self.step, self.network
        vectors, patches = self._read(stream, with_pixels=step >= settings.steps)
        if self.centres is None:
            mean, deviation = statistics(vectors, self.world)
            network.mean.copy_(mean)
            network.deviation.copy_(deviation)
        parts = [network.directions(part) for part in vectors]
        joined = torch.cat(parts)
        if self.centres is None:
            self.centres = start(joined, network.vocab_size, self._rng("start"), self.world)
        centres = self.centres
        found = assign(parts, centres.directions)
        if step >= settings.steps:
            self._paint(found.words.cpu(), patches)
        else:
            update(centres, joined, found, keep=1.0 - 1.0 / min(step + 1, settings.memory_steps), world=self.world)
            if step < settings.revive_fraction * settings.steps:
                rng, threshold = self._rng("revive", step), settings.revive_threshold
                self.revived = revive(centres, joined, found, threshold=threshold, rng=rng, world=self.world)
        return {"cosine": round(float(found.closeness.mean()), 4)}

    def _read(self, stream: Iterator[Mapping[str, Any]], *, with_pixels: bool) -> tuple[list[Tensor], Tensor]:
        """Return the chosen vectors of each micro-batch, float32 (m, D), and their pixels, uint8 (n, 3, p, p)."""
        vectors, pixels = [], []
        for _ in range(self.views.micro_batches_per_step):
            batch = next(stream)
            images, chosen = batch["images"].to(self.world.device), batch["chosen"]
            rows = torch.arange(len(images))[:, None].expand_as(chosen)
            described = self.network.describe(images).flatten(1, 2)
            vectors.append(described[rows, chosen].flatten(0, 1))
            if with_pixels:
                pixels.append(cut_patches(batch["images"], self.network.downsampling).flatten(1, 2)[rows, chosen])
        return vectors, torch.cat(pixels).flatten(0, 1) if pixels else torch.empty(0)

    def _paint(self, words: Tensor, patches: Tensor) -> None:
        sums = torch.zeros_like(self.pixel_sums).index_add_(0, words, patches.long())
        self.pixel_sums += reduce_counts(sums, self.world)
        self.pixel_counts += reduce_counts(torch.bincount(words, minlength=len(self.pixel_counts)), self.world)

    def _rng(self, *labels: int | str) -> CounterRng:
        return CounterRng(self.config.seed, "tokenizer-clustering", *labels)

    def _save(self, run: RunDirectory) -> None:
        """Commit all that the next batches depend on."""
        if self.centres is not None:
            self.world.run_on_main(lambda: self._commit(run))

    def _commit(self, run: RunDirectory) -> None:
        assert self.centres is not None
        tensors = {
            "mean": self.network.mean,
            "deviation": self.network.deviation,
            "directions": self.centres.directions,
            "sums": self.centres.sums,
            "counts": self.centres.counts,
            "pixel_sums": self.pixel_sums,
            "pixel_counts": self.pixel_counts,
        }
        save_checkpoint(
            run.checkpoints,
            step=self.step,
            state=PortableState(model={name: tensor.cpu() for name, tensor in tensors.items()}, optimizer={}),
            rng={},
            record={"kmeans": self.identity, "data": self.views.state(self.step)},
            keep=self.config.checkpoint.keep,
        )

    def _finish(self, directory: Path) -> None:
        """Measure the words on held-out images, and write the tokenizer and its card."""
        network, teacher = self.network, self.teacher
        assert self.centres is not None
        network.centres.copy_(self.centres.directions)
        network.patches = self._mean_patches().to(self.world.device)
        metrics = word_metrics(network, self._held_out_views(), micro_batch_size=32)
        taught = None if teacher is None else describe_teacher(teacher)
        reached = {"view_size": self.view_size, "teacher": taught, "metrics": metrics}
        training = training_record(self.source, self.images, self.config, **reached)
        shape = network.config
        fingerprint = save_tokenizer(directory, network.state_dict(), shape, training=training, patches=network.patches)
        kmeans_card(shape, self.config, training).write(directory, training, fingerprint=fingerprint)
        logger.info(
            "%.0f of %d words occur in %.0f held-out images, perplexity %.0f, cosine %.3f",
            *(metrics["words_used"], network.vocab_size, metrics["images"]),
            *(metrics["perplexity"], metrics["closeness"]),
        )
        if self.config.run.report:
            from beit.common.overview.report.automatic import write_report

            patches, counts = network.patches.cpu().numpy(), self.pixel_counts.numpy()
            write_report(directory, draw={"words": lambda: commonest_words(patches, counts)})
        logger.info("%s", written(directory))

    def _mean_patches(self) -> Tensor:
        """Return the mean patch of every word, uint8 (V, 3, p, p); grey where none was met."""
        counts = self.pixel_counts.view(-1, 1, 1, 1)
        means = (2 * self.pixel_sums + counts) // (2 * counts).clamp_min(1)  # rounded to the nearest
        return torch.where(counts > 0, means, _GREY).to(torch.uint8)

    def _held_out_views(self) -> Tensor:
        """Return views of held-out images, uint8 (B, 3, view_size, view_size), on the device."""
        held_out, rng = self.images.held_out, CounterRng(self.config.seed, "evaluation")
        rows = rng.permutation(int(held_out.shard_sizes.sum()))[: self.config.data.num_eval_images].tolist()
        views = list(read_samples(held_out, rows, lambda record: self.transform.render(record, rng)))
        if not views:
            raise InputError(f"none of the images drawn from {self.source} can be read; check the images")
        return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous().to(self.world.device)


def describe_teacher(teacher: EncoderTeacher) -> dict[str, Any]:
    """Return what a tokenizer's config.json says of its teacher."""
    origin = teacher.encoder.provenance
    came_from = [str(origin[name]) for name in ("imported_from", "store", "data") if origin.get(name)]
    return {
        "name": teacher.name,
        "block": teacher.block,
        "fingerprint": teacher.fingerprint,
        "weights": ", from ".join([teacher.encoder.config.name, *came_from[:1]]),
    }
