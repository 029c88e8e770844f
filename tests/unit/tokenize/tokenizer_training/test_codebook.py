import torch
from torch.nn import functional as F

from beit.tokenize.tokenizer_training.codebook import fit_codebook, revive_words


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_codebook_finds_the_clusters() -> None:
    centres = F.normalize(torch.eye(6), dim=1)
    noise = 0.05 * torch.randn(600, 6, generator=generator())
    features = F.normalize(centres.repeat(100, 1) + noise, dim=1)
    codebook = fit_codebook(features, 24, generator=generator())
    assert torch.allclose(codebook.norm(dim=1), torch.ones(24), atol=1e-5)
    assert (features @ codebook.t()).amax(dim=1).min() > 0.95
    assert len((features @ codebook.t()).argmax(dim=1).unique()) > 12


def test_codebook_copes_with_fewer_features_than_words() -> None:
    codebook = fit_codebook(F.normalize(torch.randn(3, 4), dim=1), 16, generator=generator())
    assert codebook.shape == (16, 4) and torch.isfinite(codebook).all()


def test_unused_words_move_to_features_nobody_represents() -> None:
    codebook = torch.eye(4)[:3].clone()  # nothing along the last axis
    usage = torch.tensor([0.6, 0.4, 0.0])
    features = torch.eye(4)[[0, 0, 1, 3]]
    moved = revive_words(codebook, usage, features, threshold=0.05, generator=generator())
    assert moved == 1
    assert torch.equal(codebook[2], torch.eye(4)[3])
    assert torch.equal(codebook[:2], torch.eye(4)[:2])
    assert usage[2] == 1 / 3


def test_used_words_stay() -> None:
    codebook, usage = torch.eye(3), torch.full((3,), 1 / 3)
    assert revive_words(codebook, usage, torch.eye(3), threshold=0.05, generator=generator()) == 0
    assert torch.equal(codebook, torch.eye(3))


def test_no_more_words_are_revived_than_there_are_features() -> None:
    codebook, usage = F.normalize(torch.randn(8, 4), dim=1), torch.zeros(8)
    assert revive_words(codebook, usage, torch.eye(4)[:2], threshold=0.05, generator=generator()) == 2
    assert (usage > 0).sum() == 2
