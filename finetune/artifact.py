"""The fine-tuned model on disk, an encoder folder with a head and class names; and what a new one starts from.

The folder itself is `beit.common.encoder`'s; the module in memory is `finetune/classification/model.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar, cast, overload

import torch

from beit.common.encoder import load_weights
from beit.common.errors import InputError, require
from beit.common.sources.config import SourceConfig
from beit.common.sources.labels import one_form
from beit.common.vit.adaptation import adapt, check_adaptation, fresh_names
from beit.common.vit.config import Adaptation, Normalization, PosBias, ViTConfig, build_vit_config
from beit.common.vit.description import EncoderConfig, read_encoder_config
from beit.common.vit.features import FeaturePooling
from beit.finetune.classification.model import FRESH_PREFIXES, POOLINGS, ImageClassifier
from beit.finetune.config import RANDOM_ENCODER, FinetuneConfig
from beit.finetune.in_force import EncoderSettings, require_agreement

AnyClassifier = TypeVar("AnyClassifier", bound=ImageClassifier)
DEFAULT_IMG_SIZE, DEFAULT_PATCH_SIZE = 224, 16
"""Of random weights where the settings name none; the paper's."""
HALF = (0.5, 0.5, 0.5)
"""Mean and std of the pixels of random weights where the settings name none."""


class ReadsImages(Protocol):
    """What the settings say of the images and the encoder."""

    @property
    def encoder(self) -> str | None:
        """Folder of an encoder, or "random"."""

    @property
    def source(self) -> SourceConfig:
        """How images are read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartingPoint:
    """What a fine-tuning run starts from."""

    architecture: ViTConfig
    """Shape of the model to train."""
    normalization: Normalization
    """Of its input."""
    encoder: EncoderConfig | None
    """Description of the encoder on disk; None for random weights."""
    adaptation: Adaptation = Adaptation()
    """How much of it is trained."""

    def reading(self, config: ReadsImages) -> SourceConfig:
        """Return how images are read: as the encoder was trained with, unless the settings say otherwise."""
        if self.encoder is None:
            return config.source
        return config.source.after(self.encoder.decoding, str(config.encoder))


@overload
def load_classifier(path: str | Path) -> tuple[ImageClassifier, EncoderConfig]: ...
@overload
def load_classifier(path: str | Path, *, kind: type[AnyClassifier]) -> tuple[AnyClassifier, EncoderConfig]: ...
def load_classifier(
    path: str | Path, *, kind: type[ImageClassifier] = ImageClassifier
) -> tuple[ImageClassifier, EncoderConfig]:
    """Load a fine-tuned classifier, or a run's, for use, in eval mode on the CPU, and its description.

    `kind` is the class of the module, which may offer more.
    """
    stored = read_encoder_config(path)
    if stored.task != "classification" or stored.class_names is None:
        raise InputError(f"{path} is an encoder without a classification head; fine-tune it first, with beit finetune")
    require(stored.pooling in POOLINGS, f"{path} has pooling {stored.pooling!r}; it must be {' or '.join(POOLINGS)}")
    pooling = cast(FeaturePooling, stored.pooling)
    with torch.device("meta"):  # initial values would cost seconds and be thrown away
        model = kind(stored.architecture, num_classes=len(stored.class_names), pooling=pooling)
    model.build_index("cpu")
    load_weights(model, path)
    return model.eval(), stored


def starting_point(config: EncoderSettings) -> StartingPoint:
    """Decide shape and normalisation before anything is built: the encoder's, or for random weights the settings'."""
    if not config.encoder:
        raise InputError(f"--encoder is missing; give the folder of an encoder, or --encoder {RANDOM_ENCODER}")
    if config.encoder == RANDOM_ENCODER:
        require(
            not config.freeze_blocks,
            f"freeze_blocks ({config.freeze_blocks}) must be 0 with --encoder {RANDOM_ENCODER}: random blocks left as "
            "they are would not learn; give an encoder",
        )
        require(
            config.adapt == "all",
            f'adapt ("{config.adapt}") must be "all" with --encoder {RANDOM_ENCODER}: random weights left as they are '
            "would not learn; give an encoder",
        )
        shape = build_vit_config(
            config.model.for_random_weights(),
            img_size=config.image.img_size or DEFAULT_IMG_SIZE,
            patch_size=config.image.patch_size or DEFAULT_PATCH_SIZE,
            use_mask_token=False,
            init="finetune",
        )
        normalization = Normalization(config.image.mean or HALF, config.image.std or HALF)
        own_tables: PosBias = "none" if shape.pos_bias == "none" else "per_block"
        shape = replace(shape, pos_bias=own_tables)
        return StartingPoint(architecture=shape, normalization=normalization, encoder=None)
    stored = read_encoder_config(config.encoder)
    require_agreement(stored, config)
    architecture = _encoder_architecture(stored.architecture, config)
    require(
        config.freeze_blocks <= architecture.depth,
        f"freeze_blocks ({config.freeze_blocks}) must not exceed the {architecture.depth} blocks of {config.encoder}",
    )
    adaptation = Adaptation.parse(config.adapt)
    if config.freeze_blocks:
        adaptation = Adaptation(last_blocks=architecture.depth - config.freeze_blocks)
    check_adaptation(adaptation, architecture)
    return StartingPoint(
        architecture=architecture, normalization=stored.normalization, encoder=stored, adaptation=adaptation
    )


def build_classifier(config: FinetuneConfig, start: StartingPoint, class_names: Sequence[str]) -> ImageClassifier:
    """Build the model to train, with the encoder's weights if there is one; the head starts anew.

    A head is kept only where the encoder was fine-tuned on the same classes. Of the encoder, what the settings say is
    trained.
    """
    model = ImageClassifier(
        start.architecture,
        num_classes=len(class_names),
        pooling=config.classifier.pooling,
        head_init_scale=config.classifier.head_init_scale,
    )
    if start.encoder is not None:
        assert config.encoder is not None
        same_classes = list(map(one_form, start.encoder.class_names or ())) == list(map(one_form, class_names))
        load_weights(model, config.encoder, fresh=FRESH_PREFIXES, skip=() if same_classes else ("head.",))
        adapt(model, start.adaptation, fresh=fresh_names(model, start.encoder.architecture))
    return model


def _encoder_architecture(stored: ViTConfig, config: EncoderSettings) -> ViTConfig:
    pos_bias = config.model.pos_bias
    if pos_bias == "none" and stored.pos_bias != "none":
        raise InputError(
            f"model.pos_bias (none) would drop the position tables of the encoder {config.encoder} "
            f"({stored.pos_bias}); leave it out"
        )
    return replace(
        stored,
        img_size=config.image.img_size or stored.img_size,
        drop_path=config.model.drop_path,
        use_mask_token=False,
        init="finetune",
        final_norm=False,  # with CLS the head's own norm starts from it; the mean of the patches gets a fresh one
        # Every block has a table of its own, new ones from zero; none where the encoder has none and none is asked for.
        pos_bias="none" if stored.pos_bias == "none" and pos_bias != "per_block" else "per_block",
    )
