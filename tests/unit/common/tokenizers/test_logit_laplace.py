"""The logit-Laplace likelihood is a density, equals its formula, and stays finite."""

import math

import pytest
import torch

from beit.common.tokenizers.dvae import MIN_LOG_SCALE, most_likely_pixels, negative_log_likelihood


def statistics(location: float, log_scale: float, shape: tuple[int, ...] = (1, 1, 1, 1)) -> torch.Tensor:
    return torch.cat([torch.full(shape, location), torch.full(shape, log_scale)], dim=1)


def density(mapped: torch.Tensor, location: float, log_scale: float) -> torch.Tensor:
    """f at mapped pixels in (0.1, 0.9), through the function under test, one pixel at a time."""
    images = (mapped.double() - 0.1) / 0.8 * 2.0 - 1.0
    values = [
        negative_log_likelihood(statistics(location, log_scale).double(), image.view(1, 1, 1, 1)) for image in images
    ]
    return torch.stack(values).neg().exp()


@pytest.mark.parametrize(("location", "log_scale"), [(0.0, -1.5), (0.8, -2.0), (-1.0, -2.5)])
def test_density_integrates_to_one(location: float, log_scale: float) -> None:
    grid = torch.linspace(0.001, 0.999, 4001, dtype=torch.float64)  # beyond the pixels' interval: all of (0, 1)
    total = torch.trapezoid(density(grid, location, log_scale), grid)
    assert total.item() == pytest.approx(1.0, abs=2e-3)


def test_likelihood_is_the_formula() -> None:
    mapped, location, scale = 0.3, 0.25, 0.4
    logit = math.log(mapped / (1 - mapped))
    expected = math.exp(-abs(logit - location) / scale) / (2 * scale * mapped * (1 - mapped))
    assert density(torch.tensor([mapped]), location, math.log(scale)).item() == pytest.approx(expected, rel=1e-6)


def test_channels_are_independent_and_averaged() -> None:
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    heads = torch.randn(2, 6, 4, 4)
    single = [
        negative_log_likelihood(heads[:, [channel, channel + 3]], images[:, channel : channel + 1])
        for channel in range(3)
    ]
    assert negative_log_likelihood(heads, images).item() == pytest.approx(torch.stack(single).mean().item(), rel=1e-5)


@pytest.mark.parametrize("log_scale", [-1e4, MIN_LOG_SCALE, 0.0, 30.0, 1e4])
@pytest.mark.parametrize("pixel", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("location", [-50.0, 0.0, 50.0])
def test_value_and_gradient_are_finite(log_scale: float, pixel: float, location: float) -> None:
    heads = statistics(location, log_scale).requires_grad_()
    loss = negative_log_likelihood(heads, torch.full((1, 1, 1, 1), pixel))
    loss.backward()
    assert torch.isfinite(loss) and heads.grad is not None and torch.isfinite(heads.grad).all()


def test_exact_pixels_are_paid_for_within_bounds() -> None:
    exact = statistics(0.0, -1e4)
    assert negative_log_likelihood(exact, torch.zeros(1, 1, 1, 1)).item() >= MIN_LOG_SCALE + math.log(2) - 1.4


def test_location_is_the_picture() -> None:
    images = torch.rand(1, 3, 5, 5) * 2 - 1
    location = torch.logit((images + 1) / 2 * 0.8 + 0.1)
    assert torch.allclose(most_likely_pixels(torch.cat([location, location], dim=1)), images, atol=1e-5)
