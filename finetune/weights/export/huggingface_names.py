"""Which class of Hugging Face transformers holds a model of ours, its settings, and what that class calls each tensor.

Names are those in files, which every version 4 and 5 of transformers reads and writes; modules of version 5 have
others. Writing and reading is `huggingface.py`.

A final norm, a key bias and an identity block stand where ours have none, if they leave what is computed as it is; what
a class has no place for is left out only where no result needs it, and both are said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from beit.common.errors import InputError
from beit.common.vit.config import ViTConfig
from beit.finetune.segmentation.artifact import segmentation_info
from beit.finetune.segmentation.upernet import AUXILIARY_CHANNELS, POOL_SCALES
from beit.finetune.weights.export.source import WORDS, ExportSource

Kind = Literal["beit", "vit", "dinov2"]

_OFFICIAL = [
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^rel_pos_bias\.", "encoder.relative_position_bias."),
    (r"^blocks\.(\d+)\.attn\.relative_position_bias_table$",
     r"encoder.layer.\1.attention.attention.relative_position_bias.relative_position_bias_table"),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
]  # fmt: skip
"""Applied in this order to every tensor of the encoder."""
_BLOCK: dict[Kind, list[tuple[str, str]]] = {
    "beit": [
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"\.gamma_", ".lambda_"),
    ],
    "dinov2": [(r"\.gamma_([12])$", r".layer_scale\1.lambda1")],
}
_BLOCK["vit"] = _BLOCK["beit"]
_HEADS = re.compile(r"(neck|decode_head|auxiliary_head|head|lm_head|fc_norm|norm|pixel_head)\.")
"""Tensors that are no encoder's, as far as Hugging Face is concerned."""
_UPERNET = [(r"^neck\.", ""), (r"\.conv_seg\.", ".classifier.")]


class Plan(NamedTuple):
    """How a model is to be written."""

    kind: Kind
    """Family of the class."""
    architecture: str
    """Name of the class."""
    settings: dict[str, Any]
    """For config.json."""
    tensors: dict[str, Tensor]
    """By the names in files."""
    notes: list[str]
    """What was added or left out, for the user."""


def plan_export(source: ExportSource) -> Plan:
    """Choose the class, refuse in one line what none can hold, and name everything."""
    shape = source.config.architecture
    kind = _kind(source)
    notes: list[str] = []
    head, settings = _HEAD[source.what](source, kind, notes)
    encoder = {name: tensor for name, tensor in source.state.items() if not _HEADS.match(name)}
    if settings.pop("append_block", False):
        encoder |= _identity_block(encoder, shape.depth)
        shape = replace(shape, depth=shape.depth + 1)
        notes.append(
            f"block {shape.depth - 1} was added, which changes nothing: its branches end in zeros, since "
            "BeitForSemanticSegmentation cannot look at what comes out of the last block"
        )
    if kind != "beit" and (token := encoder.pop("mask_token", None)) is not None:
        if kind == "dinov2":
            encoder["mask_token"] = token.reshape(1, -1)
        else:
            notes.append("mask_token was left out: a ViTModel has no place for it")
    prefix = "" if source.what == "encoder" else f"{kind}."
    renamed = {
        prefix + _renamed(name, _OFFICIAL + _BLOCK[kind]): tensor
        for name, tensor in _separate_projections(encoder, shape, kind).items()
    }
    architecture = _class_name(source, kind)
    if kind == "beit" and not shape.qkv_bias:
        notes.append(f"query and value biases of zero were added: {architecture} has them always")
    unused = sorted(name for name in source.state if _HEADS.match(name) and name not in head.taken)
    if unused:
        notes.append(f"left out, since {architecture} has no place for them: {', '.join(unused)}")
    settings |= {"architectures": [architecture], "model_type": kind, **_shape_settings(shape, kind)}
    return Plan(kind, architecture, settings, renamed | head.tensors, notes)


def _kind(source: ExportSource) -> Kind:
    """Choose the family: with absolute positions only and a last norm of its own it is a ViT, with layer scale DINOv2.

    The classes of BEiT can hold most of these, too, but nobody would look for a DINO there.
    """
    shape, pooling = source.config.architecture, source.config.pooling
    plain = shape.final_norm and shape.use_abs_pos_emb and shape.pos_bias == "none"
    if not plain or source.what in ("masked", "segmenter"):
        return "beit"
    if shape.init_values == 0:
        return "beit" if pooling == "cls_mean" else "vit"
    is_dinov2 = shape.mlp_ratio == int(shape.mlp_ratio) and pooling in (None, "cls_mean")
    return "dinov2" if is_dinov2 else "beit"


def _class_name(source: ExportSource, kind: Kind) -> str:
    family = {"beit": "Beit", "vit": "ViT", "dinov2": "Dinov2"}[kind]
    task = {
        "encoder": "Model",
        "masked": "ForMaskedImageModeling",
        "classifier": "ForImageClassification",
        "segmenter": "ForSemanticSegmentation",
    }[source.what]
    return family + task


def _shape_settings(shape: ViTConfig, kind: Kind) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "hidden_size": shape.embed_dim,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "hidden_act": "gelu",
        "layer_norm_eps": shape.layer_norm_eps,
        "image_size": shape.img_size,
        "patch_size": shape.patch_size,
        "num_channels": shape.in_chans,
    }
    if kind == "dinov2":
        return settings | {
            "mlp_ratio": int(shape.mlp_ratio),
            "layerscale_value": shape.init_values,
            "drop_path_rate": shape.drop_path,
            "qkv_bias": shape.qkv_bias,
            "use_mask_token": shape.use_mask_token,
        }
    settings["intermediate_size"] = shape.mlp_dim
    if kind == "vit":
        return settings | {"qkv_bias": shape.qkv_bias}
    return settings | {
        "drop_path_rate": shape.drop_path,
        "layer_scale_init_value": shape.init_values,
        "use_absolute_position_embeddings": shape.use_abs_pos_emb,
        "use_shared_relative_position_bias": shape.pos_bias == "shared",
        "use_relative_position_bias": shape.pos_bias == "per_block",
        "use_mask_token": shape.use_mask_token,
    }


class _Head(NamedTuple):
    """What is not the encoder's."""

    tensors: dict[str, Tensor]
    """By the names in files."""
    taken: tuple[str, ...]
    """Names, in the source, of the tensors that are in there."""


def _take(source: ExportSource, names: Mapping[str, str]) -> _Head:
    """Rename parts of the head, each a weight and a bias."""
    pairs = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in names.items() for part in ("weight", "bias")}
    return _Head({theirs: source.state[ours] for ours, theirs in pairs.items()}, tuple(pairs))


def _encoder_head(source: ExportSource, kind: Kind, _notes: list[str]) -> tuple[_Head, dict[str, Any]]:
    shape = source.config.architecture
    # With mean pooling the sequence that transformers returns is the raw one, as ours is without a norm of its own.
    settings = {"use_mean_pooling": not shape.final_norm} if kind == "beit" else {}
    if shape.final_norm:
        head = _take(source, {"norm": "layernorm"})
        if kind == "vit":
            # AutoModel adds a pooler to every ViT, and would fill it with random numbers.
            head.tensors["pooler.dense.weight"] = torch.eye(shape.embed_dim)
            head.tensors["pooler.dense.bias"] = torch.zeros(shape.embed_dim)
        return head, settings
    # Likewise to every BEiT with mean pooling; one that adds nothing to a LayerNorm.
    filler = {"pooler.layernorm.weight": torch.ones(shape.embed_dim)}
    return _Head(filler | {"pooler.layernorm.bias": torch.zeros(shape.embed_dim)}, ()), settings


def _masked_head(source: ExportSource, _kind: Kind, _notes: list[str]) -> tuple[_Head, dict[str, Any]]:
    # Where the encoder has a last norm of its own it is the one of the head.
    head = _take(source, {"norm": "layernorm", "lm_head": "lm_head"})
    return head, {"use_mean_pooling": True, "vocab_size": len(source.state["lm_head.weight"])}


def _classifier_head(source: ExportSource, kind: Kind, _notes: list[str]) -> tuple[_Head, dict[str, Any]]:
    names, pooling = source.config.class_names or (), source.config.pooling
    settings = _labels(names)
    if source.config.multi_label:
        settings["problem_type"] = "multi_label_classification"
    if kind == "beit":
        if pooling == "cls_mean":
            raise InputError(
                f"{source.path} classifies CLS and the mean of the patches side by side (cls_mean), and "
                "BeitForImageClassification takes one of them; fine-tune with classifier.pooling mean or cls, or "
                "export with --to onnx"
            )
        settings["use_mean_pooling"] = pooling == "mean"
    norm = {"fc_norm": f"{kind}.pooler.layernorm"} if pooling == "mean" else {"norm": f"{kind}.layernorm"}
    return _take(source, norm | {"head": "classifier"}), settings


def _segmenter_head(source: ExportSource, _kind: Kind, _notes: list[str]) -> tuple[_Head, dict[str, Any]]:
    info, shape = segmentation_info(source.config, origin=source.path), source.config.architecture
    head, blocks = info.head, info.head.blocks or ()
    reasons = {
        f"its head is {head.kind}": head.kind != "upernet",
        "its head has group norms": head.norm != "batch",
        f"its head has {head.channels} channels, the encoder {shape.embed_dim}": head.channels != shape.embed_dim,
        f"its head looks at a block twice ({', '.join(map(str, blocks))})": len(set(blocks)) < len(blocks),
        "its encoder has a norm of its own": shape.final_norm,
    }
    wrong = next((reason for reason, is_so in reasons.items() if is_so), None)
    if wrong is not None:
        raise InputError(
            f"{source.path} does not fit BeitForSemanticSegmentation: {wrong}, and that class has an upernet head of "
            "the encoder's width, with batch norms, on four blocks; export with --to onnx"
        )
    tensors = {
        _renamed(name, _UPERNET): tensor
        for name, tensor in source.state.items()
        if name.startswith(("neck.", "decode_head.", "auxiliary_head."))
    }
    taken = tuple(name for name in source.state if name.startswith(("neck.", "decode_head.", "auxiliary_head.")))
    return _Head(tensors, taken), {
        **_labels(info.classes.names),
        "use_mean_pooling": True,
        # Counted from the embedding on, and it takes the one before each.
        "out_indices": [block + 2 for block in blocks],
        "append_block": max(blocks) == shape.depth - 1,
        "pool_scales": list(POOL_SCALES),
        "use_auxiliary_head": any(name.startswith("auxiliary_head.") for name in source.state),
        "auxiliary_loss_weight": head.auxiliary_weight,
        "auxiliary_channels": AUXILIARY_CHANNELS,
        "auxiliary_num_convs": 1,
        "auxiliary_concat_input": False,
        "semantic_loss_ignore_index": 255,
    }


_HEAD: dict[str, Callable[[ExportSource, Kind, list[str]], tuple[_Head, dict[str, Any]]]] = {
    "encoder": _encoder_head,
    "masked": _masked_head,
    "classifier": _classifier_head,
    "segmenter": _segmenter_head,
}
assert _HEAD.keys() == WORDS.keys()


def _labels(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _separate_projections(state: Mapping[str, Tensor], shape: ViTConfig, kind: Kind) -> dict[str, Tensor]:
    """Split queries, keys and values, and name their biases; add biases of zero where a class has some of its own."""
    separate: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, _, last = name.rpartition(".")
        if name.endswith(".attn.qkv.weight"):
            attention = name.removesuffix("qkv.weight")
            parts = dict(zip(("query", "key", "value"), tensor.chunk(3), strict=True))
            separate |= {f"{attention}{part}.weight": weight for part, weight in parts.items()}
            zeros = torch.zeros(shape.embed_dim, dtype=tensor.dtype)
            if shape.qkv_bias and kind != "beit":
                separate[f"{attention}key.bias"] = zeros
            elif not shape.qkv_bias and kind == "beit":
                separate |= {f"{attention}{part}.bias": zeros.clone() for part in ("query", "value")}
        elif last in ("q_bias", "v_bias"):
            separate[f"{prefix}.{'query' if last == 'q_bias' else 'value'}.bias"] = tensor
        else:
            separate[name] = tensor
    return separate


def _identity_block(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return a block behind the last one, of its shapes, whose branches end in zeros."""
    last, block = f"blocks.{number - 1}.", f"blocks.{number}."
    ends = ("attn.proj.", "mlp.fc2.", "relative_position_bias_table")
    return {
        name.replace(last, block, 1): torch.zeros_like(tensor) if any(end in name for end in ends) else tensor.clone()
        for name, tensor in state.items()
        if name.startswith(last)
    }


def _renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
