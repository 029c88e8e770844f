import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beit.common.tokenizers.quantizer import CosineQuantizer
from beit.tokenize.distillation.words import place_words, restart_words, used_words


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture
def quantizer() -> CosineQuantizer:
    torch.manual_seed(0)
    return CosineQuantizer(10, 4, is_learning=True)


def test_words_are_placed_among_the_codes_the_same_every_time(quantizer: CosineQuantizer) -> None:
    codes = unit(400, 4)
    place_words(quantizer, codes, codes_per_step=50, generator=generator())
    first = quantizer.codebook.clone()
    assert torch.allclose(first.norm(dim=1), torch.ones(10))
    assert (codes @ first.t()).amax(dim=1).mean() > 0.8
    assert quantizer.counts is not None and torch.equal(quantizer.counts, torch.full((10,), 0.25))
    place_words(quantizer, codes, codes_per_step=50, generator=generator())
    assert torch.equal(first, quantizer.codebook)


def test_an_unused_word_is_put_where_no_word_is(quantizer: CosineQuantizer) -> None:
    lonely = torch.tensor([0.0, 0.0, 0.0, 1.0])
    words = F.normalize(torch.cat([unit(10, 3), torch.full((10, 1), -0.2)], dim=1), dim=1)
    counts = torch.full((10,), 8.0)
    counts[4] = 0.01
    quantizer.place(words, counts)
    codes = torch.cat([words[:4].repeat(5, 1), lonely[None]])
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    assert restart_words(quantizer, codes, threshold=0.1, generator=generator()) == 1
    assert torch.equal(quantizer.codebook[4], lonely)
    others = torch.arange(10) != 4
    assert all(torch.equal(value[others], before[name][others]) for name, value in quantizer.state_dict().items())
    assert float(used_words(quantizer, 0.099)) == 10
    for _ in range(3):  # nobody chooses it, so it is put elsewhere
        quantizer.follow(quantizer.tally(words[:1], torch.tensor([0])), decay=0.9)
    assert restart_words(quantizer, unit(50, 4), threshold=0.1, generator=generator()) == 1


def test_nothing_is_restarted_where_all_are_used_or_no_code_makes_sense(quantizer: CosineQuantizer) -> None:
    before = quantizer.codebook.clone()
    assert restart_words(quantizer, unit(50, 4), threshold=0.1, generator=generator()) == 0
    assert quantizer.counts is not None
    quantizer.counts[2] = 0
    assert restart_words(quantizer, torch.full((50, 4), torch.nan), threshold=0.1, generator=generator()) == 0
    assert torch.equal(before, quantizer.codebook)
