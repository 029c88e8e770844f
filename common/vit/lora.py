"""Low-rank updates (LoRA): a linear layer that keeps its weight and learns what to add to its output.

Here: the layer, and what its update is as a matrix. Not here: which layers of an encoder have one, and who is trained
beside it (`adaptation.py`).

Legend: I = inputs of the layer, O = its outputs, R = rank.

Source: LoRA (Hu et al., 2021) §4.1: W x + (alpha / R) B A x, with B zero and A random at the start, so that the first
step begins at W exactly; alpha stays what it is when R changes, so that the learning rate need not. A is drawn as in
the authors' code (loralib), uniformly; the paper says Gaussian. Differs: no dropout, and queries, keys and values,
which are one matrix here, share one A.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

LORA_ALPHA = 16.0
"""alpha: the update counts fully at rank 16, twice at 8."""
LORA_A, LORA_B = "lora_a", "lora_b"
"""What the tensors are called, beside `weight`."""


class LoraLinear(nn.Linear):
    """A linear layer (..., I) to (..., O) whose weight and bias are kept as they are, and an update that is trained.

    Its parameters are those of the layer, under their names and the very same, and `lora_a` (R, I) and `lora_b` (O, R).
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.scale = rank, lora_scale(rank)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def extra_repr(self) -> str:
        """Show the rank, too."""
        return f"{super().extra_repr()}, rank={self.rank}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        return super().forward(inputs) + self.update(inputs)

    def update(self, inputs: Tensor, outputs: slice = slice(None)) -> Tensor:
        """Return what is added to the layer's output for inputs (..., I), or to some of its O outputs."""
        return nn.functional.linear(nn.functional.linear(inputs, self.lora_a), self.lora_b[outputs]) * self.scale


def updated(layer: nn.Linear, output: Tensor, inputs: Tensor, outputs: slice = slice(None)) -> Tensor:
    """Add a layer's update, if it has one, to what its weight made of `inputs`; for callers that read the weight."""
    return output + layer.update(inputs, outputs) if isinstance(layer, LoraLinear) else output


def lora_scale(rank: int) -> float:
    """Return alpha / R."""
    return LORA_ALPHA / rank


def merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """Return the plain weight (O, I) that does what a layer and its update do, in the weight's dtype."""
    update = lora_b.double() @ lora_a.double() * lora_scale(lora_a.shape[0])
    return (weight.double() + update).to(weight.dtype)
