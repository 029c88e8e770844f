"""Settings of `beit pretrain`. The defaults are the paper's base model on ImageNet-1k; torch-free.

Image size, patch size, vocabulary and the number of views are not settings: they come from the token store. Where an
encoder is continued, the rest of the shape and the normalisation are its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from beit.common.config import above, at_least, checked, within
from beit.common.errors import require
from beit.common.reading.config import ReaderConfig
from beit.common.runs.idle import Need, training_needs
from beit.common.training.config import (
    CheckpointConfig,
    DeepSpeedConfig,
    OptimizerConfig,
    ProfileConfig,
    RunConfig,
    SpeedConfig,
    TrainConfig,
)
from beit.common.views import Resample
from beit.common.vit.config import (
    AdaptSetting,
    ModelConfig,
    Normalization,
    ViTConfig,
    for_channels,
    require_channels,
)
from beit.pretrain.masking import MaskConfig

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's pixels."""
_TORCH_RESIZE_PX = 96
"""Where torch's resize overtakes Pillow's; measured on one core with AVX2, whatever the size of the crop."""
_OF_ONLINE = ("dtype", "compile_encoder")
"""Settings of the section tokenizer that need one."""


@checked("data")
class DataConfig:
    """What is done to the pixels of a view, and how its replay is checked."""

    made_for: tuple[int, int] | None = (224, 16)
    """Sides in pixels of the views and of the patches that these settings were chosen for; a store with others is used
    all the same, with a warning. none: any."""
    mean: tuple[float, ...] | None = None
    """Subtracted from pixels scaled to [0, 1]; left out, those of the encoder that is continued, or for random weights
    ImageNet's, as in BEiT's ImageNet-1k recipe. Three numbers, or one for a grey model, which takes the average of
    three by the weights of luma."""
    std: Annotated[tuple[float, ...] | None, above(0)] = None
    """Divides the centred pixels; left out, likewise."""
    replay: Literal["strict", "tolerant"] = "strict"
    """strict: every crop's checksum must match; tolerant: its 4 x 4 luma within 3 levels, for another Pillow build."""
    interpolation: Literal["auto", "bicubic", "bicubic-torch"] = "auto"
    """Antialiased filter from the crop to `img_size`. bicubic: Pillow's, the same pixels on every kind of processor;
    bicubic-torch: 1.5 to 5 times as fast at 224 px, slower at 32 px; auto: that one for views from 96 px on."""

    def __post_init__(self) -> None:
        require_channels("data", self.mean, self.std)

    def resample(self, img_size: int) -> Resample:
        """Return the filter for views of this size in px."""
        if self.interpolation != "auto":
            return self.interpolation
        return "bicubic-torch" if img_size >= _TORCH_RESIZE_PX else "bicubic"

    @property
    def normalization(self) -> Normalization:
        """How pixels are normalised, where no encoder says otherwise."""
        channels = len(self.mean or self.std or IMAGENET.mean)
        usual = for_channels(IMAGENET, channels)
        return Normalization(self.mean or usual.mean, self.std or usual.std)

    def for_random_weights(self) -> DataConfig:
        """Return the section with the normalisation of random weights where an encoder could bring another."""
        return replace(self, **self.normalization._asdict())


ObjectiveKind = Literal["masked_tokens", "all_tokens", "masked_pixels"]
"""What the model learns to predict."""


@checked("objective")
class ObjectiveConfig:
    """What is predicted. The rows of the paper's ablation are these settings with those of `mask`."""

    kind: ObjectiveKind = "masked_tokens"
    """masked_tokens: BEiT, the visual tokens of masked patches; all_tokens: those of all patches; masked_pixels: the
    pixels of masked patches, by squared error, without any tokenizer."""
    normalize_patches: bool = True
    """For masked_pixels: standardise each patch's pixels by its own mean and deviation, as MAE does; false regresses
    pixels normalised by `data.mean` and `data.std` only."""
    aggregate: Annotated[int, within("[0, 12]")] = 0
    """Blocks that predict the same once more, from CLS of the last block and the patches of an earlier one, so that CLS
    learns about the whole image; 2 in BEiT v2, each costs about as much as one more block. They are not part of the
    encoder. 0: none."""
    aggregate_from: Annotated[int | None, at_least(1)] = None
    """Block, counted from 1, whose patches these see; left out, the one at 3/4 of the depth."""

    def __post_init__(self) -> None:
        require(
            self.aggregate > 0 or self.aggregate_from is None,
            f"objective.aggregate_from ({self.aggregate_from}) has no use without objective.aggregate; set that to 2, "
            "or leave both out",
        )

    @property
    def needs_tokens(self) -> bool:
        """Whether a tokenizer's words are the target."""
        return self.kind != "masked_pixels"


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineTokenizerConfig:
    """Tokens computed in every step, from fresh crops, for a store made with --views 0."""

    online: str | None = None
    """Name or path of the tokenizer, as `beit tokenize --tokenizer` takes it; left out, the store's tokens are used."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of its forward pass: auto is float32 on the CPU and float16 on a GPU."""
    compile_encoder: Literal["auto", "on", "off"] = "auto"
    """Whether its encoder goes through torch.compile: auto compiles on a GPU."""


@checked("held_out")
class HeldOutConfig:
    """The learning signal on images that are never trained on."""

    micro_batch_size: Annotated[int, at_least(1)] = 64
    """Images per forward pass of one rank."""
    max_images: Annotated[int, at_least(1)] = 10_000
    """At most this many of the store's held-out images, spread evenly over its shards."""
    train_images: Annotated[int, at_least(0)] = 1_000
    """At most this many training images are measured in the same way beside them, and no more than held-out images: a
    comparison of many with few is as vague as one of few with few. 0 measures none."""
    baseline_views: Annotated[int, at_least(1)] = 20_000
    """Stored views of training images whose tokens give the unigram and the neighbour line; several of each image where
    there are fewer images. Tokens computed online cost a forward pass of the tokenizer each, so 2 000 at most are."""
    pictures: Annotated[int, within("[0, 64]")] = 6
    """Held-out images that every evaluation draws as the model completes them, into RUN/reconstruction.png and
    TensorBoard, if the tokenizer is on this machine and can decode; 0 draws none."""


@checked("probe")
class ProbeConfig:
    """k-NN and a linear classifier on every block's features of a few labelled images, at every evaluation."""

    data: str | None = None
    """Labelled images, in any form `beit finetune` takes; left out, nothing is probed."""
    test: str | None = None
    """Labelled images to measure on; left out, half of `data`, chosen by a hash of their keys."""
    class_names: str | None = None
    """File that says what their class numbers mean, as `data.class_names` of `beit finetune`."""
    label_column: str | None = None
    """Column of their classes in Parquet and CSV tables; left out, the one called label, labels, class or target."""
    max_images: Annotated[int, at_least(1)] = 2_000
    """At most this many images of each, with the class proportions of all."""
    micro_batch_size: Annotated[int, at_least(1)] = 64
    """Images per forward pass of one rank."""

    def __post_init__(self) -> None:
        require(
            self.test is None or self.data is not None,
            f"probe.test ({self.test}) needs probe.data, the images to fit on",
        )


@checked()
class PretrainConfig:
    """Everything that decides a pre-training run, apart from the store."""

    init: str | None = None
    """Folder of an encoder to continue from; left out, random weights. Shape and normalisation are then the encoder's,
    and what `model` and `data` say of them must be the same; drop_path excepted."""
    layer_decay: Annotated[float, within("(0, 1]")] = 1.0
    """Factor on the learning rate from one layer to the layer below it; 1 trains all layers alike."""
    weights: Literal["published", "scaled"] = "published"
    """Random weights: published, as BEiT begins; scaled, with the deviation that the width of each layer asks for and
    with position tables that prefer near patches: sooner there where models are narrow and runs short. An encoder that
    is continued (`init`) has weights of its own."""
    position_lr_scale: Annotated[float, above(0)] = 1.0
    """Factor on the learning rate of the relative position tables, which must become large numbers for a head to look
    at one patch; other than 1 also takes their weight decay away."""
    adapt: AdaptSetting = "all"
    """How much of the encoder that is continued is trained: "all"; "last:N", its last N blocks; or "lora:R", updates of
    rank R of its matrices. What comes after it is trained in any case, and a mask token that it never had."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The vision transformer."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which patches are hidden."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is predicted."""
    tokenizer: OnlineTokenizerConfig = field(default_factory=OnlineTokenizerConfig)
    """Tokens computed while training."""
    data: DataConfig = field(default_factory=DataConfig)
    """Pixels."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    """Loading."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, batch, precision, seed."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
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
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    """Evaluation."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """Labelled images that tell what the features are good for."""

    def __post_init__(self) -> None:
        require(self.init is None or bool(self.init), "--init must name the folder of an encoder")
        if self.init is None:  # nothing else will say it; with an encoder, what is left open is settled by `start.py`
            object.__setattr__(self, "model", self.model.for_random_weights())
            object.__setattr__(self, "data", self.data.for_random_weights())
        require(
            self.adapt == "all" or self.init is not None,
            f'adapt ("{self.adapt}") must be "all" without --init: random weights left as they are would not learn; '
            "give an encoder to continue",
        )
        require(
            self.adapt != "last:0",
            'adapt ("last:0") would leave the encoder as it is; name at least one block, last:1',
        )
        kind = self.objective.kind
        require(
            self.mask.mode != "none" or kind == "all_tokens",
            f'mask.mode ("none") leaves nothing to predict for objective.kind ("{kind}"); set it to "all_tokens"',
        )
        require(
            self.tokenizer.online is None or self.objective.needs_tokens,
            f'tokenizer.online ({self.tokenizer.online}) has no use for objective.kind ("{kind}"); leave it out',
        )


def early_block(config: ViTConfig, taken_from: int | None) -> int:
    """Return after which block, counted from 1, the patches are taken: the one named, or 3/4 of the depth."""
    require(
        config.depth > 1,
        "objective.aggregate takes patches of a block before the model's last, and model.depth (1) leaves none; leave "
        "it out, or take more blocks",
    )
    early = math.floor(0.75 * config.depth) if taken_from is None else taken_from
    require(
        1 <= early < config.depth,
        f"objective.aggregate_from ({early}) must be in [1, {config.depth - 1}], a block before the model's last, for "
        "objective.aggregate; name another, or leave both out",
    )
    return early


def needs(config: PretrainConfig, *, has_position_tables: bool) -> list[Need]:
    """Return what settings need to have an effect, as `common/runs/idle.py` wants it.

    `has_position_tables` tells whether relative position tables are trained, which an encoder may decide.
    """
    mode, kind = config.mask.mode, config.objective.kind
    of_mode = f'with mask.mode="{mode}"; leave it out, or choose another mode'
    online = "without tokenizer.online, the tokenizer it is for; leave it out"
    labelled = "without probe.data, the labelled images it is for; leave it out"
    return [
        *training_needs(config),
        Need("weights", config.init is None, "with --init: the encoder has weights of its own; leave it out"),
        Need(
            "position_lr_scale",
            has_position_tables,
            "where no relative position tables are trained (model.pos_bias, adapt); leave it out",
        ),
        Need("mask.num_masked", mode in ("blockwise", "random"), of_mode),
        Need("mask.min_block", mode in ("blockwise", "algorithm1"), of_mode),
        *(Need(f"mask.{name}", mode == "blockwise", of_mode) for name in ("exact", "min_aspect", "max_attempts")),
        Need(
            "objective.normalize_patches",
            not config.objective.needs_tokens,
            f'with objective.kind="{kind}", which has no pixels to predict; leave it out',
        ),
        *(Need(f"tokenizer.{name}", config.tokenizer.online is not None, online) for name in _OF_ONLINE),
        *(Need(f"probe.{name}", config.probe.data is not None, labelled) for name in ("class_names", "label_column")),
    ]
