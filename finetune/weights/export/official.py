"""Target official: one .pth as the released BEiT code writes it, for its fine-tuning, its segmentation, and others.

Names are ours already; what the released code keeps besides, the indices of position tables, is added. The file
says by which options of that code it is read, under `args`, or `meta` of a segmentation model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.common.errors import RunFailed, require
from beit.common.vit.adapt import SHARED_TABLE
from beit.common.vit.config import LAYER_NORM_EPS, VIT_SIZES, ViTConfig
from beit.common.vit.position_bias import TABLE_KEY, relative_position_index
from beit.finetune.segmentation.artifact import segmentation_info
from beit.finetune.weights.export.exporter import Run
from beit.finetune.weights.export.preprocessing import decoding_note
from beit.finetune.weights.export.source import WORDS, ExportOptions, ExportSource, our_outputs
from beit.finetune.weights.import_exported import OFFICIAL_FILE, own_facts

LIBRARY = "The file, read back,"
WEIGHTS_FILE = OFFICIAL_FILE
_INDEX_KEY = "relative_position_index"
_NO_PLACE = ("pixel_head.",)
"""Prefixes of what no model of the released code has."""
_NECK, _BACKBONE = "neck.", "backbone."
_PATCH_SIZE = 16
"""Of the only neck of the released segmentation code that is ours."""
_SAID = 200
"""Characters of an error of torch's that are shown; the rest is where in its source."""
_TRAINED = {"base": (224, 384), "large": (224, 384, 512)}
"""Sides, in pixels, of the models that the released code has a name for."""


def write(source: ExportSource, folder: Path, options: ExportOptions) -> list[Path]:
    """Write `model.pth`; what the released code has no place for is left out."""
    _require_place(source)
    state = {name: tensor for name, tensor in source.state.items() if not name.startswith(_NO_PLACE)}
    written = {**options.cast(state), **_indices(source.config.architecture)}
    args = describe(source)
    value: dict[str, Any] = {"model": written, "args": args}
    if source.what == "segmenter":
        classes = segmentation_info(source.config, origin=source.path).classes
        meta = {"CLASSES": list(classes.names), "PALETTE": [list(colour) for colour in classes.colours], **args}
        value = {"meta": meta, "state_dict": {_segmentation_name(name): one for name, one in written.items()}}
    file = folder / WEIGHTS_FILE
    try:
        torch.save(value, file)
    except RuntimeError as error:  # a full disk comes out as this
        said = " ".join(str(error).split())[:_SAID]
        raise OSError(f"{file} could not be written ({said}); there may be no space left") from error
    return [file]


def notes(source: ExportSource) -> list[str]:
    """Return what the released code reads it as, and what was left out."""
    key = "meta" if source.what == "segmenter" else "args"
    found = [f"the released code reads it as its {_model_name(source)}, with the arguments under {key} in the file"]
    if left_out := sorted(name for name in source.state if name.startswith(_NO_PLACE)):
        listed = ", ".join(left_out)
        found.append(f"left out, since the released code has no place for them: {len(left_out)} tensors, {listed}")
    return found + decoding_note(source.config)


def reload(folder: Path, source: ExportSource) -> Run:
    """Read the file as the released code does, and run it under the names that both have; that code is in no package.

    Raises:
        RunFailed: the file holds something else than the model's tensors.
    """
    value = torch.load(folder / WEIGHTS_FILE, map_location="cpu", weights_only=True)
    state = {_our_name(name): tensor for name, tensor in value.get("model", value.get("state_dict")).items()}
    for name, index in _indices(source.config.architecture).items():
        if not torch.equal(state.pop(name), index):
            raise RunFailed(f"{name} is not what it was when it was written; nothing was written")
    return lambda images: our_outputs(replace(source, state=state), images)


def describe(source: ExportSource) -> dict[str, Any]:
    """Return the options of the released code under which it reads the model, and what its images are like."""
    shape, mean, std = source.config.architecture, *source.config.normalization
    described: dict[str, Any] = {
        "model": _model_name(source),
        "input_size": shape.img_size,
        "patch_size": shape.patch_size,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "mlp_ratio": shape.mlp_ratio,
        "qkv_bias": shape.qkv_bias,
        "rel_pos_bias": shape.pos_bias != "none",
        "shared_rel_pos_bias": shape.pos_bias == "shared",
        "abs_pos_emb": shape.use_abs_pos_emb,
        "layer_scale_init_value": shape.init_values,
        "mean": list(mean),
        "std": list(std),
        # Not the released code's; for whoever else reads the file.
        **own_facts(source.config),
    }
    if source.what == "classifier":
        described |= {"nb_classes": len(source.config.class_names or ())}
        described |= {"use_mean_pooling": source.config.pooling == "mean"}
        described |= {"class_names": list(source.config.class_names or ())}
    elif source.what == "segmenter":
        described |= {"out_indices": list(segmentation_info(source.config, origin=source.path).head.blocks or ())}
    return described


def _require_place(source: ExportSource) -> None:
    shape, what = source.config.architecture, WORDS[source.what]
    require(
        shape.layer_norm_eps == LAYER_NORM_EPS,
        f"{source.path} has layer_norm_eps {shape.layer_norm_eps}, and the released code {LAYER_NORM_EPS} everywhere; "
        "use --to hf or --to onnx",
    )
    require(
        source.config.pooling != "cls_mean",
        f"{source.path} is {what} on CLS and the mean of the patches side by side (cls_mean), and the released code "
        "has one of them; use --to onnx",
    )
    if source.what != "segmenter":
        return
    head = segmentation_info(source.config, origin=source.path).head
    fits = {
        f"the head {head.kind}": head.kind == "upernet",
        f"{head.norm} norm": head.kind == "linear" or head.norm == "batch",
        f"patches of {shape.patch_size} px": shape.patch_size == _PATCH_SIZE,
        "a block more than once": len(set(head.blocks or ())) == len(head.blocks or ()),
        "a final norm": not shape.final_norm,
    }
    wrong = [words for words, is_right in fits.items() if not is_right]
    require(
        not wrong,
        f"{source.path} is {what} with {', '.join(wrong)}; that of the released code is UPerNet with batch norm on "
        f"four blocks with patches of {_PATCH_SIZE} px; use --to onnx",
    )


def _model_name(source: ExportSource) -> str:
    """Return what the released code calls such a model, or its class where it has no name for the shape."""
    shape = source.config.architecture
    kind = {"segmenter": "BEiT", "masked": "VisionTransformerForMaskedImageModeling"}.get(
        source.what, "VisionTransformer"
    )
    sides = _TRAINED.get(shape.size or "", ())
    if source.what == "segmenter" or shape.patch_size != _PATCH_SIZE or shape.img_size not in sides:
        return kind
    assert shape.size in VIT_SIZES
    return f"{shape.name}_8k_vocab" if source.what == "masked" else shape.name


def _indices(shape: ViTConfig) -> dict[str, Tensor]:
    """Return the buffers that say which row of a table every pair of positions reads, int64, as they were saved."""
    if shape.pos_bias == "none":
        return {}
    index = relative_position_index(shape.grid_size).long()
    if shape.pos_bias == "shared":
        return {SHARED_TABLE.replace(TABLE_KEY, _INDEX_KEY): index}
    return {f"blocks.{i}.attn.{_INDEX_KEY}": index.clone() for i in range(shape.depth)}


def _segmentation_name(name: str) -> str:
    """Return where mmsegmentation has a tensor: the encoder, and the neck on it, are its backbone."""
    if name.startswith(("decode_head.", "auxiliary_head.")):
        return name
    return _BACKBONE + name.removeprefix(_NECK)


def _our_name(name: str) -> str:
    inside = name.removeprefix(_BACKBONE)
    return _NECK + inside if inside.startswith("fpn") else inside
