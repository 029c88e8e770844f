"""Write cosine_quantizer.json: what the public vector-quantize-pytorch makes of some codes, step by step.

Made with vector-quantize-pytorch 1.32.0 and torch 2.13, in float32 on a CPU. Its gradients are straight-through only
where its rotation trick is off, which by default it is not.

    python tests/golden/make_cosine_quantizer.py
"""

import json
from pathlib import Path

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

OUT = Path(__file__).with_suffix("").with_name("cosine_quantizer.json")
NUM_WORDS, CODE_DIM, NUM_CODES, NUM_STEPS, DECAY = 12, 4, 40, 4, 0.9


def waves(*shape: int, phase: float) -> Tensor:
    """Return numbers that any machine has."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(count * count * 0.37 + count * 1.3 + phase).view(shape).float()


def first_words() -> Tensor:
    """Return the codebook it begins with; the last word is far from all codes."""
    words = waves(NUM_WORDS, CODE_DIM, phase=5.0)
    words[-1] = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    return torch.nn.functional.normalize(words, dim=1)


def codes(step: int) -> Tensor:
    """Return what is quantized in a step: of any length, in two rows; nothing near the last word."""
    return waves(2, NUM_CODES // 2, CODE_DIM, phase=0.9 * step) + 0.7


def public() -> VectorQuantize:
    """Return the public quantizer, which begins with `first_words`."""
    quantizer = VectorQuantize(
        dim=CODE_DIM,
        codebook_size=NUM_WORDS,
        use_cosine_sim=True,
        decay=DECAY,
        commitment_weight=1.0,
        rotation_trick=False,
    )
    for buffer in (quantizer._codebook.embed, quantizer._codebook.embed_avg):
        buffer.copy_(first_words()[None])
    return quantizer.train()


def run() -> list[dict[str, object]]:
    """Quantize all steps' codes and describe each."""
    quantizer, records = public(), []
    for step in range(NUM_STEPS):
        given = codes(step).requires_grad_()
        vectors, words, commitment = quantizer(given)
        probe = waves(*given.shape, phase=2.0)
        ((vectors * probe).sum() + commitment).backward()
        records.append(
            {
                "codes": given.tolist(),
                "words": words.tolist(),
                "vectors": vectors.detach().tolist(),
                "commitment": float(commitment.detach()),
                "gradient": given.grad.tolist(),
                "codebook": quantizer.codebook.tolist(),
                "counts": quantizer._codebook.cluster_size[0].tolist(),
                "sums": quantizer._codebook.embed_avg[0].tolist(),
            }
        )
    return records


if __name__ == "__main__":
    settings = {"decay": DECAY, "first_words": first_words().tolist()}
    OUT.write_text(json.dumps({**settings, "steps": run()}) + "\n")
