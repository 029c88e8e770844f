"""`beit evaluate` of a segmenter, and the evaluation inside its training: every labelled pixel of every image, once.

Ranks take contiguous parts and exchange their counts, so the result is exact for any number of ranks. The counts are
`confusion.py`, the numbers `segmentation_scores.py`, table and JSON `segmentation_report.py`, the page
`segmentation_page.py`. How an image of any size goes through the model is `finetune/segmentation/inference.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from beit.common.config import checked, config_to_dict, load_config
from beit.common.errors import InputError, require
from beit.common.images.channels import fit_image, in_colour, pixels_of
from beit.common.processes.distributed import World, init_distributed
from beit.common.processes.launcher_env import under_launcher
from beit.common.progress import Progress
from beit.common.reading.config import ReaderConfig
from beit.common.reading.contents import contents_sha256
from beit.common.reading.loader import Loader
from beit.common.reading.reader import sequential_loader
from beit.common.runs.outputs import JSON, check_outputs
from beit.common.sources.config import SourceConfig
from beit.common.storage.documents import json_bytes
from beit.common.storage.files import sha256_file, write_output
from beit.common.storage.samples import Record
from beit.common.vit.description import WEIGHTS_FILE, find_encoder
from beit.finetune.data import image_name
from beit.finetune.evaluation.confusion import MaskLog, MaskOutcomes
from beit.finetune.evaluation.evaluate import default_reader, say_fit, single_rank
from beit.finetune.evaluation.segmentation_report import MaskReport, build_mask_report
from beit.finetune.evaluation.segmentation_scores import SegmentationMetrics, segmentation_metrics
from beit.finetune.masks.dataset import MaskedDataset
from beit.finetune.masks.decode import MaskDecoder
from beit.finetune.masks.index import MaskedIndex, open_evaluation_masks, part_to_measure_on
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.origin import evaluation_origin
from beit.finetune.segmentation.artifact import SegmentationInfo, load_segmenter
from beit.finetune.segmentation.config import InferenceConfig
from beit.finetune.segmentation.inference import class_ids, require_no_gaps
from beit.finetune.segmentation.model import Segmenter

_MIN_IMAGES_PER_WORKER = 300
"""Starting a data worker takes seconds, in which the main process decodes about so many photos with their masks."""
_OF_TRAININGS = ("val", "num_labels", "label_fraction")
"""Settings of the data that an evaluation by itself has no use for."""


@checked()
class MaskEvaluationConfig:
    """What `beit evaluate` may be told of a segmenter."""

    data: MaskDataConfig = field(default_factory=MaskDataConfig)
    """Images and masks."""
    evaluation: InferenceConfig = field(default_factory=InferenceConfig)
    """How images are segmented; what is left out is the model's own."""

    def __post_init__(self) -> None:
        """Refuse what would be without effect."""
        given = [name for name in _OF_TRAININGS if getattr(self.data, name) is not None]
        require(not given, f"data.{''.join(given[:1])} is of trainings and means nothing here; leave it out")


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneReading:
    """Turns a record into an image and its mask as they are. Instances are sent to the reader's workers."""

    decoder: MaskDecoder
    """What the values of masks mean."""
    channels: int = 3
    """That the model sees; colours become grey where that is 1."""

    def __call__(self, record: Record) -> dict[str, NDArray[np.uint8]]:
        """Return images, (C, H, W) uint8, and masks, (H, W) uint8 class ids.

        Raises:
            BadSample: one of them does not decode.
        """
        image = fit_image(record.decode_image(), self.channels)
        assert record.mask_bytes is not None
        mask = self.decoder.decode(record.mask_bytes, size=image.size)
        # Always a copy: of a single pixel Pillow's own memory, which must not be written to, would be in order already.
        return {"images": np.array(pixels_of(image).transpose(2, 0, 1), order="C"), "masks": mask}


def evaluate_segmenter(
    model: str | Path,
    data: str,
    *,
    out: Path | None = None,
    html: Path | None = None,
    class_names: str | None = None,
    mask_column: str | None = None,
    overrides: Sequence[str] = (),
    source: SourceConfig | None = None,
) -> MaskReport:
    """Measure a segmenter on the images and masks of `data`; write a JSON file and a page where asked.

    Under a launcher every rank measures its part, and rank 0 writes.

    Args:
        model: The folder that `beit finetune segmentation` wrote, or its run directory.
        data: Whose classes are matched to the model's by name.
        out: For the JSON file.
        html: For the page.
        class_names: File that names the classes, `data.classes`.
        mask_column: Column of the masks in Parquet, `data.mask_column`.
        overrides: Settings of `MaskEvaluationConfig`, as SECTION.KEY=VALUE.
        source: Which images are read.
    """
    inputs = [model, data, *([] if class_names is None else [class_names])]
    check_outputs({"--out": out, "--html": html}, inputs=inputs, endings=JSON)
    segmenter, stored, info = load_segmenter(model)
    named = {"data.classes": class_names, "data.mask_column": mask_column}
    given = [f"{name}={json.dumps(value)}" for name, value in named.items() if value is not None]
    settings = evaluation_settings([*given, *overrides], info)
    info = replace(info, inference=settings.evaluation)
    require_no_gaps(settings.evaluation, stored.architecture.img_size)
    reading = (source or SourceConfig()).after(stored.decoding, str(model), is_final=True)
    index = open_evaluation_masks(data, info.classes, settings.data, reading=reading)
    index = part_to_measure_on(index, settings.data) or index
    world = init_distributed() if under_launcher() else single_rank()
    world.announce()
    say_fit(index.images, stored, world)
    segmenter.to(world.device)
    with torch.inference_mode():
        outcomes = observe_masks(
            segmenter, index, info, world=world, reader=default_reader(world), description="evaluating"
        )
    if outcomes is None:
        raise InputError(f"{data} has no image that can be read")
    report = build_mask_report(
        outcomes,
        names=[image_name(index.images, position) for position in outcomes.positions.tolist()],
        classes=info.classes,
        inference=info.inference,
        crop_px=stored.architecture.img_size,
        model=str(model),
        data=data,
    )
    if world.is_main and (out is not None or html is not None):
        identity = measured_sha256(index)
        if out is not None:
            ids = {"validation_sha256": identity, "model_sha256": sha256_file(find_encoder(model) / WEIGHTS_FILE)}
            write_output(out, json_bytes(report.as_json() | ids))
        if html is not None:
            from beit.finetune.evaluation.segmentation_page import mask_page  # draws, which a training never does

            with torch.inference_mode():
                scenes = Scenes(segmenter, index, info)
                origin = evaluation_origin(model, stored, data=data, num_images=len(index), data_sha256=identity)
                write_output(html, mask_page(report, scenes.look, origin=origin).encode())
    return report


def measure_masks(
    model: nn.Module, index: MaskedIndex, info: SegmentationInfo, *, world: World, reader: ReaderConfig
) -> SegmentationMetrics | None:
    """Return the main numbers of a segmenter, the same on every rank; None when no rank had a labelled pixel.

    Args:
        model: In eval mode, on the device of `world`; without gradients.
        index: Images with masks of the model's classes.
        info: Classes, and how images are segmented.
        world: The ranks; all of them call.
        reader: Loading.
    """
    outcomes = observe_masks(model, index, info, world=world, reader=reader)
    return None if outcomes is None else segmentation_metrics(outcomes)


def observe_masks(
    model: nn.Module,
    index: MaskedIndex,
    info: SegmentationInfo,
    *,
    world: World,
    reader: ReaderConfig,
    description: str = "",
) -> MaskOutcomes | None:
    """Count what a segmenter says about every labelled pixel; see `measure_masks`.

    With a `description` progress is shown.
    """
    log, segmenter = MaskLog(len(info.classes)), cast(Segmenter, model)
    loader = mask_loader(index, channels=segmenter.config.in_chans, world=world, reader=reader)
    shown = Progress(len(index), unit="images", description=description, enabled=bool(description) and world.is_main)
    with shown as progress, in_step(model, world):
        for batch in loader:
            if "images" in batch:  # else it could not be read
                said = class_ids(segmenter, batch["images"][0], info.inference)
                log.add(batch["positions"][0], batch["masks"][0].numpy(), said)
            progress.update(world.world_size)
    return log.collect(world)


def mask_loader(index: MaskedIndex, *, channels: int, world: World, reader: ReaderConfig) -> Loader:
    """Build the loader of this rank's part of `index`, one image at a time, as large as it is.

    `channels` is what the model sees, 1 or 3.
    """
    num_workers = min(reader.num_workers, len(index) // world.world_size // _MIN_IMAGES_PER_WORKER)
    return sequential_loader(
        MaskedDataset(index, cache_bytes=reader.parquet_cache_bytes),
        transform=SceneReading(decoder=index.decoder, channels=channels),
        micro_batch_size=1,
        rank=world.rank,
        world_size=world.world_size,
        config=replace(reader, num_workers=num_workers),
        pin_memory=world.device.type == "cuda",
    )


@contextmanager
def in_step(model: nn.Module, world: World) -> Iterator[None]:
    """Have ranks that run out of images take part in the forward passes of the others, where weights are partitioned.

    Under ZeRO 3 all ranks gather a layer's weights or none can, and images differ in how many windows they have. So
    ranks meet before every pass, and at its end a rank goes on with blank ones until nobody has another.
    """
    if world.world_size == 1 or not any(hasattr(weight, "ds_id") for weight in model.parameters()):
        yield
        return
    # Before DeepSpeed's own hook, which waits for all ranks.
    meeting = model.register_forward_pre_hook(lambda *_: _another_pass(world, True), prepend=True)
    try:
        yield
    finally:
        meeting.remove()
    side = cast(Segmenter, model).config.img_size
    blank = torch.zeros(1, cast(Segmenter, model).config.in_chans, side, side, device=world.device)
    while _is_wanted(world, False):
        model(blank)


def _another_pass(world: World, wants: bool) -> None:
    _is_wanted(world, wants)


def _is_wanted(world: World, wants: bool) -> bool:
    """Say whether this rank wants another pass, and return whether any does."""
    return bool(world.max_of([float(wants)])[0])


def evaluation_settings(overrides: Sequence[str], info: SegmentationInfo) -> MaskEvaluationConfig:
    """Return the settings of an evaluation: the model's own, but for those that are given."""
    own = config_to_dict(info.inference)
    stored = [f"evaluation.{name}={json.dumps(value)}" for name, value in own.items()]
    return load_config(MaskEvaluationConfig, recipe=None, overrides=[*stored, *overrides], recipe_dir=Path())


def measured_sha256(index: MaskedIndex) -> str:
    """Return the identity of images and masks, for what is written beside a result."""
    return contents_sha256(index.images)  # whose own identity is that of the masks, too


@dataclass(frozen=True, slots=True)
class Scenes:
    """Looks again at single images of an evaluation."""

    model: Segmenter
    index: MaskedIndex
    info: SegmentationInfo

    def look(self, position: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Return image (H, W, 3), truth and prediction (H, W) of a position.

        Raises:
            BadSample: it cannot be read now.
        """
        dataset = MaskedDataset(self.index)
        try:
            record = dataset.fetch(*self.index.images.locate(position), 0)
            read = SceneReading(decoder=self.index.decoder, channels=self.model.config.in_chans)
            found: Mapping[str, Any] = read(record)
        finally:
            dataset.close()
        said = class_ids(self.model, torch.from_numpy(found["images"]), self.info.inference)
        return in_colour(found["images"].transpose(1, 2, 0)), found["masks"], said
