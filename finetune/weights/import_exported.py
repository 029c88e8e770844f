"""Reading our own exports back: what they say of themselves where tensors and the usual fields of a form say nothing.

A file for the released code has it among its `args`, a folder for timm or transformers under `beit_export` in
config.json, an ONNX model in its metadata. All of it is handed on in the words of Hugging Face's config.json, which
`import_findings.py` reads anyway.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from beit.common.errors import InputError, require
from beit.common.images.decoding import GREY, RGB, USUAL, Decoding
from beit.common.vit.description import EncoderConfig
from beit.finetune.weights.by_hand import decoding_steps

KEY = "beit_export"
"""In a config.json."""
OFFICIAL_FILE, ONNX_FILE = "model.pth", "model.onnx"
_TOKENS = ("cls_token", "mask_token", "pos_embed")
_FILLER = ("fc_norm.weight", "fc_norm.bias")
_DECODING = "decoding"
_OF_USE = ("multi_label", "crop_pct", "best_block", "segmentation")
"""Fields of an `EncoderConfig` that neither tensors nor the usual fields of a form tell."""


class OnnxWeights(NamedTuple):
    """What an ONNX model of ours holds."""

    tensors: dict[str, Tensor]
    """Under our names; what no output needs was left out when it was written."""
    config: dict[str, Any]
    """As `exported_facts`."""
    preprocessor: dict[str, Any]
    """Mean and std, as in Hugging Face's preprocessor_config.json."""


def exported_facts(config: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an export of ours says, as entries of a Hugging Face config.json; nothing of files of others.

    Args:
        config: config.json of a folder, or empty.
        args: Of a checkpoint, or empty.
    """
    facts: dict[str, Any] = {}
    if isinstance(said := config.get(KEY), Mapping):
        facts |= _known(said)
        names = config.get("label_names")
    elif isinstance(args.get("final_norm"), bool):
        facts |= _known(args) | {"num_attention_heads": args.get("num_heads"), "image_size": args.get("input_size")}
        names = args.get("class_names")
    else:
        return {}
    return facts | _labels(names)


def read_onnx(file: Path) -> OnnxWeights:
    """Read the weights of an ONNX model that `beit export` wrote."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise InputError(f"{file} needs onnx to be read; pip install onnx") from None
    try:
        model = onnx.load(file)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        if "beit" not in metadata:
            raise InputError(
                f"{file} was not written by beit export, and the constants of a graph are no longer the tensors of an "
                "encoder; give the weights that it was made of"
            )
        stored = json.loads(metadata["beit"])
        shape, scale = stored["architecture"], stored["normalization"]
        tensors = {
            one.name: torch.from_numpy(numpy_helper.to_array(one).copy())
            for one in model.graph.initializer
            if "." in one.name or one.name in _TOKENS  # constants of the graph have plain names
        }
        facts = _known(shape) | _known(stored) | {"num_attention_heads": shape["num_heads"]}
        facts |= {"image_size": shape["img_size"], "layer_norm_eps": shape["layer_norm_eps"]}
        facts |= _labels(stored.get("class_names"))
        return OnnxWeights(tensors, facts, {"image_mean": scale["mean"], "image_std": scale["std"]})
    except InputError:
        raise
    except Exception as error:  # damage comes out as whatever the parser happens to meet
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{file} cannot be read ({said}); fetch it again") from None


def filler_of(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[str]:
    """Return what a form made necessary and no encoder of ours has, as it computes nothing.

    That is the norm behind the pooling, which timm and Hugging Face have in every encoder, where nothing has trained
    it, and blocks beyond those that an export says it has; see `export/huggingface_names.py`.
    """
    said = config.get(KEY)
    depth = said.get("depth") if isinstance(said, Mapping) else None
    numbers = {name: int(name.split(".")[1]) for name in tensors if re.match(r"blocks\.\d+\.", name)}
    filler = [name for name, number in numbers.items() if isinstance(depth, int) and number >= depth]
    if "head.weight" not in tensors and all(name in tensors for name in _FILLER):
        weight, bias = (tensors[name] for name in _FILLER)
        filler += _FILLER if bool((weight == 1).all()) and bool((bias == 0).all()) else ()
    return filler


def own_facts(config: EncoderConfig) -> dict[str, Any]:
    """Return what an export says of a model under `KEY`; "decode" is for people, and nothing reads it."""
    shape = config.architecture
    facts: dict[str, Any] = {"final_norm": shape.final_norm, "pos_resize": shape.pos_resize, "depth": shape.depth}
    if (decoding := config.decoding.of_any_size()) != USUAL:
        facts |= {_DECODING: decoding.as_json(), "decode": decoding_steps(decoding)}
    return facts | {name: value for name in _OF_USE if (value := getattr(config, name)) not in (None, False)}


def facts_of_use(config: Mapping[str, Any], depth: int, origin: str) -> dict[str, Any]:
    """Return how a model is used, as arguments of its `EncoderConfig`: what no tensor and no shape tells.

    Args:
        config: Of Hugging Face, or of an export of ours, as `exported_facts` completes it.
        depth: Blocks of the encoder.
        origin: For messages.
    """
    multi_label = config.get("multi_label", config.get("problem_type") == "multi_label_classification")
    block, share = config.get("best_block"), config.get("crop_pct") if "final_norm" in config else None
    facts = {
        "multi_label": isinstance(multi_label, bool),
        "best_block": block is None or (type(block) is int and 0 <= block < depth),
        "crop_pct": share is None or (type(share) in (int, float) and 0 < share <= 1),
    }
    wrong = [name for name, is_right in facts.items() if not is_right]
    require(not wrong, f"{origin} is damaged: {', '.join(wrong)} cannot be what an export says; export it again")
    return {"multi_label": multi_label, "best_block": block, "crop_pct": share}


def decoding_of(config: Mapping[str, Any], in_chans: int, origin: str) -> Decoding:
    """Return how the images were decoded that a model was trained on, where an export of ours says it.

    Args:
        config: As `facts_of_use` takes it.
        in_chans: Of the model, which may have been made grey.
        origin: For messages.
    """
    usual = Decoding(channels="grey") if in_chans == GREY else USUAL
    said = config.get(_DECODING) if "final_norm" in config else None
    if said is None:
        return usual
    try:
        found = Decoding.from_json(said).of_any_size()
        require(found.value_range.is_resolved, "its percentiles have no values")
    except InputError as error:
        raise InputError(f"{origin} is damaged ({error}); export it again") from None
    return (
        found if found.num_channels == (GREY if in_chans == GREY else RGB) else replace(found, channels=usual.channels)
    )


def _known(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: said[name] for name in ("final_norm", "pos_resize", _DECODING, *_OF_USE) if name in said}


def _labels(names: Any) -> dict[str, Any]:
    listed = names if isinstance(names, list | tuple) else ()
    return {"id2label": {str(number): str(name) for number, name in enumerate(listed)}} if listed else {}
