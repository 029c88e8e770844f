"""Small models of every kind that `beit export` takes, on disk, with weights that leave nothing at its first value."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit.common.encoder import save_model
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.common.vit.features import FeaturePooling
from beit.common.vit.vit import VisionTransformer
from beit.finetune.classification.model import ImageClassifier
from beit.finetune.masks.classes import MaskClasses, voc_colours
from beit.finetune.segmentation.artifact import SegmentationInfo, describe
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import Segmenter
from beit.pretrain.model import MaskedImageModel

SHAPE = ViTConfig(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2)
TUNED = replace(SHAPE, pos_bias="per_block", use_mask_token=False)
"""As fine-tuning has it."""
PLAIN = replace(TUNED, pos_bias="none", use_abs_pos_emb=True, final_norm=True, init_values=0.0)
"""DINO, MAE, DeiT and supervised ViTs."""
SCALED = replace(PLAIN, init_values=1.0)
"""DINOv2."""
NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
PROVENANCE = {
    "store": "stores/photos",
    "tokenizer": "mini",
    "step": 10,
    "total_steps": 20,
    "metrics": {"held_out_acc": 0.25},
}


def masked(folder: Path, **changes: Any) -> None:
    """Write what a pre-training writes."""
    model = MaskedImageModel(replace(SHAPE, **changes), vocab_size=16, num_masked=6)
    _save(folder, model, task="pretrain", vocab_size=16)


def encoder(folder: Path, shape: ViTConfig = TUNED, **changes: Any) -> None:
    """Write an encoder without a head."""
    _save(folder, VisionTransformer(replace(shape, **changes)), task="pretrain")


def classifier(folder: Path, shape: ViTConfig = TUNED, *, pooling: FeaturePooling = "mean", **described: Any) -> None:
    """Write a classifier of three classes."""
    model = ImageClassifier(shape, num_classes=3, pooling=pooling)
    names = ("red fox", "cat|dog", "été")
    _save(folder, model, task="classification", class_names=names, pooling=pooling, **described)


def segmenter(folder: Path, **head: Any) -> None:
    """Write a segmentation model of three classes; an upernet with batch norms unless `head` says otherwise."""
    shape = replace(TUNED, depth=6)
    settings = resolve_head(HeadConfig(**{"kind": "upernet", "norm": "batch", **head}), shape)
    model = Segmenter(shape, num_classes=3, head=settings)
    classes = MaskClasses(names=("sky", "road", "tree"), colours=voc_colours(3))
    info = SegmentationInfo(head=settings, classes=classes, inference=InferenceConfig())
    save_model(folder, _disturbed(model).state_dict(), describe(shape, NORMALIZATION, info, provenance=PROVENANCE))


KINDS: dict[str, Callable[[Path], None]] = {
    "masked": masked,
    "masked absolute": lambda folder: masked(folder, pos_bias="none", use_abs_pos_emb=True, init_values=0.0),
    "encoder": encoder,
    "encoder shared": lambda folder: encoder(folder, SHAPE),
    "encoder absolute": lambda folder: encoder(folder, use_abs_pos_emb=True, pos_bias="none", layer_norm_eps=1e-3),
    "vit": lambda folder: encoder(folder, PLAIN),
    "vit without biases": lambda folder: encoder(folder, PLAIN, qkv_bias=False),
    "dinov2": lambda folder: encoder(folder, SCALED, use_mask_token=True),
    "classifier mean": classifier,
    "classifier cls": lambda folder: classifier(folder, pooling="cls"),
    "classifier vit": lambda folder: classifier(folder, PLAIN, pooling="cls"),
    "classifier dinov2": lambda folder: classifier(folder, SCALED, pooling="cls_mean"),
    "segmenter": segmenter,
    "segmenter below the top": lambda folder: segmenter(folder, blocks=(0, 1, 2, 4)),
}
"""One of each kind, by name; called with the folder to write."""


def _save(folder: Path, model: VisionTransformer, **described: Any) -> None:
    config = EncoderConfig(architecture=model.config, normalization=NORMALIZATION, provenance=PROVENANCE, **described)
    save_model(folder, _disturbed(model).state_dict(), config)


def _disturbed(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.15, generator=generator)
    return model
