"""The public vector-quantize-pytorch quantizes the same tensors as we do, and moves its words to the same places.

Two of its defaults differ from what BEiT v2 does, and from us: `rotation_trick`, on unless switched off, replaces the
straight-through gradient; and in train mode the codebook moves under `no_grad`, too. A third thing is left out of the
comparison: a word that nobody chooses for some thousand steps shrinks to nothing there (its running sum is divided by a
count that a constant keeps from becoming as small), while ours keeps its direction.
"""

import pytest
import torch
from torch.nn import functional as F

from beit.common.tokenizers.quantizer import CosineQuantizer

public = pytest.importorskip("vector_quantize_pytorch", reason="needs vector-quantize-pytorch")

pytestmark = pytest.mark.reference


@pytest.mark.parametrize(("num_words", "code_dim", "decay"), [(256, 32, 0.99), (1000, 8, 0.8)])
def test_same_words_gradients_and_updates(num_words: int, code_dim: int, decay: float) -> None:
    torch.manual_seed(0)
    theirs = public.VectorQuantize(
        dim=code_dim,
        codebook_size=num_words,
        use_cosine_sim=True,
        decay=decay,
        commitment_weight=1.0,
        rotation_trick=False,
    ).train()
    ours = CosineQuantizer(num_words, code_dim, is_learning=True)
    ours.place(theirs.codebook.clone(), torch.ones(num_words))
    for _ in range(20):
        given = torch.randn(4, 49, code_dim)
        their_input, our_input = given.clone().requires_grad_(), given.clone().requires_grad_()
        vectors, words, commitment = theirs(their_input)
        codes = F.normalize(our_input, dim=-1)
        found = ours(codes)
        ours.follow(ours.tally(codes, found.words), decay=decay)
        probe = torch.randn_like(given)
        ((vectors * probe).sum() + commitment.sum()).backward()
        ((found.vectors * probe).sum() + found.commitment).backward()
        assert torch.equal(found.words, words)
        for mine, other in (
            (found.vectors, vectors),
            (found.commitment, commitment.sum()),
            (our_input.grad, their_input.grad),
            (ours.codebook, theirs.codebook),
            (ours.counts, theirs._codebook.cluster_size[0]),
            (ours.sums, theirs._codebook.embed_avg[0]),
        ):
            assert mine is not None
            assert (mine - other).abs().max() < 1e-6


def test_their_defaults_are_what_this_file_says_of_them() -> None:
    torch.manual_seed(0)
    theirs = public.VectorQuantize(dim=8, codebook_size=16, use_cosine_sim=True).train()
    assert theirs.rotation_trick
    before = theirs.codebook.clone()
    with torch.no_grad():
        theirs(torch.randn(1, 50, 8))
    assert not torch.equal(theirs.codebook, before)
