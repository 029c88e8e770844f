"""A codebook that follows what is given to it: unit vectors, looked up by cosine, moved by running means.

Codes and words are unit vectors, so that only directions count. Gradients do not move words: each word is the direction
of the running sum of the codes that chose it, and gradients pass through the choice unchanged. How words begin, and
what becomes of words that nobody chooses, is the training's business (`tokenize/distillation/`).

V words, C numbers per code, M codes.

Source: A. van den Oord et al., "Neural Discrete Representation Learning", 2017, §3.2 (straight-through gradients,
commitment) and appendix A.1 (running counts and sums); BEiT v2 §2.1 (unit codes). Differs from the released BEiT v2
code, which moves each word that was chosen by a fixed share of the way, however many codes chose it: docs/decisions.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MAX_PRODUCTS = 2**26
"""Of codes with words at a time while learning, where batches are large: 256 MiB."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Codes by the word they chose; of several micro-batches or ranks it is the sum of theirs."""

    counts: Tensor
    """(V,) float64: codes that chose each word."""
    sums: Tensor
    """(V, C) float64: their sum."""

    def __add__(self, other: Tally) -> Tally:
        """Return both together."""
        return Tally(self.counts + other.counts, self.sums + other.sums)


class Quantized(NamedTuple):
    """What becomes of codes."""

    words: Tensor
    """int64, the shape of the codes without the last dimension."""
    vectors: Tensor
    """The words' unit vectors in the shape of the codes; their gradient goes to the codes as it is."""
    commitment: Tensor
    """Scalar: mean squared difference of codes and words, whose gradient goes to the codes only."""


class CosineQuantizer(nn.Module):
    """The words of a vocabulary as unit vectors.

    Args:
        vocab_size: V.
        code_dim: C.
        is_learning: Whether it has the running counts and sums that words are moved by; finished tokenizers do not.
    """

    codebook: Tensor
    counts: Tensor | None
    sums: Tensor | None

    def __init__(self, vocab_size: int, code_dim: int, *, is_learning: bool = False) -> None:
        super().__init__()
        codebook = F.normalize(torch.randn(vocab_size, code_dim), dim=1)
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(vocab_size) if is_learning else None)
        self.register_buffer("sums", codebook.clone() if is_learning else None)

    def words(self, codes: Tensor) -> Tensor:
        """Return the word nearest to each code, float (..., C), by cosine; int64 (...), always compared in float32."""
        # bfloat16 rounds a cosine to 1/256, while neighbouring words of a large vocabulary are nearer than that.
        with torch.autocast(codes.device.type, enabled=False):
            return (F.normalize(codes.float(), dim=-1) @ self.codebook.t()).argmax(dim=-1)

    def forward(self, codes: Tensor) -> Quantized:
        """Replace codes, float32 (..., C) of length 1, by words."""
        parts = torch.split(codes.detach().flatten(0, -2), max(1, _MAX_PRODUCTS // len(self.codebook)))
        words = torch.cat([self.words(part) for part in parts]).view(codes.shape[:-1])
        vectors = self.codebook[words]
        return Quantized(words, codes + (vectors - codes).detach(), F.mse_loss(codes, vectors))

    @torch.no_grad()
    def tally(self, codes: Tensor, words: Tensor) -> Tally:
        """Add up codes, float32 (..., C) of length 1, by their words, (...)."""
        # In float64 the order of the additions, by ranks, micro-batches and the threads of a GPU, leaves no trace.
        chosen, flat = words.flatten(), codes.detach().flatten(0, -2).double()
        sums = torch.zeros(self.codebook.shape, dtype=torch.float64, device=flat.device).index_add_(0, chosen, flat)
        return Tally(torch.bincount(chosen, minlength=len(self.codebook)).double(), sums)

    @torch.no_grad()
    def follow(self, tally: Tally, *, decay: float, skipped: Tensor | None = None) -> None:
        """Move the words to where their codes are; once per optimizer step, with the tally of all of it.

        Args:
            tally: Of the step, over all ranks.
            decay: Share of the running counts and sums that is kept.
            skipped: Scalar on the device, not 0 where nothing is to change; looked at there, so that nobody waits.
        """
        assert self.counts is not None and self.sums is not None, "a finished tokenizer does not learn"
        counts = torch.lerp(self.counts, tally.counts.float(), 1.0 - decay)
        sums = torch.lerp(self.sums, tally.sums.float(), 1.0 - decay)
        # The direction of an unused word is not computed again: its sum gets ever shorter, in the end 0.
        is_used = tally.counts > 0
        is_applied = torch.ones_like(is_used) if skipped is None else (skipped == 0).expand_as(is_used)
        self.counts.copy_(torch.where(is_applied, counts, self.counts))
        self.sums.copy_(torch.where(is_applied[:, None], sums, self.sums))
        moved = torch.where((is_applied & is_used)[:, None], F.normalize(sums, dim=1), self.codebook)
        self.codebook.copy_(moved)

    @torch.no_grad()
    def place(self, codebook: Tensor, counts: Tensor, *, rows: Tensor | None = None) -> None:
        """Put words where they are to be, each as if it had been chosen by so many codes like itself.

        Args:
            codebook: Float (V, C) of length 1.
            counts: (V,) or a scalar.
            rows: Bool (V,), which words; None puts all.
        """
        assert self.counts is not None and self.sums is not None, "a finished tokenizer does not learn"
        chosen = torch.ones_like(self.counts, dtype=torch.bool) if rows is None else rows
        self.codebook.copy_(torch.where(chosen[:, None], codebook, self.codebook))
        self.counts.copy_(torch.where(chosen, counts, self.counts))
        self.sums.copy_(torch.where(chosen[:, None], self.codebook * self.counts[:, None], self.sums))

    def extra_repr(self) -> str:
        """Show the size."""
        return "{} words of {}".format(*self.codebook.shape)
