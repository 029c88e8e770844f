"""A head with batch norm on two ranks, each with half of a batch; run as a module.

Usage: python -m beit.tests.rank_norm RANK STORE OUT, once for each of two ranks; rank 0 writes tensors to OUT.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from beit.finetune.segmentation.heads import conv_norm

NUM_IMAGES, NUM_RANKS = 6, 2


def build() -> nn.Sequential:
    """Return two convolutions with norms, the same every time."""
    torch.manual_seed(0)
    return nn.Sequential(conv_norm(3, 8, 3, "batch"), conv_norm(8, 4, 1, "batch"))


def images() -> Tensor:
    """Return the batch, with a large mean, as residual streams have."""
    return torch.randn(NUM_IMAGES, 3, 5, 7, generator=torch.Generator().manual_seed(1)) * 3 + 100


def loss_of(output: Tensor, share: slice) -> Tensor:
    """Return a loss in which every value counts differently; its mean over ranks is that of the whole batch."""
    weight = torch.randn(NUM_IMAGES, 4, 5, 7, generator=torch.Generator().manual_seed(2))
    return (output * weight[share]).mean() + output.square().mean()


def main() -> None:
    rank, store, out = int(sys.argv[1]), *sys.argv[2:]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=NUM_RANKS)
    model, found = build(), {}
    size = NUM_IMAGES // NUM_RANKS
    for _ in range(2):  # the running statistics move twice
        model.zero_grad()
        share = slice(rank * size, (rank + 1) * size)
        pixels = images()[share].requires_grad_()
        output = model(pixels)
        loss_of(output, share).backward()
    for name, parameter in model.named_parameters():
        dist.all_reduce(parameter.grad)
        found[f"grad/{name}"] = parameter.grad / NUM_RANKS
    for name, value in (("output", output.detach()), ("images", pixels.grad / NUM_RANKS)):
        parts = [torch.empty_like(value) for _ in range(NUM_RANKS)]
        dist.all_gather(parts, value)
        found[name] = torch.cat(parts)
    if rank == 0:
        save_file({**found, **model.state_dict()}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
