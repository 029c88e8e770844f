"""The segmentation model on disk: an encoder folder with a head, its classes, and how it is used.

The folder itself is `beit.common.encoder`'s; what a run starts from is `beit.finetune.artifact`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import torch

from beit.common.config import config_from_dict, config_to_dict
from beit.common.encoder import load_weights
from beit.common.errors import InputError
from beit.common.images.decoding import USUAL, Decoding
from beit.common.sources.labels import one_form
from beit.common.vit.adaptation import adapt, fresh_names
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig, read_encoder_config
from beit.common.vit.vit import Block
from beit.finetune.artifact import StartingPoint
from beit.finetune.masks.classes import MaskClasses
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig, SegmentationConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import HEAD_PREFIXES, Segmenter

AnySegmenter = TypeVar("AnySegmenter", bound=Segmenter)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationInfo:
    """What a model says of its head, beside the encoder."""

    head: HeadConfig
    """With nothing left open: blocks, channels and the norm that was used."""
    classes: MaskClasses
    """In the order of the logits."""
    inference: InferenceConfig
    """How it was evaluated, and is used unless told otherwise."""

    def to_dict(self) -> dict[str, Any]:
        """Return what stands under `segmentation` in config.json."""
        return {
            "head": config_to_dict(self.head),
            "classes": {"names": list(self.classes.names), "colours": [list(one) for one in self.classes.colours]},
            "inference": config_to_dict(self.inference),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, origin: str) -> SegmentationInfo:
        """Read it back; `origin` is the file, for messages."""
        try:
            names, colours = values["classes"]["names"], values["classes"]["colours"]
            if not all(isinstance(name, str) for name in names):
                raise TypeError("a name that is no text")
            if len(names) != len(colours) or not all(map(_is_colour, colours)):
                raise ValueError("colours that are none")
            return cls(
                head=config_from_dict(HeadConfig, values["head"], origin=origin),
                classes=MaskClasses(
                    names=tuple(names), colours=tuple((red, green, blue) for red, green, blue in colours)
                ),
                inference=config_from_dict(InferenceConfig, values["inference"], origin=origin),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{origin} is malformed (segmentation: {error!r}); write the model again") from None


def build_segmenter(config: SegmentationConfig, start: StartingPoint, classes: MaskClasses) -> Segmenter:
    """Build the model to train, with the encoder's weights if there is one; the head starts anew.

    A head is kept only where the encoder was trained with the very same one on the same classes. Of the encoder, what
    the settings say is trained; where nothing is, no stochastic depth is left either, so that the head sees what the
    encoder sees.
    """
    head = settled_head(config, start)
    model = Segmenter(start.architecture, num_classes=len(classes), head=head)
    if start.encoder is not None:
        assert config.encoder is not None
        is_same = _has_same_head(start.encoder, head, classes.names, origin=config.encoder)
        load_weights(model, config.encoder, fresh=HEAD_PREFIXES, skip=() if is_same else HEAD_PREFIXES)
        adapt(model, start.adaptation, fresh=fresh_names(model, start.encoder.architecture))
    if start.adaptation.last_blocks == 0:
        for block in cast(Iterable[Block], model.blocks):
            block.drop_path = 0.0
    return model


def settled_head(config: SegmentationConfig, start: StartingPoint) -> HeadConfig:
    """Return the head of a run with nothing left open, the same on every machine and for every number of ranks."""
    train = config.train
    images = train.global_batch_size if train.micro_batch_size is None else train.micro_batch_size
    best_block = None if start.encoder is None else start.encoder.best_block
    return resolve_head(config.head, start.architecture, best_block=best_block, images=images)


def describe(
    architecture: ViTConfig,
    normalization: Normalization,
    info: SegmentationInfo,
    *,
    best_block: int | None = None,
    decoding: Decoding = USUAL,
    provenance: Mapping[str, Any] | None = None,
) -> EncoderConfig:
    """Return the description of a segmentation model, as `save_model` wants it."""
    return EncoderConfig(
        architecture=architecture,
        normalization=normalization,
        task="segmentation",
        best_block=best_block,
        segmentation=info.to_dict(),
        decoding=decoding,
        provenance=dict(provenance or {}),
    )


@overload
def load_segmenter(path: str | Path) -> tuple[Segmenter, EncoderConfig, SegmentationInfo]: ...
@overload
def load_segmenter(
    path: str | Path, *, kind: type[AnySegmenter]
) -> tuple[AnySegmenter, EncoderConfig, SegmentationInfo]: ...
def load_segmenter(
    path: str | Path, *, kind: type[Segmenter] = Segmenter
) -> tuple[Segmenter, EncoderConfig, SegmentationInfo]:
    """Load a segmentation model, or a run's, for use, in eval mode on the CPU, with all that is said of it.

    `kind` is the class of the module, which may offer more.
    """
    stored = read_encoder_config(path)
    info = segmentation_info(stored, origin=path)
    with torch.device("meta"):  # initial values would cost seconds and be thrown away
        model = kind(stored.architecture, num_classes=len(info.classes), head=info.head)
    model.build_index("cpu")
    load_weights(model, path)
    return model.eval(), stored, info


def segmentation_info(stored: EncoderConfig, *, origin: str | Path) -> SegmentationInfo:
    """Return what a description says of its segmentation head."""
    if stored.task != "segmentation" or stored.segmentation is None:
        raise InputError(f"{origin} is no segmentation model; train one, with beit finetune segmentation")
    info = SegmentationInfo.from_dict(stored.segmentation, origin=str(origin))
    if resolve_head(info.head, stored.architecture) != info.head:
        raise InputError(f"{origin} is malformed (segmentation.head leaves something open); write the model again")
    return info


def _has_same_head(encoder: EncoderConfig, head: HeadConfig, names: Sequence[str], *, origin: str) -> bool:
    if encoder.task != "segmentation":
        return False
    info = segmentation_info(encoder, origin=origin)
    shapes = [(one.kind, one.blocks, one.channels, one.norm) for one in (info.head, head)]
    return shapes[0] == shapes[1] and list(map(one_form, info.classes.names)) == list(map(one_form, names))


def _is_colour(values: Any) -> bool:
    return len(values) == 3 and all(isinstance(value, int) and 0 <= value <= 255 for value in values)
