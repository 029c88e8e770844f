"""Tiny models of every kind that is exported, with random values in every tensor, as our own commands leave them."""

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

TUNED: dict[str, Any] = {"pos_bias": "per_block", "use_mask_token": False}
"""As fine-tuning has it."""
LIKE_DINO: dict[str, Any] = {
    "pos_bias": "none",
    "use_abs_pos_emb": True,
    "final_norm": True,
    "use_mask_token": False,
    "init_values": 0.0,
}
"""DINO, MAE, DeiT and supervised ViTs; with a layer scale DINOv2."""
SHAPE = ViTConfig(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2)
PLAIN = replace(SHAPE, **LIKE_DINO)
SCALED = replace(PLAIN, init_values=1.0)
ENCODERS: dict[str, dict[str, Any]] = {
    "encoder shared": {},
    "encoder per_block": TUNED,
    "encoder absolute": LIKE_DINO,
    "encoder absolute with layer scale": LIKE_DINO | {"init_values": 0.1},
    "encoder absolute and own tables": TUNED | {"use_abs_pos_emb": True},
    "encoder without bias and layer scale": {"qkv_bias": False, "init_values": 0.0},
}
MASKED: dict[str, dict[str, Any]] = {
    "masked shared": {},
    "masked per_block": {"pos_bias": "per_block"},
    "masked absolute": {"pos_bias": "none", "use_abs_pos_emb": True},
}
CLASSIFIERS: dict[str, tuple[FeaturePooling, dict[str, Any]]] = {
    "classifier mean": ("mean", TUNED),
    "classifier cls": ("cls", TUNED),
    "classifier absolute": ("cls", LIKE_DINO),
}
SEGMENTERS: dict[str, dict[str, Any]] = {
    "segmenter linear": {"kind": "linear", "norm": "auto"},
    "segmenter fpn": {"kind": "fpn", "norm": "auto", "channels": 16},
    "segmenter upernet": {},
}
NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
CLASSES = ("red fox", "cat|dog", "été")
VOCAB_SIZE = 11
PROVENANCE = {
    "store": "stores/photos",
    "tokenizer": "mini",
    "step": 10,
    "total_steps": 20,
    "metrics": {"held_out_acc": 0.25},
}


def masked(folder: Path, *, aggregate: int = 0, **changes: Any) -> None:
    """Write what a pre-training writes."""
    model = MaskedImageModel(replace(SHAPE, **changes), vocab_size=VOCAB_SIZE, num_masked=6)
    if aggregate:
        model.aggregate(aggregate)
    _save(folder, model, model.config, task="pretrain", vocab_size=VOCAB_SIZE)


def encoder(folder: Path, shape: ViTConfig = SHAPE, **changes: Any) -> None:
    """Write an encoder without a head."""
    model = VisionTransformer(replace(shape, **changes))
    _save(folder, model, model.config, task="pretrain")


def classifier(
    folder: Path, shape: ViTConfig | None = None, *, pooling: FeaturePooling = "mean", **described: Any
) -> None:
    """Write a classifier of three classes, as fine-tuning has it unless `shape` says otherwise."""
    model = ImageClassifier(shape or replace(SHAPE, **TUNED), num_classes=len(CLASSES), pooling=pooling)
    told = {"task": "classification", "class_names": CLASSES, "pooling": pooling} | described
    _save(folder, model, model.config, **told)


def segmenter(folder: Path, **head: Any) -> None:
    """Write a segmentation model of three classes; an upernet with batch norms unless `head` says otherwise."""
    # Patches of 16 px: what the released segmentation code has.
    shape = replace(SHAPE, **TUNED, img_size=64, patch_size=16, depth=6)
    settings = resolve_head(HeadConfig(**{"kind": "upernet", "norm": "batch", **head}), shape)
    model = Segmenter(shape, num_classes=len(CLASSES), head=settings)
    classes = MaskClasses(names=CLASSES, colours=voc_colours(len(CLASSES)))
    info = SegmentationInfo(head=settings, classes=classes, inference=InferenceConfig())
    _save(folder, model, describe(shape, NORMALIZATION, info, provenance=PROVENANCE))


KINDS: dict[str, Callable[[Path], None]] = {
    "masked": masked,
    "masked absolute": lambda folder: masked(folder, pos_bias="none", use_abs_pos_emb=True, init_values=0.0),
    "encoder": lambda folder: encoder(folder, **TUNED),
    "encoder shared": encoder,
    "encoder absolute": lambda folder: encoder(
        folder, **TUNED | {"use_abs_pos_emb": True, "pos_bias": "none", "layer_norm_eps": 1e-3}
    ),
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
"""One of each kind that transformers has a class for, by name; called with the folder to write."""


def write_model(folder: Path, kind: str, **described: Any) -> Path:
    """Write one of ENCODERS, MASKED, CLASSIFIERS, SEGMENTERS or "classifier cls_mean", and return its folder.

    Args:
        folder: To be written.
        kind: Its name.
        described: Of a classifier, what else its description says.
    """
    if kind in ENCODERS:
        encoder(folder, **ENCODERS[kind])
    elif kind in MASKED:
        masked(folder, **MASKED[kind])
    elif kind in SEGMENTERS:
        segmenter(folder, **SEGMENTERS[kind])
    else:
        pooling, changes = CLASSIFIERS.get(kind, ("cls_mean", TUNED))
        classifier(folder, replace(SHAPE, **changes), pooling=pooling, **described)
    return folder


def _save(folder: Path, model: nn.Module, described: ViTConfig | EncoderConfig, **told: Any) -> None:
    """Write a model whose every tensor has a value that it does not begin with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.15, generator=generator)
    if isinstance(described, ViTConfig):
        told = {"provenance": PROVENANCE} | told
        described = EncoderConfig(architecture=described, normalization=NORMALIZATION, **told)
    save_model(folder, model.state_dict(), described)
