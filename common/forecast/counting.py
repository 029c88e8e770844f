"""What a module keeps and computes, found by running it on tensors without contents: no memory, hardly any time.

For networks other than plain vision transformers, which `common/forecast/model.py` counts without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Counted(NamedTuple):
    """A module's numbers, for the inputs that it was given."""

    parameters: int
    """All."""
    forward_flops: int
    """Multiplications and additions of one forward pass."""
    kept_bytes: int
    """What the backward pass needs, beside the parameters."""


def count(module: nn.Module, run: Callable[[], Tensor | tuple[Tensor, ...]]) -> Counted:
    """Count a module on the meta device.

    Args:
        module: On the meta device, in training mode.
        run: Calls it on tensors of the meta device that want gradients.
    """
    parameters = list(module.parameters())
    own = {_identity(parameter) for parameter in parameters}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        identity = _identity(tensor)
        if identity not in own:
            kept[identity] = tensor.untyped_storage().nbytes()
            alive.append(tensor)  # else the next one may get its identity
        return tensor

    alive: list[Tensor] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        FlopCounterMode(display=False) as counter,
    ):
        alive += (result,) if isinstance(result := run(), Tensor) else result
    return Counted(sum(map(torch.numel, parameters)), int(counter.get_total_flops()), sum(kept.values()))


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
