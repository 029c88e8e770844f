"""Segmentation models of other projects: what the head of ours has to be, after tensors and what came with them.

Their names are `import_segmenter_names.py`'s; what they compute is `beit.finetune.segmentation`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from beit.common.errors import InputError, require
from beit.common.vit.config import ViTConfig
from beit.finetune.masks.classes import MaskClasses, voc_colours
from beit.finetune.segmentation.artifact import SegmentationInfo
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig
from beit.finetune.segmentation.heads import level_blocks, resolve_head
from beit.finetune.segmentation.model import HEAD_PREFIXES, Segmenter
from beit.finetune.weights.import_findings import Finding

HeadBlocks = Literal["released", "transformers"]

_BEFORE = 2
"""transformers takes hidden_states[i - 1] for an index i, the first of which is the embedding: the block i - 2."""


def has_segmentation_head(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether there is a head that classifies pixels."""
    return any(name.startswith("decode_head.") for name in tensors)


def expected_heads(architecture: ViTConfig, info: SegmentationInfo) -> dict[str, Tensor]:
    """Return the tensors that such a head has; only names and shapes count."""
    with torch.device("meta"):
        model = Segmenter(architecture, num_classes=len(info.classes), head=info.head)
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(HEAD_PREFIXES)}


def find_segmentation(
    tensors: Mapping[str, Tensor],
    architecture: ViTConfig,
    config: Mapping[str, Any],
    given: HeadBlocks | None,
    *,
    meta: Mapping[str, Any],
    origin: str,
) -> tuple[SegmentationInfo, Finding[tuple[int, ...]]]:
    """Describe a head by its tensors and what came with them.

    Args:
        tensors: Under our names.
        architecture: Of the encoder below it.
        config: config.json of a folder.
        given: Whose reading of `out_indices` counts, where the user says it.
        meta: Of a checkpoint of mmsegmentation, which has class names and colours; else empty.
        origin: For messages.

    Returns:
        The description, and where its blocks are from, for the user.
    """
    if (said := config.get("segmentation")) is not None:
        return _as_exported(said, tensors, architecture, given, origin)
    for name in ("decode_head.fpn_bottleneck.conv.weight", "neck.fpn1.0.weight", "decode_head.conv_seg.weight"):
        require(
            name in tensors,
            f"{origin} has a segmentation head without {name!r}, and only UPerNet on BEiT's neck can be imported; "
            "remove decode_head.* and auxiliary_head.* to use its encoder",
        )
    require(not config.get("add_fpn"), f"{origin} has its neck inside the backbone (add_fpn); it cannot be imported")
    pooled = config.get("pool_scales", [1, 2, 3, 6])
    require(list(pooled) == [1, 2, 3, 6], f"{origin} pools at {pooled}, and beit's UPerNet at 1, 2, 3 and 6")
    found = _blocks(config, architecture.depth, given, origin)
    head = HeadConfig(
        kind="upernet",
        blocks=found.value,
        channels=len(tensors["decode_head.fpn_bottleneck.conv.weight"]),
        norm="batch",
        auxiliary_weight=0.4 if "auxiliary_head.conv_seg.weight" in tensors else 0.0,
    )
    count = len(tensors["decode_head.conv_seg.weight"])
    info = SegmentationInfo(
        head=resolve_head(head, architecture), classes=_classes(count, config, meta), inference=InferenceConfig()
    )
    return info, found


def _as_exported(
    said: Any, tensors: Mapping[str, Tensor], architecture: ViTConfig, given: HeadBlocks | None, origin: str
) -> tuple[SegmentationInfo, Finding[tuple[int, ...]]]:
    """Take the head that an export of ours describes; what is for training may have been left out of it."""
    require("decode_head.conv_seg.weight" in tensors, f"{origin} lacks its classifier of pixels; export it again")
    require(given is None, f"{origin} says which blocks its head sees; leave --head-blocks out")
    info = SegmentationInfo.from_dict(said if isinstance(said, Mapping) else {}, origin=origin)
    if info.head.kind == "upernet" and "auxiliary_head.conv_seg.weight" not in tensors:  # the others have none
        info = replace(info, head=replace(info.head, auxiliary_weight=0.0))
    count, blocks = len(tensors["decode_head.conv_seg.weight"]), info.head.blocks or ()
    require(
        len(info.classes) == count and resolve_head(info.head, architecture) == info.head,
        f"{origin} has another segmentation head than its export says; export it again",
    )
    return info, Finding(blocks, f"{_numbers(blocks)}, as its export says")


def _blocks(config: Mapping[str, Any], depth: int, given: HeadBlocks | None, origin: str) -> Finding[tuple[int, ...]]:
    listed = config.get("out_indices")
    usual = level_blocks(depth)
    if "model_type" not in config or listed is None:
        return Finding(usual, f"{_numbers(usual)}, as the released code has for {depth} blocks")
    if not (isinstance(listed, list) and all(isinstance(index, int) for index in listed)):
        raise InputError(f"{origin}: out_indices ({listed}) must be a list of numbers; fetch config.json again")
    theirs = tuple(index - _BEFORE for index in listed)
    is_released = tuple(listed) == usual
    if given == "released":
        require(is_released, f"{origin}: out_indices ({listed}) are not those of the release, {list(usual)}")
        return Finding(usual, f"{_numbers(usual)}, as given")
    require(
        all(0 <= block < depth for block in theirs),
        f"{origin}: out_indices ({listed}) name the embedding, as transformers counts, and a head of beit sees blocks "
        "only; such weights cannot be imported exactly",
    )
    why = f"{_numbers(theirs)}, which transformers takes for out_indices {listed}"
    if is_released and given is None:
        why += f"; weights of the release saw {_numbers(usual)}"
        return Finding(theirs, why, "--head-blocks released takes those")
    return Finding(theirs, why)


def _classes(count: int, config: Mapping[str, Any], meta: Mapping[str, Any]) -> MaskClasses:
    listed, palette = config.get("id2label"), meta.get("PALETTE")
    names = [str(number) for number in range(count)]
    stored = meta.get("CLASSES")
    if isinstance(listed, Mapping) and len(listed) == count and all(name in listed for name in names):
        names = [str(listed[name]) for name in names]
    elif isinstance(stored, list | tuple) and len(stored) == count:
        names = [str(name) for name in stored]
    unique = tuple(f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names))
    if isinstance(palette, list | tuple) and len(palette) == count and all(_is_colour(one) for one in palette):
        return MaskClasses(names=unique, colours=tuple((int(r), int(g), int(b)) for r, g, b in palette))
    return MaskClasses(names=unique, colours=voc_colours(count))


def _is_colour(value: Any) -> bool:
    is_triple = isinstance(value, list | tuple) and len(value) == 3
    return is_triple and all(isinstance(part, int) and 0 <= part <= 255 for part in value)


def _numbers(blocks: tuple[int, ...]) -> str:
    return ", ".join(map(str, blocks))
