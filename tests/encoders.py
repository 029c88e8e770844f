"""Encoders of small models on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.common.encoder import save_model
from beit.common.images.decoding import USUAL, Decoding
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.common.vit.features import FeaturePooling
from beit.finetune.classification.model import ImageClassifier
from beit.finetune.masks.classes import MaskClasses, voc_colours
from beit.finetune.segmentation.artifact import SegmentationInfo, describe
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import Segmenter


def save_encoder(
    directory: Path,
    state: Mapping[str, Tensor],
    *,
    architecture: ViTConfig,
    mean: Sequence[float],
    std: Sequence[float],
    **described: Any,
) -> None:
    """Write a pre-trained encoder as `beit pretrain` does."""
    normalization = Normalization(tuple(mean), tuple(std))
    save_model(
        directory,
        state,
        EncoderConfig(architecture=architecture, normalization=normalization, task="pretrain", **described),
    )


def save_classifier(
    directory: Path, *, class_names: Sequence[str], pooling: FeaturePooling = "mean", seed: int = 0, **described: Any
) -> ImageClassifier:
    """Write a small fine-tuned model with random weights as `beit finetune` does, and return it in eval mode."""
    shape = ViTConfig(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, pos_bias="per_block", use_mask_token=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ImageClassifier(shape, num_classes=len(class_names), pooling=pooling, head_init_scale=10.0)
    config = EncoderConfig(
        architecture=shape, normalization=Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), task="classification",
        class_names=tuple(class_names), pooling=pooling, **described,
    )  # fmt: skip
    save_model(directory, model.state_dict(), config)
    return model.eval()


def save_segmenter(
    directory: Path, *, class_names: Sequence[str], seed: int = 0, decoding: Decoding = USUAL, **inference: Any
) -> Segmenter:
    """Write a small segmentation model with random weights as `beit finetune segmentation` does; returns it."""
    shape = ViTConfig(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, pos_bias="per_block", use_mask_token=False
    )
    head = resolve_head(HeadConfig(), shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Segmenter(shape, num_classes=len(class_names), head=head)
        for parameter in model.parameters():  # as they start, all places look alike
            torch.nn.init.normal_(parameter, std=0.4)
    classes = MaskClasses(names=tuple(class_names), colours=voc_colours(len(class_names)))
    info = SegmentationInfo(head=head, classes=classes, inference=InferenceConfig(**inference))
    normalization = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    save_model(directory, model.state_dict(), describe(shape, normalization, info, decoding=decoding))
    model.normalization = normalization
    return model.eval()
