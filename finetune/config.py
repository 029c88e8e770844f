"""Settings of `beit finetune`. The defaults are the paper's base model on ImageNet-1k; torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from beit.common.config import above, at_least, checked, within
from beit.common.errors import InputError, require
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
from beit.common.vit.config import (
    AdaptSetting,
    ModelConfig,
    PosBias,
    SizeName,
    require_channels,
    require_one_limit,
)
from beit.finetune.augment.settings import MixConfig, TrainAugmentConfig

RANDOM_ENCODER = "random"


@checked("image")
class ImageConfig:
    """Geometry and scaling of the model's input; an encoder brings its own, and only `img_size` may be another.

    What was in force is recorded in the run.
    """

    img_size: Annotated[int | None, at_least(1)] = None
    """Side of the input in pixels; left out, the encoder's, or 224 for random weights. Position tables are resized."""
    patch_size: Annotated[int | None, at_least(1)] = None
    """Side of a patch in pixels; left out, the encoder's, or 16 for random weights."""
    mean: tuple[float, ...] | None = None
    """Subtracted from pixels scaled to [0, 1], three numbers, or one for a grey model; left out, the encoder's, or 0.5
    for random weights."""
    std: Annotated[tuple[float, ...] | None, above(0)] = None
    """Divides the centred pixels; left out, the encoder's, or 0.5 for random weights."""

    def __post_init__(self) -> None:
        require_channels("image", self.mean, self.std)


@checked("model")
class ShapeConfig:
    """The vision transformer; what is left out is the encoder's, and what is not must be the same, drop_path excepted.

    What was in force is recorded in the run.
    """

    size: SizeName | None = None
    """Named shape, which sets what is left unset below; for random weights base."""
    embed_dim: int | None = None
    """Channels of the residual stream."""
    depth: int | None = None
    """Number of transformer blocks."""
    num_heads: int | None = None
    """Attention heads; must divide embed_dim."""
    in_chans: Literal[1, 3] | None = None
    """Channels that the model sees: 3 for RGB, 1 for grey; for random weights as many as the images have. 1 makes a
    grey model of an encoder for RGB, its kernels summed."""
    mlp_ratio: float | None = None
    """Hidden width of the MLP divided by embed_dim; for random weights 4."""
    init_values: float | None = None
    """Initial layer scale; 0 builds the blocks without it."""
    drop_path: float = 0.1
    """Stochastic depth rate of the last block."""
    use_abs_pos_emb: bool | None = None
    """Whether a learned absolute position embedding is added; for random weights it is not."""
    pos_bias: PosBias = "shared"
    """Relative position bias, a table for every block; per_block adds them to an encoder that has none, and none leaves
    them out of random weights."""

    @property
    def names_shape(self) -> bool:
        """Whether anything says how large the network is."""
        return any(value is not None for value in (self.size, self.embed_dim, self.depth))

    def for_random_weights(self) -> ModelConfig:
        """Return the section as pre-training has it, where everything left out has a value."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return ModelConfig(**given).for_random_weights()


@checked("classifier")
class ClassifierConfig:
    """The head and its loss."""

    pooling: Literal["mean", "cls"] = "mean"
    """What the head sees: the mean of the patches, or CLS."""
    head_init_scale: Annotated[float, above(0)] = 0.001
    """Factor on the head's initial weights."""
    label_smoothing: Annotated[float, within("[0, 1)")] = 0.1
    """Share of the target spread evenly over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced" weighs every class as if all were equally frequent: by the mean class size over its own."""
    multi_label: bool = False
    """Whether an image may be of several classes, joined by `|` in its label, or of none; trained with BCE."""

    def __post_init__(self) -> None:
        require(
            not (self.multi_label and self.class_weights != "none"),
            f"classifier.class_weights ({self.class_weights}) must be none with classifier.multi_label",
        )


@checked("data")
class DataConfig:
    """Which labelled images are used."""

    val: str | None = None
    """Labelled images to evaluate on, matched to the training classes by name; left out, nothing is evaluated."""
    class_names: str | None = None
    """File that says what the class numbers of training and validation images mean: a JSON list, a JSON object of
    numbers and names, or one name per line, the first for number 0. Left out, the name of a number is its text."""
    label_column: str | None = None
    """Column of the classes in Parquet and CSV tables; left out, the one called label, labels, class or target."""
    num_val_images: Annotated[int | None, at_least(1)] = None
    """Measure on this many of them only, with the class proportions of all, always the same; left out, on all."""
    num_labels: Annotated[int | None, at_least(1)] = None
    """Train on this many images only, with the class proportions of all; left out, on all."""
    label_fraction: Annotated[float | None, within("(0, 1]")] = None
    """Train on this share of the images only, with the class proportions of all; left out, on all."""
    subset_seed: int = 0
    """Chooses the images of such a subset; apart from train.seed, so that runs can share a subset."""
    balanced: bool = False
    """Show images of rare classes more often, in views of their own, so that all classes come equally often. An epoch
    then has as many images of every class as the largest has."""

    def __post_init__(self) -> None:
        count, fraction = self.num_labels, self.label_fraction
        require(
            count is None or fraction is None,
            f"data.num_labels ({count}) and data.label_fraction ({fraction}) exclude each other; give one of them",
        )


@checked("evaluation")
class EvaluationConfig:
    """How images are evaluated."""

    micro_batch_size: Annotated[int, at_least(1)] = 128
    """Images per forward pass of one rank."""
    crop_pct: Annotated[float | None, within("(0, 1]")] = None
    """Share of the resized short side that is kept; left out, 0.875 from 65 to 383 px and 1 otherwise. The model keeps
    it, so that it is evaluated and used likewise."""


@checked("probe")
class ProbeConfig:
    """Measuring frozen features, by the tasks linear-probe and knn."""

    l2: Annotated[float, at_least(0)] = 1e-3
    """Weight penalty of the linear classifiers, on standardised features."""
    ks: Annotated[tuple[int, ...], at_least(1)] = (1, 5, 10, 20, 50, 100, 200)
    """Numbers of neighbours to try."""
    temperature: Annotated[float, above(0)] = 0.07
    """Neighbours weigh exp(cosine similarity / this)."""
    knn_pooling: Literal["mean", "cls", "cls_mean"] = "mean"
    """What neighbours are compared by: the mean of the patches, CLS, or both. Linear classifiers see both."""
    max_feature_gib: Annotated[float, above(0)] = 8.0
    """Refuse image sets whose features would take more memory than this."""

    def __post_init__(self) -> None:
        require(len(self.ks) > 0, "probe.ks [] must be numbers of at least 1")


# The two below inherit the fields to change defaults only: a recipe that sets one key of a section gets the others
# from the section's own class.


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneTrainConfig(TrainConfig):
    """Length, batch and rhythm of a run, with fine-tuning's defaults."""

    epochs: float = 100.0
    """Passes over the training samples; ignored when `steps` is given."""
    global_batch_size: int = 1024
    """Samples per optimizer step over all ranks; part of the data order, so it is fixed for a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneOptimizerConfig(OptimizerConfig):
    """AdamW with linear warmup and a cosine, with fine-tuning's defaults."""

    lr: float = 4e-3
    """Peak learning rate of the head; `layer_decay` lowers it towards the patches. Never scaled with the batch."""
    min_lr: float = 1e-6
    """Learning rate the cosine ends at, lowered likewise."""
    warmup_epochs: float = 20.0
    """Length of the linear warmup; ignored when `warmup_steps` is given."""
    clip_grad: float | None = None
    """Largest global L2 norm of the gradient; left out, no clipping."""


@checked()
class FinetuneConfig:
    """Everything that decides a fine-tuning run, apart from the training images."""

    encoder: str | None = None
    """Folder of a pre-trained encoder, or "random" for random weights."""
    layer_decay: Annotated[float, within("(0, 1]")] = 0.65
    """Factor on the learning rate from one layer to the layer below it; 1 trains all layers alike."""
    freeze_blocks: Annotated[int, at_least(0)] = 0
    """Keep the embeddings and this many lowest blocks as the encoder has them; 0 trains all."""
    adapt: AdaptSetting = "all"
    """How much of the encoder is trained: "all"; "last:N", its last N blocks, which freeze_blocks says the other way
    round; or "lora:R", updates of rank R of its matrices. What comes after it is trained in any case."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Input."""
    model: ShapeConfig = field(default_factory=ShapeConfig)
    """The vision transformer."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Head and loss."""
    augment: TrainAugmentConfig = field(default_factory=TrainAugmentConfig)
    """Training views."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Mixup and cutmix."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Which of them are read."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    """Loading."""
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    """Length, batch, precision, seed."""
    optimizer: FinetuneOptimizerConfig = field(default_factory=FinetuneOptimizerConfig)
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
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measuring."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """Linear probe and k-NN."""

    def __post_init__(self) -> None:
        require_one_limit(self.adapt, self.freeze_blocks)
        micro, total = self.train.micro_batch_size, self.train.global_batch_size
        require(
            not self.mix.is_on or (total if micro is None else micro) % 2 == 0,
            f"train.{'global' if micro is None else 'micro'}_batch_size ({total if micro is None else micro}) must be "
            "even, since mixup and cutmix pair images; or switch them off with mix.prob=0",
        )
        require(
            not (self.data.balanced and self.classifier.multi_label),
            "data.balanced must be false with classifier.multi_label: images are of several classes at once",
        )
        require(
            not (self.data.balanced and self.classifier.class_weights != "none"),
            f"data.balanced and classifier.class_weights ({self.classifier.class_weights}) both make up for rare "
            "classes; set one of them to false or none",
        )
        if self.encoder is not None and not self.encoder:
            raise InputError('--encoder must name a folder, or be "random"')


def needs(config: FinetuneConfig) -> list[Need]:
    """Return what settings of a training need to have an effect, as `common/runs/idle.py` wants it."""
    data, mix = config.data, config.mix
    is_either = mix.prob > 0 and mix.mixup_alpha > 0 and mix.cutmix_alpha > 0
    return [
        *training_needs(config),
        *data_needs(is_subset=(data.num_labels, data.label_fraction) != (None, None), is_measured=data.val is not None),
        Need(
            "mix.switch_prob",
            is_either,
            "where not both of mixup and cutmix are on (mix.prob, mix.mixup_alpha, mix.cutmix_alpha); leave it out",
        ),
    ]


def data_needs(*, is_subset: bool, is_measured: bool) -> list[Need]:
    """Return the needs that the section data has in classification and segmentation."""
    return [
        Need(
            "data.subset_seed", is_subset, "on all images; give data.num_labels or data.label_fraction, or leave it out"
        ),
        Need("data.num_val_images", is_measured, "without --val, the images it is a number of; leave it out"),
    ]
