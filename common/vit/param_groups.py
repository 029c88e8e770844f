"""Which parameters are weight-decayed, and how far the learning rate of each layer is scaled down.

A group is a dict with `params`, `weight_decay` and `lr_scale`; the training loop multiplies the schedule by `lr_scale`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from beit.common.vit.position_bias import TABLE_KEY


def is_decayed(name: str, num_dims: int) -> bool:
    """Tell by its official name and its dimensions whether a parameter is weight-decayed.

    Vectors (norms, layer scale, q and v bias), biases, `cls_token` and `pos_embed` are not. The mask token and the
    relative position tables are, as in the released code, though only because its name list leaves them out.
    """
    return num_dims != 1 and name.rpartition(".")[2] not in ("bias", "cls_token", "pos_embed")


def layer_id(name: str, depth: int) -> int:
    """Number the layer a parameter of a model of `depth` blocks belongs to, by its official name.

    Returns 0 for the embeddings, i + 1 for block i (0-based), depth + 1 for all else: head, last norm, a shared
    position table.
    """
    first, _, rest = name.partition(".")
    if first in ("cls_token", "mask_token", "pos_embed", "patch_embed"):
        return 0
    if first == "blocks":
        return int(rest.partition(".")[0]) + 1
    return depth + 1


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
    depth: int = 0,
    position_lr_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Split the trainable parameters by layer and decay; lower layers learn more slowly.

    Args:
        model: With official parameter names.
        weight_decay: Of the decayed parameters.
        layer_decay: Factor from one layer to the layer below it, in (0, 1]; the head has 1, the embeddings
            layer_decay^(depth + 1). With 1 there are two groups only, both at the schedule's own rate.
        depth: Number of transformer blocks, for a layer_decay below 1.
        position_lr_scale: Factor on the learning rate of the relative position tables; with another than 1 they are not
            decayed.

    Returns:
        Groups in the order of the layers, decayed before not decayed.

    Source: the released BEiT fine-tuning code. Differs: nothing, unless position tables have a factor.
    """
    groups: dict[tuple[int, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_id(name, depth) if layer_decay < 1 else depth + 1
        factor = position_lr_scale if name.rpartition(".")[2] == TABLE_KEY else 1.0
        key = layer, not is_decayed(name, parameter.ndim) or factor != 1, factor
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": groups[layer, spared, factor],
            "weight_decay": 0.0 if spared else weight_decay,
            "lr_scale": layer_decay ** (depth + 1 - layer) * factor,
        }
        for layer, spared, factor in sorted(groups)
    ]
