"""What other projects add to a model without changing what it computes, `beit export` for them included: left out.

Each is told by its values: ones and zeros that nobody trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from beit.finetune.weights.import_names import NamedTensors
from beit.finetune.weights.import_segmenter import has_segmentation_head

_ENDS = ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")


def without_fillers(named: NamedTensors) -> NamedTensors:
    """Leave out the untrained norm of a pooler without head, and the last block of a segmenter that ends in zeros."""
    tensors = named.tensors
    fillers = [] if "head.weight" in tensors else _untrained_norm(tensors)
    if has_segmentation_head(tensors):
        fillers += _idle_block(tensors)
    if not fillers:
        return named
    kept = {name: tensor for name, tensor in tensors.items() if name not in fillers}
    return replace(named, tensors=kept, left_out=[*named.left_out, *fillers])


def _untrained_norm(tensors: Mapping[str, Tensor]) -> list[str]:
    weight, bias = tensors.get("fc_norm.weight"), tensors.get("fc_norm.bias")
    if weight is None or bias is None or not (bool((weight == 1).all()) and bool((bias == 0).all())):
        return []
    return ["fc_norm.weight", "fc_norm.bias"]


def _idle_block(tensors: Mapping[str, Tensor]) -> list[str]:
    numbers = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))]
    prefix = f"blocks.{max(numbers, default=0)}."
    zero = torch.zeros(1)
    is_idle = all(bool((tensors.get(prefix + end, zero + 1) == 0).all()) for end in _ENDS)
    return [name for name in tensors if name.startswith(prefix)] if is_idle else []
