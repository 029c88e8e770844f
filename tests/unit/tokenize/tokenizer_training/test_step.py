from dataclasses import replace

import numpy as np
import pytest
import torch

from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.tokenize.fitness.image_quality import block_means, image_psnr
from beit.tokenize.fitness.tokens import perplexity
from beit.tokenize.tokenizer_training.config import ObjectiveConfig
from beit.tokenize.tokenizer_training.report import reconstruction_metrics, reconstruction_sheet, seen_pixels
from beit.tokenize.tokenizer_training.step import TokenizerModel, autoencoder_loss, discrete_loss, phase_at, psnr

CONFIG = DiscreteVAEConfig(vocab_size=16, width=16, num_blocks=1, code_dim=8)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model() -> TokenizerModel:
    torch.manual_seed(0)
    return TokenizerModel(CONFIG)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator())


def test_phases_follow_each_other() -> None:
    objective = ObjectiveConfig()
    phases = [phase_at(objective, step, 1000) for step in range(1000)]
    assert [phase.is_discrete for phase in phases] == [False] * 100 + [True] * 900
    assert [phase.is_hard for phase in phases] == [False] * 600 + [True] * 400
    temperatures = [phase.temperature for phase in phases]
    assert temperatures[100] == 1.0 and temperatures == sorted(temperatures, reverse=True)
    assert temperatures[450] == pytest.approx(0.1**0.5, rel=1e-2)  # geometric: halfway in time, halfway in exponent
    assert temperatures[800] == temperatures[-1] == pytest.approx(0.1)
    assert phases[0].kl_scale == pytest.approx(1 / 200) and phases[199].kl_scale == phases[-1].kl_scale == 1.0
    assert [step for step in range(1000) if phases[step].is_revival] == list(range(150, 900, 50))


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_shortest_runs_still_become_discrete(total_steps: int) -> None:
    assert phase_at(ObjectiveConfig(autoencoder_fraction=1.0), total_steps - 1, total_steps).is_discrete


def test_loss_is_reconstruction_plus_weighted_divergences(model: TokenizerModel, images: torch.Tensor) -> None:
    phase = phase_at(ObjectiveConfig(), 150, 1000)
    plain = ObjectiveConfig(kl_weight=0.0, usage_weight=0.0)
    weighted = ObjectiveConfig(kl_weight=0.5, usage_weight=0.25)
    mse, metrics = discrete_loss(model, images, phase=phase, objective=plain, generator=generator())
    loss, _ = discrete_loss(model, images, phase=phase, objective=weighted, generator=generator())
    expected = mse + phase.kl_scale * (0.5 * metrics["kl"] + 0.25 * metrics["usage_kl"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["psnr"].item() == pytest.approx(psnr(mse).item(), rel=1e-5)
    assert not any(value.requires_grad for value in metrics.values())
    assert all(value.ndim == 0 for value in metrics.values())


def test_logit_laplace_trains_all_of_the_decoder_and_reports_psnr(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = TokenizerModel(replace(CONFIG, reconstruction="logit_laplace"))
    phase = phase_at(ObjectiveConfig(), 700, 1000)
    loss, metrics = discrete_loss(model, images, phase=phase, objective=ObjectiveConfig(), generator=generator())
    loss.backward()
    gradient = model.vae.to_pixels.weight.grad
    assert gradient is not None and torch.isfinite(gradient).all() and (gradient.flatten(1).abs().sum(1) > 0).all()
    assert 0 < metrics["psnr"] < 40
    assert torch.isfinite(autoencoder_loss(model, images, generator()))


def test_grey_is_measured_against_luma(images: torch.Tensor) -> None:
    model = TokenizerModel(replace(CONFIG, channels=1)).vae
    grey = seen_pixels(model, images)
    measured = reconstruction_metrics(model, images, micro_batch_size=2)
    assert measured == reconstruction_metrics(model, grey, micro_batch_size=2)
    assert reconstruction_sheet(model, images).size == (8 * (160 + 12) - 12 + 48, 26 + 160 + 48)


def test_hard_phase_shows_the_decoder_single_words_but_still_trains_the_encoder(
    model: TokenizerModel, images: torch.Tensor
) -> None:
    phase = phase_at(ObjectiveConfig(), 950, 1000)
    loss, _ = discrete_loss(model, images, phase=phase, objective=ObjectiveConfig(), generator=generator())
    loss.backward()
    gradient = model.vae.patch_embed.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_running_use_counts_words(model: TokenizerModel, images: torch.Tensor) -> None:
    before = model.usage.clone()
    phase = phase_at(ObjectiveConfig(), 500, 1000)
    discrete_loss(model, images, phase=phase, objective=ObjectiveConfig(), generator=generator())
    assert model.usage.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert not torch.equal(model.usage, before)


def test_training_learns_and_keeps_words_in_use(model: TokenizerModel) -> None:
    colours = torch.randint(0, 256, (8, 3, 2, 2), generator=generator()).float()
    images = torch.nn.functional.interpolate(colours, scale_factor=8).to(torch.uint8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    noise = generator()
    for step in range(40):
        phase = phase_at(ObjectiveConfig(), step, 40)
        loss = (
            discrete_loss(model, images, phase=phase, objective=ObjectiveConfig(), generator=noise)[0]
            if phase.is_discrete
            else autoencoder_loss(model, images, noise)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metrics = reconstruction_metrics(model.vae, images, micro_batch_size=3)
    assert metrics["words_used"] >= 6
    assert metrics["psnr"] > 10


def test_report_measures_against_the_mean_of_each_square() -> None:
    flat = torch.randint(0, 256, (2, 3, 2, 2), generator=generator(), dtype=torch.uint8).repeat_interleave(8, 2)
    images = flat.repeat_interleave(8, 3)
    assert torch.equal(block_means(images, 8), images)
    assert image_psnr(images, images).tolist() == [100.0, 100.0]
    shifted = torch.full_like(images, 100)
    assert image_psnr(shifted, shifted + 10).tolist() == pytest.approx([28.13, 28.13], abs=0.01)


def test_perplexity_counts_words_that_would_be_used_equally() -> None:
    assert perplexity(np.array([5, 5, 0, 0])) == pytest.approx(2.0)
    assert perplexity(np.array([9, 0])) == pytest.approx(1.0)
