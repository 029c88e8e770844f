"""Tiny models of every kind that is exported, with random values in every tensor, as our own commands leave them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit.common.encoder import save_model
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.common.vit.vit import VisionTransformer
from beit.finetune.classification.model import ImageClassifier
from beit.finetune.masks.classes import MaskClasses, voc_colours
from beit.finetune.segmentation.artifact import SegmentationInfo, describe
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import Segmenter
from beit.pretrain.model import MaskedImageModel

SHAPE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
TUNED: dict[str, Any] = {"pos_bias": "per_block", "use_mask_token": False}
LIKE_DINO: dict[str, Any] = {
    "pos_bias": "none",
    "use_abs_pos_emb": True,
    "final_norm": True,
    "use_mask_token": False,
    "init_values": 0.0,
}
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
CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "classifier mean": ("mean", TUNED),
    "classifier cls": ("cls", TUNED),
    "classifier absolute": ("cls", LIKE_DINO),
}
SEGMENTERS: dict[str, dict[str, Any]] = {
    "segmenter linear": {"kind": "linear"},
    "segmenter fpn": {"kind": "fpn", "channels": 16},
    "segmenter upernet": {"kind": "upernet", "norm": "batch"},
}
NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
CLASSES = ("rose", "tulip", "lily")
VOCAB_SIZE = 11


def write_model(folder: Path, kind: str, **described: Any) -> Path:
    """Write one of the kinds above and return its folder."""
    torch.manual_seed(0)
    model, config = _build(kind)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            nn.init.uniform_(buffer, 0.5, 1.5)
    values = {name: getattr(config, name) for name in EncoderConfig.__slots__} | described
    save_model(folder, model.state_dict(), EncoderConfig(**values))
    return folder


def _build(kind: str) -> tuple[nn.Module, EncoderConfig]:
    if kind in ENCODERS:
        shape = ViTConfig(**SHAPE | ENCODERS[kind])
        return VisionTransformer(shape), EncoderConfig(architecture=shape, normalization=NORMALIZATION, task="pretrain")
    if kind in MASKED:
        shape = ViTConfig(**SHAPE | MASKED[kind])
        return MaskedImageModel(shape, vocab_size=VOCAB_SIZE, num_masked=6), EncoderConfig(
            architecture=shape, normalization=NORMALIZATION, task="pretrain", vocab_size=VOCAB_SIZE
        )
    if kind in CLASSIFIERS or kind == "classifier cls_mean":
        pooling, changes = CLASSIFIERS.get(kind, ("cls_mean", TUNED))
        shape = ViTConfig(**SHAPE | changes)
        return ImageClassifier(shape, num_classes=len(CLASSES), pooling=pooling), EncoderConfig(
            architecture=shape,
            normalization=NORMALIZATION,
            task="classification",
            class_names=CLASSES,
            pooling=pooling,
        )
    # Patches of 16 px, four blocks: what the released segmentation code has, too.
    shape = ViTConfig(**SHAPE | TUNED | {"img_size": 64, "patch_size": 16, "depth": 4})
    head = resolve_head(HeadConfig(**SEGMENTERS[kind]), shape)
    classes = MaskClasses(names=CLASSES, colours=voc_colours(len(CLASSES)))
    info = SegmentationInfo(head=head, classes=classes, inference=InferenceConfig())
    return Segmenter(shape, num_classes=len(CLASSES), head=head), describe(shape, NORMALIZATION, info)
