"""Settings of `beit finetune segmentation`; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from beit.common.config import above, at_least, checked, within
from beit.common.errors import InputError, require
from beit.common.images.decoding import GREY
from beit.common.reading.config import ReaderConfig
from beit.common.runs.idle import Need, training_needs
from beit.common.sources.config import SourceConfig
from beit.common.training.config import (
    CheckpointConfig,
    DeepSpeedConfig,
    OptimizerConfig,
    ProfileConfig,
    RunConfig,
    SpeedConfig,
    TrainConfig,
)
from beit.common.vit.config import AdaptSetting, Normalization, for_channels, require_one_limit
from beit.finetune.config import ImageConfig, ShapeConfig, data_needs
from beit.finetune.masks.settings import MaskDataConfig

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the pixels of ImageNet."""

HeadKind = Literal["linear", "fpn", "upernet"]
NormKind = Literal["auto", "batch", "group"]


@checked("head")
class HeadConfig:
    """What turns the encoder's patches into a class for every pixel."""

    kind: HeadKind = "linear"
    """linear: a norm and a 1x1 convolution on the patches, best where labels are few; fpn: four scales made of four
    blocks, added up; upernet: the paper's, with an auxiliary head while it trains."""
    blocks: tuple[int, ...] | None = None
    """Blocks whose patches are used, counted from 0 or from the end, ascending. Left out: for linear the block that
    the encoder's probe found best, or else the last four side by side; for fpn and upernet four, a third, a half, two
    thirds and all of the way up (3, 5, 7, 11 of 12)."""
    channels: Annotated[int | None, at_least(1)] = None
    """Width inside the head; left out, 128 for fpn and the encoder's for upernet. Of no use to linear."""
    norm: NormKind = "auto"
    """Normalisation inside fpn and upernet. batch: statistics over the step's pixels on all ranks; group: of every
    image by itself, in groups of channels. auto: batch where a rank has at least two images at a time, else group."""
    dropout: Annotated[float, within("[0, 1)")] = 0.1
    """Share of channels left out before the last convolution while training."""
    auxiliary_weight: Annotated[float, at_least(0)] = 0.4
    """Of the auxiliary head's loss beside the main one (upernet); 0 builds none."""


@checked("augment")
class SceneAugmentConfig:
    """Distribution of training crops. The defaults are those of BEiT's segmentation."""

    scale: Annotated[tuple[float, float], above(0)] = (0.5, 2.0)
    """Smallest and largest factor on an image's size before the crop, after `short_side`."""
    short_side: Annotated[int | None, at_least(1)] = None
    """Pixels that the short side of an image has at factor 1; left out, its own. ADE20K: the side of the crop."""
    max_class_share: Annotated[float, within("(0, 1]")] = 0.75
    """A crop in which one class has this share of the labelled pixels or more is drawn again, up to ten times."""
    flip: Annotated[float, within("[0, 1]")] = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something."""
    photometric: bool = True
    """Whether brightness, contrast, saturation and hue change at random."""

    def __post_init__(self) -> None:
        """Check the order of the factors."""
        low, high = self.scale
        require(low <= high, f"augment.scale ({low}, {high}) must satisfy low <= high")


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneTrainConfig(TrainConfig):
    """Length, batch and rhythm of a run, with segmentation's defaults."""

    epochs: float = 127.0
    """Passes over the training samples; ignored when `steps` is given. The paper's 160 000 steps on ADE20K are 127."""
    global_batch_size: int = 16
    """Samples per optimizer step over all ranks; part of the data order, so it is fixed for a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneOptimizerConfig(OptimizerConfig):
    """AdamW with linear warmup and a straight line down, with segmentation's defaults."""

    lr: float = 7e-4
    """Peak learning rate of the head; `layer_decay` lowers it towards the patches. Never scaled with the batch."""
    min_lr: float = 0.0
    """Learning rate the schedule ends at, lowered likewise."""
    schedule: Literal["cosine", "poly"] = "poly"
    """Way down after the warmup: half a cosine, or poly, a power of the share of the run that is left."""
    warmup_epochs: float = 5.0
    """Length of the linear warmup; ignored when `warmup_steps` is given."""
    clip_grad: float | None = None
    """Largest global L2 norm of the gradient; left out, no clipping."""


@checked("evaluation")
class InferenceConfig:
    """How images are segmented, in evaluations of the run and by the model it writes."""

    mode: Literal["slide", "whole"] = "slide"
    """slide: windows of the crop's size over the image, overlapping, averaged; whole: the image at once, with position
    tables stretched to its shape."""
    stride: Annotated[int | None, at_least(1)] = None
    """Pixels from one window to the next; left out, two thirds of the crop."""
    short_side: Annotated[int | None, at_least(1)] = None
    """Pixels of the short side an image is resized to first; left out, its own. What is found comes back at its own."""
    scales: Annotated[tuple[float, ...], above(0)] = (1.0,)
    """Factors on the size that images are looked at; the probabilities of all are averaged."""
    flip: bool = False
    """Whether mirrored images are looked at, too, and averaged."""
    micro_batch_size: Annotated[int, at_least(1)] = 4
    """Windows per forward pass of one rank."""


@checked("probe")
class PatchProbeConfig:
    """Measuring frozen patches, by the task linear-probe."""

    l2: Annotated[float, at_least(0)] = 1e-3
    """Weight penalty of the linear classifiers, on standardised features."""
    max_patches: Annotated[int, at_least(1)] = 30_000
    """Patches to fit on, equally many of each training image; more is a little better and takes longer."""
    max_feature_gib: Annotated[float, above(0)] = 8.0
    """Refuse to keep features that would take more memory than this."""


@checked()
class SegmentationConfig:
    """Everything that decides a segmentation run, apart from the training images."""

    encoder: str | None = None
    """Folder of a pre-trained encoder, or "random" for random weights."""
    layer_decay: Annotated[float, within("(0, 1]")] = 0.65
    """Factor on the learning rate from one layer to the layer below it; 1 trains all layers alike."""
    freeze_blocks: Annotated[int, at_least(0)] = 0
    """Keep the embeddings and this many lowest blocks as the encoder has them; 0 trains all, the depth none of it."""
    adapt: AdaptSetting = "all"
    """How much of the encoder is trained: "all"; "last:N", its last N blocks, which freeze_blocks says the other way
    round; or "lora:R", updates of rank R of its matrices. What comes after it is trained in any case."""
    normalization: Literal["encoder", "imagenet"] = "encoder"
    """Of the pixels: as the encoder was trained, or by ImageNet's mean and deviation, as the paper's segmentation does
    even on encoders that were trained with 0.5."""
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced" weighs every class as if all had equally many pixels: by the mean number over its own."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Input: `img_size` is the side of the crop."""
    model: ShapeConfig = field(default_factory=ShapeConfig)
    """The vision transformer."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """What stands on it."""
    augment: SceneAugmentConfig = field(default_factory=SceneAugmentConfig)
    """Training crops."""
    data: MaskDataConfig = field(default_factory=MaskDataConfig)
    """Images and masks."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Which of them are read."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    """Loading."""
    train: SceneTrainConfig = field(default_factory=SceneTrainConfig)
    """Length, batch, precision, seed."""
    optimizer: SceneOptimizerConfig = field(default_factory=SceneOptimizerConfig)
    """AdamW and its schedule."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    """Partitioning."""
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    """Time and memory of a step."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """Steps to record."""
    run: RunConfig = field(default_factory=RunConfig)
    """Its copy."""
    evaluation: InferenceConfig = field(default_factory=InferenceConfig)
    """Measuring and using."""
    probe: PatchProbeConfig = field(default_factory=PatchProbeConfig)
    """Linear probe."""

    def __post_init__(self) -> None:
        """Check the encoder's name, that one setting says what is trained, and none what the normalisation brings."""
        require_one_limit(self.adapt, self.freeze_blocks)
        require(
            self.normalization == "encoder"
            or (self.image.mean, self.image.std) in ((None, None), IMAGENET, for_channels(IMAGENET, GREY)),
            "image.mean and image.std are ImageNet's with normalization=imagenet; leave them out",
        )
        if self.encoder is not None and not self.encoder:
            raise InputError('--encoder must name a folder, or be "random"')


def needs(config: SegmentationConfig) -> list[Need]:
    """Return what settings of a training need to have an effect, as `common/runs/idle.py` wants it."""
    data, kind = config.data, config.head.kind
    of_kind = f'with head.kind="{kind}"; leave it out'
    return [
        *training_needs(config),
        *data_needs(is_subset=(data.num_labels, data.label_fraction) != (None, None), is_measured=True),
        *(Need(f"head.{name}", kind != "linear", of_kind) for name in ("channels", "norm")),
        Need("head.auxiliary_weight", kind == "upernet", of_kind),
        Need("evaluation.stride", config.evaluation.mode == "slide", 'with evaluation.mode="whole"; leave it out'),
    ]
