"""What is exported: a model of ours, read whole, at the resolution that was asked for, and what it computes.

Here: reading, and our side of every comparison. Not here: how somebody else's files look, which is each target's own
module, and what is done with a target (`exporter.py`).

Legend: B = batch, N = patches, D = embed_dim, V = visual words, C = classes, S = img_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from beit.common.encoder import read_encoder_state
from beit.common.errors import InputError, require
from beit.common.training.measure import free_memory_bytes
from beit.common.vit.adapt import adapt_state
from beit.common.vit.config import ViTConfig
from beit.common.vit.description import EncoderConfig, find_encoder, read_encoder_config
from beit.common.vit.features import FeaturePooling, pool_features
from beit.common.vit.vit import VisionTransformer
from beit.finetune.classification.model import POOLINGS, ImageClassifier
from beit.finetune.prediction.classifier import class_probabilities
from beit.finetune.segmentation.artifact import segmentation_info
from beit.finetune.segmentation.heads import resize
from beit.finetune.segmentation.model import Segmenter

Dtype = Literal["float32", "float16", "bfloat16"]
What = Literal["encoder", "masked", "classifier", "segmenter"]

WORDS: dict[What, str] = {
    "encoder": "an encoder",
    "masked": "a masked image model",
    "classifier": "a classifier",
    "segmenter": "a segmentation model",
}
"""For messages."""
_BATCH = 3
_MASKED_SHARE = 0.4
"""Of the patches in the batch that is compared; the paper's."""
_OF_TRAINING = "cls_pt_layers."
"""Blocks that only pre-training runs (patch aggregation)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSource:
    """A model of ours, at the resolution at which it is exported."""

    path: Path
    """Folder that it was read from."""
    config: EncoderConfig
    """Its description; `config.architecture.img_size` is that of the export."""
    state: dict[str, Tensor]
    """Tensors of the file, on the CPU, contiguous, under the official names; positions are already resized."""
    what: What
    """masked: an encoder with a head of visual words. An encoder whose head predicts pixels is an encoder."""
    trained_img_size: int
    """Side of the images that it was trained on, in pixels."""
    num_left_out: int = 0
    """Tensors of the file that are no part of a model that is used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What a target has to know besides the model."""

    name: str
    """Of the export: the last part of where it will be."""
    dtype: Dtype = "float32"
    """Of the weights that are written."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        return cast(torch.dtype, getattr(torch, self.dtype))

    def cast(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors as they are to be written: of `dtype` where they are floating point, and contiguous."""
        return {
            name: (tensor.to(self.torch_dtype) if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in state.items()
        }


def read_source(path: Path, *, img_size: int | None = None) -> ExportSource:
    """Read a model of ours, or a run's; `img_size` resizes its positions to images of another side, in pixels."""
    directory = find_encoder(path)
    stored = read_encoder_config(directory)
    own = stored.architecture
    architecture = own if img_size is None else replace(own, img_size=img_size)
    _require_memory(architecture)
    stored_state = read_encoder_state(directory)
    state = {name: tensor for name, tensor in stored_state.items() if not name.startswith(_OF_TRAINING)}
    num_left_out = len(stored_state) - len(state)
    state = adapt_state(state, own, architecture, pixels=stored.normalization)
    return ExportSource(
        path=directory,
        config=replace(stored, architecture=architecture),
        state={name: tensor.contiguous() for name, tensor in state.items()},
        what=_kind(stored, state, directory),
        trained_img_size=own.img_size,
        num_left_out=num_left_out,
    )


def _require_memory(shape: ViTConfig) -> None:
    """Refuse images whose patches no machine compares with each other, before the system ends the command for it."""
    needed = _BATCH * shape.num_heads * (shape.num_patches + 1) ** 2 * 4  # one block's attention, float32
    free = free_memory_bytes(torch.device("cpu"))
    require(
        free is None or needed <= free,
        f"--img-size {shape.img_size} is {shape.num_patches:,} patches, whose attention takes {needed / 1e9:,.0f} GB, "
        f"and {(free or 0) / 1e9:.0f} GB are free; give a smaller one",
    )


def _kind(config: EncoderConfig, state: Mapping[str, Tensor], directory: Path) -> What:
    if config.task == "segmentation":
        return "segmenter"
    if config.task == "classification" and config.class_names is not None:
        require(
            config.pooling in POOLINGS,
            f"{directory} has pooling {config.pooling!r}; it must be {' or '.join(POOLINGS)}",
        )
        return "classifier"
    return "masked" if {"norm.weight", "lm_head.weight"} <= state.keys() else "encoder"


def probe_images(source: ExportSource) -> Tensor:
    """Return the batch that both sides are run on, (B, C, S, S) float32: the same for every export of a size."""
    side, channels = source.config.architecture.img_size, source.config.architecture.in_chans
    return torch.randn(_BATCH, channels, side, side, generator=torch.Generator().manual_seed(0))


def probe_mask(source: ExportSource) -> Tensor:
    """Return which of their patches a masked image model does not see, (B, N) bool, other ones in every image."""
    patches = source.config.architecture.num_patches
    drawn = torch.rand(_BATCH, patches, generator=torch.Generator().manual_seed(1))
    return drawn.argsort(1).argsort(1) < max(1, round(_MASKED_SHARE * patches))


def build_model(source: ExportSource) -> VisionTransformer:
    """Build our own module of a model, in eval mode: its forward is what it is for.

    Of a masked image model it is the encoder, whose head `our_outputs` applies.
    """
    shape, stored = source.config.architecture, source.config
    with torch.device("meta"):  # initial values would be thrown away
        if source.what == "classifier":
            pooling = cast(FeaturePooling, stored.pooling)
            model: VisionTransformer = ImageClassifier(
                shape, num_classes=len(stored.class_names or ()), pooling=pooling
            )
        elif source.what == "segmenter":
            info = segmentation_info(stored, origin=source.path)
            model = Segmenter(shape, num_classes=len(info.classes), head=info.head)
        else:
            model = VisionTransformer(shape)
    model.build_index("cpu")
    missing, _ = model.load_state_dict(source.state, strict=False, assign=True)
    if missing:
        raise InputError(f"{source.path} lacks {', '.join(missing)}; write the model again")
    return model.float().eval()


@torch.no_grad()
def our_outputs(source: ExportSource, images: Tensor) -> dict[str, Tensor]:
    """Run our own model on the probe images, in float32.

    Returns:
        "features" (B, 1 + N, D): the residual stream after the last block, through the encoder's own last norm if it
        has one; "pooled" (B, D): the mean of its patches. Of a masked image model those of masked images
        (`probe_mask`) with its "logits" (B, N, V); of a classifier "logits" and "probabilities" (B, C); of a segmenter
        "logits" (B, C, h', w'), on the head's grid, and "probabilities" (B, C, S, S).
    """
    model = build_model(source)
    if source.what == "masked":
        features = model.forward_features(images, probe_mask(source))
        norm_weight, norm_bias, weight, bias = (
            source.state[name].float() for name in ("norm.weight", "norm.bias", "lm_head.weight", "lm_head.bias")
        )
        shape = source.config.architecture
        # An encoder's own last norm has been applied already: then it is the one that this head has.
        normed = (
            features
            if shape.final_norm
            else nn.functional.layer_norm(features, (shape.embed_dim,), norm_weight, norm_bias, shape.layer_norm_eps)
        )
        logits = nn.functional.linear(normed[:, 1:], weight, bias)
        return {"features": features, "pooled": pool_features(features), "logits": logits}
    features = model.forward_features(images)
    outputs = {"features": features, "pooled": pool_features(features)}
    if source.what == "classifier":
        outputs["logits"] = model(images)
        outputs["probabilities"] = class_probabilities(outputs["logits"], multi_label=source.config.multi_label)
    elif source.what == "segmenter":
        outputs["logits"] = model(images)
        outputs["probabilities"] = resize(outputs["logits"], images.shape[-2:]).softmax(1)
    return outputs
