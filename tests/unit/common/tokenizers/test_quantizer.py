"""The cosine quantizer: nearest words, gradients, running means; against plain loops and frozen public numbers."""

import json
import operator
from functools import reduce
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beit.common.tokenizers.quantizer import CosineQuantizer, Tally

GOLDEN = json.loads((Path(__file__).parents[3] / "golden/cosine_quantizer.json").read_text())
"""What the public vector-quantize-pytorch 1.32.0 made of some codes; see the script beside it."""


@pytest.fixture
def quantizer() -> CosineQuantizer:
    torch.manual_seed(0)
    return CosineQuantizer(24, 6, is_learning=True)


def unit(*shape: int, seed: int = 1) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_words_are_the_nearest_by_cosine_one_by_one(quantizer: CosineQuantizer) -> None:
    codes = unit(3, 5, 6)
    words = quantizer.words(codes * 7.0)  # length does not matter
    for place in [(i, j) for i in range(3) for j in range(5)]:
        cosines = [float(codes[place] @ word / word.norm()) for word in quantizer.codebook]
        assert int(words[place]) == max(range(24), key=cosines.__getitem__)


def test_words_are_compared_in_float32_under_autocast(quantizer: CosineQuantizer) -> None:
    codes = unit(500, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = quantizer.words(codes)
    assert torch.equal(under_autocast, quantizer.words(codes))


def test_gradients_pass_straight_through_and_commitment_pulls_codes_only(quantizer: CosineQuantizer) -> None:
    codes, probe = unit(7, 6).requires_grad_(), unit(7, 6, seed=2)
    found = quantizer(codes)
    assert torch.allclose(found.vectors, quantizer.codebook[found.words], atol=1e-7)
    (found.vectors * probe).sum().backward()
    assert codes.grad is not None and torch.equal(codes.grad, probe)
    codes.grad = None
    found = quantizer(codes)
    found.commitment.backward()
    difference = codes.detach() - quantizer.codebook[found.words]
    assert float(found.commitment.detach()) == pytest.approx(float(difference.square().mean()))
    assert torch.allclose(codes.grad, 2 * difference / difference.numel())
    assert not any(buffer.requires_grad for buffer in quantizer.buffers())


def test_running_means_are_those_of_a_plain_loop(quantizer: CosineQuantizer) -> None:
    counts = [1.0] * 24
    sums = [word.double() for word in quantizer.codebook.clone()]
    for step in range(5):
        codes = unit(40, 6, seed=step)
        words = quantizer.words(codes)
        quantizer.follow(quantizer.tally(codes, words), decay=0.9)
        for number in range(24):
            mine = [code.double() for code, word in zip(codes, words, strict=True) if int(word) == number]
            counts[number] = 0.9 * counts[number] + 0.1 * len(mine)
            sums[number] = 0.9 * sums[number] + 0.1 * sum(mine, torch.zeros(6, dtype=torch.float64))
    expected = torch.stack([total / total.norm() for total in sums]).float()
    assert torch.allclose(quantizer.codebook, expected, atol=1e-6, rtol=0)
    assert quantizer.counts is not None and quantizer.sums is not None
    assert torch.allclose(quantizer.counts, torch.tensor(counts), atol=1e-6, rtol=0)
    assert torch.allclose(quantizer.sums, torch.stack(sums).float(), atol=1e-6, rtol=0)


def test_codes_words_gradients_and_updates_are_those_of_the_public_library() -> None:
    first = torch.tensor(GOLDEN["first_words"])
    quantizer = CosineQuantizer(*first.shape, is_learning=True)
    quantizer.place(first, torch.ones(len(first)))
    for record in GOLDEN["steps"]:
        given = torch.tensor(record["codes"]).requires_grad_()
        codes = F.normalize(given, dim=-1)
        found = quantizer(codes)
        count = torch.arange(given.numel(), dtype=torch.float64)
        probe = torch.sin(count * count * 0.37 + count * 1.3 + 2.0).view(given.shape).float()
        ((found.vectors * probe).sum() + found.commitment).backward()
        quantizer.follow(quantizer.tally(codes, found.words), decay=GOLDEN["decay"])
        assert found.words.tolist() == record["words"]
        pairs = {
            "vectors": found.vectors,
            "commitment": found.commitment,
            "gradient": given.grad,
            "codebook": quantizer.codebook,
            "counts": quantizer.counts,
            "sums": quantizer.sums,
        }
        for name, value in pairs.items():
            assert value is not None
            difference = (value.detach() - torch.tensor(record[name])).abs().max()
            assert difference < 1e-6, (name, float(difference))


def test_an_update_does_not_depend_on_how_its_codes_were_cut(quantizer: CosineQuantizer) -> None:
    codes = unit(999, 6)
    words = quantizer.words(codes)
    whole = quantizer.tally(codes, words)
    pairs = zip(torch.split(codes, 37), torch.split(words, 37), strict=True)
    parts = reduce(operator.add, (quantizer.tally(*pair) for pair in pairs))
    other = CosineQuantizer(24, 6, is_learning=True)
    other.load_state_dict(quantizer.state_dict())
    quantizer.follow(whole, decay=0.99)
    other.follow(parts, decay=0.99)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in quantizer.state_dict().items())


def test_a_word_that_nobody_chooses_keeps_its_direction_for_ever(quantizer: CosineQuantizer) -> None:
    before = quantizer.codebook.clone()
    codes = quantizer.codebook[:1].repeat(50, 1)
    for _ in range(3000):  # long past where its sum is too short to have a direction
        quantizer.follow(quantizer.tally(codes, quantizer.words(codes)), decay=0.9)
    assert torch.equal(quantizer.codebook[1:], before[1:])
    quantizer.follow(quantizer.tally(unit(1, 6), torch.tensor([5])), decay=0.9)  # and is there when it is chosen again
    assert torch.allclose(quantizer.codebook[5], unit(1, 6)[0])


def test_a_skipped_step_changes_nothing_even_with_nonsense_in_it(quantizer: CosineQuantizer) -> None:
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    nonsense = Tally(torch.full((24,), torch.nan).double(), torch.full((24, 6), torch.inf).double())
    quantizer.follow(nonsense, decay=0.9, skipped=torch.tensor(1.0))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_only_a_learning_quantizer_has_running_means() -> None:
    assert set(CosineQuantizer(4, 2).state_dict()) == {"codebook"}
    assert set(CosineQuantizer(4, 2, is_learning=True).state_dict()) == {"codebook", "counts", "sums"}
