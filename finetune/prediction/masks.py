"""`beit predict` with a segmenter: the class of every pixel of new images, as files. What they are is `mask_files.py`.

One image is in memory, and the next one: it is read, decoded and looked up among what an earlier run has written while
the model is at work.

H, W = size of an image; C = classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample, InputError, ResumableStop, require
from beit.common.images.channels import fit_image, pixels_of
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.large.tiles import Tiling
from beit.common.images.large.windows import Pixels, WholeImage
from beit.common.pages.numbers import count, percent
from beit.common.pages.pictures import save_png, sheet
from beit.common.pages.tables import aligned
from beit.common.progress import Progress
from beit.common.reading.bad_samples import BadSampleLog, BadSampleReport
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.runs.outputs import check_output_folder
from beit.common.sources.config import SourceConfig
from beit.common.sources.glance.depth import warn_of_missed
from beit.common.sources.index import LabelledIndex
from beit.common.sources.index_build import build_index
from beit.common.sources.types import place_in
from beit.common.storage.documents import canonical_json, json_bytes, parse_json, read_json
from beit.common.storage.files import remove_stale, sha256_file
from beit.common.storage.locks import sole_use
from beit.common.storage.samples import Record
from beit.common.vit.description import WEIGHTS_FILE, find_encoder
from beit.finetune.data import image_name
from beit.finetune.evaluation.evaluate import say_fit, single_rank
from beit.finetune.evaluation.overlays import legend as drawn_legend
from beit.finetune.evaluation.overlays import overlay, shrunk
from beit.finetune.masks.classes import IGNORED, MaskClasses
from beit.finetune.prediction.files import TABLES
from beit.finetune.prediction.large_masks import LargeJob, large_job, make_large
from beit.finetune.prediction.mask_files import (
    LEGEND,
    LEGEND_FORMAT,
    LEGEND_PICTURE,
    MASKS,
    OVERLAY_PX,
    OVERLAYS,
    PROBABILITIES,
    SUFFIXES,
    class_values,
    identity_in,
    kept_ids,
    legend_document,
    mirrored_names,
    overlay_jpeg,
    palette_png,
    probability_file,
    require_ours,
    require_same,
    source_identity,
    write_file,
)
from beit.finetune.prediction.predict import ALL_BUT_ONE, report_bad_samples
from beit.finetune.segmentation.artifact import SegmentationInfo, load_segmenter
from beit.finetune.segmentation.inference import class_ids, likeliest, segment
from beit.finetune.segmentation.model import Segmenter
from beit.finetune.segmentation.tiled import IdStrip, segment_tiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One image on its way to its files."""

    name: str
    """Of its files, without folder and suffix."""
    identity: str
    """Of what they are made from."""
    image: Image.Image | None
    """None where all files are there."""
    missing: tuple[str, ...]
    """Kinds of files that are not there yet; where the mask is among them, all are made."""
    kept: NDArray[np.uint8] | None
    """Ids (H, W) of the mask that is there; None where it is missing."""


@dataclass(slots=True)
class Shares:
    """What classes were found, over all images."""

    classes: MaskClasses
    pixels: NDArray[np.int64] = field(init=False)
    """Per class, (C,)."""
    images: NDArray[np.int64] = field(init=False)
    """In how many images each class occurs, (C,)."""

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.pixels, self.images = (np.zeros(len(self.classes), np.int64) for _ in range(2))

    def add(self, ids: NDArray[np.uint8]) -> None:
        """Count the mask of one image."""
        self.add_counts(np.array(Image.fromarray(ids).histogram(), np.int64))

    def add_counts(self, counts: NDArray[np.int64]) -> None:
        """Count the pixels of each id of one image, (256,) or at least (C,)."""
        counts = counts[: len(self.classes)]
        self.pixels += counts
        self.images += counts > 0

    def as_table(self) -> str:
        """Return the classes that were found, the largest first."""
        order = [number for number in np.argsort(-self.pixels, kind="stable").tolist() if self.pixels[number]]
        total = max(1, int(self.pixels.sum()))
        rows = [
            [str(number), self.classes.names[number], percent(self.pixels[number] / total), count(self.images[number])]
            for number in order
        ]
        table = aligned([["id", "class", "pixels", "images"], *rows], align="><>>")
        absent = len(self.classes) - len(order)
        return table + (f"\n{count(absent, 'class', plural='classes')} not found anywhere" if absent else "")


def predict_masks(
    model: str | Path,
    source: str,
    *,
    out: Path,
    overlays: bool = False,
    probabilities: bool = False,
    values: str | None = None,
    tiling: Tiling | None = None,
    settings: SourceConfig | None = None,
) -> str:
    """Write the mask of every image of `source` that can be read; returns the table of classes found.

    What an earlier run of the same model has written of the same image stays and is counted; what it left undone is
    made. Each file appears complete or not at all, a mask after what else is made of its image.

    Args:
        model: Folder that `beit finetune segmentation` wrote, or its run directory.
        source: Images, in any form `beit predict` takes.
        out: Folder for the files: new, empty, or of an earlier run.
        overlays: Draw the classes over each image, too.
        probabilities: Write the probabilities of all classes, too.
        values: Table that says what is written for each class, such as the ids of the data it was trained on; left out,
            its place among the classes.
        tiling: Cut images into tiles, segment each and blend them; then images of any size are segmented of which parts
            can be decoded.
        settings: Which images are read.

    Raises:
        ResumableStop: a signal asked to stop.
    """
    check_output_folder("--out", out, inputs=[model, source, *([] if values is None else [values])])
    segmenter, stored, info = load_segmenter(model)
    reading = (settings or SourceConfig()).after(stored.decoding, str(model), is_final=True)
    index, world = build_index(source, settings=reading), single_rank()
    kinds = (MASKS, *([OVERLAYS] if overlays else []), *([PROBABILITIES] if probabilities else []))
    own = tuple(range(len(info.classes))) if values is None else class_values(values, info.classes)
    legend = _legend(model, info, own, tiling)
    writer = MaskWriter(
        out=out,
        kinds=kinds,
        model=segmenter.to(world.device),
        info=info,
        legend=legend,
        values=own,
        tiling=tiling,
        decoding=index.decoding,
    )
    writer.begin()
    with sole_use(out):
        names = mirrored_names(image_name(index, position) for position in range(len(index)))
        require_ours(writer.path(kind, name) for name in names for kind in kinds)
        writer.clean(names)
        world.announce()
        say_fit(index, stored, world)
        warn_of_missed(index, index.decoding, option="--range")
        return _write_all(writer, index, names)


def check_mask_options(
    model: Path, out: Path | None, *, features: bool, probabilities: bool = False, tiling: Tiling | None = None
) -> Path:
    """Refuse, for a segmenter, what belongs to classifiers, and what tiles lack; returns the folder to write into."""
    require(
        tiling is None or not probabilities,
        "--probabilities keeps those of whole images in one file, and --tile has only parts of them in memory; leave "
        "one out",
    )
    require(
        not features,
        f"--features is for classifiers and encoders, and {model} is a segmenter; leave it out, or name the encoder",
    )
    if out is None or out.suffix.lower() in TABLES:
        given = "--out is missing" if out is None else f"--out {out} is a table"
        raise InputError(
            f"{given}, but {model} is a segmenter, which writes a mask for every image; name a folder, such as "
            "--out masks/"
        )
    return out


def _legend(
    model: str | Path, info: SegmentationInfo, values: Sequence[int], tiling: Tiling | None
) -> dict[str, object]:
    facts = {"weights_sha256": sha256_file(find_encoder(model) / WEIGHTS_FILE), "inference": asdict(info.inference)}
    facts |= {} if tiling is None else {"tiling": asdict(tiling)}
    found: dict[str, object] = parse_json(
        json_bytes(legend_document(info.classes, values, facts)), label=LEGEND
    )  # as it is read
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskWriter:
    """Makes the files of images."""

    out: Path
    """Their folder."""
    kinds: tuple[str, ...]
    """Which are wanted, masks first."""
    model: Segmenter
    """Where it computes."""
    info: SegmentationInfo
    """Its classes, and how it is used."""
    legend: dict[str, object]
    """What legend.json is to say."""
    values: tuple[int, ...]
    """What masks hold for each class."""
    tiling: Tiling | None = None
    """How images are cut; None looks at all of each as the model was evaluated."""
    decoding: Decoding = USUAL
    """How images are decoded of which only parts are in memory."""

    @property
    def classes(self) -> MaskClasses:
        """Of the model."""
        return self.info.classes

    def path(self, kind: str, name: str) -> Path:
        """Return where a file lies."""
        return self.out / kind / f"{name}{SUFFIXES[kind]}"

    def begin(self) -> None:
        """Make the folder, or check that it is one of the same model, and write the legend."""
        file = self.out / LEGEND
        if file.exists():
            require_same(self.out, self.legend, LEGEND_FORMAT.check(read_json(file), file))
            return
        require(
            not self.out.exists() or not any(self.out.iterdir()),
            f"--out {self.out} holds other files; name a new folder, or an empty one",
        )
        self.out.mkdir(parents=True, exist_ok=True)
        classes = self.info.classes
        picture = drawn_legend(classes, range(len(classes)))
        save_png(sheet([picture], heading="Classes"), self.out / LEGEND_PICTURE)
        write_file(file, json_bytes(self.legend))

    def clean(self, names: Sequence[str]) -> None:
        """Remove what killed runs left half-written."""
        for folder in {self.path(kind, name).parent for kind in self.kinds for name in names}:
            remove_stale(folder)

    def job(self, name: str, record: Record) -> Job:
        """Look up what there is to do for an image, and decode it if there is something.

        Raises:
            BadSample: it cannot be used.
        """
        identity = source_identity(canonical_json(self.legend), record.image_bytes)
        there = {kind for kind in self.kinds if identity_in(self.path(kind, name)) == identity}
        kept = kept_ids(self.path(MASKS, name), self.info.classes, self.values) if MASKS in there else None
        if kept is None:  # it may be there, and damaged
            there.discard(MASKS)
        missing = tuple(kind for kind in self.kinds if kind not in there)
        channels = self.model.config.in_chans
        image = fit_image(record.decode_image(), channels) if missing else None
        return Job(name, identity, image, missing, kept)

    def make(self, job: Job) -> NDArray[np.uint8]:
        """Make what is missing; returns the ids (H, W)."""
        if job.kept is not None and PROBABILITIES not in job.missing:
            ids = job.kept
        else:
            assert job.image is not None
            ids = self._segment(job.image, job)
        if OVERLAYS in job.missing:
            assert job.image is not None
            image, (small,) = shrunk(job.image, [ids], most_px=OVERLAY_PX)
            drawn = overlay(image, small, self.info.classes)
            write_file(self.path(OVERLAYS, job.name), overlay_jpeg(drawn, identity=job.identity))
        if MASKS in job.missing:
            held = np.array(self.values, np.uint8)[ids]
            data = palette_png(held, self.info.classes, self.values, identity=job.identity)
            write_file(self.path(MASKS, job.name), data)
        return ids

    def _segment(self, image: Image.Image, job: Job) -> NDArray[np.uint8]:
        if self.tiling is not None:
            return np.concatenate([strip.ids for strip in self.strips(WholeImage(image), job.name)])
        pixels = pixels_of(image).transpose(2, 0, 1)  # (C, H, W)
        if PROBABILITIES not in job.missing:
            return class_ids(self.model, pixels, self.info.inference)
        ids, path = np.empty(pixels.shape[1:], np.uint8), self.path(PROBABILITIES, job.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with probability_file(path, ids.shape, self.info.classes.names, identity=job.identity) as rows:
            for strip in segment(self.model, pixels, self.info.inference):
                found = strip.probabilities
                ids[strip.top : strip.top + found.shape[1]] = likeliest(found).numpy()
                rows.write(found.permute(1, 2, 0).half().cpu().numpy().tobytes())
        return ids

    def strips(self, pixels: Pixels, name: str) -> Iterator[IdStrip]:
        """Yield the mask of an image row by row of its tiles, and say at the end which of them cannot be read.

        Raises:
            BadSample: none of them can.
        """
        assert self.tiling is not None
        unreadable: list[str] = []
        for strip in segment_tiles(self.model, pixels, self.info.inference, self.tiling):
            unreadable += strip.unreadable
            yield strip
        total = self.tiling.count(pixels.size)
        if len(unreadable) == total:
            raise BadSample("decode-error", f"none of its {total} tiles can be read: {unreadable[0]}")
        if unreadable:
            logger.warning(
                "%s: %d of %s cannot be read (%s); they are %d, ignored, in the mask",
                name,
                len(unreadable),
                count(total, "tile"),
                unreadable[0],
                IGNORED,
            )


def _write_all(writer: MaskWriter, index: LabelledIndex, names: Sequence[str]) -> str:
    shares, bad_samples = Shares(writer.info.classes), BadSampleLog(len(index), ALL_BUT_ONE)
    done = kept = 0
    try:
        with Progress(len(index), unit="images", description="segmenting") as progress, torch.inference_mode():
            for found in _jobs(writer, index, names):
                made = _make(writer, found, shares) if not isinstance(found, BadSampleReport) else found
                if not isinstance(made, BadSampleReport):
                    done, kept = done + 1, kept + made
                else:
                    with suppress(InputError):  # at the last, where all are bad: `report_bad_samples` says so
                        bad_samples.add([made])
                progress.update(1)
    except KeyboardInterrupt:
        raise ResumableStop(
            f"stopped; masks of {done} of {count(len(index), 'image')} are kept, run the same command again to go on"
        ) from None
    report_bad_samples(bad_samples, index)
    if kept:
        logger.info("%s there already, from an earlier run", count(kept, "image"))
    return shares.as_table()


def _make(writer: MaskWriter, job: Job | LargeJob, shares: Shares) -> bool | BadSampleReport:
    """Make the files of an image; returns whether all were there already."""
    try:
        if isinstance(job, LargeJob):
            pixels, is_kept = make_large(writer, job)
            shares.add_counts(pixels)
            return is_kept
        shares.add(writer.make(job))
    except BadSample as error:  # none of its tiles can be read
        return BadSampleReport(job.name, error.reason, error.detail)
    return not job.missing


def _jobs(writer: MaskWriter, index: LabelledIndex, names: Sequence[str]) -> Iterator[Job | LargeJob | BadSampleReport]:
    """Yield all images in order: those that are too large to be decoded as a whole as such, where tiles are wanted."""
    if writer.tiling is None:
        yield from read_ahead(writer, index, names)
        return
    dataset = LabelledDataset(index)
    for position, name in enumerate(names):
        shard_id, rank = index.locate(position)
        place = place_in(index.shards[shard_id], index.ref(shard_id, rank))
        try:
            job = None if place is None else large_job(name, place, writer.decoding)
            yield job or writer.job(name, dataset.fetch(shard_id, rank, 0))
        except BadSample as error:
            yield BadSampleReport(image_name(index, position), error.reason, error.detail)


def read_ahead(writer: MaskWriter, index: LabelledIndex, names: Sequence[str]) -> Iterator[Job | BadSampleReport]:
    """Yield all images of `index` in order, those that cannot be read as reports; the next one is read meanwhile."""
    dataset = LabelledDataset(index)

    def read(position: int) -> Job | BadSampleReport:
        try:
            return writer.job(names[position], dataset.fetch(*index.locate(position), 0))
        except BadSample as error:
            return BadSampleReport(image_name(index, position), error.reason, error.detail)

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        following: Future[Job | BadSampleReport] = thread.submit(read, 0)
        for position in chain(range(1, len(index)), [None]):
            found = following.result()
            if position is not None:
                following = thread.submit(read, position)
            yield found
